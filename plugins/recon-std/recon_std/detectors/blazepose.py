"""The default detector: everyone in a picture, with 33 joints and a mask each, by MediaPipe's BlazePose files."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from recon_core.assets import Assets, assets
from recon_core.interfaces import Detector, Settings
from recon_core.structures import Detection, Keypoints
from recon_std.detectors.landmark_model import LandmarkModel, Landmarks
from recon_std.detectors.person_finder import PersonFinder, regions_of, weighted_suppression
from recon_std.detectors.regions import paste
from recon_std.detectors.tflite import TFLiteModel


class BlazePoseSettings(Settings):
    threads: int = Field(1, ge=1)
    person_threshold: float = Field(0.5, gt=0, lt=1)
    landmark_threshold: float = Field(0.5, ge=0, lt=1)
    passes: int = Field(2, ge=1, le=5)
    masks: bool = True


class BlazePoseDetector(Detector):
    Config: ClassVar[type[Settings]] = BlazePoseSettings
    gives: ClassVar[frozenset[str]] = frozenset({"box", "keypoints", "mask"})

    def __init__(self, config: BlazePoseSettings | None = None, files: Assets | None = None) -> None:
        self.config = config or BlazePoseSettings()
        files = files or assets()
        files.get("blazepose-detection")
        threads = self.config.threads
        self._find = PersonFinder(
            TFLiteModel(files.get("blazepose-detection"), threads), self.config.person_threshold
        )
        self._read = LandmarkModel(TFLiteModel(files.get("blazepose-landmarks"), threads))

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Everyone found, best first."""
        picture = Image.fromarray(image)
        width, height = picture.size
        whole = np.array([[width / 2, height / 2, max(width, height), 0.0]])
        found = weighted_suppression(self._find(picture, whole))
        people = []
        for region in regions_of(found):
            person = self._read(picture, region)
            for _ in range(self.config.passes - 1):
                person = self._read(picture, person.next_region)
            if person.score >= self.config.landmark_threshold:
                people.append(self._detection(person, width, height))
        return sorted(people, key=lambda d: -d.score)

    def _detection(self, person: Landmarks, width: int, height: int) -> Detection:
        confidence = person.visibility * person.presence
        seen = person.points[confidence > 0.3] if (confidence > 0.3).sum() > 3 else person.points
        low = np.clip(seen.min(0), 0, [width, height])
        high = np.clip(seen.max(0), 0, [width, height])
        keypoints = Keypoints(
            torch.from_numpy(person.points[None]).float(),
            torch.from_numpy(confidence[None]).float(),
            "blazepose33",
        )
        mask = (
            torch.from_numpy(paste(person.mask, person.region, width, height)) if self.config.masks else None
        )
        box = (float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
        return Detection(box, person.score, keypoints, mask)
