"""What a training run is told, and what it tells at its end."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from recon_core.interfaces import Settings


class TrainingSettings(Settings):
    """One training run: the section `run` of the configuration."""

    steps: int = Field(default=10_000, ge=1)
    """Steps in all, those before a resume included."""
    batch_size: int = Field(default=64, ge=1)
    """Samples a step, over all processes."""
    seed: int = Field(default=0, ge=0)
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    gradient_clip: float | None = Field(default=None, gt=0)
    """Largest norm of each optimizer's gradient, None for no limit."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = Field(default=1, ge=1)
    """Processes on each node. Under torchrun its own numbers count."""
    nodes: int = Field(default=1, ge=1)
    workers: int | None = Field(default=None, ge=0)
    """Processes that prepare batches, for each device; None for as many as there are cores left, at most 8."""
    checkpoint_every: int = Field(default=1000, ge=1)
    checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept."""
    log_every: int = Field(default=10, ge=1)
    """Steps that a line of the log averages over."""
    pictures_every: int = Field(default=500, ge=0)
    """Steps between pictures in the log, 0 for none. Only methods that draw some have them."""
    progress: bool = True
    """Show a progress bar when stderr is a terminal."""

    EXACT: ClassVar[tuple[str, ...]] = ("batch_size", "seed", "precision", "gradient_clip")
    """What a resumed run must share with its first part."""

    def worker_count(self) -> int:
        """Worker processes of each device."""
        if self.workers is not None:
            return self.workers
        return min(8, max(0, (os.cpu_count() or 1) // self.devices - 1))


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    step: steps done in all. loss: mean of the last step's batch (this process's part), NaN if no step was done.
    checkpoint: folder of the last one. stopped: name of the signal that ended the run early, or None. rank: number of
    this process, 0 for the one that writes.
    """

    step: int
    loss: float
    checkpoint: Path
    stopped: str | None = None
    rank: int = 0
