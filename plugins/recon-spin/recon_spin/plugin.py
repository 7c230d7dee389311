"""What recon-spin registers."""

from __future__ import annotations

from recon_core.hookspecs import hookimpl
from recon_core.plugins import Registrar


@hookimpl
def recon_register(register: Registrar) -> None:
    register.method("spin", "recon_spin.method:SPIN", summary="a body from the image alone, by an iterative regressor")
    register.importer("spin", "recon_spin.convert:SPINImporter", summary="SPIN's published checkpoint")
