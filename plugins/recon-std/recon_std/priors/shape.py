"""The shape prior: betas are coefficients of unit-variance principal components, so a standard normal."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon_core.interfaces import Prior


class ShapePrior(Prior):
    """N(0, I) over the betas, for any number of them (`dims` is what `sample` and `mode` give).

    2 * energy is the published quadratic penalty sum(beta^2). The penalty stays quadratic beyond 3 sigma, where a
    body is as rare as 1 in 370 for each coefficient; `improbable` tells which bodies lie there, which SPIN
    (thesis 3.3.5) does not take as supervision.
    """

    over: ClassVar[Literal["betas"]] = "betas"
    LIMIT: ClassVar[float] = 3.0

    _like: Float[Tensor, ""]

    def __init__(self, dims: int = 10) -> None:
        super().__init__()
        self.dims = dims
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    def log_prob(
        self, values: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, " B"]:
        """Natural log density, normalised. The context is not read."""
        return -0.5 * (values**2).sum(-1) - values.shape[-1] / 2 * math.log(2 * math.pi)

    def quadratic(
        self, values: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None = None
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """|beta|^2 / 2, beta, and the identity's diagonal: exact."""
        return 0.5 * (values**2).sum(-1), values, torch.ones_like(values)

    def improbable(self, values: Float[Tensor, "B D"]) -> Bool[Tensor, " B"]:
        """Whether any coefficient is more than 3 standard deviations from the mean shape."""
        return (values.abs() > self.LIMIT).any(-1)

    def sample(
        self,
        count: int,
        context: Float[Tensor, "B C"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B N D"]:
        rows = 1 if context is None else len(context)
        return torch.randn(
            rows, count, self.dims, generator=generator, dtype=self._like.dtype, device=self._like.device
        )

    def mode(self, context: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "B D"]:
        """The mean shape."""
        return self._like.expand(1 if context is None else len(context), self.dims)
