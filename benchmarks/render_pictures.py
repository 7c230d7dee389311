"""What bench_render.py draws: a standing body, a sphere fitted to its silhouettes, and pictures to look at."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recon_core.export.pictures import depth_map, normal_map, overlay, scalar_colors, side_view, top_view, wireframe
from recon_core.geometry.primitives import icosphere
from recon_core.geometry.topology import edges
from recon_core.interfaces import Renderer
from recon_core.rendering import Scene, SoftSettings, directional_light, interpolate
from recon_core.structures import BodyParameters, Camera, Mesh
from recon_std.bodies import load_body


def standing_body(rows: int) -> Mesh:
    """The free body at full resolution, arms lowered, three metres before the camera, each row a little aside."""
    body = load_body("free-full")
    pose = torch.eye(3).repeat(rows, 24, 1, 1)
    pose[:, 0] = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    for joint, angle in ((16, -0.9), (17, 0.9), (1, 0.1), (2, -0.1)):
        c, s = math.cos(angle), math.sin(angle)
        pose[:, joint] = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    place = torch.tensor([[0.02 * i, 0.01 * i, 3.0] for i in range(rows)])
    with torch.no_grad():
        vertices = body(BodyParameters(pose, torch.zeros(rows, body.shape_count), torch.zeros(rows, 3))).vertices
    middle = (vertices[:1].amin(1) + vertices[:1].amax(1)) / 2
    return Mesh(vertices - middle[:, None] + place[:, None], body.faces, body.uv, body.uv_faces)


def turned(vertices: Tensor, angle: float) -> Tensor:
    """Vertices turned about a vertical axis through their middle."""
    c, s = math.cos(angle), math.sin(angle)
    middle = vertices.mean(1, keepdim=True)
    return (vertices - middle) @ vertices.new_tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]]) + middle


def around(views: int, size: int) -> Camera:
    """Cameras in a circle about the origin, every second one raised, upright in a frame whose y is down."""
    azimuth = torch.arange(views) * (2 * math.pi / views)
    elevation = torch.tensor([0.0, 0.5]).repeat(views // 2)
    one, none = torch.ones(views), torch.zeros(views)
    c, s = azimuth.cos(), azimuth.sin()
    about_y = torch.stack([c, none, -s, none, one, none, s, none, c], -1).reshape(-1, 3, 3)
    c, s = elevation.cos(), elevation.sin()
    about_x = torch.stack([one, none, none, none, c, -s, none, s, c], -1).reshape(-1, 3, 3)
    camera = Camera.perspective(size * 1.2, (size, size), batch=views)
    return dataclasses.replace(camera, R=about_x @ about_y, t=torch.tensor([0, 0, 2.6]).expand(views, 3))


def fit_sphere(renderer: Renderer, body: Mesh, out: Path, views: int = 8, size: int = 128) -> float:
    """Deform a sphere until its antialiased silhouettes are the body's; returns the mean IoU of the hard ones.

    Steps are taken in smoothed coordinates, u = (I + lambda L) v (Nicolet et al., SIGGRAPH Asia 2021), with lambda
    falling from stage to stage.
    """
    device = body.vertices.device
    vertices, faces = icosphere(4)
    vertices, faces, camera = (vertices * 0.5).to(device), faces.to(device), around(views, size).to(device)
    truth = body.vertices[:1] - (body.vertices[:1].amin(1) + body.vertices[:1].amax(1))[:, None] / 2
    drawn = lambda v, f: renderer.silhouette(Mesh(v.expand(views, -1, -1), f), camera)  # noqa: E731
    with torch.no_grad():
        target = drawn(truth, body.faces)
    ends = edges(faces).vertices
    laplacian = torch.zeros(len(vertices), len(vertices), device=device)
    laplacian[ends[:, 0], ends[:, 1]] = laplacian[ends[:, 1], ends[:, 0]] = -1
    laplacian -= torch.diag(laplacian.sum(1))
    begun = time.perf_counter()
    for smoothing, rate, steps in ((5.0, 0.3, 120), (1.0, 0.2, 120), (0.3, 0.05, 80)):
        system = torch.eye(len(vertices), device=device) + smoothing * laplacian
        factor = torch.linalg.cholesky(system)
        u = (system @ vertices).requires_grad_()
        optimizer = UniformAdam(u, rate)
        for _ in range(steps):
            loss = (drawn(torch.cholesky_solve(u, factor), faces) - target).square().sum()
            optimizer.step(torch.autograd.grad(loss, u)[0], factor)
        vertices = torch.cholesky_solve(u, factor).detach()
    seconds = time.perf_counter() - begun
    fitted, wanted = drawn(vertices, faces) > 0.5, target > 0.5
    iou = ((fitted & wanted).sum((1, 2, 3)) / (fitted | wanted).sum((1, 2, 3))).cpu()
    print(f"\nsphere of {len(faces)} faces fitted to {views} silhouettes of {size}x{size}: ", end="")
    print(f"IoU {iou.mean():.3f} (worst view {iou.min():.3f}) after 320 steps in {seconds:.0f} s")
    lit = renderer.render(
        Mesh(vertices.expand(views, -1, -1), faces),
        camera,
        directional_light(camera.K.new_tensor([[-0.4, -0.5, -0.8]])),
    )
    rows = [torch.cat(list(image), -1) for image in (target.expand(-1, 3, -1, -1), lit.image)]
    save(out / "fitted_sphere.png", torch.cat(rows, 1))
    return iou.mean().item()


class UniformAdam:
    """Adam with one step length for all coordinates, that of the largest, which keeps smooth steps smooth."""

    def __init__(self, value: Tensor, rate: float) -> None:
        self.value, self.rate, self.count = value, rate, 0
        self.mean, self.square = torch.zeros_like(value), torch.zeros_like(value)

    def step(self, gradient: Tensor, factor: Tensor) -> None:
        gradient = torch.cholesky_solve(gradient, factor)
        self.count += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.001)
        size = (self.square / (1 - 0.999**self.count)).max().sqrt() + 1e-12
        self.value.data -= self.rate * (self.mean / (1 - 0.9**self.count)) / size


def gallery(renderer: Renderer, body: Mesh, out: Path) -> None:
    """Pictures of everything the renderer gives, for a person to look at."""
    device = body.vertices.device
    one = Mesh(body.vertices[:1].detach(), body.faces, body.uv.to(device), body.uv_faces.to(device))  # type: ignore[union-attr]
    camera = Camera.perspective(640.0, (320, 448)).to(device)
    textured = dataclasses.replace(one, texture=_checks().to(device))
    lamps = torch.tensor([[-1.0, -0.4, -0.4], [1.0, -0.2, -0.5], [0.1, -1.0, 0.1]], device=device)
    lights = [directional_light(lamp[None], ambient=0.25, diffuse=0.8) for lamp in lamps]
    save(
        out / "three_lights.png",
        torch.cat([renderer.render(textured, camera, light, 0.15, antialias=True).image[0] for light in lights], -1),
    )
    tiny = Camera.perspective(96.0, (48, 64)).to(device)
    views = [
        renderer.rasterize(one, tiny).mask.float(),
        renderer.silhouette(one, tiny),
        renderer.soft_silhouette(one, tiny),
        renderer.soft_silhouette(one, tiny, SoftSettings(sigma=1e-3)),
        renderer.soft_silhouette(one, tiny, SoftSettings(sigma=1e-3, faces_per_pixel=20)),
    ]
    row = torch.cat([view[0] for view in views], -1).expand(3, -1, -1)
    save(out / "edges_hard_antialiased_soft.png", row.repeat_interleave(5, 1).repeat_interleave(5, 2))
    other = Mesh(one.vertices + one.vertices.new_tensor([0.45, 0.0, 0.5]), one.faces)
    photo = np.full((448, 320, 3), 60, np.uint8)
    people = [Mesh(one.vertices, one.faces), other]
    pictures = {
        "two_people": overlay(photo, people, camera, renderer),
        "depth": depth_map(people, camera, renderer),
        "normals": normal_map(people, camera, renderer),
        "wireframe": wireframe(photo, people, camera, renderer),
        "scalars": overlay(
            photo, dataclasses.replace(one, colors=scalar_colors(one.vertices[..., 1]), texture=None), camera, renderer
        ),
        "parts": _parts(renderer, one, camera),
    }
    save(out / "pictures.png", np.concatenate(list(pictures.values()), 1))
    sides = [side_view(people, renderer, (320, 320)), top_view(people, renderer, (320, 320))]
    save(out / "side_and_top.png", np.concatenate(sides, 1))
    print(f"\npictures in {out}")


def _parts(renderer: Renderer, mesh: Mesh, camera: Camera) -> np.ndarray:
    """The body part at each pixel, by the skinning weights of the surface there."""
    weights = load_body("free-full").weights.to(mesh.vertices)
    scene = Scene.separate(mesh)
    visible = renderer.rasterize(scene, camera).visible
    part = interpolate(visible, scene.faces, weights).argmax(1)
    palette = torch.rand(24, 3, generator=torch.Generator().manual_seed(3)).to(weights) * 0.8 + 0.2
    return (visible.image(palette[part])[0].permute(1, 2, 0).cpu() * 255).to(torch.uint8).numpy()


def _checks() -> Tensor:
    """A texture that shows its coordinates: checks whose colour changes along u and v."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 1024), torch.linspace(0, 1, 1024), indexing="ij")
    odd = ((x * 48).floor() + (y * 48).floor()) % 2
    return (torch.stack([0.3 + 0.6 * x, 0.75 - 0.4 * y, 0.9 - 0.5 * x]) * (0.6 + 0.4 * odd))[None]


def save(path: Path, image: Tensor | np.ndarray) -> None:
    """A picture (3, H, W) in [0, 1], or (H, W, 3) uint8, as PNG."""
    if isinstance(image, Tensor):
        image = (image.detach().clamp(0, 1).permute(1, 2, 0).cpu() * 255 + 0.5).to(torch.uint8).numpy()
    Image.fromarray(image).save(path)
