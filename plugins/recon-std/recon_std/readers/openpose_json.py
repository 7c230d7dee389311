"""Joints from OpenPose's `--write_json` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from recon_core.errors import InputError, UsageError
from recon_core.images import Photo
from recon_core.interfaces import Detector, Settings
from recon_core.skeletons import skeleton
from recon_core.structures import Detection
from recon_std.readers.keypoint_json import check_inside, detection, read_json, triples

# Number of joints in the file: skeleton, and its row of each. OpenPose's COCO layout has 18 of BODY_25's joints; 17
# joints in COCO's own order are what other tools write in this form.
_LAYOUTS = {
    25: ("openpose25", tuple(range(25))),
    18: ("openpose25", (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)),
    17: ("coco17", tuple(range(17))),
}


class OpenPoseSettings(Settings):
    """path: a file, which then speaks of every photo; or a folder with NAME_keypoints.json for NAME.jpg."""

    path: str


class OpenPoseReader(Detector):
    """People of OpenPose files in full-picture pixels: BODY_25 and COCO (18) as openpose25, 17 joints as coco17."""

    Config: ClassVar[type[Settings]] = OpenPoseSettings
    gives: ClassVar[frozenset[str]] = frozenset({"box", "keypoints"})

    def __init__(self, config: OpenPoseSettings | None = None) -> None:
        if config is None:
            raise UsageError("openpose-json reads a file: --keypoints FILE")
        self.config = config
        self._path = Path(config.path)
        if not self._path.exists():
            raise InputError(f"{self._path}: no such file")

    def detect(self, image: np.ndarray) -> list[Detection]:
        """The people of the file, whatever the picture."""
        return self._read(self._path, (image.shape[1], image.shape[0]))

    def detect_photo(self, photo: Photo) -> list[Detection]:
        """The people of the photo's own file where `path` is a folder, else those of the file."""
        if not self._path.is_dir():
            return self._read(self._path, photo.size)
        names = (f"{photo.path.stem}_keypoints.json", f"{photo.path.stem}.json")
        path = next((self._path / name for name in names if (self._path / name).is_file()), None)
        if path is None:
            raise InputError(f"{self._path}: has no {names[0]} for {photo.path}")
        return self._read(path, photo.size)

    def _read(self, path: Path, size: tuple[int, int]) -> list[Detection]:
        content = read_json(path)
        people = content.get("people") if isinstance(content, dict) else None
        if not isinstance(people, list):
            raise InputError(f"{path}: not an OpenPose file (no list 'people')")
        found = [self._person(person, f"{path}, person {number}", size) for number, person in enumerate(people, 1)]
        kept = sorted((d for d in found if d is not None), key=lambda d: -d.score * d.box[3])
        check_inside(kept, path, size)
        return kept

    def _person(self, person: Any, where: str, size: tuple[int, int]) -> Detection | None:
        values = person.get("pose_keypoints_2d", person.get("pose_keypoints")) if isinstance(person, dict) else None
        rows = triples(values, f"{where}, pose_keypoints_2d")
        if len(rows) not in _LAYOUTS:
            known = "25 (BODY_25), 18 (OpenPose's COCO) or 17 (COCO)"
            raise InputError(f"{where}: has {len(rows)} joints; {known} can be read")
        name, order = _LAYOUTS[len(rows)]
        full = np.zeros((len(skeleton(name)), 3))
        full[list(order)] = rows
        confidence = full[:, 2]
        if (confidence < 0).any() or (confidence > 2).any():
            raise InputError(f"{where}: confidences should lie between 0 and 1")
        seen = confidence > 0
        if seen.sum() > 1 and min(size) > 4 and np.abs(full[seen, :2]).max() <= 1:
            raise InputError(
                f"{where}: coordinates between 0 and 1 are not pixels; run OpenPose with --keypoint_scale 0"
            )
        return detection(full[:, :2], np.clip(confidence, 0, 1), name, size)
