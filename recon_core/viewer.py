"""A result folder in an interactive viewer (viser): the photo, bodies, samples and the camera they were seen by."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from recon_core.errors import InputError, ReconError
from recon_core.export.palette import subject_colors
from recon_core.images import load_image
from recon_core.plugins import registry
from recon_core.structures import BodyParameters

if TYPE_CHECKING:
    import viser

PHOTO_SIDE = 1024
"""The picture in the camera's frustum is reduced to this, longer side, pixels."""


@dataclass(frozen=True)
class ViewedResult:
    """What the viewer shows: result.json and result.npz of one folder, and the photo or its overlay.

    meshes: name -> (vertices (V, 3), faces (F, 3)), camera frame, metres. samples: (P, N, V, 3) vertices of each
    person's draws, None where the run drew none. K: (3, 3). size: (w, h). picture: what the camera saw, reduced.
    """

    name: str
    meshes: dict[str, tuple[np.ndarray, np.ndarray]]
    K: Float[np.ndarray, "3 3"]
    size: tuple[int, int]
    picture: UInt8[np.ndarray, "H W 3"] | None
    samples: Float[np.ndarray, "P N V 3"] | None = None
    log_prob: Float[np.ndarray, "P N"] | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


def read_result(folder: Path, samples: int = 25, photo: Path | None = None) -> ViewedResult:
    """Read a folder that `recon run` wrote; at most `samples` draws a person are posed.

    photo: the picture itself, to be shown in place of the overlay. Raises InputError when the folder holds no result,
    or one that cannot be read, and for a photo that is none or not of the result's size.
    """
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder}: no result.json; give a folder that `recon run` wrote, such as out/photo")
    try:
        numbers = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        with np.load(folder / "result.npz", allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: the result cannot be read ({error}); run again with --overwrite") from error
    meshes = {f"person_{i}": (v, arrays["faces"]) for i, v in enumerate(arrays.get("vertices", ()))}
    meshes |= {
        name.removesuffix("_vertices"): (arrays[name], arrays[name.replace("vertices", "faces")])
        for name in arrays
        if name.startswith("object_") and name.endswith("_vertices")
    }
    size = (int(arrays["image_size"][0]), int(arrays["image_size"][1]))
    overlay = folder / "overlay.png"
    shown = photo or overlay
    return ViewedResult(
        name=folder.name,
        meshes=meshes,
        K=arrays["K"],
        size=size,
        picture=_picture(shown, size) if shown != overlay or overlay.is_file() else None,
        samples=_posed(arrays, numbers, samples),
        log_prob=arrays["sample_log_prob"][:, :samples] if "sample_log_prob" in arrays else None,
        numbers=numbers,
    )


def _picture(path: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    pixels = load_image(path).pixels
    if pixels.shape[:2] != size[::-1]:
        raise InputError(
            f"{path}: {pixels.shape[1]}x{pixels.shape[0]} pixels, but the result is of a photo of {size[0]}x{size[1]}: "
            f"give the photo that the run read"
        )
    picture = Image.fromarray(pixels)
    picture.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    return np.asarray(picture)


def _posed(arrays: dict[str, np.ndarray], numbers: dict[str, Any], count: int) -> np.ndarray | None:
    """Vertices of the first `count` samples of each person; None when there are none, or their body is not here."""
    if "sample_pose" not in arrays or not count:
        return None
    try:
        body = registry().load("body", numbers["settings"].get("run", {}).get("body") or "free")()
    except ReconError:
        return None
    if len(body.faces) != len(arrays["faces"]):
        return None
    parts = [torch.from_numpy(arrays[f"sample_{name}"][:, :count]) for name in ("pose", "betas", "translation")]
    people, drawn = parts[0].shape[:2]
    with torch.no_grad():
        vertices = body(BodyParameters(*(part.flatten(0, 1) for part in parts))).vertices
    return vertices.unflatten(0, (people, drawn)).numpy()


def show(server: viser.ViserServer, result: ViewedResult) -> None:
    """Put a result into a viewer: its meshes, the camera with the picture, and switches for each."""
    scene, gui = server.scene, server.gui
    scene.set_up_direction("-y")  # the camera frame has y down
    scene.world_axes.visible = False
    colors = (subject_colors(len(result.meshes)) * 255).round().astype(int)
    middle = np.mean([v.mean(0) for v, _ in result.meshes.values()], axis=0) if result.meshes else np.array([0, 0, 3.0])
    width, height = result.size
    fov = 2 * np.arctan(height / 2 / result.K[1, 1])
    depth = float(middle[2])
    # Small and thin beside the people, so that its picture does not stand before them.
    camera = scene.add_camera_frustum(
        "/camera",
        fov=float(fov),
        aspect=width / height,
        scale=0.12 * depth,
        thickness=0.003 * depth,
        image=result.picture,
    )
    bodies = []
    for (name, (vertices, faces)), color in zip(result.meshes.items(), colors, strict=True):
        bodies.append(scene.add_mesh_simple(f"/{name}", vertices, faces, color=color))
    feet = max((float(v[:, 1].max()) for v, _ in result.meshes.values()), default=1.0)
    scene.add_grid("/floor", width=8, height=8, plane="xz", position=(float(middle[0]), feet, float(middle[2])))
    for handle in (camera, *bodies):
        switch = gui.add_checkbox(handle.name.lstrip("/"), True)

        def toggle(_: Any, handle: Any = handle, switch: Any = switch) -> None:
            handle.visible = switch.value

        switch.on_update(toggle)
    wireframe = gui.add_checkbox("wireframe", False)

    def set_wireframe(_: Any) -> None:
        for handle in bodies:
            handle.wireframe = wireframe.value

    wireframe.on_update(set_wireframe)
    if result.samples is not None:
        _add_samples(server, result, colors)

    # Start behind and beside where the photo was taken, with both the camera and the people in sight.
    view = server.initial_camera
    view.up = (0.0, -1.0, 0.0)
    view.position = (float(middle[0] + 0.8 * depth), float(middle[1] - 0.25 * depth), -0.2 * depth)
    view.look_at = middle


def _add_samples(server: viser.ViserServer, result: ViewedResult, colors: np.ndarray) -> None:
    """A slider through each person's draws; 0 shows none."""
    assert result.samples is not None
    count = result.samples.shape[1]
    slider = server.gui.add_slider("sample", min=0, max=count, step=1, initial_value=0)
    text = server.gui.add_markdown("")
    faces = result.meshes["person_0"][1]
    handles = [
        server.scene.add_mesh_simple(f"/person_{i}/sample", draws[0], faces, color=color, opacity=0.5, visible=False)
        for i, (draws, color) in enumerate(zip(result.samples, colors, strict=False))
    ]

    def pick(_: Any) -> None:
        index = slider.value - 1
        for person, handle in enumerate(handles):
            handle.visible = index >= 0
            if index >= 0:
                handle.vertices = result.samples[person, index]  # type: ignore[index]
        if index >= 0 and result.log_prob is not None:
            values = ", ".join(f"person {i}: {p[index]:.1f}" for i, p in enumerate(result.log_prob))
            text.content = f"log density: {values}"

    slider.on_update(pick)
