"""3D joints for 2D joints by ProHMR's flow (thesis, section 4.4, "2D pose lifting"): the published network.

Joints are named as in the authors' list of extra joints, which is also that of HMR and SPIN.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from recon_core.assets import Assets
from recon_core.published import load_published
from recon_prohmr.flow import ConditionalGlow

JOINTS_OUT = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
    "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
    "neck", "spine", "jaw", "head",
)  # fmt: skip
"""The 16 joints it gives, relative to the pelvis."""

JOINTS_IN = (*JOINTS_OUT[:13], "pelvis", *JOINTS_OUT[13:])
"""The 17 joints it reads."""


class _Block(nn.Module):
    """Linear, batch normalisation, ReLU and dropout, `layers` times; added to its input where it is a residual one."""

    def __init__(self, inputs: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for layer in range(layers):
            parts += [nn.Linear(width if layer else inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
            parts.append(nn.Dropout(dropout))
        self.fc_block = nn.Sequential(*parts)
        self.residual = layers > 1

    def forward(self, x: Float[Tensor, "B I"]) -> Float[Tensor, "B W"]:
        return x + self.fc_block(x) if self.residual else self.fc_block(x)


class _Trunk(nn.Module):
    """2D joints to context: one block, then residual ones (Martinez et al., ICCV 2017)."""

    def __init__(self, inputs: int, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        first = _Block(inputs, width, 1, dropout)
        self.fc_layers = nn.Sequential(first, *(_Block(width, width, 2, dropout) for _ in range(blocks)))

    def forward(self, x: Float[Tensor, "B I"]) -> Float[Tensor, "B W"]:
        return self.fc_layers(x)


class LiftNetwork(nn.Module):
    """p(3D joints | 2D joints) with the published sizes and names.

    2D joints come normalised, (x - mean) / std with the numbers of the data set that the checkpoint was trained on,
    which are in a file of their own; 3D joints are metres.
    """

    dims = 3 * len(JOINTS_OUT)

    def __init__(self, width: int = 1024, blocks: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = _Trunk(2 * len(JOINTS_IN), width, blocks, dropout)
        self.flow = ConditionalGlow(self.dims, width)

    def encode(self, joints: Float[Tensor, "B 17 2"]) -> Float[Tensor, "B C"]:
        """The context of normalised 2D joints in the order of `JOINTS_IN`."""
        return self.backbone(joints.flatten(1))

    def decode(self, z: Float[Tensor, "B N 48"], context: Float[Tensor, "B C"]) -> Float[Tensor, "B N 16 3"]:
        """The joints of latents, in the order of `JOINTS_OUT`; z = 0 is the mode (equation 4.4)."""
        return self.flow.decode(z, context).unflatten(-1, (len(JOINTS_OUT), 3))

    def log_prob(self, joints: Float[Tensor, "B N 16 3"], context: Float[Tensor, "B C"]) -> Float[Tensor, "B N"]:
        """ln p of joints (equation 4.2)."""
        return self.flow.latent_log_prob(self.flow.encode(joints.flatten(2), context), context)


def load_lift(assets: Assets) -> LiftNetwork:
    """The network with the weights added by `recon assets add prohmr-lift FILE`. Raises AssetError without them."""
    network = LiftNetwork()
    load_published(network, assets.find("prohmr-lift-published"))
    return network
