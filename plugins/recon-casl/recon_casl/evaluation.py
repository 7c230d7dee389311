"""How well drawings agree with photos (section 4), on pairs that were not learned from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from recon_casl.method import CASL
from recon_casl.model import Attributes
from recon_core.frechet import PictureFeatures, frechet_distance
from recon_core.metrics import mask_iou, structural_similarity
from recon_std.readers.masks import MaskedPhotosDataset

SIDE = 128
"""Pixels a side at which drawings and photos are compared."""
GOLDEN = 137.508
"""Degrees from each novel view to the next: they spread evenly over the circle, however many there are."""


@dataclass(frozen=True)
class Evaluation:
    """Of N pairs. values: mask_iou, ssim (things on black), azimuth_degrees and elevation_degrees of the cameras found.
    photos, drawn, novel, sideways: things on black in [0, 1]: as they are, drawn from where they were seen, from an
    azimuth anywhere on the circle, and from 90 degrees aside.
    """

    ids: list[str]
    values: Mapping[str, Float[Tensor, " N"]]
    photos: Float[Tensor, "N 3 S S"]
    drawn: Float[Tensor, "N 3 S S"]
    novel: Float[Tensor, "N 3 S S"]
    sideways: Float[Tensor, "N 3 S S"]

    def distances(self, features: PictureFeatures) -> dict[str, float]:
        """Frechet distances of the three sets of drawings from the photos (columns 3 to 5 of table 4)."""
        real = features.of(self.photos)
        sets = {"recon": self.drawn, "novel": self.novel, "90": self.sideways}
        return {
            f"{features.metric} {name}": frechet_distance(features.of(pictures), real)
            for name, pictures in sets.items()
        }


@torch.no_grad()
def evaluate(
    method: CASL, folder: str | Path, split: str = "val", only: str = "*", explained: bool = False
) -> Evaluation:
    """Of each pair of a `masks` folder. Crops are the reader's, unvaried. What is judged is what the encoders `read`,
    as in the paper, or what the method makes of it (`explained`)."""
    settings = MaskedPhotosDataset.Config(split=split, only=only, crop_size=method.crop_size, augment=False)  # type: ignore[arg-type]
    dataset = MaskedPhotosDataset(folder, settings)
    rows: list[dict[str, Tensor]] = []
    for index, item in enumerate(dataset):
        cut = torch.cat([item["image"] * item["mask"], item["mask"]])[None]
        found = method.explain(cut)[0] if explained else method.read(cut)
        truth = interpolate(cut, (SIDE, SIDE), mode="area")
        drawn, mask = seen(method, found)
        rows.append(
            {
                "mask_iou": mask_iou(mask, truth[:, 3:]),
                "ssim": structural_similarity(drawn, truth[:, :3]),
                "azimuth_degrees": found.view.azimuth_degrees,
                "elevation_degrees": torch.rad2deg(found.view.elevation),
                "photos": truth[:, :3],
                "drawn": drawn,
                "novel": seen(method, found, GOLDEN * (index + 1))[0],
                "sideways": seen(method, found, 90.0)[0],
            }
        )
    all_rows = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    pictures = {name: all_rows.pop(name) for name in ("photos", "drawn", "novel", "sideways")}
    return Evaluation(dataset.ids, all_rows, **pictures)


def seen(method: CASL, found: Attributes, turn: float = 0.0) -> tuple[Tensor, Tensor]:
    """Picture on black (B, 3, SIDE, SIDE) and mask (B, 1, SIDE, SIDE) from `turn` degrees aside."""
    view = found.view.turned(turn)
    mesh = method.model.mesh(dataclasses.replace(found, view=view))
    picture = method.renderer.render(mesh, view.camera(SIDE), found.light)
    return picture.image.clamp(0, 1), picture.mask.float()
