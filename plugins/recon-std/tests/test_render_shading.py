"""Textures, colours, light and backgrounds over fragments, and what a renderer says of unusable scenes."""

from __future__ import annotations

import dataclasses
import importlib
import sys

import pytest
import torch
from torch import Tensor

from recon_core.errors import PluginError, UsageError
from recon_core.geometry.primitives import icosphere
from recon_core.plugins import registry
from recon_core.rendering import Scene, directional_light, harmonics, irradiance, sample_texture, vertex_normals
from recon_core.structures import Camera, Mesh

WARP = registry().create("renderer", "warp")


def camera(size: tuple[int, int] = (32, 32), dtype: torch.dtype = torch.float32, batch: int = 1) -> Camera:
    return Camera.perspective(torch.tensor(32.0, dtype=dtype), size, batch=batch)


def board(dtype: torch.dtype = torch.float32, **painted: Tensor) -> Mesh:
    """A square that fills the 32 x 32 picture, its texture upright in it."""
    corners = torch.tensor([[-0.5, -0.5, 1], [0.5, -0.5, 1], [0.5, 0.5, 1], [-0.5, 0.5, 1]], dtype=dtype)
    uv = torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]], dtype=dtype)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    return Mesh((corners * 2)[None], faces, uv=uv, uv_faces=faces, **painted)


def test_a_texture_of_the_pictures_size_is_reproduced() -> None:
    texture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    image = WARP.render(board(texture=texture), camera()).image
    assert torch.allclose(image, texture, atol=1e-4)


def test_textures_wrap_and_interpolate() -> None:
    texture = torch.arange(4.0).reshape(1, 1, 1, 4)
    at = lambda u: sample_texture(texture, torch.zeros(1).long(), torch.tensor([[u, 0.5]])).item()  # noqa: E731
    assert at(0.125) == pytest.approx(0)
    assert at(0.25) == pytest.approx(0.5)
    assert at(0.0) == pytest.approx(1.5)
    assert at(1.0) == pytest.approx(1.5)
    assert at(2.375) == pytest.approx(1)
    assert at(-0.125) == pytest.approx(3)


def test_gradients_to_texture_colours_light_and_background() -> None:
    generator = torch.Generator().manual_seed(1)
    rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    lens = camera((6, 5), torch.float64)
    mesh = board(torch.float64)
    tilted = mesh.vertices + rand(1, 4, 3) * torch.tensor([0.2, 0.2, 0.5])

    def textured(vertices: Tensor, texture: Tensor, light: Tensor, background: Tensor) -> Tensor:
        drawn = dataclasses.replace(mesh, vertices=vertices, texture=texture)
        return WARP.render(drawn, lens, light, background).image

    def coloured(vertices: Tensor, colors: Tensor, light: Tensor) -> Tensor:
        return WARP.render(dataclasses.replace(mesh, vertices=vertices, colors=colors), lens, light).image

    lens.K[:, 0, 0] = 4.0
    light = rand(1, 9, 3) + torch.tensor([2.0] + [0] * 8)[:, None]
    inputs = [v.requires_grad_() for v in (tilted, rand(1, 3, 3, 4), light, rand(1, 3, 5, 6))]
    assert torch.autograd.gradcheck(textured, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)
    inputs = [v.requires_grad_() for v in (tilted, rand(1, 4, 2), light[..., :1].detach())]
    assert torch.autograd.gradcheck(coloured, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)


def test_each_row_has_its_own_texture_and_meshes_mix() -> None:
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    boards = board(texture=colours[:, :, None, None].expand(2, 3, 4, 4))
    boards = dataclasses.replace(boards, vertices=boards.vertices.expand(2, 4, 3))
    near = board(colors=torch.tensor([0.0, 0, 1]).expand(1, 4, 3))
    near = dataclasses.replace(near, vertices=near.vertices * torch.tensor([0.25, 0.25, 0.5]))
    bare = dataclasses.replace(near, vertices=near.vertices + torch.tensor([0.25, 0, -0.05]), colors=None)
    scene = Scene((boards, near, bare), torch.tensor([0, 1, 1, 1]), 2)
    image = WARP.render(scene, camera(batch=2)).image
    assert image[0].mean((1, 2)).tolist() == [1, 0, 0]
    assert image[1, :, 2, 2].tolist() == [0, 1, 0]
    assert image[1, :, 16, 10].tolist() == [0, 0, 1]
    assert image[1, 0, 16, 26] == image[1, 1, 16, 26] == pytest.approx(0.7)


def test_attributes_of_any_number_of_channels_and_backgrounds() -> None:
    colors = torch.rand(1, 4, 5)
    image = WARP.render(board(colors=colors), camera((40, 32)), background=torch.arange(5.0)).image
    assert image.shape == (1, 5, 32, 40)
    assert (image[0, :, :, :4] == torch.arange(5.0)[:, None, None]).all()
    behind = torch.rand(1, 5, 32, 40)
    over = WARP.render(board(colors=colors), camera((40, 32)), background=behind).image
    assert torch.equal(over[..., :4], behind[..., :4])


def test_harmonics_are_orthonormal() -> None:
    """Over the sphere, by a product rule that is exact for the degrees involved."""
    nodes, weights = (torch.tensor(v) for v in __import__("numpy").polynomial.legendre.leggauss(6))
    phi = torch.arange(12, dtype=torch.float64) * (2 * torch.pi / 12)
    z = nodes[:, None].expand(6, 12)
    r = (1 - z * z).sqrt()
    basis = harmonics(torch.stack([r * phi.cos(), r * phi.sin(), z], -1))
    gram = torch.einsum("ijk,ijl,i->kl", basis, basis, weights) * (2 * torch.pi / 12)
    assert torch.allclose(gram, torch.eye(9, dtype=torch.float64), atol=1e-5)


def test_a_lamp_lights_what_faces_it() -> None:
    vertices, faces = icosphere(3)
    normals = vertex_normals(vertices, faces)
    assert (normals * vertices).sum(1).min() > 0.999
    lamp = torch.tensor([[0.6, -0.64, 0.48]])
    falling = irradiance(directional_light(lamp, ambient=0.2, diffuse=0.7), torch.zeros(642).long(), normals)[:, 0]
    lambert = 0.2 + 0.7 * (normals @ lamp[0]).clamp(min=0)
    assert (falling - lambert).abs().max() < 0.7 * 0.1


def refused(message: str, *meshes: Mesh, lens: Camera | None = None) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        WARP.render(list(meshes), lens or camera(batch=len(meshes)))
    assert "\n" not in str(caught.value)


def test_unusable_scenes_are_named() -> None:
    good = board()
    nan = good.vertices.clone()
    nan[0, 2, 1] = torch.nan
    refused("mesh 1 has 4 vertices, but its faces name vertex 5", good, dataclasses.replace(good, faces=good.faces + 2))
    refused("faces name vertex -1: indices must be 0..3", dataclasses.replace(good, faces=good.faces - 1))
    refused("mesh 0 has a NaN or infinite vertex: row 0, vertex 2", dataclasses.replace(good, vertices=nan))
    refused("texture but no UV", Mesh(good.vertices, good.faces, texture=torch.zeros(1, 3, 2, 2)))
    outside = dataclasses.replace(good, texture=torch.zeros(1, 3, 2, 2), uv=torch.zeros(3, 2), uv_faces=good.faces)
    refused("mesh 0 has 3 UV coordinates, but its uv_faces name coordinate 3: indices must be 0..2", outside)
    refused("2 textures: give one a row", dataclasses.replace(good, texture=torch.zeros(2, 3, 2, 2)))
    refused("1 uv_faces: they must correspond", dataclasses.replace(good, uv_faces=good.faces[:1]))
    refused("give one color a vertex", dataclasses.replace(good, colors=torch.zeros(1, 3, 3)))
    refused("1 pictures are drawn with 3 cameras", good, lens=camera(batch=3))
    refused("bring one to the other with .to()", good, lens=camera(dtype=torch.float64))
    refused("bring them to one dtype", good, board(torch.float64))
    mixed = Scene.together(
        [
            dataclasses.replace(good, colors=torch.zeros(1, 4, 2)),
            dataclasses.replace(good, vertices=good.vertices + 0.1, colors=torch.zeros(1, 4, 3)),
        ]
    )
    with pytest.raises(UsageError, match="same number of channels"):
        WARP.render(mixed, camera())
    with pytest.raises(UsageError, match="picture numbers"):
        Scene((good,), torch.tensor([1]), 1)
    with pytest.raises(UsageError, match="float32 and float64 meshes, not torch.float16"):
        WARP.rasterize(board(torch.float16), camera(dtype=torch.float16))


def test_unknown_and_broken_renderers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown renderer 'wrap'; did you mean 'warp'"):
        registry().entry("renderer", "wrap")
    monkeypatch.setitem(sys.modules, "pytorch3d", None)
    monkeypatch.delitem(sys.modules, "recon_std.renderers.pytorch3d", raising=False)
    for name in [m for m in sys.modules if m.startswith("pytorch3d.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(PluginError, match=r"pytorch3d does not work here .*use renderer 'warp'"):
        importlib.import_module("recon_std.renderers.pytorch3d")


def test_warp_that_cannot_compile_says_so(tmp_path) -> None:
    import os
    import subprocess

    (tmp_path / "file").write_text("")
    program = (
        "import torch; from recon_core.structures import *; from recon_std.renderers.warp import WarpRenderer\n"
        "WarpRenderer().rasterize(Mesh(torch.rand(1, 3, 3), torch.tensor([[0, 1, 2]])), Camera.perspective(9., (8, 8)))"
    )
    environment = os.environ | {"WARP_CACHE_PATH": str(tmp_path / "file" / "cache")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == ""
    assert "PluginError: Warp does not work here" in done.stderr.splitlines()[-1]
    assert "WARP_CACHE_PATH" in done.stderr.splitlines()[-1]
