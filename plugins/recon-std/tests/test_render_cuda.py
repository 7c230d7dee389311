"""The same pictures and gradients on a GPU as on the CPU, which the other tests hold to the truth."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from recon_core.geometry.primitives import icosphere
from recon_core.plugins import registry
from recon_core.rendering import Scene, SoftSettings
from recon_core.structures import Camera, Mesh

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
WARP = registry().create("renderer", "warp")


def scene(device: str, dtype: torch.dtype = torch.float64) -> tuple[Scene, Camera, Tensor]:
    """Two textured balls and a soup of triangles, some behind the camera, in two pictures."""
    generator = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=dtype)  # noqa: E731
    vertices, faces = icosphere(3)
    balls = vertices.to(dtype) * 0.7 + torch.tensor([[[0.1, 0.0, 3.0]], [[-0.1, 0.1, 2.5]]], dtype=dtype)
    soup = rand(2, 90, 3) * torch.tensor([3.0, 3.0, 5.0]) - 1.5
    triangles = torch.arange(90).reshape(-1, 3)
    textured = Mesh(balls, faces, rand(len(vertices), 2), faces, rand(2, 3, 8, 8))
    coloured = Mesh(soup, triangles, colors=rand(2, 90, 3))
    camera = Camera.perspective(torch.tensor(60.0, dtype=dtype), (64, 56), batch=2)
    meshes = [mesh.to(device) for mesh in (textured, coloured)]
    leaves = [mesh.vertices.requires_grad_() for mesh in meshes]
    return Scene(tuple(meshes), torch.tensor([0, 1, 0, 1]), 2), camera.to(device), leaves


@pytest.mark.parametrize("orthographic", [False, True])
@pytest.mark.parametrize("task", ["fragments", "image", "silhouette", "soft", "soft 4", "probabilities"])
def test_gpu_and_cpu_agree(task: str, orthographic: bool) -> None:
    results = []
    for device in ("cpu", "cuda"):
        drawn, camera, leaves = scene(device)
        if orthographic:
            K = camera.K.clone()
            K[:, :2, :2] *= 0.3
            camera = dataclasses.replace(camera, K=K, orthographic=True)
        if task == "fragments":
            fragments = WARP.rasterize(drawn, camera, near=0.2)
            values = [fragments.face.double(), fragments.barycentrics, fragments.depth]
        elif task == "image":
            light = torch.linspace(1, 2, 54, device=device, dtype=torch.float64).reshape(2, 9, 3)
            values = [WARP.render(drawn, camera, light, 0.2, antialias=True).image]
        elif task == "silhouette":
            values = [WARP.silhouette(drawn, camera)]
        elif task == "probabilities":
            found = WARP.face_probabilities(drawn, camera, SoftSettings(sigma=1e-3))
            values = [found.face.double(), found.pixel.double(), found.probability, found.centers()]
        else:
            keep = 4 if task == "soft 4" else None
            values = [WARP.soft_silhouette(drawn, camera, SoftSettings(sigma=1e-3, faces_per_pixel=keep))]
        weighted = [
            (v * torch.linspace(-1, 1, v.numel(), device=device, dtype=v.dtype).reshape(v.shape)).sum()
            for v in values
            if v.requires_grad
        ]
        gradients = torch.autograd.grad(sum(weighted), leaves)
        results.append([v.detach().cpu() for v in (*values, *gradients)])
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-7 * float(one.abs().max()))


def test_gradcheck_on_the_gpu() -> None:
    corners = torch.tensor([[[-0.5, -0.4, 2], [0.6, -0.3, 2.5], [0.1, 0.7, 1.5]]], dtype=torch.float64, device="cuda")
    camera = Camera.perspective(torch.tensor(8.0, dtype=torch.float64), (8, 8)).to("cuda")

    def draw(vertices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mesh = Mesh(vertices, torch.tensor([[0, 1, 2]], device="cuda"))
        fragments = WARP.rasterize(mesh, camera)
        return fragments.barycentrics, fragments.depth, WARP.soft_silhouette(mesh, camera, SoftSettings(sigma=1e-2))

    assert torch.autograd.gradcheck(draw, corners.requires_grad_(), eps=1e-7, atol=1e-5, nondet_tol=1e-9)


def test_kernels_follow_torchs_stream() -> None:
    drawn, camera, _ = scene("cuda", torch.float32)
    expected = WARP.rasterize(drawn, camera).depth
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            assert torch.equal(WARP.rasterize(drawn, camera).depth, expected)
