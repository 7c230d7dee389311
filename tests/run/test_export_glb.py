"""scene.glb, read by the glTF specification, by trimesh, and by arithmetic of the tests' own."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from recon_core.export.glb import scene_glb
from recon_core.export.rig import Rig, rigs, split_at_seams
from recon_core.reconstruction import Reconstruction, SceneObject
from recon_core.skeletons import SMPL24, SMPL_PARENTS
from recon_core.structures import Mesh

FLIP = np.array([1, -1, -1])


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
