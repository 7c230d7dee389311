"""Damped Newton steps over a batch of independent problems, each with its own damping and its own end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon_std.fitters.objective import Quadratic
from recon_std.fitters.variables import where, with_rows

FIRST, SMALLEST, LARGEST = 0.1, 1e-7, 1e7
"""lambda at the start, and its bounds; a row that reaches the upper one cannot be improved in this precision."""

SETTLED = 0.1
"""A step that lowers the energy by at most this part lets the next one use the kinematic second-order term. Earlier
the term is mostly indefinite, and Gauss-Newton the better guide (`make bench-fit`, steps)."""


@dataclass(frozen=True)
class Minimum:
    """variables, of the kind they started as; energy (N,); iterations (N,), the steps tried; converged (N,)."""

    variables: Any
    energy: Float[Tensor, " N"]
    iterations: Int[Tensor, " N"]
    converged: Bool[Tensor, " N"]

    def improved(self, rows: Int[Tensor, " M"], later: Minimum) -> Minimum:
        """With some rows taken from a later minimum of just these, where that is no higher; their iterations add up."""
        lower = later.energy <= self.energy[rows]
        taken, iterations = rows[lower], self.iterations.index_add(0, rows, later.iterations)
        return Minimum(
            with_rows(self.variables, taken, later.variables[lower]),
            self.energy.index_copy(0, taken, later.energy[lower]),
            iterations,
            self.converged.index_copy(0, taken, later.converged[lower]),
        )


def minimise(objective: Any, start: Any, iterations: int, tolerance: float, second_order: bool = False) -> Minimum:
    """Levenberg-Marquardt (Nocedal & Wright, Numerical Optimization, 2006, 10.3).

    A step solves (D + P + lambda (P + F)) step = -gradient, D and P the curvature of data and priors: P knows which
    joints are stiff and which move together, F damps what no prior curves. A step
    is kept where the energy falls; lambda follows the ratio of the fall to the one promised (Nielsen 1999). A row has
    converged when a step promised to lower the energy by at most `tolerance` of it, and a kept one did no more: a step
    that went too far and fell short of its promise is no sign of a minimum.
    Rows that have ended leave the batch, so the price of an iteration falls with the number of rows still moving.

    objective: an `Objective`, or anything with its matched, rematches, rows, evaluate and linearize; start: a dataclass
    of tensors with a row a problem (`Batched`) and `moved(step)`. second_order: whether rows that have settled use the
    kinematic second-order term: fewer steps, each a sixth dearer.
    """
    objective = objective.matched(start)
    at = objective.evaluate(start)
    variables, energy = start, at.energy
    model = objective.linearize(at, torch.zeros_like(energy, dtype=torch.bool))
    rows = torch.arange(len(energy), device=energy.device)
    lam = torch.full_like(energy, FIRST)
    found = Minimum(start, energy.clone(), torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool))
    for count in range(1, iterations + 1):
        step, promised = _step(model, lam)
        tried = variables.moved(step)
        at = objective.evaluate(tried)
        fall = energy - at.energy
        better = fall > 0
        lam = torch.where(better, lam * (1 - (2 * fall / promised - 1) ** 3).clamp(0.1, 2), lam * 8)
        ended = (torch.fmax(fall, promised) <= tolerance * energy.abs()) | (lam >= LARGEST)
        lam = lam.clamp(SMALLEST, LARGEST)
        if all_better := bool(better.all()):
            variables, energy = tried, at.energy
        else:
            variables, energy = where(better, tried, variables), torch.where(better, at.energy, energy)
        found.iterations[rows] += 1
        left = (~ended).nonzero()[:, 0]
        if len(left) < len(rows) or count == iterations:
            found = _record(found, rows, variables, energy, ended)
        if not len(left) or count == iterations:
            break
        settled = better & (fall <= SETTLED * energy) if second_order else torch.zeros_like(better)
        refused = left[:0] if all_better else (~better[left]).nonzero()[:, 0]
        kept = model[left[refused]] if len(refused) else None
        if objective.rematches:
            objective = objective.rows(left).matched(variables[left])
            at = objective.evaluate(variables[left])
            model = objective.linearize(at, settled[left])
            energy = energy.index_copy(0, left, at.energy)
        else:
            objective, model = _of_rows(left, objective, at, settled)
            if kept is not None:
                model = model.replaced(refused, kept)
        if len(left) < len(rows):
            variables, lam, rows, energy = variables[left], lam[left], rows[left], energy[left]
    return found


def _of_rows(left: Int[Tensor, " M"], objective: Any, at: Any, settled: Bool[Tensor, " N"]) -> tuple[Any, Quadratic]:
    """The objective of some rows and its linearization. Rows that have ended are not linearized where the evaluation
    can be cut to the others (`rows`)."""
    if len(left) == len(settled):
        return objective, objective.linearize(at, settled)
    some = objective.rows(left)
    if hasattr(at, "rows"):
        return some, some.linearize(at.rows(left), settled[left])
    return some, objective.linearize(at, settled)[left]


def _step(model: Quadratic, lam: Float[Tensor, " N"]) -> tuple[Float[Tensor, "N P"], Float[Tensor, " N"]]:
    """The damped step and the fall that the model promises for it. Where the damped curvature is not positive
    definite there is no step, and an infinite promise: the row is damped more and tried again."""
    damped = torch.addcmul(model.data, model.prior, 1 + lam[:, None, None])
    damped.diagonal(dim1=-2, dim2=-1).addcmul_(model.floor, lam[:, None])
    solution, failed = solve_positive(damped, model.gradient[..., None])
    step = -solution[..., 0]
    step = step.masked_fill(failed[:, None] > 0, 0.0)
    stretch = (step * ((model.prior @ step[..., None])[..., 0] + model.floor * step)).sum(1)
    promised = 0.5 * (lam * stretch - (model.gradient * step).sum(1))
    return step, promised.masked_fill(failed > 0, torch.inf)


def solve_positive(
    A: Float[Tensor, "N P P"], b: Float[Tensor, "N P 1"]
) -> tuple[Float[Tensor, "N P 1"], Int[Tensor, " N"]]:
    """A^-1 b of symmetric positive definite matrices, and where they are not (non-zero; the solution is then void).

    Cholesky in two blocks. The batched factorisation runs matrix by matrix, at a cost that grows faster than the work
    in this range of sizes: two of 43 and the products between them take two thirds of the time of one of 85.
    """
    half = A.shape[1] // 2
    top, bottom = slice(None, half), slice(half, None)
    L, failed = torch.linalg.cholesky_ex(A[:, top, top])
    across = torch.linalg.solve_triangular(L, torch.cat([A[:, top, bottom], b[:, top]], 2), upper=False)
    V, y = across[..., :-1], across[..., -1:]
    rest, also_failed = torch.linalg.cholesky_ex(torch.baddbmm(A[:, bottom, bottom], V.mT, V, alpha=-1))
    x_bottom = torch.cholesky_solve(torch.baddbmm(b[:, bottom], V.mT, y, alpha=-1), rest)
    x_top = torch.linalg.solve_triangular(L.mT, torch.baddbmm(y, V, x_bottom, alpha=-1), upper=True)
    return torch.cat([x_top, x_bottom], 1), failed | also_failed


def _record(found: Minimum, rows: Tensor, at: Any, energy: Tensor, ended: Tensor) -> Minimum:
    """`found` with the present state of `rows`."""
    converged = found.converged.index_copy(0, rows, ended)
    variables = with_rows(found.variables, rows, at)
    return Minimum(variables, found.energy.index_copy(0, rows, energy), found.iterations, converged)
