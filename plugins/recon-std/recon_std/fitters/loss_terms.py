"""Registered losses as terms of a fit: what a fit predicts, what it compares with, and their derivatives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from recon_core.errors import EvidenceError, UsageError, nearest
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.interfaces import BodyModel, Loss
from recon_core.plugins import registry
from recon_core.structures import BodyParameters, Camera, Mesh, Observation
from recon_std.fitters.gather import CROP_SIDE, crop_side
from recon_std.fitters.variables import Variables, Views

_BODIES_AT_ONCE = 256
"""Bodies that are skinned together for a Jacobian: one a column of the step and subject."""


class _Target(dict[str, Tensor]):
    def __init__(self, loss: str, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self._loss = loss

    def __missing__(self, key: str) -> Tensor:
        raise EvidenceError(
            f"loss '{self._loss}' compares with '{key}', which the evidence does not hold; it holds: {', '.join(self)}"
        )


class _Prediction(dict[str, Tensor]):
    """What a fit predicts, each computed when it is first read."""

    def __init__(self, loss: str, parts: Mapping[str, Callable[[], Tensor]]) -> None:
        super().__init__()
        self._loss, self._parts = loss, parts

    def __missing__(self, key: str) -> Tensor:
        if key not in self._parts:
            raise UsageError(
                f"loss '{self._loss}' reads '{key}', which a fit does not predict; it predicts: "
                f"{', '.join(self._parts)}"
            )
        self[key] = self._parts[key]()
        return self[key]


class LossTerm:
    """weight * loss, summed over a subject's views.

    prediction: vertices, keypoints3d (metres, world frame), pose, betas, keypoints2d (pixels of a crop of 224), mask
    (soft silhouette). target: those of the same names from the evidence (vertices: the mesh; mask: where the
    observation has one), and pose and betas of the initial bodies.
    """

    def __init__(
        self,
        name: str,
        loss: Loss,
        weight: float,
        observation: Observation,
        initial: BodyParameters,
        body: BodyModel,
        views: Views,
    ) -> None:
        self.name, self.loss, self.weight, self.body = name, loss, weight, body
        self.views = views.rows.shape[1]
        rows = views.rows.flatten()
        seen = observation[rows]
        self.camera: Camera = seen.camera
        self.skeletons: dict[str, str] = {}
        self.side = torch.ones_like(initial.betas[:, 0])[rows]
        target = {"pose": initial.pose[rows], "betas": initial.betas[rows]}
        if (joints := seen.keypoints) is not None:
            self.side = crop_side(joints, seen.box) / CROP_SIDE
            target["keypoints2d"] = joints.points / self.side[:, None, None]
            target["keypoints2d_confidence"] = joints.confidence
            self.skeletons["keypoints2d"] = joints.skeleton
        if (joints := seen.keypoints3d) is not None:
            target |= {"keypoints3d": joints.points, "keypoints3d_confidence": joints.confidence}
            self.skeletons["keypoints3d"] = joints.skeleton
        if seen.mesh is not None:
            target["vertices"] = seen.mesh.vertices
        self.mask_camera: Camera | None = None
        if seen.mask is not None:
            target["mask"] = seen.mask
            size = (seen.mask.shape[-1], seen.mask.shape[-2])
            self.mask_camera = seen.camera if seen.to_crop is None else seen.camera.cropped(seen.to_crop, size)
        self.target = _Target(name, target)

    def rows(self, index: Int[Tensor, " M"]) -> LossTerm:
        """The term of some subjects."""
        flat = (index[:, None] * self.views + torch.arange(self.views, device=index.device)).flatten()
        part = object.__new__(LossTerm)
        part.__dict__.update(self.__dict__)
        part.camera, part.side = self.camera[flat], self.side[flat]
        part.mask_camera = None if self.mask_camera is None else self.mask_camera[flat]
        part.target = _Target(self.name, {name: value[flat] for name, value in self.target.items()})
        return part

    def _predicted(self, v: Variables) -> _Prediction:
        wide = (len(v.betas), self.views)
        root = v.root.expand(*wide, 3, 3)
        local = axis_angle_to_matrix(v.angles)[:, None].expand(*wide, -1, 3, 3)
        body = BodyParameters(
            torch.cat([root[:, :, None], local], 2).flatten(0, 1),
            v.betas[:, None].expand(*wide, -1).flatten(0, 1),
            v.translation.expand(*wide, 3).flatten(0, 1),
        )
        joints = lambda name: self.body.keypoints(body, self.skeletons[name])  # noqa: E731
        parts: dict[str, Callable[[], Tensor]] = {
            "vertices": lambda: self.body(body).vertices,
            "pose": lambda: body.pose,
            "betas": lambda: body.betas,
        }
        if "keypoints2d" in self.skeletons:
            parts["keypoints2d"] = lambda: self.camera.project(joints("keypoints2d")) / self.side[:, None, None]
        if "keypoints3d" in self.skeletons:
            parts["keypoints3d"] = lambda: joints("keypoints3d")
        if (camera := self.mask_camera) is not None:
            mesh = lambda: Mesh(self.body(body).vertices, self.body.faces)  # noqa: E731
            parts["mask"] = lambda: registry().create("renderer", "warp").soft_silhouette(mesh(), camera)
        return _Prediction(self.name, parts)

    def energy(self, variables: Variables) -> Float[Tensor, " N"]:
        """Weighted loss a subject, differentiable by autograd."""
        value = self.loss(self._predicted(variables), self.target).per_sample
        return self.weight * value.unflatten(0, (-1, self.views)).sum(1)

    @property
    def has_residuals(self) -> bool:
        return type(self.loss).residuals is not Loss.residuals

    def quadratic(self, variables: Variables) -> tuple[Float[Tensor, "N P"], Float[Tensor, "N P P"]]:
        """Gradient and Gauss-Newton curvature over a step's columns: J^T r and J^T J of the loss' residuals r, their
        Jacobian by forward differentiation, a column a copy of the subject."""
        N, P = len(variables.betas), variables.columns
        parts = [self._quadratic(variables, rows) for rows in torch.arange(N).split(max(1, _BODIES_AT_ONCE // P))]
        gradient, curvature = (torch.cat(part) for part in zip(*parts, strict=True))
        return self.weight * gradient, self.weight * curvature

    def _quadratic(self, variables: Variables, rows: Tensor) -> tuple[Tensor, Tensor]:
        P = variables.columns
        index = rows.to(variables.betas.device).repeat_interleave(P)
        part, at = self.rows(index), variables[index]
        one = torch.eye(P).to(at.betas).repeat(len(rows), 1)
        with torch.enable_grad(), forward_ad.dual_level():
            step = forward_ad.make_dual(torch.zeros_like(one), one)
            found = self.loss.residuals(part._predicted(at.moved(step)), part.target)
            residual, slope = forward_ad.unpack_dual(found)
        r = residual.reshape(len(rows), P, -1)[:, 0].detach()
        J = torch.zeros_like(residual) if slope is None else slope
        J = J.reshape(len(rows), P, -1).detach()
        return (J @ r[..., None])[..., 0], J @ J.transpose(-1, -2)


def loss_terms(
    wanted: Mapping[str, float | Mapping[str, Any]],
    observation: Observation,
    initial: BodyParameters,
    body: BodyModel,
    views: Views,
) -> list[LossTerm]:
    """The terms of registered losses, by name: a weight, or a table of the loss' own options and `weight`.

    What a loss asks of the body (faces, vertex_count) and of the evidence (skeleton) is filled in. Raises UsageError
    for an unknown loss or option, EvidenceError for one whose target the evidence does not hold.
    """
    terms = []
    for name, given in wanted.items():
        options = {"weight": given} if isinstance(given, int | float) else dict(given)
        weight = float(options.pop("weight", 1.0))
        target = registry().load("loss", name)
        known = inspect.signature(target).parameters
        if strange := sorted(options.keys() - known.keys()):
            raise UsageError(f"losses.{name}: the loss has no option '{strange[0]}'{nearest(strange[0], known)}")
        filled: dict[str, Any] = {"faces": lambda: body.faces, "vertex_count": lambda: len(body.weights)}
        if observation.keypoints3d is not None:
            filled["skeleton"] = lambda: observation.keypoints3d.skeleton  # type: ignore[union-attr]
        options |= {key: value() for key, value in filled.items() if key in known and key not in options}
        if missing := [k for k, p in known.items() if p.default is p.empty and k not in options]:
            raise UsageError(f"losses.{name}: the loss needs '{missing[0]}', which this fit has not")
        loss = target(**options).to(initial.betas)
        terms.append(LossTerm(name, loss, weight, observation, initial, body, views))
    return terms
