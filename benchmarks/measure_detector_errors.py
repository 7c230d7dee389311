"""Measures how BlazePose errs on the training part of lsp_ext, and writes what was measured into recon-std.

    python benchmarks/measure_detector_errors.py

Two steps. Readings of every photo in four turns give the weights that tell good readings from bad ones, and the
calibration of the joints' confidence. Then the detector, which uses them, is run on every photo, and the errors
of its joints are tabulated. The file holds numbers only. About 20 minutes on one core.

Units: shares of the longer side of the box round the 14 labelled joints. Labels are crowd work with an error of
their own of 5 to 10 pixels of about 200, which the figures include.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import lsp_ext
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from recon_core.assets import assets
from recon_core.metrics import pck
from recon_core.skeletons import skeleton
from recon_core.structures import Keypoints
from recon_std.detectors import calibration
from recon_std.detectors.blazepose import BlazePoseDetector, BlazePoseSettings
from recon_std.detectors.landmark_model import LandmarkModel, Landmarks
from recon_std.detectors.person_finder import PersonFinder
from recon_std.detectors.regions import whole
from recon_std.detectors.tflite import TFLiteModel

JOINTS = skeleton("lsp14").joints[:13]  # all but head_top, which blazepose33 lacks
LIMBS = 12  # of these, the neck is made of the shoulders
BINS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
OUTLIER = 0.12  # error from which a joint counts as wrong rather than inexact, in shares of the box
PAIRS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")


def hits(points: np.ndarray, confidence: np.ndarray, labels: Keypoints) -> np.ndarray:
    """(13,) 1 where a joint lies within 0.2 torso lengths of its label."""
    made = Keypoints(torch.from_numpy(points[None]).float(), torch.from_numpy(confidence[None]).float(), "blazepose33")
    return pck(made.converted("lsp14"), labels)[0, : len(JOINTS)].numpy()


def readings(photos: list[lsp_ext.LabelledPhoto]) -> list[list[tuple[np.ndarray, Landmarks, np.ndarray]]]:
    """For each photo the people read in four turns of it: traits, reading, hits."""
    paths = assets().get("blazepose-detection", "blazepose-landmarks")
    find, read = PersonFinder(TFLiteModel(paths[0])), LandmarkModel(TFLiteModel(paths[1]))
    result = []
    for photo in tqdm(photos, desc="readings"):
        picture = Image.fromarray(photo.pixels())
        found = []
        for quarter in range(4):
            regions, scores = find(picture, [whole(picture, quarter * np.pi / 2)], 0.1)
            for region, score in zip(regions[:2], scores[:2], strict=True):
                first = read(picture, region)
                second = read(picture, first.next_region)
                right = hits(second.points, np.ones(33), photo.labels)
                found.append((calibration.traits(float(score), first, second, picture.size), second, right))
        result.append(found)
    return result


def calibrate(people: list[list[tuple[np.ndarray, Landmarks, np.ndarray]]]) -> dict[str, Any]:
    """Weights of the expected share of right joints, and of the probability that a joint is right."""
    traits = np.array([t for found in people for t, _, _ in found])
    share = np.array([right.mean() for found in people for _, _, right in found])
    weights = np.linalg.lstsq(traits, share, rcond=None)[0]
    rows = [skeleton("blazepose33").index(name) for name in JOINTS[:LIMBS]]
    inputs, outcome = [], []
    for found in filter(None, people):
        best, landmarks, right = max(found, key=lambda reading: reading[0] @ weights)
        expected = np.clip(best @ weights, 0, 1)
        inputs.append(landmarks.raw_confidence[rows, None] * [expected, 1.0])
        outcome.append(right[:LIMBS])
    confidence = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(outcome), rcond=None)[0]
    return {
        "quality": {
            "of": "share of 13 joints within 0.2 torso lengths",
            "inputs": ["finder score", "mean raw confidence in the picture", "movement between readings", "1"],
            "weights": weights.round(4).tolist(),
        },
        "confidence": {
            "of": "probability that a joint is within 0.2 torso lengths",
            "inputs": ["raw confidence times quality", "raw confidence"],
            "weights": confidence.round(4).tolist(),
        },
    }


def tabulate(photos: list[lsp_ext.LabelledPhoto]) -> dict[str, Any]:
    """The detector's errors by joint and by confidence, in the body's own axes."""
    detector = BlazePoseDetector(BlazePoseSettings(masks=False))
    errors, confidence, exchanged, missed = [], [], [], 0
    for photo in tqdm(photos, desc="detections"):
        found = detector.detect(photo.pixels())
        if not found:
            missed += 1
            continue
        assert found[0].keypoints is not None
        made = found[0].keypoints.converted("lsp14")
        label, point = photo.labels.points[0].numpy(), made.points[0].numpy()
        box = np.ptp(label, axis=0).max()
        up = label[12] - label[2:4].mean(0)
        up = up / max(np.linalg.norm(up), 1e-6)
        axes = np.stack([[-up[1], up[0]], up])  # rows: to the right of up on the screen, up
        errors.append((point - label)[:13] @ axes.T / box)
        confidence.append(made.confidence[0, :13].numpy())
        exchanged.append([_exchanged(point, label, pair) for pair in PAIRS])
    error, sure, swaps = np.array(errors), np.array(confidence), np.array(exchanged)
    return {
        "photos": len(photos),
        "nobody_found": round(missed / len(photos), 4),
        "exchanged": {
            "by_pair": {pair: round(float(swaps[:, i].mean()), 4) for i, pair in enumerate(PAIRS)},
            "arms": round(float(swaps[:, [1, 2]].all(1).mean()), 4),
            "legs": round(float(swaps[:, [4, 5]].all(1).mean()), 4),
            "whole_body": round(float(swaps.all(1).mean()), 4),
        },
        "joints": {name: _statistics(error[:, j], sure[:, j]) for j, name in enumerate(JOINTS)},
        "all_limb_joints": _statistics(error[:, :LIMBS].reshape(-1, 2), sure[:, :LIMBS].ravel()),
    }


def _exchanged(point: np.ndarray, label: np.ndarray, pair: str) -> bool:
    """Whether left and right of a pair fit the labels clearly better when exchanged."""
    rows = [skeleton("lsp14").index(f"{side}_{pair}") for side in ("left", "right")]
    straight = np.linalg.norm(point[rows] - label[rows], axis=1).sum()
    crossed = np.linalg.norm(point[rows] - label[rows[::-1]], axis=1).sum()
    return bool(crossed < 0.5 * straight and np.linalg.norm(label[rows[0]] - label[rows[1]]) > 0.5 * crossed)


def _statistics(error: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
    """offset: median error to the right of, and along, the body's up. Of inliers, round the offset: deviation of
    each axis (from the median distance, as if normal). By bin of confidence: share of joints, deviation, outliers."""
    distance = np.linalg.norm(error, axis=1)
    offset = np.median(error[distance < OUTLIER], axis=0)
    centred = np.linalg.norm(error - offset, axis=1)

    def spread(chosen: np.ndarray) -> dict[str, float | None]:
        inliers = centred[chosen & (centred < OUTLIER)]
        # The median of a 2D normal's distance is 1.1774 deviations.
        deviation = float(np.median(inliers)) / 1.1774 if len(inliers) else None
        return {
            "share": round(float(chosen.mean()), 4),
            "deviation": None if deviation is None else round(deviation, 4),
            "outliers": round(float((centred[chosen] >= OUTLIER).mean()), 4) if chosen.any() else None,
        }

    which = np.digitize(confidence, BINS[1:-1])
    return {
        "offset": [round(float(v), 4) for v in offset],
        **{k: v for k, v in spread(np.ones_like(distance, bool)).items() if k != "share"},
        "by_confidence": [spread(which == b) for b in range(len(BINS) - 1)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="use every n-th photo only (for a trial)")
    options = parser.parse_args()
    out = Path(calibration.__file__).with_name("blazepose_errors.json")
    photos = lsp_ext.photos("train", options.every)
    table: dict[str, Any] = {
        "made_by": "benchmarks/measure_detector_errors.py",
        "data": "lsp_ext, training part: Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011); numbers only",
        "units": "shares of the longer side of the box round the 14 labelled joints",
        "outlier_from": OUTLIER,
        "confidence_bins": list(BINS),
    }
    table |= calibrate(readings(photos))
    # The detector of the second step reads what the first one found.
    out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    calibration.error_table.cache_clear()
    table |= tabulate(photos)
    out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
