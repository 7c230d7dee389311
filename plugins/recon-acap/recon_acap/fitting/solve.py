"""Minimising a latent objective: damped Gauss-Newton, and Adam as the paper does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon_acap.fitting.objective import LatentObjective, reprojection
from recon_acap.fitting.variables import LatentVariables
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.structures import Batched, FitReport
from recon_std.fitters.levenberg_marquardt import minimise

Optimizer = Literal["gauss-newton", "adam"]


@dataclass(frozen=True)
class LatentFit(Batched):
    """B fitted bodies, a row a frame.

    shape: (B, S) and pose: (B, P), codes. root: (B, 3, 3) and translation: (B, 3): from the model's frame into the
    evidence's, metres. vertices: (B, V, 3) metres in the evidence's frame. report: how the fit went.
    """

    shape: Float[Tensor, "B S"]
    pose: Float[Tensor, "B P"]
    root: Float[Tensor, "B 3 3"]
    translation: Float[Tensor, "B 3"]
    vertices: Float[Tensor, "B V 3"]
    report: FitReport


@dataclass(frozen=True)
class Progress:
    """Where a minimisation ended: variables; iterations (N,) and converged (N,)."""

    variables: LatentVariables
    iterations: Int[Tensor, " N"]
    converged: Bool[Tensor, " N"]


def gauss_newton(
    objective: LatentObjective, start: LatentVariables, iterations: int, tolerance: float = 1e-4
) -> Progress:
    """Levenberg-Marquardt over codes and places; scans are matched anew at each step."""
    found = minimise(objective, start, iterations, tolerance)
    return Progress(found.variables, found.iterations, found.converged)


def adam(objective: LatentObjective, start: LatentVariables, iterations: int = 200, rate: float = 0.05) -> Progress:
    """Adam over codes and places (section 7), the rate falling to a hundredth along a cosine.

    Scans are matched anew at each iteration. It has no test of convergence.
    """
    moved = [start.shape, start.pose, torch.zeros_like(start.translation), start.translation]
    unknown = [value.detach().clone().requires_grad_() for value in moved]
    fixed = [unknown[0]] * objective.shape_held + unknown[:2] * objective.held
    free = [value for value in unknown if not any(value is f for f in fixed)]
    optimizer = torch.optim.Adam(free, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, rate / 100)

    def variables() -> LatentVariables:
        shape, pose, turn, translation = unknown
        return LatentVariables(shape, pose, start.root @ axis_angle_to_matrix(turn), translation)

    with torch.enable_grad():
        for _ in range(iterations):
            optimizer.zero_grad()
            at = variables()
            objective.matched(at.detach()).evaluate(at).energy.sum().backward()
            optimizer.step()
            schedule.step()
    count = torch.full((len(start.shape),), iterations)
    return Progress(variables().detach(), count, torch.zeros(len(start.shape), dtype=torch.bool))


def best_of(
    objective: LatentObjective, starts: LatentVariables, count: int, iterations: int, tolerance: float = 1e-3
) -> LatentVariables:
    """The best of `count` starts a subject (rows: subject by subject) after some steps from each."""
    rows = torch.arange(len(starts.shape) // count).repeat_interleave(count)
    several = objective.rows(rows)
    found = minimise(several, starts, iterations, tolerance).variables
    energy = several.matched(found).evaluate(found).energy.unflatten(0, (-1, count))
    return found[torch.arange(len(energy)) * count + energy.argmin(1)]


def finished(objective: LatentObjective, start: LatentVariables, found: Progress) -> LatentFit:
    """The result and its report. A fit has diverged when its energy is higher than at the start, or not finite; it
    then returns the start."""
    before = objective.matched(start).evaluate(start)
    after = objective.matched(found.variables).evaluate(found.variables)
    lost = ~torch.isfinite(after.energy) | (after.energy > before.energy)
    pick = lambda new, old: torch.where(lost.reshape(-1, *[1] * (new.dim() - 1)), old, new)  # noqa: E731
    v = LatentVariables(
        *(pick(getattr(found.variables, n), getattr(start, n)) for n in ("shape", "pose", "root", "translation"))
    )
    spread = lambda x: x[:, None].expand(-1, v.frames).flatten()  # noqa: E731
    converged = found.converged & ~lost
    report = FitReport(
        initial_energy=spread(before.energy),
        energy=spread(pick(after.energy, before.energy)),
        iterations=spread(found.iterations),
        converged=spread(converged),
        reprojection_px=reprojection(objective, v),
        reason=spread(torch.where(lost, 2, torch.where(converged, 0, 1))),
        terms={name: spread(pick(after.terms[name], before.terms[name])) for name in after.terms},
    )
    shape, pose = v.codes()
    vertices = v.placed(objective.generator.vertices(shape, pose))
    return LatentFit(shape, pose, v.root.flatten(0, 1), v.translation.flatten(0, 1), vertices, report)
