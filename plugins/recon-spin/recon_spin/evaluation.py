"""What a regressor is measured on: rendered people of held-out motion capture, and held-out photos with 2D joints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.interfaces import BodyModel, Dataset
from recon_core.metrics import mpjpe, pa_mpjpe, pck
from recon_core.skeletons import LSP14
from recon_core.structures import BodyParameters, Keypoints
from recon_spin.supervision import crop_camera
from recon_std.readers.mocap import MocapDataset
from recon_std.renderers.warp import WarpRenderer
from recon_std.synthetic.dataset import fields
from recon_std.synthetic.detection import GaussianErrors
from recon_std.synthetic.keypoints import KeypointSampler, PeopleConfig
from recon_std.synthetic.scenes import SceneConfig, SceneSampler

HIPS = (LSP14.index("right_hip"), LSP14.index("left_hip"))


def rendered_people(body: BodyModel, mocap: Path, count: int, size: int, seed: int = 7) -> dict[str, Any]:
    """`count` people of the validation capture, rendered whole in crops of `size` pixels: the fields of a batch."""
    poses = MocapDataset(mocap, MocapDataset.Config(split="val")).poses
    people = KeypointSampler(body, poses, torch.ones(len(poses)), GaussianErrors(), PeopleConfig(any_orientation=0))
    scenes = SceneSampler(people, WarpRenderer(), SceneConfig(size=size, cut=0))
    return fields(scenes.sample(count, torch.Generator().manual_seed(seed)))


def photographed_people(photos: Dataset) -> dict[str, Tensor]:
    """All subjects of a data set as they are, without augmentation: the fields of a batch."""
    subjects = [photos[i] for i in range(len(photos))]
    names = ("image", "K", "keypoints2d", "keypoints2d_confidence")
    return {name: torch.stack([subject[name] for subject in subjects]) for name in names}


def errors_2d(
    body: BodyModel, found: BodyParameters, batch: Mapping[str, Any], size: int
) -> dict[str, Float[Tensor, " B"]]:
    """Of bodies in the crops' cameras. pck: share of the 14 joints within 0.2 torso lengths. reprojection: mean
    distance of the joints, as a share of the crop's side."""
    points = crop_camera(batch["K"], size).project(body.keypoints(found, "lsp14"))
    seen = batch["keypoints2d_confidence"]
    ones = torch.ones_like(seen)
    hits = pck(Keypoints(points, ones, "lsp14"), Keypoints(batch["keypoints2d"], seen, "lsp14"))
    distance = (points - batch["keypoints2d"]).norm(dim=-1) * (seen > 0)
    return {"pck": hits.nanmean(1), "reprojection": distance.sum(1) / (seen > 0).sum(1).clamp_min(1) / size}


def errors_3d(body: BodyModel, found: BodyParameters, truth: BodyParameters) -> dict[str, Float[Tensor, " B"]]:
    """Millimetres over the 14 joints: pa_mpjpe, and mpjpe with the middles of the hips aligned."""
    ours, theirs = (body.keypoints(b, "lsp14") for b in (found, truth))
    return {"pa_mpjpe": pa_mpjpe(ours, theirs), "mpjpe": mpjpe(ours, theirs, HIPS)}
