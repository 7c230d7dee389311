"""Antialiased outlines: exact areas of simple shapes, gradients against central differences, blending."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from recon_core.geometry.primitives import icosphere
from recon_core.interfaces import Renderer
from recon_core.plugins import registry
from recon_core.rendering import Scene, outline
from recon_core.structures import Camera, Mesh

WARP = registry().create("renderer", "warp")


def camera(size: tuple[int, int] = (24, 20), dtype: torch.dtype = torch.float64, batch: int = 1) -> Camera:
    """One metre at a depth of one metre is 20 pixels."""
    return Camera.perspective(torch.tensor(20.0, dtype=dtype), size, batch=batch)


def polygon(corners: list[tuple[float, float]], z: float = 2.0, size: tuple[int, int] = (24, 20)) -> Mesh:
    """A convex polygon given in pixels, as a fan of triangles."""
    points = (torch.tensor(corners, dtype=torch.float64) - torch.tensor(size) / 2) / 20
    vertices = torch.cat([points, torch.ones(len(points), 1)], 1) * z
    fan = torch.tensor([[0, i, i + 1] for i in range(1, len(corners) - 1)])
    return Mesh(vertices[None], fan)


def sphere(z: float, level: int = 3) -> Mesh:
    vertices, faces = icosphere(level)
    return Mesh((vertices.double() * 0.5 + torch.tensor([0.03, 0.02, z]))[None], faces)


@pytest.mark.parametrize("left", [3.0, 3.2, 3.5, 3.7, 4.0])
def test_a_rectangle_covers_its_share_of_each_pixel(left: float) -> None:
    alpha = WARP.silhouette(polygon([(left, 4), (15, 4), (15, 12), (left, 12)]), camera())[0, 0]
    assert torch.allclose(alpha[4:12, :12].sum(1), torch.full((8,), 12.0 - left, dtype=torch.float64))
    assert alpha[6, 3].item() == pytest.approx(max(0.0, 4 - left) if left < 4 else 0.0)
    assert ((alpha == 0) | (alpha == 1) | ((alpha > 0) & (alpha < 1))).all()


@pytest.mark.parametrize("turn", [0.1, 0.5, 0.8, 1.2, 2.0])
def test_area_of_a_turned_square(turn: float) -> None:
    corners = [(12 + 7 * math.cos(turn + k * math.pi / 2), 10 + 7 * math.sin(turn + k * math.pi / 2)) for k in range(4)]
    mesh, lens = polygon(corners), camera()
    hard = WARP.rasterize(mesh, lens).mask.sum()
    smooth = WARP.silhouette(mesh, lens).sum()
    # What is missing are the corners, where two edges cut one pixel.
    assert abs(smooth - 98) < 1
    assert abs(smooth - 98) <= abs(hard - 98) + 0.3


def test_gradients_against_central_differences() -> None:
    mesh, lens = polygon([(3.3, 4.2), (17.1, 2.6), (20.4, 13.3), (8.2, 16.9)]), camera()

    def draw(vertices: Tensor, K: Tensor, t: Tensor) -> Tensor:
        return WARP.silhouette(dataclasses.replace(mesh, vertices=vertices), dataclasses.replace(lens, K=K, t=t))

    arguments = [v.clone().requires_grad_() for v in (mesh.vertices, lens.K, lens.t)]
    assert torch.autograd.gradcheck(draw, arguments, eps=1e-7, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("orthographic", [False, True])
def test_area_gradient_of_a_dense_sphere(orthographic: bool) -> None:
    """5120 faces on 80 pixels: faces smaller than pixels, as on a body. Area moves with radius and distance."""
    lens = dataclasses.replace(camera((96, 96)), orthographic=orthographic)
    lens.K[:, :2, :2] *= 40 / 20 if orthographic else 6
    mesh = sphere(1.5, level=4)
    vertices = mesh.vertices.requires_grad_()
    area = WARP.silhouette(mesh, lens).sum()
    (gradient,) = torch.autograd.grad(area, vertices)
    centred = vertices.detach() - vertices.detach().mean(1, keepdim=True)
    scaled = (gradient * centred).sum()
    if orthographic:
        true_area, by_scale = math.pi * 20**2, 2 * math.pi * 20**2
    else:
        # Seen straight on, the outline of a sphere at distance d is a circle of radius f r / sqrt(d^2 - r^2).
        radius = 120 * 0.5 / math.sqrt(1.5**2 - 0.25)
        true_area, by_scale = math.pi * radius**2, 2 * math.pi * radius**2 * 1.5**2 / (1.5**2 - 0.25)
    assert area.item() == pytest.approx(true_area, rel=0.01)
    assert scaled.item() == pytest.approx(by_scale, rel=0.03)
    assert gradient[..., :2].sum(1).norm() < 0.03 * gradient[..., :2].norm(dim=-1).sum()


def test_hidden_and_inner_edges_are_no_outline() -> None:
    """A ball before a wall: only the wall's own edges are blended."""
    wall = polygon([(2.3, 2.4), (20.2, 2.4), (20.2, 17.1), (2.3, 17.1)], z=4.0)
    scene, lens = Scene.together([wall, sphere(1.8)]), camera()
    ball = WARP.rasterize(sphere(1.8), lens).mask.sum()
    assert ball > 10
    cut = outline(scene, lens, WARP.rasterize(scene, lens).mask)
    alone = outline(Scene.together(wall), lens, WARP.rasterize(wall, lens).mask)
    assert torch.equal(cut.target.sort().values, alone.target.sort().values)


def test_an_outline_that_passes_the_near_plane() -> None:
    """A floor strip |x| <= 0.83 at y = 1, reaching behind the camera: its sides converge, cut at the near plane."""
    corners = torch.tensor([[-0.83, 1, -5], [0.83, 1, -5], [0.83, 1, 30], [-0.83, 1, 30]], dtype=torch.float64)
    mesh = Mesh(corners[None].requires_grad_(), torch.tensor([[0, 1, 2], [0, 2, 3]]))
    lens = camera((64, 48))
    alpha = WARP.silhouette(mesh, lens, near=1.0)
    # At y pixels below the horizon the strip is 1.66 y wide, down to the near plane at 20.
    for row in (28, 33, 40):
        assert alpha[0, 0, row].sum().item() == pytest.approx(1.66 * (row + 0.5 - 24), rel=1e-6)
    assert alpha[0, 0, 45:].sum() == 0
    (gradient,) = torch.autograd.grad(alpha[0, 0, 26:42].sum(), mesh.vertices)
    assert torch.isfinite(gradient).all()
    # Widening the strip by w on both sides widens each row by 2 w y.
    widening = gradient[0, [1, 2], 0].sum() - gradient[0, [0, 3], 0].sum()
    assert widening.item() == pytest.approx(sum(2 * (row + 0.5 - 24) for row in range(26, 42)), rel=1e-4)


def test_colours_blend_across_the_outline_and_move_it() -> None:
    mesh, lens = polygon([(3.25, 4), (15, 4), (15, 12), (3.25, 12)]), camera()
    mesh = dataclasses.replace(mesh, colors=torch.tensor([1.0, 0.5, 0.25]).double().expand(1, 4, 3))
    vertices = mesh.vertices.requires_grad_()
    image = WARP.render(mesh, lens, background=torch.tensor([0.0, 0.0, 1.0]), antialias=True).image
    expected = 0.75 * torch.tensor([1.0, 0.5, 0.25]) + 0.25 * torch.tensor([0.0, 0, 1])
    assert torch.allclose(image[0, :, 8, 3], expected.double())
    (gradient,) = torch.autograd.grad(image[0, 0].sum(), vertices)
    # The left edge, 8 pixels tall, moving right by a metre (10 pixels at 2 m) takes 80 pixels of red away.
    assert gradient[0, [0, 3], 0].sum().item() == pytest.approx(-80, rel=1e-6)


def test_fitting_a_sphere_to_a_silhouette_by_gradients() -> None:
    """From a sphere that misses it by half its size to an IoU of 0.97, which needs gradients of the right sign."""
    target = WARP.silhouette(sphere(1.5, 2), camera((32, 32))).detach()
    mesh = sphere(1.5, 2)
    place = torch.tensor([0.25, -0.2, 0.6], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([place], 0.03)
    for _ in range(60):
        moved = dataclasses.replace(mesh, vertices=mesh.vertices + place)
        alpha = WARP.silhouette(moved, camera((32, 32)))
        loss = (alpha - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (torch.minimum(alpha, target).sum() / torch.maximum(alpha, target).sum()) > 0.97


def test_every_renderer_has_it() -> None:
    pytest.importorskip("pytorch3d", reason="pytorch3d is not installed", exc_type=Exception)
    mesh, lens = sphere(1.6, 2).to(torch.float32), camera((28, 24), torch.float32)
    theirs = registry().create("renderer", "pytorch3d").silhouette(mesh, lens)
    assert torch.allclose(theirs, WARP.silhouette(mesh, lens), atol=1e-5)


@pytest.mark.parametrize("size", [(24, 20), (20, 24), (1, 20), (20, 1)])
def test_the_shorter_way_gives_what_fragments_give(size: tuple[int, int]) -> None:
    """The warp renderer draws coverage without fragments; the base class takes it from them. Also with nothing drawn,
    and where the mesh passes the near plane."""
    lens = camera(size)
    for mesh, near in ((sphere(1.8), 0.01), (sphere(0.3), 0.2), (sphere(-3.0), 0.01)):
        scene = Scene.together([mesh, polygon([(2.3, 2.4), (9.2, 2.4), (9.2, 11.1)], z=1.5)])
        assert torch.equal(WARP.silhouette(scene, lens, near), Renderer.silhouette(WARP, scene, lens, near))
    nothing = WARP.silhouette(Scene.separate([]), camera(size, batch=0))
    assert nothing.shape == (0, 1, size[1], size[0])
