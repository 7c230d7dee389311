"""The BlazePose landmark model: 33 joints and a mask of the person in a region."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from recon_core.skeletons import skeleton
from recon_std.detectors.regions import between, cut, to_picture, transform
from recon_std.detectors.tflite import TFLiteModel, sigmoid

INPUT_SIZE = 256
JOINTS = 33
_MIRROR = (*skeleton("blazepose33").mirror, 33, 34)
# What a careful reading looks at besides the region itself: flipped, turned by +-15 degrees, narrower, wider.
_VARIANTS = (
    (True, 0.0, 1.0),
    (False, np.deg2rad(15), 1.0),
    (False, -np.deg2rad(15), 1.0),
    (False, 0.0, 0.87),
    (False, 0.0, 1.15),
)


@dataclass(frozen=True)
class Landmarks:
    """One person as the model reads a region.

    points: blazepose33 in picture pixels. visibility, presence: the model's own, in [0, 1]. score: whether there
    is a person at all, in [0, 1]. mask_logits: of the crop. region: what was read; next_region: where the
    joints say the person is.
    """

    points: Float[np.ndarray, "33 2"]
    visibility: Float[np.ndarray, " 33"]
    presence: Float[np.ndarray, " 33"]
    score: float
    mask_logits: Float[np.ndarray, "256 256"]
    region: Float[np.ndarray, " 4"]
    next_region: Float[np.ndarray, " 4"]

    @property
    def raw_confidence(self) -> Float[np.ndarray, " 33"]:
        """Visibility times presence, uncalibrated."""
        return self.visibility * self.presence

    def inside(self, width: int, height: int) -> Bool[np.ndarray, " 33"]:
        """Which joints lie in a picture of that size."""
        return np.all((self.points >= 0) & (self.points <= [width, height]), axis=-1)


class LandmarkModel:
    """Reads people: pose_landmark_full.tflite and the decoding of its outputs."""

    def __init__(self, model: TFLiteModel) -> None:
        self._model = model

    def __call__(self, picture: Image.Image, region: Float[np.ndarray, " 4"], flipped: bool = False) -> Landmarks:
        """The person in a region; with `flipped` as read from its mirror image, told in the picture's own sides."""
        crop = cut(picture, region, INPUT_SIZE)
        values, score, mask, heat, _ = self._model(np.ascontiguousarray(crop[:, ::-1]) if flipped else crop)
        rows = values.reshape(39, 5)[: JOINTS + 2].astype(np.float64)
        cell = INPUT_SIZE / len(heat)
        points = refine_on_heatmap(rows[:, :2] / cell, heat[..., : JOINTS + 2]) * cell
        mask = mask[..., 0]
        if flipped:
            points, rows, mask = points[list(_MIRROR)], rows[list(_MIRROR)], mask[:, ::-1]
            points[:, 0] = INPUT_SIZE - points[:, 0]
        placed = transform(to_picture(region, INPUT_SIZE), points)
        return Landmarks(
            points=placed[:JOINTS],
            visibility=sigmoid(rows[:JOINTS, 3]),
            presence=sigmoid(rows[:JOINTS, 4]),
            score=float(score[0]),
            mask_logits=mask,
            region=region,
            next_region=between(placed[None, JOINTS], placed[None, JOINTS + 1])[0],
        )

    def careful(self, picture: Image.Image, first: Landmarks) -> Landmarks:
        """`first` with each joint at the median of six readings: flipped, turned, narrower and wider ones too."""
        readings = [first.points]
        for flipped, turn, scale in _VARIANTS:
            region = first.region * [1, 1, scale, 1] + [0, 0, 0, turn]
            readings.append(self(picture, region, flipped).points)
        return dataclasses.replace(first, points=np.median(readings, axis=0))


def refine_on_heatmap(
    points: Float[np.ndarray, "K 2"],
    logits: Float[np.ndarray, "h w K"],
    kernel: int = 7,
    least: float = 0.5,
) -> Float[np.ndarray, "K 2"]:
    """Points at the heat-weighted mean of the kernel of heatmap cells around them, in cells.

    A point stays where it is when it lies outside the map or no cell of its kernel reaches `least`. A cell counts
    at its index, not at its centre, as the model was trained: with the half cell added, joints of lsp_ext come out
    2 crop pixels too far right and down.
    """
    h, w, count = logits.shape
    col, row = np.floor(points).astype(int).T
    offset = np.arange(kernel) - kernel // 2
    rows, cols = np.broadcast_arrays(row[:, None, None] + offset[:, None], col[:, None, None] + offset)
    inside = (rows >= 0) & (rows < h) & (cols >= 0) & (cols < w)
    inside &= ((row >= 0) & (row < h) & (col >= 0) & (col < w))[:, None, None]
    heat = sigmoid(logits[rows.clip(0, h - 1), cols.clip(0, w - 1), np.arange(count)[:, None, None]]) * inside
    total = np.maximum(heat.sum((1, 2)), 1e-9)
    mean = np.stack([(heat * cols).sum((1, 2)), (heat * rows).sum((1, 2))], -1) / total[:, None]
    return np.where(heat.max((1, 2))[:, None] >= least, mean, points)
