"""How far BlazePose can be believed, as measured on labelled photos.

The numbers are in blazepose_errors.json, which benchmarks/measure_detector_errors.py writes.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Float

from recon_std.detectors.landmark_model import Landmarks


@cache
def error_table() -> dict[str, Any]:
    """blazepose_errors.json: the calibration and the detector's errors by joint and confidence."""
    return json.loads(resources.files(__package__).joinpath("blazepose_errors.json").read_text("utf-8"))


def traits(finder_score: float, first: Landmarks, second: Landmarks, size: tuple[int, int]) -> Float[np.ndarray, " 4"]:
    """What tells a good reading from a bad one, in a picture of `size` (width, height).

    The finder's score; the mean confidence of the joints inside the picture; how far these moved from the first to the
    second reading, in units of the region's side, 0.3 at most; and 1.
    """
    inside = second.inside(*size)
    if not inside.any():
        return np.array([finder_score, 0.0, 0.3, 1.0])
    moved = np.linalg.norm(second.points - first.points, axis=1)[inside].mean() / second.region[2]
    return np.array([finder_score, second.raw_confidence[inside].mean(), min(moved, 0.3), 1.0])


def quality(values: Float[np.ndarray, "... 4"]) -> Float[np.ndarray, "..."]:
    """The share of joints expected within 0.2 torso lengths of their label, in [0, 1], from `traits`."""
    return np.clip(values @ np.array(error_table()["quality"]["weights"]), 0.0, 1.0)


def confidence(raw: Float[np.ndarray, " 33"], quality: float) -> Float[np.ndarray, " 33"]:
    """The probability that a joint lies within 0.2 torso lengths of its label.

    The model's own confidence says whether a joint is seen, the quality of the whole reading how often what it sees
    is right; their product is calibrated.
    """
    slope, constant = error_table()["confidence"]["weights"]
    return raw * np.clip(slope * quality + constant, 0.0, 1.0)
