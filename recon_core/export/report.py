"""report.html: one self-contained page with the photo, the overlay, a turntable viewer and the numbers.

The page loads nothing: pictures, meshes and script are inside, and a content security policy says so to the browser.
"""

from __future__ import annotations

import base64
import io
import json
import re
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from recon_core.export.palette import subject_colors
from recon_core.export.rig import Y_UP, split_at_seams
from recon_core.reconstruction import Person, Reconstruction, SceneObject
from recon_core.structures import Mesh

PICTURE_SIDE = 1280
"""Pictures in the page are reduced to this many pixels on their longer side."""

TEXTURE_SIDE = 1024


def write_report(reconstruction: Reconstruction, overlay: UInt8[np.ndarray, "H W 3"] | None, path: Path) -> None:
    """Write the page. overlay: the picture of overlay.png, None when there is nothing to draw."""
    path.write_text(report_page(reconstruction, overlay), encoding="utf-8")


def report_page(reconstruction: Reconstruction, overlay: UInt8[np.ndarray, "H W 3"] | None) -> str:
    """The page as text."""
    pictures = [("photo", reconstruction.photo)]
    if overlay is not None:
        pictures.append(("overlay", overlay))
    pictures += [(f"result {i}", item.pixels) for i, item in enumerate(reconstruction.images)]
    figures = [
        f'<figure><img src="{_picture(pixels)}" alt="{name}"><figcaption>{name}</figcaption></figure>'
        for name, pixels in pictures
    ]
    scene = _scene(reconstruction)
    values = {
        "title": escape(reconstruction.path.name),
        "facts": _table(_facts(reconstruction)),
        "figures": "\n".join(figures),
        "viewer": _asset("report_viewer.html") if scene["meshes"] else "",
        "subjects": "\n".join(
            [_person(i, person, len(reconstruction.people) == 1) for i, person in enumerate(reconstruction.people)]
            + [_object(i, item) for i, item in enumerate(reconstruction.objects)]
        ),
        # "<" would let a file name end the script element.
        "scene": json.dumps(scene, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": _asset("report_viewer.js") if scene["meshes"] else "",
    }
    return re.sub(r"{{(\w+)}}", lambda match: values[match[1]], _asset("report.html"))


@cache
def _asset(name: str) -> str:
    return (resources.files("recon_core.export") / name).read_text(encoding="utf-8")


# -- the viewer's data


def _scene(reconstruction: Reconstruction) -> dict[str, Any]:
    """Meshes as the script reads them: quantised positions, shared faces once, everything base64."""
    meshes = reconstruction.meshes()
    colors = subject_colors(len(meshes))
    indices: dict[tuple[int, ...], str] = {}
    items = []
    for (name, mesh), color in zip(meshes.items(), colors, strict=True):
        vertices = mesh.vertices[0].detach().cpu().numpy() * Y_UP
        item: dict[str, Any] = {"name": name, "color": [round(float(c), 3) for c in color]}
        triangles = mesh.faces.cpu().numpy()
        topology: tuple[int, ...] = (mesh.faces.data_ptr(),)
        if mesh.texture is not None and mesh.uv is not None and mesh.uv_faces is not None:
            triangles, corner, texel = split_at_seams(triangles, mesh.uv_faces.cpu().numpy())
            topology += (mesh.uv_faces.data_ptr(),)
            vertices = vertices[corner]
            item["uv"] = _base64(mesh.uv.detach().cpu().numpy()[texel].astype("<f4"))
            item["texture"] = _texture(mesh)
        if topology not in indices:
            indices[topology] = _base64(triangles.astype("<u4" if len(vertices) > 65535 else "<u2"))
        item["faces"] = list(indices).index(topology)
        items.append(item | _quantised(vertices))
    return {"indices": list(indices.values()), "meshes": items}


def _quantised(vertices: Float[np.ndarray, "V 3"]) -> dict[str, Any]:
    """Positions as 16-bit fractions of their bounding box: steps of 0.03 mm for a person."""
    low = vertices.min(0) if len(vertices) else np.zeros(3)
    scale = np.maximum(vertices.max(0, initial=-np.inf) - low if len(vertices) else np.zeros(3), 1e-9)
    positions = ((vertices - low) / scale * 65535 + 0.5).astype("<u2")
    return {"count": len(vertices), "low": low.tolist(), "scale": scale.tolist(), "positions": _base64(positions)}


def _texture(mesh: Mesh) -> str:
    assert mesh.texture is not None
    pixels = mesh.texture[0].detach().cpu().numpy().transpose(1, 2, 0).clip(0, 1) * 255 + 0.5
    return _picture(pixels.astype(np.uint8), TEXTURE_SIDE)


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _picture(pixels: UInt8[np.ndarray, "H W 3"], side: int = PICTURE_SIDE) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


# -- the numbers


def _facts(reconstruction: Reconstruction) -> list[tuple[str, str]]:
    K = reconstruction.camera.K[0].tolist()
    width, height = reconstruction.image_size
    found = [
        f"{len(items)} {name if len(items) == 1 else plural}"
        for items, name, plural in (
            (reconstruction.people, "person", "people"),
            (reconstruction.objects, "object", "objects"),
            (reconstruction.images, "picture", "pictures"),
        )
        if items
    ]
    views = [("views", ", ".join(name for name, _ in reconstruction.views))] if reconstruction.views else []
    return [
        ("method", reconstruction.method),
        *views,
        ("photo", f"{reconstruction.path.name}, {width} × {height} pixels"),
        ("found", ", ".join(found) or "nothing"),
        ("focal length", f"{K[0][0]:.1f} pixels, principal point {K[0][2]:.1f}, {K[1][2]:.1f}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in reconstruction.versions.items())),
    ]


def _person(index: int, person: Person, alone: bool) -> str:
    x, y, w, h = person.box
    distance = float(np.linalg.norm(person.joints3d["smpl24"]["pelvis"]))
    rows = [
        ("box", f"{w:.0f} × {h:.0f} at {x:.0f}, {y:.0f} pixels, score {person.score:.2f}"),
        ("distance", f"{distance:.2f} m from the camera to the pelvis"),
        ("shape (betas)", " ".join(f"{value:+.2f}" for value in person.body.betas[0].tolist())),
    ]
    if (fit := person.fit) is not None:
        rows.append(("fit", _fit(fit)))
    if person.samples is not None:
        rows.append(("samples", str(person.samples.count)))
    joints = [_joint_table(person, name, opened=alone and name == "smpl24") for name in person.joints3d]
    return _section(f"person {index}", _table(rows) + "".join(joints))


def _fit(fit: Any) -> str:
    if fit["initial_energy"] is None or fit["energy"] is None:
        text = f"{fit['reason']} after {fit['iterations']} iterations"
    else:
        text = f"{fit['reason']} after {fit['iterations']} iterations, "
        text += f"energy {fit['initial_energy']:.4g} to {fit['energy']:.4g}"
    if fit["reprojection_px"] is not None:
        text += f", joints {fit['reprojection_px']:.1f} pixels from those detected"
    return text


def _object(index: int, item: Any) -> str:
    x, y, w, h = item.box
    rows = [
        ("box", f"{w:.0f} × {h:.0f} at {x:.0f}, {y:.0f} pixels, score {item.score:.2f}"),
        ("mesh", f"{item.mesh.vertices.shape[1]} vertices, {len(item.mesh.faces)} faces"),
    ]
    rows += [
        (name, " ".join(f"{number:.4g}" for number in np.ravel(value)))
        for name, value in item.extra.items()
        if value.size <= 32
    ]
    joints = [_joint_table(item, name, opened=False) for name in item.joints3d if name in item.joints2d]
    return _section(f"object {index}", _table(rows) + "".join(joints))


def _joint_table(person: Person | SceneObject, skeleton: str, opened: bool) -> str:
    spread = person.joint_std_mm if isinstance(person, Person) and skeleton == "smpl24" else None
    head = ["joint", "u", "v", "x", "y", "z"] + (["± mm"] if spread is not None else [])
    lines = []
    points3d, points2d = person.joints3d[skeleton], person.joints2d[skeleton]
    for j, name in enumerate(points3d):
        cells = [name.replace("_", " ")]
        cells += ["–" if np.isnan(v) else f"{v:.1f}" for v in points2d.points[j]]
        cells += [f"{v:.3f}" for v in points3d.points[j]]
        if spread is not None:
            cells.append(f"{spread[j]:.0f}")
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    header = "<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"
    return (
        f"<details{' open' if opened else ''}><summary>joints, {skeleton}: u, v in pixels; x right, y down, "
        f"z forward in metres</summary><table class=joints>{header}{''.join(lines)}</table></details>"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows]
    return f"<table>{''.join(lines)}</table>"
