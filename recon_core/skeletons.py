"""Named joint sets and the maps between them.

A skeleton is an ordered tuple of joint names; "left" and "right" are the person's own. Joints of two
skeletons are the same joint when they have the same name, which is what `mapping` uses; where a skeleton
has a joint the other lacks but can average (a neck as the midpoint of the shoulders), `derive` says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from recon_core.errors import unknown


@dataclass(frozen=True)
class Skeleton:
    """An ordered set of named joints.

    name: registry name, e.g. "coco17". joints: joint names, in file order. bones: pairs of joint indices to
    draw as lines. mirror: for each joint the index of its left/right partner (itself on the midline).
    """

    name: str
    joints: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.joints)

    def index(self, joint: str) -> int:
        """Row of `joint`. Raises UsageError naming the nearest joint when there is none of that name."""
        try:
            return self.joints.index(joint)
        except ValueError:
            raise unknown(f"joint of skeleton {self.name}", joint, self.joints) from None

    @property
    def mirror(self) -> tuple[int, ...]:
        swap = {"left": "right", "right": "left"}
        partner = []
        for name in self.joints:
            side, _, rest = name.partition("_")
            partner.append(
                self.joints.index(f"{swap[side]}_{rest}") if side in swap else self.joints.index(name)
            )
        return tuple(partner)


def _skeleton(name: str, joints: str, bones: str) -> Skeleton:
    names = tuple(joints.split())
    pairs = tuple((names.index(a), names.index(b)) for a, b in (bone.split("-") for bone in bones.split()))
    return Skeleton(name, names, pairs)


_LIMBS = (
    "left_shoulder-left_elbow left_elbow-left_wrist right_shoulder-right_elbow right_elbow-right_wrist "
    "left_hip-left_knee left_knee-left_ankle right_hip-right_knee right_knee-right_ankle "
)

SMPL_PARENTS: tuple[int, ...] = (
    -1,
    0,
    0,
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    9,
    9,
    12,
    13,
    14,
    16,
    17,
    18,
    19,
    20,
    21,
)
"""Parent of each smpl24 joint; -1 for the root."""

SMPL24 = _skeleton(
    "smpl24",
    "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 left_foot "
    "right_foot neck left_collar right_collar head left_shoulder right_shoulder left_elbow right_elbow "
    "left_wrist right_wrist left_hand right_hand",
    _LIMBS
    + "pelvis-left_hip pelvis-right_hip pelvis-spine1 spine1-spine2 spine2-spine3 spine3-neck neck-head "
    "spine3-left_collar spine3-right_collar left_collar-left_shoulder right_collar-right_shoulder "
    "left_wrist-left_hand right_wrist-right_hand left_ankle-left_foot right_ankle-right_foot",
)
COCO17 = _skeleton(
    "coco17",
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle",
    _LIMBS
    + "nose-left_eye nose-right_eye left_eye-left_ear right_eye-right_ear left_shoulder-right_shoulder "
    "left_hip-right_hip left_shoulder-left_hip right_shoulder-right_hip",
)
OPENPOSE25 = _skeleton(
    "openpose25",
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist mid_hip right_hip "
    "right_knee right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear left_big_toe "
    "left_small_toe left_heel right_big_toe right_small_toe right_heel",
    _LIMBS
    + "nose-neck neck-mid_hip neck-left_shoulder neck-right_shoulder mid_hip-left_hip mid_hip-right_hip "
    "nose-left_eye nose-right_eye left_eye-left_ear right_eye-right_ear left_ankle-left_heel "
    "left_ankle-left_big_toe right_ankle-right_heel right_ankle-right_big_toe",
)
LSP14 = _skeleton(
    "lsp14",
    "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist neck head_top",
    _LIMBS + "neck-head_top neck-left_shoulder neck-right_shoulder left_shoulder-left_hip "
    "right_shoulder-right_hip left_hip-right_hip",
)
H36M17 = _skeleton(
    "h36m17",
    "pelvis right_hip right_knee right_ankle left_hip left_knee left_ankle spine neck nose head_top "
    "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist",
    _LIMBS + "pelvis-left_hip pelvis-right_hip pelvis-spine spine-neck neck-nose nose-head_top "
    "neck-left_shoulder neck-right_shoulder",
)
BLAZEPOSE33 = _skeleton(
    "blazepose33",
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "left_mouth right_mouth left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist "
    "left_pinky right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee "
    "right_knee left_ankle right_ankle left_heel right_heel left_big_toe right_big_toe",
    _LIMBS + "left_mouth-right_mouth nose-left_eye nose-right_eye left_eye-left_ear right_eye-right_ear "
    "left_shoulder-right_shoulder left_hip-right_hip left_shoulder-left_hip right_shoulder-right_hip "
    "left_wrist-left_index right_wrist-right_index left_ankle-left_heel left_heel-left_big_toe "
    "right_ankle-right_heel right_heel-right_big_toe",
)

SKELETONS: dict[str, Skeleton] = {s.name: s for s in (SMPL24, COCO17, OPENPOSE25, LSP14, H36M17, BLAZEPOSE33)}

# A joint that a skeleton lacks, as the mean of joints it may have. Used by `mapping` only.
_MEANS: dict[str, tuple[tuple[str, ...], ...]] = {
    "neck": (("left_shoulder", "right_shoulder"),),
    "mid_hip": (("pelvis",), ("left_hip", "right_hip")),
    "pelvis": (("mid_hip",), ("left_hip", "right_hip")),
}


def skeleton(name: str) -> Skeleton:
    """The skeleton of that name. Raises UsageError naming the nearest one."""
    if name not in SKELETONS:
        raise unknown("skeleton", name, SKELETONS)
    return SKELETONS[name]


@cache
def mapping(source: str, target: str) -> np.ndarray:
    """Linear map from the joints of `source` to those of `target`.

    Returns float32 (len(target), len(source)); rows sum to 1, a row of zeros marks a joint that `source`
    cannot give. `mapping(a, b) @ joints_a` gives the joints of b.
    """
    src, dst = skeleton(source), skeleton(target)
    matrix = np.zeros((len(dst), len(src)), np.float32)
    for row, joint in enumerate(dst.joints):
        for parts in ((joint,), *_MEANS.get(joint, ())):
            if all(p in src.joints for p in parts):
                matrix[row, [src.joints.index(p) for p in parts]] = 1.0 / len(parts)
                break
    matrix.setflags(write=False)
    return matrix
