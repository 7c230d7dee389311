"""Names of body parts, and the vertex labels derived from skinning weights and normals."""

from __future__ import annotations

import numpy as np

from recon_core.skeletons import SMPL24

ANATOMICAL_PARTS: tuple[str, ...] = (
    "head", "chest", "abdomen", "pelvis",
    "left_upper_arm", "right_upper_arm", "left_forearm", "right_forearm", "left_hand", "right_hand",
    "left_thigh", "right_thigh", "left_shank", "right_shank", "left_foot", "right_foot",
)  # fmt: skip
"""The 16 anatomical parts of the ACAP body embedding (its figure 1), after SCAPE's segmentation."""

TORSO_SIDES: tuple[str, ...] = ("elsewhere", "front", "back")

_OF_JOINT = {
    "pelvis": "pelvis", "spine1": "abdomen", "spine2": "chest", "spine3": "chest", "neck": "head", "head": "head",
    "collar": "chest", "shoulder": "upper_arm", "elbow": "forearm", "wrist": "hand", "hand": "hand",
    "hip": "thigh", "knee": "shank", "ankle": "foot", "foot": "foot",
}  # fmt: skip


def anatomical_part_of_joint() -> np.ndarray:
    """(24,) row in ANATOMICAL_PARTS of what each smpl24 joint moves."""
    rows = []
    for joint in SMPL24.joints:
        side, _, rest = joint.partition("_")
        part = _OF_JOINT[rest or joint]
        rows.append(ANATOMICAL_PARTS.index(part if part in ANATOMICAL_PARTS else f"{side}_{part}"))
    return np.array(rows)


def joint_parts(weights: np.ndarray) -> np.ndarray:
    """(V,) the smpl24 joint that moves each vertex most. weights: (V, 24)."""
    return weights.argmax(1)


def anatomical_parts(weights: np.ndarray) -> np.ndarray:
    """(V,) row in ANATOMICAL_PARTS that moves each vertex most. weights: (V, 24)."""
    gathered = np.zeros((len(weights), len(ANATOMICAL_PARTS)))
    np.add.at(gathered.T, anatomical_part_of_joint(), weights.T)
    return gathered.argmax(1)


def torso_sides(anatomy: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """(V,) row in TORSO_SIDES: chest, abdomen and pelvis by whether the normal points forward (+z).

    anatomy: (V,) from `anatomical_parts`. normals: (V, 3) of the rest body, smooth enough that the border between
    front and back runs along the flanks.
    """
    torso = np.isin(anatomy, [ANATOMICAL_PARTS.index(part) for part in ("chest", "abdomen", "pelvis")])
    return np.where(torso, np.where(normals[:, 2] > 0, 1, 2), 0)


def face_labels(vertex_labels: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(F,) the label that most of a face's vertices have; of three different ones, the first vertex's."""
    a, b, c = vertex_labels[faces].T
    return np.where(b == c, b, a)
