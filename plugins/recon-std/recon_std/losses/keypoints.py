"""Losses on joints, 2D and 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.interfaces import Loss
from recon_core.skeletons import skeleton as skeleton_named
from recon_core.structures import LossValue
from recon_std.losses.common import Penalty, Reduction, difference, penalize, reduce, reduce_root, root, single


class Keypoints2DLoss(Loss):
    """Reprojection error (thesis equation 3.1), each joint weighted by its confidence.

    prediction["keypoints2d"], target["keypoints2d"]: (B, J, 2) in one unit, which sigma has too: pixels of the
    crop, or halves of its side. target["keypoints2d_confidence"]: (B, J) in [0, 1], 0 for a missing joint.
    """

    def __init__(
        self, weight: float = 1.0, penalty: Penalty = "l1", sigma: float = 100.0, reduction: Reduction = "sum"
    ) -> None:
        super().__init__()
        self.weight, self.penalty, self.sigma, self.reduction = weight, penalty, sigma, reduction

    def _error(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        confidence = target["keypoints2d_confidence"]
        return difference(prediction["keypoints2d"], target["keypoints2d"], confidence), confidence

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        error, confidence = self._error(prediction, target)
        value = reduce(penalize(error, self.penalty, self.sigma), confidence, self.reduction)
        return single("keypoints2d", value, self.weight)

    def residuals(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> Float[Tensor, "B M"]:
        error, confidence = self._error(prediction, target)
        return reduce_root(root(error, self.penalty, self.sigma), confidence, self.reduction, self.weight)


class Keypoints3DLoss(Loss):
    """Distance of 3D joints, after moving the mean of the joints `root` of both to the origin.

    prediction["keypoints3d"], target["keypoints3d"]: (B, J, 3) metres. target["keypoints3d_confidence"]: (B, J), 0
    for a missing joint. root: names of joints of `skeleton`, e.g. ("left_hip", "right_hip") as SPIN and HMR, or ()
    for none; where one of them is missing from the target the sample has weight 0. Raises UsageError for a joint
    or skeleton of an unknown name.
    """

    def __init__(
        self,
        skeleton: str,
        root: Sequence[str] = ("left_hip", "right_hip"),
        weight: float = 1.0,
        penalty: Penalty = "l1",
        sigma: float = 0.1,
        reduction: Reduction = "sum",
    ) -> None:
        super().__init__()
        named = skeleton_named(skeleton)
        self.root = [named.index(joint) for joint in root]
        self.weight, self.penalty, self.sigma, self.reduction = weight, penalty, sigma, reduction

    def _error(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        confidence = target["keypoints3d_confidence"]
        predicted, wanted = prediction["keypoints3d"], target["keypoints3d"]
        if self.root:
            rooted = (confidence[:, self.root] > 0).all(1, keepdim=True)
            confidence = confidence * rooted
            predicted, wanted = self._centred(predicted), self._centred(wanted)
        return difference(predicted, wanted, confidence), confidence

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        error, confidence = self._error(prediction, target)
        value = reduce(penalize(error, self.penalty, self.sigma), confidence, self.reduction)
        return single("keypoints3d", value, self.weight)

    def residuals(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> Float[Tensor, "B M"]:
        error, confidence = self._error(prediction, target)
        return reduce_root(root(error, self.penalty, self.sigma), confidence, self.reduction, self.weight)

    def _centred(self, points: Tensor) -> Tensor:
        return points - torch.mean(points[:, self.root], 1, keepdim=True)
