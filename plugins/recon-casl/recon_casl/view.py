"""The camera attribute: distance, azimuth, elevation and offset (section 3.2), and the camera it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from recon_core.structures import Batched, Camera

FOCAL = 2.5
"""Focal length over half the picture's side: a field of view of 2 atan(1 / 2.5), 43.6 degrees, as published."""


@dataclass(frozen=True)
class View(Batched):
    """Where B cameras stand. distance: (B,) to the origin. azimuth: (B, 2) its cosine and sine, a unit vector, so that
    the circle has no seam; 0 is in front, +z, and 90 degrees at +x. elevation: (B,) radians. offset: (B, 2), x and y of
    the point looked at, which lies in the plane z = 0."""

    distance: Float[Tensor, " B"]
    azimuth: Float[Tensor, "B 2"]
    elevation: Float[Tensor, " B"]
    offset: Float[Tensor, "B 2"]

    @property
    def azimuth_degrees(self) -> Float[Tensor, " B"]:
        """In (-180, 180]."""
        return torch.rad2deg(torch.atan2(self.azimuth[:, 1], self.azimuth[:, 0]))

    def turned(self, degrees: Float[Tensor, " B"] | float) -> View:
        """The same, seen from another azimuth: `degrees` further towards +x."""
        angle = torch.deg2rad(torch.as_tensor(degrees, dtype=self.azimuth.dtype, device=self.azimuth.device))
        c, s = angle.cos().expand(len(self.azimuth)), angle.sin().expand(len(self.azimuth))
        x, y = self.azimuth.unbind(1)
        return View(self.distance, torch.stack([c * x - s * y, s * x + c * y], 1), self.elevation, self.offset)

    def numbers(self) -> Float[Tensor, "B 6"]:
        """All of it in a row, for losses; degrees are of the order of 1 as the others are."""
        return torch.cat([self.distance[:, None], self.azimuth, self.elevation[:, None], self.offset], 1)

    def camera(self, side: int) -> Camera:
        """For square pictures of `side` pixels. World frame of the template: y up, z to the front."""
        cosine, sine = self.azimuth.unbind(1)
        level = self.elevation.cos()
        position = torch.stack([level * sine, self.elevation.sin(), level * cosine], 1) * self.distance[:, None]
        target = torch.cat([self.offset, torch.zeros_like(self.distance)[:, None]], 1)
        forward = normalize(target - position, dim=1)
        up = forward.new_tensor([0.0, 1.0, 0.0]).expand_as(forward)
        right = normalize(torch.linalg.cross(forward, up, dim=1), dim=1)
        R = torch.stack([right, torch.linalg.cross(forward, right, dim=1), forward], 1)
        K = Camera.perspective(FOCAL * side / 2, (side, side), batch=len(position)).K.to(position)
        return Camera(K, R, -(R @ position[..., None])[..., 0], (side, side))
