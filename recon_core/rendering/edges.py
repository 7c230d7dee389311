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
from recon_core.rendering.fragments import Fragments
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
    fragments: Fragments,
    near: float = 0.01,
    screen: Float[Tensor, "N 3"] | None = None,
) -> Outline:
    """The outline of what `fragments` covers, for antialiasing. `near` as given to the rasteriser.

    screen: `scene.project(camera)`, from who has it already.
    """
    camera = scene.cameras(camera)
    screen = scene.project(camera) if screen is None else screen
    clip = None if camera.orthographic else near
    covered = fragments.face >= 0
    with torch.no_grad():
        ends, picture = _contours(scene, screen, clip)
        found = [_crossings(*_segments(screen, ends, clip), picture, covered, axis) for axis in (0, 1)]
    parts = [_weights(screen, ends, clip, (camera.size[1], camera.size[0]), axis, *found[axis]) for axis in (0, 1)]
    return Outline(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))


def _contours(
    scene: Scene, screen: Float[Tensor, "N 3"], near: float | None
) -> tuple[Int[Tensor, "C 2"], Int[Tensor, " C"]]:
    """Packed vertices of the edges that can be outline, and their pictures: those between a face turned to the camera
    and one turned away, and those without two proper neighbours."""
    ends, pictures, first = [], [], 0
    for mesh, rows in zip(scene.meshes, scene.row_slices, strict=True):
        B, V = mesh.vertices.shape[:2]
        points = screen[first : first + B * V].reshape(B, V, 3)
        known = edges(mesh.faces)
        # All that is known of a vertex in a row: a gather then copies 2 B neighbouring numbers at once.
        columns = mesh.faces.T.contiguous()
        flat = points[..., :2].permute(1, 2, 0).reshape(V, 2 * B)
        p0, p1, p2 = (flat.index_select(0, c) for c in columns)
        (u1, v1), (u2, v2) = (p1 - p0).split(B, 1), (p2 - p0).split(B, 1)
        front = u1 * v2 > v1 * u2
        if near is not None:
            # Dividing by a negative depth mirrors a point, and so the turn of its face.
            behind = points[..., 2].T < 0
            if bool(behind.any()):
                front = front ^ behind[columns[0]] ^ behind[columns[1]] ^ behind[columns[2]]
        turns = front.index_select(0, known.faces[:, 0]) != front.index_select(0, known.faces[:, 1].clamp(min=0))
        turns[known.irregular] = True
        position = turns.reshape(-1).nonzero().squeeze(1)
        edge, row = position // B, position % B
        ends.append(known.vertices[edge] + (row * V + first)[:, None])
        pictures.append(scene.picture[rows].to(row.device)[row])
        first += B * V
    if not ends:
        none = torch.zeros(0, dtype=torch.int64, device=screen.device)
        return none.reshape(0, 2), none
    return torch.cat(ends), torch.cat(pictures)


def _segments(
    screen: Float[Tensor, "N 3"], ends: Int[Tensor, "C 2"], near: float | None
) -> tuple[Float[Tensor, "C 2"], Float[Tensor, "C 2"]]:
    """Both ends of each edge in pixels, the edge cut at the near plane; NaN for edges wholly before it."""
    a, b = screen.index_select(0, ends[:, 0]), screen.index_select(0, ends[:, 1])
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


def _crossings(
    start: Float[Tensor, "C 2"],
    end: Float[Tensor, "C 2"],
    picture: Int[Tensor, " C"],
    covered: Bool[Tensor, "B H W"],
    axis: int,
) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"], Int[Tensor, " P"], Int[Tensor, " P"]]:
    """The edge, picture, line and pair at each crossing of the outline with the lines through pixel centres.

    axis 0: lines are rows of pixels and pairs are left and right neighbours; axis 1: columns, upper and lower.
    """
    H, W = covered.shape[1:]
    lines, places = (H, W) if axis == 0 else (W, H)
    along, across = (0, 1) if axis == 0 else (1, 0)
    low = torch.minimum(start[:, across], end[:, across])
    high = torch.maximum(start[:, across], end[:, across])
    # Half open, so that where two edges meet on a line exactly one of them crosses it.
    first = torch.nan_to_num((low - 0.5).ceil(), nan=lines).clamp(0, lines).long()
    stop = torch.nan_to_num((high - 0.5).ceil(), nan=0).clamp(0, lines).long()
    counts = (stop - first).clamp(min=0)
    edge = torch.repeat_interleave(counts)
    begin = counts.cumsum(0) - counts
    line = first[edge] + torch.arange(len(edge), device=edge.device) - begin[edge]
    at = _cross(start[edge], end[edge], line, axis)
    pair, b = at.floor(), picture[edge]
    changes = _changes(covered, b, line, pair, axis)
    # An edge within rounding of a pixel centre may have been taken to pass it on the other side.
    whole = at.round()
    doubtful = ((at - whole).abs() < ROUNDING) & ~changes
    pair = torch.where(doubtful, 2 * whole - 1 - pair, pair)
    changes |= doubtful & _changes(covered, b, line, pair, axis)
    found = changes.nonzero().squeeze(1)
    edge, line, at, pair, b = edge[found], line[found], at[found], pair[found].long(), b[found]
    before = covered[b, line, pair] if axis == 0 else covered[b, pair, line]
    # Of several edges between one pair the outline is the last before the empty pixel.
    reach = torch.where(before, at - pair, 1 - (at - pair))
    key = (b * lines + line) * places + pair
    order = (key - 0.5 * reach.double()).argsort(stable=True)
    key = key[order]
    leading = torch.ones_like(key, dtype=torch.bool)
    leading[1:] = key[1:] != key[:-1]
    chosen = order[leading]
    edge, line, pair, b = edge[chosen], line[chosen], pair[chosen], b[chosen]
    # Pairs along both axes see the same outline: each edge counts along the axis that it crosses more squarely.
    d = (end - start)[edge].abs()
    square = d[:, across] > d[:, along] if axis == 0 else d[:, across] >= d[:, along]
    return edge[square], b[square], line[square], pair[square]


def _cross(
    start: Float[Tensor, "P 2"], end: Float[Tensor, "P 2"], line: Int[Tensor, " P"], axis: int
) -> Float[Tensor, " P"]:
    """Where edges cross lines, counted from the line's first pixel centre."""
    along, across = (0, 1) if axis == 0 else (1, 0)
    d = end - start
    slope = d[:, along] / torch.where(d[:, across] == 0, torch.ones_like(d[:, across]), d[:, across])
    return start[:, along] + (line + 0.5 - start[:, across]) * slope - 0.5


def _changes(
    covered: Bool[Tensor, "B H W"], b: Int[Tensor, " P"], line: Int[Tensor, " P"], pair: Float[Tensor, " P"], axis: int
) -> Bool[Tensor, " P"]:
    """Whether one pixel of a pair is covered and the other is not; pairs may lie outside the picture."""
    last = covered.shape[2 - axis] - 2
    first = pair.clamp(0, max(last, 0)).long()
    second = (first + 1).clamp(max=last + 1)
    if axis == 0:
        differ = covered[b, line, first] != covered[b, line, second]
    else:
        differ = covered[b, first, line] != covered[b, second, line]
    return differ & (pair >= 0) & (pair <= last)


def _weights(
    screen: Float[Tensor, "N 3"],
    ends: Int[Tensor, "C 2"],
    near: float | None,
    size: tuple[int, int],
    axis: int,
    edge: Int[Tensor, " P"],
    b: Int[Tensor, " P"],
    line: Int[Tensor, " P"],
    pair: Int[Tensor, " P"],
) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"], Float[Tensor, " P"]]:
    """Target, source and weight of the crossings found, with gradients."""
    H, W = size
    at = _cross(*_segments(screen, ends[edge], near), line, axis) - pair
    one = (b * H + line) * W + pair if axis == 0 else (b * H + pair) * W + line
    two = one + (1 if axis == 0 else W)
    # The pixels share a side halfway between their centres: what the outline encloses beyond it belongs to the
    # farther pixel.
    cuts_second = at > 0.5
    weight = torch.where(cuts_second, at - 0.5, 0.5 - at)
    target = torch.where(cuts_second, two, one)
    source = torch.where(cuts_second, one, two)
    return target, source, weight
