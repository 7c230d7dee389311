"""The BlazePose landmark model: 33 joints and a mask of the person in a turned square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

from recon_std.detectors.person_finder import region_between
from recon_std.detectors.regions import cut, to_picture, transform
from recon_std.detectors.tflite import TFLiteModel

INPUT_SIZE = 256
JOINTS = 33


@dataclass(frozen=True)
class Landmarks:
    """One person as the model sees it. points: (33, 2) picture pixels. visibility, presence: (33,) in [0, 1].
    score: whether there is a person at all. mask: (256, 256) in [0, 1] in `region`. next_region: where to look again."""

    points: Float[np.ndarray, "33 2"]
    visibility: Float[np.ndarray, " 33"]
    presence: Float[np.ndarray, " 33"]
    score: float
    mask: Float[np.ndarray, "256 256"]
    region: Float[np.ndarray, " 4"]
    next_region: Float[np.ndarray, " 4"]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


def refine_on_heatmap(
    points: Float[np.ndarray, "K 2"], heat: Float[np.ndarray, "h w K"], kernel: int = 7, least: float = 0.5
) -> Float[np.ndarray, "K 2"]:
    """Move points (heatmap cells) to the heat-weighted mean of the kernel around them, where the heat reaches `least`."""
    h, w, count = heat.shape
    col, row = np.floor(points[:, 0]).astype(int), np.floor(points[:, 1]).astype(int)
    offset = np.arange(kernel) - kernel // 2
    rows, cols = row[:, None, None] + offset[:, None], col[:, None, None] + offset[None, :]
    rows, cols = np.broadcast_arrays(rows, cols)
    inside = (rows >= 0) & (rows < h) & (cols >= 0) & (cols < w)
    inside &= ((row >= 0) & (row < h) & (col >= 0) & (col < w))[:, None, None]
    weight = heat[rows.clip(0, h - 1), cols.clip(0, w - 1), np.arange(count)[:, None, None]] * inside
    total = weight.sum((1, 2))
    mean = np.stack([(weight * (cols + 0.5)).sum((1, 2)), (weight * (rows + 0.5)).sum((1, 2))], -1)
    good = weight.max((1, 2)) >= least
    return np.where(good[:, None], mean / np.maximum(total, 1e-9)[:, None], points)


class LandmarkModel:
    def __init__(self, model: TFLiteModel, refine: bool = True) -> None:
        self.model = model
        self.refine = refine

    def __call__(self, picture: Image.Image, region: Float[np.ndarray, " 4"]) -> Landmarks:
        """The person in one region."""
        values, score, mask, heat, _ = self.model(cut(picture, region, INPUT_SIZE))
        rows = values.reshape(39, 5)
        points = rows[:, :2].astype(np.float64)
        if self.refine:
            cell = INPUT_SIZE / heat.shape[0]
            points = refine_on_heatmap(points / cell, _sigmoid(heat)) * cell
        placed = transform(to_picture(region[None], INPUT_SIZE)[0], points)
        return Landmarks(
            points=placed[:JOINTS],
            visibility=_sigmoid(rows[:JOINTS, 3]),
            presence=_sigmoid(rows[:JOINTS, 4]),
            score=float(score[0]),
            mask=_sigmoid(mask[..., 0]),
            region=region,
            next_region=region_between(placed[None, 33], placed[None, 34])[0],
        )
