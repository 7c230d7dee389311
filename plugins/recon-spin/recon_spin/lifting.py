"""People of whom only the joints are drawn: what teaches a regressor to read joints that it has found in a picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recon_std.synthetic.keypoints import KeypointSampler, framing_camera

MARGIN = (1.0, 1.65)
"""Side of the crop over the longer side of the joints' box: what the augmented crops of photos have."""
SHIFT = 0.1
"""Largest offset of the box from the crop's middle, in sides of the box."""
NOISE = (0.003, 0.06)
"""Standard deviation of a person's joints in sides of the crop, log-uniform: from those of an easy picture to those
of one in which little is found."""


def people_in_crops(sampler: KeypointSampler, count: int, size: int, generator: torch.Generator) -> dict[str, Any]:
    """The fields of a batch of `count` people in crops `size` pixels wide, but for an image.

    Besides them "points", (B, 14, 2), the joints of lsp14 as they may be found, in sides of the crop.
    """
    body = sampler.bodies(count, generator)
    joints = sampler.body.keypoints(body, "lsp14")

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    camera = framing_camera(joints, size, margin=uniform(*MARGIN), offset=uniform(-SHIFT, SHIFT, 2))
    points = camera.project(joints)
    noise = torch.exp(uniform(*(torch.tensor(NOISE).log().tolist()), 1, 1))
    return {
        "K": camera.K,
        "keypoints2d": points,
        "keypoints2d_confidence": torch.ones_like(points[..., 0]),
        "pose": body.pose,
        "betas": body.betas,
        "translation": body.translation,
        "has_pose": torch.ones(count),
        "to_crop": torch.eye(3)[:2].expand(count, 2, 3),
        "roll": torch.zeros(count),
        "flipped": torch.zeros(count),
        "points": points / size + noise * torch.randn(points.shape, generator=generator),
    }
