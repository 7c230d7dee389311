"""Smoothing over a surface, which baking the free body needs (numpy and scipy)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
import scipy.sparse.linalg
import torch

from recon_core.geometry.topology import cotangent_weights, vertex_areas


def diffused(values: np.ndarray, points: np.ndarray, faces: np.ndarray, distance: float) -> np.ndarray:
    """(V, C) values after heat has spread over the surface by about `distance` (metres; one implicit step).

    Cotangent Laplacian with its negative weights cut off, so that values stay within their range and rows that
    sum to 1 keep doing so.
    """
    at, triangles = torch.as_tensor(points, dtype=torch.float64), torch.as_tensor(faces)
    pairs, weight = cotangent_weights(at, triangles)
    start, end = pairs.numpy().T
    edges = sparse.coo_matrix((weight.clamp(0.005, 5).numpy(), (start, end)), (len(points),) * 2)
    edges = (edges + edges.T).tocsr()
    laplacian = sparse.diags(np.asarray(edges.sum(1)).ravel()) - edges
    mass = vertex_areas(at[None], triangles)[0].numpy()
    system = sparse.diags(mass) + 0.5 * distance**2 * laplacian
    return scipy.sparse.linalg.splu(system.tocsc()).solve(mass[:, None] * values)
