"""`recon view`: a result folder becomes a scene with the photo, every body, and the draws."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import viser
from click.testing import CliRunner
from PIL import Image

from recon_core.cli.view import command
from recon_core.errors import InputError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.plugins import registry
from recon_core.structures import BodyParameters
from recon_core.viewer import read_result, show


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A result of two people with three draws each, as `recon run` writes it."""
    import torch

    torch.manual_seed(0)
    where = tmp_path_factory.mktemp("result")
    model = registry().load("body", "free")()
    pose = axis_angle_to_matrix(0.2 * torch.randn(2, 4, 24, 3))
    betas, translation = torch.randn(2, 4, 10), torch.tensor([0.0, 0, 4]).expand(2, 4, 3)
    body = BodyParameters(pose[:, 0], betas[:, 0], translation[:, 0])
    np.savez(
        where / "result.npz",
        K=np.array([[500.0, 0, 160], [0, 500, 120], [0, 0, 1]], np.float32),
        image_size=np.array([320, 240]),
        faces=model.faces.numpy(),
        vertices=model(body).vertices.numpy(),
        sample_pose=pose[:, 1:].numpy(),
        sample_betas=betas[:, 1:].numpy(),
        sample_translation=translation[:, 1:].numpy(),
        sample_log_prob=np.arange(6, dtype=np.float32).reshape(2, 3),
    )
    (where / "result.json").write_text(json.dumps({"settings": {"run": {"body": "free"}}}))
    Image.new("RGB", (320, 240), (10, 20, 30)).save(where / "overlay.png")
    return where


@contextmanager
def _server(port: int):
    server = viser.ViserServer(host="127.0.0.1", port=port, verbose=False)
    try:
        yield server
    finally:
        server.stop()


def test_result_is_read_with_its_draws_posed(folder):
    result = read_result(folder, samples=2)
    assert set(result.meshes) == {"person_0", "person_1"}
    assert result.size == (320, 240)
    assert result.picture is not None
    assert (result.picture == (10, 20, 30)).all()
    assert result.samples is not None
    assert result.samples.shape[:2] == (2, 2)
    assert result.samples.shape[2:] == result.meshes["person_0"][0].shape
    # The draws are other poses than the body itself, in the same place.
    offset = np.abs(result.samples[0, 0] - result.meshes["person_0"][0]).mean()
    assert 0.005 < offset < 1
    assert read_result(folder, samples=0).samples is None


def test_the_photo_itself_can_be_shown_but_not_another_ones(folder, tmp_path):
    Image.new("RGB", (320, 240), (200, 0, 0)).save(tmp_path / "photo.png")
    picture = read_result(folder, 0, tmp_path / "photo.png").picture
    assert picture is not None
    assert (picture == (200, 0, 0)).all()
    Image.new("RGB", (240, 320)).save(tmp_path / "turned.png")
    with pytest.raises(InputError, match="240x320 pixels, but the result is of a photo of 320x240"):
        read_result(folder, 0, tmp_path / "turned.png")
    with pytest.raises(InputError, match="nothing"):
        read_result(folder, 0, tmp_path / "nothing.png")


def test_scene_holds_camera_bodies_and_a_slider_that_moves_the_draw(folder):
    result = read_result(folder)
    with _server(18471) as server:
        show(server, result)
        nodes = server.scene._handle_from_node_name
        assert {"/camera", "/person_0", "/person_1", "/person_0/sample", "/person_1/sample", "/floor"} <= set(nodes)
        assert not nodes["/person_0/sample"].visible
        # The first look is at the people, from beside and behind the photo's camera.
        np.testing.assert_allclose(server.initial_camera.look_at, [0, 0, 4], atol=0.5)
        assert server.initial_camera.position[2] < 0
        # The camera's picture ends well before the people.
        assert nodes["/camera"].scale < 1
        slider = next(h for h in server.gui._gui_input_handle_from_uuid.values() if getattr(h, "label", "") == "sample")
        moved = threading.Event()
        slider.on_update(lambda _: moved.set())
        slider.value = 2
        assert moved.wait(5)
        assert nodes["/person_0/sample"].visible
        np.testing.assert_allclose(nodes["/person_1/sample"].vertices, result.samples[1, 1], atol=1e-6)


def test_folder_without_a_result_is_one_line(tmp_path, folder):
    with pytest.raises(InputError, match=r"no result\.json"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_result(tmp_path)
    outcome = CliRunner().invoke(command, [str(tmp_path / "nowhere")])
    assert isinstance(outcome.exception, InputError)
