"""Pictures of a result besides its overlay: turntables as GIF and video, views, uncertainty as colour."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from recon_core.errors import UsageError
from recon_core.export.pictures import PAPER
from recon_core.export.turntable import GIF_FRAMES, turntable
from recon_core.export.views import uncertainty, write_views
from recon_core.geometry.primitives import icosphere
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.plugins import registry
from recon_core.reconstruction import Reconstruction, joint_spread_mm, vertex_spread_mm
from recon_core.structures import Mesh, Samples

VIEWS = {"side.png", "top.png", "normals.png", "depth.png", "wireframe.png"}
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def ball(x: float, y: float, z: float, radius: float) -> Mesh:
    vertices, faces = icosphere(2)
    return Mesh((vertices * radius + torch.tensor([x, y, z]))[None], faces)


def column(frame: np.ndarray, channel: int) -> float:
    """Mean column, from the middle, of the pixels in which this colour outweighs the other."""
    strong = frame[..., channel].astype(int) - frame[..., 2 - channel] > 60
    return float(np.argwhere(strong)[:, 1].mean() + 0.5 - frame.shape[1] / 2)


def test_a_turn_begins_at_the_photos_side_and_goes_once_around() -> None:
    right, left = ball(1.0, 0.5, 4, 0.3), ball(-1.0, -0.5, 4, 0.3)
    frames = list(turntable([right, left], registry().create("renderer", "warp"), 8, 120, [RED, BLUE]))
    assert len(frames) == 8
    assert {frame.shape for frame in frames} == {frames[0].shape}
    height, width = frames[0].shape[:2]
    assert (height % 2, width % 2, max(height, width)) == (0, 0, 120)
    for frame in frames:  # nothing is cut off
        border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
        assert (border == PAPER).all()
        assert (frame != PAPER).any()
    assert column(frames[0], 0) > 25
    assert column(frames[0], 2) < -25
    assert column(frames[4], 0) < -25
    assert abs(column(frames[2], 0)) < 3
    assert [np.sign(column(frames[i], 0)) for i in (1, 3, 5, 7)] == [1, -1, -1, 1]
    # What is on the right goes away first, and in perspective what is far is small.
    area = [(frame[..., 0].astype(int) - frame[..., 2] > 60).sum() for frame in frames]
    assert 1.2 * area[2] < area[6]


def test_a_turntable_of_nothing_is_refused() -> None:
    renderer = registry().create("renderer", "warp")
    for meshes, frames in (([], 4), (ball(0, 0, 3, 1), 0)):
        with pytest.raises(UsageError, match="at least 1 frame"):
            next(turntable(meshes, renderer, frames))


def test_the_command_line_writes_gif_video_and_views(
    photo: Callable[..., Path], recon: Callable[..., Any], tmp_path: Path
) -> None:
    av = pytest.importorskip("av", reason="PyAV encodes the video")
    picture = photo("a.png", (20, 20, 30, 80), (90, 30, 30, 80))
    formats = ("--format", "gif,mp4,pictures")
    ran = recon("run", "--method", "toy-body", picture, "-o", tmp_path / "out", "--samples", 3, *formats)
    assert (ran.code, ran.err) == (0, "")
    folder = tmp_path / "out" / "a"
    names = {path.name for path in folder.iterdir()}
    assert names > VIEWS | {"turntable.gif", "turntable.mp4", "uncertainty.png"}
    with Image.open(folder / "turntable.gif") as gif, av.open(str(folder / "turntable.mp4")) as video:
        assert (gif.n_frames, gif.info["loop"]) == (GIF_FRAMES, 0)
        assert gif.n_frames * gif.info["duration"] == 3000
        moving = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert len(moving) == 90
        assert video.duration == 3_000_000  # microseconds
        assert moving[0].shape[1::-1] == gif.size
        # Both show the same turn, in the colours of the overlay.
        for still, seen in ((0, 0), (10, 18), (30, 54)):
            gif.seek(still)
            apart = np.abs(np.asarray(gif.convert("RGB")).astype(int) - moving[seen])
            assert apart.mean() < 3
        assert np.abs(moving[0].astype(int) - moving[45]).mean() > 2
    with Image.open(folder / "normals.png") as normals:
        assert normals.size == (160, 120)
    ran = recon("run", "--method", "toy-body", picture, "-o", tmp_path / "none", "--format", "pictures")
    assert {path.name for path in (tmp_path / "none" / "a").iterdir()} >= VIEWS
    assert not (tmp_path / "none" / "a" / "uncertainty.png").exists()


def test_a_video_without_its_encoder_is_refused_before_any_work(
    photo: Callable[..., Path], recon_process: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "av.py").write_text("raise ImportError('no av here')")
    out = tmp_path / "out"
    process = recon_process("run", "--method", "toy-body", photo("a.png"), "-o", out, "--format", "mp4", path=(broken,))
    _, text = process.communicate(timeout=120)
    (line,) = text.strip().splitlines()
    assert process.returncode == 1
    assert "pip install 'recon-core[video]', or take --format gif" in line
    assert not out.exists()


def test_pictures_are_drawn_by_the_runs_renderer(
    result: Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recon_core.export import save

    asked = []
    monkeypatch.setattr(
        save, "renderer_named", lambda name: asked.append(name) or registry().create("renderer", "warp")
    )
    other = dataclasses.replace(result, settings={"run": {"renderer": "pytorch3d"}})
    written = write_views(other, tmp_path)
    assert asked == ["pytorch3d"]
    assert {path.name for path in written} == VIEWS | {"uncertainty.png"}
    assert write_views(dataclasses.replace(result, people=[], objects=[]), tmp_path) == []


def test_spread_of_vertices_is_where_the_samples_differ() -> None:
    body = registry().create("body", "free")
    turns = torch.zeros(1, 4, 24, 3)
    turns[0, :, 18, 1] = torch.tensor([-0.6, -0.2, 0.2, 0.6])  # the left elbow
    place = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    samples = Samples(axis_angle_to_matrix(turns), torch.zeros(1, 4, 10), place, torch.zeros(1, 4))
    spread = vertex_spread_mm(body, samples, chunk=3)
    assert spread.shape == (1, len(body.weights))
    arm = body.weights[:, [18, 20, 22]].sum(1)
    assert spread[0, arm == 0].max() < 0.01  # where the whole body stands is not counted
    hand = body.weights[:, 22] > 0.99
    assert spread[0, hand].min() > 50
    joints = joint_spread_mm(body, samples)
    assert spread[0, hand].mean() == pytest.approx(float(joints[0, 22]), rel=0.3)


def test_uncertainty_is_over_the_photo_with_its_scale_below(result: Reconstruction) -> None:
    renderer = registry().create("renderer", "warp")
    drawn = uncertainty(result, renderer)
    assert drawn is not None
    height, width = result.photo.shape[:2]
    assert drawn.shape[1] == width
    assert drawn.shape[0] > height
    covered = (drawn[:height] != result.photo).any(-1)
    assert 0.02 < covered.mean() < 0.9
    strip = drawn[height:].astype(int)
    blue, red = strip[..., 2] - strip[..., 0], strip[..., 0] - strip[..., 2]
    assert np.argwhere(blue > 60)[:, 1].mean() < np.argwhere(red > 60)[:, 1].mean()
    people = dataclasses.replace(result, people=[dataclasses.replace(p, samples=None) for p in result.people])
    assert uncertainty(people, renderer) is None
