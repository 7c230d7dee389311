"""What passes between the parts: cameras, keypoints, observations, bodies, meshes, predictions, results.

Conventions (DESIGN.md): the camera frame has x right, y down, z forward; body and world frames have y up;
metres; pixel centres at +0.5, so a picture of width w spans 0..w; images are (B, 3, H, W), RGB in [0, 1].
All structures are batched; fields named (B, ...) share B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon_core.errors import ReconError
from recon_core.skeletons import skeleton


class Batched:
    """Mix-in for dataclasses of tensors with a common first dimension: device moves and batch slices."""

    def _map(self, function: Any) -> Self:
        changed: dict[str, Any] = {}
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Tensor | Batched):
                changed[f.name] = function(value)
            elif isinstance(value, dict):
                changed[f.name] = {k: function(v) if isinstance(v, Tensor | Batched) else v for k, v in value.items()}
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]

    def to(self, target: torch.device | torch.dtype | str) -> Self:
        """The same on another device, or with floating point numbers of another dtype."""
        if isinstance(target, torch.dtype):
            return self._map(
                lambda v: v.to(target) if isinstance(v, Batched) or v.is_floating_point() else v,
            )
        return self._map(lambda v: v.to(target))

    def detach(self) -> Self:
        return self._map(lambda v: v.detach())

    def __getitem__(self, index: Any) -> Self:
        """Rows `index` (a slice, list or index tensor) of every batched field. An int keeps a batch of one."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        return self._map(lambda v: v[index])


@dataclass(frozen=True)
class Camera(Batched):
    """A pinhole or orthographic camera.

    K: (B, 3, 3) intrinsics in pixels. R: (B, 3, 3) and t: (B, 3), metres, from world to camera frame:
    x_cam = R x_world + t. size: (width, height) of the picture in pixels. orthographic: when set, a camera
    point (x, y, z) falls on K[:2, :2] (x, y) + K[:2, 2] whatever its depth.
    """

    K: Float[Tensor, "B 3 3"]
    R: Float[Tensor, "B 3 3"]
    t: Float[Tensor, "B 3"]
    size: tuple[int, int]
    orthographic: bool = False

    def __len__(self) -> int:
        return self.K.shape[0]

    @classmethod
    def perspective(
        cls,
        focal: Float[Tensor, " B"] | float,
        size: tuple[int, int],
        center: Float[Tensor, "B 2"] | None = None,
        batch: int = 1,
    ) -> Camera:
        """A camera at the origin looking along +z. focal in pixels; center defaults to the picture's middle."""
        f = torch.as_tensor(focal, dtype=torch.get_default_dtype() if isinstance(focal, float | int) else None)
        f = f.reshape(-1).expand(batch) if f.numel() == 1 else f
        K = f.new_zeros(len(f), 3, 3)
        K[:, 0, 0] = K[:, 1, 1] = f
        K[:, :2, 2] = f.new_tensor([size[0] / 2, size[1] / 2]) if center is None else center
        K[:, 2, 2] = 1
        return cls(K, torch.eye(3).to(K).expand(len(f), 3, 3), K.new_zeros(len(f), 3), size)

    @classmethod
    def weak_perspective(
        cls,
        scale: Float[Tensor, " B"],
        shift: Float[Tensor, "B 2"],
        size: tuple[int, int],
        side: float | None = None,
    ) -> Camera:
        """Orthographic camera of HMR's (s, tx, ty): pixel = (s * (xy + t) + 1) * side / 2 (thesis 2.3.3).

        side: the length in pixels that (s, tx, ty) take as 2 units; the picture's width by default.
        """
        half = (side or size[0]) / 2
        K = scale.new_zeros(len(scale), 3, 3)
        K[:, 0, 0] = K[:, 1, 1] = scale * half
        K[:, :2, 2] = scale[:, None] * shift * half + half
        K[:, 2, 2] = 1
        eye = torch.eye(3).to(K).expand(len(scale), 3, 3)
        return cls(K, eye, K.new_zeros(len(scale), 3), size, orthographic=True)

    def to_camera(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 3"]:
        """World points in the camera frame."""
        return points @ self.R.transpose(-1, -2) + self.t[:, None]

    def project(self, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 2"]:
        """World points to pixels. Points at or behind a perspective camera are projected as if 1e-6 m before it."""
        p = self.to_camera(points)
        if self.orthographic:
            xy = p[..., :2]
        else:
            z = p[..., 2:]
            xy = p[..., :2] / torch.where(z.abs() < 1e-6, torch.full_like(z, 1e-6), z)
        return xy @ self.K[:, :2, :2].transpose(-1, -2) + self.K[:, None, :2, 2]

    def cropped(self, affine: Float[Tensor, "B 2 3"], size: tuple[int, int]) -> Camera:
        """The camera of a picture warped by `affine` (pixels to pixels), `size` (width, height)."""
        A = torch.eye(3).to(self.K).repeat(len(self), 1, 1)
        A[:, :2] = affine.to(self.K)
        return dataclasses.replace(self, K=A @ self.K, size=size)


@dataclass(frozen=True)
class Keypoints(Batched):
    """Joints in the full picture or in space, by a named skeleton.

    points: (B, J, 2) pixels or (B, J, 3) metres. confidence: (B, J) in [0, 1]; 0 means missing, and then the
    point is ignored whatever it holds. skeleton: name in `recon_core.skeletons`.
    """

    points: Float[Tensor, "B J D"]
    confidence: Float[Tensor, "B J"]
    skeleton: str

    def __post_init__(self) -> None:
        joints = len(skeleton(self.skeleton))
        if self.points.shape[-2] != joints or self.confidence.shape != self.points.shape[:-1]:
            raise ReconError(
                f"keypoints of skeleton {self.skeleton} need {joints} points and confidences, "
                f"got {tuple(self.points.shape)} and {tuple(self.confidence.shape)}"
            )

    def __len__(self) -> int:
        return self.points.shape[0]

    def converted(self, target: str) -> Keypoints:
        """The same in another skeleton. Joints this one cannot give, or only from missing ones, get confidence 0."""
        from recon_core.skeletons import mapping

        M = torch.tensor(mapping(self.skeleton, target)).to(self.points)
        points = torch.einsum("ts,bsd->btd", M, torch.nan_to_num(self.points))
        # A derived joint is as certain as the least certain joint it is made of.
        used = torch.where(M[None] > 0, self.confidence[:, None], torch.full_like(M, torch.inf)[None])
        confidence = torch.where(M.sum(1) > 0, used.amin(-1), torch.zeros_like(used[..., 0]))
        return Keypoints(points, confidence, target)


@dataclass(frozen=True)
class Mesh(Batched):
    """B meshes of one connectivity, with what may be painted on them.

    vertices: (B, V, 3) metres. faces: (F, 3) int64, counter-clockwise seen from outside in a y-up frame.
    uv: (T, 2) texture coordinates in [0, 1], v up. uv_faces: (F, 3) rows of uv. texture: (B, 3, H, W), row 0
    at v = 1. colors: (B, V, C) vertex colours or other attributes. Meshes of differing connectivity go in a list.
    """

    vertices: Float[Tensor, "B V 3"]
    faces: Int[Tensor, "F 3"]
    uv: Float[Tensor, "T 2"] | None = None
    uv_faces: Int[Tensor, "F 3"] | None = None
    texture: Float[Tensor, "B 3 H W"] | None = None
    colors: Float[Tensor, "B V C"] | None = None

    def __len__(self) -> int:
        return self.vertices.shape[0]

    def __getitem__(self, index: Any) -> Mesh:
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        pick = lambda v: None if v is None else v[index]  # noqa: E731
        return dataclasses.replace(
            self, vertices=self.vertices[index], texture=pick(self.texture), colors=pick(self.colors)
        )


@dataclass(frozen=True)
class BodyParameters(Batched):
    """Pose, shape and place of B bodies in SMPL format.

    pose: (B, 24, 3, 3) rotations relative to the parent; row 0 turns the body frame (y up) into the frame the
    body stands in: the camera frame (y down) for everything a user receives. betas: (B, S) shape
    coefficients. translation: (B, 3), metres, added after posing about the rest pelvis, as SMPL does.
    """

    pose: Float[Tensor, "B 24 3 3"]
    betas: Float[Tensor, "B S"]
    translation: Float[Tensor, "B 3"]

    def __len__(self) -> int:
        return self.pose.shape[0]

    @classmethod
    def joined(cls, parts: Sequence[BodyParameters]) -> BodyParameters:
        """The bodies of several batches in one."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(cls)))


@dataclass(frozen=True)
class BodyOutput(Batched):
    """A posed body: vertices (B, V, 3), smpl24 joints (B, 24, 3), metres, in the frame of the parameters;
    transforms (B, 24, 3, 4): the rigid motion of each part from the shaped rest body."""

    vertices: Float[Tensor, "B V 3"]
    joints: Float[Tensor, "B 24 3"]
    transforms: Float[Tensor, "B 24 3 4"]


@dataclass(frozen=True)
class Landmarks(Batched):
    """Points of which it is known which vertex of a method's own mesh they show: markers, landmarks of a scan.

    vertices: (L,) int64 rows of that mesh, the same for all subjects. points: (B, L, 3) metres. confidence: (B, L) in
    [0, 1]; 0 means missing, and then the point is ignored whatever it holds. None is 1 for all.
    """

    vertices: Int[Tensor, " L"]
    points: Float[Tensor, "B L 3"]
    confidence: Float[Tensor, "B L"] | None = None

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Landmarks:
        # The rows of the mesh are shared by all subjects and are not sliced with them.
        return dataclasses.replace(super().__getitem__(index), vertices=self.vertices)


@dataclass(frozen=True)
class Observation(Batched):
    """What was seen of B subjects. A method names in `inputs` which of these it reads; the rest may be None.

    camera: camera of the full picture (or of each view), B. box: (B, 4) x, y, w, h, full-image pixels.
    image: (B, 3, h, w) crop of the subject, [0, 1]. to_crop: (B, 2, 3) affine map from full-image pixels to
    pixels of `image` and `mask`. mask: (B, 1, h, w) in [0, 1]. keypoints, keypoints3d: full-image pixels,
    metres. mesh: a mesh of the body's connectivity to explain. scan, scan_normals: (B, N, 3) surface points,
    metres. landmarks: places of single vertices. subject: (B,) index of the subject shown: rows with the same number
    are views of one subject.
    guide: a second observation of B rows that tells what the output should take from elsewhere (the pose to
    repose to, the picture whose clothing to wear).
    """

    camera: Camera
    box: Float[Tensor, "B 4"] | None = None
    image: Float[Tensor, "B 3 h w"] | None = None
    to_crop: Float[Tensor, "B 2 3"] | None = None
    mask: Float[Tensor, "B 1 h w"] | None = None
    keypoints: Keypoints | None = None
    keypoints3d: Keypoints | None = None
    mesh: Mesh | None = None
    scan: Float[Tensor, "B N 3"] | None = None
    scan_normals: Float[Tensor, "B N 3"] | None = None
    landmarks: Landmarks | None = None
    subject: Int[Tensor, " B"] | None = None
    guide: Observation | None = None

    def __len__(self) -> int:
        return len(self.camera)


@dataclass(frozen=True)
class Features(Batched):
    """What an Encoder gives: global_ (B, C), spatial (B, C, h, w), by the names the encoder documents."""

    global_: Float[Tensor, "B C"] | None = None
    spatial: Float[Tensor, "B D h w"] | None = None


@dataclass(frozen=True)
class Samples(Batched):
    """N draws of the body a method considers possible, of B subjects.

    pose (B, N, 24, 3, 3), betas (B, N, S), translation (B, N, 3), log_prob (B, N) natural log density.
    """

    pose: Float[Tensor, "B N 24 3 3"]
    betas: Float[Tensor, "B N S"]
    translation: Float[Tensor, "B N 3"]
    log_prob: Float[Tensor, "B N"]

    @property
    def count(self) -> int:
        return self.pose.shape[1]

    def flat(self) -> BodyParameters:
        """All draws as one batch of B*N bodies, subject by subject."""
        return BodyParameters(self.pose.flatten(0, 1), self.betas.flatten(0, 1), self.translation.flatten(0, 1))


@dataclass(frozen=True)
class Prediction(Batched):
    """What a Method returns for B subjects; it fills what it declares in `outputs`.

    body: in the camera frame of the observation's full picture. samples: further draws. mesh: a textured mesh
    in the camera frame. image: (B, 3, H, W). keypoints3d: joints in the camera frame, metres, of a method that gives
    a skeleton in place of a body. camera: where the method estimates one of its own. context: what
    the method's conditional prior needs again (Prior.log_prob(..., context)). extra: named tensors (light, ...).
    """

    body: BodyParameters | None = None
    samples: Samples | None = None
    mesh: Mesh | None = None
    image: Float[Tensor, "B 3 H W"] | None = None
    camera: Camera | None = None
    context: Float[Tensor, "B C"] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    keypoints3d: Keypoints | None = None


@dataclass(frozen=True)
class LossValue:
    """per_sample: (B,) weighted total. terms: the named parts of it, (B,) each, unweighted."""

    per_sample: Float[Tensor, " B"]
    terms: Mapping[str, Float[Tensor, " B"]] = field(default_factory=dict)


@dataclass(frozen=True)
class FitReport(Batched):
    """How a fit went, one row a subject.

    energy, initial_energy: (B,). terms: energy by term, (B,) each. iterations: (B,) int64 used. converged: (B,)
    bool. reprojection_px: (B,) confidence-weighted mean distance of joints in pixels, NaN without 2D evidence.
    reason: one of REASONS a row, why it stopped.
    """

    initial_energy: Float[Tensor, " B"]
    energy: Float[Tensor, " B"]
    iterations: Int[Tensor, " B"]
    converged: Bool[Tensor, " B"]
    reprojection_px: Float[Tensor, " B"]
    reason: Int[Tensor, " B"]
    terms: dict[str, Tensor] = field(default_factory=dict)

    REASONS = ("converged", "iteration limit", "diverged: initial pose returned")

    def row(self, i: int) -> dict[str, Any]:
        """Row i as plain numbers for json; NaN becomes None."""
        number = lambda v: None if not torch.isfinite(v) else float(v)  # noqa: E731
        return {
            "initial_energy": number(self.initial_energy[i]),
            "energy": number(self.energy[i]),
            "terms": {name: number(value[i]) for name, value in self.terms.items()},
            "iterations": int(self.iterations[i]),
            "converged": bool(self.converged[i]),
            "reprojection_px": number(self.reprojection_px[i]),
            "reason": self.REASONS[int(self.reason[i])],
        }


@dataclass(frozen=True)
class FitResult:
    """parameters explaining the observation, and the report of how they were found."""

    body: BodyParameters
    report: FitReport
    camera: Camera | None = None


@dataclass(frozen=True)
class Detection:
    """One subject found in one picture.

    box: x, y, w, h in full-image pixels. score in [0, 1]. keypoints: batch of one, or None. mask: (H, W) float
    in [0, 1] of the full picture, or None.
    """

    box: tuple[float, float, float, float]
    score: float
    keypoints: Keypoints | None = None
    mask: Float[Tensor, "H W"] | None = None
