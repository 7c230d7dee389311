"""What recon-acap registers."""

from __future__ import annotations

from recon_core.hookspecs import hookimpl
from recon_core.plugins import Registrar


@hookimpl
def recon_register(register: Registrar) -> None:
    register.method(
        "acap-vae", "recon_acap.method:AcapVae", summary="bodies of the ACAP embedding, from scans and joints"
    )
    register.prior("acap", "recon_acap.prior:AcapPosePrior", summary="poses that the ACAP embedding holds likely")
