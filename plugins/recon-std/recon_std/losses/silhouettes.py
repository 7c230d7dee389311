"""Losses on masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from recon_core.interfaces import Loss
from recon_core.structures import LossValue
from recon_std.losses.common import presence, single


class IoULoss(Loss):
    """1 - intersection over union of soft masks (CASL equation 9), 0 where both are empty.

    prediction["mask"], target["mask"]: (B, 1, H, W) in [0, 1]. target may hold has_mask (B,). Intersection and
    union are the product and the probabilistic sum, so that it is 0 at the target only for masks of 0 and 1.
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        predicted = prediction["mask"]
        known = presence(target, "mask", predicted)
        wanted = torch.where(known[:, None, None, None] > 0, target["mask"], torch.zeros_like(predicted))
        both = (predicted * wanted).flatten(1).sum(1)
        either = (predicted + wanted - predicted * wanted).flatten(1).sum(1)
        tiny = 1e-6  # of a pixel
        return single("iou", known * (1 - (both + tiny) / (either + tiny)), self.weight)
