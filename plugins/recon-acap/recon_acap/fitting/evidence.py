"""What a body is fitted to: points that are known, surfaces without correspondence, joints in pictures.

Each kind gives whitened residuals, as the fitters of recon-std do: half their robust squares add up with the codes'
negative log densities. Rows are frames, B of them; K points in each.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from recon_acap.fitting.nearest import nearest_on_mesh
from recon_core.geometry.topology import face_normals
from recon_core.structures import Batched, Camera
from recon_std.fitters.evidence import NEAR, geman_mcclure


@dataclass(frozen=True)
class Selection(Batched):
    """K points as sums over C vertices each: index and weight (B, K, C); B = 1 where all rows share them."""

    index: Int[Tensor, "B K C"]
    weight: Float[Tensor, "B K C"]

    @classmethod
    def of_vertices(cls, index: Int[Tensor, " K"], dtype: torch.dtype) -> Selection:
        return cls(index[None, :, None], torch.ones(1, len(index), 1, dtype=dtype, device=index.device))

    @classmethod
    def of_matrix(cls, matrix: Float[Tensor, "K V"]) -> Selection:
        """From rows of weights, most of which are 0."""
        most = max(1, int((matrix != 0).sum(1).max()))
        index = matrix.abs().topk(most, 1).indices
        return cls(index[None], matrix.gather(1, index)[None])

    def __call__(self, values: Float[Tensor, "B V D"]) -> Float[Tensor, "B K D"]:
        B, _, D = values.shape
        K, C = self.index.shape[1:]
        index = self.index.expand(B, K, C).reshape(B, K * C, 1).expand(-1, -1, D)
        return (values.gather(1, index).reshape(B, K, C, D) * self.weight.to(values)[..., None]).sum(2)

    def __getitem__(self, index: object) -> Selection:
        # Shared by all rows, so by any of them.
        return self if len(self.index) == 1 else super().__getitem__(index)


@dataclass(frozen=True)
class Residuals:
    """value: (B, K, d) whitened. jacobian: (B, K, d, 3), by the point in the evidence's frame. weight: (B, K),
    confidence times the robust slope. energy: (B,) half the robust squares; +inf where a point that counts is behind
    its camera."""

    value: Float[Tensor, "B K d"]
    jacobian: Float[Tensor, "B K d 3"]
    weight: Float[Tensor, "B K"]
    energy: Float[Tensor, " B"]


def _robust(value: Tensor, jacobian: Tensor, confidence: Tensor, outlier: float | None) -> Residuals:
    rho, slope = geman_mcclure((value * value).sum(-1), outlier)
    return Residuals(value, jacobian, confidence * slope, 0.5 * (confidence * rho).sum(-1))


@dataclass(frozen=True)
class KnownPoints(Batched):
    """Points whose place is known: vertices of a corresponded mesh, markers, landmarks, joints in space (eq. 15).

    target: (B, K, 3) metres. confidence: (B, K); 0 for a point that was not seen, whatever the target holds.
    noise: metres, 1e-3 is the paper's weight of 1e6. outlier: Geman-McClure's scale in units of noise.
    """

    selection: Selection
    target: Float[Tensor, "B K 3"]
    confidence: Float[Tensor, "B K"]
    noise: float
    outlier: float | None
    name: str

    def residuals(self, points: Float[Tensor, "B K 3"]) -> Residuals:
        value = (points - self.target) / self.noise
        jacobian = (torch.eye(3).to(points) / self.noise).expand(*points.shape[:2], 3, 3)
        return _robust(value, jacobian, self.confidence, self.outlier)


@dataclass(frozen=True)
class PictureJoints(Batched):
    """Joints in pictures (eq. 16): rho(projection - joint).

    target: (B, K, 2) pixels. confidence: (B, K). noise: pixels, for a confidence of 1.
    """

    selection: Selection
    target: Float[Tensor, "B K 2"]
    confidence: Float[Tensor, "B K"]
    camera: Camera
    noise: float
    outlier: float | None
    name: str = "keypoints"

    def residuals(self, points: Float[Tensor, "B K 3"]) -> Residuals:
        camera = self.camera
        x = camera.to_camera(points)
        K = camera.K[:, None, :2, :2].to(points)
        center = camera.K[:, None, :2, 2].to(points)
        if camera.orthographic:
            uv = (K @ x[..., :2, None])[..., 0] + center
            in_camera = torch.cat([K, torch.zeros_like(K[..., :1])], -1).expand(*x.shape[:2], 2, 3)
            behind = torch.zeros_like(self.confidence, dtype=torch.bool)
        else:
            z = x[..., 2:].clamp_min(NEAR)
            flat = x[..., :2] / z
            uv = (K @ flat[..., None])[..., 0] + center
            by_flat = torch.cat([torch.eye(2).to(x).expand(*x.shape[:2], 2, 2), -flat[..., None]], -1) / z[..., None]
            in_camera = K @ by_flat
            behind = x[..., 2] < NEAR
        value = (uv - self.target) / self.noise
        found = _robust(value, in_camera @ camera.R[:, None].to(points) / self.noise, self.confidence, self.outlier)
        lost = (behind & (self.confidence > 0)).any(1)
        return dataclasses.replace(found, energy=found.energy.masked_fill(lost, torch.inf))

    def pixel_error(self, points: Float[Tensor, "B K 3"]) -> Float[Tensor, " B"]:
        """Confidence-weighted mean distance in pixels."""
        distance = self.residuals(points).value.norm(dim=-1) * self.noise
        return (self.confidence * distance).sum(1) / self.confidence.sum(1)


@dataclass(frozen=True)
class ScanSurface(Batched):
    """Points of a surface without correspondence, drawn to the body by point-to-plane distance.

    Every scan point looks for the body, not the body for the scan: where the scan has a hole nothing pulls. A point
    farther than `reach` metres from the body has no match; it costs as much as one at that distance, so that losing
    points never pays. points: (B, M, 3); normals: (B, M, 3), length 0 where unknown; confidence: (B, M), 0 for the
    filling of shorter scans. faces: (F, 3) of the body. selection, belief (B, M) and plane (B, M, 3): the matches.
    """

    points: Float[Tensor, "B M 3"]
    normals: Float[Tensor, "B M 3"]
    confidence: Float[Tensor, "B M"]
    faces: Int[Tensor, "F 3"]
    noise: float
    outlier: float | None
    reach: float
    selection: Selection | None = None
    belief: Float[Tensor, "B M"] | None = None
    plane: Float[Tensor, "B M 3"] | None = None
    name: str = "scan"

    def __getitem__(self, index: object) -> ScanSurface:
        # The body's faces are shared by all rows and are not sliced with them.
        return dataclasses.replace(super().__getitem__(index), faces=self.faces)

    def matched(self, vertices: Float[Tensor, "B V 3"]) -> ScanSurface:
        """The nearest points of the bodies as they stand now."""
        faces = self.faces.cpu().numpy()
        bodies, points, normals = (x.detach().cpu().numpy() for x in (vertices, self.points, self.normals))
        found = [nearest_on_mesh(p, v, faces, n) for p, v, n in zip(points, bodies, normals, strict=True)]
        # Reshaped, as of no rows nothing can be stacked.
        face = torch.from_numpy(np.array([n.face for n in found], dtype=np.int64).reshape(points.shape[:2]))
        face = face.to(self.faces.device)
        weight = torch.from_numpy(np.array([n.barycentric for n in found]).reshape(points.shape)).to(self.points)
        distance = torch.from_numpy(np.array([n.distance for n in found]).reshape(points.shape[:2])).to(self.points)
        own = normalize(face_normals(vertices, self.faces), dim=-1)
        own = own.gather(1, face[..., None].expand(-1, -1, 3)).to(self.points)
        known = self.normals.square().sum(-1) > 0.25
        agree = (own * self.normals).sum(-1) > 0.25
        belief = self.confidence * ((distance < self.reach) & (agree | ~known))
        plane = torch.where(known[..., None], self.normals, own)
        return dataclasses.replace(
            self, selection=Selection(self.faces[face], weight), belief=belief.to(self.points), plane=plane
        )

    def residuals(self, points: Float[Tensor, "B M 3"]) -> Residuals:
        """points: the matches, on the body."""
        assert self.plane is not None
        assert self.belief is not None
        value = (self.plane * (points - self.points)).sum(-1, keepdim=True) / self.noise
        found = _robust(value, self.plane[:, :, None] / self.noise, self.belief, self.outlier)
        lost, _ = geman_mcclure(points.new_tensor((self.reach / self.noise) ** 2), self.outlier)
        unmatched = self.confidence - self.belief
        return dataclasses.replace(found, energy=found.energy + 0.5 * lost * unmatched.sum(1))


Evidence = KnownPoints | PictureJoints | ScanSurface
