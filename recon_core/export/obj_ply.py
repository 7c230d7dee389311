"""One .obj or .ply file a subject: person_0.obj, object_0.ply, ... in the frame of scene.glb (y up, metres)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from recon_core.export.palette import subject_colors
from recon_core.export.rig import Y_UP
from recon_core.reconstruction import Reconstruction
from recon_core.structures import Mesh


def write_obj(reconstruction: Reconstruction, folder: Path) -> list[Path]:
    """Wavefront OBJ with texture coordinates; a textured mesh also gets a .mtl and a .png."""
    written = []
    for name, mesh in reconstruction.meshes().items():
        faces = mesh.faces.cpu().numpy() + 1
        lines = [f"# recon: {reconstruction.method}, {name}", f"o {name}"]
        if mesh.texture is not None:
            written += _material(folder, name, mesh)
            lines += [f"mtllib {name}.mtl", f"usemtl {name}"]
        rows = _y_up(mesh)
        if (colors := _colors(mesh)) is not None:
            rows = np.concatenate([rows, colors / 255], 1)
        lines += _rows("v", rows)
        if mesh.uv is None or mesh.uv_faces is None:
            lines += [f"f {a} {b} {c}" for a, b, c in faces.tolist()]
        else:
            lines += _rows("vt", mesh.uv.detach().cpu().numpy())
            corners = np.stack([faces, mesh.uv_faces.cpu().numpy() + 1], -1).reshape(-1, 6)
            lines += [f"f {a}/{ta} {b}/{tb} {c}/{tc}" for a, ta, b, tb, c, tc in corners.tolist()]
        path = folder / f"{name}.obj"
        path.write_text("\n".join(lines) + "\n")
        written.append(path)
    return written


def write_ply(reconstruction: Reconstruction, folder: Path) -> list[Path]:
    """Binary little-endian PLY with vertex colours (the subject's own, where the mesh has none)."""
    written = []
    meshes = reconstruction.meshes()
    for (name, mesh), color in zip(meshes.items(), subject_colors(len(meshes)), strict=True):
        vertices, faces = _y_up(mesh), mesh.faces.cpu().numpy()
        rgb = _colors(mesh)
        vertex = np.empty(len(vertices), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
        vertex["xyz"] = vertices
        vertex["rgb"] = (color * 255 + 0.5).astype(np.uint8) if rgb is None else rgb
        face = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
        face["count"], face["corners"] = 3, faces
        header = (
            f"ply\nformat binary_little_endian 1.0\ncomment recon: {reconstruction.method}, {name}\n"
            f"element vertex {len(vertices)}\nproperty float x\nproperty float y\nproperty float z\n"
            "property uchar red\nproperty uchar green\nproperty uchar blue\n"
            f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
        )
        path = folder / f"{name}.ply"
        path.write_bytes(header.encode() + vertex.tobytes() + face.tobytes())
        written.append(path)
    return written


def _y_up(mesh: Mesh) -> np.ndarray:
    return mesh.vertices[0].detach().cpu().numpy() * Y_UP


def _colors(mesh: Mesh) -> np.ndarray | None:
    """Vertex colours 0..255 when the mesh has RGB ones."""
    if mesh.colors is None or mesh.colors.shape[-1] not in (3, 4):
        return None
    return (mesh.colors[0, :, :3].detach().cpu().numpy().clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _rows(keyword: str, values: np.ndarray) -> list[str]:
    pattern = keyword + " %.6f" * values.shape[1]
    return [pattern % tuple(row) for row in values.tolist()]


def _material(folder: Path, name: str, mesh: Mesh) -> list[Path]:
    assert mesh.texture is not None
    picture, material = folder / f"{name}.png", folder / f"{name}.mtl"
    pixels = mesh.texture[0].detach().cpu().numpy().transpose(1, 2, 0).clip(0, 1) * 255 + 0.5
    Image.fromarray(pixels.astype(np.uint8)).save(picture, compress_level=1)
    material.write_text(f"newmtl {name}\nKd 1 1 1\nmap_Kd {picture.name}\n")
    return [picture, material]
