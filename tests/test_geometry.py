"""Rotations, cameras, crops and alignment: against inverses, invariances and the parity kit's numbers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_core.geometry import alignment, cameras, rotations
from recon_core.metrics import mask_iou, mpjpe, pa_mpjpe, pck
from recon_core.structures import Camera, Keypoints

PARITY = Path(os.environ.get("RECON_PARITY_DIR", Path(__file__).parents[2] / "shared" / "parity" / "a"))


@pytest.fixture(scope="module")
def golden():
    file = PARITY / "geometry.golden.npz"
    if not file.exists():
        pytest.skip(f"parity kit not at {PARITY}")
    data = np.load(file)
    return {name: torch.from_numpy(np.array(data[name])) for name in data.files}


vectors = st.lists(st.floats(-4, 4, width=64), min_size=3, max_size=3).map(
    lambda v: torch.tensor([v], dtype=torch.float64)
)


@settings(deadline=None, max_examples=60)
@given(vectors)
def test_axis_angle_round_trip_gives_the_same_rotation(v):
    R = rotations.axis_angle_to_matrix(v)
    torch.testing.assert_close(R @ R.mT, torch.eye(3).to(R)[None])
    torch.testing.assert_close(
        rotations.axis_angle_to_matrix(rotations.matrix_to_axis_angle(R)), R, atol=1e-12, rtol=0
    )
    for layout in ("columns", "rows"):
        six = rotations.matrix_to_rotation_6d(R, layout)
        torch.testing.assert_close(rotations.rotation_6d_to_matrix(six, layout), R)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, np.pi - 1e-7])
def test_axis_angle_is_accurate_and_differentiable_at_every_angle(angle):
    axis = torch.tensor([[0.36, -0.48, 0.8]], dtype=torch.float64)
    v = (axis * angle).requires_grad_()
    expected = torch.linalg.matrix_exp(rotations.skew(v.detach()))
    torch.testing.assert_close(rotations.axis_angle_to_matrix(v), expected, atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(rotations.axis_angle_to_matrix, (v,))
    torch.testing.assert_close(rotations.matrix_to_axis_angle(expected), v.detach(), atol=1e-9, rtol=0)


def test_float32_axis_angle_stays_within_single_precision():
    v = (
        torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-6, 0.4, 4000)[:, None]
    )
    exact = rotations.axis_angle_to_matrix(v.double())
    assert (rotations.axis_angle_to_matrix(v) - exact).abs().max() < 5e-7
    assert rotations.geodesic_distance(rotations.axis_angle_to_matrix(v).double(), exact).max() < 2e-6


def test_quaternion_product_is_the_product_of_rotations():
    q = torch.randn(2, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    A, B = rotations.quaternion_to_matrix(q)
    torch.testing.assert_close(rotations.quaternion_to_matrix(rotations.quaternion_multiply(*q)), A @ B)


def test_projection_to_rotation_is_the_nearest_one():
    g = torch.Generator().manual_seed(2)
    M = torch.randn(20, 3, 3, dtype=torch.float64, generator=g)
    R = rotations.project_to_rotation(M)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(20, dtype=torch.float64))
    others = rotations.axis_angle_to_matrix(torch.randn(500, 1, 3, dtype=torch.float64, generator=g) * 2)
    assert ((others - M).square().sum((-1, -2)) >= (R - M).square().sum((-1, -2)) - 1e-12).all()


def test_rotations_agree_with_the_parity_kit(golden):
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-6, rtol=0)  # noqa: E731
    close(rotations.rotation_6d_to_matrix(golden["rot6d/in"], "rows"), golden["rot6d/spin"])
    close(rotations.rotation_6d_to_matrix(golden["rot6d/in"], "rows"), golden["rot6d/multiperson"])
    close(rotations.rotation_6d_to_matrix(golden["rot6d/in"], "columns"), golden["rot6d/prohmr"])
    close(rotations.axis_angle_to_matrix(golden["axis_angle/in"]), golden["axis_angle/rotmat"])
    close(
        rotations.quaternion_multiply(golden["umr/camera"][:, 3:], golden["umr/quat_b"]),
        golden["umr/hamilton_camquat_b"],
    )
    R = rotations.quaternion_to_matrix(golden["umr/camera"][:, 3:])
    close(golden["umr/points"] @ R.mT, golden["umr/rotated"])


def test_projection_agrees_with_the_parity_kit(golden):
    points, R, t = (
        golden["perspective/points"],
        golden["perspective/rotation"],
        golden["perspective/translation"],
    )
    for name, focal in (
        ("spin_f5000", torch.full((2, 2), 5000.0)),
        ("prohmr", golden["perspective/prohmr_focal"]),
    ):
        K = torch.diag_embed(torch.cat([focal, torch.ones(2, 1)], 1))
        K[:, :2, 2] = golden["perspective/center"]
        camera = Camera(K, R, t, (224, 224))
        torch.testing.assert_close(
            camera.project(points), golden[f"perspective/{name}"], rtol=1e-5, atol=2e-3
        )
    torch.testing.assert_close(
        cameras.weak_perspective_to_translation(golden["weak_perspective/in"], 5000.0, 224.0),
        golden["weak_perspective/translation_f5000_r224"],
    )
    s = golden["weak_perspective/in"][:2]
    camera = Camera.weak_perspective(s[:, 0], s[:, 1:], (2, 2))
    torch.testing.assert_close(camera.project(points) - 1, golden["weak_perspective/graphcmr_orthographic"])


def test_translation_and_alignment_agree_with_the_parity_kit(golden):
    K = torch.tensor([[5000.0, 0, 112], [0, 5000, 112], [0, 0, 1]])[None]
    t = cameras.estimate_translation(
        *(golden[f"estimate_translation/{n}"][None].double() for n in ("joints3d", "joints2d", "conf")),
        K.double(),
    )
    torch.testing.assert_close(t[0].float(), golden["estimate_translation/out"], rtol=1e-4, atol=1e-4)
    pred, gt = golden["procrustes/pred"].double(), golden["procrustes/gt"].double()
    aligned = alignment.similarity_alignment(pred, gt)(pred)
    torch.testing.assert_close(aligned.float(), golden["procrustes/pred_aligned"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        pa_mpjpe(pred, gt).float() / 1000, golden["procrustes/error_per_sample"].float(), rtol=1e-4, atol=1e-6
    )


def test_crop_agrees_with_the_parity_kit_up_to_the_pixel_centre(golden):
    centers = golden["prohmr_crop/center_size"]
    box = torch.stack(
        [centers[:, 0] - centers[:, 2] / 2, centers[:, 1] - centers[:, 2] / 2, *[centers[:, 2]] * 2], 1
    )
    # The published affine maps the box centre to 112 as ours does: both count from the picture's corner.
    torch.testing.assert_close(
        cameras.crop_affine(box, 224), golden["prohmr_crop/affine"].float(), rtol=1e-4, atol=1e-3
    )


def test_similarity_alignment_recovers_a_similarity_and_never_reflects():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(5, 14, 3, dtype=torch.float64, generator=g)
    R = rotations.axis_angle_to_matrix(torch.randn(5, 3, dtype=torch.float64, generator=g))
    y = 1.7 * x @ R.mT + torch.randn(5, 1, 3, dtype=torch.float64, generator=g)
    fit = alignment.similarity_alignment(x, y)
    torch.testing.assert_close(fit.R, R)
    torch.testing.assert_close(fit(x), y)
    assert pa_mpjpe(x, y).max() < 1e-9
    mirrored = x * torch.tensor([-1.0, 1, 1]).to(x)
    assert (torch.linalg.det(alignment.similarity_alignment(x, mirrored).R) > 0).all()
    assert pa_mpjpe(x, mirrored).min() > 100
    rigid = alignment.similarity_alignment(x, y, with_scale=False)
    torch.testing.assert_close(rigid.scale, torch.ones(5, dtype=torch.float64))


def test_weights_of_zero_leave_points_out_of_the_alignment():
    g = torch.Generator().manual_seed(4)
    x = torch.randn(2, 10, 3, dtype=torch.float64, generator=g)
    y = x + 2.0
    y[:, 0] += 100
    weights = torch.ones(2, 10, dtype=torch.float64)
    weights[:, 0] = 0
    torch.testing.assert_close(alignment.similarity_alignment(x, y, weights)(x)[:, 1:], y[:, 1:])


def test_full_translation_projects_as_the_crop_camera_at_the_body_origin():
    K = torch.tensor([[900.0, 0, 320], [0, 900, 240], [0, 0, 1]])[None]
    camera = torch.tensor([[0.9, 0.1, -0.2]])
    center, side = torch.tensor([[500.0, 100.0]]), torch.tensor([200.0])
    t = cameras.crop_to_full_translation(camera, center, side, K)
    pixel = Camera(K, torch.eye(3)[None], t, (640, 480)).project(torch.zeros(1, 1, 3))[0, 0]
    expected = center[0] + camera[0, 0] * camera[0, 1:] * side / 2
    torch.testing.assert_close(pixel, expected, atol=1e-2, rtol=0)


def test_warp_reads_the_pixels_the_affine_names():
    image = torch.arange(5 * 7, dtype=torch.float64).reshape(1, 1, 5, 7)
    shift = torch.tensor([[[1.0, 0, -2], [0, 1, -1]]], dtype=torch.float64)
    torch.testing.assert_close(cameras.warp_image(image, shift, (4, 3)), image[:, :, 1:4, 2:6])
    box = torch.tensor([[1.0, 0, 4, 4]], dtype=torch.float64)
    affine = cameras.crop_affine(box, 4)
    torch.testing.assert_close(cameras.warp_image(image, affine, (4, 4)), image[:, :, 0:4, 1:5])
    points = torch.rand(1, 9, 2, dtype=torch.float64)
    back = cameras.transform_points(cameras.invert_affine(affine), cameras.transform_points(affine, points))
    torch.testing.assert_close(back, points)
    outside = cameras.warp_image(image, torch.tensor([[[1.0, 0, 50], [0, 1, 0]]]).double(), (4, 4))
    assert outside.abs().max() == 0


def test_cropped_camera_projects_to_the_crop():
    camera = Camera.perspective(500.0, (640, 480), batch=2)
    points = torch.rand(2, 6, 3) + torch.tensor([0, 0, 3.0])
    affine = cameras.crop_affine(torch.tensor([[10.0, 20, 100, 50], [0, 0, 640, 480]]), 224, 1.2)
    torch.testing.assert_close(
        camera.cropped(affine, (224, 224)).project(points),
        cameras.transform_points(affine, camera.project(points)), rtol=1e-5, atol=1e-3,
    )  # fmt: skip


def test_metrics_on_known_errors():
    truth = torch.randn(3, 14, 3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(mpjpe(truth + torch.tensor([0.03, 0.04, 0]), truth), torch.full((3,), 50.0))
    assert mpjpe(truth + torch.tensor([0.03, 0.04, 0]), truth, root=(2, 3)).max() < 1e-3
    points = torch.zeros(1, 14, 2)
    points[0, 8] = torch.tensor([0.0, 0.0])
    points[0, 3] = torch.tensor([0.0, 100.0])
    seen = torch.ones(1, 14)
    seen[0, 5] = 0
    moved = points.clone()
    moved[0, 0, 0] = 19.0
    moved[0, 1, 0] = 21.0
    lost = torch.ones(1, 14)
    lost[0, 2] = 0
    hits = pck(Keypoints(moved, lost, "lsp14"), Keypoints(points, seen, "lsp14"))[0]
    assert hits[0] == 1
    assert hits[1] == 0
    assert hits[2] == 0
    assert torch.isnan(hits[5])
    square = torch.zeros(2, 1, 8, 8)
    square[0, :, :4] = 1
    half = square.clone()
    half[0, :, 2:4] = 0
    torch.testing.assert_close(mask_iou(half, square), torch.tensor([0.5, 1.0]))
