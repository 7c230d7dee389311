"""Pictures for people: bodies over the photo, from the side and from above, as normals, depth, lines and scalars.

All take meshes in the world frame of their camera (the camera frame when it has no R and t), on the renderer's
device, and return (H, W, 3) uint8. They are drawn in bands, so memory does not grow with the picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.export.palette import subject_colors
from recon_core.interfaces import Renderer
from recon_core.rendering import (
    Fragments,
    Outline,
    Scene,
    Visible,
    albedo,
    directional_light,
    interpolate,
    irradiance,
    outline,
    pixel_normals,
    vertex_normals,
)
from recon_core.structures import Camera, Mesh

BAND_PIXELS = 2**20
"""Pictures are drawn in bands of about this many pixels."""
CHUNK_PIXELS = 2**14
"""Pixels are coloured this many at a time, so that what is computed of them stays in the processor's cache."""
PAPER = 250
"""Grey level behind views that show no photo."""

Colors = Sequence[tuple[float, float, float]]
Paint = Callable[[Scene, Visible], Float[Tensor, "P 3"]]


def overlay(
    photo: UInt8[np.ndarray, "H W 3"],
    meshes: Sequence[Mesh] | Mesh,
    camera: Camera,
    renderer: Renderer,
    colors: Colors | None = None,
    opacity: float = 1.0,
) -> UInt8[np.ndarray, "H W 3"]:
    """The photo at its full size with the meshes drawn over it, hiding each other.

    meshes: each row of each is one person. camera: one row, of the photo's size. colors: RGB in [0, 1] for each
    person in turn, repeated; without it a mesh keeps its texture or colors, and a bare one takes the palette's.
    opacity: of the bodies, 0 to 1. Raises UsageError when camera and photo differ in size.
    """
    scene = Scene.together(painted(_group(meshes), colors))
    light = headlight(camera)
    if all(mesh.texture is None for mesh in scene.meshes):
        # Lit at vertices, which are dense; so one interpolation a pixel does.
        scene = Scene.together([_lit(mesh, light) for mesh in scene.meshes])
        return _drawn(photo, scene, camera, renderer, albedo, opacity)

    def paint(scene: Scene, visible: Visible) -> Float[Tensor, "P 3"]:
        return albedo(scene, visible) * irradiance(light, visible.picture, pixel_normals(scene, visible))

    return _drawn(photo, scene, camera, renderer, paint, opacity)


def side_view(
    meshes: Sequence[Mesh] | Mesh, renderer: Renderer, size: tuple[int, int] = (512, 512), colors: Colors | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """The meshes of a camera frame (y down) seen from the picture's right, without perspective; far is left."""
    turn = torch.tensor([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    return _view(_group(meshes), renderer, size, colors, turn)


def top_view(
    meshes: Sequence[Mesh] | Mesh, renderer: Renderer, size: tuple[int, int] = (512, 512), colors: Colors | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """The meshes of a camera frame (y down) seen from above, without perspective; far is up."""
    turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    return _view(_group(meshes), renderer, size, colors, turn)


def normal_map(meshes: Sequence[Mesh] | Mesh, camera: Camera, renderer: Renderer) -> UInt8[np.ndarray, "H W 3"]:
    """Surface normals as colours: red right, green up, blue towards the viewer, -1..1 as 0..255; black elsewhere."""
    to_picture = camera.R[0] * camera.R.new_tensor([[1.0], [-1.0], [-1.0]])

    def paint(scene: Scene, visible: Visible) -> Float[Tensor, "P 3"]:
        return pixel_normals(scene, visible) @ to_picture.T / 2 + 0.5

    return _drawn(_blank(camera, 0), Scene.together(_group(meshes)), camera, renderer, paint)


def depth_map(
    meshes: Sequence[Mesh] | Mesh,
    camera: Camera,
    renderer: Renderer,
    limits: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Depth as grey: the nearest white, the farthest dark, nothing black.

    limits: nearest and farthest depth in metres; those of the vertices by default.
    """
    scene = Scene.together(_group(meshes))
    depth = scene.project(camera)[:, 2:]
    if limits is None:
        limits = (float(depth.min()), float(depth.max())) if len(depth) else (0.0, 1.0)
    near, far = limits

    def paint(scene: Scene, visible: Visible) -> Float[Tensor, "P 3"]:
        z = interpolate(visible, scene.faces, depth)
        return (1 - 0.85 * ((z - near) / max(far - near, 1e-9)).clamp(0, 1)).expand(-1, 3)

    return _drawn(_blank(camera, 0), scene, camera, renderer, paint)


def wireframe(
    photo: UInt8[np.ndarray, "H W 3"],
    meshes: Sequence[Mesh] | Mesh,
    camera: Camera,
    renderer: Renderer,
    colors: Colors | None = None,
    width: float = 1.0,
) -> UInt8[np.ndarray, "H W 3"]:
    """The edges of visible faces as lines `width` pixels wide over the photo; hidden lines are left out."""
    scene = Scene.together(painted([dataclasses.replace(m, texture=None) for m in _group(meshes)], colors))
    screen = scene.project(camera)[:, :2]
    result = _checked(photo, camera).copy()
    with torch.no_grad():
        for band in _bands(scene, camera, renderer):
            for visible in _chunks(band.visible()):
                x, y = band.place(visible)
                centre = torch.stack([x, y], 1).to(screen) + 0.5  # as in the full picture, like `screen`
                near = width / 2 + 0.5 - _edge_distance(screen[scene.faces[visible.face]], centre)
                _composite(result, x, y, albedo(scene, visible), near.clamp(0, 1))
    return result


def scalar_colors(
    values: Float[Tensor, "B V"], low: float | None = None, high: float | None = None
) -> Float[Tensor, "B V 3"]:
    """A colour for each vertex value, for `Mesh.colors`: from blue at `low` over pale to red at `high`.

    The limits are the values' own by default. For the spread of samples, residuals, contact and the like.
    """
    start = float(values.min()) if low is None else low
    end = float(values.max()) if high is None else high
    stops = values.new_tensor(
        [[0.18, 0.30, 0.60], [0.45, 0.66, 0.80], [0.93, 0.90, 0.80], [0.90, 0.55, 0.35], [0.68, 0.12, 0.15]]
    )
    at = ((values - start) / max(end - start, 1e-12)).clamp(0, 1) * (len(stops) - 1)
    first = at.floor().clamp(max=len(stops) - 2).long()
    return stops[first] + (at - first)[..., None] * (stops[first + 1] - stops[first])


def painted(meshes: Sequence[Mesh], colors: Colors | None = None) -> list[Mesh]:
    """The meshes with a colour a person: `colors` in turn, or the palette's for those with nothing painted on."""
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


def _group(meshes: Sequence[Mesh] | Mesh) -> list[Mesh]:
    return [mesh.detach() for mesh in ([meshes] if isinstance(meshes, Mesh) else meshes)]


def _lit(mesh: Mesh, light: Float[Tensor, "1 9 1"]) -> Mesh:
    """The mesh with its colors as the light shows them."""
    flat = Scene.together(mesh)
    falling = irradiance(light, flat.picture.new_zeros(1), vertex_normals(flat.vertices, flat.faces))
    colors = mesh.colors * falling.reshape(*mesh.vertices.shape[:2], 1)  # type: ignore[operator]
    return dataclasses.replace(mesh, colors=colors)


def _view(
    meshes: list[Mesh], renderer: Renderer, size: tuple[int, int], colors: Colors | None, turn: Float[Tensor, "3 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """The meshes turned, and scaled to fill a picture but for a margin."""
    like = meshes[0].vertices if meshes else torch.zeros(1)
    turn = turn.to(like)
    points = torch.cat([mesh.vertices.reshape(-1, 3) for mesh in meshes]) @ turn.T if meshes else like.new_zeros(0, 3)
    low, high = (points.amin(0), points.amax(0)) if len(points) else (like.new_zeros(3), like.new_ones(3))
    extent, middle = (high - low).clamp(min=1e-6), (low + high) / 2
    scale = 0.9 * min(size[0] / float(extent[0]), size[1] / float(extent[1]))
    K = torch.diag(like.new_tensor([scale, scale, 1.0]))
    K[:2, 2] = like.new_tensor(size) / 2
    camera = Camera(K[None], turn[None], -middle[None], size, orthographic=True)
    return overlay(_blank(camera, PAPER), meshes, camera, renderer, colors)


def _blank(camera: Camera, level: int) -> UInt8[np.ndarray, "H W 3"]:
    return np.full((camera.size[1], camera.size[0], 3), level, np.uint8)


def _checked(photo: np.ndarray, camera: Camera) -> UInt8[np.ndarray, "H W 3"]:
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise UsageError(f"a photo to draw on is (H, W, 3) uint8, got {photo.shape} {photo.dtype}")
    height, width = photo.shape[:2]
    if len(camera) != 1 or camera.size != (width, height):
        raise UsageError(
            f"the overlay needs one camera of the photo's size {width}x{height}, "
            f"got {len(camera)} of {camera.size[0]}x{camera.size[1]}"
        )
    return photo


def _drawn(
    photo: np.ndarray, scene: Scene, camera: Camera, renderer: Renderer, paint: Paint, opacity: float = 1.0
) -> UInt8[np.ndarray, "H W 3"]:
    """The scene painted over the photo, its outline antialiased."""
    result = _checked(photo, camera).copy()
    with torch.no_grad():
        for band in _bands(scene, camera, renderer):
            cut = outline(scene, band.camera, band.fragments.mask)
            for visible, alpha in (*_inside(band, cut), _beside(band, cut)):
                _composite(result, *band.place(visible), paint(scene, visible), alpha * opacity)
    return result


@dataclass(frozen=True)
class _Band:
    """Rows of a picture: those of `fragments` that start at pixel `low` and end before `high`, flattened.

    left, top: where its first pixel lies in the picture. camera: its own.
    """

    left: int
    top: int
    low: int
    high: int
    camera: Camera
    fragments: Fragments

    def visible(self) -> Visible:
        """The covered pixels of the rows."""
        every = self.fragments.visible
        low, high = torch.searchsorted(every.index, every.index.new_tensor([self.low, self.high])).tolist()
        part = slice(low, high)
        return Visible(every.index[part], every.face[part], every.barycentrics[part], every.size)

    def place(self, visible: Visible) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
        """Column and row in the full picture."""
        width = visible.size[2]
        return visible.index % width + self.left, visible.index // width + self.top


def _bands(scene: Scene, camera: Camera, renderer: Renderer) -> Iterator[_Band]:
    """The part of the picture that meshes can reach, band by band."""
    left, top, right, bottom = _bounds(scene, camera)
    width, rows = right - left, max(1, BAND_PIXELS // max(right - left, 1))
    for first in range(top, bottom, rows):
        # One more row above and below, which the outline of the first and last row depends on.
        start, stop = max(first - 1, 0), min(first + rows + 1, camera.size[1])
        shift = camera.K.new_tensor([[[1.0, 0.0, -left], [0.0, 1.0, -start]]])
        window = camera.cropped(shift, (width, stop - start))
        low, high = (first - start) * width, (min(first + rows, bottom) - start) * width
        yield _Band(left, start, low, high, window, renderer.rasterize(scene, window))


def _inside(band: _Band, cut: Outline) -> Iterator[tuple[Visible, Float[Tensor, " P"]]]:
    """The covered pixels in chunks, and how much of each is covered."""
    visible = band.visible()
    share = torch.ones_like(visible.barycentrics[:, 0])
    of_band = (cut.target >= band.low) & (cut.target < band.high)
    mine = of_band & (band.fragments.face.reshape(-1)[cut.target] >= 0)
    share.index_add_(0, torch.searchsorted(visible.index, cut.target[mine]), cut.weight[mine], alpha=-1)
    return zip(_chunks(visible), share.clamp(0, 1).split(CHUNK_PIXELS), strict=True)


def _beside(band: _Band, cut: Outline) -> tuple[Visible, Float[Tensor, " Q"]]:
    """The empty pixels that the outline cuts, showing what their covered neighbour does, and how much is covered."""
    face = band.fragments.face.reshape(-1)
    mine = (cut.target >= band.low) & (cut.target < band.high) & (face[cut.target] < 0)
    index, entry = cut.target[mine].unique(return_inverse=True)
    share = cut.weight.new_zeros(len(index)).index_add(0, entry, cut.weight[mine]).clamp(max=1)
    source = torch.zeros_like(index).scatter_reduce(0, entry, cut.source[mine], "amax", include_self=False)
    weights = band.fragments.barycentrics.reshape(-1, 3)
    return Visible(index, face[source], weights[source], band.fragments.visible.size), share


def _chunks(visible: Visible) -> list[Visible]:
    """The same pixels, CHUNK_PIXELS at a time."""
    return [
        Visible(index, face, weights, visible.size)
        for index, face, weights in zip(
            visible.index.split(CHUNK_PIXELS),
            visible.face.split(CHUNK_PIXELS),
            visible.barycentrics.split(CHUNK_PIXELS),
            strict=True,
        )
    ]


def _composite(
    target: UInt8[np.ndarray, "H W 3"],
    x: Int[Tensor, " P"],
    y: Int[Tensor, " P"],
    colour: Float[Tensor, "P 3"],
    alpha: Float[Tensor, " P"],
) -> None:
    """Lay colours in [0, 1] over pixels of the picture, in place."""
    flat = torch.from_numpy(target.reshape(-1, 3))
    index = (y * target.shape[1] + x).cpu()
    under = flat.index_select(0, index)
    mixed = torch.lerp(under.float(), colour.float().cpu().clamp(0, 1) * 255, alpha.float().cpu()[:, None])
    flat.index_copy_(0, index, mixed.add_(0.5).to(torch.uint8))


def _edge_distance(corners: Float[Tensor, "P 3 2"], point: Float[Tensor, "P 2"]) -> Float[Tensor, " P"]:
    """Distance in pixels of points inside triangles to the nearest side."""
    start, end = corners, corners.roll(-1, 1)
    along = end - start
    offset = point[:, None] - start
    cross = along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0]
    return (cross.abs() / along.norm(dim=-1).clamp(min=1e-9)).amin(1)


def _bounds(scene: Scene, camera: Camera) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels that meshes can reach; the whole picture if they surround the camera."""
    width, height = camera.size
    screen = scene.project(camera)
    if not len(screen):
        return 0, 0, 0, 0
    if not camera.orthographic and bool((screen[:, 2] <= 0.01).any()):
        return 0, 0, width, height
    # One pixel more on each side: the outline may cut a pixel whose centre is beyond it.
    low, high = (screen[:, :2].amin(0).floor() - 1).tolist(), (screen[:, :2].amax(0).ceil() + 1).tolist()
    limit = lambda value, size: int(min(max(value, 0), size))  # noqa: E731
    return limit(low[0], width), limit(low[1], height), limit(high[0], width), limit(high[1], height)
