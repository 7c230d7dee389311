"""What recon-prohmr registers."""

from __future__ import annotations

from recon_core.hookspecs import hookimpl
from recon_core.plugins import Registrar


@hookimpl
def recon_register(register: Registrar) -> None:
    register.method("prohmr", "recon_prohmr.method:ProHMR", summary="the distribution of bodies, by a conditional flow")
    register.method("prohmr-lift", "recon_prohmr.lift:Lift", summary="a skeleton for 2D joints, by the same flow")
    register.fitter("prohmr-latent", "recon_prohmr.fitter:LatentFitter", summary="fits in the latent space of prohmr")
    register.importer("prohmr", "recon_prohmr.convert:ProHMRImporter", summary="ProHMR's published checkpoint")
    register.importer("prohmr-lift", "recon_prohmr.convert:LiftImporter", summary="checkpoints of the lifting flow")
