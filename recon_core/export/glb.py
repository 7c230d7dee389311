"""scene.glb: glTF 2.0, binary, of everything in a Reconstruction.

glTF is y up, right-handed, and its cameras look along -z, so every subject hangs under a node turned by half a turn
about x, which takes the photo's camera frame there; the photo's camera is the node "photo" at the origin. People are
skinned meshes over a skeleton of 24 named joints, in the found pose; meshes without a body are static.
"""

from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from recon_core.export.palette import subject_colors
from recon_core.export.rig import Rig, rigs, split_at_seams
from recon_core.geometry.rotations import matrix_to_quaternion
from recon_core.reconstruction import Reconstruction
from recon_core.rendering.shading import vertex_normals
from recon_core.structures import Camera, Mesh

_FLOAT, _UBYTE, _UINT = 5126, 5121, 5125
_CAMERA_TO_GLTF = [1.0, 0.0, 0.0, 0.0]  # quaternion x, y, z, w: half a turn about x


def write_glb(reconstruction: Reconstruction, path: Path) -> None:
    """Write the scene."""
    path.write_bytes(scene_glb(reconstruction))


def scene_glb(reconstruction: Reconstruction) -> bytes:
    """The scene as the bytes of a .glb file."""
    gltf = _Gltf()
    meshes = reconstruction.meshes()
    colors = subject_colors(len(meshes))
    people = [] if reconstruction.body_model is None else rigs(reconstruction.body_model, list(reconstruction.people))
    for (name, mesh), color in zip(meshes.items(), colors, strict=True):
        kind, _, number = name.partition("_")
        if kind == "person":
            gltf.add_person(name, mesh, people[int(number)], color)
        else:
            gltf.add_static(name, mesh, color)
    gltf.add_camera(reconstruction.camera)
    return gltf.to_bytes()


class _Gltf:
    """A glTF document under construction: its json, and the binary buffer behind it."""

    def __init__(self) -> None:
        self.json: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "recon"},
            "scene": 0,
            "scenes": [{"nodes": []}],
        }
        self.buffer = io.BytesIO()

    # -- subjects

    def add_person(self, name: str, mesh: Mesh, rig: Rig, color: np.ndarray) -> None:
        """A skinned mesh in its rest pose, and its skeleton in the found pose."""
        primitive, corner = self._primitive(mesh, rig.vertices, color)
        for i, (joints, weights) in enumerate(_influences(rig.weights[corner])):
            primitive["attributes"][f"JOINTS_{i}"] = self._accessor(joints, "VEC4", _UBYTE)
            primitive["attributes"][f"WEIGHTS_{i}"] = self._accessor(weights, "VEC4", _FLOAT)
        offsets, first = rig.offsets(), self._count("nodes")
        quaternions = _quaternions(rig.rotations)
        for j, joint in enumerate(rig.names):
            node: dict[str, Any] = {
                "name": joint,
                "translation": offsets[j].tolist(),
                "rotation": quaternions[j].tolist(),
            }
            if children := [first + c for c, parent in enumerate(rig.parents) if parent == j]:
                node["children"] = children
            self._add("nodes", node)
        inverse_bind = np.tile(np.eye(4), (len(rig.joints), 1, 1))
        inverse_bind[:, :3, 3] = -rig.joints
        # glTF matrices are stored column by column.
        matrices = self._accessor(inverse_bind.transpose(0, 2, 1).reshape(-1, 16), "MAT4", _FLOAT)
        root = self._add("nodes", {"name": name, "rotation": _CAMERA_TO_GLTF, "children": [first]})
        skin = self._add(
            "skins",
            {
                "name": name,
                "joints": list(range(first, first + len(rig.joints))),
                "inverseBindMatrices": matrices,
                "skeleton": root,
            },
        )
        index = self._add("meshes", {"name": name, "primitives": [primitive]})
        body = self._add("nodes", {"name": f"{name}_mesh", "mesh": index, "skin": skin})
        self.json["scenes"][0]["nodes"] += [root, body]

    def add_static(self, name: str, mesh: Mesh, color: np.ndarray) -> None:
        """A mesh that does not move."""
        primitive, _ = self._primitive(mesh, mesh.vertices[0].detach().cpu().numpy(), color)
        index = self._add("meshes", {"name": name, "primitives": [primitive]})
        node = self._add("nodes", {"name": name, "mesh": index, "rotation": _CAMERA_TO_GLTF})
        self.json["scenes"][0]["nodes"].append(node)

    def add_camera(self, camera: Camera) -> None:
        """The photo's camera. glTF knows no principal point off the middle and no skew: those are left out."""
        width, height = camera.size
        K = camera.K[0].detach().cpu().double()
        settings: dict[str, Any]
        if camera.orthographic:
            lens = {"xmag": width / 2 / float(K[0, 0]), "ymag": height / 2 / float(K[1, 1])}
            settings = {"type": "orthographic", "orthographic": lens | {"znear": 0.01, "zfar": 1000.0}}
        else:
            lens = {"yfov": 2 * math.atan(height / 2 / float(K[1, 1])), "aspectRatio": width / height}
            settings = {"type": "perspective", "perspective": lens | {"znear": 0.01}}
        index = self._add("cameras", settings)
        self.json["scenes"][0]["nodes"].append(self._add("nodes", {"name": "photo", "camera": index}))

    # -- parts

    def _primitive(self, mesh: Mesh, vertices: np.ndarray, color: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        """Geometry and material; and of each glTF vertex the mesh's vertex it came from (seams need several)."""
        faces = mesh.faces.cpu().numpy()
        corner = np.arange(len(vertices))
        indices = faces
        if mesh.uv is not None and mesh.uv_faces is not None:
            indices, corner, texel = split_at_seams(faces, mesh.uv_faces.cpu().numpy())
        attributes = {
            "POSITION": self._accessor(vertices[corner], "VEC3", _FLOAT, bounds=True),
            "NORMAL": self._accessor(_normals(vertices, mesh.faces)[corner], "VEC3", _FLOAT),
        }
        if mesh.uv is not None and mesh.uv_faces is not None:
            uv = mesh.uv.detach().cpu().numpy()[texel]
            # glTF counts v downwards from the first row of the picture.
            attributes["TEXCOORD_0"] = self._accessor(np.stack([uv[:, 0], 1 - uv[:, 1]], -1), "VEC2", _FLOAT)
        if mesh.colors is not None and mesh.texture is None and mesh.colors.shape[-1] in (3, 4):
            values = _linear(mesh.colors[0].detach().cpu().numpy())[corner]
            attributes["COLOR_0"] = self._accessor(values, f"VEC{values.shape[1]}", _FLOAT)
            color = np.ones(3)
        primitive = {
            "attributes": attributes,
            "indices": self._accessor(indices.reshape(-1, 1), "SCALAR", _UINT, target=34963),
            "material": self._material(mesh, color),
        }
        return primitive, corner

    def _material(self, mesh: Mesh, color: np.ndarray) -> int:
        surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.8}
        if mesh.texture is None:
            surface["baseColorFactor"] = [*_linear(color).tolist(), 1.0]
        else:
            surface["baseColorTexture"] = {"index": self._texture(mesh.texture[0].detach().cpu().numpy())}
        return self._add("materials", {"pbrMetallicRoughness": surface, "doubleSided": True})

    def _texture(self, texture: np.ndarray) -> int:
        pixels = (texture.transpose(1, 2, 0).clip(0, 1) * 255 + 0.5).astype(np.uint8)
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", compress_level=1)
        image = self._add("images", {"mimeType": "image/png", "bufferView": self._view(png.getvalue(), None)})
        sampler = self._add("samplers", {"wrapS": 10497, "wrapT": 10497})
        return self._add("textures", {"source": image, "sampler": sampler})

    # -- storage

    def _count(self, kind: str) -> int:
        return len(self.json.get(kind, []))

    def _add(self, kind: str, value: dict[str, Any]) -> int:
        self.json.setdefault(kind, []).append(value)
        return len(self.json[kind]) - 1

    def _view(self, data: bytes, target: int | None) -> int:
        self.buffer.write(b"\0" * (-self.buffer.tell() % 4))
        view = {"buffer": 0, "byteOffset": self.buffer.tell(), "byteLength": len(data)}
        self.buffer.write(data)
        return self._add("bufferViews", view if target is None else view | {"target": target})

    def _accessor(
        self, values: np.ndarray, kind: str, component: int, bounds: bool = False, target: int = 34962
    ) -> int:
        dtype = {_FLOAT: "<f4", _UBYTE: "u1", _UINT: "<u4"}[component]
        data = np.ascontiguousarray(values, dtype)
        accessor: dict[str, Any] = {
            "bufferView": self._view(data.tobytes(), None if kind == "MAT4" else target),
            "componentType": component,
            "count": len(data),
            "type": kind,
        }
        if bounds and len(data):
            accessor |= {"min": data.min(0).tolist(), "max": data.max(0).tolist()}
        return self._add("accessors", accessor)

    def to_bytes(self) -> bytes:
        binary = self.buffer.getvalue()
        binary += b"\0" * (-len(binary) % 4)
        if binary:
            self.json["buffers"] = [{"byteLength": len(binary)}]
        text = json.dumps(self.json, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        if binary:
            chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _influences(weights: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights (V, J) as sets of four (joint, weight) a vertex, strongest first; as many sets as a vertex needs."""
    most = max(1, int((weights > 0).sum(1).max(initial=0)))
    sets = -(-most // 4)
    order = np.argsort(-weights, axis=1, kind="stable")[:, : 4 * sets]
    values = np.take_along_axis(weights, order, 1)
    values = values / values.sum(1, keepdims=True)
    order = np.where(values > 0, order, 0)
    return [(order[:, i : i + 4], values[:, i : i + 4]) for i in range(0, 4 * sets, 4)]


def _normals(vertices: np.ndarray, faces: torch.Tensor) -> np.ndarray:
    """Unit normals (glTF allows no other length), up where there is no surface."""
    normals = vertex_normals(torch.as_tensor(vertices).float(), faces.cpu()).numpy()
    return np.where((normals**2).sum(-1, keepdims=True) > 0.5, normals, np.array([0, 1, 0], np.float32))


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    """Unit quaternions x, y, z, w of (B, 3, 3) rotations."""
    return matrix_to_quaternion(torch.from_numpy(rotations)).numpy()[:, [1, 2, 3, 0]]


def _linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] as the linear light that glTF's factors and vertex colours are in; alpha as it is."""
    values = np.asarray(srgb, float).clip(0, 1)
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    if values.shape[-1] == 4:
        light[..., 3] = values[..., 3]
    return light
