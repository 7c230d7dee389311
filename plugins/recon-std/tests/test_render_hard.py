"""The hard pass: geometry against analytic scenes, both renderers against each other, gradients, odd meshes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from recon_core.geometry.primitives import icosphere
from recon_core.interfaces import Renderer
from recon_core.plugins import registry
from recon_core.rendering import Fragments, Scene
from recon_core.structures import Camera, Mesh

WARP = registry().create("renderer", "warp")


@pytest.fixture(scope="module")
def pytorch3d() -> Renderer:
    pytest.importorskip("pytorch3d", reason="pytorch3d is not installed", exc_type=Exception)
    return registry().create("renderer", "pytorch3d")


def ball(position: tuple[float, float, float], radius: float = 1.0, level: int = 2, rows: int = 1) -> Mesh:
    vertices, faces = icosphere(level)
    return Mesh((vertices * radius + torch.tensor(position)).expand(rows, -1, -1).clone(), faces)


def soup(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Mesh:
    """Triangles of all sizes, some of them edge-on, some behind the camera."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 1, 3, generator=generator, dtype=dtype) * torch.tensor([3.0, 3, 4]) - 1.5
    corners = centre + 0.6 * torch.randn(count, 3, 3, generator=generator, dtype=dtype)
    return Mesh((corners + torch.tensor([0, 0, 2.0])).reshape(1, -1, 3), torch.arange(3 * count).reshape(-1, 3))


def pinhole(size: tuple[int, int] = (40, 32), focal: float = 40.0, batch: int = 1, dtype=torch.float32) -> Camera:
    return Camera.perspective(torch.tensor(focal, dtype=dtype), size, batch=batch)


def gradients(fragments: Fragments, vertices: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(fragments.barycentrics.shape, generator=generator, dtype=fragments.depth.dtype)
    z = torch.randn(fragments.depth.shape, generator=generator, dtype=fragments.depth.dtype)
    (from_b,) = torch.autograd.grad(fragments.barycentrics, vertices, b, retain_graph=True)
    (from_z,) = torch.autograd.grad(fragments.depth, vertices, z)
    return from_b, from_z


WEAK = Camera.weak_perspective(torch.tensor([0.7]), torch.tensor([[0.1, -0.05]]), (33, 40))


@pytest.mark.parametrize(
    ("mesh", "camera"),
    [
        (ball((0.1, 0.05, 3.0)), pinhole((45, 32))),
        (ball((0.1, 0.05, 0.0)), WEAK),
        (ball((0.3, 0.0, -7.0)), WEAK),
        (soup(40, 1), pinhole()),
        (soup(40, 2), WEAK),
    ],
    ids=["perspective", "weak perspective", "negative depth", "soup", "weak soup"],
)
def test_both_renderers_see_the_same(pytorch3d, mesh: Mesh, camera: Camera) -> None:
    vertices = mesh.vertices.requires_grad_()
    ours, theirs = (r.rasterize(mesh, camera, near=0.05) for r in (WARP, pytorch3d))
    same = ours.face == theirs.face
    assert ours.mask.float().mean() > 0.15
    # A centre that falls on an edge may go to either side of it.
    assert (~same).sum() <= 2
    assert torch.allclose(ours.depth[same], theirs.depth[same], atol=2e-5)
    assert torch.allclose(ours.barycentrics[same], theirs.barycentrics[same], atol=2e-3)
    if same.all():
        for a, b in zip(gradients(ours, vertices), gradients(theirs, vertices), strict=True):
            assert (a - b).norm() < 1e-3 * b.norm()


def cast_rays(mesh: Mesh, camera: Camera, near: float) -> Tensor:
    """Depth (H, W) by intersecting every pixel's ray with every face in float64; 0 where there is nothing."""
    width, height = camera.size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixel = torch.stack([x, y, torch.ones_like(x)], -1).double().reshape(-1, 3)
    origin, direction = torch.zeros_like(pixel), pixel @ camera.K[0].double().inverse().T
    if camera.orthographic:
        origin, direction = direction - torch.tensor([0.0, 0, 1]), torch.tensor([[0.0, 0, 1]], dtype=torch.float64)
    corners = [mesh.vertices[0].double()[mesh.faces[:, i]] - origin[:, None] for i in range(3)]
    a, b, c = corners
    direction = direction[:, None]
    sides = [(direction * torch.linalg.cross(p, q)).sum(-1) for p, q in ((b, c), (c, a), (a, b))]
    total = sum(sides)
    inside = torch.stack([s * total.sign() >= 0 for s in sides]).all(0) & (total != 0)
    depth = (a * torch.linalg.cross(b, c)).sum(-1) / torch.where(total == 0, 1.0, total)
    seen = inside & (camera.orthographic | (depth >= near))
    nearest = torch.where(seen, depth, torch.inf).amin(1)
    return torch.where(nearest.isinf(), 0.0, nearest).reshape(height, width)


@pytest.mark.parametrize("camera", [pinhole(), WEAK, pinhole((33, 40), 12.0)], ids=["perspective", "weak", "wide"])
@pytest.mark.parametrize(
    "mesh", [soup(50, 21), soup(50, 22), ball((0.0, 0.1, 0.3)), ball((0.4, 0.1, 2.0))], ids=["a", "b", "inside", "ball"]
)
def test_depth_is_that_of_the_rays(mesh: Mesh, camera: Camera) -> None:
    expected = cast_rays(mesh, camera, near=0.2)
    depth = WARP.rasterize(mesh, camera, near=0.2).depth[0]
    differ = (depth - expected).abs() > 1e-4 * (1 + expected.abs())
    # Centres within rounding of an edge may fall to either side.
    assert differ.sum() <= 1
    assert (expected != 0).sum() > 100


def test_meshes_of_different_size_in_one_batch(pytorch3d) -> None:
    meshes = [ball((0, 0, 4.0), rows=2), soup(30, 3), ball((0.5, 0, 3.0), level=1)]
    meshes[0].vertices[1] += 0.3
    camera = pinhole(batch=4)
    together = WARP.rasterize(meshes, camera)
    theirs = pytorch3d.rasterize(meshes, camera)
    assert (together.face != theirs.face).sum() <= 2
    starts = Scene.separate(meshes).face_starts
    singles = [meshes[0][0], meshes[0][1], meshes[1], meshes[2]]
    firsts = [0, len(meshes[0].faces), starts[1], starts[2]]
    for i, (mesh, first) in enumerate(zip(singles, firsts, strict=True)):
        alone = WARP.rasterize(mesh, camera[i])
        assert torch.equal(torch.where(alone.face >= 0, alone.face + first, -1)[0], together.face[i])
        assert torch.equal(alone.depth[0], together.depth[i])


def test_people_hide_each_other_and_are_seen_apart() -> None:
    near, far = ball((0.4, 0, 3.0), 0.8), ball((-0.3, 0, 5.0), 1.2)
    camera = pinhole((64, 48), 50.0)
    scene = Scene.together([far, near])
    both = WARP.rasterize(scene, camera)
    apart = WARP.rasterize(scene.apart(), camera)
    assert apart.face.shape == (2, 48, 64)
    masks, depths = apart.mask[:, 0], apart.depth
    overlap = masks.all(0)
    assert overlap.any()
    assert torch.equal(both.mask[0, 0], masks.any(0))
    person = (both.face[0] >= scene.face_starts[1]).long()
    assert (person[overlap] == 1).all()
    assert torch.equal(both.depth[0][masks[0] & ~overlap], depths[0][masks[0] & ~overlap])
    assert (depths[0][overlap] > depths[1][overlap]).all()
    # The hidden surface has gradients too, which the depth-ordering loss needs.
    far.vertices.requires_grad_()
    WARP.rasterize(Scene.together([far, near]).apart(), camera).depth[0][overlap].sum().backward()
    assert far.vertices.grad is not None
    assert far.vertices.grad[..., 2].sum() > 0.9 * overlap.sum()


def test_rows_may_go_to_pictures_in_any_order() -> None:
    body, thing = ball((0, 0, 4.0), rows=2), ball((0.6, 0, 3.0), 0.5, 1, rows=2)
    body.vertices[1] -= 0.2
    camera = pinhole(batch=2)
    mixed = WARP.rasterize(Scene((body, thing), torch.tensor([0, 1, 0, 1]), 2), camera)
    for i in range(2):
        one = WARP.rasterize(Scene.together([body[i], thing[i]]), camera[i])
        assert torch.equal(one.depth[0], mixed.depth[i])


@pytest.mark.parametrize("tilt", [0.0, 0.4, 1.1])
def test_a_plane_through_the_camera_is_cut_at_the_near_plane(tilt: float) -> None:
    """Depth of the ground plane y = 1 + tan(tilt) x, from in front of the camera to behind it, at every pixel."""
    corners = torch.tensor([[-60.0, 0, -30], [60, 0, -30], [60, 0, 90], [-60, 0, 90]])
    corners[:, 1] = 1 + math.tan(tilt) * corners[:, 0]
    mesh = Mesh(corners[None], torch.tensor([[0, 1, 2], [0, 2, 3]]))
    camera = pinhole((48, 40), 30.0)
    fragments = WARP.rasterize(mesh, camera, near=1.5)
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    ray = torch.stack([(x - 24) / 30, (y - 20) / 30], -1)
    expected = 1 / (ray[..., 1] - math.tan(tilt) * ray[..., 0])
    inside = (expected > 1.501) & (expected < 89.9) & (expected * ray[..., 0].abs() < 59.9)
    assert torch.allclose(fragments.depth[0][inside], expected[inside], rtol=1e-4)
    assert not fragments.mask[0, 0][(expected < 1.499) | (expected < 0)].any()


def test_no_gap_and_no_overlap_between_faces() -> None:
    """A square cut into slivers covers every pixel, and each face's pixels are the ones whose centre it holds."""
    generator = torch.Generator().manual_seed(5)
    rim = torch.tensor([[-2.0, -2], [2, -2], [2, 2], [-2, 2]])
    centre = torch.rand(1, 2, generator=generator) - 0.5
    points = torch.cat([rim, centre])
    faces = torch.tensor([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
    for _ in range(60):
        # Split a random face at a random point: slivers of every shape, sharing edges exactly.
        f = int(torch.randint(len(faces), (1,), generator=generator))
        w = torch.rand(3, generator=generator)
        points = torch.cat([points, (w / w.sum() @ points[faces[f]])[None]])
        a, b, c = faces[f].tolist()
        n = len(points) - 1
        faces = torch.cat([faces[:f], faces[f + 1 :], torch.tensor([[a, b, n], [b, c, n], [c, a, n]])])
    vertices = torch.cat([points, torch.full((len(points), 1), 2.0)], 1)
    fragments = WARP.rasterize(Mesh(vertices[None], faces), pinhole((64, 64), 64.0))
    assert fragments.mask.all()
    assert (fragments.barycentrics >= -1e-5).all()
    assert torch.allclose(fragments.barycentrics.sum(-1), torch.ones(()))


def test_ties_go_to_the_smaller_face_number() -> None:
    square = torch.tensor([[-1.0, -1, 2], [1, -1, 2], [1, 1, 2], [-1, 1, 2]])
    mesh = Mesh(square[None], torch.tensor([[0, 2, 3], [0, 1, 2], [0, 1, 2], [0, 2, 3]]))
    assert set(WARP.rasterize(mesh, pinhole((32, 32))).face.unique().tolist()) <= {-1, 0, 1}


@pytest.mark.parametrize("orthographic", [False, True])
def test_gradients_to_vertices_and_camera(orthographic: bool) -> None:
    mesh = soup(6, 11, torch.float64)
    camera = dataclasses.replace(pinhole((10, 9), 9.0, dtype=torch.float64), orthographic=orthographic)

    def draw(vertices: Tensor, K: Tensor, R: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        fragments = WARP.rasterize(
            dataclasses.replace(mesh, vertices=vertices), dataclasses.replace(camera, K=K, R=R, t=t), near=0.3
        )
        return fragments.barycentrics, fragments.depth

    arguments = [v.clone().requires_grad_() for v in (mesh.vertices, camera.K, camera.R, camera.t)]
    assert (draw(*arguments)[1] > 0).sum() > 20
    assert torch.autograd.gradcheck(draw, arguments, eps=1e-7, atol=1e-5, rtol=1e-4)


ODD = {
    "a point": [[0.0, 0, 3]] * 3,
    "a line": [[0.0, 0, 3], [1, 1, 3], [0.5, 0.5, 3]],
    "behind": [[0.0, 0, -3], [1, 0, -3], [0, 1, -3]],
    "on the camera plane": [[0.0, 1, 0], [1, 1, 0], [0, 2, 0]],
    "through the camera": [[0.0, 0, -1], [0, 0, 1], [0, 1, 0]],
    "off the picture": [[90.0, 0, 3], [91, 0, 3], [90, 1, 3]],
    "huge": [[1e9, 0, 9], [0, 1e9, 9], [-1e9, -1e9, 9]],
    "a sliver": [[-1.0, 0, 3], [1, 1e-7, 3], [1, 0, 3]],
}


@pytest.mark.parametrize("corners", ODD.values(), ids=ODD)
@pytest.mark.parametrize("orthographic", [False, True])
def test_odd_faces_give_finite_numbers(corners: list[list[float]], orthographic: bool) -> None:
    """Beside a proper face, which must keep its own gradients."""
    proper = torch.tensor([[-1.0, -1, 4], [1, -1, 4], [0, 1, 4]])
    vertices = torch.cat([torch.tensor(corners), proper])[None].requires_grad_()
    mesh = Mesh(vertices, torch.arange(6).reshape(2, 3))
    camera = dataclasses.replace(pinhole(), orthographic=orthographic)
    camera.K[:, :2, :2] *= 0.3 if orthographic else 1
    fragments = WARP.rasterize(mesh, camera)
    picture = WARP.render(mesh, camera, light=torch.rand(1, 9, 3), antialias=True).image
    coverage = WARP.silhouette(mesh, camera) + WARP.soft_silhouette(mesh, camera)
    total = fragments.barycentrics.square().sum() + fragments.depth.sum() + picture.sum() + coverage.sum()
    total.backward()
    assert torch.isfinite(total)
    assert vertices.grad is not None
    assert torch.isfinite(vertices.grad).all()
    assert vertices.grad[0, 3:].abs().sum() > 0


@pytest.mark.parametrize("name", ["warp", "pytorch3d"])
def test_empty_scenes(name: str, request: pytest.FixtureRequest) -> None:
    renderer = WARP if name == "warp" else request.getfixturevalue("pytorch3d")
    nobody = Mesh(torch.zeros(0, 5, 3), torch.zeros(0, 3, dtype=torch.int64))
    faceless = Mesh(torch.zeros(2, 5, 3), torch.zeros(0, 3, dtype=torch.int64))
    for scene, pictures in ((Scene.separate(nobody), 0), (Scene.separate(faceless), 2), (Scene.together([]), 1)):
        camera = pinhole(batch=pictures)
        fragments = renderer.rasterize(scene, camera)
        assert fragments.face.shape == (pictures, 32, 40)
        assert not fragments.mask.any()
        assert renderer.render(scene, camera, background=0.5, antialias=True).image.eq(0.5).all()
        assert renderer.soft_silhouette(scene, camera).shape == (pictures, 1, 32, 40)
        assert renderer.silhouette(scene, camera).shape == (pictures, 1, 32, 40)
        assert len(renderer.face_probabilities(scene, camera).face) == 0


def test_one_camera_serves_all_pictures() -> None:
    meshes = ball((0, 0, 3.0), rows=3)
    one, three = WARP.rasterize(meshes, pinhole()), WARP.rasterize(meshes, pinhole(batch=3))
    assert torch.equal(one.depth, three.depth)


def test_threads_change_nothing() -> None:
    """Pictures shared among threads, and one large picture shared by rows: the same bits, forward and backward."""
    cases = [(ball((0, 0, 3.0), rows=5, level=3), pinhole((64, 64), 60.0)), (soup(60, 7), pinhole((96, 640), 300.0))]
    before = torch.get_num_threads()
    try:
        for mesh, camera in cases:
            vertices = mesh.vertices.requires_grad_()
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                fragments = WARP.rasterize(mesh, camera)
                soft = WARP.soft_silhouette(mesh, camera)
                (from_soft,) = torch.autograd.grad(soft.sum(), vertices)
                results.append((fragments.face, fragments.depth, soft, from_soft, *gradients(fragments, vertices)))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


def test_a_picture_of_24_megapixels() -> None:
    """The half below the diagonal, to the last pixel."""
    width, height, focal, z = 6000, 4000, 6000.0, 2.0
    corners = torch.tensor([[width, 0.0], [width, height], [0, height]]) - torch.tensor([width / 2, height / 2])
    mesh = Mesh(torch.cat([corners * z / focal, torch.full((3, 1), z)], 1)[None], torch.tensor([[0, 1, 2]]))
    camera = Camera.perspective(focal, (width, height))
    with torch.no_grad():
        fragments = WARP.rasterize(mesh, camera)
        assert fragments.face[0, -1, -1] == 0
        assert fragments.face[0, 0, 0] == -1
        assert fragments.mask.sum().item() == pytest.approx(width * height / 2, rel=1e-3)
        torch.testing.assert_close(fragments.depth[fragments.face >= 0].mean(), torch.tensor(z))
        del fragments
        area = WARP.silhouette(mesh, camera).sum(dtype=torch.float64).item()
    assert area == pytest.approx(width * height / 2, abs=2)
