"""What a part returned, seen as named tensors: to be held to its interface and to what it returned elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from recon_core.errors import ReconError
from recon_core.interfaces import BodyModel, OutputKind
from recon_core.structures import BodyParameters, Mesh, Prediction

TOLERANCE = 1e-4
"""Absolute and relative, of numbers computed in float32 in two ways."""


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dataclasses and mappings, by its path."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from tensors(one, f"{name}.{key}" if name else str(key))
    elif dataclasses.is_dataclass(value):
        yield from tensors({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, name)


def assert_equal(found: Any, expected: Any, what: str, tolerance: float = TOLERANCE) -> None:
    """Same tensors under the same names, of the same shapes, equal within `tolerance`; NaN equals NaN."""
    a, b = dict(tensors(found)), dict(tensors(expected))
    assert a.keys() == b.keys(), f"{what}: gives {sorted(a)}, where it gave {sorted(b)}"
    for name, value in a.items():
        other = b[name]
        assert value.shape == other.shape, f"{what}: {name} is {list(value.shape)}, where it was {list(other.shape)}"
        same = torch.isclose(value.cpu().double(), other.cpu().double(), tolerance, tolerance, equal_nan=True)
        if not same.all():
            difference = (value.cpu().double() - other.cpu().double()).abs().max()
            raise AssertionError(f"{what}: {name} differs by up to {difference:.3g}")


def assert_finite(value: Any, what: str) -> None:
    """No tensor of floating point numbers holds NaN or infinity."""
    for name, tensor in tensors(value):
        assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), f"{what}: {name} is not finite"


def assert_gradient(value: Tensor, name: str) -> None:
    """A gradient has come to this tensor: finite, and not 0 throughout."""
    assert value.grad is not None, f"no gradient reaches {name}"
    assert torch.isfinite(value.grad).all(), f"the gradient of {name} is not finite"
    assert value.grad.any(), f"the gradient of {name} is 0"


def assert_rows(value: Any, count: int, what: str) -> None:
    """Every tensor has `count` rows; faces and texture coordinates are no tensors of rows."""
    for name, tensor in tensors(value):
        if name.rpartition(".")[2] not in {"faces", "uv", "uv_faces"}:
            assert len(tensor) == count, f"{what}: {name} has {len(tensor)} rows, one a subject would be {count}"


def assert_prediction(prediction: Any, outputs: frozenset[str], count: int, body_model: BodyModel | None) -> None:
    """A Prediction of `count` subjects that fills what is declared in `outputs`, as `recon_core.structures` has it."""
    assert isinstance(prediction, Prediction), f"predict returned {type(prediction).__name__}, not a Prediction"
    filled = {name for name in get_args(OutputKind) if getattr(prediction, name) is not None}
    assert filled == outputs, f"outputs declares {sorted(outputs)}, predict filled {sorted(filled)}"
    assert_rows(prediction, count, "predict")
    assert_finite(prediction, "predict")
    if prediction.body is not None:
        assert body_model is not None
        assert_body(prediction.body, body_model, "predict")
    if prediction.mesh is not None:
        assert_mesh(prediction.mesh)
    if prediction.keypoints3d is not None:
        points = prediction.keypoints3d.points
        assert points.shape[2:] == (3,), f"predict: points of keypoints3d are {list(points.shape)}, not B J 3"
        assert (points[..., 2] > 0).all(), "predict: joints behind the camera; the camera frame has z forward"
    if prediction.image is not None:
        image = prediction.image
        assert image.shape[1:2] == (3,), f"predict: image is {list(image.shape)}, not B 3 H W"
        assert image.numel() == 0 or 0 <= image.min() <= image.max() <= 1, "predict: image is not within [0, 1]"


def assert_body(body: BodyParameters, body_model: BodyModel, what: str) -> None:
    """Rotations, the body model's number of betas, and every joint before the camera."""
    count = len(body)
    shapes = {"pose": (count, 24, 3, 3), "betas": (count, body_model.shape_count), "translation": (count, 3)}
    for name, shape in shapes.items():
        found = tuple(getattr(body, name).shape)
        assert found == shape, f"{what}: {name} is {list(found)}, not {list(shape)}"
    pose = body.pose.double()
    turned = (pose @ pose.transpose(-1, -2) - torch.eye(3).to(pose)).abs()
    assert turned.numel() == 0 or turned.max() < 1e-3, f"{what}: pose holds matrices that are no rotations"
    assert (torch.linalg.det(pose) > 0).all(), f"{what}: pose holds reflections"
    depth = body_model.keypoints(body, "smpl24")[..., 2]
    assert (depth > 0).all(), f"{what}: joints behind the camera; the camera frame has z forward"


def assert_mesh(mesh: Mesh) -> None:
    """Faces that name vertices, before the camera; colours, texture and their coordinates that belong together."""
    faces = mesh.faces
    assert faces.shape[1:] == (3,), f"predict: faces is {list(faces.shape)}, not F 3"
    assert faces.dtype == torch.int64, f"predict: faces are {faces.dtype}, not int64"
    assert 0 <= faces.min() <= faces.max() < mesh.vertices.shape[1], "predict: faces name vertices that are not there"
    assert (mesh.vertices[..., 2] > 0).all(), "predict: vertices behind the camera; the camera frame has z forward"
    textured = {mesh.texture is None, mesh.uv is None, mesh.uv_faces is None}
    assert mesh.texture is None or len(textured) == 1, "predict: a texture needs uv and uv_faces"


def assert_said_in_one_line(error: BaseException, doing: str) -> None:
    """The error is a ReconError of one line: anything else would reach the user as a bug of recon."""
    said = f"{doing}: {type(error).__name__}: {error}"
    assert isinstance(error, ReconError), f"{said}; raise a ReconError that says what to do"
    assert str(error).strip(), f"{doing}: {type(error).__name__} says nothing"
    assert "\n" not in str(error).strip(), f"{said}; say it in one line"
