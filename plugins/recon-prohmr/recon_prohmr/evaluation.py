"""How well the flow's poses match the truth on motion capture: the protocol behind the figures that are reported.

Each test frame is posed, given a random shape, put before a random camera, its joints projected and disturbed by a
normal error of 2 % of the box. Errors are over the 14 joints of lsp14, after Procrustes alignment (PA-MPJPE).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.interfaces import BodyModel
from recon_core.metrics import pa_mpjpe
from recon_core.structures import BodyParameters
from recon_prohmr.network import ProHMRNetwork, pose_from_6d, turned
from recon_std.synthetic.detection import GaussianErrors
from recon_std.synthetic.keypoints import KeypointPeople, KeypointSampler, PeopleConfig

TEST_PEOPLE = PeopleConfig(
    exchange=0, jitter=0, collars=0, wide_betas=0, any_orientation=0, tilt=0, skeletons={"blazepose33": 1.0}
)
"""Frames as captured, upright, before the cameras of training."""


def people_of(
    body: BodyModel, poses: Float[Tensor, "F 24 3"], count: int, noise: float = 0.02, seed: int = 7
) -> KeypointPeople:
    """`count` test people drawn evenly from the frames, the same for the same seed."""
    sampler = KeypointSampler(body, poses, torch.ones(len(poses)), GaussianErrors(deviation=noise), TEST_PEOPLE)
    return sampler.sample(count, torch.Generator(poses.device).manual_seed(seed))


@torch.no_grad()
def sample_errors(
    network: ProHMRNetwork, body: BodyModel, people: KeypointPeople, counts: tuple[int, ...], seed: int = 7
) -> dict[str, Float[Tensor, " B"]]:
    """PA-MPJPE in millimetres of the mode ("mode"), and of the best of the first n samples ("best of n")."""
    view = people.view
    truth = body.keypoints(people.body, "lsp14")
    generator = torch.Generator(truth.device).manual_seed(seed)
    context = network.encoder.encode(view)
    betas = network.place(context, view).betas
    back = view.rotation.transpose(-1, -2)

    def errors(values: Float[Tensor, "B 144"]) -> Float[Tensor, " B"]:
        pose = turned(pose_from_6d(values), back)
        found = body.keypoints(BodyParameters(pose, betas, torch.zeros_like(betas[:, :3])), "lsp14")
        return pa_mpjpe(found, truth)

    result = {"mode": errors(network.flow.mode(context))}
    best = torch.full_like(result["mode"], torch.inf)
    for draw in range(max(counts, default=0)):
        z = torch.randn(len(context), 1, network.flow.dims, generator=generator, device=truth.device)
        best = torch.minimum(best, errors(network.flow.decode(z, context)[:, 0]))
        if draw + 1 in counts:
            result[f"best of {draw + 1}"] = best.clone()
    return result
