"""What a step of CASL's training costs, and what share of it is drawing.

    python benchmarks/bench_casl_speed.py [--side 128] [--batches 1 4 16 64] [--repeats 3] [--threads 2]

A step is one encoder's turn of the encoder loop (all four encode, one learns), forward, backward and Adam's step; the
mean over the four turns, without the critic's every fourth step, which has a row of its own. Drawing is equation 6
forward and backward to all attributes, by itself. Medians over the repeats of processor seconds, which other programs
on the machine do not change, and of wall-clock seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from recon_casl.method import CASL, CASLConfig
from recon_casl.model import ATTRIBUTES, Attributes
from recon_casl.view import View


def pictures(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random colours in ellipses, and their masks."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    wide = torch.rand(count, 1, 1, 1, generator=generator) * 0.3 + 0.25
    return torch.rand(count, 3, side, side, generator=generator), ((x / wide) ** 2 + (y / 0.85) ** 2 < 1).float()


def seconds(call: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Processor and wall-clock seconds of a call."""
    call()
    taken = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        taken.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = zip(*taken, strict=True)
    return statistics.median(cpu), statistics.median(wall)


def row(method: CASL, count: int, side: int, repeats: int) -> tuple[tuple[float, float], ...]:
    """Of a step, of the drawing in it, and of a critic's step."""
    image, mask = pictures(count, side)
    batch = {"image": image, "mask": mask}
    optimizers = method.configure_optimizers(100)

    def turn(name: str) -> None:
        method.training_step(batch, 0, name).per_sample.mean().backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    def turns() -> None:
        for name in ATTRIBUTES:
            turn(name)

    cut = torch.cat([image * mask, mask], 1)
    with torch.no_grad():
        found = method.model.encode(cut)
    leaf = lambda value: value.detach().requires_grad_()  # noqa: E731
    view = View(*(leaf(getattr(found.view, name)) for name in ("distance", "azimuth", "elevation", "offset")))
    attributes = Attributes(leaf(found.offsets), view, leaf(found.light), leaf(found.texture))

    def draw() -> None:
        method.model.draw(attributes, method.renderer, side).both.mean().backward()

    whole = tuple(value / len(ATTRIBUTES) for value in seconds(turns, repeats))
    return whole, seconds(draw, repeats), seconds(lambda: turn("critic"), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=128, choices=(64, 128))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    method = CASL(CASLConfig(side=arguments.side))
    print(f"{arguments.side} x {arguments.side} pixels, {arguments.threads} threads")
    print("batch   ms an image (processor)   images/s (wall)   share of drawing   critic, ms an image")
    for count in arguments.batches:
        (cpu, wall), (drawn, _), (critic, _) = row(method, count, arguments.side, arguments.repeats)
        spent, rate, share = 1e3 * cpu / count, count / wall, drawn / cpu
        print(f"{count:5} {spent:25.1f} {rate:17.1f} {share:17.0%} {1e3 * critic / count:20.1f}")


if __name__ == "__main__":
    main()
