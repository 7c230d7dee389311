"""Polar decomposition T = R S of many 3 x 3 matrices: R a rotation, S symmetric, whatever the sign of det T.

R is the rotation nearest to T. Where det T > 0, S is positive definite; elsewhere S has a negative (or zero) eigenvalue
and R S is still T.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.geometry.rotations import project_to_rotation

FLATTEST = 1e-3
"""Newton's iteration takes matrices with det T > FLATTEST |T|^3; those nearer to singular, or mirrored, need an SVD."""

STEPS = {torch.float32: 6, torch.float64: 7}
"""Scaled Newton steps that bring every matrix above FLATTEST to full precision (convergence is quadratic)."""


def nearest_rotation(T: Float[Tensor, "N 3 3"]) -> Float[Tensor, "N 3 3"]:
    """The rotation R nearest to each T, by Newton's iteration, and by an SVD for the few that it cannot take.

    Scaled iteration X <- (m X + X^-T / m) / 2 with m^2 = |X^-T| / |X| (Higham, SIAM J. Sci. Stat. Comput. 7, 1986).
    No gradient: see `recon_acap.features.logarithm`.
    """
    X = T.detach().permute(1, 2, 0).contiguous()
    size = (X * X).sum((0, 1))
    cofactor = _cofactors(X)
    det = (X[0] * cofactor[0]).sum(0)
    hard = det <= FLATTEST * size * size.sqrt()
    det = torch.where(hard, torch.ones_like(det), det)
    for step in range(STEPS.get(T.dtype, 7)):
        if step:
            cofactor, size = _cofactors(X), (X * X).sum((0, 1))
            det = torch.where(hard, det, (X[0] * cofactor[0]).sum(0))
        # |X^-T| = |cofactor| / det, so m^2 = |cofactor| / (det |X|); m X + X^-T / m is scaled by m.
        scale = ((cofactor * cofactor).sum((0, 1)) / size.clamp(min=torch.finfo(T.dtype).tiny)).sqrt() / det
        scale = scale.sqrt()
        X = torch.addcmul(X * (0.5 * scale), cofactor, 0.5 / (scale * det))
    R = X.permute(2, 0, 1)
    rows = hard.nonzero().squeeze(1)
    if len(rows):
        R = R.index_copy(0, rows, project_to_rotation(T.detach()[rows].double()).to(T.dtype))
    return R


def _cofactors(X: Float[Tensor, "3 3 N"]) -> Float[Tensor, "3 3 N"]:
    """det(X) X^-T of matrices whose index comes last, so that every operation runs over long rows."""
    rows = torch.cat([X, X[:2]])
    around = torch.cat([rows, rows[:, :2]], 1)
    return torch.addcmul(around[1:4, 1:4] * around[2:, 2:], around[1:4, 2:], around[2:, 1:4], value=-1)
