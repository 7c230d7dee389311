"""Licensed SMPL, SMPL-H and SMPL-X files, read without chumpy and without running code, as 24-joint bodies.

Read are the .pkl of SMPL and SMPL-H and the .npz of SMPL-H and SMPL-X as their owners give them out. The larger
models are reduced to SMPL's joints: the 22 joints of the trunk and limbs stay, the fingers of each hand turn
together about the middle knuckle (SMPL's hand joint), jaw and eyes stay with the head; the pose correctives of
the joints that are kept stay too. In any pose of those joints the mesh is that of the full model with relaxed
hands and face. The first ten shape directions are kept.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recon_core.errors import AssetError
from recon_core.rendering.shading import vertex_normals
from recon_core.safe_pickle import load_arrays
from recon_core.skeletons import SMPL_PARENTS
from recon_std.bodies import parts, topology
from recon_std.bodies.data import BodyData
from recon_std.bodies.licensed_keypoints import licensed_regressors

SHAPE_COUNT = 10
BODY_JOINTS = 22
"""Joints that SMPL, SMPL-H and SMPL-X share, in this order."""

# By number of joints: the model's name, its left and right middle knuckles, what moves with the head, its licence.
_MODELS: dict[int, tuple[str, tuple[int, int], tuple[int, ...], str]] = {
    24: ("smpl", (22, 23), (), "SMPL model licence, non-commercial (smpl.is.tue.mpg.de/modellicense)"),
    52: ("smplh", (25, 40), (), "SMPL-H (MANO) licence, non-commercial (mano.is.tue.mpg.de/license)"),
    55: ("smplx", (28, 43), (22, 23, 24), "SMPL-X model licence, non-commercial (smpl-x.is.tue.mpg.de/modellicense)"),
}
_KEYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "f", "kintree_table")
_GENDER = re.compile(r"(?:^|[^a-z])(neutral|female|male|[nmf])(?=$|[^a-z])")
_GENDERS = {"n": "neutral", "f": "female", "m": "male"}


def convert_smpl_file(path: Path) -> BodyData:
    """The body in an SMPL, SMPL-H or SMPL-X file (.pkl or .npz), reduced to SMPL's 24 joints.

    Keypoint regressors are those of `licensed_keypoints`. Raises AssetError naming the file when it is
    missing, damaged, would run code, or is not such a model.
    """
    try:
        return _convert(_read(path), path)
    except AssetError as error:
        raise error if str(path) in str(error) else AssetError(f"{path}: {error}") from None


def smpl_arrays(data: BodyData) -> dict[str, np.ndarray]:
    """The contents of an SMPL .pkl file that holds this body, for other programs (`pickle.dump` it).

    Keys and shapes as in the files of SMPL 1.0: v_template, shapedirs, posedirs, J_regressor, weights, f,
    kintree_table; float64 and int64.
    """
    vertices = len(data.template)
    parents = np.stack([data.parents, np.arange(len(data.parents))])
    correctives = np.zeros((vertices, 3, 207)) if data.pose_directions is None else data.pose_directions
    return {
        "v_template": data.template,
        "shapedirs": data.shape_directions,
        "posedirs": correctives,
        "J_regressor": data.regressors["smpl24"].dense(),
        "weights": data.weights,
        "f": data.faces,
        "kintree_table": parents,
    }


def is_smpl_file(path: Path) -> bool:
    """Whether a file looks like one that `convert_smpl_file` reads, by its name and table of contents alone."""
    if path.suffix != ".npz":
        return path.suffix == ".pkl"
    try:
        with zipfile.ZipFile(path) as archive:
            return "v_template.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                content: dict[str, Any] = {key: file[key] for key in _KEYS if key in file}
        except FileNotFoundError:
            raise AssetError(f"{path}: no such file") from None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise AssetError(f"damaged, or no file of arrays ({error}); get it again") from None
    else:
        content = load_arrays(path)
    if missing := [key for key in _KEYS if key not in content]:
        raise AssetError(f"not an SMPL model: it has no {', '.join(missing)}; SMPL, SMPL-H and SMPL-X files are read")
    try:
        arrays = {key: np.asarray(content[key], np.float64) for key in _KEYS[:-2]}
        return arrays | {key: np.asarray(content[key]).astype(np.int64) for key in _KEYS[-2:]}
    except (TypeError, ValueError) as error:
        raise AssetError(f"not an SMPL model: its arrays hold something else than numbers ({error})") from None


def _convert(arrays: dict[str, np.ndarray], path: Path) -> BodyData:
    model = _check(arrays)
    kind, knuckles, with_head, licence = _MODELS[model]
    # Row p: which of the model's joints smpl24 joint p takes over.
    owner = np.zeros((len(SMPL_PARENTS), model))
    owner[np.arange(BODY_JOINTS), np.arange(BODY_JOINTS)] = 1
    owner[15, list(with_head)] = 1
    first_finger = BODY_JOINTS + len(with_head)
    left, right = np.split(np.arange(first_finger, model), 2)
    owner[22, left] = owner[23, right] = 1

    weights = arrays["weights"] @ owner.T
    joints = arrays["J_regressor"][[*range(BODY_JOINTS), *knuckles]]
    vertices = len(arrays["v_template"])
    correctives = np.zeros((vertices, 3, 207))
    # Numbers of the hands' joints: SMPL has their correctives, the larger models have them by finger.
    count = 207 if kind == "smpl" else 9 * (BODY_JOINTS - 1)
    correctives[..., :count] = arrays["posedirs"].reshape(vertices, 3, -1)[..., :count]
    template = arrays["v_template"]
    faces = arrays["f"]
    weights /= weights.sum(1, keepdims=True)
    anatomy = parts.anatomical_parts(weights)
    uv, uv_faces = topology.face_atlas(len(faces))
    normals = vertex_normals(torch.from_numpy(template), torch.from_numpy(faces))
    return BodyData(
        name=f"{kind}-{_gender(path)}",
        licence=licence,
        template=template,
        shape_directions=arrays["shapedirs"][..., :SHAPE_COUNT],
        pose_directions=correctives,
        faces=faces,
        weights=weights,
        regressors=licensed_regressors(joints, template),
        uv=uv,
        uv_faces=uv_faces,
        mirror=topology.find_mirror(template),
        parts=parts.joint_parts(weights),
        anatomy=anatomy,
        torso=parts.torso_sides(anatomy, normals.numpy()),
    )


def _check(a: dict[str, np.ndarray]) -> int:
    """The number of joints of a well-formed model; AssetError saying what is not."""
    vertices = a["v_template"].shape[0] if a["v_template"].ndim == 2 else 0
    joints = a["weights"].shape[-1] if a["weights"].ndim == 2 else 0
    if joints not in _MODELS:
        known = ", ".join(f"{name} {count}" for count, (name, *_) in _MODELS.items())
        raise AssetError(f"not a supported model: weights of {joints} joints (known: {known})")
    shapes: dict[str, tuple[int | None, ...]] = {
        "v_template": (None, 3),
        "shapedirs": (vertices, 3, None),
        "posedirs": (vertices, 3, 9 * (joints - 1)),
        "J_regressor": (joints, vertices),
        "weights": (vertices, joints),
        "f": (None, 3),
        "kintree_table": (2, joints),
    }
    for key, wanted in shapes.items():
        found = a[key].shape
        if len(found) != len(wanted) or any(w not in (None, n) for w, n in zip(wanted, found, strict=True)):
            text = ", ".join("any" if w is None else str(w) for w in wanted)
            raise AssetError(f"not an SMPL model: {key} has shape {found}, expected ({text})")
    for key in shapes:
        if not np.isfinite(a[key]).all():
            raise AssetError(f"damaged: {key} holds NaN or infinity; get the file again")
    if tuple(a["kintree_table"][0, 1:BODY_JOINTS]) != SMPL_PARENTS[1:BODY_JOINTS]:
        raise AssetError("not an SMPL model: kintree_table is another skeleton")
    if not len(a["f"]) or a["f"].min() < 0 or a["f"].max() >= vertices:
        raise AssetError(f"damaged: f names vertices beyond the {vertices} of v_template")
    for key, axis in (("weights", 1), ("J_regressor", 1)):
        if np.abs(a[key].sum(axis) - 1).max() > 1e-2:
            raise AssetError(f"damaged: rows of {key} do not sum to 1")
    return joints


def _gender(path: Path) -> str:
    """The gender in the file's name, or in its folder's (SMPL+H: `male/model.npz`); neutral where neither tells."""
    for text in (path.stem, path.parent.name):
        if found := _GENDER.search(text.lower()):
            return _GENDERS.get(found[1], found[1])
    return "neutral"
