"""What the core itself registers, by the same way as everyone: its file formats."""

from __future__ import annotations

from recon_core.hookspecs import hookimpl
from recon_core.plugins import Registrar


@hookimpl
def recon_register(register: Registrar) -> None:
    register.exporter("obj", "recon_core.export.obj_ply:write_obj", summary="meshes as Wavefront OBJ")
    register.exporter("ply", "recon_core.export.obj_ply:write_ply", summary="meshes as binary PLY")
    register.exporter("bvh", "recon_core.export.bvh:write_bvh", summary="skeletons as Biovision BVH")
    register.exporter("gif", "recon_core.export.turntable:write_gif", summary="turntable as animated GIF")
    register.exporter("mp4", "recon_core.export.mp4:write_mp4", summary="turntable as H.264 video (needs PyAV)")
    register.exporter("pictures", "recon_core.export.views:write_views", summary="side, top, normals, depth, lines")
