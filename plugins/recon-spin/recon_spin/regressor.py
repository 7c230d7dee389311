"""The iterative regressor of HMR with 6D rotations (thesis section 3.3.2; Kanazawa et al., CVPR 2018, section 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from recon_core.geometry.rotations import matrix_to_rotation_6d, rotation_6d_to_matrix
from recon_spin.pooling import Joints


class Regressed(NamedTuple):
    """pose: (B, 24, 3, 3), row 0 from the body frame (y up) to the camera frame (y down). betas: (B, 10).
    camera: (B, 3) weak-perspective (s, tx, ty) of the crop. pose_6d: (B, 144), 24 row-major 3 x 2 matrices. joints:
    what pooling found in the crop, None where it does not look for joints."""

    pose: Float[Tensor, "B 24 3 3"]
    betas: Float[Tensor, "B 10"]
    camera: Float[Tensor, "B 3"]
    pose_6d: Float[Tensor, "B 144"]
    joints: Joints | None = None


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

    def forward(self, features: Float[Tensor, "B C"], iterations: int = 3, columns: slice = slice(None)) -> Regressed:
        """The estimate after `iterations` corrections (three in the paper). columns: which of the features are given;
        the others are 0."""
        batch = len(features)
        estimate = torch.cat([self.init_pose, self.init_shape, self.init_cam], 1).expand(batch, -1)
        sizes = [x.shape[1] for x in (self.init_pose, self.init_shape, self.init_cam)]
        of_features, of_estimate = self.fc1.weight.tensor_split([-sum(sizes)], 1)
        # The first layer is linear and the features stay as they are: their part of it is computed once.
        read = F.linear(features, of_features[:, columns], self.fc1.bias)
        for _ in range(iterations):
            x = self.drop1(read + F.linear(estimate, of_estimate))
            x = self.drop2(self.fc2(x))
            estimate = estimate + torch.cat([self.decpose(x), self.decshape(x), self.deccam(x)], 1)
        pose, betas, camera = estimate.split(sizes, 1)
        rotations = rotation_6d_to_matrix(pose.unflatten(1, (24, 6)), "rows")
        return Regressed(rotations, betas, camera, pose)
