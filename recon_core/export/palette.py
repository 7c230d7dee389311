"""The colour of each subject, the same in overlay, scene and report."""

from __future__ import annotations

import colorsys

import numpy as np
from jaxtyping import Float

_FIRST_HUE = 0.58
_GOLDEN = 0.61803398875  # steps of the golden ratio keep any number of hues apart


def subject_colors(count: int) -> Float[np.ndarray, "N 3"]:
    """sRGB in [0, 1], one row a subject; the first ones do not depend on how many follow."""
    rows = [colorsys.hls_to_rgb((_FIRST_HUE + i * _GOLDEN) % 1.0, 0.68, 0.55) for i in range(count)]
    return np.array(rows, np.float32).reshape(count, 3)
