"""Photos with masks: a folder `images` and a folder `masks`, whose files pair by their path without its ending."""

from __future__ import annotations

import fnmatch
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from recon_core.crops import crop_masks, crop_photo
from recon_core.datasets import check_pictures, data_folder, read_picture
from recon_core.errors import TrainingError
from recon_core.interfaces import Dataset
from recon_std.readers.augmentation import Augmentation, AugmentationSettings

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}

EMPTY, FULL = 0.002, 0.998
"""Shares of the picture below and above which a mask shows no outline to learn from."""


class PairedPhotos(Dataset):
    """Things with their masks: what data sets of any layout share, whose `_pairs` says which files belong together.

    Fields: id, image, mask (square crops about the mask's box), to_crop, roll, flipped. Raises TrainingError naming the
    file: for photos without mask, masks of another size, empty or full ones, and files that are missing or damaged (the
    first is named, the rest counted).
    """

    class Config(AugmentationSettings):
        rotation: float = 0.0
        scale: float = 0.1
        color: float = 0.0
        crop_size: int = Field(default=128, ge=16)
        crop_margin: float = Field(default=1.15, gt=0)
        """Side of the crop over the longer side of the mask's box."""
        augment: bool = True

    config: Config
    name: ClassVar[str]
    """Under which the reader is registered."""
    above: ClassVar[int] = 127
    """A mask's pixels are the thing's where they are brighter than this."""

    def __init__(self, location: str | Path | None = None, config: Config | None = None) -> None:
        super().__init__(location, config)
        self.folder = data_folder(self.name, location)
        self.pairs = self._pairs()
        check_pictures(self.name, (path for pair in self.pairs.values() for path in pair))
        boxes = {name: box for name, pair in self.pairs.items() if (box := self._box(*pair))}
        self.ids, self.boxes = list(boxes), list(boxes.values())

    @abstractmethod
    def _pairs(self) -> dict[str, tuple[Path, Path]]:
        """Photo and mask of every subject, by its id."""

    def _box(self, photo: Path, path: Path) -> tuple[float, float, float, float] | None:
        """x, y, w, h of the mask `path`, None where it is to be left out."""
        mask = read_mask(path, self.above)
        with Image.open(photo) as picture:
            width, height = picture.size
        if mask.shape != (height, width):
            raise TrainingError(
                f"{path}: {mask.shape[1]}x{mask.shape[0]} pixels, but its photo has {width}x{height}; they must agree"
            )
        return mask_box(mask) if self._usable(path, float(mask.mean())) else None

    def _usable(self, path: Path, share: float) -> bool:
        """Whether there is an outline to learn from in the mask, which covers `share` of its photo."""
        if not EMPTY < share < FULL:
            raise TrainingError(f"{path}: the mask is {'empty' if share <= EMPTY else 'full'}; it shows no outline")
        return True

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._subject(index, Augmentation())

    def draw(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
        varied = Augmentation.draw(self.config, generator) if self.config.augment else Augmentation()
        return self._subject(index, varied)

    def _subject(self, index: int, varied: Augmentation) -> dict[str, Any]:
        name, side = self.ids[index], self.config.crop_size
        photo, mask = self.pairs[name]
        affine = varied.crop(self.boxes[index], side, self.config.crop_margin)
        image = crop_photo(read_picture(photo), affine[None], side)[0]
        return {
            "id": name,
            "image": (image * torch.tensor(varied.color)[:, None, None]).clamp(0, 1),
            "mask": crop_masks([torch.from_numpy(read_mask(mask, self.above)).float()], affine[None], side)[0],
            "to_crop": affine,
            "roll": varied.roll,
            "flipped": float(varied.flipped),
        }


class MaskedPhotosDataset(PairedPhotos):
    """`--data masks:DIR`: DIR/images/NAME.jpg and DIR/masks/NAME.png, in folders or not; see `PairedPhotos`.

    Where DIR/index.json lists `items` with `image` and `split`, the setting `split` picks among them. Raises
    TrainingError for fewer than two pairs.
    """

    class Config(PairedPhotos.Config):
        split: Literal["train", "val", "all"] = "train"
        only: str = "*"
        """Pattern of the photos read, below `images`: "car/*"."""

    config: Config
    name = "masks"

    def _pairs(self) -> dict[str, tuple[Path, Path]]:
        photos, masks = (by_stem(self.folder / kind) for kind in ("images", "masks"))
        chosen = self._chosen()
        names = [n for n in sorted(photos) if fnmatch.fnmatch(n, self.config.only) and (chosen is None or n in chosen)]
        if lonely := [name for name in names if name not in masks]:
            raise TrainingError(
                f"{photos[lonely[0]]}: has no mask {self.folder / 'masks' / lonely[0]}.*"
                + (f", nor have {len(lonely) - 1} more" if len(lonely) > 1 else "")
            )
        if len(names) < 2:
            raise TrainingError(
                f"{self.folder}: {len(names)} pairs of images/NAME.jpg and masks/NAME.png for split "
                f"'{self.config.split}' and only '{self.config.only}'; a training needs two or more"
            )
        return {name: (photos[name], masks[name]) for name in names}

    def _chosen(self) -> set[str] | None:
        """Names of the split's photos, None where every photo counts."""
        file = self.folder / "index.json"
        if self.config.split == "all" or not file.exists():
            return None
        try:
            items = json.loads(file.read_text(encoding="utf-8"))["items"]
            return {
                str(Path(item["image"]).relative_to("images").with_suffix(""))
                for item in items
                if item["split"] == self.config.split
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{file}: not a list of items with image and split ({error})") from None


def read_mask(path: Path, above: int = 127) -> np.ndarray:
    """(H, W) bool: where the picture is brighter than `above`, of 255. Raises TrainingError naming the file."""
    return read_picture(path).max(-1) > above


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """x, y, w, h in pixels of a mask that is not empty."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    x, y = float(columns[0]), float(rows[0])
    return x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y


def by_stem(folder: Path) -> dict[str, Path]:
    """The pictures in a folder and its folders, by their path there without its ending."""
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder; the data set has its photos or masks there")
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _PICTURES)
    return {str(path.relative_to(folder).with_suffix("")): path for path in found}
