"""The kernel's launches over people."""

from __future__ import annotations

import torch
import warp as wp
from torch.nn.functional import pad

from recon_std.fitters.fused.inputs import structures
from recon_std.fitters.fused.layout import LANES, types
from recon_std.fitters.fused.solve_kernels import kernels
from recon_std.fitters.levenberg_marquardt import Minimum
from recon_std.fitters.objective import Objective
from recon_std.fitters.variables import ANGLES, Variables
from recon_std.renderers.warp.start import launch


def prepare(dtype: torch.dtype) -> None:
    """Compile the kernel for the CPU, or take it from Warp's cache. Raises PluginError when Warp does not work here."""
    launch(kernels(dtype).minimise, [], [], torch.device("cpu"))


def fused(objective: Objective, start: Variables, iterations: int, tolerance: float) -> Minimum:
    """`levenberg_marquardt.minimise` of an objective that `fits`, on a CPU."""
    N, S = start.betas.shape
    device, dtype = start.betas.device, start.betas.dtype
    t = types(dtype)
    numbers = pad(torch.cat([start.angles.flatten(1), start.betas], 1), (0, LANES - ANGLES - S))
    roots, translations = start.root[:, 0].clone(), start.translation[:, 0].clone()
    energy = torch.empty_like(numbers[:, 0])
    steps, converged = (torch.empty(N, dtype=kind, device=device) for kind in (torch.int64, torch.bool))
    # A launch on a CPU takes its people one by one: every so many-th, so that the threads end about together.
    launches = max(1, min(torch.get_num_threads(), N))
    shared = structures(objective, start.betas, slots=launches)
    found = [
        wp.from_torch(numbers, dtype=t.row),
        wp.from_torch(roots, dtype=t.mat33),
        wp.from_torch(translations, dtype=t.vec3),
        *(wp.from_torch(value) for value in (energy, steps, converged)),
    ]
    dims = [len(range(first, N, launches)) for first in range(launches)]
    inputs = [[*shared, first, launches, iterations, tolerance, *found] for first in range(launches)]
    launch(kernels(dtype).minimise, dims, inputs, device)
    angles, betas = numbers[:, :ANGLES].unflatten(1, (-1, 3)), numbers[:, ANGLES : ANGLES + S]
    return Minimum(Variables(angles, betas, roots[:, None], translations[:, None]), energy, steps, converged)
