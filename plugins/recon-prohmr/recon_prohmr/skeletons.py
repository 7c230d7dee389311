"""3D joints for 2D joints by ProHMR's flow (thesis, section 4.3.6, "2D pose lifting"): the shipped network.

As in `network`, joints are seen as by a camera turned to look straight at the person (`KeypointView`), any of them may
be missing, and the flow's numbers stand in that camera's frame: h36m17 relative to the pelvis, metres.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon_core.interfaces import BodyModel, Settings
from recon_core.skeletons import skeleton
from recon_core.structures import LossValue
from recon_prohmr.flow import ConditionalGlow
from recon_std.encoders.keypoints import KeypointEncoder
from recon_std.synthetic.keypoints import KeypointPeople

SKELETON = "h36m17"
JOINTS = skeleton(SKELETON).joints[1:]
"""The 16 joints of the flow: all but the pelvis, which is at the origin (section 4.6.2)."""


class SkeletonNetworkConfig(Settings):
    """Sizes of the shipped network; the thesis' (section 4.6.2) in brackets."""

    context: int = 256
    """Numbers of context (1024)."""
    encoder_width: int = 384
    encoder_blocks: int = 2
    flow_blocks: int = 4
    """Building blocks of the flow (4)."""
    flow_width: int = 256
    """Channels of the residual nets in the couplings (1024)."""
    residual_blocks: int = 2
    batch_norm: bool = False
    """Batch normalisation inside the couplings (true). Without it every row of a batch stands for itself."""
    context_scale: bool = True
    """Let the context scale the density (not in the thesis; `flow.ContextScale` says why)."""


class SkeletonNetwork(nn.Module):
    """Keypoint encoder and conditional flow over 16 x 3 numbers: `JOINTS` in the view's frame, metres."""

    Config: ClassVar[type[Settings]] = SkeletonNetworkConfig

    def __init__(self, config: SkeletonNetworkConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or SkeletonNetworkConfig()
        self.encoder = KeypointEncoder(c.context, c.encoder_width, c.encoder_blocks)
        self.flow = ConditionalGlow(
            3 * len(JOINTS), c.context, c.flow_blocks, c.flow_width, c.residual_blocks, c.batch_norm, c.context_scale
        )


class SkeletonWeights(Settings):
    """Weights of the two terms, as in section 4.6.3."""

    nll: float = 0.001
    mode_3d: float = 1.0
    spread: float = 0.005
    """Metres: deviation of the noise added to the joints whose likelihood is learnt. Bones of one body keep their
    lengths, so that true joints fill only a part of the space, on which a density could grow without bound."""


def joints_in_view(body_model: BodyModel, people: KeypointPeople) -> Float[Tensor, "B 48"]:
    """The flow's numbers of people whose bodies are known."""
    joints = body_model.keypoints(people.body, SKELETON)
    return ((joints[:, 1:] - joints[:, :1]) @ people.view.rotation.transpose(-1, -2)).flatten(1)


def lifting_objective(
    network: SkeletonNetwork,
    body_model: BodyModel,
    people: KeypointPeople,
    weights: SkeletonWeights,
    generator: torch.Generator,
) -> LossValue:
    """lambda_nll L_nll + lambda_mode,3D L_mode,3D for each person (section 4.6.3): full supervision needs no more."""
    with torch.no_grad():
        truth = joints_in_view(body_model, people)
    context = network.encoder.encode(people.view).float()
    noisy = truth + weights.spread * torch.randn(truth.shape, generator=generator, device=truth.device)
    terms = {
        "nll": -network.flow.log_prob(noisy, context),
        "mode_3d": (network.flow.mode(context) - truth).abs().sum(1),
    }
    return LossValue(weights.nll * terms["nll"] + weights.mode_3d * terms["mode_3d"], terms)
