"""The common fit, 2D joints of one picture under the shipped priors, by one kernel that takes all steps of a person.

On a CPU the operations of `levenberg_marquardt` over small batches cost more than their arithmetic. The kernel
(`solve_kernels`) computes the same, to rounding, for one person after the other, on each thread those of its own. Any
other objective, and a GPU, which is better used by operations over all people at once, take the batched way.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch

from recon_core.errors import PluginError
from recon_std.fitters import levenberg_marquardt
from recon_std.fitters.evidence import Joints2D
from recon_std.fitters.levenberg_marquardt import Minimum
from recon_std.fitters.objective import Objective
from recon_std.priors.gmm import GaussianMixturePrior
from recon_std.priors.joint_limits import JointLimitsPrior
from recon_std.priors.shape import ShapePrior

SHAPES = 16
"""Most betas that the kernel has room for."""

PRIORS = {GaussianMixturePrior, JointLimitsPrior, ShapePrior}


def minimise(objective: Any, start: Any, iterations: int, tolerance: float, second_order: bool = False) -> Minimum:
    """`levenberg_marquardt.minimise`, by the kernel where it knows the objective (`fits`) and Warp works."""
    if not second_order and fits(objective) and start.betas.device.type == "cpu" and _works(start.betas.dtype):
        from recon_std.fitters.fused.launching import fused

        return fused(objective, start, iterations, tolerance)
    return levenberg_marquardt.minimise(objective, start, iterations, tolerance, second_order)


def fits(objective: Any) -> bool:
    """Whether the kernel knows the objective: 2D joints in one perspective picture a person, and at most one each of
    the priors gmm, joint-limits and shape."""
    if not isinstance(objective, Objective) or objective.losses or len(objective.evidence) != 1:
        return False
    kinds = [type(term.prior) for term in objective.priors]
    (e,) = objective.evidence
    return (
        isinstance(e, Joints2D)
        and not e.orthographic
        and e.target.shape[1] == 1
        and e.target.dtype in (torch.float32, torch.float64)
        and e.basis.offsets.shape[-1] - 1 <= SHAPES
        and len(kinds) == len(set(kinds))
        and PRIORS.issuperset(kinds)
    )


@cache
def _works(dtype: torch.dtype) -> bool:
    """Whether the kernel compiles here; if not, says so once."""
    # Imported here: Warp takes a quarter of a second, which other fits need not wait for.
    from recon_std.fitters.fused.launching import prepare

    try:
        prepare(dtype)
    except PluginError as error:
        logging.getLogger(__name__).warning("fits of 2D joints take several times longer: %s", error)
        return False
    return True
