"""The BlazePose person detector: a single-shot detector whose boxes come with two points that tell place, size and turn.

Bazarevsky et al., "BlazePose: On-device Real-time Body Pose tracking", 2020. Anchor layout and decoding as in
MediaPipe's published graph options for pose_detection.tflite.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float
from PIL import Image

from recon_std.detectors.regions import cut, to_picture, transform
from recon_std.detectors.tflite import TFLiteModel

INPUT_SIZE = 224
_CELLS = ((28, 2), (14, 2), (7, 6))  # cells along a side of the feature map, anchors a cell


@cache
def _anchors() -> Float[np.ndarray, "2254 2"]:
    """Anchor centres in units of the input side; all anchors have size 1."""
    layers = []
    for cells, repeats in _CELLS:
        centre = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(centre, centre), -1).reshape(-1, 2)
        layers.append(np.repeat(grid, repeats, 0))
    return np.concatenate(layers).astype(np.float32)


def decode(
    raw: Float[np.ndarray, "A 12"], logits: Float[np.ndarray, "A 1"], threshold: float
) -> Float[np.ndarray, "N 13"]:
    """Network output to rows (score, x, y, w, h of the centred face-and-torso box, four points), input pixels.

    Points: middle of the hips, a point on the circle round the whole body above the head, and the same two of the
    upper body.
    """
    score = 1 / (1 + np.exp(-np.clip(logits[:, 0], -100, 100)))
    keep = score >= threshold
    values, centre = raw[keep].reshape(-1, 6, 2).copy(), _anchors()[keep] * INPUT_SIZE
    values[:, [0, 2, 3, 4, 5]] += centre[:, None]
    return np.concatenate([score[keep, None], values.reshape(-1, 12)], 1)


def iou(a: Float[np.ndarray, "N 4"], b: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "N M"]:
    """Intersection over union of boxes given by centre and size."""
    low = np.maximum(a[:, None, :2] - a[:, None, 2:] / 2, b[None, :, :2] - b[None, :, 2:] / 2)
    high = np.minimum(a[:, None, :2] + a[:, None, 2:] / 2, b[None, :, :2] + b[None, :, 2:] / 2)
    inter = np.clip(high - low, 0, None).prod(-1)
    union = a[:, None, 2:].prod(-1) + b[None, :, 2:].prod(-1) - inter
    return inter / np.maximum(union, 1e-9)


def weighted_suppression(found: Float[np.ndarray, "N 13"], overlap: float = 0.3) -> Float[np.ndarray, "M 13"]:
    """Replace each cluster of overlapping boxes by its score-weighted mean, which keeps the best score; best first."""
    found = found[np.argsort(-found[:, 0], kind="stable")]
    merged = []
    while len(found):
        cluster = iou(found[:1, 1:5], found[:, 1:5])[0] > overlap
        cluster[0] = True
        members = found[cluster]
        mean = (members[:, 1:] * members[:, :1]).sum(0) / members[:, 0].sum()
        merged.append(np.concatenate([members[:1, 0], mean]))
        found = found[~cluster]
    return np.array(merged).reshape(-1, 13)


class PersonFinder:
    """People in views of a picture. A view is a region (see `regions`) that is shown to the network."""

    def __init__(self, model: TFLiteModel, threshold: float) -> None:
        self.model = model
        self.threshold = threshold

    def __call__(self, picture: Image.Image, views: Float[np.ndarray, "V 4"]) -> Float[np.ndarray, "N 13"]:
        """What is found in all views: rows as of `decode`, but in picture pixels; the boxes stay axis-aligned with their view."""
        rows = [np.zeros((0, 13))]
        for view in views:
            raw, logits = self.model(cut(picture, view, INPUT_SIZE) * 2 - 1)
            found = weighted_suppression(decode(raw, logits, self.threshold))
            affine = to_picture(view[None], INPUT_SIZE)[0]
            points = found[:, 1:].reshape(-1, 6, 2)
            size = points[:, 1:2] * view[2] / INPUT_SIZE
            placed = transform(affine, points)
            placed[:, 1:2] = size
            rows.append(np.concatenate([found[:, :1], placed.reshape(-1, 12)], 1))
        return np.concatenate(rows)


def regions_of(found: Float[np.ndarray, "N 13"], margin: float = 1.25) -> Float[np.ndarray, "N 4"]:
    """The turned squares round whole bodies that the landmark model reads."""
    hip, top = found[:, 5:7], found[:, 7:9]
    return region_between(hip, top, margin)


def region_between(
    centre: Float[np.ndarray, "N 2"], top: Float[np.ndarray, "N 2"], margin: float = 1.25
) -> Float[np.ndarray, "N 4"]:
    """Squares centred on `centre` whose upright points to `top`, which lies on the circle round the body."""
    up = top - centre
    side = 2 * margin * np.linalg.norm(up, axis=-1)
    return np.concatenate([centre, side[:, None], np.arctan2(up[:, 0], -up[:, 1])[:, None]], -1)
