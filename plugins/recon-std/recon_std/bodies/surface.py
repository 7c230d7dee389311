"""Operators on a triangle mesh that baking a body needs: areas, smoothing over the surface, normals (numpy)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
import scipy.sparse.linalg


def vertex_areas(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V,) a third of the area of the faces around each vertex."""
    area = np.linalg.norm(_face_normals(points, faces), axis=1) / 6
    return np.bincount(faces.ravel(), np.repeat(area, 3), minlength=len(points))


def vertex_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) area-weighted mean normals, not of unit length."""
    normals = np.zeros_like(points)
    np.add.at(normals, faces.ravel(), np.repeat(_face_normals(points, faces), 3, axis=0))
    return normals


def diffused(values: np.ndarray, points: np.ndarray, faces: np.ndarray, distance: float) -> np.ndarray:
    """(V, C) values after heat has spread over the surface by about `distance` (metres; one implicit step).

    Cotangent Laplacian with its negative weights cut off, so that values stay within their range and rows that
    sum to 1 keep doing so.
    """
    corner, following, last = faces[:, [0, 1, 2]], faces[:, [1, 2, 0]], faces[:, [2, 0, 1]]
    a, b = points[following] - points[corner], points[last] - points[corner]
    sine = np.maximum(np.linalg.norm(np.cross(a, b), axis=-1), 1e-12)
    cotangent = np.clip((a * b).sum(-1) / sine, 0.01, 10).ravel() / 2
    edges = sparse.coo_matrix((cotangent, (following.ravel(), last.ravel())), (len(points),) * 2)
    edges = (edges + edges.T).tocsr()
    laplacian = sparse.diags(np.asarray(edges.sum(1)).ravel()) - edges
    mass = vertex_areas(points, faces)
    system = sparse.diags(mass) + 0.5 * distance**2 * laplacian
    return scipy.sparse.linalg.splu(system.tocsc()).solve(mass[:, None] * values)


def _face_normals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = points[faces].swapaxes(0, 1)
    return np.cross(b - a, c - a)
