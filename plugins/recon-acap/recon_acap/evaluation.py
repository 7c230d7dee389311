"""How well an embedding reconstructs (table 2's measure), and how well it keeps shape and pose apart."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from recon_core.geometry.alignment import similarity_alignment


def mean_vertex_distance(vertices: Float[Tensor, "B V 3"], target: Float[Tensor, "B V 3"]) -> Float[Tensor, " B"]:
    """Mean Euclidean distance of corresponding vertices, metres, after the best rigid motion (R, t of equation 15)."""
    moved = similarity_alignment(vertices, target, with_scale=False)(vertices)
    return (moved - target).norm(dim=-1).mean(-1)
