"""The files of a result, read back by other programs and by independent arithmetic."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from recon_core.export.bvh import euler_zxy
from recon_core.export.glb import scene_glb
from recon_core.export.json_npz import ResultRecord
from recon_core.export.rig import Rig, rigs, split_at_seams
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.reconstruction import Reconstruction, SceneObject, people_from_bodies
from recon_core.skeletons import SMPL24, SMPL_PARENTS
from recon_core.structures import BodyParameters, Camera, FitReport, Keypoints, Mesh, Samples

FLIP = np.array([1, -1, -1])
TWISTS = np.array([[0.0, 0, 0], [np.pi / 2, 0, 0], [np.pi / 2, 1e-7, 0], [-np.pi / 2, 0, 0], [np.pi, 0, 0], [0, 3, 0]])


@pytest.fixture(scope="module")
def result() -> Reconstruction:
    """Two posed, shaped people, with samples and a fit, and one textured object."""
    from recon_core.plugins import registry

    body = registry().create("body", "free")
    torch.manual_seed(0)
    turns = torch.randn(2, 24, 3) * 0.3
    turns[:, 0] = torch.tensor([torch.pi - 0.3, 0.1, 0.2])
    parameters = BodyParameters(
        axis_angle_to_matrix(turns), torch.randn(2, 10), torch.tensor([[-0.5, 0.1, 4.0], [0.7, 0.0, 5.0]])
    )
    camera = Camera.perspective(300.0, (200, 160))
    samples = Samples(
        axis_angle_to_matrix(torch.randn(2, 6, 24, 3) * 0.2),
        torch.randn(2, 6, 10),
        torch.zeros(2, 6, 3),
        torch.randn(2, 6),
    )
    one = torch.ones(2)
    report = FitReport(one * torch.nan, one, one.long(), one.bool(), one * 2.5, one.long() * 0, {"joints": one})
    joints = Keypoints(torch.rand(2, 17, 2) * 100, torch.rand(2, 17).round(), "coco17")
    people = people_from_bodies(
        body,
        parameters,
        camera,
        [(10, 20, 50, 100), (100, 20, 60, 110)],
        [0.9, 0.8],
        joints,
        samples,
        [report.row(0), None],
    )
    quad = Mesh(
        torch.tensor([[[0, 0, 3.0], [1, 0, 3], [1, 1, 3], [0, 1, 3]]]),
        torch.tensor([[0, 2, 1], [0, 3, 2]]),
        torch.tensor([[0, 1.0], [1, 1], [1, 0], [0, 0], [0.5, 0.5]]),
        torch.tensor([[0, 2, 1], [4, 3, 2]]),
        torch.rand(1, 3, 8, 8),
    )
    photo = np.random.default_rng(0).integers(0, 255, (160, 200, 3), np.uint8)
    return Reconstruction(
        Path("some/<photo> & {{facts}}.jpg"),
        "ab" * 32,
        photo,
        "toy",
        camera,
        people,
        [SceneObject((1, 2, 3, 4), 0.5, quad, {"light": np.array([1.0, np.nan])})],
        versions={"recon-core": "0.1"},
        settings={"run": {"box": None}},
        body_model=body,
    )


@pytest.fixture(scope="module")
def folder(result: Reconstruction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "photo"
    result.save(path, formats=["obj", "ply", "bvh"])
    return path


class Glb:
    """A reader of .glb by the glTF 2.0 specification."""

    COMPONENTS = {5126: "<f4", 5121: "u1", 5125: "<u4"}
    WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}

    def __init__(self, data: bytes) -> None:
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data))
        size, kind = struct.unpack_from("<I4s", data, 12)
        assert kind == b"JSON"
        assert size % 4 == 0
        self.json = json.loads(data[20 : 20 + size])
        binary, kind = struct.unpack_from("<I4s", data, 20 + size)
        assert kind == b"BIN\0"
        self.binary = data[28 + size : 28 + size + binary]
        assert self.json["buffers"] == [{"byteLength": binary}]

    def array(self, index: int) -> np.ndarray:
        accessor = self.json["accessors"][index]
        view = self.json["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        raw = self.binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        return np.frombuffer(raw, self.COMPONENTS[accessor["componentType"]]).reshape(-1, self.WIDTHS[accessor["type"]])

    def node(self, name: str) -> dict[str, Any]:
        (found,) = [n for n in self.json["nodes"] if n.get("name") == name]
        return found

    def worlds(self) -> dict[int, np.ndarray]:
        """The matrix of each node of the scene, from its local ones."""
        found: dict[int, np.ndarray] = {}

        def visit(index: int, above: np.ndarray) -> None:
            node = self.json["nodes"][index]
            x, y, z, w = node.get("rotation", [0, 0, 0, 1])
            local = np.eye(4)
            local[:3, :3] = [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
            local[:3, 3] = node.get("translation", [0, 0, 0])
            found[index] = above @ local
            for child in node.get("children", []):
                visit(child, found[index])

        for root in self.json["scenes"][self.json["scene"]]["nodes"]:
            visit(root, np.eye(4))
        return found

    def skinned(self, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Vertices of a skinned mesh in the scene (specification 3.7.3.3), and where its joints are."""
        node = self.node(name)
        skin = self.json["skins"][node["skin"]]
        attributes = self.json["meshes"][node["mesh"]]["primitives"][0]["attributes"]
        worlds = self.worlds()
        inverse = self.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1).astype(float)
        matrices = np.stack([worlds[j] for j in skin["joints"]]) @ inverse
        position = self.array(attributes["POSITION"]).astype(float)
        position = np.concatenate([position, np.ones((len(position), 1))], 1)
        total, i = np.zeros((len(position), 4)), 0
        weight_sum = np.zeros(len(position))
        while f"JOINTS_{i}" in attributes:
            joints, weights = (
                self.array(attributes[f"JOINTS_{i}"]),
                self.array(attributes[f"WEIGHTS_{i}"]).astype(float),
            )
            total += np.einsum("vk,vkrc,vc->vr", weights, matrices[joints], position)
            weight_sum += weights.sum(1)
            i += 1
        np.testing.assert_allclose(weight_sum, 1, atol=1e-6)
        names = {self.json["nodes"][j]["name"]: worlds[j][:3, 3] for j in skin["joints"]}
        return total[:, :3], names


@pytest.fixture(scope="module")
def glb(folder: Path) -> Glb:
    return Glb((folder / "scene.glb").read_bytes())


@pytest.mark.parametrize("i", [0, 1])
def test_the_skin_of_scene_glb_gives_the_vertices_in_a_y_up_frame(result: Reconstruction, glb: Glb, i: int) -> None:
    person, body = result.people[i], result.body_model
    vertices, joints = glb.skinned(f"person_{i}_mesh")
    # glTF has a vertex for each texture coordinate: `first` says whose.
    _, first, _ = split_at_seams(body.faces.numpy(), body.uv_faces.numpy())
    np.testing.assert_allclose(vertices, person.vertices[first] * FLIP, atol=1e-5)
    for name in SMPL24.joints:
        np.testing.assert_allclose(joints[name], person.joints3d["smpl24"][name] * FLIP, atol=1e-5)


def test_scene_glb_keeps_surface_texture_and_camera(result: Reconstruction, glb: Glb) -> None:
    primitive = glb.json["meshes"][glb.node("person_0_mesh")["mesh"]]["primitives"][0]
    body = result.body_model
    _, first, texel = split_at_seams(body.faces.numpy(), body.uv_faces.numpy())
    indices = glb.array(primitive["indices"]).reshape(-1, 3)
    np.testing.assert_array_equal(first[indices], body.faces)
    np.testing.assert_array_equal(texel[indices], body.uv_faces)
    uv = glb.array(primitive["attributes"]["TEXCOORD_0"])
    np.testing.assert_allclose(uv, (body.uv.numpy() * [1, -1] + [0, 1])[texel], atol=1e-6)
    normals = glb.array(primitive["attributes"]["NORMAL"])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    lens = glb.json["cameras"][glb.node("photo")["camera"]]["perspective"]
    assert np.tan(lens["yfov"] / 2) * 300 == pytest.approx(80)
    assert lens["aspectRatio"] == pytest.approx(200 / 160)
    material = glb.json["materials"][glb.json["meshes"][glb.node("object_0")["mesh"]]["primitives"][0]["material"]]
    assert "baseColorTexture" in material["pbrMetallicRoughness"]


def test_scene_glb_opens_in_trimesh(result: Reconstruction, folder: Path) -> None:
    scene = trimesh.load(folder / "scene.glb")
    assert set(scene.geometry) == {"person_0", "person_1", "object_0"}
    quad = scene.geometry["object_0"].copy().apply_transform(scene.graph["object_0"][0])
    assert quad.area == pytest.approx(1)
    assert quad.bounds[:, 2] == pytest.approx([-3, -3])
    assert np.abs(quad.visual.material.baseColorTexture.size).tolist() == [8, 8]


def test_a_body_with_pose_correctives_is_exact_in_the_exported_pose(result: Reconstruction) -> None:
    """Vertices that skinning of the rest body does not give, as licensed SMPL's."""
    person = result.people[0]
    bulge = np.random.default_rng(1).normal(size=person.vertices.shape).astype(np.float32) * 0.01
    moved = dataclasses.replace(person, vertices=person.vertices + bulge)
    (rig,) = rigs(result.body_model, [moved])
    np.testing.assert_allclose(rig.skinned(), moved.vertices, atol=1e-5)


def test_vertex_colours_and_no_uv(result: Reconstruction) -> None:
    mesh = Mesh(result.objects[0].mesh.vertices, result.objects[0].mesh.faces, colors=torch.full((1, 4, 3), 0.5))
    bare = dataclasses.replace(result, people=[], objects=[SceneObject((0, 0, 1, 1), 1.0, mesh)], body_model=None)
    found = Glb(scene_glb(bare))
    attributes = found.json["meshes"][0]["primitives"][0]["attributes"]
    assert found.array(attributes["COLOR_0"]) == pytest.approx(0.2140, abs=1e-4)  # sRGB 0.5 as linear light
    assert "TEXCOORD_0" not in attributes


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


def test_a_rig_moves_each_bone_about_its_own_joint() -> None:
    """One bone turned by a right angle about z, on three points that follow it, its parent, and both."""
    joints = np.zeros((24, 3))
    joints[1] = [1, 0, 0]
    rotations = np.tile(np.eye(3), (24, 1, 1))
    rotations[1] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    weights = np.zeros((3, 24))
    weights[0, 1] = weights[1, 0] = 1
    weights[2, :2] = 0.5
    points = np.array([[2.0, 0, 0]] * 3)
    rig = Rig(points, joints, rotations, np.array([0, 0, 5.0]), weights, SMPL_PARENTS)
    np.testing.assert_allclose(rig.skinned(), [[1, 1, 5], [2, 0, 5], [1.5, 0.5, 5]], atol=1e-12)
