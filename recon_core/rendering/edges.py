"""Antialiasing by the mesh's own outline: how much of each boundary pixel the surface covers.

The rasteriser tells whether the surface covers a pixel's centre. Between a covered and an empty neighbour the
outline must pass; where it crosses the line between their centres says how much of which pixel it covers, and
is differentiable in the outline's two vertices (Laine et al., SIGGRAPH Asia 2020, section 3.6). Those authors look
for the crossing among the edges of the triangle seen in the covered pixel, which holds the outline only where
triangles are larger than pixels. Here it is sought among all edges between a front and a back face.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon_core.geometry.topology import edges
from recon_core.rendering.scene import Scene
from recon_core.structures import Camera

ROUNDING = 1e-3
"""Distance in pixels within which the rasteriser and the outline may disagree on which side of a centre an edge is."""


@dataclass(frozen=True)
class Outline:
    """The P places where the outline passes between two neighbouring pixels, and what to blend there.

    target: (P,) positions in the flattened (B, H, W) of the pixels that the outline cuts. source: (P,) the
    neighbour of each across the outline. weight: (P,) in [0, 1/2], the part of the target that the source's side
    covers, within rounding; with gradients to vertices and camera.
    """

    target: Int[Tensor, " P"]
    source: Int[Tensor, " P"]
    weight: Float[Tensor, " P"]

    def blend(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The image with its outline antialiased: each target moved towards its source by the weight."""
        B, C, H, W = image.shape
        plane = torch.arange(0, C * H * W, H * W, device=image.device)
        locate = lambda pixel: (pixel % (H * W) + pixel // (H * W) * (C * H * W))[:, None] + plane  # noqa: E731
        flat = image.reshape(-1)
        target = locate(self.target)
        step = self.weight[:, None] * (flat[locate(self.source)] - flat[target])
        return flat.index_put((target,), step, accumulate=True).reshape(B, C, H, W)


def outline(
    scene: Scene,
    camera: Camera,
    mask: Bool[Tensor, "B 1 H W"],
    near: float = 0.01,
    screen: Float[Tensor, "N 3"] | None = None,
) -> Outline:
    """The outline of what a rasteriser covers, for antialiasing. mask, near: its `Fragments.mask` and near plane.

    screen: `scene.project(camera)`, from who has it already.
    """
    camera = scene.cameras(camera)
    screen = scene.project(camera) if screen is None else screen
    clip = None if camera.orthographic else near
    with torch.no_grad():
        ends, picture = _contours(scene, screen, clip)
        found = _crossings(*_segments(screen, ends, clip), picture, mask[:, 0])
    start, end = (_turned(p, found.upright) for p in _segments(screen, ends[:, found.edge], clip))
    at = _cross(start, end, found.line) - found.pair
    # The pixels share a side halfway between their centres: what the outline encloses beyond it belongs to the
    # farther pixel.
    cuts_second = at > 0.5
    return Outline(
        target=torch.where(cuts_second, found.second, found.first),
        source=torch.where(cuts_second, found.first, found.second),
        weight=torch.where(cuts_second, at - 0.5, 0.5 - at),
    )


def _contours(
    scene: Scene, screen: Float[Tensor, "N 3"], near: float | None
) -> tuple[Int[Tensor, "2 C"], Int[Tensor, " C"]]:
    """Packed vertices of the edges that can be outline, and their pictures: those between a face turned to the camera
    and one turned away, and those without two proper neighbours."""
    ends, pictures, first = [], [], 0
    for mesh, rows in zip(scene.meshes, scene.row_slices, strict=True):
        B, V = mesh.vertices.shape[:2]
        points = screen[first : first + B * V].reshape(B, V, 3)
        known = edges(mesh.faces)
        # All rows of a vertex beside each other, u then v then z: gathering copies whole lines of memory.
        flat = points.permute(1, 2, 0).reshape(V, 3 * B)
        corners = flat.index_select(0, mesh.faces.int().T.reshape(-1)).reshape(3, len(mesh.faces), 3, B)
        (u1, v1), (u2, v2) = ((corners[i, :, :2] - corners[0, :, :2]).unbind(1) for i in (1, 2))
        front = u1 * v2 > v1 * u2
        # Dividing by a negative depth mirrors a point, and so the turn of its face.
        if near is not None and bool((flat[:, 2 * B :] < 0).any()):
            behind = corners[:, :, 2] < 0
            front = front ^ behind[0] ^ behind[1] ^ behind[2]
        turns = front.index_select(0, known.faces[:, 0]) != front.index_select(0, known.faces[:, 1].clamp(min=0))
        turns[known.irregular] = True
        position = turns.reshape(-1).nonzero().squeeze(1)
        edge = position // B
        row = position - edge * B
        ends.append(torch.stack([end.index_select(0, edge) for end in known.vertices.unbind(1)]) + (row * V + first))
        pictures.append(scene.picture[rows].to(row.device)[row])
        first += B * V
    if not ends:
        none = torch.zeros(0, dtype=torch.int64, device=screen.device)
        return none.reshape(2, 0), none
    return torch.cat(ends, 1), torch.cat(pictures)


def _segments(
    screen: Float[Tensor, "N 3"], ends: Int[Tensor, "2 C"], near: float | None
) -> tuple[Float[Tensor, "C 2"], Float[Tensor, "C 2"]]:
    """Both ends of each edge in pixels, the edge cut at the near plane; NaN for edges wholly before it."""
    a, b = (screen.index_select(0, end) for end in ends)
    if near is None or not bool((torch.minimum(a[:, 2], b[:, 2]) < near).any()):
        return a[:, :2], b[:, :2]

    def cut(p: Tensor, q: Tensor) -> Tensor:
        hidden = p[:, 2] < near
        gap = torch.where(hidden, q[:, 2] - p[:, 2], torch.ones_like(p[:, 2]))
        s = torch.where(hidden, (near - p[:, 2]) / torch.where(gap == 0, torch.ones_like(gap), gap), 0.0)[:, None]
        ray = p[:, :2] * p[:, 2:] * (1 - s) + q[:, :2] * q[:, 2:] * s
        return torch.where(hidden[:, None], ray / near, p[:, :2])

    visible = (torch.maximum(a[:, 2], b[:, 2]) >= near)[:, None]
    nan = torch.full_like(a[:, :2], torch.nan)
    return torch.where(visible, cut(a, b), nan), torch.where(visible, cut(b, a), nan)


@dataclass(frozen=True)
class _Crossings:
    """Where P edges cross lines through pixel centres between a covered and an empty pixel.

    The line is a row of pixels, or a column where `upright`. pair: place on the line of the nearer of the two pixels.
    first, second: both pixels, in the flattened (B, H, W).
    """

    edge: Int[Tensor, " P"]
    upright: Bool[Tensor, " P"]
    line: Int[Tensor, " P"]
    pair: Int[Tensor, " P"]
    first: Int[Tensor, " P"]
    second: Int[Tensor, " P"]


def _crossings(
    start: Float[Tensor, "C 2"], end: Float[Tensor, "C 2"], picture: Int[Tensor, " C"], covered: Bool[Tensor, "B H W"]
) -> _Crossings:
    """The crossings that are outline, of edges from `start` to `end`.

    Each edge is taken twice, over the rows and, turned, over the columns, and both go through the same operations: on
    small pictures it is their number that costs.
    """
    B, H, W = covered.shape
    C, device = len(start), start.device
    start, end = torch.cat([start, start.flip(1)]), torch.cat([end, end.flip(1)])
    # Half open, so that where two edges meet on a line exactly one of them crosses it.
    limit = torch.tensor([H, W], device=device).repeat_interleave(C)
    first, stop = (
        torch.nan_to_num((bound(start[:, 1], end[:, 1]) - 0.5).ceil(), nan=nan).clamp(min=0).minimum(limit).long()
        for bound, nan in ((torch.minimum, max(H, W)), (torch.maximum, 0))
    )
    counts = (stop - first).clamp(min=0)
    edge = torch.repeat_interleave(counts)
    line = torch.arange(len(edge), device=device) + (first - counts.cumsum(0) + counts)[edge]
    at = _cross(start[edge], end[edge], line)
    pair, upright, b = at.floor(), edge >= C, picture.repeat(2)[edge]

    # Whether a pixel and the next one differ, with a border of those that have no next: pairs outside the picture.
    differ = covered.new_zeros(2, B, H + 1, W + 1)
    torch.ne(covered[:, :, :-1], covered[:, :, 1:], out=differ[0, :, :H, 1:W])
    torch.ne(covered[:, :-1], covered[:, 1:], out=differ[1, :, 1:H, :W])
    last = torch.where(upright, H - 1, W - 1)
    step = torch.where(upright, W + 1, 1)
    base = (upright * B + b) * ((H + 1) * (W + 1)) + line * (W + 2 - step) + step
    changes = differ.view(-1)[base + pair.clamp(min=-1).minimum(last).long() * step]
    # An edge within rounding of a pixel centre may have been taken to pass it on the other side.
    whole = at.round()
    doubtful = ((at - whole).abs() < ROUNDING) & ~changes
    pair = torch.where(doubtful, 2 * whole - 1 - pair, pair)
    changes |= doubtful & differ.view(-1)[base + pair.clamp(min=-1).minimum(last).long() * step]

    found = changes.nonzero().squeeze(1)
    edge, line, upright, b = edge[found], line[found], upright[found], b[found]
    pair, beyond = pair[found].long(), (at - pair)[found]
    step = torch.where(upright, W, 1)
    one = b * (H * W) + line * (W + 1 - step) + pair * step
    # Of several edges between one pair the outline is the last before the empty pixel.
    reach = torch.where(covered.reshape(-1)[one], beyond, 1 - beyond)
    key = one + upright * (B * H * W)
    order = (key - 0.5 * reach.double()).argsort(stable=True)
    key = key[order]
    leading = torch.ones_like(key, dtype=torch.bool)
    leading[1:] = key[1:] != key[:-1]
    # Rows and columns see the same outline: each edge counts on the lines that it crosses more squarely.
    d = (end - start)[edge[order]].abs()
    square = torch.where(upright[order], d[:, 1] >= d[:, 0], d[:, 1] > d[:, 0])
    chosen = order[leading & square]
    one, upright = one[chosen], upright[chosen]
    return _Crossings(edge[chosen] % max(C, 1), upright, line[chosen], pair[chosen], one, one + step[chosen])


def _turned(points: Float[Tensor, "P 2"], upright: Bool[Tensor, " P"]) -> Float[Tensor, "P 2"]:
    """As (place along the line, place across): x and y exchanged for columns."""
    return torch.where(upright[:, None], points.flip(1), points)


def _cross(start: Float[Tensor, "P 2"], end: Float[Tensor, "P 2"], line: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Where edges cross lines, counted from the line's first pixel centre. Points are (along, across)."""
    d = end - start
    slope = d[:, 0] / torch.where(d[:, 1] == 0, torch.ones_like(d[:, 1]), d[:, 1])
    return start[:, 0] + (line + 0.5 - start[:, 1]) * slope - 0.5
