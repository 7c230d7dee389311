"""Rendered people as training data: images a second, as `recon train --data synthetic` streams them.

    python benchmarks/bench_synthetic.py [--workers N] [--batch 32] [--batches 16] [--rounds 3] [--size 256]
        [--out out/bench-synthetic]

Target: at least 100 images a second at 256x256 on two cores. Each row streams the data set through the loader that
training uses, one worker process a core and one thread each; the first batch of every worker is not counted. Prints the
median wall-clock rate of the rounds, and what no other program on the machine changes much: CPU milliseconds an image,
and the rate that two undisturbed cores have at that cost. Writes a sheet of pictures to look at.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import render_pictures
import torch
from torch.utils.data import DataLoader

from recon_core.datasets import Mixture, Source, Steps
from recon_std.synthetic.dataset import SyntheticDataset


class Timed(Steps):
    """Steps that also tell the CPU seconds that each took in its worker."""

    def __getitem__(self, step: int) -> tuple[Any, float]:
        start = time.process_time()
        batch = super().__getitem__(step)
        return batch, time.process_time() - start


def stream(mixture: Mixture, first: int, count: int, workers: int) -> tuple[float, float]:
    """Wall seconds and CPU seconds of a batch, over `count` batches after one for each worker."""
    loader = DataLoader(
        Timed(mixture, 0, 1), batch_size=None, sampler=range(first, first + workers + count), num_workers=workers
    )
    batches = iter(loader)
    for _ in range(workers):
        next(batches)
    start = time.perf_counter()
    cpu = [seconds for _, seconds in batches]
    return (time.perf_counter() - start) / count, statistics.mean(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of rendered training data.")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("out/bench-synthetic"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print(
        f"{options.workers} workers of one thread on {os.cpu_count()} cores, torch {torch.__version__}, "
        f"load {os.getloadavg()[0]:.1f}; {options.size}x{options.size}, batches of {options.batch}"
    )
    print(f"{'people a picture':<18}{'images/s':>10}{'CPU ms/image':>14}{'images/s of 2 free cores':>26}  target")
    for people, target in ((1, "100"), (3, "")):
        data = SyntheticDataset(config=SyntheticDataset.Config(size=options.size, people=people))
        mixture = Mixture([Source("synthetic", data)], options.batch)
        each = options.workers + options.batches
        runs = [stream(mixture, turn * each, options.batches, options.workers) for turn in range(options.rounds)]
        wall, cpu = (statistics.median(values) / options.batch for values in zip(*runs, strict=True))
        print(f"{people:<18}{1 / wall:>10.0f}{cpu * 1000:>14.1f}{2 / cpu:>26.0f}  {target}", flush=True)
        sheet = mixture.batch(0)["image"][:16]
        rows = [torch.cat(list(row), -1) for row in sheet.split(8)]
        render_pictures.save(options.out / f"people_{people}.png", torch.cat(rows, 1))
    print(f"pictures in {options.out}")


if __name__ == "__main__":
    main()
