"""Posing and skinning of bodies in SMPL format (Loper et al., SIGGRAPH Asia 2015, equations 2 to 10)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.errors import UsageError, unknown
from recon_core.interfaces import BodyModel
from recon_core.skeletons import SMPL24
from recon_core.structures import BodyOutput, BodyParameters
from recon_std.bodies.data import BodyData

CPU_BLOCK = 8
"""Bodies skinned at a time on a CPU: their blended transforms stay in its cache (twice as fast as 64 at once)."""


class SMPLBody(BodyModel):
    """A skinned body of V vertices, F triangles and S shape coefficients; float32 or float64, any device.

    Global rotation of joint p: R_p = R_parent @ pose_p; its place: t_p = t_parent + R_parent (J_p - J_parent)
    with the rest joints J linear in the betas, and t_0 = J_0 + translation. A vertex is
    sum_p w_vp (R_p (v - J_p) + t_p) of its shaped rest position v, which for licensed SMPL also carries the
    pose correctives.

    Attributes besides those of BodyModel. template: (V, 3) metres. shape_directions: (S, V*3) metres a unit of
    beta. pose_directions: (207, V*3) correctives, or None. mirror: (V,) partner vertex across the sagittal
    plane, or None where the mesh is not symmetric. parts: (V,) smpl24 joint that moves the vertex most. anatomy:
    (V,) row of `parts.ANATOMICAL_PARTS`. torso: (V,) row of `parts.TORSO_SIDES`. skeletons: names that
    `keypoints` and `regress` know. licence: of the body file.
    """

    template: Float[Tensor, "V 3"]
    shape_directions: Float[Tensor, "S V3"]
    pose_directions: Float[Tensor, "207 V3"] | None
    joint_template: Float[Tensor, "24 3"]
    joint_directions: Float[Tensor, "24 3 S"]
    mirror: Int[Tensor, " V"] | None
    parts: Int[Tensor, " V"]
    anatomy: Int[Tensor, " V"]
    torso: Int[Tensor, " V"]
    _jumps: Int[Tensor, "N 25"]
    _parent: Int[Tensor, " 24"]

    def __init__(self, data: BodyData, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.name = data.name
        self.licence = data.licence
        self.parents = tuple(int(p) for p in data.parents)
        self.shape_count = data.shape_directions.shape[-1]
        self.skeletons = tuple(data.regressors)
        self._bases: dict[str, tuple[Tensor, Tensor]] = {}
        self._corrective_bases: dict[str, Tensor] = {}

        # Buffers are not part of the state: a checkpoint of a method holds no copy of the body.
        def keep(name: str, array: np.ndarray | None, integer: bool = False) -> None:
            kind = torch.int64 if integer else dtype
            self.register_buffer(name, None if array is None else torch.tensor(array, dtype=kind), persistent=False)

        # Tensors made in inference mode could not be used in training later.
        with torch.inference_mode(False):
            keep("template", data.template)
            keep("shape_directions", _flat(data.shape_directions))
            keep("pose_directions", None if data.pose_directions is None else _flat(data.pose_directions))
            keep("weights", data.weights)
            joints = data.regressors["smpl24"].dense()
            keep("joint_template", joints @ data.template)
            keep("joint_directions", np.einsum("jv,vis->jis", joints, data.shape_directions))
            keep("uv", data.uv)
            for name in ("faces", "uv_faces", "mirror", "parts", "anatomy", "torso"):
                keep(name, getattr(data, name), integer=True)
            keep("_jumps", _ancestors(self.parents), integer=True)
            keep("_parent", np.maximum(data.parents, 0), integer=True)
            for skeleton, regressor in data.regressors.items():
                used = np.unique(regressor.vertex)
                keep(f"_regressor_{skeleton}", regressor.dense()[:, used])
                keep(f"_regressor_vertices_{skeleton}", used, integer=True)

    def _apply(self, fn: Any, recurse: bool = True) -> SMPLBody:
        self._bases, self._corrective_bases = {}, {}
        return super()._apply(fn, recurse)

    @property
    def vertex_count(self) -> int:
        return self.template.shape[0]

    def rest_joints(self, betas: Float[Tensor, "B S"]) -> Float[Tensor, "B 24 3"]:
        """Joints of the shaped body in the T-pose, metres. Fewer betas than `shape_count` leave the rest at 0."""
        count = self._count(betas)
        flat = torch.addmm(
            self.joint_template.reshape(1, -1), betas, self.joint_directions[..., :count].flatten(0, 1).T
        )
        return flat.view(len(betas), 24, 3)

    def rest_vertices(self, betas: Float[Tensor, "B S"]) -> Float[Tensor, "B V 3"]:
        """Vertices of the shaped body in the T-pose, metres, without pose correctives."""
        flat = torch.addmm(self.template.reshape(1, -1), betas, self.shape_directions[: self._count(betas)])
        return flat.view(len(betas), self.vertex_count, 3)

    def _count(self, betas: Tensor) -> int:
        if betas.shape[-1] > self.shape_count:
            raise UsageError(f"body {self.name} has {self.shape_count} shape directions, got {betas.shape[-1]} betas")
        return betas.shape[-1]

    def kinematics(
        self, body: BodyParameters
    ) -> tuple[Float[Tensor, "B 24 3 3"], Float[Tensor, "B 24 3"], Float[Tensor, "B 24 3"]]:
        """Global rotations R_p, posed joints t_p (both in the frame of `body`), and rest joints J_p."""
        rest = self.rest_joints(body.betas)
        offset = rest - rest[:, self._parent]
        offset = torch.cat([(rest[:, 0] + body.translation)[:, None], offset[:, 1:]], 1)
        # Row 24 is the identity: the ancestor of the root.
        eye = torch.eye(3, 4, dtype=rest.dtype, device=rest.device).expand(len(rest), 1, 3, 4)
        chain = torch.cat([torch.cat([body.pose, offset[..., None]], -1), eye], 1)
        for ancestor in self._jumps:
            above = chain[:, ancestor]
            moved = above[..., :3] @ chain
            chain = torch.cat([moved[..., :3], moved[..., 3:] + above[..., 3:]], -1)
        return chain[:, :24, :, :3], chain[:, :24, :, 3], rest

    def joints(self, body: BodyParameters) -> Float[Tensor, "B 24 3"]:
        """The 24 posed joints alone, metres, in the frame of `body`."""
        return self.kinematics(body)[1]

    def forward(self, body: BodyParameters) -> BodyOutput:
        """Pose and skin B bodies: vertices (B, V, 3), joints (B, 24, 3), metres, in the frame of `body`."""
        rotation, joints, rest = self.kinematics(body)
        vertices = self.rest_vertices(body.betas)
        if self.pose_directions is not None:
            vertices = torch.addmm(vertices.flatten(1), _bend(body), self.pose_directions).view_as(vertices)
        transforms = torch.cat([rotation, joints[..., None] - rotation @ rest[..., None]], -1)
        return BodyOutput(self._skin(transforms, vertices), joints, transforms)

    def _skin(self, transforms: Float[Tensor, "B 24 3 4"], vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B V 3"]:
        block = CPU_BLOCK if vertices.device.type == "cpu" else max(len(vertices), 1)
        weights = self.weights.T.contiguous()
        skinned = []
        for matrix, rest in zip(transforms.split(block), vertices.split(block), strict=True):
            # Coordinates before vertices: sums run over long contiguous rows.
            blended = (matrix.permute(0, 2, 3, 1).reshape(-1, 24) @ weights).view(len(rest), 3, 4, self.vertex_count)
            x, y, z = rest.transpose(1, 2).contiguous()[:, :, None].unbind(1)
            moved = torch.addcmul(blended[:, :, 3], blended[:, :, 0], x)
            moved = torch.addcmul(moved, blended[:, :, 1], y)
            moved = torch.addcmul(moved, blended[:, :, 2], z)
            skinned.append(moved.transpose(1, 2))
        return torch.cat(skinned)

    def regress(self, vertices: Float[Tensor, "B V 3"], skeleton: str) -> Float[Tensor, "B J 3"]:
        """Joints of a named skeleton from posed vertices. Raises UsageError when there is no such regressor."""
        matrix, used = self._regressor(skeleton)
        return matrix @ vertices[:, used]

    def _regressor(self, skeleton: str) -> tuple[Float[Tensor, "K U"], Int[Tensor, " U"]]:
        if skeleton not in self.skeletons:
            raise unknown(f"keypoint regressor of body {self.name}", skeleton, self.skeletons)
        return getattr(self, f"_regressor_{skeleton}"), getattr(self, f"_regressor_vertices_{skeleton}")

    def keypoint_basis(self, skeleton: str) -> tuple[Float[Tensor, "K 24 3 S1"], Float[Tensor, "K 24"]]:
        """(basis, c) of the closed form of regressed joints, S1 = 1 + shape_count. Treat them as read-only.

        x_k = sum_p R_p (b_kp - c_kp J_p) + c_kp t_p with b = basis[..., 0] + basis[..., 1:] @ betas: c_kp is the
        weight that joint p has in keypoint k, b_kp the part of its rest place that p carries. For "smpl24",
        the kinematic joints themselves. Pose correctives are not in it (see `keypoints`). Raises UsageError
        when there is no such regressor.
        """
        if skeleton not in self._bases:
            with torch.inference_mode(False), torch.no_grad():
                self._bases[skeleton] = self._make_basis(skeleton)
        return self._bases[skeleton]

    def _make_basis(self, skeleton: str) -> tuple[Tensor, Tensor]:
        if skeleton == SMPL24.name:
            c = torch.eye(len(SMPL24), dtype=self.weights.dtype, device=self.weights.device)
            linear = torch.cat([self.joint_template[..., None], self.joint_directions], -1)
            return c[:, :, None, None] * linear, c
        matrix, used = self._regressor(skeleton)
        share = matrix[:, None] * self.weights[used].T
        directions = self.shape_directions.unflatten(-1, (-1, 3))[:, used]
        linear = torch.cat([self.template[used][..., None], directions.permute(1, 2, 0)], -1)
        return torch.einsum("kpv,vis->kpis", share, linear), share.sum(-1)

    def _corrective_basis(self, skeleton: str) -> Float[Tensor, "K 24 3 207"]:
        """What the pose correctives add to b_kp, for each number of R_1..R_23 - I."""
        assert self.pose_directions is not None
        if skeleton not in self._corrective_bases:
            with torch.inference_mode(False), torch.no_grad():
                matrix, used = self._regressor(skeleton)
                share = matrix[:, None] * self.weights[used].T
                directions = self.pose_directions.unflatten(-1, (-1, 3))[:, used]
                self._corrective_bases[skeleton] = torch.einsum("kpv,qvi->kpiq", share, directions)
        return self._corrective_bases[skeleton]

    def keypoints(self, body: BodyParameters, skeleton: str) -> Float[Tensor, "B J 3"]:
        """Joints of a named skeleton, metres, without skinning the mesh: `regress` of the skinned vertices.

        Pose correctives are included. "smpl24" are the kinematic joints (`joints`), which the regressor, made
        for the rest body, finds again from posed vertices only nearly.
        """
        if skeleton == SMPL24.name:
            return self.joints(body)
        basis, c = self.keypoint_basis(skeleton)
        rotation, joints, rest = self.kinematics(body)
        directions = basis[..., 1 : 1 + self._count(body.betas)].flatten(0, 2)
        carried = torch.addmm(basis[..., 0].reshape(1, -1), body.betas, directions.T)
        if self.pose_directions is not None:
            carried = carried + _bend(body) @ self._corrective_basis(skeleton).flatten(0, 2).T
        carried = carried.view(len(rest), len(c), 24, 3) - c[..., None] * rest[:, None]
        return carried.flatten(2) @ rotation.transpose(-1, -2).flatten(1, 2) + c @ joints


def mirrored(body: BodyParameters) -> BodyParameters:
    """The same bodies seen in a mirror on the plane x = 0 of the frame they stand in: left becomes right.

    Vertex v of the result is vertex `mirror[v]` of the original with x negated, for a body with `mirror` whose
    shape directions are symmetric.
    """
    flip = body.pose.new_tensor([-1.0, 1.0, 1.0])
    pose = body.pose[:, list(SMPL24.mirror)] * flip[:, None] * flip
    return dataclasses.replace(body, pose=pose, translation=body.translation * flip)


def _bend(body: BodyParameters) -> Float[Tensor, "B 207"]:
    """How far each joint but the root is from rest: what pose correctives are linear in (equation 9)."""
    return (body.pose[:, 1:] - torch.eye(3).to(body.pose)).flatten(1)


def _flat(directions: np.ndarray) -> np.ndarray:
    """(V, 3, N) to (N, V*3)."""
    return np.ascontiguousarray(directions.reshape(-1, directions.shape[-1]).T)


def _ancestors(parents: tuple[int, ...]) -> np.ndarray:
    """Ancestors at distance 1, 2, 4, ... of every joint, up to its deepest; row 24 stands for none.

    Composing each transform with its ancestor's at doubled distances gives all global ones in four steps.
    """
    none = len(parents)
    ancestor = [none if p < 0 else p for p in parents] + [none]
    jumps = []
    while any(a != none for a in ancestor):
        jumps.append(ancestor)
        ancestor = [ancestor[a] for a in ancestor]
    return np.array(jumps)
