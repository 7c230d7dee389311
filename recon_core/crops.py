"""Square pictures of subjects, cut out of a photo for methods that read images or masks."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from recon_core.geometry.cameras import invert_affine, transform_points, warp_image


def crop_photo(
    photo: UInt8[np.ndarray, "H W 3"], affine: Float[Tensor, "B 2 3"], side: int
) -> Float[Tensor, "B 3 side side"]:
    """The photo through each of `affine` (photo pixels to crop pixels), in [0, 1], black outside the photo.

    Where the crop is less than half as large as what it shows, pixels are averaged first, so that fine patterns do
    not alias.
    """
    return torch.cat([_crop(photo, row[None], side).div_(255) for row in affine] or [torch.zeros(0, 3, side, side)])


def crop_masks(
    masks: list[Float[Tensor, "H W"]], affine: Float[Tensor, "B 2 3"], side: int
) -> Float[Tensor, "B 1 side side"]:
    """One mask of the full photo a row, cropped like `crop_photo`, 0 outside the photo."""
    rows = [_crop(mask.numpy()[..., None], row[None], side) for mask, row in zip(masks, affine, strict=True)]
    return torch.cat(rows or [torch.zeros(0, 1, side, side)])


def _crop(picture: np.ndarray, affine: Float[Tensor, "1 2 3"], side: int) -> Float[Tensor, "1 C side side"]:
    """Crops differ in what they show and how far they reduce it, so each is cut from its own part of the photo."""
    corners = torch.tensor([[[0.0, 0.0], [side, side], [0.0, side], [side, 0.0]]], dtype=affine.dtype)
    shown = transform_points(invert_affine(affine), corners)[0]
    height, width = picture.shape[:2]
    reduction = 2 ** max(0, math.floor(math.log2(max((shown[1] - shown[0]).abs().max().item() / side, 1.0))))
    margin = 2 * reduction
    low = (shown.amin(0) - margin).floor().int().tolist()
    high = (shown.amax(0) + margin).ceil().int().tolist()
    left, top = (min(max(v, 0), size) for v, size in zip(low, (width, height), strict=True))
    right, bottom = (min(max(v, 0), size) for v, size in zip(high, (width, height), strict=True))
    if left >= right or top >= bottom:
        return torch.zeros(1, picture.shape[2], side, side)
    part = torch.from_numpy(picture[top:bottom, left:right].astype(np.float32)).permute(2, 0, 1)[None]
    shift = torch.tensor([float(left), float(top)], dtype=affine.dtype)
    moved = affine.clone()
    moved[:, :, 2] += (affine[:, :, :2] @ shift[:, None])[..., 0]
    if reduction > 1:
        # Whole cells only: what is missing at the right and bottom is outside the photo, or outside the crop.
        spare = (-part.shape[-1] % reduction, -part.shape[-2] % reduction)
        part = avg_pool2d(pad(part, (0, spare[0], 0, spare[1])), reduction)
        moved[:, :, :2] *= reduction
    return warp_image(part, moved.float(), (side, side))
