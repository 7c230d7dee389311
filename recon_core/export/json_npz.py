"""result.json and result.npz: the numbers of a Reconstruction. docs/results.md describes both for their readers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from recon_core.geometry.rotations import matrix_to_axis_angle
from recon_core.reconstruction import GeneratedImage, Joints, Person, Reconstruction, SceneObject
from recon_core.skeletons import SMPL24

Box = tuple[float, float, float, float]
Point2 = tuple[float, float]
Point3 = tuple[float, float, float]


class _Record(BaseModel):
    # Infinity and NaN are no JSON; a number that does not exist is null.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class CameraRecord(_Record):
    """K: 3 x 3 intrinsics, pixels. orthographic: see docs/results.md."""

    K: tuple[Point3, Point3, Point3]
    orthographic: bool = False


class FitRecord(_Record):
    """How the fit went: `recon_core.structures.FitReport`."""

    initial_energy: float | None
    energy: float | None
    terms: dict[str, float | None]
    iterations: int
    converged: bool
    reprojection_px: float | None
    reason: str


class PersonRecord(_Record):
    """One person. Pixels of the full photo; metres in the camera frame; axis-angle in radians."""

    box: Box
    score: float
    joints2d: dict[str, dict[str, Point2 | None]]
    joints3d: dict[str, dict[str, Point3]]
    pose: list[Point3] = Field(min_length=24, max_length=24)
    betas: list[float]
    translation: Point3
    samples: int
    joint_std_mm: dict[str, float] | None
    fit: FitRecord | None
    detected: dict[str, dict[str, tuple[float, float, float]]] | None


class ObjectRecord(_Record):
    """One mesh without a body, or one skeleton. extra: what the method estimated besides (light, view, ...), as nested
    lists. joints2d, joints3d: as of a person; empty where the method gives no joints."""

    box: Box
    score: float
    vertices: int
    faces: int
    textured: bool
    extra: dict[str, Any]
    joints2d: dict[str, dict[str, Point2 | None]] = {}
    joints3d: dict[str, dict[str, Point3]] = {}


class ImageRecord(_Record):
    """One picture that the method made. file: its name in the folder."""

    box: Box
    score: float
    file: str
    size: tuple[int, int]


class ViewRecord(_Record):
    """One photo of several of one person."""

    image: str
    image_sha256: str


class ResultRecord(_Record):
    """result.json."""

    method: str
    versions: dict[str, str]
    settings: dict[str, Any]
    image: str
    image_sha256: str
    image_size: tuple[int, int]
    camera: CameraRecord
    people: list[PersonRecord]
    objects: list[ObjectRecord] = []
    images: list[ImageRecord] = []
    views: list[ViewRecord] = []


def result_record(reconstruction: Reconstruction) -> ResultRecord:
    """The content of result.json. Raises pydantic.ValidationError on a number that JSON cannot hold."""
    camera, images = reconstruction.camera, reconstruction.images
    return ResultRecord(
        method=reconstruction.method,
        versions=dict(reconstruction.versions),
        settings=dict(reconstruction.settings),
        image=reconstruction.path.name,
        image_sha256=reconstruction.digest,
        image_size=reconstruction.image_size,
        camera=CameraRecord(K=_rounded(camera.K[0].cpu().numpy(), 6), orthographic=camera.orthographic),
        people=[_person(person) for person in reconstruction.people],
        objects=[_object(item) for item in reconstruction.objects],
        images=[_image(item, image_name(i, len(images))) for i, item in enumerate(images)],
        views=[ViewRecord(image=name, image_sha256=digest) for name, digest in reconstruction.views],
    )


def image_name(index: int, count: int) -> str:
    """File of a generated picture: image.png, or image_0.png, image_1.png, ... where there are several."""
    return "image.png" if count == 1 else f"image_{index}.png"


def write_json(reconstruction: Reconstruction, path: Path) -> None:
    """Write result.json."""
    content = result_record(reconstruction).model_dump(mode="json")
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, indent=1)
    # A point on one line. A line break cannot be inside a string, so only lists of numbers are joined.
    text = re.sub(r"\[\n[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text)
    path.write_text(text + "\n", encoding="utf-8")


def write_npz(reconstruction: Reconstruction, path: Path) -> None:
    """Write result.npz: plain arrays, none of which needs pickle."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **result_arrays(reconstruction))


def result_arrays(reconstruction: Reconstruction) -> dict[str, np.ndarray]:
    """The content of result.npz. P people share their first dimension."""
    people = reconstruction.people
    arrays: dict[str, np.ndarray] = {
        "K": reconstruction.camera.K[0].cpu().numpy(),
        "image_size": np.array(reconstruction.image_size),
    }
    if people and reconstruction.body_model is not None:
        stack = lambda values: np.stack([np.asarray(v) for v in values])  # noqa: E731
        arrays |= {
            "faces": reconstruction.body_model.faces.cpu().numpy(),
            "box": np.array([p.box for p in people], np.float32),
            "score": np.array([p.score for p in people], np.float32),
            "pose": stack(p.body.pose[0] for p in people),
            "betas": stack(p.body.betas[0] for p in people),
            "translation": stack(p.body.translation[0] for p in people),
            "vertices": stack(p.vertices for p in people),
        }
        for name in people[0].joints3d:
            arrays[f"joints3d_{name}"] = stack(p.joints3d[name].points for p in people)
            arrays[f"joints2d_{name}"] = stack(p.joints2d[name].points for p in people)
        if all(p.samples is not None for p in people):
            for name in ("pose", "betas", "translation", "log_prob"):
                arrays[f"sample_{name}"] = stack(getattr(p.samples, name)[0] for p in people)
        if all(p.joint_std_mm is not None for p in people):
            arrays["joint_std_mm"] = stack(p.joint_std_mm for p in people)
    for i, item in enumerate(reconstruction.objects):
        mesh = item.mesh
        arrays |= {
            f"object_{i}_vertices": mesh.vertices[0].detach().cpu().numpy(),
            f"object_{i}_faces": mesh.faces.cpu().numpy(),
        }
        for name in ("uv", "uv_faces", "texture", "colors"):
            if (value := getattr(mesh, name)) is not None:
                batched = name in ("texture", "colors")
                arrays[f"object_{i}_{name}"] = (value[0] if batched else value).detach().cpu().numpy()
        arrays |= {f"object_{i}_extra_{name}": value for name, value in item.extra.items()}
        for kind in ("joints3d", "joints2d"):
            arrays |= {f"object_{i}_{kind}_{name}": j.points for name, j in getattr(item, kind).items()}
    for i, picture in enumerate(reconstruction.images):
        arrays[f"image_{i}"] = picture.pixels
    return arrays


def _person(person: Person) -> PersonRecord:
    return PersonRecord(
        box=_rounded(person.box, 2),
        score=round(float(person.score), 4),
        joints2d={name: _by_name(joints, 3) for name, joints in person.joints2d.items()},
        joints3d={name: _by_name(joints, 6) for name, joints in person.joints3d.items()},
        pose=_rounded(matrix_to_axis_angle(person.body.pose[0].double()).numpy(), 7),
        betas=_rounded(person.body.betas[0].numpy(), 6),
        translation=_rounded(person.body.translation[0].numpy(), 6),
        samples=0 if person.samples is None else person.samples.count,
        joint_std_mm=None
        if person.joint_std_mm is None
        else dict(zip(SMPL24.joints, _rounded(person.joint_std_mm, 2), strict=True)),
        fit=None if person.fit is None else FitRecord(**person.fit),
        detected=_detected(person),
    )


def _detected(person: Person) -> dict[str, Any] | None:
    """The 2D joints the method and the fit were given: x, y, confidence; those that are missing are left out."""
    if person.keypoints is None:
        return None
    joints = Joints(
        person.keypoints.skeleton,
        np.concatenate([person.keypoints.points[0], person.keypoints.confidence[0, :, None]], -1),
    )
    seen = {name: _rounded(value, 3) for name, value in joints.items() if value[2] > 0}
    return {joints.skeleton.name: seen}


def _object(item: SceneObject) -> ObjectRecord:
    return ObjectRecord(
        box=_rounded(item.box, 2),
        score=round(float(item.score), 4),
        vertices=item.mesh.vertices.shape[1],
        faces=len(item.mesh.faces),
        textured=item.mesh.texture is not None,
        extra={name: _rounded(value, 6) for name, value in item.extra.items() if value.size <= 1000},
        joints2d={name: _by_name(joints, 3) for name, joints in item.joints2d.items()},
        joints3d={name: _by_name(joints, 6) for name, joints in item.joints3d.items()},
    )


def _image(item: GeneratedImage, name: str) -> ImageRecord:
    return ImageRecord(
        box=_rounded(item.box, 2),
        score=round(float(item.score), 4),
        file=name,
        size=(item.pixels.shape[1], item.pixels.shape[0]),
    )


def _by_name(joints: Joints, digits: int) -> dict[str, Any]:
    rows = _rounded(joints.points, digits)
    return {name: None if any(v is None for v in row) else row for name, row in zip(joints, rows, strict=True)}


def _rounded(values: Any, digits: int) -> Any:
    """Nested lists of Python numbers; None where a number is not finite."""
    if isinstance(values, list | tuple):
        return [_rounded(v, digits) for v in values]
    if isinstance(values, np.ndarray) and values.ndim:
        return _rounded(values.tolist(), digits)
    number = float(values)
    return round(number, digits) if math.isfinite(number) else None
