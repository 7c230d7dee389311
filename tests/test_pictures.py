"""Pictures for people, drawn with the default renderer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from recon_core.errors import UsageError
from recon_core.export import pictures
from recon_core.export.pictures import (
    depth_map,
    normal_map,
    overlay,
    scalar_colors,
    side_view,
    top_view,
    wireframe,
)
from recon_core.geometry.primitives import icosphere
from recon_core.plugins import registry
from recon_core.structures import Camera, Mesh

RENDERER = registry().create("renderer", "warp")
CAMERA = Camera.perspective(80.0, (96, 72))


def ball(x: float, y: float, z: float, radius: float = 0.8) -> Mesh:
    vertices, faces = icosphere(3)
    return Mesh((vertices * radius + torch.tensor([x, y, z]))[None], faces)


def photo(height: int = 72, width: int = 96) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_overlay_draws_over_the_photo_and_leaves_it_elsewhere() -> None:
    picture = photo()
    before = picture.copy()
    red, green = (1.0, 0.1, 0.1), (0.1, 1.0, 0.1)
    drawn = overlay(picture, [ball(-0.3, 0, 3), ball(0.4, 0, 4)], CAMERA, RENDERER, colors=[red, green])
    assert drawn.dtype == np.uint8
    assert np.array_equal(picture, before)
    mask = RENDERER.rasterize(ball(-0.3, 0, 3), CAMERA).mask[0, 0].numpy()
    other = RENDERER.rasterize(ball(0.4, 0, 4), CAMERA).mask[0, 0].numpy()
    inner = np.s_[30:42, 30:50]
    assert mask[inner].all()
    assert (drawn[inner][..., 0] > 2 * drawn[inner][..., 1]).all()
    hidden = other & ~mask
    assert (drawn[hidden][:, 1] > drawn[hidden][:, 0]).mean() > 0.95
    assert np.array_equal(drawn[:, :5], picture[:, :5])
    half = overlay(picture, ball(-0.3, 0, 3), CAMERA, RENDERER, colors=[red], opacity=0.5)
    expected = (drawn[inner].astype(float) + picture[inner]) / 2
    assert np.abs(half[inner] - expected).max() <= 1


def test_bands_make_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    meshes = [ball(-0.3, 0.1, 3), ball(0.4, -0.2, 4)]
    textured = dataclasses.replace(
        meshes[0], uv=torch.rand(642, 2), uv_faces=meshes[0].faces, texture=torch.rand(1, 3, 8, 8)
    )
    cases = [
        lambda: overlay(photo(), meshes, CAMERA, RENDERER),
        lambda: overlay(photo(), [textured, meshes[1]], CAMERA, RENDERER, opacity=0.7),
        lambda: wireframe(photo(), meshes, CAMERA, RENDERER),
        lambda: depth_map(meshes, CAMERA, RENDERER),
    ]
    whole = [draw() for draw in cases]
    monkeypatch.setattr(pictures, "BAND_PIXELS", 96 * 5)
    monkeypatch.setattr(pictures, "CHUNK_PIXELS", 100)
    for draw, expected in zip(cases, whole, strict=True):
        assert np.abs(draw().astype(int) - expected).max() <= 1


def test_the_outline_is_smooth() -> None:
    """White on black: the share of grey pixels is that of an outline, and the total is the ball's area."""
    disc = dataclasses.replace(ball(0.01, 0.02, 3), colors=torch.full((1, 642, 3), 100.0))
    drawn = overlay(np.zeros((72, 96, 3), np.uint8), disc, CAMERA, RENDERER)[..., 0] / 255
    grey = ((drawn > 0.02) & (drawn < 0.98)).sum()
    assert 60 < grey < 260
    alpha = RENDERER.silhouette(ball(0.01, 0.02, 3), CAMERA)[0, 0].numpy()
    assert np.abs(drawn - alpha).max() < 0.02


def test_normals_and_depth() -> None:
    normals = normal_map(ball(0, 0, 3), CAMERA, RENDERER)
    assert np.abs(normals[36, 48].astype(int) - [127, 127, 255]).max() < 8
    assert normals[36, 60, 0] > 180
    assert normals[20, 48, 1] > 180
    assert not normals[:, :10].any()
    turned = dataclasses.replace(CAMERA, R=torch.tensor([[[0.0, 0, -1], [0, 1, 0], [1, 0, 0]]]))
    from_the_side = normal_map(ball(3, 0, 0), turned, RENDERER)
    assert np.abs(from_the_side[36, 48].astype(int) - [127, 127, 255]).max() < 8
    depth = depth_map([ball(-0.8, 0, 3, 0.4), ball(0.8, 0, 5, 0.4)], CAMERA, RENDERER, limits=(2.0, 6.0))
    near, far = depth[36, 27, 0], depth[36, 61, 0]
    assert near == pytest.approx(255 * (1 - 0.85 * 0.6 / 4), abs=4)
    assert far == pytest.approx(255 * (1 - 0.85 * 2.6 / 4), abs=4)
    assert depth[0, 0].tolist() == [0, 0, 0]


def test_side_and_top_views_show_what_lies_where() -> None:
    """In the camera frame y is down and z forward: from the side what is far is left, from above it is up."""
    low_and_far, high_and_near = ball(0, 1.0, 6, 0.5), ball(0, -1.0, 3, 0.5)
    colors = [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]
    side = side_view([low_and_far, high_and_near], RENDERER, (120, 100), colors).astype(int)
    top = top_view([low_and_far, high_and_near], RENDERER, (120, 100), colors).astype(int)
    place = lambda view, channel: np.argwhere(view[..., channel] - view[..., 2 - channel] > 60).mean(0)  # noqa: E731
    assert place(side, 0)[0] > place(side, 2)[0] + 30
    assert place(side, 0)[1] < place(side, 2)[1] - 30
    assert place(top, 0)[0] < place(top, 2)[0] - 30
    assert side.shape == top.shape == (100, 120, 3)
    assert side_view([], RENDERER, (8, 8)).min() == 250


def test_wireframe_leaves_out_hidden_lines() -> None:
    front, back = ball(0, 0, 3), ball(0, 0, 6, 0.3)
    black = np.zeros((72, 96, 3), np.uint8)
    lines = wireframe(black, [front, back], CAMERA, RENDERER, colors=[(0, 1.0, 0), (1.0, 0, 0)])
    drawn = lines[..., 1] > 128
    covered = RENDERER.rasterize(front, CAMERA).mask.sum().item()
    assert 0.1 * covered < drawn.sum() < 0.9 * covered
    assert not lines[..., 0].any()
    thick = wireframe(black, front, CAMERA, RENDERER, width=3.0)[..., 1] > 128
    assert thick.sum() > drawn.sum()


def test_scalars_as_colours() -> None:
    values = torch.tensor([[0.0, 1, 2, 3, 4]])
    colors = scalar_colors(values)
    assert colors.shape == (1, 5, 3)
    assert colors[0, 0, 2] > colors[0, 0, 0]
    assert colors[0, 4, 0] > colors[0, 4, 2]
    assert torch.equal(scalar_colors(values, 1, 3)[0, 0], scalar_colors(values)[0, 0])
    assert torch.isfinite(scalar_colors(torch.zeros(1, 3))).all()
    shown = overlay(
        photo(), dataclasses.replace(ball(0, 0, 3), colors=scalar_colors(torch.arange(642.0)[None])), CAMERA, RENDERER
    )
    assert shown.shape == (72, 96, 3)


def test_nobody_and_wrong_sizes() -> None:
    assert np.array_equal(overlay(photo(), [], CAMERA, RENDERER), photo())
    assert np.array_equal(overlay(photo(), ball(0, 0, -3), CAMERA, RENDERER), photo())
    with pytest.raises(UsageError, match="one camera of the photo's size 96x70, got 1 of 96x72"):
        overlay(photo(70), ball(0, 0, 3), CAMERA, RENDERER)
    with pytest.raises(UsageError, match=r"\(H, W, 3\) uint8"):
        overlay(photo()[..., :2], ball(0, 0, 3), CAMERA, RENDERER)
