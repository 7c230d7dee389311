"""Trains PoseDiscriminator against made-up bodies of five kinds.

HMR's discriminator learns against its regressor's output; a prior that ships alone has no regressor, so its
opponents are made: what an untrained or lazy regressor gives. Each of the 25 scores is told by itself whether what
it sees was made up: a joint put in from another pose is real to that joint's score and not to the whole pose's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.geometry.rotations import axis_angle_to_matrix, quaternion_to_matrix
from recon_std.priors.adversarial import BETAS, JOINTS, PoseDiscriminator
from recon_std.priors.gmm import GaussianMixturePrior

KINDS = ("all joints noisy", "some joints noisy", "joints of different poses", "uniform rotations", "drawn from gmm")


def made_up(
    real: Float[Tensor, "B 69"], kind: int, mixture: GaussianMixturePrior, generator: torch.Generator
) -> tuple[Float[Tensor, "B 23 3 3"], Float[Tensor, "B 24"]]:
    """Rotations of KINDS[kind] made from real poses, and what the joints' and the whole pose's scores should be.

    A label of NaN means that the score is not trained on this kind.
    """
    count = len(real)
    joints = real.reshape(count, JOINTS, 3)
    uniform = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    labels = torch.zeros(count, JOINTS + 1)
    rotations = axis_angle_to_matrix(joints)
    if kind in (0, 1):
        angle = 0.15 * (10 ** uniform(count, 1, 1))  # 0.15 to 1.5 rad
        noise = axis_angle_to_matrix(angle * normal(count, JOINTS, 3))
        touched = torch.ones(count, JOINTS, dtype=torch.bool)
        if kind == 1:
            touched = uniform(count, JOINTS) < 0.2
            touched[torch.arange(count), torch.randint(JOINTS, (count,), generator=generator)] = True
        labels[:, :JOINTS] = (~touched).float()
        rotations = torch.where(touched[..., None, None], rotations @ noise, rotations)
    elif kind == 2:
        row = torch.randint(count, (count, JOINTS), generator=generator)
        rotations = rotations[row, torch.arange(JOINTS)]
        labels[:, :JOINTS] = 1
    elif kind == 3:
        rotations = quaternion_to_matrix(normal(count, JOINTS, 4))
    else:
        rotations = axis_angle_to_matrix(mixture.sample(count, generator=generator)[0].reshape(count, JOINTS, 3))
        labels[:, :JOINTS] = torch.nan
    return rotations, labels


def train_discriminator(
    network: PoseDiscriminator,
    poses: Float[Tensor, "N 69"],
    weight: Float[Tensor, " N"],
    jitter: Float[Tensor, "69"],
    mixture: GaussianMixturePrior,
    steps: int,
    generator: torch.Generator,
    batch: int = 256,
) -> Iterator[tuple[int, float]]:
    """Least-squares GAN training of the discriminator alone, from new weights: yields (step, loss) every 500 steps.

    jitter: standard deviation added to real poses, so that the exact zeros and the float16 steps of the recordings
    give nothing away. Betas: real are standard normal, made-up ones are 1.5 to 4 times as wide.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            fan = parameter.shape[1:].numel() if parameter.ndim > 1 else 1
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / fan) ** 0.5)
            else:
                parameter.zero_()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-5)
    each = batch // len(KINDS)
    for step in range(1, steps + 1):
        chosen = torch.multinomial(weight, batch + each * len(KINDS), replacement=True, generator=generator)
        x = poses[chosen] + jitter * torch.randn(len(chosen), 69, generator=generator)
        fakes = [
            made_up(x[batch + k * each : batch + (k + 1) * each], k, mixture, generator) for k in range(len(KINDS))
        ]
        rotations = torch.cat([axis_angle_to_matrix(x[:batch].reshape(batch, JOINTS, 3)), *[r for r, _ in fakes]])
        betas = torch.randn(len(rotations), BETAS, generator=generator)
        betas[batch:] *= 1.5 + 2.5 * torch.rand(len(betas) - batch, 1, generator=generator)
        labels = torch.cat([torch.ones(batch, JOINTS + 1), *[label for _, label in fakes]])
        shape_label = (torch.arange(len(rotations)) < batch).float()[:, None]
        target = torch.cat([labels[:, :JOINTS], shape_label, labels[:, JOINTS:]], 1)
        known = ~target.isnan()
        # Real and made-up halves weigh alike for every score.
        balance = torch.where(
            torch.nan_to_num(target) > 0.5, 1 / (target == 1).sum(0), 1 / (target == 0).sum(0).clamp(min=1)
        )
        error = torch.where(known, network(rotations, betas) - torch.nan_to_num(target), torch.zeros(()))
        loss = (balance * error**2).sum() / target.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == steps:
            yield step, float(loss.detach())


def area_under_curve(real: Float[Tensor, " N"], fake: Float[Tensor, " M"]) -> float:
    """Probability that a real score exceeds a made-up one (area under the ROC curve)."""
    scores = torch.cat([real, fake])
    ranks = scores.argsort().argsort().double() + 1
    n, m = len(real), len(fake)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
