"""The training objective (thesis, section 4.3.4 and 4.6.3) on people whose bodies are fully known.

With complete 3D supervision the adversarial term, which stands in for missing 3D annotations, is left out.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.interfaces import BodyModel, Settings
from recon_core.skeletons import skeleton
from recon_core.structures import BodyParameters, LossValue
from recon_prohmr.network import ProHMRNetwork, pose_from_6d, pose_to_6d, stand, turned
from recon_std.synthetic.keypoints import KeypointPeople

_EXTRA = [
    skeleton("blazepose33").index(name)
    for name in ("nose", "left_ear", "right_ear", "left_heel", "right_heel", "left_big_toe", "right_big_toe",
                 "left_index", "right_index")
]  # fmt: skip


class Weights(Settings):
    """Weights of the terms; the thesis' in brackets. Terms are sums over joints and numbers, means over the batch.

    2D terms are in extents of the view (a standing person is about 4 high), the thesis' in crop sides.
    """

    nll: float = 0.002
    """(0.001)"""
    mode_3d: float = 0.05
    """(0.05)"""
    mode_2d: float = 0.005
    """(0.01)"""
    mode_pose: float = 0.002
    """(0.001)"""
    mode_betas: float = 0.002
    """(0.0005)"""
    mode_place: float = 0.02
    """Of the camera numbers, which are known here; the thesis has no such term."""
    exp_2d: float = 0.0005
    """(0.001)"""
    orth: float = 0.02
    """(0.1)"""
    spread: float = 0.02
    """Deviation of the noise added to the 6D numbers whose likelihood is learnt. Rotations fill only a part of that
    space, on which a density could grow without bound; joints the capture never moves would make it do so at once."""


def joints_of(body_model: BodyModel, body: BodyParameters) -> Float[Tensor, "B J 3"]:
    """The joints the losses compare: lsp14, and face, hands and feet, which fix what lsp14 leaves free."""
    detailed = body_model.keypoints(body, "blazepose33")[:, _EXTRA]
    return torch.cat([body_model.keypoints(body, "lsp14"), detailed], 1)


def orthonormality(values: Float[Tensor, "B 144"]) -> Float[Tensor, " B"]:
    """L_orth: how far the 6D numbers are from two orthonormal columns, |M^T M - I|^2 summed over the joints."""
    columns = values.unflatten(-1, (24, 2, 3))
    gram = columns @ columns.transpose(-1, -2)
    return (gram - torch.eye(2).to(gram)).square().sum((1, 2, 3))


def objective(
    network: ProHMRNetwork,
    body_model: BodyModel,
    people: KeypointPeople,
    weights: Weights,
    generator: torch.Generator,
) -> LossValue:
    """Equation 4.9 for each person, with equations 4.5 (nll), 4.7 (exp, one draw) and 4.8 (mode)."""
    view, truth = people.view, people.body
    device = view.points.device
    pose = turned(truth.pose, view.rotation)
    rest = body_model.rest_joints(truth.betas)[:, 0]
    pelvis = (view.rotation @ (rest + truth.translation)[..., None])[..., 0]
    joints = joints_of(body_model, BodyParameters(pose, truth.betas, pelvis - rest))

    context = network.encoder.encode(view).float()
    placed = network.place(context, view)
    values = pose_to_6d(pose)
    noisy = values + weights.spread * torch.randn(values.shape, generator=generator, device=device)
    nll = -network.flow.log_prob(noisy, context)

    z = torch.randn(len(values), 2, values.shape[-1], generator=generator, device=device)
    z[:, 0] = 0
    mode, draw = network.flow.decode(z, context).unbind(1)
    found = joints_of(body_model, stand(body_model, pose_from_6d(mode), placed))
    drawn = joints_of(body_model, stand(body_model, pose_from_6d(draw), placed))

    extent = view.extent[:, None, None]
    flat = _project(joints) / extent
    terms = {
        "nll": nll,
        "mode_3d": ((found - placed.pelvis[:, None]) - (joints - pelvis[:, None])).abs().sum((1, 2)),
        "mode_2d": (_project(found) / extent - flat).abs().sum((1, 2)),
        "mode_pose": (pose_from_6d(mode) - pose).square().sum((1, 2, 3)),
        "mode_betas": (placed.betas - truth.betas).square().sum(1),
        "mode_place": _place_error(placed.pelvis, pelvis),
        "exp_2d": (_project(drawn) / extent - flat).abs().sum((1, 2)),
        "orth": orthonormality(mode) + orthonormality(draw),
    }
    total = sum(getattr(weights, name) * value for name, value in terms.items())
    return LossValue(torch.as_tensor(total), terms)


def _project(joints: Float[Tensor, "B J 3"]) -> Float[Tensor, "B J 2"]:
    # Not nearer than a tenth of a metre: a joint at the camera's centre has no picture, and no useful gradient.
    return joints[..., :2] / joints[..., 2:].clamp_min(0.1)


def _place_error(found: Float[Tensor, "B 3"], truth: Float[Tensor, "B 3"]) -> Float[Tensor, " B"]:
    """Off the axis in metres, along it by the logarithm of the distance."""
    across = (found[:, :2] - truth[:, :2]).abs().sum(1)
    return across + (found[:, 2].log() - truth[:, 2].clamp_min(0.1).log()).abs()
