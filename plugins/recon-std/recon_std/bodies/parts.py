"""Names of body parts, and vertex labels derived from skinning weights."""

from __future__ import annotations

import numpy as np

from recon_core.skeletons import SMPL24

ANATOMICAL_PARTS: tuple[str, ...] = (
    "head", "chest", "abdomen", "pelvis",
    "left_upper_arm", "right_upper_arm", "left_forearm", "right_forearm", "left_hand", "right_hand",
    "left_thigh", "right_thigh", "left_shank", "right_shank", "left_foot", "right_foot",
)  # fmt: skip
"""The 16 parts of figure 1 of "Learning 3D Human Shape and Pose from ACAP" (after SCAPE's segmentation)."""

_OF_JOINT = {
    "pelvis": "pelvis", "spine1": "abdomen", "spine2": "abdomen", "spine3": "chest", "neck": "head", "head": "head",
    "collar": "chest", "shoulder": "upper_arm", "elbow": "forearm", "wrist": "hand", "hand": "hand",
    "hip": "thigh", "knee": "shank", "ankle": "foot", "foot": "foot",
}  # fmt: skip


def anatomical_part_of_joint() -> np.ndarray:
    """(24,) row in ANATOMICAL_PARTS that each smpl24 joint moves."""
    rows = []
    for joint in SMPL24.joints:
        side, _, rest = joint.partition("_")
        part = _OF_JOINT[rest or joint]
        rows.append(ANATOMICAL_PARTS.index(part if part in ANATOMICAL_PARTS else f"{side}_{part}"))
    return np.array(rows)
