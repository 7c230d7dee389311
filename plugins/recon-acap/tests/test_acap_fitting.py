"""Latent fits, held to a small generator whose codes are known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from recon_acap.fitting import Landmarks, LatentFitSettings, fit_joints, fit_markers, fit_meshes, fit_scans
from recon_acap.fitting.evidence import KnownPoints, PictureJoints, ScanSurface, Selection
from recon_acap.fitting.nearest import nearest_on_mesh
from recon_acap.fitting.objective import LatentObjective, Pull
from recon_acap.fitting.variables import LatentVariables
from recon_core.errors import EvidenceError, UsageError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.geometry.topology import face_normals
from recon_core.structures import Camera

sys.path.insert(0, str(Path(__file__).parent))
from standin import Post

POST = Post()
MARKERS = torch.arange(0, 200, 17)
HALF_TURN = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))


def _people(count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Shape codes, pose codes, vertices in the model's frame."""
    g = torch.Generator().manual_seed(seed)
    shape = torch.randn(count, 2, generator=g, dtype=torch.float64)
    pose = torch.randn(count, 6, generator=g, dtype=torch.float64)
    return shape, pose, POST.vertices(shape, pose)


def _moved(vertices: Tensor, turn: list[float], place: list[float]) -> Tensor:
    R = axis_angle_to_matrix(torch.tensor(turn, dtype=torch.float64))
    return vertices @ R.T + torch.tensor(place, dtype=torch.float64)


def _scan(vertices: Tensor, count: int = 1500, noise: float = 0.002, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Noisy points of the surface, and their normals."""
    g = torch.Generator().manual_seed(seed)
    face = torch.randint(len(POST.faces), (count,), generator=g)
    weight = torch.rand(count, 3, generator=g, dtype=torch.float64)
    weight = weight / weight.sum(1, keepdim=True)
    points = (vertices[:, POST.faces[face]] * weight[None, :, :, None]).sum(2)
    normals = face_normals(vertices, POST.faces)[:, face]
    return points + noise * torch.randn(points.shape, generator=g, dtype=torch.float64), normals


def _error_mm(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm(dim=-1).mean(-1).max()) * 1000


def _regressor() -> Tensor:
    J = torch.zeros(9, len(POST.rest), dtype=torch.float64)
    for k in range(9):
        J[k, k * 24 + torch.arange(0, 12, 1 + k % 3)] = 1
    return J / J.sum(1, keepdim=True)


def _objectives() -> dict[str, LatentObjective]:
    _, _, vertices = _people(4)
    points, normals = _scan(vertices, 300)
    camera = Camera.perspective(800.0, (640, 480), batch=4).to(torch.float64)
    place = torch.tensor([0.0, -0.5, 4.0], dtype=torch.float64)
    joints = Selection.of_matrix(_regressor())
    seen = torch.ones(4, 9, dtype=torch.float64)
    lying = camera.project(joints(vertices) @ HALF_TURN + place)
    evidence = {
        "points": KnownPoints(
            Selection.of_vertices(MARKERS, torch.float64),
            vertices[:, MARKERS],
            seen[:, :1].expand(4, 12),
            0.01,
            5.0,
            "m",
        ),
        "scan": ScanSurface(points, normals, torch.ones(4, 300).double(), POST.faces, 0.01, 4.0, 1.0),
        "picture": PictureJoints(joints, lying, seen, camera, 3.0, 10.0),
    }
    pull = Pull(0.7, 1.3, bending=0.5, smooth=2.0)
    return {name: LatentObjective(POST, [e], pull, frames=2) for name, e in evidence.items()}


@pytest.mark.parametrize("kind", ["points", "scan", "picture"])
def test_gradient_is_that_of_the_energy(kind: str) -> None:
    """Two subjects of two frames each: every column of a step, by central differences."""
    g = torch.Generator().manual_seed(3)
    random = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)  # noqa: E731
    root = axis_angle_to_matrix(0.1 * random(2, 2, 3))
    translation = 0.05 * random(2, 2, 3)
    if kind == "picture":
        root, translation = HALF_TURN @ root, translation + torch.tensor([0.0, -0.5, 4.0]).double()
    at = LatentVariables(0.3 * random(2, 2), 0.3 * random(2, 2, 6), root, translation)
    objective = _objectives()[kind].matched(at)
    model = objective.linearize(objective.evaluate(at), torch.zeros(2, dtype=torch.bool))
    step = 1e-5 * torch.eye(at.columns, dtype=torch.float64)
    for i in range(at.columns):
        ahead, back = (objective.evaluate(at.moved(s * step[i].expand(2, -1))).energy for s in (1, -1))
        torch.testing.assert_close((ahead - back) / 2e-5, model.gradient[:, i], rtol=2e-4, atol=2e-4)


def test_held_codes_stay_while_the_place_moves() -> None:
    _, _, vertices = _people()
    index = torch.arange(len(POST.rest))
    known = KnownPoints(
        Selection.of_vertices(index, torch.float64), vertices + 0.3, torch.ones(2, len(index)).double(), 0.01, None, "m"
    )
    objective = LatentObjective(POST, [known], Pull()).placing()
    zero = torch.zeros(2, 1, 3, dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64).expand(2, 1, 3, 3)
    at = LatentVariables(torch.zeros(2, 2).double(), torch.zeros(2, 1, 6).double(), eye, zero)
    model = objective.linearize(objective.evaluate(at), torch.zeros(2, dtype=torch.bool))
    assert not model.gradient[:, :8].any()
    assert model.gradient[:, 8:].abs().min() > 0


@pytest.mark.parametrize("optimizer", ["gauss-newton", "adam"])
def test_corresponded_meshes_are_found_anywhere(optimizer: str) -> None:
    _, _, vertices = _people()
    moved = _moved(vertices, [0.4, 2.5, -0.7], [3.0, -1.0, 2.0])
    found = fit_meshes(POST, moved, POST.faces, LatentFitSettings(optimizer=optimizer))
    assert _error_mm(found.vertices, moved) < (0.01 if optimizer == "gauss-newton" else 12)
    assert bool(found.report.converged.all()) == (optimizer == "gauss-newton")


def test_codes_come_back_from_a_mesh() -> None:
    shape, pose, vertices = _people()
    weak = LatentFitSettings(shape_weight=1e-6, pose_weight=1e-6)
    found = fit_meshes(POST, _moved(vertices, [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]), settings=weak)
    # Height and a bend trade off nowhere else, so the codes are as unique as the vertices.
    assert (found.shape - shape).abs().max() < 0.02
    assert (found.pose - pose).abs().max() < 0.02


def test_a_row_does_not_depend_on_the_others() -> None:
    _, _, vertices = _people(3)
    together, alone = fit_meshes(POST, vertices), fit_meshes(POST, vertices[1:2])
    torch.testing.assert_close(together.vertices[1:2], alone.vertices, rtol=0, atol=1e-7)


def test_markers_find_the_whole_body() -> None:
    _, _, vertices = _people()
    moved = _moved(vertices, [0.0, 2.0, 0.0], [1.0, 0.0, 0.0])
    hidden = torch.ones(2, len(MARKERS))
    hidden[0, 3] = 0
    points = moved[:, MARKERS].clone()
    points[0, 3] = torch.nan
    assert _error_mm(fit_markers(POST, Landmarks(MARKERS, points, hidden)).vertices, moved) < 2


@pytest.mark.parametrize("with_normals", [True, False])
def test_scans_without_landmarks(with_normals: bool) -> None:
    _, _, vertices = _people()
    moved = _moved(vertices, [0.0, 2.5, 0.0], [0.4, 0.1, 2.0])
    points, normals = _scan(moved)
    kept = (points[0, :, 1] - 0.7).abs() > 0.15  # a hole: nothing of the middle
    settings = LatentFitSettings(headings=4, scan_points=800)
    found = fit_scans(POST, points[:, kept], normals[:, kept] if with_normals else None, settings=settings)
    assert _error_mm(found.vertices, moved) < 2


def test_outliers_of_a_scan_are_ignored_and_landmarks_lead() -> None:
    _, _, vertices = _people()
    moved = _moved(vertices, [1.5, 0.3, 0.2], [0.0, 0.0, 1.0])
    points, normals = _scan(moved)
    points[:, ::10] += 0.4
    found = fit_scans(POST, points, normals, Landmarks(MARKERS, moved[:, MARKERS]))
    assert _error_mm(found.vertices, moved) < 2


def test_a_sequence_shares_its_shape_and_beats_single_frames() -> None:
    shape, pose, _ = _people(1)
    path = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None] * pose
    truth = POST.vertices(shape.expand(6, -1), path)
    g = torch.Generator().manual_seed(5)
    noisy = truth[:, MARKERS] + 0.01 * torch.randn(6, len(MARKERS), 3, generator=g, dtype=torch.float64)
    together = fit_markers(POST, Landmarks(MARKERS, noisy), frames=6)
    apart = fit_markers(POST, Landmarks(MARKERS, noisy))
    assert together.shape.std(0).max() == 0
    mean = lambda found: float((found.vertices - truth).norm(dim=-1).mean())  # noqa: E731
    assert mean(together) < 0.95 * mean(apart)


def test_a_given_shape_is_held() -> None:
    shape, _, vertices = _people()
    found = fit_meshes(POST, vertices, shape=shape.flip(0))
    assert torch.equal(found.shape, shape.flip(0))


def test_joints_in_a_picture_and_in_space() -> None:
    _, _, vertices = _people()
    stood = _moved(vertices, [0.0, 0.4, 0.0], [0.0, 0.0, 0.0]) @ HALF_TURN + torch.tensor([0.0, 0.5, 4.0]).double()
    camera = Camera.perspective(800.0, (640, 480), batch=2).to(torch.float64)
    J, seen = _regressor(), torch.ones(2, 9)
    flat = fit_joints(POST, J, camera.project(J @ stood), seen, camera)
    assert float(flat.report.reprojection_px.max()) < 1.5
    deep = fit_joints(POST, J, J @ stood, seen)
    assert _error_mm(J @ deep.vertices, J @ stood) < 15


def test_bent_backwards_costs() -> None:
    """With a strong penalty the hinges bend less the unnatural way; the evidence is the same."""
    pose = torch.tensor([[2.0, 0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    joints = _regressor() @ POST.vertices(torch.zeros(1, 2).double(), pose)
    free, held = (
        fit_joints(POST, _regressor(), joints, torch.ones(1, 9), settings=LatentFitSettings(bending=b))
        for b in (0, 2e3)
    )
    bend = lambda f: float(POST.bends(f.shape, f.pose)[0, 0])  # noqa: E731
    assert bend(held) < bend(free) - 0.2


def test_nearest_point_is_exact() -> None:
    vertices = POST.rest.numpy()
    points = np.random.default_rng(0).normal(0.4, 0.6, (200, 3))
    found = nearest_on_mesh(points, vertices, POST.faces.numpy(), exact=True)
    mesh = trimesh.Trimesh(vertices, POST.faces.numpy(), process=False)
    _, expected, _ = trimesh.proximity.closest_point_naive(mesh, points)
    np.testing.assert_allclose(found.distance, expected, atol=1e-9)
    at = (found.barycentric[..., None] * vertices[POST.faces.numpy()[found.face]]).sum(1)
    np.testing.assert_allclose(np.linalg.norm(at - points, axis=1), found.distance, atol=1e-12)


def test_bad_input_is_named() -> None:
    _, _, vertices = _people()
    count = len(POST.rest)
    with pytest.raises(EvidenceError, match=f"{count - 1} vertices and the model {count}"):
        fit_meshes(POST, vertices[:, 1:])
    with pytest.raises(EvidenceError, match="other faces"):
        fit_meshes(POST, vertices, POST.faces.flip(1))
    broken = vertices.clone()
    broken[1, 7] = torch.nan
    with pytest.raises(EvidenceError, match="not finite, the first in entry 7 of row 1"):
        fit_meshes(POST, broken)
    with pytest.raises(UsageError, match=f"vertex {count} is out of range"):
        fit_markers(POST, Landmarks(torch.tensor([0, 1, 2, count]), vertices[:, :4]))
    with pytest.raises(UsageError, match="vertex 2 of the model is named twice"):
        fit_markers(POST, Landmarks(torch.tensor([0, 1, 2, 2]), vertices[:, :4]))
    with pytest.raises(EvidenceError, match="row 0: fewer than three points"):
        fit_markers(POST, Landmarks(torch.tensor([0, 1]), vertices[:, :2]))
    with pytest.raises(EvidenceError, match="50 points"):
        fit_scans(POST, vertices[:, :50])
    with pytest.raises(EvidenceError, match="subjects of 3 frames"):
        fit_meshes(POST, vertices, frames=3)
    few = torch.zeros(2, 9)
    few[:, :3] = 1
    with pytest.raises(EvidenceError, match="fewer than four joints"):
        fit_joints(POST, _regressor(), torch.zeros(2, 9, 2), few, Camera.perspective(500.0, (64, 64), batch=2))


def test_a_diverged_fit_returns_its_start() -> None:
    """A generator that returns no numbers once it is moved."""

    class Broken(Post):
        def vertices(self, shape: Tensor, pose: Tensor) -> Tensor:
            still = (shape == 0).all(1)[:, None, None]
            return torch.where(still, super().vertices(shape, pose), torch.nan)

        def linearized(self, shape: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
            return super().vertices(shape, pose), super().linearized(shape, pose)[1]

    _, _, vertices = _people()
    found = fit_meshes(Broken(), vertices, settings=LatentFitSettings(iterations=5))
    assert torch.isfinite(found.vertices).all()
    assert not found.shape.any()
