"""Connectivity of triangle meshes and the operators that follow from it: pure functions.

faces: (F, 3) int64 rows of vertices, counter-clockwise seen from outside. A mesh may have borders and pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class Edges:
    """The E undirected edges of a mesh.

    vertices: (E, 2), the smaller index first, rows ascending. faces: (E, 2), two of the faces that meet there; the
    second is -1 at a border. irregular: (K,) the edges where not exactly two faces meet that agree on their outside.
    """

    vertices: Int[Tensor, "E 2"]
    faces: Int[Tensor, "E 2"]
    irregular: Int[Tensor, " K"]


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def edges(faces: Int[Tensor, "F 3"]) -> Edges:
    """The edges of a mesh. Remembered as long as `faces` lives and is not changed."""
    known = _known.get(faces)
    if known is None or known[0] != faces._version:
        known = (faces._version, _edges(faces.long()))
        _known[faces] = known
    return known[1]


def _edges(faces: Int[Tensor, "F 3"]) -> Edges:
    start, end = faces.reshape(-1), faces.roll(-1, 1).reshape(-1)
    low, high = torch.minimum(start, end), torch.maximum(start, end)
    key = low * (int(high.max()) + 1 if len(high) else 1) + high
    order = key.argsort(stable=True)
    _, counts = torch.unique_consecutive(key[order], return_counts=True)
    first = counts.cumsum(0) - counts
    one = order[first]
    paired = counts > 1
    two = order[torch.where(paired, first + 1, first)]
    # A half edge belongs to face index // 3. Neighbours that agree run along their edge in opposite directions.
    # Stored by column: who asks for edges asks for one end, or one side, of all of them.
    neighbours = torch.stack([one // 3, torch.where(paired, two // 3, -1)]).T
    irregular = ((counts != 2) | (start[one] == start[two])).nonzero().squeeze(1)
    return Edges(torch.stack([low[one], high[one]]).T, neighbours, irregular)


def adjacent_faces(faces: Int[Tensor, "F 3"]) -> Int[Tensor, "P 2"]:
    """Pairs of faces that share an edge, one for each edge that is no border."""
    pairs = edges(faces).faces
    return pairs[pairs[:, 1] >= 0]


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


def vertex_areas(vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "B V"]:
    """A third of the areas of the faces around each vertex, m^2: the lumped mass matrix."""
    third = face_areas(vertices, faces) / 3
    out = vertices.new_zeros(vertices.shape[:2])
    return out.index_add(1, faces.T.reshape(-1), third.repeat(1, 3))


def uniform_laplacian(
    faces: Int[Tensor, "F 3"], vertex_count: int, dtype: torch.dtype | None = None
) -> Float[Tensor, "V V"]:
    """Sparse L = I - D^-1 A: (L x)_i = x_i - mean of its neighbours' x; a row of zeros where there are none."""
    pair = edges(faces).vertices
    i, j = torch.cat([pair, pair.flip(1)]).T
    degree = torch.bincount(i, minlength=vertex_count).to(dtype or torch.get_default_dtype())
    linked = (degree > 0).nonzero()[:, 0]
    values = torch.cat([-1 / degree[i], torch.ones_like(degree[linked])])
    return _sparse(torch.cat([i, linked]), torch.cat([j, linked]), values, vertex_count)


def cotangent_weights(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]
) -> tuple[Int[Tensor, "3F 2"], Float[Tensor, " 3F"]]:
    """Half edges (i, j) and half the cotangent of the angle facing each (Pinkall and Polthier, 1993).

    An edge's weight is the sum over its half edges. A face without area has weights of 0.
    """
    corners = vertices[faces]
    pairs, weights = [], []
    for start, end, opposite in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        u, v = corners[:, start] - corners[:, opposite], corners[:, end] - corners[:, opposite]
        twice_area = torch.linalg.cross(u, v).norm(dim=-1)
        flat = twice_area <= torch.finfo(vertices.dtype).tiny
        weights.append(torch.where(flat, 0.0, (u * v).sum(-1) / torch.where(flat, 1.0, twice_area)) / 2)
        pairs.append(faces[:, [start, end]])
    return torch.cat(pairs), torch.cat(weights)


def cotangent_laplacian(vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "V V"]:
    """Sparse symmetric L: (L x)_i = sum_j w_ij (x_i - x_j), w_ij = (cot alpha_ij + cot beta_ij) / 2.

    Positive semi-definite; rows sum to 0; no mass matrix is divided out.
    """
    half_edges, weight = cotangent_weights(vertices, faces)
    i, j = half_edges.T
    rows, columns = torch.cat([i, j, i, j]), torch.cat([j, i, i, j])
    return _sparse(rows, columns, torch.cat([-weight, -weight, weight, weight]), len(vertices))


def apply_sparse(operator: Float[Tensor, "N V"], x: Float[Tensor, "B V C"]) -> Float[Tensor, "B N C"]:
    """A sparse matrix on each of B fields over the vertices."""
    batch, count, channels = x.shape
    flat = x.transpose(0, 1).reshape(count, batch * channels)
    return torch.sparse.mm(operator, flat).reshape(operator.shape[0], batch, channels).transpose(0, 1)


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, size: int) -> Tensor:
    with torch.sparse.check_sparse_tensor_invariants():
        return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, (size, size)).coalesce()
