"""ACAP features: to features and back, derivatives, invariances, bad meshes, and parity with the released model."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recon_acap.features import AcapCodec, Connectivity, FeatureScaling, ReleasedPoints, part_features
from recon_acap.features.fused import split
from recon_acap.features.logarithm import to_affine, to_features
from recon_core.errors import AssetError, EvidenceError, InputError, TrainingError
from recon_core.geometry.primitives import icosphere
from recon_core.geometry.rotations import axis_angle_to_matrix, project_to_rotation
from recon_core.structures import BodyParameters
from recon_std.bodies import load_body

PARITY = Path(os.environ.get("RECON_PARITY_DIR", "/work/shared/parity")) / "a" / "dhnn_acap.golden.npz"
MOCAP = Path("/work/shared/data/mocap/poses_val.npz")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mesh() -> tuple[Tensor, Tensor]:
    vertices, faces = icosphere(1)
    return vertices.double() * torch.tensor([1.0, 1.5, 0.8]) + 0.03 * randn(len(vertices), 3), faces


def two_pieces() -> tuple[Tensor, Tensor]:
    vertices, faces = mesh()
    return torch.cat([vertices, 0.2 * vertices + torch.tensor([1.6, 0.0, 0.0])]), torch.cat([faces, faces + 42])


@pytest.fixture(scope="module")
def codec() -> AcapCodec:
    return AcapCodec(Connectivity(*mesh()))


def deformed(count: int = 2, seed: int = 1) -> Tensor:
    """Meshes bent and stretched by up to a third of their size."""
    vertices = mesh()[0]
    bend = axis_angle_to_matrix(vertices[None, :, 1:2] * randn(count, 1, 3, seed=seed) * 0.5)
    return (bend @ (vertices[..., None] * (1 + 0.1 * randn(count, 42, 3, 1, seed=seed)))).squeeze(-1)


# -- must show 1


def test_200_posed_bodies_return_from_their_features() -> None:
    """Mean vertex error under 1e-4 of the body's height, worst under 1e-3, also in float32."""
    body = load_body("free")
    if MOCAP.exists():
        poses = np.load(MOCAP)["poses"]
        pose = torch.from_numpy(poses[:: len(poses) // 200][:200].astype("f4"))
    else:
        pose = 0.5 * randn(200, 24, 3).float()
    pose[:, 0] = 0
    parameters = BodyParameters(axis_angle_to_matrix(pose), randn(200, 10, seed=3).float(), torch.zeros(200, 3))
    rest = body.rest_vertices(parameters.betas)
    height = rest[..., 1].amax(1) - rest[..., 1].amin(1)
    codec = AcapCodec(body.template, body.faces)
    errors = []
    for rows in torch.arange(200).split(40):
        vertices = body(parameters[rows]).vertices
        back = codec.reconstruct(codec.extract(vertices), ([0], vertices[:, :1]))
        back = back + (vertices - back).mean(1, keepdim=True)
        errors.append((back - vertices).norm(dim=-1) / height[rows, None])
    error = torch.cat(errors)
    assert error.mean() < 1e-4
    assert error.max() < 1e-3


def test_fast_rotations_are_those_of_the_svd() -> None:
    T = randn(2000, 3, 3)
    T[:500] = axis_angle_to_matrix(randn(500, 3, seed=1)) @ (torch.eye(3) + 0.2 * randn(500, 3, 3, seed=2))
    T[500:510] = -torch.eye(3).double() + 0.1 * randn(10, 3, 3)  # mirrored
    T[510:520, :, 2] = 0  # flat
    U, S, Vh = torch.linalg.svd(T)
    assert (torch.linalg.det(T) < 0).sum() > 500
    # Where the two smallest singular values cancel there is no nearest rotation to agree about.
    sure = S[:, 1] + S[:, 2] * torch.linalg.det(U @ Vh) > 1e-3 * S[:, 0]
    torch.testing.assert_close(split(T).rotation[sure], project_to_rotation(T)[sure], rtol=0, atol=1e-9)
    single = split(T.float()).rotation.double()
    torch.testing.assert_close(single[:500], project_to_rotation(T)[:500], rtol=0, atol=3e-6)


def test_decomposition_multiplies_back_whatever_the_determinant() -> None:
    T = randn(4, 50, 3, 3)
    plain = lambda angle, axis: axis * angle[..., None]  # noqa: E731
    torch.testing.assert_close(to_affine(to_features(T, plain)), T, rtol=0, atol=1e-9)


def test_matrices_without_a_nearest_rotation_are_split_all_the_same() -> None:
    T = torch.stack([torch.zeros(3, 3), *(torch.diag(torch.tensor(d)) for d in ([1.0, 0, 0], [1, 1, -1], [2, 1, -1]))])
    for some in (T.double(), T):
        found = split(some)
        R = found.rotation
        torch.testing.assert_close(R.mT @ R, torch.eye(3).to(some).expand(4, 3, 3), rtol=0, atol=1e-6)
        assert (torch.linalg.det(R) > 0).all()
        xx, xy, xz, yy, yz, zz = found.stretch.unbind(-1)
        S = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).unflatten(-1, (3, 3))
        torch.testing.assert_close(R @ S, some, rtol=0, atol=1e-6)
        torch.testing.assert_close(axis_angle_to_matrix(found.axis * found.angle[:, None]), R, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pieces", [1, 2])
def test_fused_passes_give_what_the_differentiable_maps_give(pieces: int) -> None:
    rest, faces = mesh() if pieces == 1 else two_pieces()
    codec = AcapCodec(rest, faces)
    vertices = rest + 0.1 * randn(3, *rest.shape)
    tracked = vertices.clone().requires_grad_()
    torch.testing.assert_close(codec.affine(vertices), codec.affine(tracked).detach(), rtol=0, atol=1e-11)
    features = codec.extract(vertices)
    tracked = features.clone().requires_grad_()
    torch.testing.assert_close(codec.reconstruct(features), codec.reconstruct(tracked).detach(), rtol=0, atol=1e-11)
    assert codec.reconstruct(codec.extract(vertices[:0])).shape == (0, *rest.shape)


# -- to features and back


def test_without_blur_every_mesh_returns() -> None:
    exact = AcapCodec(*mesh(), blur=0.0)
    vertices = deformed() + 0.1 * randn(2, 42, 3)
    back = exact.reconstruct(exact.extract(vertices), ([7], vertices[:, 7:8]))
    torch.testing.assert_close(back, vertices, rtol=0, atol=1e-8)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_a_linear_map_is_every_vertex_feature(seed: int) -> None:
    plain = AcapCodec(*mesh(), normal_share=0.0, blur=None)
    rotation = axis_angle_to_matrix(randn(3, seed=seed))
    stretch = torch.eye(3) + 0.1 * (lambda a: a + a.T)(randn(3, 3, seed=seed + 1))
    vertices = mesh()[0] @ (rotation @ stretch).T + randn(3, seed=seed)
    features = plain.extract(vertices[None])
    torch.testing.assert_close(plain.rotations(features), rotation.expand(1, 42, 3, 3), rtol=0, atol=1e-8)
    upper = stretch[[0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    torch.testing.assert_close(features[..., 3:], upper.expand(1, 42, 6), rtol=0, atol=1e-8)


def test_features_do_not_depend_on_place_and_turn_with_the_mesh(codec: AcapCodec) -> None:
    vertices, turn = deformed(), axis_angle_to_matrix(torch.tensor([0.2, -0.1, 0.3]).double())
    features = codec.extract(vertices)
    torch.testing.assert_close(codec.extract(vertices + 5), features, rtol=0, atol=1e-9)
    turned = codec.extract(vertices @ turn.T)
    torch.testing.assert_close(codec.rotations(turned), turn @ codec.rotations(features), rtol=0, atol=1e-9)
    torch.testing.assert_close(turned[..., 3:], features[..., 3:], rtol=0, atol=1e-9)


def test_the_reference_has_no_deformation(codec: AcapCodec) -> None:
    features = codec.extract(mesh()[0][None])
    wanted = torch.tensor([0, 0, 0, 1, 0, 0, 1, 0, 1]).double().expand(1, 42, 9)
    torch.testing.assert_close(features, wanted, rtol=0, atol=1e-9)


def test_one_of_a_batch_is_one_alone(codec: AcapCodec) -> None:
    vertices = deformed(3)
    torch.testing.assert_close(codec.extract(vertices)[1:2], codec.extract(vertices[1:2]), rtol=0, atol=1e-12)


def test_numpy_in_numpy_out(codec: AcapCodec) -> None:
    vertices, faces = mesh()
    by_arrays = AcapCodec(Connectivity(vertices.numpy(), faces.numpy()))
    features = by_arrays.extract(deformed().numpy())
    assert isinstance(features, np.ndarray)
    np.testing.assert_allclose(features, codec.extract(deformed()).numpy(), atol=1e-12)
    points = by_arrays.reconstruct(features, anchors=([3], deformed().numpy()[:, 3:4]))
    assert isinstance(points, np.ndarray)
    np.testing.assert_allclose(points[:, 3], deformed().numpy()[:, 3], atol=1e-12)


def test_a_copy_works(codec: AcapCodec) -> None:
    features = codec.extract(deformed())
    codec.reconstruct(features)
    torch.testing.assert_close(copy.deepcopy(codec).reconstruct(features), codec.reconstruct(features))


# -- derivatives


def test_gradient_of_extraction(codec: AcapCodec) -> None:
    vertices = deformed(1).requires_grad_()
    assert torch.autograd.gradcheck(codec.extract, (vertices,), fast_mode=True)
    # Far beyond half a turn, and near none.
    T = axis_angle_to_matrix(randn(1, 6, 3)) @ (torch.eye(3) + 0.2 * randn(1, 6, 3, 3, seed=4))
    T[:, 0] = torch.eye(3) + 1e-3 * randn(3, 3)
    T[:, 1] *= -1
    turned = lambda angle, axis: axis * (angle + 4 * torch.pi * (angle > 0.5))[..., None]  # noqa: E731
    assert torch.autograd.gradcheck(lambda T: to_features(T, turned), (T.requires_grad_(),))


def test_gradient_of_reconstruction(codec: AcapCodec) -> None:
    features = codec.extract(deformed(1)).requires_grad_()
    assert torch.autograd.gradcheck(codec.reconstruct, (features,), fast_mode=True)
    places = torch.zeros(1, 2, 3).double().requires_grad_()
    anchored = lambda f, p: codec.reconstruct(f, ([3, 5], p))  # noqa: E731
    assert torch.autograd.gradcheck(anchored, (features, places), fast_mode=True)


# -- pieces


def test_a_piece_follows_the_piece_beside_it() -> None:
    vertices, faces = two_pieces()
    codec = AcapCodec(vertices, faces)
    turn = axis_angle_to_matrix(torch.tensor([0.0, 0.0, 2.0]).double())
    moved = (vertices @ turn.T)[None]
    back = codec.reconstruct(codec.extract(moved), ([0], moved[:, :1]))
    torch.testing.assert_close(back, moved, rtol=0, atol=1e-8)


def test_free_pieces_need_an_anchor_each() -> None:
    codec = AcapCodec(Connectivity(*two_pieces(), bridged=False))
    vertices = two_pieces()[0][None] + torch.arange(84)[:, None].ge(42)
    features = codec.extract(vertices)
    with pytest.raises(EvidenceError, match="2 separate pieces and no anchors.*singular"):
        codec.reconstruct(features)
    with pytest.raises(EvidenceError, match="piece of vertex 42 .42 vertices. has no anchor"):
        codec.reconstruct(features, ([0], vertices[:, :1]))
    with pytest.raises(EvidenceError, match="not vertices 0 to 83"):
        codec.reconstruct(features, ([84], vertices[:, :1]))
    back = codec.reconstruct(features, ([0, 50], vertices[:, [0, 50]]))
    torch.testing.assert_close(back, vertices, rtol=0, atol=1e-8)


# -- bad meshes


def test_bad_connectivities_are_named() -> None:
    vertices, faces = mesh()
    for wrong_vertices, wrong_faces, message in (
        (vertices, torch.cat([faces, faces[:1, [0, 0, 1]]]), "scan: 1 degenerate faces.*first 80"),
        (vertices, torch.cat([faces, faces[:1]]), "scan: 3 non-manifold edges"),
        (vertices, torch.cat([faces[:1].flip(1), faces[1:]]), "scan: 3 non-manifold edges.*disagree"),
        (vertices, faces + 1, "scan: face .* outside 0 to 41"),
        (torch.cat([vertices, vertices[:1]]), faces, "scan: vertex 42 belongs to no face"),
        (vertices * torch.where(torch.arange(42) == 5, torch.nan, 1)[:, None], faces, "scan: vertex 5 is not finite"),
        (vertices, faces[:0], "scan: .* are no mesh"),
    ):
        with pytest.raises(InputError, match=message):
            Connectivity(wrong_vertices, wrong_faces, name="scan")


def test_meshes_of_another_connectivity_are_named(codec: AcapCodec) -> None:
    with pytest.raises(InputError, match="41 vertices, the reference mesh has 42"):
        codec.extract(deformed()[:, :41])
    broken = deformed()
    broken[1, 9, 2] = torch.inf
    with pytest.raises(InputError, match="vertex 9 of mesh 1 is not finite"):
        codec.extract(broken)
    with pytest.raises(InputError, match="features of shape .2, 41, 9."):
        codec.reconstruct(torch.zeros(2, 41, 9))
    faces = codec.connectivity.faces
    codec.connectivity.check_faces(faces)
    with pytest.raises(InputError, match="b.ply: 79 faces, the reference mesh has 80"):
        codec.connectivity.check_faces(faces[1:], "b.ply")
    with pytest.raises(InputError, match="b.ply: 80 of 80 faces differ"):
        codec.connectivity.check_faces(faces.roll(1, 1), "b.ply")


def test_a_flat_mesh_needs_its_normals() -> None:
    vertices = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]).double()
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    with pytest.raises(InputError, match="neighbourhood of vertex 0 is flat"):
        AcapCodec(vertices, faces, normal_share=0.0)
    codec = AcapCodec(vertices, faces)
    turned = (vertices @ axis_angle_to_matrix(torch.tensor([1.0, 2.0, 0.5]).double()).T)[None]
    torch.testing.assert_close(codec.reconstruct(codec.extract(turned), ([0], turned[:, :1])), turned)


# -- coarse features and scaling


def test_coarse_features_are_the_best_maps_of_parts(codec: AcapCodec) -> None:
    vertices, part = deformed(), (torch.arange(42) % 3 == 0).long()
    got = to_affine(part_features(vertices, codec.extract(vertices), mesh()[0], part))
    for k in range(2):
        q, p = mesh()[0][part == k], vertices[:, part == k]
        q, p = q - q.mean(0), p - p.mean(1, keepdim=True)
        wanted = torch.stack([torch.linalg.lstsq(q, one).solution.T for one in p])
        torch.testing.assert_close(got[:, k], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("turns", [-2, -1, 0, 1, 2])
def test_coarse_rotations_have_the_turns_of_their_vertices(turns: int) -> None:
    axis = torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64)
    angle = 1.3 + 2 * torch.pi * turns
    features = torch.cat([(axis * angle).expand(1, 42, 3), torch.zeros(1, 42, 6)], -1)
    vertices = mesh()[0] @ axis_angle_to_matrix(1.3 * axis).T
    got = part_features(vertices[None], features, mesh()[0], torch.zeros(42, dtype=torch.int64))
    torch.testing.assert_close(got[0, 0, :3], axis * angle, rtol=0, atol=1e-8)
    with pytest.raises(InputError, match="part 1: its vertices lie in a plane"):
        part_features(vertices[None], features, mesh()[0], (torch.arange(42) < 3).long())
    with pytest.raises(InputError, match="parts of 41"):
        part_features(vertices[None], features, mesh()[0], torch.zeros(41, dtype=torch.int64))


def test_scaling_fills_its_range_and_inverts() -> None:
    features = randn(20, 5, 9)
    features[:, 2, 3] = 7.0
    scaling = FeatureScaling.fit(features)
    scaled = scaling.scale(features)
    changing = torch.ones(5, 9, dtype=torch.bool)
    changing[2, 3] = False
    torch.testing.assert_close(scaled.amax(0)[changing], torch.full((44,), 0.95).double())
    torch.testing.assert_close(scaled.amin(0)[changing], torch.full((44,), -0.95).double())
    assert (scaled[:, 2, 3] == 0).all()
    torch.testing.assert_close(scaling.unscale(scaled), features)
    with pytest.raises(TrainingError, match="not finite"):
        FeatureScaling.fit(features / 0)


# -- the released model


@pytest.mark.skipif(not PARITY.exists(), reason=f"parity kit absent: {PARITY}")
def test_features_to_points_as_released() -> None:
    gold = {k: torch.from_numpy(v) for k, v in np.load(PARITY).items()}
    points = ReleasedPoints(gold["verts"], gold["half_edges"], gold["edge_weights"], gold["pA"])
    features = gold["acap"].view(2, 42, 9)
    torch.testing.assert_close(points.right_side(features), gold["rhs"], rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(points.reconstruct(features), gold["points_median"], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(points.reconstruct(features, anchor=7), gold["points_anchor7"], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(axis_angle_to_matrix(features[..., :3]), gold["rotations"], rtol=1e-5, atol=1e-5)
    with pytest.raises(AssetError, match="take all from one model"):
        ReleasedPoints(gold["verts"][1:], gold["half_edges"], gold["edge_weights"], gold["pA"])
