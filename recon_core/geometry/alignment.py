"""Least-squares alignment of point sets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Similarity(NamedTuple):
    """x -> scale * R x + t, one a batch row: scale (B,), R (B, 3, 3) without reflection, t (B, 3)."""

    scale: Float[Tensor, " B"]
    R: Float[Tensor, "B 3 3"]
    t: Float[Tensor, "B 3"]

    def __call__(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
        return self.scale[:, None, None] * points @ self.R.transpose(-1, -2) + self.t[:, None]


def similarity_alignment(
    source: Float[Tensor, "B N 3"],
    target: Float[Tensor, "B N 3"],
    weights: Float[Tensor, "B N"] | None = None,
    with_scale: bool = True,
) -> Similarity:
    """The similarity (or, without scale, rigid motion) that takes `source` nearest to `target` (Umeyama 1991).

    weights: non-negative, per point; all equal by default. A source that is a single point gets scale 1.
    """
    if weights is None:
        weights = torch.ones_like(source[..., 0])
    w = (weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny))[..., None]
    source_mean, target_mean = (w * source).sum(1, keepdim=True), (w * target).sum(1, keepdim=True)
    x, y = source - source_mean, target - target_mean
    U, S, Vh = torch.linalg.svd((w * y).transpose(-1, -2) @ x)
    sign = torch.linalg.det(U @ Vh).sign()
    flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
    R = (U * flip[:, None]) @ Vh
    scale = torch.ones_like(sign)
    if with_scale:
        spread = (w * x * x).sum((1, 2))
        scale = torch.where(
            spread > 0, (S * flip).sum(-1) / spread.clamp_min(torch.finfo(spread.dtype).tiny), scale
        )
    t = target_mean[:, 0] - scale[:, None] * (R @ source_mean.transpose(-1, -2))[..., 0]
    return Similarity(scale, R, t)
