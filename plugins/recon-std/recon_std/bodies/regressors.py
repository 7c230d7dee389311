"""Joint and keypoint regressors of the free body: sparse, non-negative weights over vertices that sum to 1.

A landmark on the skin is one vertex. A point inside the body is fitted by non-negative least squares so that
it is found again for every shape, and, for a joint between two parts, for every pose: the share of the
weights that each part carries has its own centroid at the joint, which no rotation about the joint moves.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

SUM_WEIGHT = 1e3
RIDGE = 2e-4


def interior_point(
    target: np.ndarray, shapes: np.ndarray, skin_weights: np.ndarray, candidates: np.ndarray, articulated: bool
) -> np.ndarray:
    """Weights (V,) over vertices for a point inside the body.

    target: (M, 3) the point on the mean body (row 0) and its change along each shape direction, metres.
    shapes: (M, V, 3) the same of the vertices. skin_weights: (V, P). candidates: vertices that may carry weight.
    articulated: whether the point must stay put when parts turn about it.
    """
    # At one standard deviation a shape direction is as real as the mean body; residuals are metres throughout.
    residual = shapes[:, candidates] - target[:, None]
    residual[1:] = shapes[1:, candidates] - target[1:, None]
    rows = [residual.transpose(0, 2, 1).reshape(-1, len(candidates))]
    if articulated:
        share = skin_weights[candidates]
        for p in np.flatnonzero(share.sum(0) > 1e-3):
            # Along a shape direction the share's centroid must move as the joint does, weighted alike.
            rows.append((residual * share[:, p][None, :, None]).transpose(0, 2, 1).reshape(-1, len(candidates)))
    rows.append(np.full((1, len(candidates)), SUM_WEIGHT))
    rows.append(RIDGE * np.eye(len(candidates)))
    A = np.concatenate(rows)
    b = np.zeros(len(A))
    b[-len(candidates) - 1] = SUM_WEIGHT
    solution, _ = nnls(A, b, maxiter=50 * len(candidates))
    result = np.zeros(shapes.shape[1])
    result[candidates] = solution / solution.sum()
    return result
