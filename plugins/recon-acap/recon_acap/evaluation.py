"""How well an embedding reconstructs (table 2's measure), and how well it keeps shape and pose apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_acap.features import AcapCodec, part_features
from recon_core.geometry.alignment import similarity_alignment
from recon_core.geometry.rotations import axis_angle_to_matrix, geodesic_distance
from recon_core.geometry.topology import edges
from recon_std.bodies.parts import ANATOMICAL_PARTS

JOINTS: dict[str, tuple[str, str]] = {
    f"{side}_{joint}": (f"{side}_{above}" if above not in ("pelvis", "chest") else above, f"{side}_{below}")
    for side in ("left", "right")
    for joint, above, below in (
        ("hip", "pelvis", "thigh"),
        ("knee", "thigh", "shank"),
        ("ankle", "shank", "foot"),
        ("shoulder", "chest", "upper_arm"),
        ("elbow", "upper_arm", "forearm"),
        ("wrist", "forearm", "hand"),
    )
}
"""The two parts that meet at a joint."""

BONES = tuple(
    (f"{side}_{a}", f"{side}_{b}")
    for side in ("left", "right")
    for a, b in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"), ("elbow", "wrist"))
)


def mean_vertex_distance(vertices: Float[Tensor, "B V 3"], target: Float[Tensor, "B V 3"]) -> Float[Tensor, " B"]:
    """Mean Euclidean distance of corresponding vertices, metres, after the best rigid motion (R, t of equation 15)."""
    moved = similarity_alignment(vertices, target, with_scale=False)(vertices)
    return (moved - target).norm(dim=-1).mean(-1)


def border_joints(
    vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], part: Int[Tensor, " V"]
) -> Float[Tensor, "B J 3"]:
    """The `JOINTS` as the middle of the vertices where two parts meet, as the paper does it (section 8.1)."""
    ends = edges(faces).vertices
    joints = []
    for pair in JOINTS.values():
        a, b = (ANATOMICAL_PARTS.index(name) for name in pair)
        sides = part[ends]
        across = ((sides == torch.tensor([a, b])) | (sides == torch.tensor([b, a]))).all(1)
        joints.append(vertices[:, ends[across].unique()].mean(1))
    return torch.stack(joints, 1)


def bone_lengths(
    vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], part: Int[Tensor, " V"]
) -> Float[Tensor, "B 8"]:
    """Lengths of thighs, shanks, upper arms and forearms between `border_joints`, metres."""
    names = list(JOINTS)
    joints = border_joints(vertices, faces, part)
    first, last = zip(*((names.index(a), names.index(b)) for a, b in BONES), strict=True)
    return (joints[:, list(first)] - joints[:, list(last)]).norm(dim=-1)


def part_rotations(codec: AcapCodec, vertices: Float[Tensor, "B V 3"], part: Int[Tensor, " V"]) -> Tensor:
    """(B, K, 3, 3) rotation of each part, reference to mesh (equation 2)."""
    unturned = vertices.new_zeros(*vertices.shape[:2], 9)  # whole turns, which features tell, are no matter here
    features = part_features(vertices, unturned, codec.connectivity.reference.to(vertices), part)
    return axis_angle_to_matrix(features[..., :3])


class Disentanglement(NamedTuple):
    """How one code's change shows in what is the other's: degrees of each part, shares of each bone's length."""

    turned: Float[Tensor, "N K"]
    stretched: Float[Tensor, "N 8"]


def disentanglement(codec: AcapCodec, part: Int[Tensor, " V"], meshes: Float[Tensor, "N 4 V 3"]) -> Disentanglement:
    """Of N groups of bodies, shape a in poses p and q, then shape b in p and q.

    turned: angle in degrees between the rotations of a part under the two shapes, in the same pose. stretched: change
    of a bone's length between the two poses of the same shape.
    """
    flat = meshes.flatten(0, 1)
    rotation = part_rotations(codec, flat, part).unflatten(0, meshes.shape[:2])
    turned = torch.rad2deg(geodesic_distance(rotation[:, :2], rotation[:, 2:]))
    length = bone_lengths(flat, codec.connectivity.faces, part).unflatten(0, meshes.shape[:2])
    stretched = (length[:, 1::2] / length[:, ::2] - 1).abs()
    return Disentanglement(turned.flatten(0, 1), stretched.flatten(0, 1))
