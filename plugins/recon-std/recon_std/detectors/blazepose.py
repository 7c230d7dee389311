"""The default detector: everyone in a picture, with 33 joints and a mask each, by MediaPipe's BlazePose files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from pydantic import Field

from recon_core.assets import Assets, assets
from recon_core.interfaces import Detector, Settings
from recon_core.skeletons import skeleton
from recon_core.structures import Detection, Keypoints
from recon_std.detectors import calibration
from recon_std.detectors.landmark_model import INPUT_SIZE, LandmarkModel, Landmarks
from recon_std.detectors.person_finder import PersonFinder
from recon_std.detectors.regions import paste, to_picture, transform, whole
from recon_std.detectors.tflite import TFLiteModel, sigmoid

_TILE_THRESHOLD = 0.1  # added to person_threshold in tiles, where the finder sees more that is no person
_TURN_BELOW = 0.6  # expected share of right joints below which turned views of a person are tried
_TURNED_PEOPLE = 2  # of so many people of one picture, since each costs three views
_SAME_POINTS = 0.12  # mean distance of joints, in units of the smaller region, under which two readings are one person
_SAME_MASK = 0.85  # share of the smaller mask inside the larger one above which they are

_LIMB_JOINTS = [
    row
    for row, name in enumerate(skeleton("blazepose33").joints)
    if name.endswith(("shoulder", "elbow", "wrist", "hip", "knee", "ankle"))
]
_LEAST_LIMB_JOINTS = 4  # in the picture; fewer are found in textures at its edge


class BlazePoseSettings(Settings):
    """Settings of the detector.

    search: `auto` also looks at tiles of a half and a third of the picture where people are small or several, and
    at turned views where nobody or nobody clear is found; `fast` looks once at the whole picture; `thorough`
    always looks at all tiles. person_threshold: least score of the finder. least_quality: least expected share of
    right joints. careful: read each person six times and take the median. masks: give masks. max_people: the most
    people returned. threads: of the interpreter.
    """

    search: Literal["fast", "auto", "thorough"] = "auto"
    person_threshold: float = Field(0.3, gt=0, lt=1)
    least_quality: float = Field(0.45, ge=0, le=1)
    careful: bool = False
    masks: bool = True
    max_people: int = Field(20, ge=1)
    threads: int = Field(1, ge=1)


@dataclass(frozen=True)
class _Person:
    """A reading, the share of its joints expected to be right, and how many of 12 limb joints are in the picture."""

    landmarks: Landmarks
    quality: float
    limb_joints: int


class BlazePoseDetector(Detector):
    """People by pose_detection.tflite, their joints and masks by pose_landmark_full.tflite.

    A person is read twice: the first reading's joints place the second's region (what MediaPipe does from frame to
    frame of a video). Keypoints are blazepose33 in full-picture pixels; their confidence is the probability that
    the joint lies within 0.2 torso lengths, 0 outside the picture. Boxes hold the mask and the joints that are seen.
    docs/detection.md has what was measured.
    """

    Config: ClassVar[type[Settings]] = BlazePoseSettings
    gives: ClassVar[frozenset[str]] = frozenset({"box", "keypoints", "mask"})

    def __init__(self, config: BlazePoseSettings | None = None, files: Assets | None = None) -> None:
        """Fetches the model files when they are missing. Raises AssetError when that fails or one is damaged."""
        self.config = config or BlazePoseSettings()
        paths = (files or assets()).get("blazepose-detection", "blazepose-landmarks")
        self._find = PersonFinder(TFLiteModel(paths[0], self.config.threads))
        self._read = LandmarkModel(TFLiteModel(paths[1], self.config.threads))

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Everyone found in an upright (H, W, 3) uint8 RGB picture, best first."""
        picture = Image.fromarray(image)
        people = self._people(picture, [whole(picture)], self.config.person_threshold)
        if self.config.search != "fast":
            people = self._search_tiles(picture, people)
            people = self._search_turned(picture, people)
        people = people[: self.config.max_people]
        if self.config.careful:
            people = [dataclasses.replace(p, landmarks=self._read.careful(picture, p.landmarks)) for p in people]
        return [self._detection(person, *picture.size) for person in people]

    # -- search

    def _person(self, picture: Image.Image, region: Float[np.ndarray, " 4"], score: float) -> _Person:
        first = self._read(picture, region)
        second = self._read(picture, first.next_region)
        traits = calibration.traits(score, first, second, picture.size)
        limb_joints = int(second.inside(*picture.size)[_LIMB_JOINTS].sum())
        return _Person(second, float(calibration.quality(traits)), limb_joints)

    def _people(
        self, picture: Image.Image, views: Iterable[Float[np.ndarray, " 4"]], threshold: float
    ) -> list[_Person]:
        """Everyone in views that are turned alike."""
        regions, scores = self._find(picture, views, threshold)
        most = 2 * self.config.max_people
        found = zip(regions[:most], scores[:most], strict=True)
        return self._distinct([self._person(picture, region, score) for region, score in found])

    def _distinct(self, people: list[_Person]) -> list[_Person]:
        """The good readings, each person once, best first."""
        kept: list[_Person] = []
        for person in sorted(people, key=lambda p: -p.quality * p.landmarks.score):
            good = person.quality >= self.config.least_quality and person.landmarks.score >= 0.5
            whole_enough = person.limb_joints >= _LEAST_LIMB_JOINTS
            if good and whole_enough and not any(_same(person.landmarks, other.landmarks) for other in kept):
                kept.append(person)
        return kept

    def _search_tiles(self, picture: Image.Image, people: list[_Person]) -> list[_Person]:
        """Look closer, at halves and then thirds, unless the people found fill the picture."""
        thorough = self.config.search == "thorough"
        threshold = self.config.person_threshold + _TILE_THRESHOLD
        if thorough or len(people) != 1 or _largest(people) < 0.9 * min(picture.size):
            people = self._distinct(people + self._people(picture, _tiles(picture, 2), threshold))
            if thorough or len(people) > 2 or _largest(people) < 0.75 * min(picture.size):
                people = self._distinct(people + self._people(picture, _tiles(picture, 3), threshold))
        return people

    def _search_turned(self, picture: Image.Image, people: list[_Person]) -> list[_Person]:
        """Look with the head to the right, down and to the left: at the doubtful people, or for anyone at all."""
        quarters = (1, 2, 3)
        found = list(people)
        if not people:
            views = [whole(picture) + [0, 0, 0, quarter * math.pi / 2] for quarter in quarters]
            for view in views:
                found += self._people(picture, [view], self.config.person_threshold / 3)
            return self._distinct(found)
        for person in [p for p in people if p.quality < _TURN_BELOW][:_TURNED_PEOPLE]:
            for quarter in quarters:
                view = person.landmarks.region * [1, 1, 1, 0] + [0, 0, 0, quarter * math.pi / 2]
                again = self._people(picture, [view], self.config.person_threshold / 3)
                # A person cut off by the picture's edge is never taken for one who crouches inside it, which is what
                # views turned away from them often show: such a person counts only where truly turned.
                cut = person.limb_joints < len(_LIMB_JOINTS)
                found += [p for p in again if not cut or _turn_between(p.landmarks, person.landmarks) > math.pi / 4]
        return self._distinct(found)

    # -- result

    def _detection(self, person: _Person, width: int, height: int) -> Detection:
        landmarks = person.landmarks
        inside = landmarks.inside(width, height)
        confidence = calibration.confidence(landmarks.raw_confidence, person.quality) * inside
        keypoints = Keypoints(
            torch.from_numpy(landmarks.points[None]).float(),
            torch.from_numpy(confidence[None]).float(),
            "blazepose33",
        )
        mask = None
        if self.config.masks:
            mask = torch.from_numpy(paste(sigmoid(landmarks.mask_logits), landmarks.region, width, height))
        return Detection(_box(landmarks, inside, width, height), person.quality, keypoints, mask)


def _tiles(picture: Image.Image, parts: int) -> list[Float[np.ndarray, " 4"]]:
    """Half-overlapping squares of the picture's longer side over `parts`."""
    side = max(picture.size) / parts
    along = [
        np.linspace(side / 2, length - side / 2, math.ceil((length - side) / (side / 2)) + 1)
        if length > side
        else np.array([length / 2])
        for length in picture.size
    ]
    return [np.array([x, y, side, 0.0]) for y in along[1] for x in along[0]]


def _largest(people: list[_Person]) -> float:
    return max((person.landmarks.region[2] for person in people), default=0.0)


def _turn_between(a: Landmarks, b: Landmarks) -> float:
    """Angle between the directions the heads of two readings point in, radians in [0, pi]."""
    return abs(math.remainder(float(a.region[3] - b.region[3]), 2 * math.pi))


def _same(a: Landmarks, b: Landmarks) -> bool:
    """Whether two readings are of one person: their joints coincide, or one's mask lies in the other's."""
    weight = np.minimum(a.raw_confidence, b.raw_confidence) + 1e-3
    distance = (weight * np.linalg.norm(a.points - b.points, axis=1)).sum() / weight.sum()
    if distance < _SAME_POINTS * min(a.region[2], b.region[2]):
        return True
    small, large = sorted((a, b), key=lambda landmarks: landmarks.region[2])
    step = 4  # pixels of the crop between the cells compared
    rows, cols = np.nonzero(small.mask_logits[::step, ::step] > 0)
    if not len(rows):
        return False
    cells = np.stack([cols, rows], -1) * step + step / 2
    placed = transform(to_picture(small.region, INPUT_SIZE), cells)
    target = to_picture(large.region, INPUT_SIZE)
    there = (placed - target[:, 2]) @ np.linalg.inv(target[:, :2]).T
    there = np.floor(there).astype(int)
    within = ((there >= 0) & (there < INPUT_SIZE)).all(-1)
    common = (large.mask_logits[there[within, 1], there[within, 0]] > 0).sum()
    cell_area = (step * small.region[2] / INPUT_SIZE) ** 2
    other_area = (large.mask_logits > 0).sum() * (large.region[2] / INPUT_SIZE) ** 2
    return bool(common * cell_area > _SAME_MASK * min(len(rows) * cell_area, other_area))


def _box(
    landmarks: Landmarks, inside: Bool[np.ndarray, " 33"], width: int, height: int
) -> tuple[float, float, float, float]:
    """x, y, w, h round the mask and the joints that are seen, cut at the picture's edge."""
    seen = landmarks.points[inside & (landmarks.raw_confidence >= 0.5)]
    rows, cols = np.nonzero(landmarks.mask_logits > 0)
    outline = np.stack([cols, rows], -1) + 0.5
    points = np.concatenate([seen, transform(to_picture(landmarks.region, INPUT_SIZE), outline)])
    if not len(points):
        points = landmarks.points
    low, high = np.clip(points.min(0), 0, [width, height]), np.clip(points.max(0), 0, [width, height])
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])
