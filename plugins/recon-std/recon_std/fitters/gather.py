"""From an Observation to evidence: checks what was seen, groups views, whitens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from recon_core.errors import EvidenceError
from recon_core.interfaces import BodyModel, Settings
from recon_core.rendering.shading import vertex_normals
from recon_core.skeletons import skeleton
from recon_core.structures import Camera, Keypoints, Observation
from recon_std.fitters.evidence import Evidence, Joints2D, Points3D, ScanPoints
from recon_std.fitters.kinematics import PointBasis
from recon_std.fitters.variables import Views

LEAST_JOINTS = 4
CROP_SIDE, CROP_MARGIN = 224.0, 1.2
"""Noise of 2D joints is given in pixels of a square crop of 224 pixels, 1.2 times as wide as the person's box, so
that the balance with the priors does not depend on how large the person is in the picture (SPIN's crop)."""

_TORSO = ("left_hip", "right_hip", "left_shoulder", "right_shoulder")


class Noise(Settings):
    """How far evidence is expected to lie from the body, and from where on it is taken for an outlier.

    The outlier scales are Geman-McClure's, in units of the noise; None: plain squares.
    """

    keypoints: float = Field(default=3.4, gt=0, description="2D joints, pixels of a 224-pixel crop")
    keypoints_outlier: float | None = Field(default=8.0, gt=0)
    keypoints3d: float = Field(default=0.02, gt=0, description="3D joints, metres")
    keypoints3d_outlier: float | None = Field(default=8.0, gt=0)
    mesh: float = Field(default=0.005, gt=0, description="corresponded vertices, metres")
    mesh_outlier: float | None = Field(default=None, gt=0)
    scan: float = Field(default=0.02, gt=0, description="scan points to the body's surface, metres")
    scan_outlier: float | None = Field(default=3.0, gt=0)
    scan_reach: float = Field(default=0.25, gt=0, description="farthest vertex a scan point is drawn to, metres")


class Sampling(Settings):
    """How many points of a surface are used, spread evenly over the vertex order; 0: all."""

    mesh: int = Field(default=1500, ge=0)
    scan: int = Field(default=2000, ge=0)
    body: int = Field(default=4000, ge=0, description="body vertices that scan points may be matched to")


def gather(
    observation: Observation, body: BodyModel, views: Views, betas: int, noise: Noise, sampling: Sampling
) -> list[Evidence]:
    """All evidence in the observation, a row a subject.

    Raises EvidenceError when there is none, when some of it is NaN, when a subject has too little of it, or when the
    body lacks what is needed to explain it.
    """
    found: list[Evidence] = []
    for kind in ("keypoints", "keypoints3d"):
        joints = getattr(observation, kind)
        if joints is not None:
            _check_finite(joints, kind)
    surface = observation.mesh is not None or observation.scan is not None
    _check_joints(observation, views, surface)
    if (joints := observation.keypoints) is not None:
        found.append(_joints2d(joints, observation, body, views, betas, noise))
    if (joints := observation.keypoints3d) is not None:
        basis = PointBasis.of_skeleton(body, joints.skeleton, betas)
        confidence = joints.confidence[views.rows]
        target = _cleared(joints)[views.rows].transpose(-1, -2)
        found.append(Points3D(basis, target, confidence, noise.keypoints3d, noise.keypoints3d_outlier, "keypoints3d"))
    if observation.mesh is not None:
        found.append(_vertices(observation.mesh.vertices, body, views, betas, noise, sampling))
    if observation.scan is not None:
        found.append(_scan(observation, body, views, betas, noise, sampling))
    if not found:
        raise EvidenceError(
            "nothing to fit: the observation has neither keypoints, keypoints3d, mesh nor scan; "
            "run a detector or give one of them"
        )
    return found


def _check_finite(joints: Keypoints, kind: str) -> None:
    confidence = joints.confidence
    bad = ~torch.isfinite(confidence) | (~torch.isfinite(joints.points).all(-1) & (confidence > 0))
    if bad.any():
        row, joint = (int(i) for i in bad.nonzero()[0])
        name = skeleton(joints.skeleton).joints[joint]
        raise EvidenceError(f"{kind} of subject {row}: {name} is not a number; give missing joints confidence 0")


def _check_joints(observation: Observation, views: Views, surface: bool) -> None:
    """At least four joints in some view of every subject, unless a surface is there to hold the body."""
    counts = [
        (joints.confidence[views.rows] > 0).sum(-1).amax(-1)
        for joints in (observation.keypoints, observation.keypoints3d)
        if joints is not None
    ]
    if surface or not counts:
        return
    most = torch.stack(counts).amax(0)
    if (most < LEAST_JOINTS).any():
        subject = int((most < LEAST_JOINTS).nonzero()[0, 0])
        count = int(most[subject])
        what = "no joint has a confidence above 0" if count == 0 else f"only {count} joint{'s' * (count > 1)} seen"
        raise EvidenceError(f"subject {subject}: {what}, a body needs at least {LEAST_JOINTS}; leave this subject out")


def _cleared(joints: Keypoints) -> Tensor:
    """The points, 0 where they are missing: whatever a missing joint holds must not reach a product."""
    return torch.where(joints.confidence[..., None] > 0, joints.points, torch.zeros_like(joints.points))


def crop_side(joints: Keypoints, box: Float[Tensor, "B 4"] | None) -> Float[Tensor, " B"]:
    """Pixels of the picture that the crop of CROP_SIDE pixels spans: 1.2 times the longer side of the box, or,
    without a box, of the joints' extent."""
    if box is not None:
        return CROP_MARGIN * box[:, 2:].amax(-1)
    seen = (joints.confidence > 0)[..., None]
    high = torch.where(seen, joints.points, torch.full_like(joints.points, -torch.inf)).amax(1)
    low = torch.where(seen, joints.points, torch.full_like(joints.points, torch.inf)).amin(1)
    return CROP_MARGIN * torch.nan_to_num(high - low, neginf=0.0).amax(-1).clamp_min(1.0)


def _joints2d(
    joints: Keypoints, observation: Observation, body: BodyModel, views: Views, betas: int, noise: Noise
) -> Joints2D:
    camera: Camera = observation.camera
    pixels = crop_side(joints, observation.box) / CROP_SIDE * noise.keypoints
    offset = (_cleared(joints) - camera.K[:, None, :2, 2]) / pixels[:, None, None]
    names = skeleton(joints.skeleton).joints
    # Joints that nobody has are left out: they would cost as much as the others.
    used = (joints.confidence > 0).any(0).nonzero()[:, 0]
    basis = PointBasis.of_skeleton(body, joints.skeleton, betas, used)
    return Joints2D(
        basis=basis,
        target=offset[views.rows][:, :, used].transpose(-1, -2),
        confidence=joints.confidence[views.rows][:, :, used],
        intrinsics=(camera.K[:, :2, :2] / pixels[:, None, None])[views.rows],
        R=camera.R[views.rows],
        t=camera.t[views.rows],
        noise=pixels[views.rows],
        outlier=noise.keypoints_outlier,
        torso=tuple(i for i, j in enumerate(used.tolist()) if names[j] in _TORSO),
        orthographic=camera.orthographic,
    )


def _even(total: int, wanted: int) -> Tensor:
    count = total if wanted == 0 else min(total, wanted)
    return torch.linspace(0, total - 1, count).round().long()


def _vertices(
    vertices: Tensor, body: BodyModel, views: Views, betas: int, noise: Noise, sampling: Sampling
) -> Points3D:
    count = int(body.weights.shape[0]) if hasattr(body, "weights") else 0  # type: ignore[union-attr, operator]
    if vertices.shape[1] != count:
        raise EvidenceError(
            f"mesh has {vertices.shape[1]} vertices, body {body.name} has {count}: only a mesh with the body's own "
            "vertices can be fitted vertex by vertex; give it as a scan"
        )
    if not torch.isfinite(vertices).all():
        raise EvidenceError("mesh: some vertices are not numbers; repair it or give it as a scan")
    index = _even(count, sampling.mesh).to(vertices.device)
    basis = PointBasis.of_vertices(body, index, betas)
    target = vertices[:, index][views.rows].transpose(-1, -2)
    confidence = torch.ones_like(target[:, :, 0])
    return Points3D(basis, target, confidence, noise.mesh, noise.mesh_outlier, "mesh")


def _scan(
    observation: Observation, body: BodyModel, views: Views, betas: int, noise: Noise, sampling: Sampling
) -> ScanPoints:
    points, normals = observation.scan, observation.scan_normals
    assert points is not None
    if points.shape[1] == 0:
        raise EvidenceError("scan: it has no points; give a mesh or point cloud with vertices")
    if not torch.isfinite(points).all() or (normals is not None and not torch.isfinite(normals).all()):
        raise EvidenceError("scan: some points or normals are not numbers; remove them")
    if not views.together:
        raise EvidenceError("scan: views without a common world frame cannot share a scan; set views=calibrated")
    index = _even(points.shape[1], sampling.scan).to(points.device)
    own = torch.zeros_like(points) if normals is None else normalize(normals, dim=-1)
    candidates = _even(len(body.template), sampling.body).to(points.device)  # type: ignore[arg-type]
    return ScanPoints(
        basis=PointBasis.of_vertices(body, candidates, betas),
        rest_normals=vertex_normals(body.template, body.faces)[candidates],  # type: ignore[arg-type]
        part_weights=body.weights[candidates],  # type: ignore[index]
        points=points[:, index][views.rows].flatten(1, 2),
        normals=own[:, index][views.rows].flatten(1, 2),
        noise=noise.scan,
        outlier=noise.scan_outlier,
        reach=noise.scan_reach,
    )
