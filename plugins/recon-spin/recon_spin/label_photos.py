"""Label photos with a detector's joints: `python -m recon_spin.label_photos --photos FOLDER --out FOLDER`.

Writes an index.json that `lsp-ext` reads (recon_std.readers.lsp_ext), of photos whose own index.json has items with
id, image and split and no joints. Joints the detector is unsure of, and the top of the head, which blazepose does not
give, are marked as not seen; the box is the detector's. A photo in which nobody is found, or in which few joints are
seen, is left out.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from recon_core.errors import ReconError, TrainingError
from recon_core.images import load_image
from recon_core.plugins import registry
from recon_core.skeletons import LSP14

SURE = 0.5
"""Least confidence of a joint that counts as seen."""


def label(photos: Path, out: Path, fewest: int = 10) -> int:
    """Label the photos of a folder. fewest: least number of joints seen in a photo that is kept. Returns how many
    photos were kept. Raises TrainingError for an index that is not of this layout, InputError for a damaged photo."""
    detector = registry().create("detector", "blazepose")
    kept: list[dict[str, Any]] = []
    for item in _items(photos / "index.json"):
        path = photos / item["image"]
        pixels = load_image(path).pixels
        people = detector.detect(pixels)
        if not people or people[0].keypoints is None:
            continue
        keypoints = people[0].keypoints.converted("lsp14")
        seen = keypoints.confidence[0] >= SURE
        if int(seen.sum()) < fewest:
            continue
        height, width = pixels.shape[:2]
        joints = [
            [round(x, 2), round(y, 2), int(s)] for (x, y), s in zip(keypoints.points[0].tolist(), seen, strict=True)
        ]
        kept.append(
            {
                "id": item["id"],
                "image": os.path.relpath(path, out),
                "split": item["split"],
                "joints": joints,
                "box": [round(number, 2) for number in people[0].box],
                "crop_xyxy_in_source": [0, 0, width, height],
                "source_size": [width, height],
                "resize_factor": 1.0,
            }
        )
    out.mkdir(parents=True, exist_ok=True)
    index = {"joint_names": LSP14.joints, "items": kept}
    (out / "index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    return len(kept)


def _items(file: Path) -> list[dict[str, Any]]:
    try:
        items = json.loads(file.read_text(encoding="utf-8"))["items"]
        for item in items:
            if missing := [name for name in ("id", "image", "split") if name not in item]:
                raise ValueError(f"an item has no {missing[0]}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{file}: not an index of photos: items with id, image and split ({error})") from None
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with an index.json, such as that of ccp")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        print(f"{label(options.photos, options.out)} photos labelled")
    except ReconError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
