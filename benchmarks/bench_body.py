"""Posing and skinning: recon's body against smplx, on one SMPL-format file, side by side in one process.

    python benchmarks/bench_body.py [--batch 64] [--threads 1] [--device cpu]

The file is the free body in SMPL's layout with random pose correctives, so that no licensed file is needed. Prints
medians, their ratio and the largest difference of the vertices.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import smplx
import torch

from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.structures import BodyParameters
from recon_std.bodies import load_body
from recon_std.bodies.data import load_body_file
from recon_std.bodies.library import SHIPPED
from recon_std.bodies.licensed import smpl_arrays


def median_ms(
    functions: dict[str, Callable[[], object]], clock: Callable[[], float], device: str, repeats: int
) -> dict[str, float]:
    """Median milliseconds of each function, called in turns so that disturbances meet all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(repeats + 2):
        for name, function in functions.items():
            start = clock()
            function()
            if device != "cpu":
                torch.cuda.synchronize()
            if round_number >= 2:
                times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, batch = options.device, options.batch

    content = smpl_arrays(load_body_file(SHIPPED / "free.npz"))
    content["posedirs"] = 0.005 * np.random.default_rng(0).standard_normal(content["posedirs"].shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "SMPL_NEUTRAL.pkl"
        path.write_bytes(pickle.dumps(content))
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = smplx.SMPL(str(path), batch_size=batch).to(device)
        ours = load_body(path).to(device)
    plain = load_body("free").to(device)

    angles = (0.5 * torch.randn(batch, 24, 3)).to(device)
    leaves = [angles, torch.randn(batch, 10, device=device), torch.randn(batch, 3, device=device)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def run_theirs() -> torch.Tensor:
        angles, betas, shift = leaves
        return theirs(
            betas=betas, body_pose=angles[:, 1:].flatten(1), global_orient=angles[:, 0], transl=shift
        ).vertices

    def parameters() -> BodyParameters:
        return BodyParameters(axis_angle_to_matrix(leaves[0]), *leaves[1:])

    def forward_only(function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.no_grad():
                return function()

        return run

    def with_gradients(function: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function().square().mean(), leaves)

    makers = {
        "smplx": run_theirs,
        "recon": lambda: ours(parameters()).vertices,
        "recon, no correctives": lambda: plain(parameters()).vertices,
        "recon, 17 keypoints": lambda: plain.keypoints(parameters(), "coco17"),
    }
    gap = (forward_only(makers["recon"])() - forward_only(makers["smplx"])()).abs().max()
    print(f"{batch} bodies of {ours.vertex_count} vertices, {options.threads} thread(s), {device}")
    # One thread's own time does not count what other programs on the machine take.
    alone = device == "cpu" and options.threads == 1
    clock = time.thread_time if alone else time.perf_counter
    print(f"largest difference to smplx: {float(gap):.1e} m")
    print(f"{'':24}{'forward ms':>12}{'ratio':>8}{'and backward ms':>18}{'ratio':>8}")
    forward = median_ms({n: forward_only(f) for n, f in makers.items()}, clock, device, options.repeats)
    both = median_ms({n: with_gradients(f) for n, f in makers.items()}, clock, device, options.repeats)
    for name in makers:
        print(
            f"{name:24}{forward[name]:12.2f}{forward['smplx'] / forward[name]:7.1f}x"
            f"{both[name]:18.2f}{both['smplx'] / both[name]:7.1f}x"
        )


if __name__ == "__main__":
    main()
