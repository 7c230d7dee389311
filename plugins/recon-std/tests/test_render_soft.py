"""Probabilistic coverage: against its definition, pytorch3d, and central differences; the face probability map."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.geometry.primitives import icosphere
from recon_core.interfaces import Renderer
from recon_core.plugins import registry
from recon_core.rendering import Scene, SoftSettings
from recon_core.structures import Camera, Mesh

WARP = registry().create("renderer", "warp")


@pytest.fixture(scope="module")
def pytorch3d() -> Renderer:
    pytest.importorskip("pytorch3d", reason="pytorch3d is not installed", exc_type=Exception)
    return registry().create("renderer", "pytorch3d")


def camera(size: tuple[int, int] = (36, 30), focal: float = 34.0, batch: int = 1, dtype=torch.float32) -> Camera:
    return Camera.perspective(torch.tensor(focal, dtype=dtype), size, batch=batch)


def triangles(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Mesh:
    """Separate triangles in front of the camera: no two share a vertex, so that none are equally far."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 1, 3, generator=generator, dtype=dtype) * 2 - 1
    corners = centre + 0.4 * torch.randn(count, 3, 3, generator=generator, dtype=dtype)
    return Mesh((corners + torch.tensor([0, 0, 4.0])).reshape(1, -1, 3), torch.arange(3 * count).reshape(-1, 3))


def sphere(rows: int = 1, level: int = 2) -> Mesh:
    vertices, faces = icosphere(level)
    return Mesh((vertices * 0.8 + torch.tensor([0.1, 0, 3.0])).expand(rows, -1, -1).clone(), faces)


def test_one_triangle_by_its_definition() -> None:
    corners = torch.tensor([[4.0, 3], [30, 8], [12, 25]], dtype=torch.float64)
    lens = camera(dtype=torch.float64)
    ray = (corners - torch.tensor([18.0, 15])) / 34
    mesh = Mesh(torch.cat([ray, torch.ones(3, 1)], 1)[None].double() * 2, torch.tensor([[0, 1, 2]]))
    settings = SoftSettings(sigma=3e-3)
    alpha = WARP.soft_silhouette(mesh, lens, settings)[0, 0]
    for row, column in ((10, 10), (3, 3), (1, 20), (20, 22), (14, 16), (26, 12), (29, 35)):
        p = torch.tensor([column + 0.5, row + 0.5], dtype=torch.float64)
        distances, sides = [], []
        for i in range(3):
            a, d = corners[i], corners[(i + 1) % 3] - corners[i]
            s = (((p - a) @ d) / (d @ d)).clamp(0, 1)
            distances.append((p - a - s * d).norm())
            sides.append(d[0] * (p - a)[1] - d[1] * (p - a)[0] > 0)
        squared = (min(distances) * 2 / 30) ** 2
        expected = torch.sigmoid((1 if all(sides) or not any(sides) else -1) * squared / settings.sigma)
        expected = torch.zeros(()) if expected < settings.cutoff else expected
        assert alpha[row, column].item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("keep", [None, 1, 3, 8])
@pytest.mark.parametrize("orthographic", [False, True])
def test_both_renderers_agree(pytorch3d, keep: int | None, orthographic: bool) -> None:
    lens = camera((36, 30) if orthographic else (30, 40))
    if orthographic:
        lens = dataclasses.replace(lens, orthographic=True)
        lens.K[:, :2, :2] *= 0.3
    settings = SoftSettings(sigma=1e-3, faces_per_pixel=keep)
    mesh = triangles(30, 4)
    vertices = mesh.vertices.requires_grad_()
    alphas = [r.soft_silhouette(mesh, lens, settings) for r in (WARP, pytorch3d)]
    assert 0.2 < alphas[0].mean() < 0.95
    assert torch.allclose(*alphas, atol=1e-5)
    weight = torch.randn(alphas[0].shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.autograd.grad(alpha, vertices, weight)[0] for alpha in alphas)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def test_probability_maps_agree(pytorch3d) -> None:
    meshes = [sphere(2, 1), triangles(9, 8)]
    ours, theirs = (r.face_probabilities(meshes, camera(batch=3), SoftSettings(sigma=1e-3)) for r in (WARP, pytorch3d))
    assert ours.faces == theirs.faces == 169
    assert torch.equal(ours.face, theirs.face)
    assert torch.equal(ours.pixel, theirs.pixel)
    assert torch.allclose(ours.probability, theirs.probability, atol=1e-5)


def test_silhouette_is_what_the_probability_map_leaves_uncovered() -> None:
    mesh, lens = sphere(2), camera(batch=2)
    W = WARP.face_probabilities(mesh, lens).dense()
    alpha = WARP.soft_silhouette(mesh, lens)
    assert W.shape == (2, 320, 30 * 36)
    assert torch.allclose(1 - (1 - W).prod(1).reshape(2, 1, 30, 36), alpha, atol=1e-5)


def test_mean_position_of_each_face() -> None:
    """Equation 5 over the dense map; a face smaller than the blur is centred where its centroid falls."""
    mesh, lens = sphere(2), camera((72, 60), 68.0, batch=2)
    found = WARP.face_probabilities(mesh, lens)
    W = found.dense().reshape(2, -1, 60, 72)
    y, x = torch.meshgrid(torch.arange(60) + 0.5, torch.arange(72) + 0.5, indexing="ij")
    expected = torch.stack([(W * g).sum((2, 3)) / W.sum((2, 3)).clamp(min=1e-12) for g in (x, y)], -1)
    reached = found.totals().reshape(2, -1) > 0
    centers = found.centers().reshape(2, -1, 2)
    assert torch.allclose(centers[reached], expected[reached], atol=1e-3)
    assert (centers[~reached] == 0).all()
    centroid = lens.project(mesh.vertices[:, mesh.faces].mean(2))
    assert (centers - centroid)[reached].norm(dim=-1).median() < 0.2


def test_entries_can_be_restricted_to_visible_faces() -> None:
    mesh, lens = sphere(), camera()
    seen = WARP.rasterize(mesh, lens).face.unique()
    found = WARP.face_probabilities(mesh, lens)
    kept = found.where(torch.isin(found.face, seen))
    assert set(kept.face.tolist()) <= set(seen.tolist())
    assert len(kept.face) < len(found.face)


@pytest.mark.parametrize("keep", [None, 2])
def test_gradients_of_silhouettes(keep: int | None) -> None:
    mesh, lens = triangles(4, 6, torch.float64), camera((9, 8), 8.0, dtype=torch.float64)
    settings = SoftSettings(sigma=2e-2, faces_per_pixel=keep)

    def draw(vertices: Tensor, K: Tensor, t: Tensor) -> Tensor:
        seen = dataclasses.replace(lens, K=K, t=t)
        return WARP.soft_silhouette(dataclasses.replace(mesh, vertices=vertices), seen, settings)

    arguments = [v.clone().requires_grad_() for v in (mesh.vertices, lens.K, lens.t)]
    assert torch.autograd.gradcheck(draw, arguments, eps=1e-7, atol=1e-5, rtol=1e-4)


def test_gradients_of_the_probability_map() -> None:
    mesh, lens = triangles(3, 6, torch.float64), camera((9, 8), 8.0, dtype=torch.float64)

    def centers(vertices: Tensor) -> tuple[Tensor, Tensor]:
        found = WARP.face_probabilities(dataclasses.replace(mesh, vertices=vertices), lens, SoftSettings(sigma=2e-2))
        return found.probability, found.centers()

    assert torch.autograd.gradcheck(centers, mesh.vertices.requires_grad_(), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_few_faces_a_pixel_leave_holes_and_all_do_not() -> None:
    """On a mesh finer than the blur the nearest faces of a pixel inside can all lie beside it."""
    mesh, lens = sphere(level=4), camera((48, 48), 60.0)
    inside = WARP.rasterize(mesh, lens).mask
    # Two pixels away from the border.
    inside = -torch.nn.functional.max_pool2d(-inside.float(), 5, 1, 2) > 0
    few = WARP.soft_silhouette(mesh, lens, SoftSettings(sigma=2e-3, faces_per_pixel=4))
    every = WARP.soft_silhouette(mesh, lens, SoftSettings(sigma=2e-3))
    assert few[inside].min() < 0.95
    assert every[inside].min() > 0.99


def test_faces_that_do_not_count() -> None:
    """Edge-on and near ones change nothing, give no gradients, and harm no other."""
    proper = triangles(2, 3)
    odd = torch.tensor([[0.0, 0, 3], [0.5, 0.5, 3], [1, 1, 3], [0, 0, -1], [0, 1, 3], [1, 0, 3]])
    vertices = torch.cat([proper.vertices[0], odd])[None].requires_grad_()
    both = Mesh(vertices, torch.arange(12).reshape(-1, 3))
    for keep in (None, 5):
        settings = SoftSettings(sigma=1e-3, faces_per_pixel=keep, least_area=1e-6)
        alpha = WARP.soft_silhouette(both, camera(), settings)
        assert torch.equal(alpha, WARP.soft_silhouette(proper, camera(), settings))
        (gradient,) = torch.autograd.grad(alpha.sum(), vertices)
        assert torch.isfinite(gradient).all()
        assert (gradient[0, 6:] == 0).all()
        assert (gradient[0, :6, :2] != 0).any()


def test_dense_maps_need_equal_pictures() -> None:
    found = WARP.face_probabilities([sphere(), triangles(3, 1)], camera(batch=2))
    with pytest.raises(UsageError, match="use the entries"):
        found.dense()
    uneven = WARP.face_probabilities(Scene((sphere(2),), torch.tensor([0, 0]), 2), camera(batch=2))
    with pytest.raises(UsageError, match="use the entries"):
        uneven.dense()
