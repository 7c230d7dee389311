"""What ProHMR learns: an encoder's context, the flow over poses given it, and shape and camera from it (figure 30)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon_core.geometry.rotations import matrix_to_rotation_6d, rotation_6d_to_matrix
from recon_core.interfaces import BodyModel, Settings
from recon_core.structures import Batched, BodyParameters
from recon_prohmr.flow import ConditionalGlow
from recon_std.encoders.keypoints import KeypointEncoder, KeypointView

POSE_DIMS = 24 * 6


class NetworkConfig(Settings):
    """Sizes of the shipped network; the thesis' (section 4.6.2) in brackets."""

    context: int = 512
    """Numbers of context (2048)."""
    encoder_width: int = 768
    encoder_blocks: int = 3
    flow_blocks: int = 4
    """Building blocks of the flow (4)."""
    flow_width: int = 384
    """Channels of the residual nets in the couplings (1024)."""
    residual_blocks: int = 2
    batch_norm: bool = False
    """Batch normalisation inside the couplings (true). Without it every row of a batch stands for itself."""
    context_scale: bool = True
    """Let the context scale the density (not in the thesis; `flow.ContextScale` says why)."""
    head_width: int = 512
    """Hidden numbers of the head for shape and camera (1024)."""


class ShapeCameraHead(nn.Module):
    """[betas, camera] = h(c), one hidden layer (section 4.3.3), added to fixed mean values."""

    init_betas: Tensor
    init_cam: Tensor

    def __init__(self, context: int, width: int, betas: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(context, width), nn.ReLU(), nn.Linear(width, betas + 3))
        self.register_buffer("init_betas", torch.zeros(betas))
        self.register_buffer("init_cam", torch.zeros(3))

    def forward(self, context: Float[Tensor, "B C"]) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B 3"]]:
        """betas, and the camera (s, tx, ty) before any map of its numbers."""
        out = self.layers(context)
        betas = len(self.init_betas)
        return out[:, :betas] + self.init_betas, out[:, betas:] + self.init_cam


@dataclass(frozen=True)
class Placed(Batched):
    """Where the head puts the body: betas (B, S), pelvis (B, 3) in the view's frame, metres."""

    betas: Float[Tensor, "B S"]
    pelvis: Float[Tensor, "B 3"]


class ProHMRNetwork(nn.Module):
    """Keypoint encoder, conditional flow over 24 x 6 numbers (columns layout), head.

    Poses here stand in the frame of the keypoints' view (`KeypointView`): a camera that looks straight at the person.
    """

    Config: ClassVar[type[Settings]] = NetworkConfig

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or NetworkConfig()
        self.encoder = KeypointEncoder(c.context, c.encoder_width, c.encoder_blocks)
        self.flow = ConditionalGlow(
            POSE_DIMS, c.context, c.flow_blocks, c.flow_width, c.residual_blocks, c.batch_norm, c.context_scale
        )
        self.head = ShapeCameraHead(c.context, c.head_width)

    def place(self, context: Float[Tensor, "B C"], view: KeypointView) -> Placed:
        """Shape, and the pelvis from the camera (s, tx, ty): weak perspective in units of the view's extent.

        A point X metres off the axis falls on exp(s) (X + tx) extents, so that the pelvis is 1 / (extent exp(s))
        metres away (section 4.3.3's camera, with the true focal length in place of f = 5000).
        """
        betas, camera = self.head(context)
        scale = camera[:, 0].clamp(-4, 4).exp()
        depth = 1 / (view.extent.clamp_min(1e-6) * scale)
        return Placed(betas, torch.stack([camera[:, 1], camera[:, 2], depth], -1))


def pose_to_6d(pose: Float[Tensor, "*B 24 3 3"]) -> Float[Tensor, "*B 144"]:
    """The flow's numbers of a pose."""
    return matrix_to_rotation_6d(pose).flatten(-2)


def pose_from_6d(values: Float[Tensor, "*B 144"]) -> Float[Tensor, "*B 24 3 3"]:
    """The pose of the flow's numbers."""
    return rotation_6d_to_matrix(values.unflatten(-1, (24, 6)))


def turned(pose: Float[Tensor, "*B 24 3 3"], rotation: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 24 3 3"]:
    """The pose in a frame turned by `rotation`."""
    return torch.cat([(rotation @ pose[..., 0, :, :])[..., None, :, :], pose[..., 1:, :, :]], -3)


def stand(body_model: BodyModel, pose: Float[Tensor, "B 24 3 3"], placed: Placed) -> BodyParameters:
    """The body in the view's frame, its pelvis where the head says."""
    rest = body_model.rest_joints(placed.betas)[:, 0]
    return BodyParameters(pose, placed.betas, placed.pelvis - rest)


def to_camera(body: BodyParameters, rotation: Float[Tensor, "B 3 3"], body_model: BodyModel) -> BodyParameters:
    """A body of the view's frame in the picture's camera frame. rotation: `KeypointView.rotation`."""
    back = rotation.transpose(-1, -2)
    rest = body_model.rest_joints(body.betas)[:, 0]
    pelvis = (back @ (rest + body.translation)[..., None])[..., 0]
    return BodyParameters(turned(body.pose, back), body.betas, pelvis - rest)
