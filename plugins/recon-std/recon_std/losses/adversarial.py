"""The two sides of an adversarial training. Scores: (B, ...), any number a sample; they are summed over each.

Least squares (Mao et al., ICCV 2017; HMR): real is 1, made up is 0. Wasserstein (Arjovsky et al., ICML 2017; CASL):
the critic widens the gap between real and made up, and needs a bound on its slope: `gradient_penalty`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.interfaces import Loss
from recon_core.structures import LossValue
from recon_std.losses.common import single

Game = Literal["lsgan", "wgan"]


class GeneratorLoss(Loss):
    """prediction["scores"]: the discriminator's for what the generator made. Reads no target."""

    def __init__(self, game: Game = "lsgan", weight: float = 1.0) -> None:
        super().__init__()
        self.game, self.weight = game, weight

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        scores = prediction["scores"].flatten(1)
        value = ((scores - 1) ** 2 if self.game == "lsgan" else -scores).sum(1)
        return single("generator", value, self.weight)


class DiscriminatorLoss(Loss):
    """prediction["scores"]: for made-up samples (detach them first); target["scores"]: for as many real ones.

    Terms: made_up, real; row i of each sums one sample's scores.
    """

    def __init__(self, game: Game = "lsgan", weight: float = 1.0) -> None:
        super().__init__()
        self.game, self.weight = game, weight

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        made_up, real = prediction["scores"].flatten(1), target["scores"].flatten(1)
        if self.game == "lsgan":
            terms = {"made_up": (made_up**2).sum(1), "real": ((real - 1) ** 2).sum(1)}
        else:
            terms = {"made_up": made_up.sum(1), "real": -real.sum(1)}
        return LossValue(self.weight * (terms["made_up"] + terms["real"]), terms)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Float[Tensor, "B ..."],
    made_up: Float[Tensor, "B ..."],
    generator: torch.Generator | None = None,
) -> LossValue:
    """(|grad critic| - 1)^2 at a random point between each pair (Gulrajani et al., NeurIPS 2017, equation 3)."""
    shape = (len(real),) + (1,) * (real.ndim - 1)
    share = torch.rand(shape, generator=generator, dtype=real.dtype, device=real.device)
    between = (share * real + (1 - share) * made_up).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return single("gradient_penalty", (slope.flatten(1).norm(dim=1) - 1) ** 2, 1.0)


def lsgan_generator(weight: float = 1.0) -> GeneratorLoss:
    return GeneratorLoss("lsgan", weight)


def lsgan_discriminator(weight: float = 1.0) -> DiscriminatorLoss:
    return DiscriminatorLoss("lsgan", weight)


def wgan_generator(weight: float = 1.0) -> GeneratorLoss:
    return GeneratorLoss("wgan", weight)


def wgan_discriminator(weight: float = 1.0) -> DiscriminatorLoss:
    return DiscriminatorLoss("wgan", weight)
