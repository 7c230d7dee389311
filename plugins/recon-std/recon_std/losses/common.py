"""What the losses share: robust penalties, weights of missing targets, and weighted sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.errors import UsageError, nearest
from recon_core.structures import LossValue

Penalty = Literal["l1", "l2", "geman-mcclure"]
Reduction = Literal["sum", "mean"]


def penalize(error: Float[Tensor, "..."], penalty: Penalty, sigma: float = 1.0) -> Float[Tensor, "..."]:
    """|e|, e^2, or Geman and McClure's sigma^2 e^2 / (sigma^2 + e^2), element by element (SMPLify's gmof)."""
    if penalty == "l1":
        return error.abs()
    squared = error**2
    return squared if penalty == "l2" else squared * (sigma**2 / (sigma**2 + squared))


def root(error: Float[Tensor, "..."], penalty: Penalty, sigma: float = 1.0) -> Float[Tensor, "..."]:
    """r with r dr = d penalize(e): residuals for `Loss.residuals`, weights held (Holland & Welsch 1977).

    Within 1e-4 of 0 that of |e| is e^2 / 2e-4: its curvature would have no bound.
    """
    if penalty == "l1":
        return error * error.detach().abs().clamp_min(1e-4).rsqrt()
    if penalty == "l2":
        return error * 2**0.5
    return error * (2**0.5 * sigma**2 / (sigma**2 + error.detach() ** 2))


def presence(target: Mapping[str, Any], name: str, like: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """The weight target["has_<name>"] of each row: 1 throughout where the target has no such key."""
    weight = target.get(f"has_{name}")
    return like.new_ones(len(like)) if weight is None else weight.to(like)


def difference(
    prediction: Float[Tensor, "B ..."], target: Float[Tensor, "B ..."], weight: Float[Tensor, "B ..."]
) -> Float[Tensor, "B ..."]:
    """prediction - target, and 0 where the weight is 0, whatever (even NaN) the target holds there.

    The weight's dimensions are the first ones of the others.
    """
    known = (weight > 0).reshape(weight.shape + (1,) * (prediction.ndim - weight.ndim))
    return torch.where(known, prediction - target, torch.zeros_like(prediction))


def reduce(values: Float[Tensor, "B ..."], weight: Float[Tensor, "B ..."], reduction: Reduction) -> Float[Tensor, " B"]:
    """Weighted sum of each sample's elements, or that over their number (which counts elements of weight 0)."""
    weighted = values * weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))
    return weighted.flatten(1).sum(1) if reduction == "sum" else weighted.flatten(1).mean(1)


def reduce_root(
    roots: Float[Tensor, "B ..."], weight: Float[Tensor, "B ..."], reduction: Reduction, scale: float = 1.0
) -> Float[Tensor, "B M"]:
    """What `reduce` is to values, to their roots: J^T r is then `scale` times the gradient of the reduced values."""
    weighted = (roots * weight.reshape(weight.shape + (1,) * (roots.ndim - weight.ndim)).sqrt()).flatten(1)
    return weighted * (scale if reduction == "sum" else scale / weighted.shape[1]) ** 0.5


def single(name: str, value: Float[Tensor, " B"], weight: float) -> LossValue:
    """A loss of one term."""
    return LossValue(weight * value, {name: value})


def weighted_sum(losses: Mapping[str, LossValue], weights: Mapping[str, float] | None = None) -> LossValue:
    """Sum of losses by name, each times its weight (1 where `weights` has none).

    Terms are named "<loss>" where a loss has one term, else "<loss>.<term>". Raises UsageError for a
    weight of no loss.
    """
    weights = weights or {}
    if unknown := weights.keys() - losses.keys():
        raise UsageError(f"weight of a loss that is not there: '{min(unknown)}'{nearest(min(unknown), losses)}")
    total = torch.stack([weights.get(name, 1.0) * loss.per_sample for name, loss in losses.items()]).sum(0)
    terms = {
        name if len(loss.terms) == 1 else f"{name}.{term}": value
        for name, loss in losses.items()
        for term, value in loss.terms.items()
    }
    return LossValue(total, terms)
