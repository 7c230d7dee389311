"""Features scaled to [-0.95, 0.95], each number by its own range (section 3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recon_acap.features.arrays import Array, accepts_arrays, to_tensor
from recon_core.errors import TrainingError

SCALED_LIMIT = 0.95


@dataclass(frozen=True)
class FeatureScaling:
    """Largest and smallest value of each of N x 9 numbers: high, low (N, 9)."""

    high: Float[Tensor, "N 9"]
    low: Float[Tensor, "N 9"]

    @classmethod
    def fit(cls, features: Float[Array, "B N 9"]) -> FeatureScaling:
        """The ranges over a set of features. Raises TrainingError when the set is empty or not finite."""
        values = to_tensor(features)
        if not len(values) or not torch.isfinite(values).all():
            raise TrainingError("features to scale: none, or not finite; extract them from valid meshes")
        return cls(values.amax(0), values.amin(0))

    @accepts_arrays
    def scale(self, features: Float[Array, "B N 9"]) -> Float[Array, "B N 9"]:
        """To [-0.95, 0.95]; a number that never changed to 0, where what differs from it shows unscaled."""
        middle, half = self._range(features)
        return (features - middle) / half

    @accepts_arrays
    def unscale(self, scaled: Float[Array, "B N 9"]) -> Float[Array, "B N 9"]:
        """The inverse of `scale`."""
        middle, half = self._range(scaled)
        return scaled * half + middle

    def unscale_slope(self, slope: Float[Tensor, "B N 9 C"]) -> Float[Tensor, "B N 9 C"]:
        """Derivatives of scaled features by C numbers as derivatives of the unscaled ones."""
        return slope * self._range(slope)[1][..., None]

    def _range(self, like: Tensor) -> tuple[Tensor, Tensor]:
        half = (self.high - self.low) / (2 * SCALED_LIMIT)
        return ((self.high + self.low) / 2).to(like), torch.where(half > 0, half, 1).to(like)
