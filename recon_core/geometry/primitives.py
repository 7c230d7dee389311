"""Simple closed meshes to start from."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.geometry.topology import edges


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
