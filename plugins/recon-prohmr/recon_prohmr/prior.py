"""ProHMR's density as a prior over poses in the picture's camera frame."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.interfaces import Prior
from recon_prohmr.flow import ConditionalGlow


class PosePrior(Prior):
    """p(pose | what was seen) over the 144 numbers of "pose-6d", in the camera frame.

    The flow lives in the frame of the keypoints' view. Its context is followed by the 9 numbers (row-major) of the
    rotation from the camera frame to the view (`packed`), so that a prediction's context is all that is needed. A
    rotation of columns keeps volumes: the density is the flow's.
    """

    over: ClassVar[Literal["pose-6d"]] = "pose-6d"

    def __init__(self, flow: ConditionalGlow) -> None:
        super().__init__()
        self.flow = flow
        self.dims = flow.dims

    @staticmethod
    def packed(context: Float[Tensor, "B C"], rotation: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B C9"]:
        """The context of this prior. rotation: `KeypointView.rotation`."""
        return torch.cat([context, rotation.flatten(1)], -1)

    def _unpacked(self, context: Tensor | None) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B 3 3"]]:
        if context is None:
            raise UsageError("the prior 'prohmr' needs the context of a prediction by prohmr: use it with that method")
        return context[:, :-9], context[:, -9:].unflatten(1, (3, 3))

    def log_prob(
        self, values: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, " B"]:
        own, rotation = self._unpacked(context)
        return self.flow.log_prob(_root_turned(values[:, None], rotation)[:, 0], own)

    def encode(self, values: Float[Tensor, "B N D"], context: Float[Tensor, "B C"] | None) -> Float[Tensor, "B N D"]:
        """The latents of poses."""
        own, rotation = self._unpacked(context)
        return self.flow.encode(_root_turned(values, rotation), own)

    def decode(self, z: Float[Tensor, "B N D"], context: Float[Tensor, "B C"] | None) -> Float[Tensor, "B N D"]:
        """The poses of latents, f(z; c)."""
        own, rotation = self._unpacked(context)
        return _root_turned(self.flow.decode(z, own), rotation.transpose(-1, -2))

    def jacobian(self, z: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None) -> Float[Tensor, "B D D"]:
        """d decode(z) / d z."""
        own, rotation = self._unpacked(context)
        columns = self.flow.jacobian(z, own).transpose(1, 2)
        return _root_turned(columns, rotation.transpose(-1, -2)).transpose(1, 2)

    def sample(
        self, count: int, context: Float[Tensor, "B C"] | None = None, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B N D"]:
        own, rotation = self._unpacked(context)
        return _root_turned(self.flow.sample(count, own, generator), rotation.transpose(-1, -2))

    def mode(self, context: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "B D"]:
        own, rotation = self._unpacked(context)
        return _root_turned(self.flow.mode(own)[:, None], rotation.transpose(-1, -2))[:, 0]

    def quadratic(
        self, values: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None = None
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"], Float[Tensor, "B D D"]]:
        """|z|^2 / 2, which is -log_prob up to a constant; the curvature is Gauss-Newton's, A^T A with A = dz/dx."""
        z = self.encode(values[:, None], context)[:, 0]
        inverse = torch.linalg.inv(self.jacobian(z, context))
        gradient = (z[:, None] @ inverse)[:, 0]
        return 0.5 * z.square().sum(-1), gradient, inverse.transpose(-1, -2) @ inverse


def _root_turned(values: Float[Tensor, "B N 144"], rotation: Float[Tensor, "B 3 3"]) -> Float[Tensor, "B N 144"]:
    """The same poses in a frame turned by `rotation`: both columns of the root turn."""
    root = values[..., :6].unflatten(-1, (2, 3)) @ rotation[:, None].transpose(-1, -2)
    return torch.cat([root.flatten(-2), values[..., 6:]], -1)
