"""The files of a result, read back by other programs and by independent arithmetic."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from recon_core.export.bvh import euler_zxy
from recon_core.export.json_npz import ResultRecord
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.reconstruction import Reconstruction, people_from_bodies
from recon_core.skeletons import SMPL24
from recon_core.structures import BodyParameters

FLIP = np.array([1, -1, -1])
TWISTS = np.array([[0.0, 0, 0], [np.pi / 2, 0, 0], [np.pi / 2, 1e-7, 0], [-np.pi / 2, 0, 0], [np.pi, 0, 0], [0, 3, 0]])


def read_bvh(text: str) -> dict[str, np.ndarray]:
    """Joint positions of the first frame, by forward kinematics over what the file says and nothing else."""
    head, motion = text.split("MOTION")
    numbers = iter(float(v) for v in motion.strip().splitlines()[-1].split())
    stack: list[np.ndarray] = [np.eye(4)]
    found: dict[str, np.ndarray] = {}
    name, offset, local = "", np.zeros(3), np.eye(4)
    for line in head.strip().splitlines():
        words = line.split()
        if words[0] in ("ROOT", "JOINT"):
            name = words[1]
        elif words[0] == "End":
            name = ""
        elif words[0] == "OFFSET":
            offset = np.array([float(v) for v in words[1:]])
            if not name:
                stack.append(np.eye(4))
        elif words[0] == "CHANNELS":
            local = np.eye(4)
            local[:3, 3] = offset
            for channel in words[2:]:
                value, step = next(numbers), np.eye(4)
                axis = "XYZ".index(channel[0])
                if channel.endswith("position"):
                    step[axis, 3] = value
                else:
                    turn = torch.zeros(3, dtype=torch.float64)
                    turn[axis] = np.radians(value)
                    step[:3, :3] = axis_angle_to_matrix(turn).numpy()
                local = local @ step
            stack.append(stack[-1] @ local)
            found[name] = stack[-1][:3, 3]
        elif words[0] == "}":
            stack.pop()
    assert len(stack) == 1
    assert next(numbers, None) is None
    return found


@pytest.mark.parametrize("i", [0, 1])
def test_bvh_forward_kinematics_gives_the_joints(result: Reconstruction, folder: Path, i: int) -> None:
    found = read_bvh((folder / f"person_{i}.bvh").read_text())
    assert set(found) == set(SMPL24.joints)
    for name, point in found.items():
        np.testing.assert_allclose(point, result.people[i].joints3d["smpl24"][name] * FLIP, atol=2e-5)


def test_euler_angles_give_the_rotation_back_even_where_two_axes_fall_together() -> None:
    torch.manual_seed(0)
    turns = torch.cat([torch.from_numpy(TWISTS), torch.randn(200, 3, dtype=torch.float64) * 2])
    R = axis_angle_to_matrix(turns).numpy().astype(np.float32).astype(float)  # with the noise of float32
    z, x, y = (torch.from_numpy(v) for v in euler_zxy(R).T)
    about = lambda angle, axis: axis_angle_to_matrix(angle[:, None] * torch.eye(3, dtype=torch.float64)[axis])  # noqa: E731
    back = about(z, 2) @ about(x, 0) @ about(y, 1)
    np.testing.assert_allclose(back.numpy(), R, atol=1e-6)


def test_obj_and_ply_hold_the_posed_mesh(result: Reconstruction, folder: Path) -> None:
    for i, person in enumerate(result.people):
        ply = trimesh.load(folder / f"person_{i}.ply", process=False)
        np.testing.assert_allclose(ply.vertices, person.vertices * FLIP, atol=1e-6)
        np.testing.assert_array_equal(ply.faces, result.body_model.faces)
        lines = (folder / f"person_{i}.obj").read_text().splitlines()
        vertices = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
        corners = [re.split("[ /]", line)[1:] for line in lines if line.startswith("f ")]
        faces, uv_faces = np.array(corners, int)[:, ::2], np.array(corners, int)[:, 1::2]
        np.testing.assert_allclose(vertices, person.vertices * FLIP, atol=1e-6)
        np.testing.assert_array_equal(faces - 1, result.body_model.faces)
        np.testing.assert_array_equal(uv_faces - 1, result.body_model.uv_faces)
    textured = trimesh.load(folder / "object_0.obj")
    assert textured.visual.material.image.size == (8, 8)


def test_result_json_follows_its_schema_and_has_no_nan(result: Reconstruction, folder: Path) -> None:
    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    content = json.loads((folder / "result.json").read_text(), parse_constant=refuse)
    record = ResultRecord.model_validate(content)
    assert record.image_size == (200, 160)
    assert record.image == "<photo> & {{facts}}.jpg"
    person, written = result.people[0], record.people[0]
    assert set(written.joints2d) == set(written.joints3d) == {"smpl24", "coco17", "lsp14", "h36m17"}
    K = np.array(record.camera.K)
    for name, point in written.joints3d["coco17"].items():
        pixel = K @ np.array(point) / point[2]
        np.testing.assert_allclose(pixel[:2], written.joints2d["coco17"][name], atol=2e-3)
    back = axis_angle_to_matrix(torch.tensor(written.pose))
    torch.testing.assert_close(back, person.body.pose[0], atol=1e-5, rtol=0)
    assert written.fit.initial_energy is None  # NaN in the report
    assert record.people[1].fit is None
    assert record.objects[0].extra == {"light": [1.0, None]}
    seen = written.detected["coco17"]
    assert len(seen) == int((person.keypoints.confidence > 0).sum())


def test_result_npz_needs_no_pickle_and_agrees(result: Reconstruction, folder: Path) -> None:
    with np.load(folder / "result.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays["vertices"].shape == (2, *result.people[0].vertices.shape)
    np.testing.assert_array_equal(arrays["vertices"][1], result.people[1].vertices)
    np.testing.assert_array_equal(arrays["faces"], result.body_model.faces)
    assert arrays["sample_pose"].shape == (2, 6, 24, 3, 3)
    parameters = BodyParameters(*(torch.from_numpy(arrays[name]) for name in ("pose", "betas", "translation")))
    np.testing.assert_allclose(result.body_model(parameters).vertices, arrays["vertices"], atol=1e-5)
    np.testing.assert_array_equal(arrays["joints3d_lsp14"][0], result.people[0].joints3d["lsp14"])
    assert arrays["object_0_texture"].shape == (3, 8, 8)


def test_joint_spread_is_the_deviation_of_pelvis_relative_joints(result: Reconstruction) -> None:
    person = result.people[1]
    joints = result.body_model(person.samples.flat()).joints
    joints = (joints - joints[:, :1]).numpy()
    expected = np.sqrt(((joints - joints.mean(0)) ** 2).sum(-1).mean(0)) * 1000
    np.testing.assert_allclose(person.joint_std_mm, expected, atol=1e-2)
    assert person.joint_std_mm[0] == 0
    assert person.joint_std_mm[20] > 10


def test_report_is_one_page_without_links(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert "default-src 'none'" in page
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag not in ("link", "iframe", "object", "embed")
            links.extend(value or "" for name, value in attributes if name in ("src", "href", "srcset", "data"))

    Links().feed(page)
    assert len(links) == 2
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert not re.search("fetch|XMLHttpRequest|import\\(|https?:", page)
    assert "&lt;photo&gt; &amp; {{facts}}.jpg" in page  # the name is text, neither markup nor a place to fill in
    scene = json.loads(re.search(r'id="scene">(.*?)</script>', page, re.S)[1])
    assert [mesh["name"] for mesh in scene["meshes"]] == ["person_0", "person_1", "object_0"]
    assert len(scene["indices"]) == 2  # people share their faces


def test_the_report_viewer_holds_the_mesh(result: Reconstruction, folder: Path) -> None:
    page = (folder / "report.html").read_text()
    scene = json.loads(re.search(r'id="scene">(.*?)</script>', page, re.S)[1])
    mesh = scene["meshes"][1]
    steps = np.frombuffer(base64.b64decode(mesh["positions"]), "<u2").reshape(-1, 3)
    vertices = np.array(mesh["low"]) + steps / 65535 * np.array(mesh["scale"])
    np.testing.assert_allclose(vertices, result.people[1].vertices * FLIP, atol=5e-5)
    faces = np.frombuffer(base64.b64decode(scene["indices"][mesh["faces"]]), "<u2").reshape(-1, 3)
    np.testing.assert_array_equal(faces, result.body_model.faces)


def test_a_joint_behind_the_camera_has_no_pixel(result: Reconstruction) -> None:
    body = result.people[0].body
    behind = BodyParameters(body.pose, body.betas, torch.tensor([[0.0, 0.0, -3.0]]))
    (person,) = people_from_bodies(result.body_model, behind, result.camera, [(0, 0, 1, 1)], [1.0])
    assert np.isnan(person.joints2d["smpl24"].points).all()
    from recon_core.export.json_npz import result_record

    record = result_record(dataclasses.replace(result, people=[person]))
    assert set(record.people[0].joints2d["smpl24"].values()) == {None}


def test_joints_are_a_mapping_and_an_array(result: Reconstruction) -> None:
    joints = result.people[0].joints3d["coco17"]
    assert next(iter(joints)) == "nose"
    np.testing.assert_array_equal(np.asarray(joints)[0], joints["nose"])
    with pytest.raises(KeyError):
        joints["tail"]
