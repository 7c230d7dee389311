"""The prototype loop (section 3.4), and the watch over a training that goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.errors import TrainingError

LARGEST = 2.0
"""A prototype that reaches farther than this from its middle, in its own units (people are 1.8 tall), has exploded."""
PATIENCE = 4
"""Epochs in a row in which the overlap falls, and then lies `LOST` below the best: the training has collapsed."""
LOST = 0.15


class EpochMeans:
    """Means over an epoch of the offsets and of the loss terms, the same on every process."""

    def __init__(self) -> None:
        self.offsets: Tensor | None = None
        self.terms: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.seen = 0
        self.history: list[dict[str, float]] = []

    def add(self, offsets: Float[Tensor, "B V 3"], terms: Mapping[str, Float[Tensor, " B"]]) -> None:
        total = offsets.detach().sum(0)
        self.offsets = total if self.offsets is None else self.offsets + total
        self.seen += len(offsets)
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value.detach().sum()
            self.counts[name] = self.counts.get(name, 0) + len(value)

    def close(self) -> Float[Tensor, "V 3"]:
        """The epoch's mean offset; its terms go to the history. At least one batch was added."""
        assert self.offsets is not None
        names = sorted(self.terms)
        sums = torch.stack([self.terms[name] for name in names])
        counts = torch.tensor([float(self.counts[name]) for name in names] + [float(self.seen)])
        offsets, counts = self.offsets, counts.to(sums)
        if torch.distributed.is_initialized():
            for tensor in (offsets, sums, counts):
                torch.distributed.all_reduce(tensor)
        self.history.append(dict(zip(names, (sums / counts[:-1]).tolist(), strict=True)))
        mean = offsets / counts[-1]
        self.offsets, self.terms, self.counts, self.seen = None, {}, {}, 0
        return mean

    def state(self) -> dict[str, Any]:
        return {
            "offsets": self.offsets,
            "terms": self.terms,
            "counts": self.counts,
            "seen": self.seen,
            "history": self.history,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        for name in ("offsets", "terms", "counts", "seen", "history"):
            setattr(self, name, state[name])


def moved(
    prototype: Float[Tensor, "V 3"], mean: Float[Tensor, "V 3"], epoch: int, warm_up: int, rate: float, largest: float
) -> Float[Tensor, "V 3"]:
    """The prototype after epoch number `epoch` (from 0): moved by `rate` of the mean offset, less in the first
    `warm_up` epochs, no vertex farther than `largest` (section 3.4; the published rate is 1)."""
    share = rate * min(1.0, (epoch + 1) / max(warm_up, 1))
    length = mean.norm(dim=1, keepdim=True)
    return prototype + share * mean * (largest / length.clamp(min=largest))


def watch(history: list[dict[str, float]], prototype: Float[Tensor, "V 3"]) -> None:
    """Raises TrainingError when the prototype has exploded or the masks' overlap keeps falling, naming the term of
    the loss that grew most meanwhile."""
    reach = float(prototype.abs().max())
    if not reach < LARGEST:
        raise TrainingError(
            f"casl: the prototype has exploded after epoch {len(history)}: it reaches {reach:.3g} (limit {LARGEST:g}), "
            f"{_blame(history)}; lower casl.prototype_rate or casl.learning_rate"
        )
    lost = [epoch["iou"] for epoch in history]
    recent = lost[-PATIENCE - 1 :]
    falling = len(recent) > PATIENCE and all(b > a for a, b in pairwise(recent))
    if falling and lost[-1] > min(lost) + LOST:
        raise TrainingError(
            f"casl: the training collapses: the masks' overlap fell for {PATIENCE} epochs, from "
            f"{1 - min(lost):.2f} to {1 - lost[-1]:.2f}, {_blame(history)}; lower casl.learning_rate"
        )


def _blame(history: list[dict[str, float]]) -> str:
    """The term that was multiplied by most since the best epoch."""
    best, last = min(history, key=lambda epoch: epoch["iou"]), history[-1]
    growth = {name: last[name] / best[name] for name in last if best.get(name, 0.0) > 1e-9}
    if not growth:
        return "and no term was finite before it"
    worst = max(growth, key=lambda name: growth[name])
    return f"while '{worst}' went from {best[worst]:.3g} to {last[worst]:.3g}"
