"""How well and how fast the blazepose detector finds people and their joints.

    python benchmarks/bench_detector.py [--split val] [--every 1] [--searches fast auto thorough careful]

Three tables, a row for each way of searching ("careful" is "auto" with six readings of each person):

sport photos (lsp_ext): PCK@0.2 of the torso, right shoulder to left hip, for the 12 limb joints and the neck (the
    middle of the shoulders); blazepose33 has no top of the head. Of several people found the first counts, as
    everywhere in recon. Labels are crowd work, and were kept only where a MediaPipe detector agrees with them.
groups (coco_people): how many of the labelled people taller than 100 pixels are found, by boxes that overlap 0.3,
    and how many are found where there is nobody labelled, crowds left out.
pictures without people (eth80, scikit-image): how many pictures somebody is found in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable

import lsp_ext
import numpy as np
import torch

from recon_core.images import load_image
from recon_core.metrics import pck
from recon_core.observe import intersection_over_union
from recon_core.skeletons import skeleton
from recon_core.structures import Detection, Keypoints
from recon_std.detectors.blazepose import BlazePoseDetector, BlazePoseSettings

WAYS = {
    "fast": BlazePoseSettings(search="fast"),
    "auto": BlazePoseSettings(),
    "thorough": BlazePoseSettings(search="thorough"),
    "careful": BlazePoseSettings(careful=True),
}
OVERLAP, TALL = 0.3, 100
PAIRS = ("ankle", "knee", "hip", "wrist", "elbow", "shoulder")


class Timed:
    """A detector that notes how long each picture takes."""

    def __init__(self, settings: BlazePoseSettings) -> None:
        self._detector = BlazePoseDetector(settings)
        self._detector.detect(np.zeros((64, 64, 3), np.uint8))
        self.milliseconds: list[float] = []

    def __call__(self, pixels: np.ndarray) -> list[Detection]:
        start = time.perf_counter()
        found = self._detector.detect(pixels)
        self.milliseconds.append(1000 * (time.perf_counter() - start))
        return found

    def time(self) -> str:
        deciles = statistics.quantiles(self.milliseconds, n=10)
        return f"{statistics.median(self.milliseconds):7.0f}{deciles[8]:7.0f}"


def sport(split: str, every: int, ways: Iterable[str]) -> None:
    photos = lsp_ext.photos(split, every)
    turned = np.array([photo.head_below_hips for photo in photos])
    upright = np.array([photo.upright for photo in photos])
    print(f"\nsport photos: lsp_ext {split}, {len(photos)} photos ({upright.sum()} upright, {turned.sum()} head down)")
    print(f"{'':10}{'PCK12':>7}{'PCK13':>7}{'upright':>8}{'down':>7}{'missed':>7}{'ms':>7}{'p90':>7}  by joint")
    names = skeleton("lsp14").joints[:13]
    for way in ways:
        detect = Timed(WAYS[way])
        hits, missed = [], 0
        for photo in photos:
            found = detect(photo.pixels())
            nobody = Keypoints(torch.zeros(1, 14, 2), torch.zeros(1, 14), "lsp14")
            made = found[0].keypoints.converted("lsp14") if found and found[0].keypoints else nobody
            missed += not found
            # Where the detector places a joint counts, however sure it is of it.
            made = Keypoints(made.points, torch.full_like(made.confidence, float(bool(found))), "lsp14")
            hits.append(pck(made, photo.labels)[0, :13].numpy())
        table = np.array(hits)
        joints = " ".join(f"{pair} {table[:, [pair in n for n in names]].mean():.2f}" for pair in PAIRS)
        parts = (table[:, :12], table, table[upright], table[turned])
        shares = "{:7.3f}{:7.3f}{:8.3f}{:7.3f}".format(*(float(part.mean()) for part in parts))
        print(f"{way:10}{shares}{missed / len(photos):7.3f}{detect.time()}  {joints}")


def groups(ways: Iterable[str]) -> None:
    folder = lsp_ext.FOLDER.parent / "coco_people"
    content = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
    print(f"\ngroups: coco_people, {len(content['images'])} photos; people taller than {TALL} pixels")
    print(f"{'':10}{'found':>7}{'of':>5}{'recall':>8}{'in all':>7}{'nobody':>7}{'ms':>7}{'p90':>7}")
    for way in ways:
        detect = Timed(WAYS[way])
        right = tall = wrong = total = 0
        for image in content["images"]:
            labels = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            people = [a["bbox"] for a in labels if not a["iscrowd"]]
            crowds = [a["bbox"] for a in labels if a["iscrowd"]]
            boxes = [d.box for d in detect(load_image(folder / image["file_name"]).pixels)]
            matches = _matches(boxes, people)
            tall += sum(box[3] > TALL for box in people)
            right += sum(people[j][3] > TALL for j in matches.values())
            wrong += sum(
                i not in matches and not any(_centre_in(box, c) for c in crowds) for i, box in enumerate(boxes)
            )
            total += len(boxes)
        print(f"{way:10}{right:7}{tall:5}{right / tall:8.3f}{total:7}{wrong:7}{detect.time()}")


def _matches(boxes: list, people: list) -> dict[int, int]:
    """Index of a detection -> index of the person it overlaps most, one to one, best pairs first."""
    pairs = [(intersection_over_union(b, p), i, j) for i, b in enumerate(boxes) for j, p in enumerate(people)]
    matches: dict[int, int] = {}
    for overlap, i, j in sorted(pairs, reverse=True):
        if overlap >= OVERLAP and i not in matches and j not in matches.values():
            matches[i] = j
    return matches


def _centre_in(box: tuple[float, ...], area: tuple[float, ...]) -> bool:
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    return area[0] <= x <= area[0] + area[2] and area[1] <= y <= area[1] + area[3]


def without_people(ways: Iterable[str]) -> None:
    import skimage.data as sample

    pictures = [load_image(p).pixels for p in sorted((lsp_ext.FOLDER.parent / "eth80" / "images").rglob("*.jpg"))[::60]]
    pictures += [sample.coffee(), sample.chelsea(), sample.rocket(), sample.retina(), sample.immunohistochemistry()]
    pictures += [np.repeat(grey()[..., None], 3, -1) for grey in (sample.coins, sample.brick, sample.page, sample.moon)]
    print(f"\npictures without people: {len(pictures)}")
    print(f"{'':10}{'somebody in':>12}{'people':>7}{'ms':>7}{'p90':>7}")
    for way in ways:
        detect = Timed(WAYS[way])
        found = [len(detect(pixels)) for pixels in pictures]
        print(f"{way:10}{sum(n > 0 for n in found):12}{sum(found):7}{detect.time()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=("train", "val"), default="val", help="part of lsp_ext")
    parser.add_argument("--every", type=int, default=1, help="use every n-th photo of lsp_ext")
    parser.add_argument("--searches", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    options = parser.parse_args()
    print("one thread; ms: median and ninth decile a picture, reading the file left out")
    sport(options.split, options.every, options.searches)
    groups(options.searches)
    without_people(options.searches)


if __name__ == "__main__":
    main()
