"""A person as other programs know one: a rest mesh, a skeleton of named bones, skinning weights, and one pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from recon_core.interfaces import BodyModel
from recon_core.reconstruction import Person
from recon_core.skeletons import SMPL24
from recon_core.structures import BodyParameters

Y_UP = np.array([1.0, -1.0, -1.0], np.float32)
"""Camera frame (y down, z forward) to the frame of exported scenes (y up, z towards the viewer), a half turn about x:
`points * Y_UP`. A proper rotation, so that faces keep their winding."""


@dataclass(frozen=True)
class Rig:
    """One person, skinned. Bone j turns by rotations[j] relative to its parent, about its own joint.

    vertices: (V, 3) and joints: (24, 3), the rest pose of this person's shape, y up, metres. rotations: (24, 3, 3).
    translation: (3,), added to the root after posing. The root's rotation and the translation lead into the camera
    frame. weights: (V, 24), rows sum to 1.
    """

    vertices: Float[np.ndarray, "V 3"]
    joints: Float[np.ndarray, "24 3"]
    rotations: Float[np.ndarray, "24 3 3"]
    translation: Float[np.ndarray, "3"]
    weights: Float[np.ndarray, "V 24"]
    parents: tuple[int, ...]
    names: tuple[str, ...] = SMPL24.joints

    def offsets(self) -> Float[np.ndarray, "24 3"]:
        """Where each bone's joint lies in its parent's frame; the root's in the camera frame."""
        parents = np.array(self.parents)
        moved = self.joints - np.where(parents[:, None] < 0, 0, self.joints[parents])
        moved[parents < 0] += self.translation
        return moved

    def transforms(self) -> Float[np.ndarray, "24 4 4"]:
        """Bone frames in the camera frame."""
        world = np.tile(np.eye(4), (len(self.joints), 1, 1))
        offsets = self.offsets()
        for j, parent in enumerate(self.parents):  # 24 bones, each after its parent
            local = np.eye(4)
            local[:3, :3], local[:3, 3] = self.rotations[j], offsets[j]
            world[j] = local if parent < 0 else world[parent] @ local
        return world

    def skinned(self) -> Float[np.ndarray, "V 3"]:
        """Posed vertices in the camera frame, by linear blend skinning."""
        bones = self.transforms()
        bones[:, :3, 3] -= (bones[:, :3, :3] @ self.joints[..., None])[..., 0]
        blended = np.einsum("vj,jrc->vrc", self.weights, bones[:, :3])
        return (blended[..., :3] @ self.vertices[..., None])[..., 0] + blended[..., 3]


def rigs(body_model: BodyModel, people: list[Person]) -> list[Rig]:
    """The rig of each person. Its `skinned()` gives the person's vertices.

    A body whose vertices also move with the pose (licensed SMPL's pose blend shapes) gets those movements added to
    the rest mesh, taken back through the skinning, so that the rig is exact in the exported pose.
    """
    if not people:
        return []
    betas = torch.cat([p.body.betas for p in people])
    identity = torch.eye(3).expand(len(people), len(SMPL24), 3, 3).to(betas)
    device = body_model.weights.device
    rest_parameters = BodyParameters(identity, betas, torch.zeros_like(betas[:, :3]))
    with torch.no_grad():
        rest = body_model(rest_parameters.to(device))
    weights = body_model.weights.double().cpu().numpy()
    found = []
    for i, person in enumerate(people):
        rig = Rig(
            rest.vertices[i].double().cpu().numpy(),
            rest.joints[i].double().cpu().numpy(),
            person.body.pose[0].double().numpy(),
            person.body.translation[0].double().numpy(),
            weights,
            tuple(body_model.parents),
        )
        missing = person.vertices - rig.skinned()
        if np.abs(missing).max(initial=0) > 1e-5:
            linear = np.einsum("vj,jrc->vrc", weights, rig.transforms()[:, :3, :3])
            moved = rig.vertices + np.linalg.solve(linear, missing[..., None])[..., 0]
            rig = Rig(moved, rig.joints, rig.rotations, rig.translation, weights, rig.parents)
        found.append(rig)
    return found


def split_at_seams(
    faces: Int[np.ndarray, "F 3"], uv_faces: Int[np.ndarray, "F 3"]
) -> tuple[Int[np.ndarray, "F 3"], Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """One index a corner, for formats that know no separate texture indices.

    Returns faces over N corners, and of each corner its vertex and its texture coordinate.
    """
    pairs = faces.astype(np.int64).ravel() * (int(uv_faces.max(initial=0)) + 1) + uv_faces.ravel()
    _, first, inverse = np.unique(pairs, return_index=True, return_inverse=True)
    return inverse.reshape(faces.shape), faces.ravel()[first], uv_faces.ravel()[first]
