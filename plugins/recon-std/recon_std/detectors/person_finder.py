"""The BlazePose person detector: boxes that come with points telling a body's place, size and turn.

Bazarevsky et al., "BlazePose: On-device Real-time Body Pose tracking", CVPR workshops 2020. Anchors and decoding
follow the graph options that MediaPipe publishes with pose_detection.tflite.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
from jaxtyping import Float
from PIL import Image

from recon_std.detectors.regions import between, cut, to_picture, transform
from recon_std.detectors.tflite import TFLiteModel, sigmoid

INPUT_SIZE = 224
_LAYERS = ((28, 2), (14, 2), (7, 6))  # cells along a side of each feature map, anchors in each cell


@cache
def anchors() -> Float[np.ndarray, "2254 2"]:
    """Anchor centres in units of the input's side, in the order of the network's output."""
    layers = []
    for cells, repeats in _LAYERS:
        centre = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(centre, centre), -1).reshape(-1, 2)
        layers.append(np.repeat(grid, repeats, 0))
    return np.concatenate(layers).astype(np.float32)


def decode(
    raw: Float[np.ndarray, "A 12"], logits: Float[np.ndarray, "A 1"], threshold: float
) -> Float[np.ndarray, "N 13"]:
    """The network's output as rows: score; x, y of a box's centre, its w, h; x, y of four points; input pixels.

    The box holds face and shoulders. Points: the middle of the hips, a point above the head on the circle round
    the whole body, and the same two for the upper body.
    """
    score = sigmoid(logits[:, 0])
    keep = score >= threshold
    values = raw[keep].reshape(-1, 6, 2).copy()
    values[:, [0, 2, 3, 4, 5]] += anchors()[keep, None] * INPUT_SIZE
    return np.concatenate([score[keep, None], values.reshape(-1, 12)], 1)


def weighted_suppression(found: Float[np.ndarray, "N 13"], overlap: float = 0.3) -> Float[np.ndarray, "M 13"]:
    """Each cluster of boxes that overlap its best one becomes their score-weighted mean; best first."""
    found = found[np.argsort(-found[:, 0], kind="stable")]
    merged = []
    while len(found):
        cluster = _iou(found[0, 1:5], found[:, 1:5]) > overlap
        cluster[0] = True
        score, values = found[cluster, :1], found[cluster, 1:]
        merged.append(np.concatenate([score[0], (score * values).sum(0) / score.sum()]))
        found = found[~cluster]
    return np.array(merged).reshape(-1, 13)


def _iou(box: Float[np.ndarray, " 4"], boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, " N"]:
    """Intersection over union of boxes given by centre and size."""
    low = np.maximum(box[:2] - box[2:] / 2, boxes[:, :2] - boxes[:, 2:] / 2)
    high = np.minimum(box[:2] + box[2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2)
    common = np.clip(high - low, 0, None).prod(-1)
    return common / np.maximum(box[2:].prod() + boxes[:, 2:].prod(-1) - common, 1e-9)


class PersonFinder:
    """Finds people in views of a picture. A view is a region that is shown to the network."""

    def __init__(self, model: TFLiteModel) -> None:
        self._model = model

    def __call__(
        self, picture: Image.Image, views: Iterable[Float[np.ndarray, " 4"]], threshold: float
    ) -> tuple[Float[np.ndarray, "N 4"], Float[np.ndarray, " N"]]:
        """Regions round the whole bodies found in any of the views, which must be turned alike, and their scores."""
        rows = [np.zeros((0, 13))]
        for view in views:
            raw, logits = self._model(cut(picture, view, INPUT_SIZE) * 2 - 1)
            found = decode(raw, logits, threshold)
            # Sizes stay sizes in the view's own turn: boxes are only compared between views turned alike.
            points = transform(to_picture(view, INPUT_SIZE), found[:, 1:].reshape(-1, 6, 2))
            points[:, 1] = found[:, 3:5] * view[2] / INPUT_SIZE
            rows.append(np.concatenate([found[:, :1], points.reshape(-1, 12)], 1))
        found = weighted_suppression(np.concatenate(rows))
        return between(found[:, 5:7], found[:, 7:9]), found[:, 0]
