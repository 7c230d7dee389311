"""What a run returns: everything found in one photo, in the camera frame of that photo.

The camera frame has x right, y down, z forward; metres; pixels are of the full, upright photo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from recon_core.errors import ReconError
from recon_core.geometry.primitives import stick_figure
from recon_core.skeletons import SMPL24, Skeleton, skeleton
from recon_core.structures import BodyParameters, Camera, Keypoints, Mesh, Prediction, Samples

if TYPE_CHECKING:
    from recon_core.interfaces import BodyModel

RESULT_SKELETONS = ("smpl24", "coco17", "lsp14", "h36m17")
"""The skeletons in which joints are reported."""


class Joints(Mapping[str, np.ndarray]):
    """The joints of one person in one skeleton: a mapping from joint name to coordinates, and an array.

    `joints["left_knee"]` is one point; `np.asarray(joints)` or `joints.points` is (J, D), in skeleton order.
    A joint without a value (a point behind the camera has no pixel) is NaN.
    """

    def __init__(self, skeleton_name: str, points: Float[np.ndarray, "J D"]) -> None:
        self.skeleton: Skeleton = skeleton(skeleton_name)
        self.points = points

    def __getitem__(self, joint: str) -> np.ndarray:
        if joint not in self.skeleton.joints:
            raise KeyError(joint)
        return self.points[self.skeleton.joints.index(joint)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.skeleton.joints)

    def __len__(self) -> int:
        return len(self.skeleton)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.points, dtype=dtype) if copy else np.asarray(self.points, dtype=dtype)

    def __repr__(self) -> str:
        return f"Joints({self.skeleton.name}, {len(self)} x {self.points.shape[1]})"


@dataclass(frozen=True)
class Person:
    """One body.

    box: x, y, w, h in pixels. score: the detector's, in [0, 1]. body: parameters, a batch of one. vertices: (V, 3)
    metres. joints3d: by skeleton, metres. joints2d: by skeleton, pixels. keypoints: the 2D joints that the detector
    or a file gave, None where the method needed none. samples: further draws of the method, a batch of one, None
    when none were asked for. joint_std_mm: (24,) spread of the smpl24 joints over the samples (`joint_spread_mm`).
    fit: how the fit went (`FitReport.row`), None without a fit.
    """

    box: tuple[float, float, float, float]
    score: float
    body: BodyParameters
    vertices: Float[np.ndarray, "V 3"]
    joints3d: Mapping[str, Joints]
    joints2d: Mapping[str, Joints]
    keypoints: Keypoints | None = None
    samples: Samples | None = None
    joint_std_mm: Float[np.ndarray, "24"] | None = None
    fit: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SceneObject:
    """A mesh without a body model: box and score as in `Person`; mesh: a batch of one, camera frame, metres.
    extra: further named numbers the method gave (light, view, ...). joints3d, joints2d: by skeleton, as in `Person`, of
    a method that gives joints in space; its mesh is a figure of sticks where it gives none of its own."""

    box: tuple[float, float, float, float]
    score: float
    mesh: Mesh
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    joints3d: Mapping[str, Joints] = field(default_factory=dict)
    joints2d: Mapping[str, Joints] = field(default_factory=dict)


@dataclass(frozen=True)
class GeneratedImage:
    """A picture a method made: box and score of the subject it shows; pixels: (H, W, 3) uint8 RGB."""

    box: tuple[float, float, float, float]
    score: float
    pixels: UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Reconstruction:
    """Everything found in one photo.

    path: the photo's file, digest: its sha256. photo: (H, W, 3) uint8 RGB, upright. camera: one full-picture camera,
    shared by all subjects. people, objects, images: best first; which are filled depends on the method's outputs.
    versions: of the packages that made it. settings: all settings of the run. body_model: the model of `people`,
    None without people. views: file names and sha256 of all the photos that were taken for views of one person, this
    one among them; empty where it was taken by itself.
    """

    path: Path
    digest: str
    photo: UInt8[np.ndarray, "H W 3"]
    method: str
    camera: Camera
    people: Sequence[Person] = ()
    objects: Sequence[SceneObject] = ()
    images: Sequence[GeneratedImage] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    body_model: BodyModel | None = None
    views: Sequence[tuple[str, str]] = ()

    @property
    def image_size(self) -> tuple[int, int]:
        """(width, height) of the photo in pixels."""
        return self.photo.shape[1], self.photo.shape[0]

    def meshes(self) -> dict[str, Mesh]:
        """Every subject's mesh, a batch of one in the camera frame, by name: "person_0", ..., "object_0", ..."""
        found: dict[str, Mesh] = {}
        if self.body_model is not None:
            body = self.body_model
            shared = [value.cpu() for value in (body.faces, body.uv, body.uv_faces)]
            for i, person in enumerate(self.people):
                found[f"person_{i}"] = Mesh(torch.from_numpy(person.vertices)[None], *shared)
        for i, item in enumerate(self.objects):
            found[f"object_{i}"] = item.mesh
        return found

    def save(
        self,
        folder: str | Path,
        formats: Iterable[str] = (),
        renderer: str = "warp",
        overwrite: bool = False,
    ) -> list[Path]:
        """Write result.json, result.npz, scene.glb, overlay.png, report.html and `formats` to `folder`.

        The folder appears whole or not at all. docs/results.md describes the files.

        Raises UsageError for an unknown format or renderer, InputError when the folder exists (unless `overwrite`)
        or cannot be written.
        """
        from recon_core.export.save import save

        return save(self, Path(folder), formats=formats, renderer=renderer, overwrite=overwrite)


def people_from_bodies(
    body_model: BodyModel,
    body: BodyParameters,
    camera: Camera,
    boxes: Sequence[tuple[float, float, float, float]],
    scores: Sequence[float],
    keypoints: Keypoints | None = None,
    samples: Samples | None = None,
    fits: Sequence[Mapping[str, Any] | None] | None = None,
) -> list[Person]:
    """Skin, regress and project B bodies, given in the camera frame of `camera` (one camera).

    Raises ReconError when the parameters are not finite.
    """
    for name in ("pose", "betas", "translation"):
        if not torch.isfinite(getattr(body, name)).all():
            raise ReconError(f"the method returned a {name} that is not finite; no result can be written")
    with torch.no_grad():
        output = body_model(body)
        joints3d = {
            name: output.joints if name == SMPL24.name else body_model.regress(output.vertices, name)
            for name in RESULT_SKELETONS
        }
        joints2d = {name: project(camera, points) for name, points in joints3d.items()}
        spread = joint_spread_mm(body_model, samples) if samples is not None and samples.count > 1 else None
    to_numpy: Callable[[Tensor], np.ndarray] = lambda v: v.detach().cpu().numpy()  # noqa: E731
    return [
        Person(
            box=boxes[i],
            score=scores[i],
            body=body[i].detach().to("cpu"),
            vertices=to_numpy(output.vertices[i]),
            joints3d={name: Joints(name, to_numpy(points[i])) for name, points in joints3d.items()},
            joints2d={name: Joints(name, to_numpy(points[i])) for name, points in joints2d.items()},
            keypoints=None if keypoints is None else keypoints[i].detach().to("cpu"),
            samples=None if samples is None else samples[i].detach().to("cpu"),
            joint_std_mm=None if spread is None else to_numpy(spread[i]),
            fit=None if fits is None else fits[i],
        )
        for i in range(len(body))
    ]


def scene_objects(
    prediction: Prediction, boxes: Sequence[Any], scores: Sequence[float], camera: Camera | None = None
) -> list[SceneObject]:
    """The meshes or skeletons of a prediction that has any, one an object, each with its row of the other numbers.

    boxes, scores: of the objects. camera: the picture's, one row, for the pixels of joints. Raises ReconError for a
    mesh that is not finite.
    """
    joints = prediction.keypoints3d
    if prediction.mesh is None and joints is None:
        return []
    numbers = {name: value.detach().cpu().numpy() for name, value in prediction.extra.items()}
    if prediction.camera is not None:
        numbers |= {f"camera_{k}": getattr(prediction.camera, k).detach().cpu().numpy() for k in ("K", "R", "t")}
    joints3d: list[dict[str, Joints]] = [{} for _ in boxes]
    joints2d: list[dict[str, Joints]] = [{} for _ in boxes]
    mesh = prediction.mesh
    if joints is not None:
        joints = joints.detach().to("cpu")
        mesh = stick_figure(joints) if mesh is None else mesh
        joints3d = [{joints.skeleton: Joints(joints.skeleton, points.numpy())} for points in joints.points]
        if camera is not None:
            pixels = project(camera.detach().to("cpu"), joints.points)
            joints2d = [{joints.skeleton: Joints(joints.skeleton, points.numpy())} for points in pixels]
    assert mesh is not None
    mesh = mesh.detach().to("cpu")
    if not torch.isfinite(mesh.vertices).all():
        raise ReconError("the method returned a mesh that is not finite; no result can be written")
    return [
        SceneObject(
            boxes[i], scores[i], mesh[i], {name: value[i] for name, value in numbers.items()}, joints3d[i], joints2d[i]
        )
        for i in range(len(mesh))
    ]


def generated_images(
    prediction: Prediction, boxes: Sequence[Any], scores: Sequence[float]
) -> list[GeneratedImage]:
    """The pictures of a prediction that has any. boxes, scores: of the subjects they show."""
    if prediction.image is None:
        return []
    pixels = (prediction.image.detach().cpu().permute(0, 2, 3, 1).nan_to_num().clamp(0, 1) * 255 + 0.5).byte().numpy()
    return [GeneratedImage(boxes[i], scores[i], pixels[i]) for i in range(len(pixels))]


def project(camera: Camera, points: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N 2"]:
    """Camera-frame points to pixels of one camera; NaN for a point at or behind a perspective camera."""
    pixels = camera.project(points)
    if camera.orthographic:
        return pixels
    return torch.where(camera.to_camera(points)[..., 2:] > 0, pixels, torch.full_like(pixels, torch.nan))


def joint_spread_mm(body_model: BodyModel, samples: Samples, chunk: int = 4096) -> Float[Tensor, "B 24"]:
    """How uncertain the method is of each smpl24 joint: its standard deviation over the samples, millimetres.

    Joints are taken relative to the pelvis, so that the depth of the whole body, which one photo hardly tells,
    does not drown the rest (the pelvis is 0). The deviation is the root mean square distance from the mean
    position. `chunk` bodies are posed at a time.
    """
    flat = samples.flat()
    joints = torch.cat(
        [body_model.keypoints(flat[slice(start, start + chunk)], SMPL24.name) for start in range(0, len(flat), chunk)]
        or [flat.translation.new_zeros(0, len(SMPL24), 3)]
    )
    joints = joints.unflatten(0, (len(samples.pose), samples.count))
    return _spread_mm(joints - joints[:, :, :1])


def vertex_spread_mm(body_model: BodyModel, samples: Samples, chunk: int = 64) -> Float[Tensor, "B V"]:
    """`joint_spread_mm` of every vertex of the body: its standard deviation over the samples, relative to the pelvis,
    millimetres. `chunk` bodies are skinned at a time."""
    flat = samples.flat()
    parts = []
    for start in range(0, len(flat), chunk):
        output = body_model(flat[slice(start, start + chunk)])
        parts.append(output.vertices - output.joints[:, :1])
    return _spread_mm(torch.cat(parts).unflatten(0, (len(samples.pose), samples.count)))


def _spread_mm(points: Float[Tensor, "B N K 3"]) -> Float[Tensor, "B K"]:
    """Root mean square distance from the mean over the N draws, metres in, millimetres out."""
    return (points - points.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt() * 1000
