"""Several initial poses, for evidence that one start would leave in a local minimum."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.errors import UsageError
from recon_std.fitters.curvature import PriorTerm
from recon_std.fitters.levenberg_marquardt import minimise
from recon_std.fitters.objective import Objective
from recon_std.fitters.variables import Variables

PLACE_STEPS, PLACE_TOLERANCE, STEPS = 5, 1e-2, 4


def drawn_poses(priors: list[PriorTerm], count: int) -> Float[Tensor, "N M 23 3"]:
    """`count` draws of the first prior over the pose, with a fixed seed: the same for every subject (N = 1) unless the
    prior is conditional. Raises UsageError when no prior is over the pose."""
    for term in priors:
        if (poses := term.poses(count)) is not None:
            return poses
    raise UsageError(
        f"smplify.starts={count + 1} draws initial poses from a prior over the pose, and none is given: "
        "give --prior gmm, or set starts to 1"
    )


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
