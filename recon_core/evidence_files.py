"""Evidence for a fit from files that are no pictures: joints in space, meshes, scans.

Files of surfaces have y up, as recon writes them and as is usual; they are turned into the camera frame (y down) that
results are in, and `--format ply` turns them back. Joint files are in the camera frame already, as result.npz is.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.errors import InputError
from recon_core.skeletons import SKELETONS
from recon_core.structures import Keypoints

_Y_DOWN = torch.tensor([1.0, -1.0, -1.0])

_PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip


def read_joints(path: Path) -> Keypoints:
    """Joints in space from an .npz: points (B, J, 3) or (J, 3) metres, camera frame; skeleton, a name; confidence
    (B, J) or (J,), 1 where it is left out. Raises InputError naming the file and what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an .npz file of plain arrays ({error})") from None
    if missing := [name for name in ("points", "skeleton") if name not in arrays]:
        raise InputError(f"{path}: has no array '{missing[0]}'; it needs points, skeleton and, if known, confidence")
    skeleton = str(arrays["skeleton"])
    if skeleton not in SKELETONS:
        raise InputError(f"{path}: unknown skeleton '{skeleton}'; known: {', '.join(SKELETONS)}")
    points = arrays["points"]
    confidence = arrays.get("confidence", np.ones(points.shape[:-1]))
    joints = len(SKELETONS[skeleton].joints)
    if points.ndim not in (2, 3) or points.shape[-2:] != (joints, 3) or confidence.shape != points.shape[:-1]:
        raise InputError(
            f"{path}: skeleton {skeleton} needs points (people, {joints}, 3) and confidence (people, {joints}), "
            f"got {points.shape} and {confidence.shape}"
        )
    as_batch = lambda x, shape: torch.from_numpy(np.asarray(x, np.float32).reshape(-1, *shape))  # noqa: E731
    return Keypoints(as_batch(points, (joints, 3)), as_batch(confidence, (joints,)), skeleton)


def read_surface(path: Path) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Vertices in metres, camera frame, and triangles (none for a point cloud) of a .ply or .obj file.

    Polygons are cut into fans. Raises InputError naming the file and what is wrong with it.
    """
    try:
        content = path.read_bytes()
        vertices, polygons = _read_ply(content) if path.suffix.lower() == ".ply" else _read_obj(content)
        triangles = [(p[0], p[i], p[i + 1]) for p in polygons for i in range(1, len(p) - 1)]
        faces = np.array(triangles, np.int64).reshape(-1, 3)
        if len(faces) and not 0 <= faces.min() <= faces.max() < len(vertices):
            raise ValueError("a face names a vertex that is not there")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable {path.suffix.lower()} file ({error})") from None
    return torch.from_numpy(np.asarray(vertices, np.float32).reshape(-1, 3)) * _Y_DOWN, torch.from_numpy(faces)


def _read_obj(content: bytes) -> tuple[np.ndarray, list[list[int]]]:
    vertices, polygons = [], []
    for line in content.decode().splitlines():
        words = line.split()
        if words[:1] == ["v"]:
            vertices.append([float(w) for w in words[1:4]])
        elif words[:1] == ["f"]:
            corners = [int(w.partition("/")[0]) for w in words[1:]]
            polygons.append([c - 1 if c > 0 else len(vertices) + c for c in corners])
    return np.array(vertices), polygons


def _read_ply(content: bytes) -> tuple[np.ndarray, list[list[int]]]:
    head, end, body = content.partition(b"end_header\n")
    lines = [line.split() for line in head.decode().splitlines()]
    if not end or lines[:1] != [["ply"]]:
        raise ValueError("no PLY header")
    form = next(words[1] for words in lines if words[:1] == ["format"])
    order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[form]
    elements: list[tuple[str, int, list[list[str]]]] = []
    for words in lines:
        if words[:1] == ["element"]:
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"]:
            elements[-1][2].append(words[1:])
    stream = _Ascii(body) if form == "ascii" else _Binary(body, order)
    found: dict[str, list[dict[str, list]]] = {}
    vertices = np.zeros((0, 3))
    for name, count, properties in elements:
        if name == "vertex" and all(p[0] != "list" for p in properties):
            table = stream.table(count, properties)
            vertices = np.stack([table[axis] for axis in "xyz"], -1).astype(np.float64)
        else:
            found[name] = [{p[-1]: stream.values(p) for p in properties} for _ in range(count)]
    rows = found.get("face", [])
    polygons = [[int(i) for i in row.get("vertex_indices", row.get("vertex_index", []))] for row in rows]
    return vertices, polygons


class _Ascii:
    def __init__(self, body: bytes) -> None:
        self._words = iter(body.split())

    def _next(self) -> float:
        word = next(self._words, None)
        if word is None:
            raise ValueError("it ends too early")
        return float(word)

    def values(self, declared: list[str]) -> list[float]:
        return [self._next() for _ in range(int(self._next()) if declared[0] == "list" else 1)]

    def table(self, count: int, properties: list[list[str]]) -> dict[str, np.ndarray]:
        rows = np.array([self._next() for _ in range(count * len(properties))]).reshape(count, len(properties))
        return {p[-1]: rows[:, i] for i, p in enumerate(properties)}


class _Binary:
    def __init__(self, body: bytes, order: str) -> None:
        self._body, self._order, self._at = body, order, 0

    def _take(self, count: int, dtype: np.dtype) -> np.ndarray:
        if count < 0 or self._at + count * dtype.itemsize > len(self._body):
            raise ValueError("it ends too early")
        taken = np.frombuffer(self._body, dtype, count, self._at)
        self._at += count * dtype.itemsize
        return taken

    def _type(self, name: str) -> np.dtype:
        return np.dtype(self._order + _PLY_TYPES[name])

    def values(self, declared: list[str]) -> list[float]:
        count = int(self._take(1, self._type(declared[1]))[0]) if declared[0] == "list" else 1
        return self._take(count, self._type(declared[-2])).tolist()

    def table(self, count: int, properties: list[list[str]]) -> dict[str, np.ndarray]:
        rows = self._take(count, np.dtype([(p[-1], self._type(p[0])) for p in properties]))
        return {p[-1]: rows[p[-1]] for p in properties}


def keypoint_format(path: Path) -> str:
    """The detector that reads this file of joints: OpenPose's files have "people", a folder holds such, one a photo.

    Any other file is COCO's, whose reader says what is wrong with it if it is not.
    """
    if path.is_dir():
        return "openpose-json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "coco-json"
    return "openpose-json" if isinstance(content, dict) and "people" in content else "coco-json"
