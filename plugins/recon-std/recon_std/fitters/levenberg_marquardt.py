"""Damped Newton steps over a batch of independent problems, each with its own damping and its own end."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon_std.fitters.objective import Objective, Quadratic
from recon_std.fitters.variables import Variables, where

SMALLEST, LARGEST = 1e-7, 1e7
"""Bounds of lambda; a row whose lambda reaches the upper one cannot be improved in this precision."""


@dataclass(frozen=True)
class Minimum:
    """variables; energy (N,); iterations (N,), the steps tried; converged (N,)."""

    variables: Variables
    energy: Float[Tensor, " N"]
    iterations: Int[Tensor, " N"]
    converged: Bool[Tensor, " N"]


def minimise(
    objective: Objective, start: Variables, iterations: int, tolerance: float, damping: float
) -> Minimum:
    """Levenberg-Marquardt (Nocedal & Wright, Numerical Optimization, 2006, 10.3).

    A step solves (H + lambda D) step = -g, D the objective's metric, and is kept where the energy falls; lambda,
    `damping` at first, follows the ratio of the fall to the one predicted (Nielsen 1999). A row has converged when
    a kept step lowers the energy, or a refused one promised to lower it, by at most `tolerance` of it. Rows that
    have ended leave the batch, so the price of an iteration falls with the number of rows still moving.
    """
    objective = objective.matched(start)
    at = objective.evaluate(start)
    model = objective.linearize(at)
    variables, energy = start, at.energy
    rows = torch.arange(len(energy), device=energy.device)
    lam = torch.full_like(energy, damping)
    found = Minimum(start, energy.clone(), torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool))
    for _ in range(iterations):
        step, promised = _step(model, lam)
        tried = variables.moved(step)
        at = objective.evaluate(tried)
        fall = energy - at.energy
        better = fall > 0
        lam = torch.where(better, lam * (1 - (2 * fall / promised - 1) ** 3).clamp(0.1, 2), lam * 8)
        done = torch.where(better, fall, promised) <= tolerance * energy.abs()
        done |= lam >= LARGEST
        lam = lam.clamp(SMALLEST, LARGEST)
        variables, energy = where(better, tried, variables), torch.where(better, at.energy, energy)
        found.iterations[rows] += 1
        left = (~done).nonzero()[:, 0]
        if len(left) < len(rows):
            found = _record(found, rows, variables, energy, done)
        if not len(left):
            return found
        if objective.rematches:
            objective = objective.matched(variables)
            at = objective.evaluate(variables)
            energy, model = at.energy, objective.linearize(at)
        else:
            kept, model = model, objective.linearize(at)
            refused = (~better).nonzero()[:, 0]
            if len(refused):
                for new, old in zip(model.parts, kept.parts, strict=True):
                    new[refused] = old[refused]
        if len(left) < len(rows):
            objective, model, variables = objective.rows(left), model[left], variables[left]
            energy, lam, rows = energy[left], lam[left], rows[left]
    return _record(found, rows, variables, energy, torch.zeros_like(rows, dtype=torch.bool))


def _step(model: Quadratic, lam: Float[Tensor, " N"]) -> tuple[Float[Tensor, "N P"], Float[Tensor, " N"]]:
    """The damped step and the fall that the model promises for it; no step where the damped curvature is not
    positive definite, and then an infinite promise: the row is damped more and tried again."""
    factor, failed = torch.linalg.cholesky_ex(model.curvature + lam[:, None, None] * model.metric)
    g = model.gradient
    step = -torch.cholesky_solve(g[..., None], factor)[..., 0]
    step = torch.where(failed[:, None] > 0, torch.zeros_like(step), step)
    stretch = (step * (model.metric @ step[..., None])[..., 0]).sum(1)
    promised = 0.5 * (lam * stretch - (g * step).sum(1))
    return step, torch.where(failed > 0, torch.full_like(promised, torch.inf), promised)


def _record(
    found: Minimum, rows: Tensor, variables: Variables, energy: Tensor, converged: Tensor
) -> Minimum:
    """`found` with the present state of `rows`."""
    place = lambda all_, some: all_.index_copy(0, rows, some)  # noqa: E731
    was = found.variables
    names = (f.name for f in dataclasses.fields(was))
    changed = {n: place(getattr(was, n), getattr(variables, n)) for n in names}
    return Minimum(
        dataclasses.replace(was, **changed),
        place(found.energy, energy),
        found.iterations,
        place(found.converged, converged),
    )
