"""Losses on body parameters and vertices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.interfaces import Loss
from recon_core.structures import LossValue
from recon_std.losses.common import (
    Penalty,
    Reduction,
    difference,
    penalize,
    presence,
    reduce,
    reduce_root,
    root,
    single,
)


class BodyParametersLoss(Loss):
    """Squared distance of rotation matrices and of betas (thesis equation 3.3).

    prediction and target: pose (B, P, 3, 3), betas (B, S). target may hold has_pose and has_betas (B,), the weight
    of each sample's. Terms: pose, betas.
    """

    def __init__(self, pose_weight: float = 1.0, betas_weight: float = 1.0, reduction: Reduction = "sum") -> None:
        super().__init__()
        self.weights = {"pose": pose_weight, "betas": betas_weight}
        self.reduction = reduction

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        terms = {}
        for name in self.weights:
            known = presence(target, name, prediction[name])
            error = difference(prediction[name], target[name], known)
            terms[name] = reduce(error**2, known, self.reduction)
        total = self.weights["pose"] * terms["pose"] + self.weights["betas"] * terms["betas"]
        return LossValue(total, terms)

    def residuals(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> Float[Tensor, "B M"]:
        parts = []
        for name, weight in self.weights.items():
            known = presence(target, name, prediction[name])
            error = difference(prediction[name], target[name], known)
            parts.append(reduce_root(root(error, "l2"), known, self.reduction, weight))
        return torch.cat(parts, 1)


class VerticesLoss(Loss):
    """Distance of corresponding vertices (thesis equation 3.4).

    prediction["vertices"], target["vertices"]: (B, V, 3) metres. target may hold has_vertices (B,).
    """

    def __init__(
        self, weight: float = 1.0, penalty: Penalty = "l1", sigma: float = 0.1, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.weight, self.penalty, self.sigma, self.reduction = weight, penalty, sigma, reduction

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        known = presence(target, "vertices", prediction["vertices"])
        error = difference(prediction["vertices"], target["vertices"], known)
        value = reduce(penalize(error, self.penalty, self.sigma), known, self.reduction)
        return single("vertices", value, self.weight)

    def residuals(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> Float[Tensor, "B M"]:
        known = presence(target, "vertices", prediction["vertices"])
        error = difference(prediction["vertices"], target["vertices"], known)
        return reduce_root(root(error, self.penalty, self.sigma), known, self.reduction, self.weight)
