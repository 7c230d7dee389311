"""Trains the shipped priors from motion capture and writes their model card: `python -m recon_std.priors.train`.

    python -m recon_std.priors.train --data DIR [--output DIR] [--seed 0] [--steps 4000]

DIR holds poses_train.npz and poses_val.npz (see recon_std.readers.mocap). Every figure of the card is measured by
this run. With one seed and one thread count the same files come out.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from recon_core.errors import ReconError
from recon_core.skeletons import SMPL24
from recon_std.priors.adversarial import BETAS, AdversarialPrior, PoseDiscriminator
from recon_std.priors.adversarial_training import KINDS, area_under_curve, made_up, train_discriminator
from recon_std.priors.gmm import GaussianMixturePrior
from recon_std.priors.joint_limits import JointLimitsPrior
from recon_std.priors.mixture_fitting import fit_mixture, log_component_densities, weighted_gaussian
from recon_std.priors.weights import SHIPPED
from recon_std.readers.mocap import MocapDataset, mirrored

NOISE = 0.05
"""Standard deviation in radians added to every angle: about the spread between two skeletons' retargeting."""
UNSEEN_NOISE = 0.1
"""The same for angles that the recordings never move (collars, hands, two axes of the toes)."""
UNSEEN_RANGE = 0.35
"""Range given to those, radians either way: 20 degrees, what a clavicle does."""
QUANTILE = 0.0005
"""Share of the recordings left out at each end of a joint's range."""
RESTARTS = 3
COMPONENTS = 8


def body_poses(data: Path, split: str) -> tuple[Float[Tensor, "N 69"], Float[Tensor, " N"]]:
    """Body axis-angle of a split and its mirror image, and each frame's share of the draws (sums to 1)."""
    clips = MocapDataset(data, MocapDataset.Config(split=split))
    # Every second frame: at 30 Hz a neighbour adds nothing but time.
    keep = ~clips.reset & (clips.frame % 2 == 0)
    poses, share = clips.poses[keep], clips.sampling_weights[keep]
    share = torch.cat([share, share])
    return torch.cat([poses, mirrored(poses)])[:, 1:].flatten(1), share / share.sum()


def weighted_quantiles(x: Float[Tensor, "N D"], weight: Float[Tensor, " N"], q: float) -> Float[Tensor, " D"]:
    """The q-quantile of each column under the weights."""
    ordered, order = x.sort(0)
    reached = weight[order].double().cumsum(0) >= q
    return ordered.gather(0, reached.int().argmax(0)[None])[0]


def train_mixture(x: Tensor, weight: Tensor, noise: Tensor, seed: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The best of RESTARTS mixtures by training likelihood."""
    start = time.perf_counter()
    best, best_history = None, [-torch.inf]
    for restart in range(RESTARTS):
        generator = torch.Generator().manual_seed(seed + restart)
        tensors, history = fit_mixture(x.double(), weight.double(), COMPONENTS, noise.double() ** 2, generator)
        click.echo(f"gmm restart {restart}: {len(history)} iterations, {history[-1] / 69:.4f} nats per number")
        if history[-1] > best_history[-1]:
            best, best_history = tensors, history
    assert best is not None
    figures = {"iterations": len(best_history), "seconds": time.perf_counter() - start}
    return {name: value.float().contiguous() for name, value in best.items()}, figures


def held_out(log_prob: Tensor, weight: Tensor, dims: int) -> float:
    return float(weight.double() @ log_prob.double()) / dims


def single_gaussian(x: Tensor, weight: Tensor, noise: Tensor, held: Tensor) -> Tensor:
    """Log density of `held` under one Gaussian with the same noise: the baseline."""
    mean, cholesky = weighted_gaussian(x.double(), weight.double(), noise.double() ** 2)
    return log_component_densities(held.double(), torch.zeros(1).double(), mean[None], cholesky[None])[:, 0]


def marginal(tensors: dict[str, Tensor], columns: Tensor, held: Tensor) -> Tensor:
    """Log density of some columns under the mixture."""
    covariance = tensors["covariance_cholesky"].double() @ tensors["covariance_cholesky"].double().transpose(1, 2)
    cholesky = torch.linalg.cholesky(covariance[:, columns][:, :, columns])
    means, weights = tensors["means"].double()[:, columns], tensors["log_weights"].double()
    return log_component_densities(held.double()[:, columns], weights, means, cholesky).logsumexp(1)


@torch.no_grad()
def discriminator_figures(prior: AdversarialPrior, held: Tensor, share: Tensor, jitter: Tensor, seed: int) -> list[str]:
    """Lines of the card's table: how well held-out poses are told from made-up ones."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(share, 4000, replacement=True, generator=generator)
    x = held[chosen] + jitter * torch.randn(len(chosen), 69, generator=generator)
    betas = torch.randn(len(x), BETAS, generator=generator)
    real = prior.scores(torch.cat([x, betas], 1))
    lines = []
    for kind, name in enumerate(KINDS):
        rotations, labels = made_up(x, kind, prior._base, generator)
        fake = prior.discriminator(rotations, betas)
        joint_areas = [
            area_under_curve(real[:, j], fake[labels[:, j] == 0, j]) for j in range(23) if (labels[:, j] == 0).any()
        ]
        joint = f"{sum(joint_areas) / len(joint_areas):.3f}" if joint_areas else "-"
        lines.append(f"| {name} | {area_under_curve(real[:, 24], fake[:, 24]):.3f} | {joint} |")
    return lines


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="folder with poses_<split>.npz")
@click.option("--output", type=click.Path(path_type=Path), default=SHIPPED, help="default: inside the package")
@click.option("--seed", default=0)
@click.option("--steps", default=4000, help="training steps of the adversarial prior")
def main(data: Path, output: Path, seed: int, steps: int) -> None:
    """Train gmm, joint-limits and adversarial, and write README.md beside them."""
    try:
        train(data, output, seed, steps)
    except ReconError as error:
        raise click.ClickException(str(error)) from None


def train(data: Path, output: Path, seed: int, steps: int) -> None:
    x, share = body_poses(data, "train")
    held, held_share = body_poses(data, "val")
    seen = x.std(0) > 0.005
    noise = torch.where(seen, NOISE, UNSEEN_NOISE)

    tensors, mixture_figures = train_mixture(x, share, noise, seed)
    save_file(tensors, output / "gmm.safetensors")
    mixture = GaussianMixturePrior(output / "gmm.safetensors")

    lower = torch.where(seen, weighted_quantiles(x, share, QUANTILE) - NOISE, -UNSEEN_RANGE)
    upper = torch.where(seen, weighted_quantiles(x, share, 1 - QUANTILE) + NOISE, UNSEEN_RANGE)
    save_file({"lower": lower, "upper": upper}, output / "joint_limits.safetensors")
    limits = JointLimitsPrior(output / "joint_limits.safetensors")

    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    network = PoseDiscriminator()
    for step, loss in train_discriminator(network, x, share, noise, mixture, steps, generator):
        click.echo(f"adversarial step {step}: loss {loss:.4f}")
    adversarial_seconds = time.perf_counter() - start
    # Half precision halves the file; the scores differ by less than a thousandth.
    state = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(state, output / "adversarial.safetensors")
    adversarial = AdversarialPrior(output / "adversarial.safetensors")

    columns = seen.nonzero()[:, 0]
    baseline = single_gaussian(x, share, noise, held)
    baseline_seen = single_gaussian(x[:, columns], share, noise[columns], held[:, columns])
    outside = ((held < lower) | (held > upper))[:, columns].double()
    unseen = sorted({SMPL24.joints[1 + int(c) // 3] for c in (~seen).nonzero()[:, 0]})
    card = CARD.format(
        seed=seed,
        threads=torch.get_num_threads(),
        frames=len(x) // 2,
        held_frames=len(held) // 2,
        noise=NOISE,
        unseen_noise=UNSEEN_NOISE,
        unseen=", ".join(unseen),
        seen_count=len(columns),
        restarts=RESTARTS,
        iterations=mixture_figures["iterations"],
        gmm_seconds=mixture_figures["seconds"],
        gmm_train=held_out(mixture.log_prob(x), share, 69),
        gmm_held=held_out(mixture.log_prob(held), held_share, 69),
        gmm_seen=held_out(marginal(tensors, columns, held), held_share, len(columns)),
        one_train=held_out(single_gaussian(x, share, noise, x), share, 69),
        one_held=held_out(baseline, held_share, 69),
        one_seen=held_out(baseline_seen, held_share, len(columns)),
        limits_train=held_out(limits.log_prob(x), share, 69),
        limits_held=held_out(limits.log_prob(held), held_share, 69),
        quantile=100 * QUANTILE,
        unseen_range=UNSEEN_RANGE,
        outside=100 * float(held_share.double() @ outside.mean(1)),
        steps=steps,
        adversarial_seconds=adversarial_seconds,
        rows="\n".join(discriminator_figures(adversarial, held, held_share, noise, seed)),
    )
    (output / "README.md").write_text(card)
    click.echo(card)


CARD = """\
# Priors trained on motion capture

Written by `python -m recon_std.priors.train --data DIR --seed {seed}` on {threads} CPU thread(s), with the figures
of that run.

Data: the motion capture pack in SMPL convention (CMU recordings and DeepMimic's clips), train split {frames} frames,
held-out split {held_frames} frames of other clips (not of other people). Each action counts alike and DeepMimic's
clips as three actions; every pose is used with its mirror image; the knees' standing flexion is taken out
(`recon_std.readers.mocap.straighten_knees`); every second frame is taken, frames with a joint reset are not.
Licence of the weights: Apache-2.0, like the project. The recordings are free for all uses
(mocap.cs.cmu.edu, created with funding from NSF EIA-0196217; DeepMimic: MIT); no frame can be
read back from these files.

Joints that the recordings do not move, wholly or on some axes: {unseen}.
What these priors say of them is an assumption.

## gmm (gmm.safetensors)

Eight Gaussians with full covariance on the 69 body axis-angle numbers, by expectation maximisation
(best of {restarts} starts by training likelihood, {iterations} iterations, {gmm_seconds:.0f} s for all).
To each covariance a variance is added: ({noise} rad)^2, ({unseen_noise} rad)^2 where the recordings do not move.

Weighted mean log likelihood, nats per number (higher is better):

| | train | held out | held out, the {seen_count} numbers that move |
|---|---|---|---|
| eight Gaussians | {gmm_train:.3f} | {gmm_held:.3f} | {gmm_seen:.3f} |
| one Gaussian | {one_train:.3f} | {one_held:.3f} | {one_seen:.3f} |
| joint-limits | {limits_train:.3f} | {limits_held:.3f} | |

## joint-limits (joint_limits.safetensors)

Range of each number: the recordings without {quantile} % at either end, widened by {noise} rad; {unseen_range} rad
either way where they do not move. {outside:.2f} % of the held-out numbers lie outside.

## adversarial (adversarial.safetensors)

HMR's factorised discriminator, {steps} steps of 256 real and 255 made-up bodies, {adversarial_seconds:.0f} s; stored
in half precision. Probability that a held-out real pose scores above a made-up one (area under the ROC curve):

| made up | whole pose's score | mean of the joints' scores |
|---|---|---|
{rows}

Not a normalised density: it has no likelihood to compare. The betas' score was trained on standard normal betas
against wider ones.
"""


if __name__ == "__main__":
    main()
