"""How well the distribution matches the truth on motion capture: the protocol behind the figures that are reported.

Each test frame is posed, given a random shape and put before a random camera; its joints are projected and disturbed
by a normal error of 2 % of the box. Errors are over the 14 joints of lsp14, after Procrustes alignment (PA-MPJPE).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.interfaces import BodyModel
from recon_core.metrics import pa_mpjpe
from recon_core.structures import BodyParameters, Camera, Keypoints, Observation
from recon_prohmr.network import ProHMRNetwork, pose_from_6d, turned
from recon_prohmr.sampling import representatives
from recon_std.encoders.keypoints import KeypointView
from recon_std.synthetic.detection import GaussianErrors
from recon_std.synthetic.keypoints import KeypointSampler, PeopleConfig

if TYPE_CHECKING:
    from recon_prohmr.method import ProHMR

TEST_PEOPLE = PeopleConfig(exchange=0, jitter=0, collars=0, wide_betas=0, any_orientation=0, tilt=0)
"""Frames as captured, upright, before the cameras of training."""

SKELETON = "blazepose33"
"""The detector whose joints are seen."""


def people_of(
    body: BodyModel, poses: Float[Tensor, "F 24 3"], count: int, noise: float = 0.02, seed: int = 7
) -> tuple[Observation, BodyParameters]:
    """`count` people drawn evenly from the frames, the same for the same seed: what is seen, and the truth.

    The picture has a focal length of 1000 pixels; noise is in shares of the longer side of the joints' box.
    """
    sampler = KeypointSampler(body, poses, torch.ones(len(poses)), GaussianErrors(), TEST_PEOPLE)
    generator = torch.Generator(poses.device).manual_seed(seed)
    return _seen(body, sampler.bodies(count, generator), noise, generator)


def views_of(
    body: BodyModel, poses: Float[Tensor, "F 24 3"], count: int, views: int, noise: float = 0.02, seed: int = 7
) -> tuple[Observation, BodyParameters]:
    """As `people_of`, each before `views` cameras: a person's views in a row, told by `Observation.subject`."""
    sampler = KeypointSampler(body, poses, torch.ones(len(poses)), GaussianErrors(), TEST_PEOPLE)
    generator = torch.Generator(poses.device).manual_seed(seed)
    seen, truth = _seen(body, sampler.views(count, views, generator), noise, generator)
    return replace(seen, subject=torch.arange(count).repeat_interleave(views)), truth


def _seen(
    body: BodyModel, truth: BodyParameters, noise: float, generator: torch.Generator
) -> tuple[Observation, BodyParameters]:
    """What a detector that errs by `noise` sees of bodies, and the bodies."""
    camera = Camera.perspective(1000.0, (1000, 1000), batch=len(truth))
    points = camera.project(body.keypoints(truth, SKELETON))
    side = (points.amax(1) - points.amin(1)).amax(-1)
    points = points + torch.randn(points.shape, generator=generator) * (noise * side[:, None, None])
    low, high = points.amin(1), points.amax(1)
    keypoints = Keypoints(points, torch.ones_like(points[..., 0]), SKELETON)
    return Observation(camera, box=torch.cat([low, high - low], 1), keypoints=keypoints), truth


@torch.no_grad()
def sample_errors(
    network: ProHMRNetwork,
    body: BodyModel,
    view: KeypointView,
    truth: BodyParameters,
    counts: tuple[int, ...] = (),
    seed: int = 7,
) -> dict[str, Float[Tensor, " B"]]:
    """PA-MPJPE in millimetres of the mode ("mode"), and of the best of the first n samples ("best of n")."""
    joints = body.keypoints(truth, "lsp14")
    context = network.encoder.encode(view)
    betas = network.place(context, view).betas
    generator = torch.Generator().manual_seed(seed)

    def errors(values: Float[Tensor, "B N 144"]) -> Float[Tensor, "B N"]:
        count = values.shape[1]
        back = view.rotation.transpose(-1, -2)[:, None].expand(-1, count, -1, -1)
        pose = turned(pose_from_6d(values), back).flatten(0, 1)
        shape = betas.repeat_interleave(count, 0)
        found = body.keypoints(BodyParameters(pose, shape, torch.zeros_like(shape[:, :3])), "lsp14")
        return pa_mpjpe(found, joints.repeat_interleave(count, 0)).unflatten(0, (-1, count))

    result = {"mode": errors(network.flow.mode(context)[:, None])[:, 0]}
    drawn: list[Tensor] = []
    most = max(counts, default=0)
    for first in range(0, most, 16):
        z = torch.randn(len(context), min(16, most - first), network.flow.dims, generator=generator)
        drawn.append(errors(network.flow.decode(z, context)))
    if drawn:
        best = torch.cat(drawn, 1).cummin(1).values
        result |= {f"best of {count}": best[:, count - 1] for count in counts}
    return result


@torch.no_grad()
def quantised_errors(
    method: ProHMR,
    seen: Observation,
    truth: BodyParameters,
    counts: tuple[int, ...],
    draws: int = 4096,
    at_once: int = 4,
) -> dict[int, Float[Tensor, " B"]]:
    """PA-MPJPE in millimetres of the best of n bodies that stand for `draws` of them, as table 12 has it (section
    4.6.5); by n. `at_once` people at a time, for whom as many times `draws` bodies are posed."""
    body = method.body_model
    assert body is not None
    drawing = copy.copy(method)
    drawing.config = method.config.model_copy(update={"samples": draws})
    parts: dict[int, list[Tensor]] = {count: [] for count in counts}
    for rows in torch.arange(len(truth)).split(at_once):
        samples = drawing.predict(seen[rows]).samples
        assert samples is not None
        joints = body.keypoints(truth[rows], "lsp14")
        for count in counts:
            few = representatives(samples, body, count).flat()
            error = pa_mpjpe(body.keypoints(few, "lsp14"), joints.repeat_interleave(count, 0))
            parts[count].append(error.unflatten(0, (-1, count)).amin(1))
    return {count: torch.cat(values) for count, values in parts.items()}
