"""Posing and skinning of bodies in SMPL format (Loper et al., SIGGRAPH Asia 2015, equations 2 to 10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.errors import UsageError, unknown
from recon_core.interfaces import BodyModel
from recon_core.structures import BodyOutput, BodyParameters
from recon_std.bodies.data import BodyData


class SMPLBody(BodyModel):
    """A skinned body of V vertices, F triangles and S shape coefficients; float32 or float64, any device.

    Global rotation of joint p: R_p = R_parent @ pose_p; its place: t_p = t_parent + R_parent (J_p - J_parent)
    with the rest joints J linear in the betas, and t_0 = J_0 + translation. A vertex is
    sum_p w_vp (R_p (v - J_p) + t_p) of its shaped rest position v, which for licensed SMPL also carries the
    pose correctives.

    Attributes besides those of BodyModel: weights (V, 24); mirror (V,) partner vertex across the sagittal
    plane, or None; parts (V,) smpl24 joint that moves the vertex most; anatomy (V,) row of ANATOMICAL_PARTS;
    torso (V,) 1 front, 2 back of the torso, 0 elsewhere; licence.
    """

    template: Float[Tensor, "V 3"]
    shape_directions: Float[Tensor, "S V3"]
    weights: Float[Tensor, "V 24"]
    joint_template: Float[Tensor, "24 3"]
    joint_directions: Float[Tensor, "24 3 S"]
    pose_directions: Float[Tensor, "207 V3"] | None
    mirror: Int[Tensor, " V"] | None
    parts: Int[Tensor, " V"]
    anatomy: Int[Tensor, " V"]
    torso: Int[Tensor, " V"]

    def __init__(self, data: BodyData, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.name = data.name
        self.licence = data.licence
        self.parents = tuple(int(p) for p in data.parents)
        self.shape_count = data.shape_directions.shape[-1]
        self.skeletons = tuple(data.regressors)
        count = len(data.template)

        def keep(name: str, array: np.ndarray | None, integer: bool = False) -> None:
            value = None if array is None else torch.tensor(np.asarray(array), dtype=torch.int64 if integer else dtype)
            self.register_buffer(name, value, persistent=False)

        keep("template", data.template)
        keep("shape_directions", data.shape_directions.reshape(count * 3, -1).T)
        keep("weights", data.weights)
        posed = data.pose_directions
        keep("pose_directions", None if posed is None else posed.reshape(count * 3, -1).T)
        joints = data.regressors["smpl24"].dense()
        keep("joint_template", joints @ data.template)
        keep("joint_directions", np.einsum("jv,vis->jis", joints, data.shape_directions))
        for name in ("faces", "uv_faces", "mirror", "parts", "anatomy", "torso"):
            keep(name, getattr(data, name), integer=True)
        keep("uv", data.uv)
        # Ancestors at distance 1, 2, 4, 8: four doublings of them reach any joint's root (depth of SMPL: 8).
        jumps, ancestor = [], [24 if p < 0 else p for p in self.parents] + [24]
        while any(a != 24 for a in ancestor):
            jumps.append(ancestor)
            ancestor = [ancestor[a] for a in ancestor]
        keep("_jumps", np.array(jumps), integer=True)
        keep("_parent", np.maximum(data.parents, 0), integer=True)
        for skeleton, regressor in data.regressors.items():
            dense = regressor.dense()
            used = np.unique(regressor.vertex)
            keep(f"_regressor_vertices_{skeleton}", used, integer=True)
            keep(f"_regressor_{skeleton}", dense[:, used])
        self._bases: dict[str, tuple[Tensor, Tensor]] = {}

    def _apply(self, fn: Any, recurse: bool = True) -> SMPLBody:
        self._bases = {}
        return super()._apply(fn, recurse)

    @property
    def vertex_count(self) -> int:
        return self.template.shape[0]

    def rest_joints(self, betas: Float[Tensor, "B S"]) -> Float[Tensor, "B 24 3"]:
        """Joints of the shaped body in the T-pose, metres."""
        S = self._shape_count(betas)
        return self.joint_template + torch.einsum("jis,bs->bji", self.joint_directions[..., :S], betas)

    def _shape_count(self, betas: Tensor) -> int:
        if betas.shape[-1] > self.shape_count:
            raise UsageError(f"body {self.name} has {self.shape_count} shape directions, got {betas.shape[-1]} betas")
        return betas.shape[-1]

    def rest_vertices(self, betas: Float[Tensor, "B S"]) -> Float[Tensor, "B V 3"]:
        """Vertices of the shaped body in the T-pose, metres, without pose correctives."""
        S = self._shape_count(betas)
        flat = torch.addmm(self.template.reshape(1, -1), betas, self.shape_directions[:S])
        return flat.unflatten(-1, (-1, 3))

    def kinematics(
        self, body: BodyParameters
    ) -> tuple[Float[Tensor, "B 24 3 3"], Float[Tensor, "B 24 3"], Float[Tensor, "B 24 3"]]:
        """Global rotations R_p, posed joints t_p, and rest joints J_p."""
        rest = self.rest_joints(body.betas)
        offset = rest - rest[:, self._parent]
        offset = torch.cat([(rest[:, 0] + body.translation)[:, None], offset[:, 1:]], 1)
        local = torch.cat([body.pose, offset[..., None]], -1)
        # Row 24 is the identity: the ancestor of the root.
        eye = torch.eye(4).to(local)[:3].expand(len(rest), 1, 3, 4)
        chain = torch.cat([local, eye], 1)
        for jump in self._jumps:
            above = chain[:, jump]
            turned = above[..., :3] @ chain
            chain = torch.cat([turned[..., :3], turned[..., 3:] + above[..., 3:]], -1)
        return chain[:, :24, :, :3], chain[:, :24, :, 3], rest

    def joints(self, body: BodyParameters) -> Float[Tensor, "B 24 3"]:
        """The 24 posed joints alone, metres, in the frame of `body`."""
        return self.kinematics(body)[1]

    def forward(self, body: BodyParameters) -> BodyOutput:
        """Pose and skin B bodies: vertices (B, V, 3), joints (B, 24, 3), metres, in the frame of `body`."""
        rotation, joints, rest = self.kinematics(body)
        vertices = self.rest_vertices(body.betas)
        if self.pose_directions is not None:
            bend = (body.pose[:, 1:] - torch.eye(3).to(body.pose)).flatten(1)
            vertices = vertices + (bend @ self.pose_directions).unflatten(-1, (-1, 3))
        transforms = torch.cat([rotation, joints[..., None] - rotation @ rest[..., None]], -1)
        blended = (self.weights @ transforms.flatten(2)).unflatten(-1, (3, 4))
        skinned = (blended[..., :3] @ vertices[..., None])[..., 0] + blended[..., 3]
        return BodyOutput(skinned, joints, transforms)

    def _regressor(self, skeleton: str) -> tuple[Tensor, Tensor]:
        if skeleton not in self.skeletons:
            raise unknown(f"keypoint regressor of body {self.name}", skeleton, self.skeletons)
        return getattr(self, f"_regressor_{skeleton}"), getattr(self, f"_regressor_vertices_{skeleton}")

    def regress(self, vertices: Float[Tensor, "B V 3"], skeleton: str) -> Float[Tensor, "B J 3"]:
        """Joints of a named skeleton from posed vertices. Raises UsageError when there is no such regressor."""
        matrix, used = self._regressor(skeleton)
        return matrix @ vertices[:, used]

    def keypoint_basis(self, skeleton: str) -> tuple[Float[Tensor, "K 24 3 S1"], Float[Tensor, "K 24"]]:
        """(basis, c) of the closed form of a regressed joint, S1 = 1 + shape_count.

        x_k = sum_p R_p (b_kp - c_kp J_p) + c_kp t_p with b = basis[..., 0] + basis[..., 1:] @ betas: c_kp is the
        weight joint p has in keypoint k, b_kp the part of its rest place that p carries. For "smpl24", the
        kinematic joints themselves. Do not write to the tensors: they are kept.
        """
        if skeleton not in self._bases:
            if skeleton == "smpl24":
                c = torch.eye(24).to(self.template)
                linear = torch.cat([self.joint_template[..., None], self.joint_directions], -1)
                basis = c[:, :, None, None] * linear[None]
            else:
                matrix, used = self._regressor(skeleton)
                share = torch.einsum("kv,vp->kpv", matrix, self.weights[used])
                c = share.sum(-1)
                directions = self.shape_directions.unflatten(-1, (-1, 3))[:, used]
                linear = torch.cat([self.template[used][..., None], directions.permute(1, 2, 0)], -1)
                basis = torch.einsum("kpv,vis->kpis", share, linear)
            self._bases[skeleton] = (basis, c)
        return self._bases[skeleton]

    def keypoints(self, body: BodyParameters, skeleton: str) -> Float[Tensor, "B J 3"]:
        """Joints of a named skeleton without skinning the mesh: `regress` of the skinned vertices.

        "smpl24" are the kinematic joints, which the regressor finds again from posed vertices only nearly.
        Pose correctives of licensed bodies, a few millimetres at the joints, are left out.
        """
        return self.points(body, *self.keypoint_basis(skeleton))

    def points(
        self, body: BodyParameters, basis: Float[Tensor, "K 24 3 S1"], c: Float[Tensor, "K 24"]
    ) -> Float[Tensor, "B K 3"]:
        """Points that ride on the body, given as rows of one or several `keypoint_basis`."""
        rotation, joints, rest = self.kinematics(body)
        S = self._shape_count(body.betas)
        b = basis[..., 0] + torch.einsum("kpis,bs->bkpi", basis[..., 1 : S + 1], body.betas)
        carried = b - c[..., None] * rest[:, None]
        return carried.flatten(2) @ rotation.transpose(-1, -2).flatten(1, 2) + c @ joints
