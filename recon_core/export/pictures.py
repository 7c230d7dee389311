"""Pictures for people: bodies over the photo, from the side and from above, as normals, depth and scalars."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.export.palette import subject_colors
from recon_core.interfaces import Renderer
from recon_core.rendering import Fragments, Scene, albedo, directional_light, irradiance, pixel_normals
from recon_core.structures import Camera, Mesh

TILE_PIXELS = 2**21
"""Pictures are drawn in bands of about this many pixels, so that memory does not grow with the photo."""


def overlay(
    photo: np.ndarray,
    meshes: Sequence[Mesh] | Mesh,
    camera: Camera,
    renderer: Renderer,
    colors: Sequence[tuple[float, float, float]] | None = None,
    opacity: float = 1.0,
) -> np.ndarray:
    """The photo at its full size with the meshes drawn over it, hiding each other.

    photo: (H, W, 3) uint8. meshes: in the world frame of `camera` (the camera frame when it has no R and t);
    each row of each is one person. camera: one row, of the photo's size. colors: RGB in [0, 1] for each person
    in turn, repeated; without it a mesh keeps its texture or colors, and a bare one takes the palette's next.
    opacity: of the bodies, 0 to 1. Returns (H, W, 3) uint8. Raises UsageError when camera and photo differ in size.
    """
    group = [meshes] if isinstance(meshes, Mesh) else list(meshes)
    height, width = photo.shape[:2]
    if len(camera) != 1 or camera.size != (width, height):
        raise UsageError(
            f"the overlay needs one camera of the photo's size {width}x{height}, "
            f"got {len(camera)} of {camera.size[0]}x{camera.size[1]}"
        )
    result = np.ascontiguousarray(photo).copy()
    if not group:
        return result
    with torch.no_grad():
        scene = Scene.together(painted(group, colors))
        light = headlight(camera)
        left, top, right, bottom = _bounds(scene, camera)
        rows = max(1, TILE_PIXELS // max(right - left, 1))
        for y in range(top, bottom, rows):
            size = (right - left, min(rows, bottom - y))
            shift = camera.K.new_tensor([[[1.0, 0.0, -left], [0.0, 1.0, -y]]])
            fragments = renderer.rasterize(scene, camera.cropped(shift, size))
            _blend(result[y : y + size[1], left:right], scene, fragments, light, opacity)
    return result


def _blend(target: np.ndarray, scene: Scene, fragments: Fragments, light: Tensor, opacity: float) -> None:
    """Draw the fragments of one picture into `target`, in place."""
    visible = fragments.visible
    if not len(visible):
        return
    colour = albedo(scene, visible) * irradiance(light, visible.picture, pixel_normals(scene, visible))
    drawn = (colour.clamp(0, 1) * 255).cpu()
    index = visible.index.cpu()
    width = target.shape[1]
    y, x = (index // width).numpy(), (index % width).numpy()
    if opacity < 1:
        drawn = drawn * opacity + torch.from_numpy(target[y, x]) * (1 - opacity)
    target[y, x] = (drawn + 0.5).to(torch.uint8).numpy()


def painted(meshes: Sequence[Mesh], colors: Sequence[tuple[float, float, float]] | None = None) -> list[Mesh]:
    """The meshes with a colour a person: `colors` in turn, or the report's for those with nothing painted on."""
    result, person = [], 0
    count = sum(len(mesh) for mesh in meshes)
    palette = subject_colors(count) if colors is None else np.resize(np.asarray(colors, np.float32), (count, 3))
    for mesh in meshes:
        if colors is not None or (mesh.texture is None and mesh.colors is None):
            rows = torch.from_numpy(palette[person : person + len(mesh)]).to(mesh.vertices)
            paint = rows[:, None].expand(-1, mesh.vertices.shape[1], -1)
            mesh = dataclasses.replace(mesh, colors=paint, texture=None)
        person += len(mesh)
        result.append(mesh)
    return result


def headlight(camera: Camera) -> Float[Tensor, "B 9 1"]:
    """Light from above the camera's left shoulder, in its world frame, for `Renderer.render`."""
    direction = camera.K.new_tensor([-0.35, -0.5, -0.8]).expand(len(camera), 3)
    return directional_light((direction[:, None] @ camera.R)[:, 0], ambient=0.45, diffuse=0.6)


def _bounds(scene: Scene, camera: Camera) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels that the meshes can reach; the whole picture if they surround the camera."""
    width, height = camera.size
    screen = scene.project(camera)
    if len(screen) == 0:
        return 0, 0, 0, 0
    if not camera.orthographic and bool((screen[:, 2] <= 0.01).any()):
        return 0, 0, width, height
    low, high = screen[:, :2].amin(0).floor().tolist(), screen[:, :2].amax(0).ceil().tolist()
    limit = lambda value, size: int(min(max(value, 0), size))  # noqa: E731
    return limit(low[0], width), limit(low[1], height), limit(high[0], width), limit(high[1], height)
