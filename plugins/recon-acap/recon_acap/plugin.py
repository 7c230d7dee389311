"""What recon-acap registers."""

from __future__ import annotations

from recon_core.hookspecs import hookimpl
from recon_core.plugins import Registrar


@hookimpl
def recon_register(register: Registrar) -> None:
    """Nothing yet that the command line runs."""
