"""turntable.gif: everyone turned once about the vertical. `recon_core.export.mp4` writes the same as a video."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.export.pictures import PAPER, Colors, overlay
from recon_core.export.save import run_renderer
from recon_core.interfaces import Renderer
from recon_core.reconstruction import Reconstruction
from recon_core.structures import Camera, Mesh

SECONDS = 3.0
"""One turn."""
GIF_FRAMES = 50
"""A GIF's delays are hundredths of a second: 6 of them for each frame."""
_MARGIN = 0.94
"""Share of the picture that the meshes may fill."""
_DISTANCE = 4.0
"""Of the camera from the middle, in radii of the meshes."""


def turntable(
    meshes: Sequence[Mesh] | Mesh,
    renderer: Renderer,
    frames: int = GIF_FRAMES,
    side: int = 480,
    colors: Colors | None = None,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Pictures of one turn about the vertical through the middle of the meshes, lit from the viewer's side.

    meshes: in a camera frame (x right, y down, z forward), on the renderer's device; the first picture sees them from
    the side the photo was taken from. side: the longer of the picture in pixels; both are even, as video encoders
    need. colors: as for `overlay`. Raises UsageError for no vertices at all, and for fewer than one frame.
    """
    group = [mesh.detach() for mesh in ([meshes] if isinstance(meshes, Mesh) else meshes)]
    points = torch.cat([mesh.vertices.reshape(-1, 3) for mesh in group]) if group else torch.zeros(0, 3)
    if not len(points) or frames < 1:
        raise UsageError(f"a turntable needs vertices and at least 1 frame, got {len(points)} and {frames}")
    cameras = _around(points, frames, side)
    width, height = cameras.size
    for view in range(frames):
        paper = np.full((height, width, 3), PAPER, np.uint8)
        yield overlay(paper, group, cameras[view : view + 1], renderer, colors)


def write_gif(reconstruction: Reconstruction, folder: Path) -> list[Path]:
    """turntable.gif, repeating without end; nothing for a result without meshes."""
    frames = list(turntable_of(reconstruction, GIF_FRAMES))
    if not frames:
        return []
    # One palette for all frames, so that colours do not flicker.
    some = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 8)], 1)).quantize(256)
    first, *others = (Image.fromarray(frame).quantize(palette=some, dither=Image.Dither.NONE) for frame in frames)
    path = folder / "turntable.gif"
    delay = round(SECONDS * 1000 / len(frames))
    first.save(path, save_all=True, append_images=others, duration=delay, loop=0)
    return [path]


def turntable_of(reconstruction: Reconstruction, frames: int) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """`turntable` of all meshes of a result, drawn by the run's renderer; empty for a result without meshes."""
    meshes = list(reconstruction.meshes().values())
    return turntable(meshes, run_renderer(reconstruction), frames) if meshes else iter(())


def _around(points: Float[Tensor, "N 3"], frames: int, side: int) -> Camera:
    """Cameras in a circle about the points, of one size and focal length, such that every one sees all points."""
    middle = (points.amin(0) + points.amax(0)) / 2
    centred = points - middle
    radius = float(centred.norm(dim=-1).max().clamp(min=1e-6))
    angle = torch.arange(frames, dtype=points.dtype, device=points.device) * (2 * math.pi / frames)
    c, s, none, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    R = torch.stack([c, none, -s, none, one, none, s, none, c], -1).reshape(-1, 3, 3)
    t = points.new_tensor([0.0, 0.0, _DISTANCE * radius]) - R @ middle
    # How far from the axis points are seen, over all views, for a focal length of one pixel.
    seen = centred @ R.transpose(1, 2) + points.new_tensor([0.0, 0.0, _DISTANCE * radius])
    reach = (seen[..., :2] / seen[..., 2:]).abs().amax((0, 1)).clamp(min=1e-6)
    focal = _MARGIN * side / 2 / float(reach.max())
    even = lambda length: max(2, 2 * math.ceil(length / 2))  # noqa: E731
    size = tuple(even(min(side, 2 * focal * float(r) / _MARGIN)) for r in reach)
    camera = Camera.perspective(focal, (size[0], size[1]), batch=frames).to(points.device).to(points.dtype)
    return dataclasses.replace(camera, R=R, t=t)
