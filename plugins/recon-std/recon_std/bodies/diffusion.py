"""Smoothing over a surface, which baking the free body needs (numpy and scipy)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
import scipy.sparse.linalg

from recon_std.bodies.topology import vertex_areas


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
