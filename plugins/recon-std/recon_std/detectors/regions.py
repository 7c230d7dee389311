"""Square regions of a picture, turned to the person: cutting them out and mapping between their pixels and the picture's.

A region is (x, y, side, angle): centre and side in picture pixels; angle in radians, clockwise on the screen, by
which the region's own upright is turned from the picture's. Regions are rows of (N, 4) arrays.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from PIL import Image


def to_picture(regions: Float[np.ndarray, "N 4"], size: int) -> Float[np.ndarray, "N 2 3"]:
    """Affine maps from pixels of the regions' (size x size) crops to picture pixels."""
    x, y, side, angle = np.moveaxis(np.asarray(regions, np.float64), -1, 0)
    c, s = np.cos(angle) * side / size, np.sin(angle) * side / size
    half = size / 2
    return np.stack([np.stack([c, -s, x - (c - s) * half], -1), np.stack([s, c, y - (s + c) * half], -1)], -2)


def transform(affine: Float[np.ndarray, "... 2 3"], points: Float[np.ndarray, "... K 2"]) -> np.ndarray:
    """Points through 2D affine maps."""
    return points @ np.swapaxes(affine[..., :2], -1, -2) + affine[..., None, :, 2]


def cut(picture: Image.Image, region: Float[np.ndarray, " 4"], size: int) -> np.ndarray:
    """The region as (size, size, 3) float32 in [0, 1]; black outside the picture.

    Bilinear; a region larger than its crop is first averaged down, so that nothing aliases.
    """
    x, y, side, angle = map(float, region)
    affine = to_picture(np.asarray(region)[None], size)[0]
    factor = int(side / size)
    if factor >= 2:
        # Only the part of the picture that the region covers is averaged.
        reach = side / 2 * (abs(math.cos(angle)) + abs(math.sin(angle))) + 2 * factor
        left, top = max(0, int(x - reach)), max(0, int(y - reach))
        right, bottom = min(picture.width, int(x + reach) + 1), min(picture.height, int(y + reach) + 1)
        if right - left < factor or bottom - top < factor:
            return np.zeros((size, size, 3), np.float32)
        # reduce() averages partial blocks at the far edges as whole ones, so cut to whole blocks where possible
        picture = picture.reduce(factor, (left, top, right, bottom))
        affine = affine - [[0, 0, left], [0, 0, top]]
        affine /= factor
    crop = picture.transform(
        (size, size), Image.Transform.AFFINE, tuple(affine.ravel()), Image.Resampling.BILINEAR
    )
    return np.asarray(crop, np.float32) / np.float32(255)


def paste(
    mask: Float[np.ndarray, "n n"], region: Float[np.ndarray, " 4"], width: int, height: int
) -> np.ndarray:
    """A region's mask laid into the whole picture: (height, width) float32, 0 outside the region."""
    size = len(mask)
    a = to_picture(np.asarray(region)[None], size)[0]
    inverse = np.linalg.inv(a[:, :2])
    shift = -inverse @ a[:, 2]
    corners = transform(a, np.array([[0, 0], [size, 0], [size, size], [0, size]], float))
    left, top = np.clip(np.floor(corners.min(0)).astype(int), 0, [width, height])
    right, bottom = np.clip(np.ceil(corners.max(0)).astype(int), 0, [width, height])
    full = np.zeros((height, width), np.float32)
    if right > left and bottom > top:
        shift = shift + inverse @ [left, top]
        coefficients = np.concatenate([inverse, shift[:, None]], 1).ravel()
        full[top:bottom, left:right] = Image.fromarray(mask.astype(np.float32)).transform(
            (int(right - left), int(bottom - top)),
            Image.Transform.AFFINE,
            tuple(coefficients),
            Image.Resampling.BILINEAR,
        )
    return full
