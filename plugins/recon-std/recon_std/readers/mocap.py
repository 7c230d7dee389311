"""Motion capture poses in SMPL convention, as one folder of `poses_<split>.npz` files.

Each file holds local joint rotations of clips at 30 Hz: poses (F, 24, 3) axis-angle radians, clip, frame and flags (F),
and per clip clip_names, source, source_names, clip_knee_p3 (3rd percentile of knee flexion, degrees).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.datasets import data_folder
from recon_core.errors import TrainingError
from recon_core.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from recon_core.interfaces import Dataset, Settings
from recon_core.skeletons import SMPL24

_ARRAYS = ("poses", "clip", "frame", "flags", "clip_names", "source", "source_names", "clip_knee_p3", "joint_names")


def straighten_knees(poses: Float[Tensor, "F 24 3 3"], degrees: Float[Tensor, " F"]) -> Float[Tensor, "F 24 3 3"]:
    """Take `degrees` of flexion out of both knees of each frame.

    Hip and ankle give back half each, so that the line from hip to ankle (of equal thigh and shank) and the foot
    keep their direction: undoes the constant flexion that CMU-type skeletons show on straight legs.
    """
    x_axis = torch.eye(3, dtype=poses.dtype)[0]
    half = axis_angle_to_matrix(torch.deg2rad(degrees.to(poses))[:, None] * x_axis / 2)
    back = half.transpose(-1, -2)
    out = poses.clone()
    for side in ("left", "right"):
        hip, knee, ankle = (SMPL24.index(f"{side}_{joint}") for joint in ("hip", "knee", "ankle"))
        # In the thigh turned by +b/2 and the shank by -b/2: hip H X, knee X^-1 K X^-1, ankle X A, with X = Rx(b/2).
        out[:, hip] = poses[:, hip] @ half
        out[:, knee] = back @ poses[:, knee] @ back
        out[:, ankle] = half @ poses[:, ankle]
    return out


def mirrored(poses: Float[Tensor, "... 24 3"]) -> Float[Tensor, "... 24 3"]:
    """The same axis-angle poses seen in a mirror: left and right exchanged, rotations reflected in x."""
    return poses[..., list(SMPL24.mirror), :] * poses.new_tensor([1.0, -1.0, -1.0])


class MocapDataset(Dataset):
    """Poses of motion capture clips: `--data mocap:DIR`.

    Fields: id "clip/frame"; recorded_pose (24, 3, 3), row 0 to a y-up world frame.
    sampling_weights balances by action, as the frames are not: each action counts alike and each clip within its
    action, DeepMimic's clips (the only lying, crawling and inverted ones) as three actions.
    """

    class Config(Settings):
        split: Literal["train", "val"] = "train"
        straighten: bool = True
        """Take the constant standing knee flexion of the CMU skeletons out."""

    config: Config
    sampling_weights: Tensor

    def __init__(self, location: str | Path | None = None, config: Config | None = None) -> None:
        super().__init__(location, config)
        path = data_folder("mocap", location) / f"poses_{self.config.split}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
        except FileNotFoundError:
            raise TrainingError(f"{path}: no such file; mocap needs poses_train.npz and poses_val.npz") from None
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{path}: not a motion capture file of this layout ({error})") from None
        if tuple(arrays["joint_names"]) != SMPL24.joints or arrays["poses"].shape[1:] != (24, 3):
            raise TrainingError(f"{path}: its joints are not those of smpl24; convert them first")
        self.clip = torch.from_numpy(arrays["clip"].astype(np.int64))
        self.frame = torch.from_numpy(arrays["frame"].astype(np.int64))
        self.reset = torch.from_numpy(arrays["flags"] != 0)
        """(F,) whether the frame had a head, ankle or wrist out of range, which was set to zero."""
        self.clip_names = [str(name) for name in arrays["clip_names"]]
        self.poses = torch.from_numpy(arrays["poses"].astype(np.float32))
        if self.config.straighten:
            bias = torch.from_numpy(_knee_bias(self.clip_names, arrays["clip_knee_p3"]))
            turned = straighten_knees(axis_angle_to_matrix(self.poses), bias[self.clip])
            self.poses = matrix_to_axis_angle(turned)
        self.actions = [action_of(name) for name in self.clip_names]
        self.sampling_weights = self._balanced()

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "id": f"{self.clip_names[int(self.clip[index])]}/{int(self.frame[index])}",
            "recorded_pose": axis_angle_to_matrix(self.poses[index]),
        }

    def draw_batch(self, indices: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
        rows = torch.as_tensor(indices)
        names = [f"{self.clip_names[c]}/{f}" for c, f in zip(self.clip[rows], self.frame[rows], strict=True)]
        return {"id": names, "recorded_pose": axis_angle_to_matrix(self.poses[rows])}

    def _balanced(self) -> Float[Tensor, " F"]:
        """Probability of drawing each frame; they sum to 1."""
        share = {action: 3.0 if action == "deepmimic" else 1.0 for action in self.actions}
        clips_of = {action: self.actions.count(action) for action in share}
        frames = torch.bincount(self.clip, minlength=len(self.actions)).double()
        per_clip = torch.tensor([share[a] / clips_of[a] for a in self.actions], dtype=torch.float64)
        return ((per_clip / frames)[self.clip] / sum(share.values())).float()


def action_of(clip: str) -> str:
    """The action a clip is named after: "exp_train_walking_extra_14" is walking, "cmu_02_01" is cmu_02 (a CMU
    subject does one kind of thing), any "dm_..." is deepmimic."""
    if clip.startswith("dm_"):
        return "deepmimic"
    return re.sub(r"^(acrnn|exp_train|exp_test)_|(_extra)?_\d+$", "", clip)


def _knee_bias(clip_names: list[str], knee_p3: np.ndarray) -> np.ndarray:
    """Degrees of knee flexion to take out of each clip, by the data's own advice."""
    bias = np.maximum(knee_p3.astype(np.float32) - 4, 0)
    stands = np.array([action_of(name) in ("walking", "directing_traffic", "washwindow") for name in clip_names])
    from_cmu = np.array([not name.startswith("dm_") for name in clip_names])
    return np.where(stands, bias, np.minimum(bias, 8)) * from_cmu
