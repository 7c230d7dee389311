"""Draws of ProHMR's distribution as bodies, and few that stand for many (thesis, table 12 and section 4.6.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.interfaces import BodyModel
from recon_core.structures import BodyParameters, Samples
from recon_prohmr.flow import ConditionalGlow
from recon_prohmr.network import pose_from_6d, turned

if TYPE_CHECKING:
    from recon_prohmr.method import ProHMRConfig


def draw(
    flow: ConditionalGlow,
    context: Float[Tensor, "B C"],
    rotation: Float[Tensor, "B 3 3"],
    body: BodyParameters,
    count: int,
    seed: int,
) -> Samples:
    """`count` poses each, in the picture's camera frame. rotation: from there to the frame of the flow.

    Every subject has the same latents, so that its samples do not depend on who else is in the picture. Shape and
    place are point estimates: every sample has those of `body` (thesis, section 4.3.3).
    """
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(1, count, flow.dims, generator=generator).to(context).expand(len(context), -1, -1)
    pose = pose_from_6d(flow.decode(z, context))
    back = rotation.transpose(-1, -2)[:, None].expand(-1, count, -1, -1)
    spread = lambda value: value[:, None].expand(-1, count, -1)  # noqa: E731
    return Samples(turned(pose, back), spread(body.betas), spread(body.translation), flow.latent_log_prob(z, context))


def samples_as_set(
    config: ProHMRConfig,
    body_model: BodyModel | None,
    flow: ConditionalGlow,
    context: Float[Tensor, "B C"],
    rotation: Float[Tensor, "B 3 3"],
    body: BodyParameters,
) -> Samples | None:
    """The samples that the settings ask for: none, draws, or those that stand for more draws."""
    if not config.samples:
        return None
    samples = draw(flow, context, rotation, body, config.quantised_from or config.samples, config.seed)
    if config.quantised_from is None:
        return samples
    if body_model is None:
        raise UsageError("prohmr.quantised_from compares bodies: it needs a body model")
    return representatives(samples, body_model, config.samples)


def representatives(samples: Samples, body_model: BodyModel, count: int) -> Samples:
    """`count` of the samples of each subject that stand for all of them: k-means over the places of the smpl24 joints
    relative to the pelvis, and of each cluster the sample nearest to its mean, so that each is a draw with its density.

    The thesis quantises 4096 draws so, after Biggs et al. (NeurIPS 2020, section 3.3). Likelier clusters come first.
    """
    rows, drawn = samples.pose.shape[:2]
    joints = body_model.keypoints(samples.flat(), "smpl24").unflatten(0, (rows, drawn))
    chosen = quantise((joints - joints[:, :, :1]).flatten(2), count)
    index = torch.arange(rows, device=chosen.device)[:, None]
    return Samples(
        samples.pose[index, chosen],
        samples.betas[index, chosen],
        samples.translation[index, chosen],
        samples.log_prob[index, chosen],
    )


def quantise(points: Float[Tensor, "B M D"], count: int, iterations: int = 20) -> Int[Tensor, "B count"]:
    """The points nearest to the means of `count` clusters, the largest cluster first (Lloyd's k-means).

    Means start at the first points, which of random draws are as good as any; an empty cluster keeps its mean.
    """
    rows = torch.arange(len(points), device=points.device)[:, None]
    means = points[:, :count]
    for _ in range(iterations):
        nearest = torch.cdist(points, means).argmin(-1)
        member = torch.nn.functional.one_hot(nearest, count).to(points)
        size = member.sum(1)
        fresh = (member.transpose(1, 2) @ points) / size.clamp_min(1)[..., None]
        means = torch.where(size[..., None] > 0, fresh, means)
    distance = torch.cdist(points, means)
    size = torch.nn.functional.one_hot(distance.argmin(-1), count).sum(1)
    return distance.argmin(1)[rows, size.argsort(dim=1, descending=True, stable=True)]
