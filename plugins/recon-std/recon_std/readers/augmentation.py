"""Varying a training picture: rolled camera, larger or smaller or shifted crop, mirror image, colour.

The augmented crop is the picture of a camera that was rolled about its axis, in front of a mirror where it is
flipped: x_crop = Rz(roll) F x_photo in camera frames, F = diag(-1, 1, 1) for a flip. Its intrinsics stay upright.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.interfaces import Settings
from recon_core.skeletons import SMPL24


class AugmentationSettings(Settings):
    """Ranges of the variations; the defaults are those of HMR and SPIN but for SPIN's heavier colours."""

    rotation: float = 30.0
    """Largest roll in degrees, uniform either way."""
    scale: float = 0.25
    """Largest change of the crop's side, as a share of it."""
    shift: float = 0.08
    """Largest offset of the crop's middle from the box's, either way along each axis, as a share of the crop's side: as
    far as a detector's boxes are from those of labelled joints."""
    flip: float = 0.5
    """Share of mirror images."""
    color: float = 0.2
    """Largest change of each colour channel, as a share of it."""


@dataclass(frozen=True)
class Augmentation:
    """One variation. roll: radians, turning +x towards +y (clockwise as seen). color: factors of the channels. shift:
    of the person in the crop, as a share of its side."""

    roll: float = 0.0
    scale: float = 1.0
    flipped: bool = False
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def draw(cls, settings: AugmentationSettings, generator: np.random.Generator) -> Augmentation:
        roll, scale, flip, *color, right, down = generator.random(8)
        red, green, blue = (1 + settings.color * (2 * c - 1) for c in color)
        return cls(
            float(np.deg2rad(settings.rotation) * (2 * roll - 1)),
            float(1 + settings.scale * (2 * scale - 1)),
            bool(flip < settings.flip),
            (float(red), float(green), float(blue)),
            (float(settings.shift * (2 * right - 1)), float(settings.shift * (2 * down - 1))),
        )

    def crop(self, box: tuple[float, float, float, float], side: int, margin: float) -> Float[Tensor, "2 3"]:
        """From photo pixels to the pixels of a square crop, `margin` times the box's longer side wide."""
        x, y, w, h = box
        size = side / (max(w, h) * margin * self.scale)
        cosine, sine = np.cos(self.roll), np.sin(self.roll)
        linear = size * np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if self.flipped else 1.0, 1.0])
        shift = side * (0.5 + np.array(self.shift)) - linear @ np.array([x + w / 2, y + h / 2])
        return torch.from_numpy(np.column_stack([linear, shift]).astype(np.float32))

    def intrinsics(self, focal: float, center: tuple[float, float], crop: Float[Tensor, "2 3"]) -> Float[Tensor, "3 3"]:
        """Intrinsics of the crop's camera, of a photo with this focal length and principal point in pixels."""
        K = torch.eye(3)
        K[0, 0] = K[1, 1] = focal * crop[:, :2].det().abs().sqrt()
        K[:2, 2] = crop[:, :2] @ torch.tensor(center) + crop[:, 2]
        return K


def augmented_pose(
    pose: Float[Tensor, "B 24 3 3"], roll: Float[Tensor, " B"], flipped: Float[Tensor, " B"]
) -> Float[Tensor, "B 24 3 3"]:
    """A pose that fits the photo, in the frame of its augmented crop."""
    turned = _flipped(pose, flipped)
    return torch.cat([(_about_z(roll) @ turned[:, 0])[:, None], turned[:, 1:]], 1)


def original_pose(
    pose: Float[Tensor, "B 24 3 3"], roll: Float[Tensor, " B"], flipped: Float[Tensor, " B"]
) -> Float[Tensor, "B 24 3 3"]:
    """The inverse of `augmented_pose`: from the crop's frame to the photo's."""
    turned = torch.cat([(_about_z(-roll) @ pose[:, 0])[:, None], pose[:, 1:]], 1)
    return _flipped(turned, flipped)


def _flipped(pose: Float[Tensor, "B 24 3 3"], flipped: Float[Tensor, " B"]) -> Float[Tensor, "B 24 3 3"]:
    signs = torch.tensor([-1.0, 1.0, 1.0]).to(pose)
    mirror = pose[:, list(SMPL24.mirror)] * signs[:, None] * signs
    return torch.where(flipped.to(pose)[:, None, None, None] > 0.5, mirror, pose)


def _about_z(angle: Float[Tensor, " B"]) -> Float[Tensor, "B 3 3"]:
    c, s, o, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, -s, o, s, c, o, o, o, one], -1).reshape(-1, 3, 3)
