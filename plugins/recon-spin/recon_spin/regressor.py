"""The iterative regressor of HMR with 6D rotations (thesis section 3.3.2; Kanazawa et al., CVPR 2018, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon_core.geometry.rotations import matrix_to_rotation_6d, rotation_6d_to_matrix


class Regressed(NamedTuple):
    """pose: (B, 24, 3, 3), row 0 from the body frame (y up) to the camera frame (y down). betas: (B, 10).
    camera: (B, 3) weak-perspective (s, tx, ty) of the crop. pose_6d: (B, 144), 24 row-major 3 x 2 matrices."""

    pose: Float[Tensor, "B 24 3 3"]
    betas: Float[Tensor, "B 10"]
    camera: Float[Tensor, "B 3"]
    pose_6d: Float[Tensor, "B 144"]


class IterativeRegressor(nn.Module):
    """Image features to body and camera, by repeated correction of a running estimate.

    Each step reads the features and the estimate and adds a correction to it; the first estimate is `init_*`, the
    mean of the training fits. Layer names, sizes and 6D layout ("rows") are the published ones; there is no
    activation between the layers, as in the published network.
    """

    init_pose: Tensor
    init_shape: Tensor
    init_cam: Tensor

    def __init__(self, features: int = 2048, width: int = 1024, dropout: float = 0.5) -> None:
        super().__init__()
        pose, shape, camera = 144, 10, 3
        self.fc1 = nn.Linear(features + pose + shape + camera, width)
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(width, width)
        self.drop2 = nn.Dropout(dropout)
        self.decpose = nn.Linear(width, pose)
        self.decshape = nn.Linear(width, shape)
        self.deccam = nn.Linear(width, camera)
        for head in (self.decpose, self.decshape, self.deccam):
            nn.init.xavier_uniform_(head.weight, gain=0.01)  # the first corrections are small: start at the mean
        upright = torch.eye(3).repeat(24, 1, 1)
        upright[0] = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
        self.register_buffer("init_pose", matrix_to_rotation_6d(upright, "rows").reshape(1, pose))
        self.register_buffer("init_shape", torch.zeros(1, shape))
        self.register_buffer("init_cam", torch.tensor([[0.9, 0.0, 0.0]]))

    def set_mean(self, pose: Float[Tensor, "24 3 3"], betas: Float[Tensor, " 10"], camera: Float[Tensor, " 3"]) -> None:
        """Start every estimate from this pose, shape and camera."""
        self.init_pose.copy_(matrix_to_rotation_6d(pose, "rows").reshape(1, -1))
        self.init_shape.copy_(betas[None])
        self.init_cam.copy_(camera[None])

    def forward(self, features: Float[Tensor, "B C"], iterations: int = 3) -> Regressed:
        """The estimate after `iterations` corrections (three in the paper)."""
        batch = len(features)
        pose, betas, camera = (x.expand(batch, -1) for x in (self.init_pose, self.init_shape, self.init_cam))
        for _ in range(iterations):
            x = self.drop1(self.fc1(torch.cat([features, pose, betas, camera], 1)))
            x = self.drop2(self.fc2(x))
            pose, betas, camera = pose + self.decpose(x), betas + self.decshape(x), camera + self.deccam(x)
        rotations = rotation_6d_to_matrix(pose.unflatten(1, (24, 6)), "rows")
        return Regressed(rotations, betas, camera, pose)
