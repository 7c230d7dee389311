"""The unknowns of a latent fit: one shape a subject, one pose and one place a frame."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.structures import Batched


@dataclass(frozen=True)
class LatentVariables(Batched):
    """N subjects seen in F frames each (F = 1 for a single mesh, scan or picture).

    shape: (N, S), pose: (N, F, P): codes. root: (N, F, 3, 3) and translation: (N, F, 3): the rigid motion from the
    model's frame (y up) into the frame of the evidence, metres.

    A step's columns: S of the shape, then for each frame P of the pose, 3 that turn the root about its own axes
    (radians) and 3 metres.
    """

    shape: Float[Tensor, "N S"]
    pose: Float[Tensor, "N F P"]
    root: Float[Tensor, "N F 3 3"]
    translation: Float[Tensor, "N F 3"]

    @property
    def frames(self) -> int:
        return self.pose.shape[1]

    @property
    def columns(self) -> int:
        """Numbers of a step."""
        return self.shape.shape[1] + self.frames * (self.pose.shape[2] + 6)

    def moved(self, step: Float[Tensor, "N C"]) -> LatentVariables:
        S, P = self.shape.shape[1], self.pose.shape[2]
        frame = step[:, S:].unflatten(1, (self.frames, P + 6))
        return LatentVariables(
            self.shape + step[:, :S],
            self.pose + frame[..., :P],
            self.root @ axis_angle_to_matrix(frame[..., P : P + 3]),
            self.translation + frame[..., P + 3 :],
        )

    def codes(self) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B P"]]:
        """Both codes of each of the B = N F frames."""
        shape = self.shape[:, None].expand(-1, self.frames, -1)
        return shape.flatten(0, 1), self.pose.flatten(0, 1)

    def placed(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B V 3"]:
        """Points of the model's frame in the frame of the evidence."""
        turned = vertices @ self.root.flatten(0, 1).transpose(-1, -2)
        return turned + self.translation.flatten(0, 1)[:, None]
