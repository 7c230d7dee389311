"""The free body and the body model: geometry, derivatives, keypoints, symmetry, labels."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_core.errors import UsageError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.skeletons import SKELETONS, SMPL24
from recon_core.structures import BodyParameters
from recon_std.bodies import ANATOMICAL_PARTS, SMPLBody, face_labels, load_body, mirrored
from recon_std.bodies.library import SHIPPED, body_files


@pytest.fixture(scope="module")
def body() -> SMPLBody:
    return load_body("free", torch.float64)


def bodies(count: int, seed: int = 0, bend: float = 0.5, dtype: torch.dtype = torch.float64) -> BodyParameters:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    pose = axis_angle_to_matrix(bend * draw(count, 24, 3))
    return BodyParameters(pose, draw(count, 10), draw(count, 3)).to(dtype)


def rest(body: SMPLBody, count: int = 1) -> BodyParameters:
    zeros = body.template.new_zeros
    return BodyParameters(torch.eye(3).to(body.template).expand(count, 24, 3, 3), zeros(count, 10), zeros(count, 3))


def joint(points: torch.Tensor, name: str, skeleton: str = "smpl24") -> torch.Tensor:
    return points[..., SKELETONS[skeleton].index(name), :]


# -- the shipped bodies


def test_rest_is_a_t_pose_in_metres(body: SMPLBody) -> None:
    joints = body.joints(rest(body))[0]
    assert joint(joints, "pelvis").norm() < 1e-6
    for sign, side in ((1, "left"), (-1, "right")):
        shoulder, elbow, wrist, hand = (joint(joints, f"{side}_{n}") for n in ("shoulder", "elbow", "wrist", "hand"))
        for a, b in ((shoulder, elbow), (elbow, wrist), (wrist, hand)):
            along = (b - a) / (b - a).norm()
            assert along[0] * sign > 0.999
        hip, knee, ankle, foot = (joint(joints, f"{side}_{n}") for n in ("hip", "knee", "ankle", "foot"))
        for a, b in ((hip, knee), (knee, ankle)):
            assert ((b - a) / (b - a).norm())[1] < -0.995
        assert foot[2] - ankle[2] > 0.1
        assert sign * hip[0] > 0.05
    vertices = body(rest(body)).vertices[0]
    extent = vertices.amax(0) - vertices.amin(0)
    assert 1.6 < extent[1] < 1.8
    assert 1.5 < extent[0] < 1.9
    assert joint(joints, "head")[1] > joint(joints, "neck")[1] > joint(joints, "spine3")[1] > 0.2


def test_palms_look_down_and_feet_are_flat(body: SMPLBody) -> None:
    parameters = rest(body)
    points = body.keypoints(parameters, "blazepose33")[0]
    for side in ("left", "right"):
        index, pinky, thumb = (joint(points, f"{side}_{n}", "blazepose33") for n in ("index", "pinky", "thumb"))
        assert index[2] - pinky[2] > 0.04
        assert abs(index[1] - pinky[1]) < 0.005
        assert thumb[2] > pinky[2]
        assert thumb[1] < index[1] + 0.005
        heel, toe = (joint(points, f"{side}_{n}", "blazepose33") for n in ("heel", "big_toe"))
        floor = body.template[:, 1].min()
        assert toe[2] - heel[2] > 0.18
        assert max(heel[1], toe[1]) - floor < 0.04


@pytest.mark.parametrize("name", ["free", "free-full"])
def test_mesh_is_closed_and_faces_look_outward(name: str) -> None:
    model = load_body(name, torch.float64)
    faces = model.faces
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forward = edges[:, 0] * model.vertex_count + edges[:, 1]
    backward = edges[:, 1] * model.vertex_count + edges[:, 0]
    assert len(forward.unique()) == len(forward)
    assert torch.equal(forward.sort().values, backward.sort().values)
    a, b, c = model.template[faces].unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum() / 6
    assert 0.05 < volume < 0.09  # cubic metres of an adult
    assert torch.linalg.cross(b - a, c - a).norm(dim=-1).min() > 1e-9


def test_sizes_are_those_promised() -> None:
    small, full = load_body("free"), load_body("free-full")
    assert 6800 <= small.vertex_count <= 7100
    assert full.faces.shape == (27420, 3)
    assert small.shape_count == full.shape_count == 10
    assert all(path.stat().st_size < 3e6 for path in SHIPPED.glob("*.npz"))
    assert {"free", "free-full"} <= body_files().keys()


def test_both_resolutions_are_one_body(body: SMPLBody) -> None:
    full, some = load_body("free-full", torch.float64), bodies(3)
    torch.testing.assert_close(full.joints(some), body.joints(some), atol=2e-6, rtol=0)
    for skeleton in SKELETONS:
        torch.testing.assert_close(full.keypoints(some, skeleton), body.keypoints(some, skeleton), atol=5e-6, rtol=0)
    small, large = body(some).vertices[0], full(some).vertices[0]
    assert torch.cdist(small, large).min(1).values.max() < 1e-5


def test_texture_triangles_are_proper(body: SMPLBody) -> None:
    assert body.uv.min() >= 0
    assert body.uv.max() <= 1
    assert body.uv_faces.shape == body.faces.shape
    a, b, c = body.uv[body.uv_faces].unbind(1)
    area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
    assert area.min() > 0
    assert area.sum() / 2 < 1  # no two charts can cover the whole square twice
    # One vertex has one texture coordinate per chart, and no texture coordinate belongs to two vertices.
    owner = torch.full((len(body.uv),), -1)
    owner[body.uv_faces] = body.faces
    assert torch.equal(owner[body.uv_faces], body.faces)


def test_rows_sum_to_one(body: SMPLBody) -> None:
    torch.testing.assert_close(body.weights.sum(1), torch.ones(body.vertex_count).double(), atol=1e-6, rtol=0)
    assert body.weights.min() >= 0
    assert ((body.weights > 0).sum(1) <= 8).all()
    ones = torch.ones(1, body.vertex_count, 3).double()
    for skeleton in SKELETONS:
        torch.testing.assert_close(
            body.regress(ones, skeleton), torch.ones(1, len(SKELETONS[skeleton]), 3).double(), atol=1e-6, rtol=0
        )


def test_landmarks_lie_where_their_names_say(body: SMPLBody) -> None:
    parameters = rest(body)
    points = body.keypoints(parameters, "blazepose33")[0]
    at = {name: points[i] for i, name in enumerate(SKELETONS["blazepose33"].joints)}
    lsp = body.keypoints(parameters, "lsp14")[0]
    front = body.template[body.parts == SMPL24.index("head"), 2].max()
    assert front - at["nose"][2] < 1e-6
    assert abs(at["nose"][0]) < 1e-6
    assert at["left_eye_inner"][0] < at["left_eye"][0] < at["left_eye_outer"][0] < at["left_ear"][0]
    assert at["left_mouth"][1] < at["nose"][1] < at["left_eye"][1]
    assert at["left_ear"][2] < at["left_eye_outer"][2]
    assert joint(lsp, "head_top", "lsp14")[1] == body.template[:, 1].max()
    body25 = body.keypoints(parameters, "openpose25")[0]
    for side in ("left", "right"):
        big, small = (joint(body25, f"{side}_{t}_toe", "openpose25") for t in ("big", "small"))
        assert small[0].abs() > big[0].abs() + 0.03
    middle = (joint(body25, "left_hip", "openpose25") + joint(body25, "right_hip", "openpose25")) / 2
    torch.testing.assert_close(joint(body25, "mid_hip", "openpose25"), middle)


# -- shape


def test_rest_body_is_linear_in_betas(body: SMPLBody) -> None:
    a, b = bodies(2).betas.split(1)
    zero = torch.zeros_like(a)
    for function in (body.rest_vertices, body.rest_joints):
        torch.testing.assert_close(
            function(a + 2 * b) - function(zero), function(a) + 2 * function(b) - 3 * function(zero)
        )
    torch.testing.assert_close(body.rest_joints(a), body.regress(body.rest_vertices(a), "smpl24"), atol=1e-9, rtol=0)


def test_pelvis_rests_at_the_origin_in_every_shape(body: SMPLBody) -> None:
    assert body.rest_joints(3 * bodies(20).betas)[:, 0].norm(dim=-1).max() < 1e-4


def test_fewer_betas_leave_the_rest_at_zero_and_more_are_refused(body: SMPLBody) -> None:
    some = bodies(2)
    short = BodyParameters(some.pose, some.betas[:, :4], some.translation)
    padded = BodyParameters(some.pose, torch.cat([some.betas[:, :4], torch.zeros(2, 6).double()], 1), some.translation)
    torch.testing.assert_close(body(short).vertices, body(padded).vertices)
    torch.testing.assert_close(body.keypoints(short, "coco17"), body.keypoints(padded, "coco17"))
    with pytest.raises(UsageError, match="10 shape directions, got 11"):
        body(BodyParameters(some.pose, torch.zeros(2, 11).double(), some.translation))


def test_betas_are_in_standard_deviations_of_adults(body: SMPLBody) -> None:
    vertices = body.rest_vertices(torch.randn(500, 10, generator=torch.Generator().manual_seed(0)).double())
    height = vertices[..., 1].amax(1) - vertices[..., 1].amin(1)
    assert 1.62 < height.mean() < 1.75
    assert 0.07 < height.std() < 0.13
    taller = body.rest_vertices(torch.eye(10).double()[:1])[0]
    assert taller[:, 1].max() - taller[:, 1].min() > body.template[:, 1].max() - body.template[:, 1].min() + 0.05


# -- pose


def test_kinematics_follow_the_definition(body: SMPLBody) -> None:
    some = bodies(4, bend=1.0)
    rotation, joints, rest_joints = body.kinematics(some)
    for p, parent in enumerate(body.parents):
        if parent < 0:
            torch.testing.assert_close(rotation[:, p], some.pose[:, p])
            torch.testing.assert_close(joints[:, p], rest_joints[:, p] + some.translation)
        else:
            torch.testing.assert_close(rotation[:, p], rotation[:, parent] @ some.pose[:, p])
            offset = (rest_joints[:, p] - rest_joints[:, parent])[..., None]
            torch.testing.assert_close(joints[:, p], joints[:, parent] + (rotation[:, parent] @ offset)[..., 0])


def test_skinning_follows_the_definition(body: SMPLBody) -> None:
    some = bodies(11)  # more than a block
    out = body(some)
    rotation, joints, rest_joints = body.kinematics(some)
    offset = body.rest_vertices(some.betas)[:, None] - rest_joints[:, :, None]
    by_part = torch.einsum("bpij,bpvj->bpvi", rotation, offset) + joints[:, :, None]
    torch.testing.assert_close(out.vertices, torch.einsum("vp,bpvi->bvi", body.weights, by_part))
    torch.testing.assert_close(out.joints, joints)
    moved = (out.transforms[..., :3] @ rest_joints[..., None])[..., 0] + out.transforms[..., 3]
    torch.testing.assert_close(moved, joints)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_turning_the_root_turns_the_whole_body(body: SMPLBody, seed: int) -> None:
    some = bodies(1, seed)
    turn = axis_angle_to_matrix(torch.randn(3, generator=torch.Generator().manual_seed(seed)).double())
    turned = BodyParameters(
        torch.cat([(turn @ some.pose[:, 0])[:, None], some.pose[:, 1:]], 1), some.betas, some.translation
    )
    a, b = body(some), body(turned)
    root_a, root_b = a.joints[:, :1], b.joints[:, :1]
    torch.testing.assert_close(b.vertices - root_b, (a.vertices - root_a) @ turn.T)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_mirrored_pose_gives_the_mirrored_mesh(body: SMPLBody, seed: int) -> None:
    some = bodies(1, seed)
    flip = torch.tensor([-1.0, 1.0, 1.0]).double()
    assert body.mirror is not None
    a, b = body(some), body(mirrored(some))
    torch.testing.assert_close(b.vertices, a.vertices[:, body.mirror] * flip, atol=5e-6, rtol=0)
    torch.testing.assert_close(b.joints, a.joints[:, list(SMPL24.mirror)] * flip, atol=5e-6, rtol=0)
    for name, skeleton in SKELETONS.items():
        torch.testing.assert_close(
            body.keypoints(mirrored(some), name),
            body.keypoints(some, name)[:, list(skeleton.mirror)] * flip,
            atol=5e-6,
            rtol=0,
        )


def test_derivatives(body: SMPLBody) -> None:
    generator = torch.Generator().manual_seed(0)
    angles = (0.4 * torch.randn(1, 24, 3, generator=generator)).double().requires_grad_()
    betas = torch.randn(1, 10, generator=generator).double().requires_grad_()
    shift = torch.randn(1, 3, generator=generator).double().requires_grad_()

    def seen(angles: torch.Tensor, betas: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, ...]:
        some = BodyParameters(axis_angle_to_matrix(angles), betas, shift)
        out = body(some)
        return out.vertices[:, ::900], out.joints[:, ::5], body.keypoints(some, "coco17")[:, ::5], out.transforms[:, -1]

    assert torch.autograd.gradcheck(seen, (angles, betas, shift))


def test_every_parameter_moves_the_mesh(body: SMPLBody) -> None:
    some = bodies(2)
    leaves = [t.clone().requires_grad_() for t in (some.pose, some.betas, some.translation)]
    weight = torch.randn(2, body.vertex_count, 3, generator=torch.Generator().manual_seed(1)).double()
    gradients = torch.autograd.grad((body(BodyParameters(*leaves)).vertices * weight).sum(), leaves)
    for gradient in gradients:
        assert (gradient.flatten(2 if gradient.dim() == 4 else 1).abs().amax(-1) > 0).all()


# -- keypoints


@pytest.mark.parametrize("skeleton", [s for s in SKELETONS if s != "smpl24"])
def test_keypoints_are_those_of_the_skinned_mesh(body: SMPLBody, skeleton: str) -> None:
    some = bodies(5, bend=1.0)
    expected = body.regress(body(some).vertices, skeleton)
    torch.testing.assert_close(body.keypoints(some, skeleton), expected, atol=1e-9, rtol=0)
    basis, c = body.keypoint_basis(skeleton)
    rotation, joints, rest_joints = body.kinematics(some)
    b = basis[..., 0] + torch.einsum("kpis,bs->bkpi", basis[..., 1:], some.betas)
    carried = torch.einsum("bpij,bkpj->bki", rotation, b - c[..., None] * rest_joints[:, None])
    torch.testing.assert_close(carried + torch.einsum("kp,bpi->bki", c, joints), expected, atol=1e-9, rtol=0)


def test_smpl24_keypoints_are_the_kinematic_joints(body: SMPLBody) -> None:
    some = bodies(5, bend=0.3)
    torch.testing.assert_close(body.keypoints(some, "smpl24"), body.joints(some))
    again = body.regress(body(some).vertices, "smpl24")
    error = (again - body.joints(some)).norm(dim=-1)
    assert error.max() < 0.02
    assert (
        error[
            :, [SMPL24.index(f"{s}_{j}") for s in ("left", "right") for j in ("knee", "ankle", "elbow", "wrist")]
        ].max()
        < 0.002
    )


def test_unknown_skeleton_is_named(body: SMPLBody) -> None:
    for call in (
        lambda: body.keypoints(rest(body), "coco18"),
        lambda: body.regress(body(rest(body)).vertices, "coco18"),
    ):
        with pytest.raises(UsageError, match="did you mean 'coco17'"):
            call()


# -- labels


def test_labels_cover_the_body(body: SMPLBody) -> None:
    assert set(body.parts.tolist()) == set(range(24))
    assert set(body.anatomy.tolist()) == set(range(len(ANATOMICAL_PARTS))) == set(range(16))
    assert set(body.torso.tolist()) == {0, 1, 2}
    x = body.template[:, 0]
    for i, name in enumerate(ANATOMICAL_PARTS):
        side = {"left": 1, "right": -1}.get(name.partition("_")[0])
        if side:
            assert (x[body.anatomy == i] * side > -0.02).all(), name
    trunk = torch.isin(body.anatomy, torch.tensor([ANATOMICAL_PARTS.index(p) for p in ("chest", "abdomen", "pelvis")]))
    assert torch.equal(body.torso > 0, trunk)
    z = body.template[:, 2]
    assert z[body.torso == 1].mean() > 0.05 > -0.03 > z[body.torso == 2].mean()
    assert body.mirror is not None
    swapped = torch.tensor(SMPL24.mirror)[body.parts]
    agree = (body.parts[body.mirror] == swapped).double().mean()
    assert agree > 0.995  # the midline belongs to one of two equal sides


def test_face_labels_take_the_majority() -> None:
    labels = face_labels(np.array([3, 3, 7, 9]), np.array([[0, 1, 2], [2, 0, 1], [0, 2, 1], [0, 2, 3]]))
    assert labels.tolist() == [3, 3, 3, 3]


# -- as a module


def test_rows_are_independent_and_none_is_fine(body: SMPLBody) -> None:
    some = bodies(9)
    torch.testing.assert_close(body(some[4:5]).vertices, body(some).vertices[4:5])
    nobody = some[:0]
    assert body(nobody).vertices.shape == (0, body.vertex_count, 3)
    assert body.keypoints(nobody, "lsp14").shape == (0, 14, 3)


def test_single_precision_is_good_to_a_hundredth_of_a_millimetre(body: SMPLBody) -> None:
    some = bodies(4)
    single = load_body("free")
    out = single(some.to(torch.float32))
    assert out.vertices.dtype == torch.float32
    torch.testing.assert_close(out.vertices.double(), body(some).vertices, atol=1e-5, rtol=0)


def test_copies_and_pickles_are_the_same_body(body: SMPLBody) -> None:
    some = bodies(2)
    expected = body.keypoints(some, "coco17")
    for other in (copy.deepcopy(body), pickle.loads(pickle.dumps(body))):
        assert torch.equal(other.keypoints(some, "coco17"), expected)
        assert (other.name, other.parents) == (body.name, body.parents)
    assert not body.state_dict()


def test_cached_bases_follow_the_precision() -> None:
    model = load_body("free")
    assert model.keypoint_basis("coco17")[0].dtype == torch.float32
    model.double()
    assert model.keypoint_basis("coco17")[0].dtype == torch.float64


def test_first_used_in_inference_mode_it_still_trains() -> None:
    with torch.inference_mode():
        model = load_body("free")
        model.keypoints(bodies(1, dtype=torch.float32), "coco17")
    some = bodies(1, dtype=torch.float32)
    pose = some.pose.clone().requires_grad_()
    model.keypoints(BodyParameters(pose, some.betas, some.translation), "coco17").sum().backward()
    assert pose.grad is not None
