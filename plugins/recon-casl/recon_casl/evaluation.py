"""How well drawings agree with photos (section 4): MaskIoU and SSIM, on pairs that were not learned from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from recon_casl.method import CASL
from recon_core.metrics import mask_iou, structural_similarity
from recon_std.readers.masks import MaskedPhotosDataset

SIDE = 128
"""Pixels a side at which drawings and photos are compared."""


@torch.no_grad()
def evaluate(
    method: CASL, folder: str | Path, split: str = "val", only: str = "*"
) -> Mapping[str, Float[Tensor, " N"]]:
    """Of each pair of a `masks` folder: mask_iou, ssim (things on black), and the camera's azimuth_degrees and
    elevation_degrees. Crops are the reader's, unvaried."""
    settings = MaskedPhotosDataset.Config(split=split, only=only, crop_size=method.crop_size, augment=False)  # type: ignore[arg-type]
    rows: list[dict[str, Tensor]] = []
    for item in MaskedPhotosDataset(folder, settings):
        cut = torch.cat([item["image"] * item["mask"], item["mask"]])[None]
        found = method.read(cut)
        truth = interpolate(cut, (SIDE, SIDE), mode="area")
        picture = method.renderer.render(method.model.mesh(found), found.view.camera(SIDE), found.light)
        rows.append(
            {
                "mask_iou": mask_iou(picture.mask.float(), truth[:, 3:]),
                "ssim": structural_similarity(picture.image.clamp(0, 1), truth[:, :3]),
                "azimuth_degrees": found.view.azimuth_degrees,
                "elevation_degrees": torch.rad2deg(found.view.elevation),
            }
        )
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
