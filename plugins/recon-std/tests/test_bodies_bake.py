"""The tools that bake the free body, on small meshes; and what they make of Anny, where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recon_core.skeletons import SMPL24
from recon_std.bodies import load_body

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("scipy")

from recon_std.bodies import bake_anny, tpose  # noqa: E402
from recon_std.bodies.data import load_body_file  # noqa: E402
from recon_std.bodies.decimate import decimate  # noqa: E402
from recon_std.bodies.diffusion import diffused  # noqa: E402
from recon_std.bodies.library import SHIPPED  # noqa: E402
from recon_std.bodies.regressors import interior_point  # noqa: E402


@pytest.fixture(scope="module")
def ball() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, faces and mirror pairs of a sphere symmetric about x = 0, made of two mirrored halves."""
    sphere = trimesh.creation.uv_sphere(count=[24, 24])
    points, faces = np.round(sphere.vertices, 9), sphere.faces
    order = np.lexsort(points.T)
    mirror = np.empty(len(points), int)
    mirror[np.lexsort((points * [-1, 1, 1]).T)] = order
    centre = points[faces].mean(1)[:, 0]
    half = faces[centre > 0]
    return points, np.concatenate([half, mirror[half][:, ::-1]]), mirror


@pytest.fixture(scope="module")
def charts(ball: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates in two charts, front (z > 0) and back, meeting in a seam."""
    points, faces, _ = ball
    front = points[faces].mean(1)[:, 2] > 0
    uv = np.concatenate([points[:, :2] / 4 + [0.3, 0.5], points[:, :2] * [-0.25, 0.25] + [0.7, 0.5]])
    # Bulge the charts so that no triangle at the rim has zero area.
    depth = np.concatenate([points[:, 2], -points[:, 2]])
    uv += np.concatenate([points[:, :2], points[:, :2] * [-1, 1]]) * (-0.1 * depth)[:, None]
    return uv, faces + np.where(front, 0, len(points))[:, None]


def uv_areas(uv: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b = uv[faces[:, 1]] - uv[faces[:, 0]], uv[faces[:, 2]] - uv[faces[:, 0]]
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def test_simplification_keeps_shape_symmetry_and_charts(ball, charts) -> None:
    points, faces, mirror = ball
    uv, uv_faces = charts
    assert (uv_areas(uv, uv_faces) > 0).all()
    importance = np.ones(len(points))
    locked = [int(points[:, 1].argmax()), int(points[:, 0].argmax())]
    importance[locked] = np.inf
    importance[mirror[locked]] = np.inf
    kept, new_faces, new_uv_faces = decimate(points, faces, uv, uv_faces, mirror, importance, 200)
    assert 195 <= len(kept) <= 200
    assert set(locked) <= set(kept.tolist())
    mesh = trimesh.Trimesh(points, new_faces, process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2
    assert 0.95 < mesh.volume / trimesh.Trimesh(points, faces, process=False).volume <= 1
    np.testing.assert_array_equal(np.unique(mirror[kept]), kept)
    triangles = {tuple(sorted(face)) for face in new_faces.tolist()}
    assert all(tuple(sorted(mirror[list(face)].tolist())) in triangles for face in triangles)
    # Texture: still one coordinate a vertex and chart, no flipped triangle, the seam where it was.
    assert (uv_areas(uv, new_uv_faces) > 0).all()
    np.testing.assert_array_equal(new_uv_faces % len(points), new_faces)
    side = new_uv_faces >= len(points)
    np.testing.assert_array_equal(side.all(1), side.any(1))
    whole, left = uv_areas(uv, uv_faces).sum(), uv_areas(uv, new_uv_faces).sum()
    assert 0.93 < left / whole < 1.05


def test_important_regions_keep_their_vertices(ball, charts) -> None:
    points, faces, mirror = ball
    importance = np.where(points[:, 1] > 0, 1000.0, 1.0)
    kept, _, _ = decimate(points, faces, *charts, mirror, importance, 350)
    above = points[kept, 1] > 0
    assert above.sum() > 2 * (~above).sum()


def test_diffusion_keeps_sums_ranges_and_totals(ball) -> None:
    points, faces, _ = ball
    values = np.stack([points[:, 2] > 0.5, points[:, 2] <= 0.5], 1).astype(float)
    smooth = diffused(values, points, faces, 0.2)
    np.testing.assert_allclose(smooth.sum(1), 1)
    assert smooth.min() >= 0
    # A step of 0.2 is felt at that distance and hardly at four times it.
    band = np.abs(points[:, 2] - 0.5) < 0.1
    assert 0.2 < smooth[band, 0].mean() < 0.8
    assert smooth[points[:, 2] < -0.4, 0].max() < 0.02
    np.testing.assert_allclose(diffused(values, points, faces, 1e-6), values, atol=1e-6)


def test_a_joint_is_found_in_every_shape_and_pose() -> None:
    """A limb of two stiff parts: the joint in its middle stays when they bend about it, and follows the shape."""
    generator = np.random.default_rng(0)
    angle, along = np.meshgrid(np.linspace(0, 2 * np.pi, 16, endpoint=False), np.linspace(-0.3, 0.3, 31))
    tube = np.stack([along, 0.06 * np.cos(angle), 0.05 * np.sin(angle)], -1).reshape(-1, 3)
    longer = np.stack([tube[:, 0], 0 * tube[:, 0], 0.02 + 0 * tube[:, 0]], 1)
    shapes = np.stack([tube, 0.1 * longer, 0.1 * tube])
    bend = 1 / (1 + np.exp(-tube[:, 0] / 0.02))
    weights = np.stack([1 - bend, bend], 1)
    joint = np.array([0.01, 0.01, 0.0])
    candidates = np.argsort(np.linalg.norm(tube - joint, axis=1))[:200]
    w = interior_point(joint, shapes, weights, candidates)
    assert w.min() >= 0
    assert abs(w.sum() - 1) < 1e-12
    np.testing.assert_allclose(w @ tube, joint, atol=5e-4)
    moved = np.einsum("v,mvi->mi", w, shapes[1:])
    np.testing.assert_allclose(moved, [0.1 * np.array([joint[0], 0, 0.02]), 0.1 * joint], atol=1e-3)
    for _ in range(5):
        turn, _ = np.linalg.qr(generator.standard_normal((3, 3)))
        posed = weights[:, :1] * tube + weights[:, 1:] * ((tube - joint) @ turn.T + joint)
        np.testing.assert_allclose(w @ posed, joint, atol=2e-3)


# -- on Anny itself


@pytest.fixture(scope="module")
def people() -> bake_anny.Anny:
    pytest.importorskip("anny")
    return bake_anny.sample_anny(40, seed=7)


def test_anny_stands_in_the_t_pose(people: bake_anny.Anny) -> None:
    at = dict(zip(SMPL24.joints, people.joints, strict=True))
    for side, sign in (("left", 1), ("right", -1)):
        arm = np.diff([at[f"{side}_{j}"] for j in ("shoulder", "elbow", "wrist", "hand")], axis=0)
        np.testing.assert_allclose(arm[:, 0] * sign / np.linalg.norm(arm, axis=1), 1, atol=1e-3)
        leg = np.diff([at[f"{side}_{j}"] for j in ("knee", "ankle")], axis=0)
        np.testing.assert_allclose(leg[:, 1] / np.linalg.norm(leg, axis=1), -1, atol=1e-3)
        np.testing.assert_allclose(at[f"{side}_hip"] * [-1, 1, 1], at[f"{'left' if side == 'right' else 'right'}_hip"])
    np.testing.assert_allclose(at["pelvis"], 0, atol=1e-12)
    soles = people.people[:, people.regions["foot.L"], 1]
    floor = soles.min(1)
    # Flat: heel and ball of the foot are both on the floor.
    z = people.people[:, people.regions["foot.L"], 2]
    for end in (z < z.min(1, keepdims=True) + 0.04, z > z.max(1, keepdims=True) - 0.08):
        assert (np.where(end, soles, 9).min(1) - floor < 0.02).all()


def test_the_shipped_body_fits_unseen_adults(people: bake_anny.Anny) -> None:
    for name, limit in (("free", 1.6e-3), ("free-full", 1.25e-3)):
        data = load_body_file(SHIPPED / f"{name}.npz")
        shown = people.people if name == "free-full" else people.people[:, nearest(people, data.template)]
        error, betas = bake_anny.shape_error(data, shown.astype(np.float64))
        assert error < limit
        assert np.abs(betas).max() < 4.5


def nearest(people: bake_anny.Anny, template: np.ndarray) -> np.ndarray:
    """Rows of Anny's vertices that the small body is made of, found by place on the full one."""
    full = load_body("free-full", torch.float64).template
    return torch.cdist(torch.from_numpy(template), full).argmin(1).numpy()


def test_the_same_seed_draws_the_same_people(people: bake_anny.Anny) -> None:
    state = torch.random.get_rng_state()
    again = bake_anny.sample_anny(40, seed=7)
    np.testing.assert_array_equal(again.people, people.people)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bones_that_smpl_lacks_go_with_their_parents(people: bake_anny.Anny) -> None:
    labels = ["root", "spine05", "spine04", "spine03", "wrist.L", "metacarpal1.L", "finger2-1.L", "finger2-2.L"]
    owner = tpose.bone_joint(labels, [-1, 0, 1, 2, 3, 4, 5, 6], SMPL24.joints)
    assert [SMPL24.joints[i] for i in owner] == [
        "pelvis", "pelvis", "pelvis", "spine1", "left_wrist", "left_wrist", "left_hand", "left_hand"
    ]  # fmt: skip
    np.testing.assert_allclose(people.weights.sum(1), 1)
    assert (people.weights.sum(0) > 1).all()
