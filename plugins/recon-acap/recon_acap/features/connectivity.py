"""The connectivity that a collection of meshes shares, checked, with everything that depends on it alone."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from recon_acap.features.arrays import Array, to_tensor
from recon_core.errors import InputError
from recon_core.geometry.topology import cotangent_weights, edges, face_areas

LEAST_WEIGHT = 1e-2
"""Cotangent weights are at least this: those of obtuse pairs of triangles are negative, and equation 1 with
negative weights has no minimum."""

BRIDGES = 8
"""How many links join a piece of the mesh to the piece nearest to it."""


class Connectivity:
    """A reference mesh, and the tables that features of all meshes of its connectivity need.

    reference: (V, 3) vertices q_i of the reference mesh, float64, in the unit of all meshes (metres here).
    faces: (F, 3). edges: (E, 2), smaller index first, and edge_weights: (E,) their cotangent weights c_ij.
    piece: (V,) number of the connected piece a vertex belongs to, pieces: how many there are. bridges: (K, 2) links
    between pieces, so that eyes follow their head: each piece's vertices nearest to another piece, with that piece's
    vertices; none with bridged=False, and then each piece moves freely. links, link_weights: edges and bridges.

    Raises InputError for meshes the equations are not defined on: indices out of range, NaN, faces without area,
    edges with more than two faces or with faces that disagree on their outside, vertices without face.
    """

    def __init__(
        self,
        reference_vertices: Float[Array, "V 3"],
        faces: Int[Array, "F 3"],
        bridged: bool = True,
        name: str = "reference mesh",
    ) -> None:
        self.name = name
        self.reference = to_tensor(reference_vertices).detach().cpu().double()
        self.faces = to_tensor(faces).detach().cpu().long()
        self._check_reference()
        half_edges, weights = cotangent_weights(self.reference, self.faces)
        self.edges = edges(self.faces).vertices
        # Rows of `edges` ascend, so that the number of an edge is found by its key.
        keys = self.edges[:, 0] * self.vertex_count + self.edges[:, 1]
        ends = half_edges.sort(dim=1).values
        number = torch.searchsorted(keys, ends[:, 0] * self.vertex_count + ends[:, 1])
        total = torch.zeros(len(keys), dtype=torch.float64).index_add(0, number, weights)
        self.edge_weights = total.clamp(min=LEAST_WEIGHT)
        self.pieces, labels = connected_components(_graph(self.edges, self.vertex_count), directed=False)
        self.piece = torch.from_numpy(labels.astype(np.int64))
        self.bridges = self._bridges() if bridged and self.pieces > 1 else self.edges[:0]
        self.links = torch.cat([self.edges, self.bridges])
        bridge_weights = self.edge_weights.median().expand(len(self.bridges))
        self.link_weights = torch.cat([self.edge_weights, bridge_weights])

    @property
    def vertex_count(self) -> int:
        return len(self.reference)

    @property
    def bridged(self) -> bool:
        """Whether one vertex's place fixes the whole mesh."""
        return self.pieces == 1 or len(self.bridges) > 0

    @cached_property
    def linked(self) -> tuple[Int[Tensor, " V"], Int[Tensor, " H"]]:
        """Each vertex's neighbours over edges and bridges, one vertex's after the other's: ends, neighbours; int32."""
        start, end = torch.cat([self.links, self.links.flip(1)]).T
        ends = torch.bincount(start, minlength=self.vertex_count).cumsum(0)
        return ends.int(), end[start.argsort(stable=True)].int()

    @cached_property
    def tree(self) -> tuple[Int[Tensor, " V"], Int[Tensor, " V"], tuple[int, ...]]:
        """A breadth-first spanning tree: (order, parent, ends of its levels).

        order: vertices by level; parent: by place in `order`, the place of a vertex's parent (a root's is its own).
        Each piece that no bridge joins has a root of its own, in its middle: levels are as few as can be.
        """
        graph = _graph(self.links, self.vertex_count)
        count, label = connected_components(graph, directed=False)
        depth = np.zeros(self.vertex_count, dtype=np.int64)
        parent = np.arange(self.vertex_count)
        for piece in range(count):
            root = _middle(graph, int(np.flatnonzero(label == piece)[0]))
            reached, before, far = _levels(graph, root)
            depth[reached] = far[reached]
            parent[reached[1:]] = before[reached[1:]]
        order = np.argsort(depth, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return torch.from_numpy(order), torch.from_numpy(place[parent[order]]), tuple(np.cumsum(np.bincount(depth)))

    def check_vertices(self, vertices: Float[Array, "B V 3"], name: str = "mesh") -> None:
        """Raises InputError, naming `name`, unless `vertices` are finite and as many as the reference's."""
        if vertices.ndim != 3 or vertices.shape[2] != 3:
            raise InputError(f"{name}: vertices of shape {tuple(vertices.shape)}; give (meshes, vertices, 3)")
        if vertices.shape[1] != self.vertex_count:
            raise InputError(
                f"{name}: {vertices.shape[1]} vertices, the {self.name} has {self.vertex_count}; features compare "
                "meshes of one connectivity, register others first (recon fit --register)"
            )
        finite = torch.isfinite(to_tensor(vertices))
        if not finite.all():
            mesh, vertex = (~finite.all(-1)).nonzero()[0].tolist()
            raise InputError(f"{name}: vertex {vertex} of mesh {mesh} is not finite; repair or leave out that mesh")

    def check_faces(self, faces: Int[Array, "F 3"], name: str = "mesh") -> None:
        """Raises InputError, naming `name`, unless `faces` are the reference's, in its order."""
        given = to_tensor(faces).cpu().long()
        if given.shape != self.faces.shape:
            raise InputError(f"{name}: {len(given)} faces, the {self.name} has {len(self.faces)}; register it first")
        different = (given != self.faces).any(1)
        if different.any():
            raise InputError(
                f"{name}: {int(different.sum())} of {len(given)} faces differ from the {self.name}'s, first "
                f"{int(different.nonzero()[0])}; register it first"
            )

    def _check_reference(self) -> None:
        vertices, faces, name = self.reference, self.faces, self.name
        if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3 or not len(faces):
            raise InputError(f"{name}: vertices {tuple(vertices.shape)} and faces {tuple(faces.shape)} are no mesh")
        if not torch.isfinite(vertices).all():
            vertex = int((~torch.isfinite(vertices).all(1)).nonzero()[0])
            raise InputError(f"{name}: vertex {vertex} is not finite; repair the mesh")
        if faces.min() < 0 or faces.max() >= len(vertices):
            face = int(((faces < 0) | (faces >= len(vertices))).any(1).nonzero()[0])
            raise InputError(f"{name}: face {face} names a vertex outside 0 to {len(vertices) - 1}; repair the mesh")
        size = (vertices.amax(0) - vertices.amin(0)).norm()
        flat = face_areas(vertices[None], faces)[0] <= 1e-12 * size**2
        if flat.any():
            raise InputError(
                f"{name}: {int(flat.sum())} degenerate faces (without area), first {int(flat.nonzero()[0])}; "
                "remove them or merge their vertices"
            )
        found = edges(faces)
        bad = found.irregular[found.faces[found.irregular, 1] >= 0]
        if len(bad):
            first = tuple(found.vertices[bad[0]].tolist())
            raise InputError(
                f"{name}: {len(bad)} non-manifold edges, first {first}: more than two faces meet there, or two that "
                "disagree on their outside; split or turn them"
            )
        used = torch.bincount(faces.reshape(-1), minlength=len(vertices))
        if (used == 0).any():
            vertex = int((used == 0).nonzero()[0])
            raise InputError(f"{name}: vertex {vertex} belongs to no face; remove such vertices")

    def _bridges(self) -> Int[Tensor, "K 2"]:
        """Join the largest piece and its nearest one, and so on until all are joined (Prim's algorithm on pieces)."""
        points, label = self.reference.numpy(), self.piece.numpy()
        members = [np.flatnonzero(label == piece) for piece in range(self.pieces)]
        joined = members[int(np.argmax([len(m) for m in members]))]
        rest = [m for m in members if m[0] != joined[0]]
        found = []
        while rest:
            tree = cKDTree(points[joined])
            nearest = [tree.query(points[m]) for m in rest]
            best = int(np.argmin([distance.min() for distance, _ in nearest]))
            distance, place = nearest[best]
            near = np.argsort(distance, kind="stable")[:BRIDGES]
            found.append(np.stack([joined[place[near]], rest[best][near]], 1))
            joined = np.concatenate([joined, rest.pop(best)])
        return torch.from_numpy(np.sort(np.concatenate(found), axis=1))


def _graph(pairs: Int[Tensor, "E 2"], count: int) -> coo_matrix:
    a, b = pairs.numpy().T
    return coo_matrix((np.ones(2 * len(a), dtype=np.int8), (np.r_[a, b], np.r_[b, a])), (count, count)).tocsr()


def _levels(graph: coo_matrix, root: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is reached from `root`, nearest first; each vertex's predecessor; each vertex's number of steps."""
    reached, before = breadth_first_order(graph, root, directed=False)
    before = np.where(before < 0, root, before)
    depth = np.zeros(graph.shape[0], dtype=np.int64)
    up = np.arange(graph.shape[0])
    while (up != root).any():
        depth += up != root
        up = before[up]
    depth[np.setdiff1d(np.arange(len(depth)), reached)] = 0
    return reached, before, depth


def _middle(graph: coo_matrix, start: int) -> int:
    """The vertex half way along a longest of the shortest paths: least deep as a root."""
    for _ in range(2):
        reached, before, _ = _levels(graph, start)
        far, start = start, int(reached[-1])
    path = [start]
    while path[-1] != far:
        path.append(int(before[path[-1]]))
    return path[len(path) // 2]
