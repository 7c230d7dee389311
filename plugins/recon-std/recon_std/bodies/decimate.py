"""Mirror-symmetric mesh simplification that keeps a subset of the vertices, and the texture charts.

Edges are collapsed onto one of their ends (half-edge collapse) in the order of the quadric error (Garland and
Heckbert, SIGGRAPH 1997), always together with the mirrored edge. As no vertex moves, everything known about a
vertex (shape directions, skinning weights, texture coordinates) stays as it was.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

MIN_NORMAL_COSINE = 0.2
MIN_UV_AREA = 0.02
"""A collapse may not turn a face's normal further, nor shrink a face's texture area below this share."""

LENGTH_WEIGHT = 0.02
"""Weight of the squared edge length beside the squared distance to the planes: favours even triangles."""


@dataclass
class _HalfMesh:
    """The mesh while it is being simplified: faces around each vertex, corners' texture coordinates."""

    points: np.ndarray
    uv: np.ndarray
    faces: list[list[int]]
    corners: list[list[int]]
    around: list[set[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.around = [set() for _ in range(len(self.points))]
        for i, face in enumerate(self.faces):
            for v in face:
                self.around[v].add(i)

    def neighbours(self, v: int) -> set[int]:
        return {u for i in self.around[v] for u in self.faces[i]} - {v}

    def corner(self, face: int, v: int) -> int:
        return self.corners[face][self.faces[face].index(v)]

    def seam_neighbours(self, v: int) -> set[int]:
        """Vertices u for which the edge (v, u) lies on a border between texture charts."""
        seen: dict[int, tuple[int, int]] = {}
        seams = set()
        for i in self.around[v]:
            for u in self.faces[i]:
                if u != v:
                    pair = (self.corner(i, v), self.corner(i, u))
                    if seen.setdefault(u, pair) != pair:
                        seams.add(u)
        return seams

    def corner_map(self, v: int, u: int) -> dict[int, int] | None:
        """For each texture coordinate of v the one of u that takes its place; None if the charts forbid it."""
        seams = self.seam_neighbours(v)
        if seams and (u not in seams or len(seams) != 2):
            return None
        shared = self.around[v] & self.around[u]
        mapped = {self.corner(i, v): self.corner(i, u) for i in shared}
        if len(mapped) != (2 if seams else 1):
            return None
        return mapped if {self.corner(i, v) for i in self.around[v]} <= mapped.keys() else None

    def allowed(self, v: int, u: int) -> bool:
        """Whether v may collapse onto u: same topology, no face or texture triangle flipped."""
        common = self.neighbours(v) & self.neighbours(u)
        shared = self.around[v] & self.around[u]
        if len(common) != 2 or len(shared) != 2 or any(len(self.around[c]) <= 3 for c in common):
            return False
        corners = self.corner_map(v, u)
        if corners is None:
            return False
        moved = list(self.around[v] - shared)
        before = np.array([self.faces[i] for i in moved])
        after = np.where(before == v, u, before)
        n0, n1 = _normals(self.points[before]), _normals(self.points[after])
        scale = np.linalg.norm(n0, axis=1) * np.linalg.norm(n1, axis=1)
        if np.any((n0 * n1).sum(1) <= MIN_NORMAL_COSINE * scale):
            return False
        before = np.array([self.corners[i] for i in moved])
        after = np.array([[corners.get(c, c) for c in row] for row in before.tolist()])
        return bool(np.all(_areas(self.uv[after]) > MIN_UV_AREA * _areas(self.uv[before])))

    def collapse(self, v: int, u: int) -> None:
        corners = self.corner_map(v, u)
        assert corners is not None
        shared = self.around[v] & self.around[u]
        for i in shared:
            for w in self.faces[i]:
                self.around[w].discard(i)
        for i in self.around[v]:
            self.corners[i] = [corners.get(c, c) for c in self.corners[i]]
            self.faces[i] = [u if w == v else w for w in self.faces[i]]
            self.around[u].add(i)
        self.around[v] = set()


def _normals(triangles: np.ndarray) -> np.ndarray:
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def _areas(triangles: np.ndarray) -> np.ndarray:
    a, b = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def decimate(
    points: np.ndarray,
    faces: np.ndarray,
    uv: np.ndarray,
    uv_faces: np.ndarray,
    mirror: np.ndarray,
    importance: np.ndarray,
    target: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simplify a closed mesh to about `target` vertices.

    points: (V, 3), mirrored about x = 0 by `mirror` (V,), without an edge that crosses x = 0; those that no face
    uses are dropped. uv: (T, 2), every
    triangle of uv_faces (F, 3) counter-clockwise. importance: (V,) factor on the error around a vertex; inf
    keeps it. Returns the kept vertices (sorted), faces (F', 3) and uv_faces (F', 3) in the original numbering.
    """
    mesh = _HalfMesh(points, uv, faces.tolist(), uv_faces.tolist())
    normal = _normals(points[faces])
    area = np.linalg.norm(normal, axis=1)
    normal = normal / area[:, None]
    plane = np.concatenate([normal, -(normal * points[faces[:, 0]]).sum(1, keepdims=True)], 1)
    quadric = np.zeros((len(points), 4, 4))
    patch = np.zeros(len(points))
    for corner in range(3):
        np.add.at(quadric, faces[:, corner], area[:, None, None] * plane[:, :, None] * plane[:, None, :])
        np.add.at(patch, faces[:, corner], area)
    middle = mirror == np.arange(len(points))
    left = points[:, 0] > 0

    def cost(v: int, u: int) -> float:
        p = np.append(points[u], 1.0)
        length = ((points[u] - points[v]) ** 2).sum()
        return float(importance[v] * (p @ quadric[v] @ p + LENGTH_WEIGHT * patch[v] * length))

    version = np.zeros(len(points), int)
    heap: list[tuple[float, int, int, int]] = []

    def push(v: int) -> None:
        version[v] += 1
        if np.isfinite(importance[v]) and (middle[v] or left[v]):
            for u in mesh.neighbours(v):
                if middle[u] or not middle[v]:
                    heapq.heappush(heap, (cost(v, u), v, u, int(version[v])))

    for v in range(len(points)):
        push(v)
    count = len(np.unique(faces))
    while count > target and heap:
        _, v, u, stamp = heapq.heappop(heap)
        if stamp != version[v] or not mesh.around[v] or not mesh.allowed(v, u):
            continue
        for a, b in {(v, u), (int(mirror[v]), int(mirror[u]))}:
            mesh.collapse(a, b)
            quadric[b] += quadric[a]
            patch[b] += patch[a]
            count -= 1
        for w in mesh.neighbours(u) | {u}:
            push(w)
    alive = sorted({i for ring in mesh.around for i in ring})
    new_faces = np.array([mesh.faces[i] for i in alive])
    return np.unique(new_faces), new_faces, np.array([mesh.corners[i] for i in alive])
