"""Where the body stands, with its pose and shape held: the first stage of a fit (thesis 3.3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.geometry.alignment import similarity_alignment
from recon_core.geometry.cameras import estimate_translation
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_std.fitters.evidence import Evidence, Joints2D, Points3D, ScanPoints
from recon_std.fitters.kinematics import pose
from recon_std.fitters.levenberg_marquardt import minimise
from recon_std.fitters.objective import Objective
from recon_std.fitters.variables import Variables, where


def place(evidence: Sequence[Evidence], start: Variables, iterations: int, headings: int) -> Variables:
    """Turn and move the held body onto the evidence, from `headings` directions spread around its vertical axis."""
    if iterations == 0:
        return start
    N = len(start.betas)
    trusted = [e.for_camera() for e in evidence]
    angle = torch.arange(headings).to(start.betas) * (2 * torch.pi / headings)
    turn = axis_angle_to_matrix(torch.stack([0 * angle, angle, 0 * angle], -1))
    index = torch.arange(N, device=start.betas.device).repeat_interleave(headings)
    many = start[index]
    many = Variables(many.angles, many.betas, many.root @ turn.repeat(N, 1, 1)[:, None], many.translation)
    several = Objective(trusted).rows(index)
    many = _moved_close(several.evidence, many)
    found = minimise(several.holding(many), many, iterations, 1e-3, 1e-2)
    best = found.energy.unflatten(0, (N, headings)).argmin(1) + torch.arange(N, device=index.device) * headings
    return found.variables[best]


def _moved_close(evidence, v):
    """Translations solved in closed form, kept where they explain the evidence better."""
    objective = Objective(evidence).holding(v)
    for e, levers in zip(evidence, objective.held[1], strict=True):
        if isinstance(e, Joints2D) and not e.orthographic and v.root.shape[1] == e.target.shape[1]:
            N, V = v.root.shape[:2]
            joints = e.R @ v.points(levers[:, 0], e.basis.mass, e.basis.root_joint(v.betas))+ e.t[...,None]
            K = torch.zeros(N, V, 3, 3).to(e.R); K[:, :, :2, :2] = e.intrinsics; K[:,:,2,2]=1
            f = lambda x: x.flatten(0, 1)
            shift = estimate_translation(f(joints).mT, f(e.target).mT, f(e.confidence), f(K)).unflatten(0, (N, V))
            moved = Variables(v.angles, v.betas, v.root, v.translation + (e.R.mT@shift[...,None])[...,0])
            a, b = objective.evaluate(v).energy, objective.evaluate(moved).energy
            v = where(b < a, moved, v)
    return v
