"""How many photos a second `recon run` does on a folder, and where the time goes.

    python benchmarks/bench_run.py [--method prohmr] [--count 50] [--data ../shared/data]

Measures what a user waits for: every photo read, detected, reconstructed, fitted, drawn and written, with what
follows start-up (imports, weights, kernels) timed apart. The steps are also timed one after the other in one thread,
which adds up to more than the run takes, since reading, reconstructing and writing go on at once. On a machine
that does other work besides, processor time says what the run itself needs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def photos(data: Path, count: int) -> list[Path]:
    """`count` photos: the full-body ones first, then the validation part of lsp_ext."""
    index = json.loads((data / "photos" / "index.json").read_text())
    full = [data / "photos" / item["image"] for item in index["items"]]
    sport = sorted((data / "lsp_ext" / "images").iterdir())
    return list(itertools.islice(itertools.cycle(full + sport), count))


def timed(times: list[float], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it and note the seconds."""
    start = time.perf_counter()
    value = function(*arguments)
    times.append(time.perf_counter() - start)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="prohmr")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    arguments = parser.parse_args()

    start = time.perf_counter()
    import torch

    from recon_core.batch import process
    from recon_core.errors import ReconError
    from recon_core.pipeline import Pipeline

    pipeline = Pipeline(options={"run": {"method": arguments.method}})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inputs = []
        for i, photo in enumerate(photos(arguments.data, arguments.count)):
            link = folder / "photos" / f"{i:03d}{photo.suffix}"
            link.parent.mkdir(exist_ok=True)
            shutil.copyfile(photo, link)
            inputs.append(link)
        pipeline(inputs[0]).save(folder / "first")  # kernels are compiled, or loaded, when first used
        started = time.perf_counter() - start

        start, cpu = time.perf_counter(), time.process_time()
        outcomes = list(process(pipeline, inputs, folder / "out"))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu

        torch.set_num_threads(1)
        steps: dict[str, list[float]] = {"read": [], "detect": [], "reconstruct": [], "write": []}
        people = 0
        for i, path in enumerate(inputs[: max(10, len(inputs) // 3)]):
            try:
                photo, digest = timed(steps["read"], pipeline.read, path)
                found = timed(steps["detect"], pipeline.detect, photo)
                result = timed(steps["reconstruct"], pipeline.reconstruct, photo, digest, found)
            except ReconError:
                continue
            timed(steps["write"], result.save, folder / "serial" / str(i))
            people += len(result.people)

    done = sum(outcome.status == "done" for outcome in outcomes)
    print(f"method {arguments.method}, {len(inputs)} photos, {done} with a result")
    print(f"start-up and first photo   {started:8.2f} s")
    print(f"folder                     {seconds:8.2f} s   {len(inputs) / seconds:6.2f} photos/s")
    print(f"  processor time           {cpu:8.2f} s   {cpu / len(inputs):6.2f} s a photo, on {os.cpu_count()} cores")
    for name, times in steps.items():
        print(f"  {name:12s} median      {statistics.median(times) * 1000:8.1f} ms a photo, one thread")


if __name__ == "__main__":
    main()
