"""Connectivity of triangle meshes and the operators that follow from it. Pure functions.

faces: (F, 3) int64 rows of vertices, counter-clockwise seen from outside. A mesh may have borders and pieces; an
edge shared by more than two faces counts each pair of them once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


def half_edges(faces: Int[Tensor, "F 3"]) -> Int[Tensor, "3F 2"]:
    """The directed edges of all faces: those from corner 0 to 1, then 1 to 2, then 2 to 0."""
    return torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def edges(faces: Int[Tensor, "F 3"]) -> Int[Tensor, "E 2"]:
    """Each undirected edge once, lower vertex first, in ascending order."""
    return half_edges(faces).sort(1).values.unique(dim=0)


def adjacent_faces(faces: Int[Tensor, "F 3"]) -> Int[Tensor, "P 2"]:
    """Pairs of faces that share an edge, lower face first. Edges on the border have none."""
    directed = half_edges(faces).sort(1).values
    _, edge = directed.unique(dim=0, return_inverse=True)
    face = torch.arange(len(faces), device=faces.device).repeat(3)
    # Half edges of one edge come together; those of an edge k steps apart in the run are a pair, for each k.
    order = edge.argsort(stable=True)
    edge, face = edge[order], face[order]
    pairs = []
    step = 1
    while step < len(edge) and (same := edge[step:] == edge[:-step]).any():
        pairs.append(torch.stack([face[:-step][same], face[step:][same]], 1))
        step += 1
    if not pairs:
        return faces.new_zeros(0, 2)
    return torch.cat(pairs).sort(1).values.unique(dim=0)


def face_normals(
    vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], unit: bool = True
) -> Float[Tensor, "B F 3"]:
    """Outward normals of unit length (0 for a face without area), or of length twice the area in m^2."""
    a, b, c = vertices[:, faces].unbind(2)
    normal = torch.linalg.cross(b - a, c - a)
    return normalize(normal, dim=-1) if unit else normal


def face_areas(vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "B F"]:
    """Areas in m^2."""
    return face_normals(vertices, faces, unit=False).norm(dim=-1) / 2


def uniform_laplacian(
    faces: Int[Tensor, "F 3"], vertex_count: int, dtype: torch.dtype | None = None
) -> Float[Tensor, "V V"]:
    """Sparse L = I - D^-1 A: (L x)_i = x_i - mean of its neighbours' x; a row of zeros where there are none."""
    pair = edges(faces)
    i, j = torch.cat([pair, pair.flip(1)]).T
    degree = torch.bincount(i, minlength=vertex_count).to(dtype or torch.get_default_dtype())
    linked = (degree > 0).nonzero()[:, 0]
    rows = torch.cat([i, linked])
    columns = torch.cat([j, linked])
    values = torch.cat([-1 / degree[i], torch.ones_like(degree[linked])])
    return _sparse(rows, columns, values, vertex_count)


def cotangent_weights(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]
) -> tuple[Int[Tensor, "3F 2"], Float[Tensor, " 3F"]]:
    """Half edges (i, j) and half the cotangent of the angle facing each (Pinkall and Polthier, 1993).

    An edge's weight is the sum over its half edges. A face without area has weights of 0.
    """
    corners = vertices[faces]
    angles = []
    for start, end, opposite in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        u, v = corners[:, start] - corners[:, opposite], corners[:, end] - corners[:, opposite]
        twice_area = torch.linalg.cross(u, v).norm(dim=-1)
        flat = twice_area <= torch.finfo(vertices.dtype).tiny
        angles.append(torch.where(flat, 0.0, (u * v).sum(-1) / torch.where(flat, 1.0, twice_area)))
    return half_edges(faces), torch.cat(angles) / 2


def cotangent_laplacian(vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "V V"]:
    """Sparse symmetric L: (L x)_i = sum_j w_ij (x_i - x_j), w_ij = (cot alpha_ij + cot beta_ij) / 2.

    Positive semi-definite; rows sum to 0; no mass matrix is divided out.
    """
    directed, weight = cotangent_weights(vertices, faces)
    i, j = directed.T
    rows, columns = torch.cat([i, j, i, j]), torch.cat([j, i, i, j])
    return _sparse(rows, columns, torch.cat([-weight, -weight, weight, weight]), len(vertices))


def vertex_areas(vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "B V"]:
    """A third of the areas of the faces around each vertex, m^2: the lumped mass matrix."""
    third = face_areas(vertices, faces) / 3
    out = vertices.new_zeros(vertices.shape[:2])
    return out.index_add(1, faces.T.reshape(-1), third.repeat(1, 3))


def apply_sparse(operator: Float[Tensor, "N V"], x: Float[Tensor, "B V C"]) -> Float[Tensor, "B N C"]:
    """A sparse matrix on each of B fields over the vertices."""
    batch, count, channels = x.shape
    flat = x.transpose(0, 1).reshape(count, batch * channels)
    return torch.sparse.mm(operator, flat).reshape(-1, batch, channels).transpose(0, 1)


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, size: int) -> Tensor:
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (size, size)).coalesce()
