"""Keypoint regressors of licensed SMPL meshes, whose files hold those of the 24 joints alone."""

from __future__ import annotations

import numpy as np

from recon_core.skeletons import SKELETONS, SMPL24
from recon_std.bodies.data import Regressor
from recon_std.bodies.landmarks import MEANS

# Vertices of the skin landmarks and fingertips, by number of vertices of the mesh: as published with smplx.
_LANDMARKS: dict[int, dict[str, int]] = {
    6890: {
        "nose": 332, "left_eye": 2800, "right_eye": 6260, "left_ear": 583, "right_ear": 4071,
        "left_big_toe": 3216, "left_small_toe": 3226, "left_heel": 3387,
        "right_big_toe": 6617, "right_small_toe": 6624, "right_heel": 6787,
        "left_thumb_tip": 2746, "left_index_tip": 2319, "left_pinky_tip": 2673,
        "right_thumb_tip": 6191, "right_index_tip": 5782, "right_pinky_tip": 6133,
    },
    10475: {
        "nose": 9120, "left_eye": 9448, "right_eye": 9929, "left_ear": 6, "right_ear": 616,
        "left_big_toe": 5770, "left_small_toe": 5780, "left_heel": 8846,
        "right_big_toe": 8463, "right_small_toe": 8474, "right_heel": 8635,
        "left_thumb_tip": 5361, "left_index_tip": 4933, "left_pinky_tip": 5286,
        "right_thumb_tip": 8079, "right_index_tip": 7669, "right_pinky_tip": 8022,
    },
}  # fmt: skip

# Points that have no published vertex, relative to those that have, with the proportions of the free body.
# Knuckles: their share of the way from the wrist to the fingertip.
_KNUCKLES = {"index": 0.59, "pinky": 0.52, "thumb": 0.52}
# Of the face: from which point, and how far along (the other eye to this eye, eyes' middle to nose, to ears' middle).
_FACE = {
    "eye_inner": ("eye", (-0.16, 0.08, 0.08)),
    "eye_outer": ("eye", (0.23, 0.03, 0.14)),
    "mouth": ("eyes", (0.41, 1.53, 0.49)),
}


def licensed_regressors(joints: np.ndarray, template: np.ndarray) -> dict[str, Regressor]:
    """Regressors of the skeletons whose joints can all be named on a mesh of this many vertices.

    joints: (24, V) of the file. template: (V, 3). With 6890 (SMPL, SMPL-H) and 10475 vertices (SMPL-X): all
    skeletons, by published vertices; with any other number smpl24 and lsp14. Limb joints are the file's own; the
    crown is the highest vertex; necks and spine are means as on the free body; knuckles lie between wrist and
    fingertip; corners of the eyes and mouth are placed from eyes, nose and ears.
    """
    vertices = len(template)
    named = dict(zip(SMPL24.joints, joints, strict=True))
    named["head_top"] = np.eye(1, vertices, int(template[:, 1].argmax()))[0]
    if vertices in _LANDMARKS:
        named |= {name: np.eye(1, vertices, vertex)[0] for name, vertex in _LANDMARKS[vertices].items()}
        eyes = (named["left_eye"] + named["right_eye"]) / 2
        forward = named["nose"] - eyes
        backward = (named["left_ear"] + named["right_ear"]) / 2 - eyes
        for side in ("left", "right"):
            for finger, share in _KNUCKLES.items():
                wrist, tip = named[f"{side}_wrist"], named[f"{side}_{finger}_tip"]
                named[f"{side}_{finger}"] = (1 - share) * wrist + share * tip
            eye = named[f"{side}_eye"]
            outward = 2 * (eye - eyes)
            for name, (origin, (out, nose, ears)) in _FACE.items():
                start = eye if origin == "eye" else eyes
                named[f"{side}_{name}"] = start + out * outward + nose * forward + ears * backward
    rows = {}
    for name, skeleton in SKELETONS.items():
        sources = [MEANS.get(f"{name}:{joint}") or MEANS.get(joint) or (joint,) for joint in skeleton.joints]
        if all(part in named for source in sources for part in source):
            rows[name] = np.stack([np.mean([named[part] for part in source], 0) for source in sources])
    return {name: Regressor.from_dense(matrix) for name, matrix in rows.items()}
