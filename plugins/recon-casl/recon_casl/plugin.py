"""What recon-casl registers."""

from __future__ import annotations

from recon_core.hookspecs import hookimpl
from recon_core.plugins import Registrar


@hookimpl
def recon_register(register: Registrar) -> None:
    register.method(
        "casl",
        "recon_casl.method:CASL",
        summary="a textured mesh of a clothed person or a thing, from photo and mask",
    )
    register.importer("casl", "recon_casl.convert:CASLImporter", summary="CASL's published checkpoint, for people")
    register.importer("casl-cub", "recon_casl.convert:BirdsImporter", summary="CASL's published checkpoint, for birds")
