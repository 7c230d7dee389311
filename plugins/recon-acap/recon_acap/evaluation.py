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


def disentanglement(
    codec: AcapCodec,
    part: Int[Tensor, " V"],
    meshes: Float[Tensor, "G 4 V 3"],
    truth: Float[Tensor, "G 4 V 3"] | None = None,
) -> Disentanglement:
    """Of G groups of bodies, shape a in poses p and q, then shape b in p and q; N = 2 G pairs.

    turned: angle in degrees between the rotations of a part under the two shapes, in the same pose. stretched: change
    of a bone's length between the two poses of the same shape. Both measures see something in perfect bodies too: a
    part's best affine map turns with its shape, and where parts meet moves as a joint bends. With `truth`, what these
    bodies show is taken off: the rotation beyond theirs, the change of length beyond theirs.
    """
    turn, growth = _changes(codec, part, meshes)
    if truth is None:
        known_turn, known_growth = torch.eye(3).to(turn).expand_as(turn), torch.ones_like(growth)
    else:
        known_turn, known_growth = _changes(codec, part, truth)
    return Disentanglement(torch.rad2deg(geodesic_distance(turn, known_turn)), (growth / known_growth - 1).abs())


def _changes(codec: AcapCodec, part: Tensor, meshes: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K, 3, 3) rotations from shape a to b in the same pose, (N, 8) lengths in pose q over those in p."""
    flat = meshes.flatten(0, 1)
    rotation = part_rotations(codec, flat, part).unflatten(0, meshes.shape[:2])
    turn = rotation[:, :2].transpose(-1, -2) @ rotation[:, 2:]
    length = bone_lengths(flat, codec.connectivity.faces, part).unflatten(0, meshes.shape[:2])
    return turn.flatten(0, 1), (length[:, 1::2] / length[:, ::2]).flatten(0, 1)
