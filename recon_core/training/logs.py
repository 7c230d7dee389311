"""What a run writes down as it goes: log.csv, TensorBoard, pictures, and a progress bar."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm


class Window:
    """Sums since the last line of the log. `state` goes into checkpoints, so that lines survive a resume."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.steps = int(state["steps"]) if state else 0
        self._sums: dict[str, float] = dict(state["sums"]) if state else {}
        # Values stay on their device until they are asked for, so that a GPU need not be waited for at every step.
        self._pending: list[tuple[list[str], Tensor]] = []

    def add(self, values: Mapping[str, Tensor]) -> None:
        """One step's quantities, each a number."""
        self.steps += 1
        self._pending.append((list(values), torch.stack([value.detach().float() for value in values.values()])))

    @property
    def state(self) -> dict[str, Any]:
        for names, numbers in self._pending:
            for name, number in zip(names, numbers.tolist(), strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + number
        self._pending = []
        return {"steps": self.steps, "sums": dict(self._sums)}

    def means(self) -> dict[str, float]:
        """The averages, after which the window is empty. What was not there at every step is averaged over all."""
        out = {name: value / self.steps for name, value in self.state["sums"].items()}
        self.steps, self._sums = 0, {}
        return out


class RunLog:
    """log.csv (a row a window, a column a quantity), TensorBoard events and PNG files in `output`.

    Opened at `step`: rows of later steps, of an end that left no checkpoint, are taken out. The columns seconds and
    samples_per_second are the only ones that differ between a resumed run and one that was not interrupted.
    """

    def __init__(self, output: Path, step: int, steps: int, batch_size: int, progress: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path, self.pictures = output / "log.csv", output / "pictures"
        self.batch_size = batch_size
        self.rows = [row for row in self._read() if int(row["step"]) <= step]
        self.columns = list(self.rows[0]) if self.rows else []
        self._write_all()
        self.board = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)
        # disable=None: no bar where stderr is not a terminal.
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=None if progress else True)
        self.clock = time.perf_counter()

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            # A row cut off by the end of the process has no last column.
            return [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdigit()]

    def _write_all(self) -> None:
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            if self.columns:
                writer.writeheader()
            writer.writerows(self.rows)
        os.replace(partial, self.path)

    def advance(self, loss: float) -> None:
        """One more step is done."""
        self.bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
        self.bar.update()

    def write(self, step: int, epoch: int, values: Mapping[str, float], steps: int) -> None:
        """A row of means over the last `steps` steps."""
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        rate = steps * self.batch_size / seconds
        self.bar.set_description(f"{rate:.0f} samples/s", refresh=False)
        timing = {"seconds": f"{seconds:.3f}", "samples_per_second": f"{rate:.2f}"}
        row = {"step": str(step), "epoch": str(epoch), **{k: repr(v) for k, v in values.items()}, **timing}
        self.rows.append(row)
        if new := [name for name in row if name not in self.columns]:
            self.columns = [
                *(c for c in self.columns if c not in timing),
                *(n for n in new if n not in timing),
                *timing,
            ]
            self._write_all()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="").writerow(row)
        for name, value in {**values, "samples_per_second": rate}.items():
            if math.isfinite(value):
                self.board.add_scalar(name, value, step)
        self.board.flush()

    def draw(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Pictures (3, H, W) in [0, 1], to TensorBoard and to pictures/<name>-<step>.png."""
        for name, picture in pictures.items():
            pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().byte()
            self.board.add_image(name, pixels, step)
            self.pictures.mkdir(exist_ok=True)
            file = self.pictures / f"{name}-{step:08d}.png"
            Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).save(file)

    def close(self) -> None:
        self.bar.close()
        self.board.close()
