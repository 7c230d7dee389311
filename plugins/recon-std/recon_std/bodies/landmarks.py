"""Where detectors and annotators put each named keypoint on the free body.

"skin": a landmark on the surface, one vertex. "inside": a point between the bones' ends, regressed from the
vertices around it. "mean": the mean of other keypoints. The joints of smpl24 are all "inside" and come from
Anny's skeleton (`tpose.smpl_joints`).
"""

from __future__ import annotations

import numpy as np

from recon_core.skeletons import SKELETONS, SMPL24

INSIDE_BONES: dict[str, str] = {"index": "finger2-1", "pinky": "finger5-1", "thumb": "finger1-2"}
"""BlazePose's hand points are the first knuckles, and of the thumb the second: heads of these Anny bones."""

MEANS: dict[str, tuple[str, ...]] = {
    "mid_hip": ("left_hip", "right_hip"),
    # Human3.6M's spine joint halves the way from pelvis to neck.
    "spine": ("spine2", "spine3"),
    # OpenPose learned its neck from COCO, as the middle of the shoulders.
    "openpose25:neck": ("left_shoulder", "right_shoulder"),
    # LSP and Human3.6M put it at the base of the neck, between the vertebra and the collar bones.
    "lsp14:neck": ("neck", "neck", "left_collar", "right_collar"),
    "h36m17:neck": ("neck", "neck", "left_collar", "right_collar"),
}
"""Keypoints that are the mean of others; "skeleton:name" where only that skeleton means it so."""


def skin_landmarks(
    points: np.ndarray, regions: dict[str, np.ndarray], bone: np.ndarray, labels: list[str], ear: np.ndarray
) -> dict[str, int]:
    """Vertices of the midline and left landmarks, found by what they are extremes of.

    points: (V, 3) mean body, T-pose. regions: vertices of Anny's regions (head, foot.L, eye_front.L,
    eye_cavity.L, mouth_cavity, as `anny.face_segmentation` names them). bone: (V,) index in `labels` of the Anny
    bone that moves a vertex most. ear: (3,) Anny's own keypoint of the left ear.
    """
    x, y, z = points.T

    def extreme(name: str, value: np.ndarray, among: np.ndarray) -> None:
        found[name] = int(among[np.argmax(value[among])])

    found: dict[str, int] = {}
    head, left = regions["head"], np.flatnonzero(x > 0)
    middle = np.flatnonzero(np.abs(x) < 1e-6)
    extreme("nose", z, np.intersect1d(head, middle))
    extreme("head_top", y, np.intersect1d(head, middle))
    extreme("left_eye", z, np.intersect1d(regions["eye_front.L"], left))
    lids = np.intersect1d(head, regions["eye_cavity.L"])
    extreme("left_eye_inner", -x, lids)
    extreme("left_eye_outer", x, lids)
    extreme("left_mouth", x, np.intersect1d(head, regions["mouth_cavity"]))
    extreme("left_ear", -np.linalg.norm(points - ear, axis=1), head)
    sole = regions["foot.L"][y[regions["foot.L"]] < y[regions["foot.L"]].min() + 0.04]
    extreme("left_heel", -z, sole)
    for toe, number in (("big", "1-2"), ("small", "5-3")):
        extreme(f"left_{toe}_toe", z, np.flatnonzero(bone == labels.index(f"toe{number}.L")))
    return found


def keypoint_rows(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A dense (J, V) regressor for every skeleton, from the rows (V,) of named keypoints and their means."""

    def row(skeleton: str, joint: str) -> np.ndarray:
        for key in (f"{skeleton}:{joint}", joint):
            if key in MEANS:
                return np.mean([named[part] for part in MEANS[key]], 0)
        return named[joint]

    return {name: np.stack([row(name, joint) for joint in skeleton.joints]) for name, skeleton in SKELETONS.items()}


def mirrored(named: dict[str, np.ndarray], mirror: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of the right from those of the left; rows of the midline made symmetric."""
    result = {}
    for name, row in named.items():
        if name.startswith("left_"):
            result[name] = row
            result[name.replace("left_", "right_")] = row[mirror]
        else:
            result[name] = (row + row[mirror]) / 2
    return result


LEFT_AND_MIDDLE_JOINTS = tuple(joint for joint in SMPL24.joints if not joint.startswith("right_"))
