"""The dictionary of best fits: for each training picture the best body any fit has found so far (thesis 3.3.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon_core.structures import Batched


@dataclass(frozen=True)
class Fits(Batched):
    """B fits. pose: (B, 24, 3, 3), betas: (B, S), root: (B, 3) place of the pelvis, metres; error: (B,) mean
    reprojection error in pixels of the photo, infinite where there is no fit."""

    pose: Float[Tensor, "B 24 3 3"]
    betas: Float[Tensor, "B S"]
    root: Float[Tensor, "B 3"]
    error: Float[Tensor, " B"]


class BestFits:
    """Fits by picture, in the frame of the photo as it is in the files, so that they serve every augmentation of it."""

    def __init__(self, shape_count: int = 10) -> None:
        self._rows: dict[str, int] = {}
        self._fits = _empty(0, shape_count)

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, keys: Sequence[str]) -> Fits:
        """The best fits so far, on the CPU; error is infinite for a picture that has none."""
        rows = torch.tensor([self._rows.get(key, len(self._rows)) for key in keys], dtype=torch.int64)
        none = _empty(1, self._fits.betas.shape[1])
        return _joined(self._fits, none)[rows]

    def offer(self, keys: Sequence[str], fits: Fits) -> Bool[Tensor, " B"]:
        """Keep each fit that is better than what is there. Returns which were; a key may come twice."""
        fits = fits.detach().to("cpu")
        new = [key for key in dict.fromkeys(keys) if key not in self._rows]
        if new:
            self._rows |= {key: len(self._rows) + i for i, key in enumerate(new)}
            self._fits = _joined(self._fits, _empty(len(new), self._fits.betas.shape[1]))
        better = torch.zeros(len(fits.error), dtype=torch.bool)
        for i, key in enumerate(keys):
            row = self._rows[key]
            if fits.error[i] < self._fits.error[row]:
                for name in ("pose", "betas", "root", "error"):
                    getattr(self._fits, name)[row] = getattr(fits, name)[i]
                better[i] = True
        return better

    def all(self) -> Fits:
        """Every fit there is."""
        return self._fits

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the keys, in order, and the fits."""
        return {"keys": list(self._rows)} | {n: getattr(self._fits, n) for n in ("pose", "betas", "root", "error")}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._rows = {key: row for row, key in enumerate(state["keys"])}
        self._fits = Fits(*(state[name].clone() for name in ("pose", "betas", "root", "error")))


def _empty(count: int, shape_count: int) -> Fits:
    pose = torch.eye(3).repeat(count, 24, 1, 1)
    return Fits(pose, torch.zeros(count, shape_count), torch.zeros(count, 3), torch.full((count,), torch.inf))


def _joined(a: Fits, b: Fits) -> Fits:
    return Fits(*(torch.cat([getattr(a, n), getattr(b, n)]) for n in ("pose", "betas", "root", "error")))
