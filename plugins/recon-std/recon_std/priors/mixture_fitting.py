"""Expectation maximisation for a mixture of full-covariance Gaussians, with weights on the samples."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def log_component_densities(
    x: Float[Tensor, "N D"], log_weights: Float[Tensor, " K"], means: Float[Tensor, "K D"], cholesky: Tensor
) -> Float[Tensor, "N K"]:
    """log(w_k N(x; mu_k, L_k L_k^T)) of every sample and component."""
    columns = []
    for k in range(len(means)):  # a component at a time: N x K x D at once would not fit the cache
        white = torch.linalg.solve_triangular(cholesky[k], (x - means[k]).T, upper=False)
        norm = cholesky[k].diagonal().log().sum() + x.shape[1] / 2 * math.log(2 * math.pi)
        columns.append(log_weights[k] - norm - 0.5 * (white**2).sum(0))
    return torch.stack(columns, 1)


def weighted_gaussian(
    x: Float[Tensor, "N D"], weight: Float[Tensor, " N"], floor: Float[Tensor, " D"]
) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"]]:
    """Mean and lower Cholesky factor of the weighted samples' covariance plus the variances `floor`."""
    share = weight / weight.sum()
    mean = share @ x
    centred = x - mean
    covariance = (centred * share[:, None]).T @ centred + torch.diag(floor)
    return mean, torch.linalg.cholesky(covariance)


def fit_mixture(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, " N"],
    components: int,
    floor: Float[Tensor, " D"],
    generator: torch.Generator,
    iterations: int = 100,
    tolerance: float = 2e-3,
) -> tuple[dict[str, Tensor], list[float]]:
    """EM from k-means++ centres; `floor` is a variance added to every covariance, D numbers.

    Returns log_weights (K), means (K, D), covariance_cholesky (K, D, D), and the weighted mean log likelihood
    (nats per sample) at each iteration; it stops when that rises by less than `tolerance`.
    """
    share = weight / weight.sum()
    centres = x[torch.multinomial(share, 1, generator=generator)]
    nearest = torch.cdist(x, centres).square().amin(1)
    for _ in range(components - 1):
        new = x[torch.multinomial(share * nearest, 1, generator=generator)]
        centres = torch.cat([centres, new])
        nearest = torch.minimum(nearest, torch.cdist(x, new)[:, 0].square())
    responsibility = torch.nn.functional.one_hot(torch.cdist(x, centres).argmin(1), components).to(x)
    history: list[float] = []
    while True:
        mass = responsibility * share[:, None]
        log_weights = mass.sum(0).log()
        fitted = [weighted_gaussian(x, mass[:, k], floor) for k in range(components)]
        means, cholesky = torch.stack([m for m, _ in fitted]), torch.stack([c for _, c in fitted])
        log_joint = log_component_densities(x, log_weights, means, cholesky)
        log_density = log_joint.logsumexp(1)
        history.append(float(share @ log_density))
        if len(history) == iterations or (len(history) > 1 and history[-1] - history[-2] < tolerance):
            return {"log_weights": log_weights, "means": means, "covariance_cholesky": cholesky}, history
        responsibility = (log_joint - log_density[:, None]).exp()
