"""Several initial poses, for evidence that one start would leave in a local minimum."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon_core.errors import UsageError
from recon_std.fitters.curvature import PriorTerm
from recon_std.fitters.evidence import ScanPoints
from recon_std.fitters.fused import minimise
from recon_std.fitters.levenberg_marquardt import Minimum
from recon_std.fitters.objective import Objective
from recon_std.fitters.variables import Variables, with_rows

PLACE_STEPS, PLACE_TOLERANCE, STEPS = 5, 1e-2, 4

UNEXPLAINED = 1.2
"""A fit is poor if more than a quarter of its points are further off than this many times their noise. Outliers of a
detector are fewer; a limb in the wrong place is more. Chosen on training poses, of which one in six to three is one."""


def drawn_poses(priors: list[PriorTerm], count: int) -> Float[Tensor, "N M 23 3"]:
    """`count` draws of the first prior over the pose, with a fixed seed: the same for every subject (N = 1) unless the
    prior is conditional. Raises UsageError when no prior is over the pose."""
    if (poses := _draws(priors, count)) is not None:
        return poses
    raise UsageError(
        f"smplify.starts={count + 1} draws initial poses from a prior over the pose, and none is given: "
        "give --prior gmm, or set starts to 1"
    )


def _draws(priors: list[PriorTerm], count: int) -> Float[Tensor, "N M 23 3"] | None:
    return next((poses for term in priors if (poses := term.poses(count)) is not None), None)


def best_start(
    wide: Objective, objective: Objective, placed: Variables, poses: Float[Tensor, "N M 23 3"], tolerance: float
) -> Variables:
    """The placed body, or it in one of M other poses: whichever has the lowest energy after a few steps.

    Each pose is first turned and moved onto the evidence; the better half of them, and always the given one, then takes
    four steps over all variables. wide: the objective to step in; objective: the one whose energy decides.
    """
    N, M = len(placed.betas), poses.shape[1]
    first = torch.arange(N, device=poses.device)
    index = first.repeat_interleave(M + 1)
    angles = torch.cat([placed.angles[:, None], poses.to(placed.angles).expand(N, -1, -1, -1)], 1)
    many = Variables(angles.flatten(0, 1), placed.betas[index], placed.root[index], placed.translation[index])
    wide = wide.coarse()
    held = Objective(wide.rows(index).evidence).holding(many)
    found = minimise(held, many, PLACE_STEPS, PLACE_TOLERANCE)
    order = found.energy.unflatten(0, (N, M + 1))
    order[:, 0] = -torch.inf
    keep = order.argsort(1)[:, : M // 2 + 1]
    chosen = (keep + first[:, None] * (M + 1)).flatten()
    tried = minimise(wide.rows(index[chosen]), found.variables[chosen], STEPS, tolerance).variables
    energy = objective.rows(index[chosen]).matched(tried).evaluate(tried).energy.unflatten(0, keep.shape)
    return tried[energy.argmin(1) + first * keep.shape[1]]


def second_chance(
    wide: Objective, objective: Objective, found: Minimum, count: int, tolerance: float
) -> tuple[Variables, Bool[Tensor, " N"]]:
    """Other starts for fits that are poor after a few steps: most of these are on their way to a local minimum.

    Each poor fit is compared with `count` other poses, as in `best_start`. Returns where to go on from, and which fits
    are there to go on. Without a prior to draw poses from, the fits stay where they are.
    """
    unfinished = ~found.converged
    rows = poor(objective, found.variables).nonzero()[:, 0]
    some = objective.rows(rows)
    if not len(rows) or (poses := _draws(some.priors, count)) is None:
        return found.variables, unfinished
    start = best_start(wide.rows(rows), some, found.variables[rows], poses, tolerance)
    return with_rows(found.variables, rows, start), unfinished.index_fill(0, rows, True)


def poor(objective: Objective, at: Variables) -> Bool[Tensor, " N"]:
    """Which fits leave more than a quarter of the points that count unexplained (`UNEXPLAINED`). Scans are not judged:
    far from the body they have no correspondences to say so."""
    judged = [e for e in objective.evidence if not isinstance(e, ScanPoints)]
    if not judged:
        return torch.zeros(len(at.betas), dtype=torch.bool, device=at.betas.device)
    distances = [
        m.residuals.value.norm(dim=2).masked_fill(e.confidence <= 0, torch.nan).flatten(1)
        for e, m in zip(judged, Objective(judged).evaluate(at).measured, strict=True)
    ]
    return torch.cat(distances, 1).nanquantile(0.75, dim=1) > UNEXPLAINED
