"""Mixture of full-covariance Gaussians over the 69 body axis-angle numbers (SMPLify, Bogo et al., ECCV 2016, 3.2)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.interfaces import Prior
from recon_std.priors.weights import SHIPPED, load_weights


class GaussianMixturePrior(Prior):
    """p(x) = sum_k w_k N(x; mu_k, Sigma_k), x the axis-angle numbers (radians) of pose rows 1 to 23.

    `weights` names a safetensors file with log_weights (K), means (K, D) and covariance_cholesky (K, D, D), the
    lower factor; by default the eight Gaussians trained on motion capture (weights/README.md). Any D is accepted.
    Raises AssetError when the file is missing or does not hold these.
    """

    over: ClassVar[Literal["body-pose"]] = "body-pose"

    log_weights: Float[Tensor, " K"]
    means: Float[Tensor, "K D"]
    covariance_cholesky: Float[Tensor, "K D D"]
    precision_cholesky: Float[Tensor, "K D D"]
    precisions: Float[Tensor, "K D D"]
    log_peaks: Float[Tensor, " K"]

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        tensors = load_weights(weights or SHIPPED / "gmm.safetensors", ("log_weights", "means", "covariance_cholesky"))
        cholesky = tensors["covariance_cholesky"].double()
        self.dims = cholesky.shape[-1]
        eye = torch.eye(self.dims, dtype=torch.float64).expand_as(cholesky)
        inverse = torch.linalg.solve_triangular(cholesky, eye, upper=False)
        log_weights = tensors["log_weights"].double().log_softmax(0)
        # log of w_k N(mu_k; mu_k, Sigma_k), so that log p = logsumexp(log_peaks - squared distance / 2).
        peaks = log_weights - cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1) - self.dims / 2 * math.log(2 * math.pi)
        for name, value in {
            "log_weights": log_weights,
            "means": tensors["means"],
            "covariance_cholesky": cholesky,
            "precision_cholesky": inverse,
            "precisions": inverse.transpose(-1, -2) @ inverse,
            "log_peaks": peaks,
        }.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()))

    def component_log_prob(self, values: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """log(w_k N(x; mu_k, Sigma_k)) of each component; their logsumexp is log_prob."""
        whitened = torch.einsum("kij,bkj->bki", self.precision_cholesky, values[:, None] - self.means)
        return self.log_peaks - 0.5 * (whitened**2).sum(-1)

    def log_prob(
        self, values: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, " B"]:
        """Natural log density per rad^D, normalised. The context is not read."""
        return self.component_log_prob(values).logsumexp(-1)

    def responsibilities(self, values: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Posterior probability of each component."""
        return self.component_log_prob(values).softmax(-1)

    def quadratic(
        self, values: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None = None
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"], Float[Tensor, "B D D"]]:
        """SMPLify's form (equation 7): the energy of the likeliest component alone, 0 at the mixture's highest peak.

        With constant c = max_k log_peaks it is within log K above -log_prob + c. Within a component's region it is
        exactly quadratic: the gradient is P_k (x - mu_k), the curvature the precision P_k.
        """
        away = values - self.means[:, None]
        pull = away @ self.precisions
        log_prob, active = (self.log_peaks[:, None] - 0.5 * (away * pull).sum(-1)).max(0)
        gradient = pull[active, torch.arange(len(values), device=values.device)]
        return self.log_peaks.max() - log_prob, gradient, self.precisions.index_select(0, active)

    def active(self, values: Float[Tensor, "B D"]) -> Int[Tensor, " B"]:
        """Index of the likeliest component."""
        return self.component_log_prob(values).argmax(-1)

    def sample(
        self,
        count: int,
        context: Float[Tensor, "B C"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B N D"]:
        rows = 1 if context is None else len(context)
        component = torch.multinomial(
            self.log_weights.exp(), rows * count, replacement=True, generator=generator
        ).reshape(rows, count)
        noise = torch.randn(
            rows, count, self.dims, generator=generator, dtype=self.means.dtype, device=self.means.device
        )
        return self.means[component] + torch.einsum("bnij,bnj->bni", self.covariance_cholesky[component], noise)

    def mode(self, context: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "B D"]:
        """The highest of the components' peaks, polished by mean-shift to the mixture's stationary point."""
        x = self.means[self.log_peaks.argmax()][None]
        for _ in range(20):
            r = self.responsibilities(x)
            precision = torch.einsum("bk,kij->bij", r, self.precisions)
            pull = torch.einsum("bk,kij,kj->bi", r, self.precisions, self.means)
            x = torch.linalg.solve(precision, pull)
        return x.expand(1 if context is None else len(context), -1)
