"""The arrays of a body in SMPL format, and the .npz file they are kept in."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recon_core.errors import AssetError
from recon_core.skeletons import SMPL_PARENTS

FORMAT = "recon-body-1"


@dataclass(frozen=True)
class Regressor:
    """A sparse (rows, V) matrix whose rows sum to 1: entry i has weight[i] at (row[i], vertex[i])."""

    row: np.ndarray
    vertex: np.ndarray
    weight: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def from_dense(cls, matrix: np.ndarray) -> Regressor:
        row, vertex = np.nonzero(matrix)
        return cls(row, vertex, matrix[row, vertex], (matrix.shape[0], matrix.shape[1]))

    def dense(self) -> np.ndarray:
        matrix = np.zeros(self.shape)
        np.add.at(matrix, (self.row, self.vertex), self.weight)
        return matrix


@dataclass(frozen=True)
class BodyData:
    """A body of V vertices, F triangles, S shape directions and 24 joints. Metres, y up, facing +z, T-pose.

    name, licence: of the file. template: (V, 3). shape_directions: (V, 3, S). pose_directions: (V, 3, 207), or
    None. faces: (F, 3). parents: (24,). weights: (V, 24), rows sum to 1. regressors: by skeleton name; "smpl24"
    gives the joints of the rest body. uv: (T, 2), uv_faces: (F, 3), v up. mirror: (V,) the vertex across the
    sagittal plane, or None. parts: (V,) smpl24 joint. anatomy: (V,) row of `parts.ANATOMICAL_PARTS`. torso: (V,)
    0 elsewhere, 1 front, 2 back of the torso.
    """

    name: str
    licence: str
    template: np.ndarray
    shape_directions: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    regressors: dict[str, Regressor]
    uv: np.ndarray
    uv_faces: np.ndarray
    mirror: np.ndarray | None
    parts: np.ndarray
    anatomy: np.ndarray
    torso: np.ndarray
    pose_directions: np.ndarray | None = None
    parents: np.ndarray = field(default_factory=lambda: np.array(SMPL_PARENTS))


def save_body(data: BodyData, path: Path, compact: bool = False) -> None:
    """Write `data` as an .npz. compact: shape directions as float16, uv and weights in 1/65535 (under 0.1 mm)."""
    vertex, joint = np.nonzero(data.weights)
    weight = data.weights[vertex, joint]
    arrays: dict[str, np.ndarray] = {
        "format": np.array(FORMAT),
        "name": np.array(data.name),
        "licence": np.array(data.licence),
        "template": data.template.astype(np.float32),
        "shape_directions": data.shape_directions.astype(np.float16 if compact else np.float32),
        "faces": data.faces.astype(np.uint16 if len(data.template) < 65536 else np.int32),
        "weight_vertex": vertex.astype(np.int32),
        "weight_joint": joint.astype(np.uint8),
        "weight": _quantised(weight) if compact else weight.astype(np.float32),
        "parents": data.parents.astype(np.int8),
        "uv": _quantised(data.uv) if compact else data.uv.astype(np.float32),
        "uv_faces": data.uv_faces.astype(np.uint16 if len(data.uv) < 65536 else np.int32),
        "parts": data.parts.astype(np.uint8),
        "anatomy": data.anatomy.astype(np.uint8),
        "torso": data.torso.astype(np.uint8),
    }
    if data.mirror is not None:
        arrays["mirror"] = data.mirror.astype(np.int32)
    if data.pose_directions is not None:
        arrays["pose_directions"] = data.pose_directions.astype(np.float32)
    for skeleton, regressor in data.regressors.items():
        arrays[f"regressor_{skeleton}_row"] = regressor.row.astype(np.uint8)
        arrays[f"regressor_{skeleton}_vertex"] = regressor.vertex.astype(np.int32)
        arrays[f"regressor_{skeleton}_weight"] = regressor.weight.astype(np.float32)
        arrays[f"regressor_{skeleton}_rows"] = np.array(regressor.shape[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def is_body_file(path: Path) -> bool:
    """Whether a file is one that `save_body` wrote, by its table of contents."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"format.npy", "template.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def load_body_file(path: Path) -> BodyData:
    """Read a body written by `save_body`. Raises AssetError naming the file when it is not one or is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "format" not in file or str(file["format"]) != FORMAT:
                raise AssetError(f"{path}: not a body file of recon; add it with: recon assets add {path}")
            arrays = {key: file[key] for key in file.files}
        return _from_arrays(arrays)
    except FileNotFoundError:
        raise AssetError(f"{path}: no such body file") from None
    except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise AssetError(f"{path}: damaged body file ({error}); fetch or add it again") from error


def _from_arrays(a: dict[str, np.ndarray]) -> BodyData:
    vertices = len(a["template"])
    weights = np.zeros((vertices, len(a["parents"])))
    np.add.at(weights, (a["weight_vertex"], a["weight_joint"]), _restored(a["weight"]))
    weights /= weights.sum(1, keepdims=True)
    regressors = {}
    for key in a:
        if key.startswith("regressor_") and key.endswith("_rows"):
            stem = key.removesuffix("_rows")
            regressors[stem.removeprefix("regressor_")] = Regressor(
                a[f"{stem}_row"].astype(np.int64),
                a[f"{stem}_vertex"].astype(np.int64),
                a[f"{stem}_weight"].astype(np.float64),
                (int(a[key]), vertices),
            )
    return BodyData(
        name=str(a["name"]),
        licence=str(a["licence"]),
        template=a["template"].astype(np.float64),
        shape_directions=a["shape_directions"].astype(np.float64),
        faces=a["faces"].astype(np.int64),
        weights=weights,
        regressors=regressors,
        uv=_restored(a["uv"]),
        uv_faces=a["uv_faces"].astype(np.int64),
        mirror=a["mirror"].astype(np.int64) if "mirror" in a else None,
        parts=a["parts"].astype(np.int64),
        anatomy=a["anatomy"].astype(np.int64),
        torso=a["torso"].astype(np.int64),
        pose_directions=a["pose_directions"].astype(np.float64) if "pose_directions" in a else None,
        parents=a["parents"].astype(np.int64),
    )


def _quantised(values: np.ndarray) -> np.ndarray:
    return np.round(np.clip(values, 0, 1) * 65535).astype(np.uint16)


def _restored(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64) / (65535 if values.dtype == np.uint16 else 1)
