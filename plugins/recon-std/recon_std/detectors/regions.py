"""Square regions of a picture, turned to the person: cutting them out, and mapping between the two frames.

A region is (x, y, side, angle): centre and side in picture pixels; angle in radians, clockwise on the screen, by
which the region's own upright is turned from the picture's. Regions are rows of (N, 4) arrays. Pixel centres
are at +0.5, so a crop of n pixels spans 0..n.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from PIL import Image


def whole(picture: Image.Image, angle: float = 0.0) -> Float[np.ndarray, " 4"]:
    """The smallest region that holds the whole picture, turned by a multiple of a right angle."""
    return np.array([picture.width / 2, picture.height / 2, max(picture.size), angle])


def between(
    centre: Float[np.ndarray, "N 2"], top: Float[np.ndarray, "N 2"], margin: float = 1.25
) -> Float[np.ndarray, "N 4"]:
    """Regions whose upright points from `centre` to `top`, `margin` times as wide as the circle through `top`."""
    up = top - centre
    side = 2 * margin * np.linalg.norm(up, axis=-1)
    return np.concatenate([centre, side[:, None], np.arctan2(up[:, 0], -up[:, 1])[:, None]], -1)


def to_picture(region: Float[np.ndarray, " 4"], size: int) -> Float[np.ndarray, "2 3"]:
    """The affine map from pixels of the region's (size x size) crop to picture pixels."""
    x, y, side, angle = np.asarray(region, np.float64)
    c, s = math.cos(angle) * side / size, math.sin(angle) * side / size
    half = size / 2
    return np.array([[c, -s, x - (c - s) * half], [s, c, y - (s + c) * half]])


def transform(affine: Float[np.ndarray, "2 3"], points: Float[np.ndarray, "... 2"]) -> np.ndarray:
    """Points through a 2D affine map."""
    return points @ affine[:, :2].T + affine[:, 2]


def corners(region: Float[np.ndarray, " 4"]) -> Float[np.ndarray, "4 2"]:
    """The region's corners in picture pixels."""
    return transform(to_picture(region, 1), np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))


def cut(picture: Image.Image, region: Float[np.ndarray, " 4"], size: int) -> Float[np.ndarray, "n n 3"]:
    """The region as (size, size, 3) float32 in [0, 1]; black outside the picture.

    Bilinear. A region more than twice as wide as its crop is first averaged down, so that nothing aliases.
    """
    affine = to_picture(region, size)
    factor = int(region[2] / size)
    if factor >= 2:
        left, top, right, bottom = _bounds(region, picture.width, picture.height, margin=2 * factor)
        if right - left < factor or bottom - top < factor:
            return np.zeros((size, size, 3), np.float32)
        # Averaging only the part that the region covers.
        picture = picture.reduce(factor, (left, top, right, bottom))
        affine = (affine - [[0, 0, left], [0, 0, top]]) / factor
    coefficients = tuple(map(float, affine.ravel()))
    crop = picture.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(crop, np.float32) / np.float32(255)


def paste(
    mask: Float[np.ndarray, "n n"], region: Float[np.ndarray, " 4"], width: int, height: int
) -> Float[np.ndarray, "height width"]:
    """A region's mask laid into the whole picture: float32, bilinear, 0 outside the region."""
    full = np.zeros((height, width), np.float32)
    left, top, right, bottom = _bounds(region, width, height)
    if right > left and bottom > top:
        affine = to_picture(region, len(mask))
        inverse = np.linalg.inv(affine[:, :2])
        shift = inverse @ (np.array([left, top]) - affine[:, 2])
        coefficients = tuple(map(float, np.concatenate([inverse, shift[:, None]], 1).ravel()))
        part = Image.fromarray(mask.astype(np.float32)).transform(
            (right - left, bottom - top), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
        )
        full[top:bottom, left:right] = np.asarray(part)
    return full


def _bounds(region: Float[np.ndarray, " 4"], width: int, height: int, margin: float = 0) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the part of a picture that the region covers."""
    points = corners(region)
    low = np.clip(np.floor(points.min(0) - margin), 0, [width, height]).astype(int)
    high = np.clip(np.ceil(points.max(0) + margin), 0, [width, height]).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])
