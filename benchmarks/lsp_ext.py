"""Reads shared/data/lsp_ext (see its README.md) for the benchmarks: sport photos with 14 labelled joints each."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from recon_core.images import load_image
from recon_core.structures import Keypoints

FOLDER = Path(os.environ.get("RECON_DATA_DIR", "/work/shared/data")) / "lsp_ext"


@dataclass(frozen=True)
class LabelledPhoto:
    """path: the photo. labels: lsp14 in its pixels. upright, head_below_hips: of the person, as labelled."""

    path: Path
    labels: Keypoints
    upright: bool
    head_below_hips: bool

    def pixels(self) -> np.ndarray:
        return load_image(self.path).pixels


def photos(split: str, every: int = 1) -> list[LabelledPhoto]:
    """The photos of a split ("train" or "val"), or every n-th of them."""
    index = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    items = [item for item in index["items"] if item["split"] == split][::every]
    found = []
    for item in items:
        joints = torch.tensor(item["joints"])[None]
        labels = Keypoints(joints[..., :2], torch.ones_like(joints[..., 2]), "lsp14")
        path = FOLDER / "images" / f"{item['id']}.jpg"
        found.append(LabelledPhoto(path, labels, bool(item["upright"]), bool(item["head_below_hips"])))
    return found
