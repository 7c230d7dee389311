"""Fits the joint and keypoint regressors of the free body: non-negative weights over vertices that sum to 1."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from recon_core.errors import AssetError

_SUM_ROW = 1e3
_SPREAD_RIDGE = 3e-3
_SPARSE_RIDGE = 2e-4


def _least_squares(rows: np.ndarray, ridge: float) -> np.ndarray:
    """Non-negative w, sum 1, with the least |rows @ w|^2 + ridge^2 |w|^2."""
    n = rows.shape[1]
    A = np.concatenate([rows, ridge * np.eye(n), np.full((1, n), _SUM_ROW)])
    b = np.zeros(len(A))
    b[-1] = _SUM_ROW
    w, _ = nnls(A, b, maxiter=100 * n)
    if w.sum() < 0.99:
        raise AssetError("bake: no vertices surround a joint; was the template moved?")
    return w / w.sum()


def interior_point(
    point: np.ndarray,
    shapes: np.ndarray,
    weights: np.ndarray,
    candidates: np.ndarray,
) -> np.ndarray:
    """Weights (V,) over vertices that find a joint again in every shape and every pose.

    point: (3,) the joint on the mean body, metres. shapes: (1 + S, V, 3) the mean body and its shape directions.
    weights: (V, P) skinning weights. candidates: vertices that may be used, nearest first.

    First the joint is spread over the nearer half of the candidates, which says how it moves with the shape. Then a
    sparse solution is sought that moves likewise, and in which the share of every part has its own centroid at
    the joint: as a part turns about the joint, or about any other point that carries all the joint's parts along,
    such a share does not leave it.
    """
    near = candidates[: len(candidates) // 2]
    spread = _least_squares((shapes[0, near] - point).T, _SPREAD_RIDGE)
    target = np.einsum("v,mvi->mi", spread, shapes[:, near])
    target[0] = point
    residual = (shapes[:, candidates] - target[:, None]).transpose(0, 2, 1).reshape(-1, len(candidates))
    share = weights[candidates]
    rows = [residual] + [residual * share[:, p] for p in np.flatnonzero(share.sum(0) > 1e-3)]
    found = np.zeros(shapes.shape[1])
    found[candidates] = _least_squares(np.concatenate(rows), _SPARSE_RIDGE)
    found[found < 1e-4] = 0
    return found / found.sum()
