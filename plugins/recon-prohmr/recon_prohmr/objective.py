"""The training objective (thesis, section 4.3.4 and 4.6.3) on people whose bodies are fully known.

With complete 3D supervision the adversarial term, which stands in for missing 3D annotations, is left out.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.interfaces import Settings
from recon_core.skeletons import skeleton
from recon_core.structures import BodyParameters, LossValue
from recon_prohmr.network import ProHMRNetwork, pose_from_6d, pose_to_6d, stand, turned
from recon_std.bodies.smpl import SMPLBody
from recon_std.fitters.kinematics import PointBasis
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

    nll: float = 0.005
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
    draw_every: int = 4
    """exp_2d, and orth of a draw, are taken of every so many-th person; the thesis draws for each."""
    spread: float = 0.02
    """Deviation of the noise added to the 6D numbers whose likelihood is learnt. Rotations fill only a part of that
    space, on which a density could grow without bound; joints the capture never moves would make it do so at once."""


class LossJoints:
    """The joints the losses compare: lsp14, and face, hands and feet, which fix what lsp14 leaves free."""

    def __init__(self, body_model: SMPLBody) -> None:
        self.body_model = body_model
        count = body_model.shape_count
        whole = PointBasis.of_skeleton(body_model, "lsp14", count)
        detailed = PointBasis.of_skeleton(body_model, "blazepose33", count)
        self.mass = torch.cat([whole.mass, detailed.mass[_EXTRA]])
        offsets = torch.cat([whole.offsets, detailed.offsets[:, :, _EXTRA]], 2)
        self.mean, self.directions = offsets[..., 0].reshape(1, -1), offsets[..., 1:].reshape(-1, count).T.contiguous()

    def __call__(self, body: BodyParameters) -> Float[Tensor, "B J 3"]:
        """Metres, in the frame of `body`: sum_q R_q o_kq(betas) + m_k t_0 (`recon_std.fitters.kinematics`)."""
        rotation, joints, _ = self.body_model.kinematics(body)
        offsets = torch.addmm(self.mean, body.betas, self.directions).view(len(joints), 72, len(self.mass))
        relative = offsets.transpose(1, 2) @ rotation.transpose(2, 3).flatten(1, 2)
        return relative + self.mass[:, None] * joints[:, :1]


def orthonormality(values: Float[Tensor, "B 144"]) -> Float[Tensor, " B"]:
    """L_orth: how far the 6D numbers are from two orthonormal columns, |M^T M - I|^2 summed over the joints."""
    columns = values.unflatten(-1, (24, 2, 3))
    gram = columns @ columns.transpose(-1, -2)
    return (gram - torch.eye(2).to(gram)).square().sum((1, 2, 3))


def objective(
    network: ProHMRNetwork,
    joints_of: LossJoints,
    people: KeypointPeople,
    weights: Weights,
    generator: torch.Generator,
) -> LossValue:
    """Equation 4.9 for each person, with equations 4.5 (nll), 4.7 (exp, one draw) and 4.8 (mode).

    The draw's terms are taken of every `draw_every`-th person, and count as many times as much.
    Under autocast only the networks run in half precision.
    """
    view, truth, body_model = people.view, people.body, joints_of.body_model
    device, count = view.points.device, len(people.box)
    context = network.encoder.encode(view).float()
    placed = network.place(context, view)
    pose = turned(truth.pose, view.rotation)
    values = pose_to_6d(pose)
    noisy = values + weights.spread * torch.randn(values.shape, generator=generator, device=device)
    nll = -network.flow.log_prob(noisy, context)
    mode = network.flow.mode(context)
    some = slice(None, None, weights.draw_every)
    z = torch.randn(count, 1, values.shape[-1], generator=generator, device=device)[some]
    draw = network.flow.decode(z, context[some])[:, 0]

    with torch.autocast(device.type, enabled=False):
        rest = body_model.rest_joints(truth.betas)[:, 0]
        pelvis = (view.rotation @ (rest + truth.translation)[..., None])[..., 0]
        joints = joints_of(BodyParameters(pose, truth.betas, pelvis - rest))
        found = joints_of(stand(body_model, pose_from_6d(mode), placed))
        drawn = joints_of(stand(body_model, pose_from_6d(draw), placed[some]))
        extent = view.extent[:, None, None]
        flat = _project(joints) / extent
        exp_2d, draw_orth = torch.zeros(count, device=device), torch.zeros(count, device=device)
        exp_2d[some] = (_project(drawn) / extent[some] - flat[some]).abs().sum((1, 2)) * weights.draw_every
        draw_orth[some] = orthonormality(draw) * weights.draw_every
        terms = {
            "nll": nll,
            "mode_3d": ((found - placed.pelvis[:, None]) - (joints - pelvis[:, None])).abs().sum((1, 2)),
            "mode_2d": (_project(found) / extent - flat).abs().sum((1, 2)),
            "mode_pose": (pose_from_6d(mode) - pose).square().sum((1, 2, 3)),
            "mode_betas": (placed.betas - truth.betas).square().sum(1),
            "mode_place": _place_error(placed.pelvis, pelvis),
            "exp_2d": exp_2d,
            "orth": orthonormality(mode) + draw_orth,
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
