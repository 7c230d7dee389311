"""Joints from JSON files in COCO's layouts: annotations of a data set, and results of a detector."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from recon_core.errors import InputError, UsageError
from recon_core.images import Photo
from recon_core.interfaces import Detector, Settings
from recon_core.skeletons import skeleton
from recon_core.structures import Detection
from recon_std.readers.keypoint_json import check_inside, detection, read_json, triples

_HIDDEN = 0.5  # confidence of a joint that was annotated though it cannot be seen


class CocoSettings(Settings):
    """path: the file. least_score: people of a detector's results with a lower score are left out."""

    path: str
    least_score: float = 0.2


class CocoReader(Detector):
    """People of a COCO file as coco17 joints in full-picture pixels, found by the photo's file name.

    Annotations ({"images", "annotations"}): the third number of a joint is 0 absent, 1 hidden, 2 visible. Results
    ([{"image_id", "keypoints", "score"}]): it is the joint's confidence; the picture is the one whose number, or
    name, is image_id. A file about a single picture speaks of every photo.
    """

    Config: ClassVar[type[Settings]] = CocoSettings
    gives: ClassVar[frozenset[str]] = frozenset({"box", "keypoints"})

    def __init__(self, config: CocoSettings | None = None) -> None:
        if config is None:
            raise UsageError("coco-json reads a file: --keypoints FILE")
        self.config = config
        self._path = Path(config.path)
        content = read_json(self._path)
        self._is_results = isinstance(content, list)
        rows = content if isinstance(content, list) else _list(content, "annotations", self._path)
        images = [] if self._is_results else _list(content, "images", self._path)
        if not all(isinstance(row, dict) for row in [*rows, *images]):
            raise InputError(f"{self._path}: not in COCO's layout (entries should be objects)")
        self._people: dict[Hashable, list[dict[str, Any]]] = {}
        for row in rows:
            if not isinstance(row.get("image_id"), int | str):
                raise InputError(f"{self._path}: not in COCO's layout (an entry without image_id)")
            if not row.get("iscrowd") and row.get("keypoints") is not None:
                self._people.setdefault(row["image_id"], []).append(row)
        if not any(self._people.values()):
            raise InputError(f"{self._path}: holds no keypoints")
        self._names = {i.get("id"): str(i.get("file_name", "")) for i in images}

    def detect(self, image: np.ndarray) -> list[Detection]:
        """The people of a file about one picture. Raises InputError for a file about several."""
        images = set(self._names) or set(self._people)
        if len(images) != 1:
            raise InputError(f"{self._path}: is about {len(images)} pictures, and this one has no name")
        return self._read(next(iter(images)), (image.shape[1], image.shape[0]))

    def detect_photo(self, photo: Photo) -> list[Detection]:
        """The people of the photo of that name; an empty list when the file lists the photo with nobody in it."""
        return self._read(self._image_of(photo.path), photo.size)

    def _image_of(self, path: Path) -> Hashable:
        same = [key for key, name in self._names.items() if PurePosixPath(name).name == path.name]
        if len(same) > 1:
            same = [key for key in same if path.absolute().as_posix().endswith("/" + self._names[key])]
            if len(same) != 1:
                raise InputError(f"{self._path}: lists several pictures called {path.name}")
        if not self._names:
            numbers = [int(path.stem)] if path.stem.isdecimal() else []
            same = [key for key in (path.name, path.stem, *numbers) if key in self._people]
        known = list(self._names) or list(self._people)
        if not same and len(known) != 1:
            example = self._names.get(known[0], known[0])
            raise InputError(
                f"{self._path}: has nothing about {path.name} (it is about {len(known)} pictures, e.g. {example})"
            )
        return same[0] if same else known[0]

    def _read(self, image: Hashable, size: tuple[int, int]) -> list[Detection]:
        found = []
        for number, row in enumerate(self._people.get(image, []), 1):
            where = f"{self._path}, picture {self._names.get(image, image)}, person {number}"
            rows = triples(row["keypoints"], f"{where}, keypoints")
            if len(rows) != len(skeleton("coco17")):
                raise InputError(f"{where}: has {len(rows)} joints; COCO's 17 can be read")
            confidence = np.clip(rows[:, 2], 0, 1) if self._is_results else self._of_flags(rows[:, 2], where)
            score = self._score(row, where)
            if score is not None and score < self.config.least_score:
                continue
            person = detection(rows[:, :2], confidence, "coco17", size, score, self._box(row, where))
            if person is not None:
                found.append(person)
        found.sort(key=lambda d: (-d.score, -d.box[2] * d.box[3]))
        check_inside(found, self._path, size)
        return found

    def _of_flags(self, flags: np.ndarray, where: str) -> np.ndarray:
        if not np.isin(flags, (0, 1, 2)).all():
            raise InputError(f"{where}: visibility of annotated joints should be 0, 1 or 2")
        return np.array([0.0, _HIDDEN, 1.0])[flags.astype(int)]

    def _score(self, row: dict[str, Any], where: str) -> float | None:
        score = row.get("score")
        if score is None:
            return None if self._is_results else 1.0
        if not isinstance(score, int | float) or not np.isfinite(score):
            raise InputError(f"{where}: score should be a number")
        return float(np.clip(score, 0, 1))

    def _box(self, row: dict[str, Any], where: str) -> list[float] | None:
        box = row.get("bbox")
        if box is None:
            return None
        good = (
            isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) and np.isfinite(v) for v in box)
        )
        if not good or box[2] <= 0 or box[3] <= 0:
            raise InputError(f"{where}: bbox should be x, y, width, height")
        return box


def _list(content: Any, name: str, path: Path) -> list[Any]:
    values = content.get(name) if isinstance(content, dict) else None
    if not isinstance(values, list):
        raise InputError(f"{path}: not in COCO's layout (no list '{name}')")
    return values
