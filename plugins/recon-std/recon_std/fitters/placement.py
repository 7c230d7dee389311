"""Where the body stands, with its pose and shape held: the first stage of a fit (thesis 3.3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.geometry.alignment import similarity_alignment
from recon_core.geometry.cameras import estimate_translation
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_std.fitters.evidence import Evidence, Points3D, ScanPoints
from recon_std.fitters.fused import minimise
from recon_std.fitters.objective import Objective
from recon_std.fitters.variables import Variables, where

TOLERANCE = 1e-3


def place(evidence: Sequence[Evidence], start: Variables, iterations: int, headings: int) -> Variables:
    """Turn and move the held body onto the evidence; 0 iterations keep it where it is.

    Of `headings` directions spread around the body's vertical axis, beginning with its own, the one that ends with
    the lowest energy is taken. In pictures the torso counts (`Joints2D.for_camera`).
    """
    if iterations == 0:
        return start
    trusted = Objective([e.for_camera() for e in evidence])
    index = torch.arange(len(start.betas), device=start.betas.device).repeat_interleave(headings)
    turned = _turned(start[index], headings)
    objective = trusted.rows(index).holding(turned)
    for i in range(len(evidence)):
        turned = _nearer(objective, turned, _closed_form(objective, i, turned))
    found = minimise(objective, turned, iterations, TOLERANCE)
    best = found.energy.unflatten(0, (-1, headings)).argmin(1)
    return found.variables[best + torch.arange(len(best), device=best.device) * headings]


def _turned(many: Variables, headings: int) -> Variables:
    """Consecutive rows turned by equal parts of a full turn about the body's own vertical axis."""
    angle = torch.arange(headings).to(many.betas) * (2 * torch.pi / headings)
    about_y = axis_angle_to_matrix(torch.stack([torch.zeros_like(angle), angle, torch.zeros_like(angle)], -1))
    turn = about_y.repeat(len(many.betas) // headings, 1, 1)
    return Variables(many.angles, many.betas, many.root @ turn[:, None], many.translation)


def _nearer(objective: Objective, a: Variables, b: Variables | None) -> Variables:
    """Row by row the one of lower energy; b where a is not a number."""
    if b is None:
        return a
    energy_a = objective.matched(a).evaluate(a).energy
    energy_b = objective.matched(b).evaluate(b).energy
    return where(energy_b <= energy_a, b, a)


def _closed_form(objective: Objective, i: int, v: Variables) -> Variables | None:
    """Where one kind of evidence alone would put the held body, without iterating; None where it cannot say."""
    assert objective.held is not None
    e, relative = objective.evidence[i], objective.held[1][i][:, 0]
    points = v.points(relative, e.basis.mass, e.basis.root_joint(v.betas))
    N, V = v.root.shape[:2]
    if isinstance(e, ScanPoints):
        # Without correspondences only the centres can be matched.
        shift = e.points.mean(1) - points[:, 0].mean(-1)
        return Variables(v.angles, v.betas, v.root, v.translation + shift[:, None])
    if isinstance(e, Points3D):
        target, confidence = _per_place(e.target, V), _per_place(e.confidence[:, :, None], V)[:, 0]
        own = points.expand(N, V, 3, points.shape[-1])
        own = own if e.target.shape[1] == V else own.repeat(1, 1, 1, e.target.shape[1])
        motion = similarity_alignment(
            own.flatten(0, 1).transpose(1, 2), target.transpose(1, 2), confidence, with_scale=False
        )
        R, t = motion.R.unflatten(0, (N, V)), motion.t.unflatten(0, (N, V))
        pelvis = v.translation + e.basis.root_joint(v.betas)[:, None]
        moved = (R @ pelvis[..., None])[..., 0] + t
        return Variables(v.angles, v.betas, R @ v.root, moved - e.basis.root_joint(v.betas)[:, None])
    if e.orthographic or e.target.shape[1] != V:
        return None
    K = e.intrinsics.new_zeros(N, V, 3, 3)
    K[..., :2, :2], K[..., 2, 2] = e.intrinsics, 1
    seen = e.R @ points + e.t[..., None]
    arguments = (seen.transpose(-1, -2), e.target.transpose(-1, -2), e.confidence, K)
    shift = estimate_translation(*(x.flatten(0, 1) for x in arguments)).unflatten(0, (N, V))
    turned_back = (e.R.transpose(-1, -2) @ shift[..., None])[..., 0]
    return Variables(v.angles, v.betas, v.root, v.translation + turned_back)


def _per_place(values: Tensor, places: int) -> Tensor:
    """(N, V, c, K) as (N G, c, V/G K): views that share a place side by side."""
    N, V, c = values.shape[:3]
    return values.unflatten(1, (places, V // places)).permute(0, 1, 3, 2, 4).reshape(N * places, c, -1)
