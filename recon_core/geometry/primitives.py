"""Simple closed meshes: to start from, or to draw what has no surface."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.geometry.topology import edges
from recon_core.skeletons import skeleton
from recon_core.structures import Keypoints, Mesh

_STICK, _BALL = 0.018, 0.026
"""Radii in metres of a stick figure's bones and joints."""
_SIDES = {"left": (0.36, 0.62, 0.90), "right": (0.93, 0.55, 0.36)}
_MIDDLE = (0.75, 0.75, 0.75)


def icosphere(subdivisions: int = 3) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Unit sphere: an icosahedron whose faces are cut in four `subdivisions` times; 642 vertices, 1280 faces by 3.

    float32 vertices; faces counter-clockwise seen from outside.
    """
    g = (1 + 5**0.5) / 2
    vertices = torch.tensor(
        [[-1, g, 0], [1, g, 0], [-1, -g, 0], [1, -g, 0], [0, -1, g], [0, 1, g]]
        + [[0, -1, -g], [0, 1, -g], [g, 0, -1], [g, 0, 1], [-g, 0, -1], [-g, 0, 1]],
        dtype=torch.float64,
    )
    corners = "0 11 5 0 5 1 0 1 7 0 7 10 0 10 11 1 5 9 5 11 4 11 10 2 10 7 6 7 1 8"
    corners += " 3 9 4 3 4 2 3 2 6 3 6 8 3 8 9 4 9 5 2 4 11 6 2 10 8 6 7 9 8 1"
    faces = torch.tensor([int(v) for v in corners.split()]).reshape(-1, 3)
    for _ in range(subdivisions):
        vertices, faces = _halved(vertices, faces)
    return torch.nn.functional.normalize(vertices, dim=1).float(), faces


def stick_figure(keypoints: Keypoints) -> Mesh:
    """Joints in space as balls, and the bones of their skeleton as sticks between them; metres.

    Left parts are blue, right ones orange. Joints that are missing (confidence 0) and their bones are drawn as nothing:
    all their vertices are on one point.
    """
    joints, points = skeleton(keypoints.skeleton), torch.nan_to_num(keypoints.points)
    seen = (keypoints.confidence > 0).to(points)
    ball, ball_faces = (value.to(points.device) for value in icosphere(1))
    radius = _BALL * seen[..., None, None]
    balls = points[:, :, None] + radius * ball.to(points)

    start, end = (points[:, [bone[k] for bone in joints.bones]] for k in range(2))
    radius = _STICK * (seen[:, [a for a, _ in joints.bones]] * seen[:, [b for _, b in joints.bones]])
    along = torch.nn.functional.normalize(end - start, dim=-1)
    # The axis that is least along the bone gives a direction across it.
    axis = torch.nn.functional.one_hot(along.abs().argmin(-1), 3).to(points)
    across = torch.nn.functional.normalize(torch.linalg.cross(along, axis), dim=-1)
    third = torch.linalg.cross(along, across)
    corners = 8
    turn = 2 * torch.pi * torch.arange(corners).to(points) / corners
    ring = across[..., None, :] * turn.cos()[:, None] + third[..., None, :] * turn.sin()[:, None]
    ring = ring * radius[..., None, None]
    end = torch.where(radius[..., None] > 0, end, start)
    sticks = torch.cat([start[..., None, :] + ring, end[..., None, :] + ring], 2)
    here, after = torch.arange(corners), (torch.arange(corners) + 1) % corners
    low = torch.stack([here, after, here + corners], 1)
    high = torch.stack([after, after + corners, here + corners], 1)
    stick_faces = torch.cat([low, high]).to(points.device)

    count = len(balls[0]) * len(ball)
    faces = torch.cat([_repeated(ball_faces, len(joints), 0), _repeated(stick_faces, len(joints.bones), count)])
    side = lambda *names: next((_SIDES[n.partition("_")[0]] for n in names if n.partition("_")[0] in _SIDES), _MIDDLE)  # noqa: E731
    colors = [side(name) for name in joints.joints for _ in range(len(ball))]
    colors += [side(joints.joints[b], joints.joints[a]) for a, b in joints.bones for _ in range(2 * corners)]
    vertices = torch.cat([balls.flatten(1, 2), sticks.flatten(1, 2)], 1)
    return Mesh(vertices, faces, colors=torch.tensor(colors).to(points).expand(len(points), -1, -1))


def _repeated(faces: Int[Tensor, "F 3"], times: int, first: int) -> Int[Tensor, "N 3"]:
    """The faces of `times` equal parts whose vertices follow each other, from vertex `first` on."""
    size = int(faces.max()) + 1
    return (faces + first + size * torch.arange(times, device=faces.device)[:, None, None]).flatten(0, 1)


def _halved(vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> tuple[Tensor, Tensor]:
    """The mesh with a vertex in the middle of each edge, on the unit sphere."""
    ends = edges(faces).vertices
    middle = torch.nn.functional.normalize(vertices[ends].sum(1), dim=1)
    number = {tuple(pair): len(vertices) + i for i, pair in enumerate(ends.tolist())}
    # The middles of the sides 01, 12 and 20 of each face.
    sides = torch.stack([faces, faces.roll(-1, 1)], 2).sort(2).values
    mid = torch.tensor([number[tuple(side)] for side in sides.reshape(-1, 2).tolist()]).reshape(-1, 3)
    (a, b, c), (ab, bc, ca) = faces.T, mid.T
    parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return torch.cat([vertices, middle]), torch.cat([torch.stack(part, 1) for part in parts])
