"""Meshes of one connectivity to ACAP features and back (section 3 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sparse
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from recon_acap.features import fused
from recon_acap.features.arrays import Array, accepts_arrays, to_tensor
from recon_acap.features.connectivity import Connectivity
from recon_acap.features.consistency import Consistency
from recon_acap.features.logarithm import to_affine, to_features
from recon_acap.features.solver import FactorisedSystem, SparseMap
from recon_core.errors import EvidenceError, InputError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.geometry.topology import face_normals

NORMAL_SHARE = 0.05
"""Weight of the normal in equation 1, as a share of its edges' squared lengths."""

FAITHFUL = 0.02
"""Default of `AcapCodec(blur)`."""


class AcapCodec:
    """ACAP features of meshes that share a connectivity, and the meshes of features.

    A feature is nine numbers a vertex: axis-angle r (radians) of a rotation R, consistent over the mesh, and the
    upper triangle (xx, xy, xz, yy, yz, zz) of a symmetric stretch S. T = R S maps the reference's neighbourhood of the
    vertex to the mesh's (equation 1).

    Two things are added to equation 1, which by itself leaves T almost undetermined along the normal of a flat
    neighbourhood, and whose T return a posed body through equation 6 only to within 5 mm at bent joints:

    - the vertex normal counts as one more edge, weight `normal_share` times the others' together (0: none);
    - T is the least change from that solution for which equation 6 returns the mesh: with K = H M^-1 H^T,
      T += M^-1 H^T (K + blur L)^-1 (L p - H T), H the right side of equation 6, M the matrices of equation 1, L the
      Laplacian. blur trades exactness for smooth features: 0 returns every mesh exactly, None leaves equation 1's T.

    Vertices are in the unit of the reference, any frame; features do not depend on where a mesh stands, but turn with
    it. Works on the device and in the type of what it is given. Tensors or NumPy arrays.
    """

    def __init__(
        self,
        connectivity: Connectivity | Float[Array, "V 3"],
        faces: Int[Array, "F 3"] | None = None,
        *,
        normal_share: float = NORMAL_SHARE,
        blur: float | None = FAITHFUL,
    ) -> None:
        """connectivity: a Connectivity, or its reference vertices, `faces` being its faces.

        Raises what Connectivity does, and InputError when a vertex's neighbourhood is flat and normal_share is 0.
        """
        if not isinstance(connectivity, Connectivity):
            if faces is None:
                raise InputError("AcapCodec: give a Connectivity, or reference vertices and faces")
            connectivity = Connectivity(connectivity, faces)
        self.connectivity = connectivity
        self.consistency = Consistency(connectivity)
        self._centre = connectivity.reference.mean(0)
        self.operators = operators = Operators(connectivity, normal_share)
        self._affine = SparseMap(operators.affine)
        self._normal_response = operators.normal_response
        self._face_sum = SparseMap(operators.face_sum) if normal_share else None
        self._right_side = SparseMap(operators.right_side)
        self._tables = {torch.device("cpu"): operators.tables}
        self._system = FactorisedSystem(operators.grounded(operators.laplacian))
        self._correction: tuple[SparseMap, FactorisedSystem, SparseMap] | None = None
        if blur is not None:
            response = operators.inverse @ operators.right_side.T
            damped = operators.right_side @ response + blur * operators.laplacian
            self._correction = (
                SparseMap(operators.laplacian),
                FactorisedSystem(operators.grounded(damped)),
                SparseMap(response),
            )

    @accepts_arrays
    def affine(self, vertices: Float[Array, "B V 3"]) -> Float[Array, "B V 3 3"]:
        """T of every vertex: p_i - p_j = T_i (q_i - q_j) in the sense of equation 1. Differentiable."""
        self.connectivity.check_vertices(vertices)
        if _differentiated(vertices):
            T = self._affine(_columns(vertices))
            T = _matrices(T if self._face_sum is None else T + self._of_normals(vertices), len(vertices))
        else:
            T = fused.affine(vertices, self._on(vertices.device))
        if self._correction is None:
            return T
        laplacian, system, response = self._correction
        gap = laplacian(_columns(vertices)) - self._right_side(map_columns(T))
        return T + _matrices(response(system(gap)), len(vertices))

    @accepts_arrays
    def extract(self, vertices: Float[Array, "B V 3"]) -> Float[Array, "B V 9"]:
        """Features of meshes. Differentiable where the decomposition is (`to_features`).

        Raises InputError for another number of vertices, or vertices that are not finite.
        """
        return to_features(self.affine(vertices), self.consistency)

    @accepts_arrays
    def rotations(self, features: Float[Array, "B V 9"]) -> Float[Array, "B V 3 3"]:
        """The rotation matrix R of every vertex, reference to mesh."""
        return axis_angle_to_matrix(features[..., :3])

    def reconstruct(
        self,
        features: Float[Array, "B V 9"],
        anchors: tuple[Sequence[int] | Int[Array, " K"], Float[Array, "B K 3"]] | None = None,
    ) -> Float[Array, "B V 3"]:
        """Meshes of features (equations 5 and 6), by back-substitution in a system factorised once. Differentiable.

        anchors: vertices and where they are in each mesh; a mesh is moved, without turning, so that they are there in
        the mean: exactly, for one. Without, its vertices' mean is the reference's. Where no bridges join the
        pieces of the mesh, each needs an anchor.

        Raises InputError for another number of vertices, and EvidenceError when a piece's place is open (the
        system is singular) or an anchor is no vertex.
        """
        if isinstance(features, np.ndarray):
            if anchors is not None:
                anchors = anchors[0], to_tensor(anchors[1])
            return self.reconstruct(to_tensor(features), anchors).detach().numpy()
        if features.ndim != 3 or features.shape[1:] != (self.connectivity.vertex_count, 9):
            raise InputError(
                f"features of shape {tuple(features.shape)}; give (meshes, {self.connectivity.vertex_count}, 9), "
                f"the {self.connectivity.name} having {self.connectivity.vertex_count} vertices"
            )
        index, places = self._anchors(anchors, features)
        if _differentiated(features):
            right = self._right_side(map_columns(to_affine(features)))
        else:
            right = fused.right_sides(features, self._on(features.device))
        points = self._system(right).unflatten(1, (-1, 3)).transpose(0, 1).to(features)
        if index is None:
            return points + (self._centre.to(points) - points.mean(1, keepdim=True))
        shift = places - points[:, index]
        if self.connectivity.bridged:
            return points + shift.mean(1, keepdim=True)
        piece = self.connectivity.piece.to(points.device)
        members = torch.nn.functional.one_hot(piece[index], self.connectivity.pieces).to(points)
        return points + ((members / members.sum(0)).T @ shift)[:, piece]

    def reconstructed_slope(self, slope: Float[Tensor, "B V 3 3 C"]) -> Float[Tensor, "B V 3 C"]:
        """How the mesh that `reconstruct` makes without anchors moves where T (R S of its features) moves along each of
        C directions. Equation 6 is linear in T, so these are C more right-hand sides."""
        batch, count, _, _, columns = slope.shape
        right = self._right_side(slope.permute(1, 3, 0, 2, 4).reshape(3 * count, -1))
        points = self._system(right).unflatten(1, (batch, 3, columns)).transpose(0, 1)
        return points - points.mean(1, keepdim=True)

    def _anchors(
        self, anchors: tuple[Sequence[int] | Array, Array] | None, like: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        mesh = self.connectivity
        if anchors is None:
            if not mesh.bridged:
                raise EvidenceError(
                    f"{mesh.name}: {mesh.pieces} separate pieces and no anchors, so that the system is singular; give "
                    "each piece an anchor, or join them (bridged=True)"
                )
            return None, None
        index, places = torch.as_tensor(anchors[0], device=like.device).long(), to_tensor(anchors[1]).to(like)
        if not len(index) or index.min() < 0 or index.max() >= mesh.vertex_count:
            raise EvidenceError(f"anchors {index.tolist()[:5]}: not vertices 0 to {mesh.vertex_count - 1} of the mesh")
        if places.shape != (len(like), len(index), 3):
            raise EvidenceError(f"anchors: places of shape {tuple(places.shape)}; give {(len(like), len(index), 3)}")
        if not mesh.bridged:
            open_piece = torch.bincount(mesh.piece.to(index.device)[index], minlength=mesh.pieces) == 0
            if open_piece.any():
                number = int(open_piece.nonzero()[0])
                first = int((mesh.piece == number).nonzero()[0])
                raise EvidenceError(
                    f"{mesh.name}: the piece of vertex {first} ({int((mesh.piece == number).sum())} vertices) has no "
                    "anchor, so that the system is singular; give it one, or join the pieces (bridged=True)"
                )
        return index, places

    def _on(self, device: torch.device) -> fused.Tables:
        if device not in self._tables:
            self._tables[device] = next(iter(self._tables.values())).to(device)
        return self._tables[device]

    def _of_normals(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "V3 B3"]:
        summed = self._face_sum(_columns(face_normals(vertices, self.connectivity.faces.to(vertices.device), False)))
        unit = normalize(summed.unflatten(1, (-1, 3)), dim=-1)
        response = self._normal_response.to(vertices)
        return (response[:, :, None, None] * unit[:, None]).reshape(3 * len(unit), -1)


class Operators:
    """The constant matrices of equations 1 and 6. Rows 3 i to 3 i + 2 of a map T are the columns of T_i."""

    def __init__(self, mesh: Connectivity, normal_share: float) -> None:
        self.mesh = mesh
        q, count = mesh.reference.numpy(), mesh.vertex_count
        i, j, weight = _both_ways(mesh.edges, mesh.edge_weights)
        edge = q[i] - q[j]
        M = np.zeros((count, 3, 3))
        np.add.at(M, i, weight[:, None, None] * edge[:, :, None] * edge[:, None])
        normal_weight = normal_share * np.trace(M, axis1=1, axis2=2)
        corners = mesh.faces.numpy().T.reshape(-1)
        faces = np.tile(np.arange(len(mesh.faces)), 3)
        self.face_sum = sparse.csr_matrix((np.ones(len(corners)), (corners, faces)), (count, len(mesh.faces)))
        normals = self.face_sum @ face_normals(mesh.reference[None], mesh.faces, unit=False)[0].numpy()
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.finfo(float).tiny)
        M += normal_weight[:, None, None] * normals[:, :, None] * normals[:, None]
        size = np.linalg.eigvalsh(M)
        if (size[:, 0] <= 1e-12 * size[:, 2]).any():
            vertex = int(np.argmin(size[:, 0] / size[:, 2]))
            raise InputError(f"{mesh.name}: the neighbourhood of vertex {vertex} is flat; use normal_share > 0")
        inverse = np.linalg.inv(M)
        self.inverse = sparse.bsr_matrix((inverse, np.arange(count), np.arange(count + 1))).tocsr()
        self.normal_response = torch.from_numpy(np.einsum("v,vab,vb->va", normal_weight, inverse, normals))
        response = weight[:, None] * np.einsum("eab,eb->ea", inverse[i], edge)
        rows = 3 * i[:, None] + np.arange(3)
        columns = np.broadcast_to(i[:, None], rows.shape), np.broadcast_to(j[:, None], rows.shape)
        self.affine = _assemble([(rows, columns[0], response), (rows, columns[1], -response)], (3 * count, count))
        ring = fused.Ring.of(i, j, response, count)
        i, j, weight = _both_ways(mesh.links, mesh.link_weights)
        self.right_side = edge_sums(i, j, weight / 2, q)
        links = fused.Ring.of(i, j, weight[:, None] / 2 * (q[i] - q[j]), count)
        self.tables = fused.Tables(ring, fused.Fan.of(mesh.faces, count), self.normal_response, links)
        self.laplacian = _assemble([(i, i, weight), (i, j, -weight)], (count, count))

    def grounded(self, matrix: sparse.csr_matrix) -> sparse.csr_matrix:
        """`matrix`, whose rows sum to 0, plus something at one vertex of each piece that moves freely.

        What its right sides stand for sums to 0 as well, so the solution is the same, with 0 at these vertices.
        """
        piece = np.zeros_like(self.mesh.piece) if self.mesh.bridged else self.mesh.piece.numpy()
        first = np.unique(piece, return_index=True)[1]
        ground = np.zeros(matrix.shape[0])
        ground[first] = matrix.diagonal().mean()
        return (matrix + sparse.diags(ground)).tocsr()


def _differentiated(x: Tensor) -> bool:
    """Whether a gradient is asked for, which the fused passes do not give."""
    return torch.is_grad_enabled() and x.requires_grad


def edge_sums(i: np.ndarray, j: np.ndarray, weight: np.ndarray, q: np.ndarray) -> sparse.csr_matrix:
    """The right side of equation 6, sum over half edges (i, j) of weight (T_i + T_j) (q_i - q_j), as a map of T."""
    edge = weight[:, None] * (q[i] - q[j])
    row = np.broadcast_to(i[:, None], edge.shape)
    near, far = 3 * i[:, None] + np.arange(3), 3 * j[:, None] + np.arange(3)
    return _assemble([(row, near, edge), (row, far, edge)], (len(q), 3 * len(q)))


def _both_ways(pairs: Int[Tensor, "E 2"], weights: Float[Tensor, " E"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    i, j = torch.cat([pairs, pairs.flip(1)]).numpy().T
    return i, j, weights.repeat(2).numpy()


def _assemble(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], shape: tuple[int, int]) -> sparse.csr_matrix:
    row, column, value = (np.concatenate([part[k].reshape(-1) for part in parts]) for k in range(3))
    return sparse.coo_matrix((value, (row, column)), shape).tocsr()


def _columns(x: Float[Tensor, "B N 3"]) -> Float[Tensor, "N B3"]:
    """The batch side by side, as sparse maps take it."""
    return x.transpose(0, 1).flatten(1)


def map_columns(T: Float[Tensor, "B N 3 3"]) -> Float[Tensor, "N3 B3"]:
    """The columns of each vertex's matrix below each other, meshes side by side, as sparse maps take them."""
    return T.permute(1, 3, 0, 2).reshape(3 * T.shape[1], -1)


def _matrices(columns: Float[Tensor, "N3 B3"], batch: int) -> Float[Tensor, "B N 3 3"]:
    """The inverse of `map_columns`."""
    return columns.view(len(columns) // 3, 3, batch, 3).permute(2, 0, 3, 1)
