"""What the readers of joints from JSON files share: reading the file, checking the numbers, making detections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from recon_core.errors import InputError
from recon_core.structures import Detection, Keypoints

_BOX_MARGIN = 0.1  # of the longer side: joints end before the body does


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises InputError when it is missing, empty or no JSON."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a JSON file (not text)") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not a JSON file (line {error.lineno}: {error.msg})") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply for a file of joints") from None


def triples(values: Any, where: str) -> Float[np.ndarray, "J 3"]:
    """A flat list x, y, c, x, y, c, ... as an array. Raises InputError, naming `where`, for anything else or NaN."""
    numbers = isinstance(values, list) and all(isinstance(v, int | float) for v in values)
    if not numbers or not values or len(values) % 3:
        raise InputError(f"{where}: should be a list of x, y, confidence for each joint")
    try:
        array = np.array(values, np.float64).reshape(-1, 3)
    except OverflowError:
        array = np.full((1, 3), np.nan)
    if not np.isfinite(array).all():
        raise InputError(f"{where}: holds numbers that are not finite (NaN or infinity)")
    return array


def detection(
    points: Float[np.ndarray, "J 2"],
    confidence: Float[np.ndarray, " J"],
    skeleton: str,
    size: tuple[int, int],
    score: float | None = None,
    box: Sequence[float] | None = None,
) -> Detection | None:
    """A person of joints in pixels of a picture of `size` (w, h); None when no joint has confidence.

    score: mean confidence of the joints there are, by default. box: x, y, w, h; by default round those joints, with a
    margin, cut at the picture's edge.
    """
    seen = confidence > 0
    if not seen.any():
        return None
    if box is None:
        low, high = points[seen].min(0), points[seen].max(0)
        margin = _BOX_MARGIN * max((high - low).max(), 1.0)
        low, high = np.clip(low - margin, 0, size), np.clip(high + margin, 0, size)
        box = [*low, *(high - low)]
    keypoints = Keypoints(torch.from_numpy(points[None]).float(), torch.from_numpy(confidence[None]).float(), skeleton)
    x, y, w, h = map(float, box)
    return Detection((x, y, w, h), float(confidence[seen].mean() if score is None else score), keypoints)


def check_inside(found: Sequence[Detection], path: Path, size: tuple[int, int]) -> None:
    """Raises InputError when nobody's box touches the picture: the file is about another one."""
    width, height = size
    inside = [
        d.box[0] < width and d.box[1] < height and d.box[0] + d.box[2] > 0 and d.box[1] + d.box[3] > 0 for d in found
    ]
    if found and not any(inside):
        raise InputError(
            f"{path}: its joints lie outside the picture of {width}x{height} pixels; is it about another picture?"
        )
