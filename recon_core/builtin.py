"""What the core itself registers, by the same way as everyone: its file formats."""

from __future__ import annotations

from recon_core.hookspecs import hookimpl
from recon_core.plugins import Registrar


@hookimpl
def recon_register(register: Registrar) -> None:
    register.exporter("obj", "recon_core.export.obj_ply:write_obj", summary="meshes as Wavefront OBJ")
    register.exporter("ply", "recon_core.export.obj_ply:write_ply", summary="meshes as binary PLY")
    register.exporter("bvh", "recon_core.export.bvh:write_bvh", summary="skeletons as Biovision BVH")
