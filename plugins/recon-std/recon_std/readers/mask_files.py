"""Things found elsewhere: `recon run --mask FILE` reads where the thing is, in place of a detector."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from recon_core.errors import InputError, UsageError
from recon_core.images import Photo, load_image
from recon_core.interfaces import Detector, Settings
from recon_core.structures import Detection
from recon_std.readers.masks import EMPTY, FULL, mask_box


class MaskFilesSettings(Settings):
    """path: a picture, white where the thing is, of every photo; or a folder with NAME.png for NAME.jpg."""

    path: str


class MaskFileReader(Detector):
    """One thing a photo: where its mask is brighter than half. Raises InputError naming the file, for a mask that is
    missing, of another size than the photo, empty or full."""

    Config: ClassVar[type[Settings]] = MaskFilesSettings
    gives: ClassVar[frozenset[str]] = frozenset({"box", "mask"})

    def __init__(self, config: MaskFilesSettings | None = None) -> None:
        if config is None:
            raise UsageError("mask-files reads a file: --mask FILE")
        self.config = config
        self._path = Path(config.path)
        if not self._path.exists():
            raise InputError(f"{self._path}: no such file")

    def detect(self, image: np.ndarray) -> list[Detection]:
        """The thing of the file, whatever the picture shows."""
        return [_read(self._path, (image.shape[1], image.shape[0]))]

    def detect_photo(self, photo: Photo) -> list[Detection]:
        """The thing of the photo's own file where `path` is a folder, else that of the file."""
        if not self._path.is_dir():
            return [_read(self._path, photo.size)]
        path = next((p for p in sorted(self._path.glob("*")) if p.stem == photo.path.stem), None)
        if path is None:
            raise InputError(f"{self._path}: has no mask {photo.path.stem}.png for {photo.path}")
        return [_read(path, photo.size)]


def _read(path: Path, size: tuple[int, int]) -> Detection:
    mask = load_image(path)
    if mask.size != size:
        raise InputError(
            f"{path}: the mask has {mask.size[0]}x{mask.size[1]} pixels, its photo {size[0]}x{size[1]}; they must agree"
        )
    inside = mask.pixels.max(-1) > 127
    if not EMPTY < inside.mean() < FULL:
        what = "empty" if inside.mean() <= EMPTY else "full"
        raise InputError(f"{path}: the mask is {what}; it should be white where the thing is, and black around it")
    return Detection(mask_box(inside), 1.0, mask=torch.from_numpy(inside).float())
