"""Evidence for a fit from several pictures of the same people: joints in pixels, and the cameras that saw them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from recon_core.errors import InputError
from recon_core.skeletons import SKELETONS
from recon_core.structures import Camera, Keypoints, Observation

_SHAPES = {"K": (3, 3), "R": (3, 3), "t": (3,)}


def holds_views(path: Path) -> bool:
    """Whether an .npz has joints in pixels of several views (points of two coordinates), not joints in space."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return "points" in file.files and file["points"].shape[-1:] == (2,)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def read_views(path: Path) -> Observation:
    """Joints of the same people in several views, from an .npz.

    Arrays: points (views, people, J, 2) or, of one person, (views, J, 2), pixels; confidence, of the same shape without
    the coordinates, 1 where it is left out and 0 for a person whom a view misses; skeleton, a name; K (views, 3, 3)
    pixels; size (2,), width and height of the pictures; for calibrated views R (views, 3, 3) and t (views, 3), metres,
    from one world frame to each camera's: x_camera = R x_world + t.

    Rows of the result are view by view, and `subject` numbers the people. The world frame is the first view's camera
    frame; without R and t every camera has a frame of its own. Raises InputError naming the file and what is wrong.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if missing := [name for name in ("points", "skeleton", "K", "size") if name not in arrays]:
        raise InputError(
            f"{path}: has no array '{missing[0]}'; joints in pixels of several views need points, skeleton, K and size"
        )
    skeleton = str(arrays["skeleton"])
    if skeleton not in SKELETONS:
        raise InputError(f"{path}: unknown skeleton '{skeleton}'; known: {', '.join(SKELETONS)}")
    points = arrays["points"][:, None] if arrays["points"].ndim == 3 else arrays["points"]
    joints = len(SKELETONS[skeleton].joints)
    if points.ndim != 4 or points.shape[2:] != (joints, 2) or not points.size:
        raise InputError(
            f"{path}: skeleton {skeleton} needs points (views, people, {joints}, 2), got {arrays['points'].shape}"
        )
    views, people = points.shape[:2]
    confidence = arrays.get("confidence", np.ones(points.shape[:3]))
    if confidence.size != points.size // 2 or confidence.shape[0] != views:
        raise InputError(
            f"{path}: confidence has shape {confidence.shape}, points {arrays['points'].shape}: every view must show "
            "the same people, one whom it misses with confidence 0"
        )
    confidence = confidence.reshape(points.shape[:3])
    if not np.isfinite(confidence).all() or not np.isfinite(points[confidence > 0]).all():
        raise InputError(f"{path}: points or confidence has a value that is not a number; give it confidence 0")
    points = np.where(confidence[..., None] > 0, points, 0)
    if ("R" in arrays) != ("t" in arrays):
        raise InputError(f"{path}: R and t belong together; give both for calibrated views, else none")
    cameras = {
        name: _floats(path, name, arrays.get(name, np.broadcast_to(_identity(name), (views, *shape))), (views, *shape))
        for name, shape in _SHAPES.items()
    }
    width, height = _floats(path, "size", arrays["size"], (2,)).tolist()
    if not (0 < width < 1 << 16 and 0 < height < 1 << 16) or (cameras["K"].diagonal(dim1=1, dim2=2) <= 0).any():
        raise InputError(f"{path}: size and the focal lengths in K must be pixels above 0")
    R, t = cameras["R"], cameras["t"]
    if not torch.allclose(R @ R.mT, torch.eye(3).expand(views, 3, 3), atol=1e-3) or (torch.linalg.det(R) < 0).any():
        raise InputError(f"{path}: R is not a rotation in every view; give matrices whose rows are orthonormal")
    # In the first camera's frame: x_v = R_v x + t_v and x_0 = R_0 x + t_0 give x_v = R_v R_0^T (x_0 - t_0) + t_v.
    R = R @ R[:1].mT
    t = t - (R @ t[0])
    rows = torch.arange(views).repeat_interleave(people)
    camera = Camera(cameras["K"][rows], R[rows], t[rows], (round(width), round(height)))
    as_rows = lambda x, shape: torch.from_numpy(np.asarray(x, np.float32).reshape(-1, *shape))  # noqa: E731
    seen = Keypoints(as_rows(points, (joints, 2)), as_rows(confidence, (joints,)), skeleton)
    return Observation(camera, keypoints=seen, subject=torch.arange(people).repeat(views))


def _identity(name: str) -> np.ndarray:
    return np.zeros(3) if name == "t" else np.eye(3)


def _floats(path: Path, name: str, value: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
    if value.shape != shape or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
        raise InputError(f"{path}: {name} must be finite numbers of shape {shape}, got {value.dtype} {value.shape}")
    return torch.from_numpy(np.array(value, np.float32))
