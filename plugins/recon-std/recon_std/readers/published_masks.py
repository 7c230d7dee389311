"""Photos with masks in the layouts of their owners: ATR, Market-1501-HQ, CUB-200-2011. Fields as of `masks`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from recon_core.errors import TrainingError
from recon_std.readers.masks import EMPTY, FULL, PairedPhotos, by_stem

_SHARE = re.compile(r"_[01]\.\d\d$")
"""CASL's authors write the share of the photo that a mask covers at the end of its name: NAME_0.54.png."""


class _Published(PairedPhotos):
    """Large sets hold some masks that are no use: those that cover less or more of their photo than `foreground` says
    are left out. Raises TrainingError as `PairedPhotos` does, and where fewer than two pairs are left."""

    class Config(PairedPhotos.Config):
        split: Literal["train", "val", "all"] = "train"
        foreground: tuple[float, float] = (EMPTY, FULL)
        """Least and largest share of a photo that its mask may cover."""

    config: Config

    def __init__(self, location: str | Path | None = None, config: Config | None = None) -> None:
        super().__init__(location, config)
        if len(self.ids) < 2:
            raise TrainingError(
                f"{self.folder}: {len(self.ids)} of {len(self.pairs)} photos of split '{self.config.split}' have a "
                f"mask that covers {self.config.foreground[0]} to {self.config.foreground[1]} of them; two are needed"
            )

    def _usable(self, path: Path, share: float) -> bool:
        least, largest = self.config.foreground
        return least < share < largest

    def _matched(
        self, photos: dict[str, Path], masks: dict[str, Path], names: Iterable[str]
    ) -> dict[str, tuple[Path, Path]]:
        """Photo and mask of each name. Raises TrainingError for the first that lacks one, counting the rest."""
        names = list(names)
        lacking = [
            (name, kind) for name in names for kind, has in (("photo", photos), ("mask", masks)) if name not in has
        ]
        if lacking:
            name, kind = lacking[0]
            rest = f", nor do {len(lacking) - 1} more have theirs" if len(lacking) > 1 else ""
            raise TrainingError(
                f"{self.folder}: '{name}' has no {kind}{rest}; --data {self.name} needs the whole data set"
            )
        return {name: (photos[name], masks[name]) for name in names}


class ATRDataset(_Published):
    """People in street photos, parsed (Liang et al., ICCV 2015): `--data atr:DIR`, the folder `humanparsing`.

    DIR/JPEGImages/NAME.jpg, and DIR/SegmentationClassAug/NAME.png, whose pixels number the part they show, 0 for none.
    The set comes undivided: the splits are lists of names, a line each, in DIR/train.txt and DIR/val.txt, where the
    user puts them (datasets/ATR_train.txt of CASL's authors is one). The split "all", the default, needs none.
    """

    class Config(_Published.Config):
        split: Literal["train", "val", "all"] = "all"

    config: Config
    name = "atr"
    above = 0

    def _pairs(self) -> dict[str, tuple[Path, Path]]:
        photos, masks = (by_stem(self.folder / kind) for kind in ("JPEGImages", "SegmentationClassAug"))
        return self._matched(photos, masks, sorted(photos) if self.config.split == "all" else self._listed())

    def _listed(self) -> list[str]:
        file = self.folder / f"{self.config.split}.txt"
        if not file.is_file():
            raise TrainingError(
                f"{file}: missing; ATR has no split of its own: list names there, or --set atr.split=all"
            )
        return [_SHARE.sub("", Path(line).stem) for line in _lines(file)]


class MarketHQDataset(_Published):
    """Pedestrians of Market-1501, enlarged, with masks (Zheng et al., 2022): `--data market-hq:DIR`, the folder `hq`.

    DIR/pytorch/SET/PERSON/NAME.png and DIR/seg/SET/PERSON/NAME.png, SET being train_all for training and query for
    validation. Masks may be named NAME_0.54.png, by the share they cover, as the authors prepare them. Those that
    cover less than 0.36 or more than 0.81 are left out, as in their training.
    """

    class Config(_Published.Config):
        foreground: tuple[float, float] = (0.36, 0.81)

    config: Config
    name = "market-hq"
    above = 0

    def _pairs(self) -> dict[str, tuple[Path, Path]]:
        sets = {"train": ("train_all",), "val": ("query",), "all": ("train_all", "query")}[self.config.split]
        photos, masks = (
            {f"{part}/{name}": path for part in sets for name, path in by_stem(self.folder / kind / part).items()}
            for kind in ("pytorch", "seg")
        )
        masks = {_SHARE.sub("", name): path for name, path in masks.items()}
        return self._matched(photos, masks, sorted(photos))


class CUBDataset(_Published):
    """Birds (Wah et al., Caltech 2011): `--data cub:DIR`, the folder CUB_200_2011.

    DIR/images/SPECIES/NAME.jpg, listed in DIR/images.txt; DIR/train_test_split.txt divides them (validation is the
    published test set). DIR/segmentations/SPECIES/NAME.png, a download of its own, tells how many of five people took a
    pixel for the bird: three or more make it the bird's.
    """

    class Config(_Published.Config):
        species: str = Field(default="", pattern=r"^[\w.-]*$")
        """Only photos of folders whose name holds this: "Albatross"."""

    config: Config
    name = "cub"

    def _pairs(self) -> dict[str, tuple[Path, Path]]:
        names = self._table("images.txt")
        training = self._table("train_test_split.txt")
        if lost := [number for number in names if training.get(number) not in ("0", "1")]:
            raise TrainingError(f"{self.folder / 'train_test_split.txt'}: has no 0 or 1 for image {lost[0]}")
        wanted = {"train": ("1",), "val": ("0",), "all": ("0", "1")}[self.config.split]
        chosen = [str(Path(name).with_suffix("")) for number, name in names.items() if training[number] in wanted]
        photos, masks = (by_stem(self.folder / kind) for kind in ("images", "segmentations"))
        return self._matched(photos, masks, [name for name in chosen if self.config.species in name.split("/")[0]])

    def _table(self, file: str) -> dict[str, str]:
        path = self.folder / file
        rows = [line.split(maxsplit=1) for line in _lines(path)]
        if broken := [number for number, row in enumerate(rows, 1) if len(row) != 2]:
            raise TrainingError(f"{path}: line {broken[0]} is not a number and a value")
        return dict(rows)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
