"""Made-up people with every kind of evidence: what the checks show to a plugin, without files, network or renderer."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.geometry.cameras import crop_affine, default_focal, transform_points
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.interfaces import BodyModel, InputKind, Method
from recon_core.plugins import registry
from recon_core.rendering import vertex_normals
from recon_core.skeletons import skeleton
from recon_core.structures import BodyParameters, Camera, Keypoints, Mesh, Observation

SIZE = (480, 360)
"""Width and height of the pictures, in pixels."""

KINDS: frozenset[str] = frozenset(get_args(InputKind))

LIMB_RADIUS = 0.08
"""Metres, of the capsules that stand for limbs."""

SCAN_STEP = 8
"""A scan has every eighth vertex."""


@dataclass(frozen=True)
class People:
    """observation: with every kind of evidence, free of error. body: the truth, in its camera's frame."""

    observation: Observation
    body: BodyParameters
    body_model: BodyModel


def synthetic_people(
    count: int = 3, seed: int = 0, body_model: BodyModel | None = None, crop_size: int = 224, crop_margin: float = 1.2
) -> People:
    """`count` people a few metres before a camera, upright and facing it, arms, legs and shape as chance has it.

    body_model: the registered "free" one by default. Each is in a picture of 480 x 360 pixels of its own; the crop
    shows limbs as capsules in one colour before another. Joints in pixels are those of blazepose33, in metres those
    of smpl24.
    """
    body_model = body_model or registry().create("body", "free")
    body = _bodies(count, seed, body_model)
    camera = Camera.perspective(default_focal(SIZE), SIZE, batch=count)
    vertices = body_model(body).vertices
    outline = camera.project(vertices)
    low, high = outline.amin(1), outline.amax(1)
    box = torch.cat([low, high - low], 1)
    affine = crop_affine(box, crop_size, crop_margin)
    joints = body_model.keypoints(body, "smpl24")
    mask = _limbs(camera, joints, affine, crop_size)
    ones = lambda points: torch.ones_like(points[..., 0])  # noqa: E731
    pixels = camera.project(body_model.keypoints(body, "blazepose33"))
    observation = Observation(
        camera,
        box=box,
        image=_painted(mask, seed),
        to_crop=affine,
        mask=mask,
        keypoints=Keypoints(pixels, ones(pixels), "blazepose33"),
        keypoints3d=Keypoints(joints, ones(joints), "smpl24"),
        mesh=Mesh(vertices, body_model.faces),
        scan=vertices[:, ::SCAN_STEP],
        scan_normals=_normals(vertices, body_model.faces)[:, ::SCAN_STEP],
        subject=torch.arange(count),
    )
    return People(observation, body, body_model)


def synthetic_observation(method: Method, count: int = 3, seed: int = 0) -> Observation:
    """What `method` is shown of such people: the kinds of evidence that it declares, and no others."""
    people = synthetic_people(count, seed, method.body_model, method.crop_size, method.crop_margin)
    return restricted(people.observation, method.inputs)


def restricted(observation: Observation, kinds: Collection[str]) -> Observation:
    """The observation without the evidence that is not of these kinds."""
    hidden: dict[str, None] = dict.fromkeys(KINDS - set(kinds))
    if "scan" in hidden:
        hidden["scan_normals"] = None
    if not {"image", "mask"} & set(kinds):
        hidden["to_crop"] = None
    return dataclasses.replace(observation, **hidden)  # type: ignore[arg-type]


def training_batch(method: Method, count: int = 4, seed: int = 0) -> dict[str, Any]:
    """A batch with every field of docs/training.md, in the crop of `method`. The first subject has joints in the
    picture alone: its other targets are 0, with has_<field> 0."""
    people = synthetic_people(count, seed, method.body_model, method.crop_size, method.crop_margin)
    seen, body, body_model = people.observation, people.body, people.body_model
    assert seen.to_crop is not None
    assert seen.mesh is not None
    joints = body_model.keypoints(body, "lsp14")
    pixels = transform_points(seen.to_crop, seen.camera.project(joints))
    upright = body.pose.clone()
    upright[:, 0] = torch.tensor([1.0, -1.0, -1.0])[:, None] * upright[:, 0]
    always: dict[str, Any] = {
        "image": seen.image,
        "mask": seen.mask,
        "K": seen.camera.cropped(seen.to_crop, (method.crop_size, method.crop_size)).K,
        "to_crop": seen.to_crop,
        "keypoints2d": pixels,
        "keypoints2d_confidence": torch.ones_like(pixels[..., 0]),
        "roll": torch.zeros(count),
        "flipped": torch.zeros(count),
    }
    space: dict[str, Any] = {
        "keypoints3d": joints,
        "keypoints3d_confidence": torch.ones_like(joints[..., 0]),
        "pose": body.pose,
        "betas": body.betas,
        "translation": body.translation,
        "vertices": seen.mesh.vertices,
        "recorded_pose": upright,
    }
    known = (torch.arange(count) > 0).float()
    batch = {**always, **{name: value * known.reshape(-1, *[1] * (value.ndim - 1)) for name, value in space.items()}}
    batch |= {f"has_{name}": torch.ones(count) for name in always} | {f"has_{name}": known for name in space}
    return batch | {"id": [f"person-{i}" for i in range(count)], "source": ["synthetic"] * count}


def _bodies(count: int, seed: int, body_model: BodyModel) -> BodyParameters:
    generator = torch.Generator().manual_seed(seed)
    angles = 0.15 * torch.randn(count, 24, 3, generator=generator)
    # Half a turn about x faces the camera; the arms hang a little.
    angles[:, 0] = torch.tensor([torch.pi, 0.0, 0.0])
    angles[:, 16, 2] -= 0.9
    angles[:, 17, 2] += 0.9
    betas = 0.5 * torch.randn(count, body_model.shape_count, generator=generator)
    place = torch.rand(count, 3, generator=generator) * torch.tensor([1.0, 0.4, 1.5]) + torch.tensor([-0.5, -0.2, 4.0])
    return BodyParameters(axis_angle_to_matrix(angles), betas, place)


def _normals(vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "B V 3"]:
    count, per_body = vertices.shape[:2]
    packed = faces + torch.arange(count)[:, None, None] * per_body
    return vertex_normals(vertices.flatten(0, 1), packed.flatten(0, 1)).unflatten(0, (count, per_body))


def _limbs(
    camera: Camera, joints: Float[Tensor, "B 24 3"], affine: Float[Tensor, "B 2 3"], side: int
) -> Float[Tensor, "B 1 side side"]:
    """Coverage of the crop by capsules around the bones, with an edge one pixel wide."""
    points = transform_points(affine, camera.project(joints))
    start, end = (points[:, list(ends)] for ends in zip(*skeleton("smpl24").bones, strict=True))
    bone = end - start
    line = torch.arange(side) + 0.5
    pixel = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(1, 1, -1, 2)
    to_pixel = pixel - start[:, :, None]
    share = (to_pixel * bone[:, :, None]).sum(-1) / bone.square().sum(-1).clamp_min(1e-6)[..., None]
    nearest = to_pixel - share.clamp(0, 1)[..., None] * bone[:, :, None]
    distance = nearest.norm(dim=-1).amin(1)
    radius = LIMB_RADIUS * camera.K[:, 0, 0] * affine[:, 0, 0] / joints[:, :, 2].mean(1)
    return (radius[:, None] - distance + 0.5).clamp(0, 1).reshape(len(points), 1, side, side)


def _painted(mask: Float[Tensor, "B 1 h w"], seed: int) -> Float[Tensor, "B 3 h w"]:
    """Each in a colour before another, with grain, so that no two pixels are alike."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.rand(len(mask), 2, 3, 1, 1, generator=generator)
    grain = 0.1 * torch.rand(mask.shape, generator=generator)
    return (mask * colors[:, 0] + (1 - mask) * colors[:, 1]).mul(0.9) + grain
