"""Draws of ProHMR's distribution as bodies."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.structures import BodyParameters, Samples
from recon_prohmr.flow import ConditionalGlow
from recon_prohmr.network import pose_from_6d, turned


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
