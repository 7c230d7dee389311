"""Coarse features: one affine map for each part of the body (equations 2 to 4)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_acap.features.arrays import Array, accepts_arrays
from recon_acap.features.logarithm import to_features
from recon_core.errors import InputError

FLAT = 1e-6
"""A part whose smallest principal spread is below this share of its largest has no affine map of its own."""


@accepts_arrays
def part_features(
    vertices: Float[Array, "B V 3"],
    features: Float[Array, "B V 9"],
    reference: Float[Array, "V 3"],
    part: Int[Array, " V"],
) -> Float[Array, "B K 9"]:
    """The nine numbers of each of K parts: axis-angle and stretch of its best affine map, unweighted (equation 2).

    vertices: posed meshes. features: theirs (`AcapCodec.extract`); of the axis-angles of a part's rotation the one
    nearest to the mean of its vertices' is taken (equations 3 and 4). reference: the reference mesh. part: each
    vertex's part, 0 to K - 1. Differentiable in `vertices`.

    Raises InputError when counts differ, or a part has too few vertices, or all in one plane.
    """
    if not vertices.shape[1] == features.shape[1] == len(reference) == len(part):
        raise InputError(
            f"part features: {vertices.shape[1]} vertices, {features.shape[1]} features, a reference mesh of "
            f"{len(reference)} and parts of {len(part)}; all must be of one connectivity"
        )
    count = int(part.max()) + 1
    member = torch.nn.functional.one_hot(part.long(), count).to(vertices)
    mean = (member / member.sum(0).clamp(min=1)).T
    q = reference.to(vertices)
    from_middle = q - (mean @ q)[part]
    spread = torch.einsum("vk,va,vb->kab", member, from_middle, from_middle)
    size = torch.linalg.eigvalsh(spread)
    flat = ~(size[:, 0] > FLAT * size[:, 2])
    if flat.any():
        raise InputError(f"part {int(flat.nonzero()[0])}: its vertices lie in a plane or are too few; merge it")
    moved = torch.einsum("vk,nva,vb->nkab", member, vertices - (mean @ vertices)[:, part], from_middle)
    goal = mean @ features[..., :3].detach().to(vertices)

    def nearest(angle: Float[Tensor, "B K"], axis: Float[Tensor, "B K 3"]) -> Float[Tensor, "B K 3"]:
        without = (axis == 0).all(-1, keepdim=True)
        axis = torch.where(without, torch.nn.functional.normalize(goal, dim=-1), axis)
        turns = (((axis * goal).sum(-1) - angle) / (2 * math.pi)).round()
        return axis * (angle + 2 * math.pi * turns)[..., None]

    return to_features(moved @ torch.linalg.inv(spread), nearest)
