"""What can be explained: joints in pictures, joints in space, corresponded vertices, scan points.

Every kind gives whitened residuals (divided by their expected noise), so that half their robust squares add up with
negative log priors. N subjects, V views of each, K points; points are laid out (N, V, 3, K), coordinates before
points, as the products over points want them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from recon_core.structures import Batched
from recon_std.fitters.kinematics import PointBasis, Pose
from recon_std.fitters.variables import Variables

NEAR = 0.05
"""Metres before a perspective camera within which a joint counts as behind it."""


def geman_mcclure(
    squared: Float[Tensor, "..."], scale: float | None
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """rho(s) = c^2 s / (c^2 + s) of squared residuals s, and its slope (c^2 / (c^2 + s))^2; c None: s and 1.

    The slope is the weight by which iteratively reweighted least squares multiplies a square (Holland & Welsch
    1977); rho is SMPLify's robust penalty (Bogo et al., ECCV 2016, equation 5).
    """
    if scale is None:
        return squared, torch.ones_like(squared)
    shrink = (squared / scale**2).add(1).reciprocal()
    return shrink * squared, shrink * shrink


@dataclass(frozen=True)
class Residuals(Batched):
    """value: (N, V, d, K) whitened. jacobian: (N, V, d, 3, K), of value by the point in the world frame. weight:
    (N, V, K), confidence times the robust slope. energy: (N,) half the robust squares. valid: (N,) no joint that
    counts is behind its camera."""

    value: Float[Tensor, "N V d K"]
    jacobian: Float[Tensor, "N V d 3 K"]
    weight: Float[Tensor, "N V K"]
    energy: Float[Tensor, " N"]
    valid: Bool[Tensor, " N"]


def _robust(
    value: Tensor, jacobian: Tensor, confidence: Tensor, outlier: float | None, valid: Tensor | None = None
) -> Residuals:
    rho, slope = geman_mcclure((value * value).sum(2), outlier)
    energy = 0.5 * (confidence * rho).sum((1, 2))
    ok = torch.ones_like(energy, dtype=torch.bool) if valid is None else valid
    return Residuals(value, jacobian, confidence * slope, energy, ok)


@dataclass(frozen=True)
class Joints2D(Batched):
    """Joints in pictures. The residual is the pixel distance over `noise` pixels.

    target: (N, V, 2, K) whitened pixels less the principal point. confidence: (N, V, K). intrinsics: (N, V, 2, 2),
    focal lengths over noise. R, t: world to camera. noise: (N, V) pixels. outlier: Geman-McClure's scale, in units
    of noise. torso: (K,) the joints that the camera stage trusts.
    """

    basis: PointBasis
    target: Float[Tensor, "N V 2 K"]
    confidence: Float[Tensor, "N V K"]
    intrinsics: Float[Tensor, "N V 2 2"]
    R: Float[Tensor, "N V 3 3"]
    t: Float[Tensor, "N V 3"]
    noise: Float[Tensor, "N V"]
    outlier: float | None
    torso: tuple[int, ...]
    orthographic: bool = False
    name: str = "keypoints"

    def projected(self, points: Float[Tensor, "N V 3 K"]) -> tuple[Tensor, Tensor, Tensor]:
        """Whitened pixels (N, V, 2, K), points in the camera frame, and which lie behind it (N, V, K)."""
        x = self.R @ points + self.t[..., None]
        if self.orthographic:
            return self.intrinsics @ x[..., :2, :], x, torch.zeros_like(x[..., 2, :], dtype=torch.bool)
        z = x[..., 2:, :]
        return self.intrinsics @ (x[..., :2, :] / z.clamp_min(NEAR)), x, z[..., 0, :] < NEAR

    def residuals(self, points: Float[Tensor, "N V 3 K"]) -> Residuals:
        uv, x, behind = self.projected(points)
        depth = torch.ones_like(x[..., 2:, :]) if self.orthographic else x[..., 2:, :].clamp_min(NEAR)
        flat = self.intrinsics[..., None] / depth[..., None, :]
        slope = torch.zeros_like(uv) if self.orthographic else -uv / depth
        in_camera = torch.cat([flat, slope[..., None, :]], 3)
        jacobian = self.R.transpose(-1, -2)[:, :, None] @ in_camera
        valid = ~(behind & (self.confidence > 0)).flatten(1).any(1)
        return _robust(uv - self.target, jacobian, self.confidence, self.outlier, valid)

    def pixel_error(self, residuals: Float[Tensor, "N V 2 K"]) -> Float[Tensor, "N V"]:
        """Confidence-weighted mean distance in pixels of whitened residuals; NaN for a view without joints."""
        distance = residuals.norm(dim=2) * self.noise[..., None]
        return (self.confidence * distance).sum(-1) / self.confidence.sum(-1)

    def for_camera(self) -> Self:
        """Torso joints alone where at least three of them were seen, as SMPLify places its camera."""
        mask = torch.zeros_like(self.confidence)
        mask[..., list(self.torso)] = 1
        torso = self.confidence * mask
        enough = (torso > 0).sum(-1, keepdim=True) >= 3
        return dataclasses.replace(self, confidence=torch.where(enough, torso, self.confidence))


@dataclass(frozen=True)
class Points3D(Batched):
    """Points whose place in the world is known: joints, or vertices of a mesh with the body's connectivity.

    target: (N, V, 3, K) metres, confidence: (N, V, K), noise: metres, outlier: in units of noise.
    """

    basis: PointBasis
    target: Float[Tensor, "N V 3 K"]
    confidence: Float[Tensor, "N V K"]
    noise: float
    outlier: float | None
    name: str

    def residuals(self, points: Float[Tensor, "N V 3 K"]) -> Residuals:
        value = (points - self.target) / self.noise
        jacobian = (torch.eye(3).to(points) / self.noise)[..., None].expand(*points.shape[:2], 3, 3, points.shape[-1])
        return _robust(value, jacobian, self.confidence, self.outlier)

    def for_camera(self) -> Self:
        return self


@dataclass(frozen=True)
class ScanPoints(Batched):
    """Points of a surface without correspondence, drawn to the body's tangent planes (Chen & Medioni 1992).

    points, normals: (N, M, 3) metres; normals of length 0 where the scan has none. basis, rest_normals (K, 3) and
    part_weights (K, 24): the body's vertices that may be matched. reach: metres. match: (N, M) of those vertices;
    belief: (N, M) 1 where the match counts. plane: (N, 3, M) unit normals of the planes.
    """

    basis: PointBasis
    rest_normals: Float[Tensor, "K 3"]
    part_weights: Float[Tensor, "K 24"]
    points: Float[Tensor, "N M 3"]
    normals: Float[Tensor, "N M 3"]
    noise: float
    outlier: float | None
    reach: float
    match: Int[Tensor, "N M"] | None = None
    belief: Float[Tensor, "N M"] | None = None
    plane: Float[Tensor, "N 3 M"] | None = None
    name: str = "scan"

    # Fields that every subject shares must not be sliced with the batch.
    def _map(self, function) -> Self:  # type: ignore[no-untyped-def]
        changed = {
            f.name: function(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name not in ("rest_normals", "part_weights") and isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **changed)

    def of_match(self, values: Tensor, dim: int) -> Tensor:
        """Values of the candidate vertices, along `dim`, as values of their matches."""
        assert self.match is not None, "a scan is matched before it is measured"
        shape = [1] * values.dim()
        shape[0], shape[dim] = self.match.shape
        wide = list(values.shape)
        wide[dim] = self.match.shape[1]
        return values.gather(dim, self.match.reshape(shape).expand(wide))

    def matched(self, pose: Pose, at: Variables) -> Self:
        """Correspondences anew: the nearest vertex that faces the same way (within 60 degrees, where the scan has
        normals), believed up to `reach` metres."""
        turn = at.root[:, :1] @ (self.part_weights @ pose.rotations.flatten(2)).unflatten(-1, (3, 3))
        normals = normalize((turn @ self.rest_normals[..., None])[..., 0], dim=-1)
        levers = self.basis.levers(pose, at.betas)[:, 0]
        corners = at.points(levers, self.basis.mass, self.basis.root_joint(at.betas))[:, 0].transpose(1, 2)
        known = self.normals.square().sum(-1) > 0
        nearest, facing = [], []
        for chunk, direction, has in zip(
            self.points.split(512, 1), self.normals.split(512, 1), known.split(512, 1), strict=True
        ):
            away = (direction @ normals.transpose(-1, -2) < 0.5) & has[..., None]
            least, index = (torch.cdist(chunk, corners) + away * 1e3).min(-1)
            nearest.append(index)
            facing.append(least < self.reach)
        match, believed = torch.cat(nearest, 1), torch.cat(facing, 1)
        own = normals.gather(1, match[..., None].expand(-1, -1, 3))
        plane = torch.where(known[..., None], self.normals, own)
        return dataclasses.replace(self, match=match, belief=believed.to(plane), plane=plane.transpose(1, 2))

    def residuals(self, points: Float[Tensor, "N 1 3 M"]) -> Residuals:
        """points: the matched vertices."""
        assert self.plane is not None
        assert self.belief is not None
        gap = points[:, 0] - self.points.transpose(1, 2)
        value = (self.plane * gap).sum(1)[:, None, None] / self.noise
        jacobian = (self.plane / self.noise)[:, None, None]
        found = _robust(value, jacobian, self.belief[:, None], self.outlier)
        # A point out of reach costs what one at the edge of reach does, so that losing points never pays.
        lost, _ = geman_mcclure(self.points.new_tensor((self.reach / self.noise) ** 2), self.outlier)
        return dataclasses.replace(found, energy=found.energy + 0.5 * lost * (1 - self.belief).sum(1))

    def for_camera(self) -> Self:
        return self.coarse()

    def coarse(self) -> Self:
        """An eighth of the scan's points against a quarter of the vertices: enough to find the way."""
        some = slice(None, None, 4)
        return dataclasses.replace(
            self,
            basis=self.basis[some],
            rest_normals=self.rest_normals[some],
            part_weights=self.part_weights[some],
            points=self.points[:, ::8],
            normals=self.normals[:, ::8],
            noise=self.noise * 8**0.5,
            match=None,
            belief=None,
            plane=None,
        )


Evidence = Joints2D | Points3D | ScanPoints
