"""From what was detected in a photo to what a method reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from recon_core.crops import crop_masks, crop_photo
from recon_core.errors import InputError, NoPersonError, UsageError
from recon_core.geometry.cameras import crop_affine
from recon_core.images import Photo
from recon_core.interfaces import Detector
from recon_core.structures import Camera, Detection, Keypoints, Observation

Box = tuple[float, float, float, float]

BOX_MARGIN = 1.25
"""A detector that is shown a box gets this much more of the photo, so that it sees where the subject ends."""


def observe(
    photo: Photo,
    camera: Camera,
    detections: Sequence[Detection],
    needed: Collection[str],
    optional: Collection[str] = (),
    crop_size: int = 224,
    crop_margin: float = 1.2,
) -> Observation:
    """One row a detection, of which there is at least one.

    needed: which of image, mask and keypoints are filled; optional: those filled if every detection has them.

    Raises UsageError when a detection lacks what is needed, and InputError for joints that are not finite.
    """
    boxes = torch.tensor([d.box for d in detections]).reshape(-1, 4)
    cameras = camera[torch.zeros(len(detections), dtype=torch.int64)]
    observation = Observation(cameras, box=boxes)
    wanted = {name for name in (*needed, *optional) if name == "image" or _all_have(detections, name)}
    if missing := sorted({"mask", "keypoints"} & set(needed) - wanted):
        raise UsageError(
            f"the method reads the {' and '.join(missing)} of each subject, which were not given: "
            "use a detector that finds them, --mask FILE or --keypoints FILE"
        )
    if "keypoints" in wanted:
        observation = dataclasses.replace(observation, keypoints=_keypoints(photo, detections))
    if wanted & {"image", "mask"}:
        affine = crop_affine(boxes, crop_size, crop_margin)
        image = crop_photo(photo.pixels, affine, crop_size) if "image" in wanted else None
        masks = [d.mask for d in detections if d.mask is not None]
        mask = crop_masks(masks, affine, crop_size) if "mask" in wanted else None
        observation = dataclasses.replace(observation, to_crop=affine, image=image, mask=mask)
    return observation


def with_guide(observation: Observation, guide: Observation | None) -> Observation:
    """The same with the one subject of `guide` beside each of its own."""
    return observation if guide is None else dataclasses.replace(observation, guide=guide[[0] * len(observation)])


def detect_in_box(detector: Detector, photo: Photo, box: Box) -> Detection:
    """What the detector finds in one part of the photo: `box`, with the joints and mask of the photo.

    Raises NoPersonError when that is nothing.
    """
    width, height = photo.size
    left, top, right, bottom = _clipped(_grown(box, BOX_MARGIN), width, height)
    part = dataclasses.replace(
        photo, pixels=np.ascontiguousarray(photo.pixels[top:bottom, left:right]), size=(right - left, bottom - top)
    )
    found = [_moved(d, left, top, photo.size) for d in detector.detect_photo(part)]
    return choose_by_box(found, photo, box)


def choose_by_box(detections: Sequence[Detection], photo: Photo, box: Box) -> Detection:
    """The detection that overlaps `box` most, with its own box replaced by `box`.

    Raises NoPersonError when none overlaps it.
    """
    overlaps = [intersection_over_union(d.box, box) for d in detections]
    if not overlaps or max(overlaps) <= 0:
        raise NoPersonError(f"{photo.path}: no person found in --box {','.join(f'{v:g}' for v in box)}")
    return dataclasses.replace(detections[int(np.argmax(overlaps))], box=box)


def check_box(box: Box, photo: Photo) -> None:
    """Raises InputError when no pixel of the photo is inside the box."""
    width, height = photo.size
    left, top, right, bottom = _clipped(box, width, height)
    if left >= right or top >= bottom:
        raise InputError(
            f"{photo.path}: --box {','.join(f'{v:g}' for v in box)} is outside the picture of {width}x{height} pixels"
        )


def intersection_over_union(a: Box, b: Box) -> float:
    """Of two boxes x, y, w, h; in [0, 1]."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = a[2] * a[3] + b[2] * b[3] - shared
    return shared / union if union > 0 else 0.0


def _all_have(detections: Sequence[Detection], name: str) -> bool:
    return all(getattr(d, name, None) is not None for d in detections)


def _keypoints(photo: Photo, detections: Sequence[Detection]) -> Keypoints:
    rows = [d.keypoints for d in detections if d.keypoints is not None]
    skeletons = {k.skeleton for k in rows}
    if len(skeletons) > 1:
        raise UsageError(
            f"{photo.path}: the detector gives joints of several skeletons: {', '.join(sorted(skeletons))}"
        )
    stack = lambda values: torch.cat([v.float() for v in values])  # noqa: E731
    points, confidence = stack(k.points for k in rows), stack(k.confidence for k in rows)
    seen = confidence > 0
    if not torch.isfinite(confidence).all() or not torch.isfinite(points[seen]).all():
        raise InputError(f"{photo.path}: the detected joints hold numbers that are not finite")
    # A missing joint may hold anything; zero keeps NaN out of sums in which its weight is 0.
    return Keypoints(torch.where(seen[..., None], points, 0.0), confidence, skeletons.pop())


def _grown(box: Box, factor: float) -> Box:
    x, y, w, h = box
    more_x, more_y = (factor - 1) / 2 * w, (factor - 1) / 2 * h
    return x - more_x, y - more_y, w + 2 * more_x, h + 2 * more_y


def _clipped(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom: the pixels of the picture that the box touches."""
    x, y, w, h = box
    limit = lambda value, size: int(min(max(value, 0), size))  # noqa: E731
    return (
        limit(np.floor(x), width),
        limit(np.floor(y), height),
        limit(np.ceil(x + w), width),
        limit(np.ceil(y + h), height),
    )


def _moved(detection: Detection, left: int, top: int, size: tuple[int, int]) -> Detection:
    """A detection in a part of the photo whose first pixel is (left, top), in pixels of the photo."""
    x, y, w, h = detection.box
    keypoints, mask = detection.keypoints, detection.mask
    if keypoints is not None:
        shift = keypoints.points.new_tensor([left, top])
        keypoints = dataclasses.replace(keypoints, points=keypoints.points + shift)
    if mask is not None:
        mask = _pasted(mask, left, top, size)
    return dataclasses.replace(detection, box=(x + left, y + top, w, h), keypoints=keypoints, mask=mask)


def _pasted(mask: Tensor, left: int, top: int, size: tuple[int, int]) -> Tensor:
    whole = mask.new_zeros(size[1], size[0])
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return whole
