"""The training objective of ProHMR: equation 4.9 with the nine terms of section 4.6.3.

The shipped weights were trained on people whose bodies are all known. There the adversarial terms, which stand in for
missing 3D annotations, have nothing to do, and weigh nothing by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon_core.interfaces import Settings
from recon_core.skeletons import skeleton
from recon_core.structures import Batched, BodyParameters, LossValue
from recon_prohmr.network import ProHMRNetwork, pose_from_6d, pose_to_6d, stand, turned
from recon_std.bodies.smpl import SMPLBody
from recon_std.fitters.kinematics import PointBasis
from recon_std.losses.adversarial import DiscriminatorLoss, GeneratorLoss
from recon_std.priors.adversarial import PoseDiscriminator
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
    mode_adv: float = 0.0
    """(0.0005)"""
    exp_adv: float = 0.0
    """(0.0005)"""
    draw_every: int = 4
    """exp_2d, exp_adv and orth of a draw are taken of every so many-th person; the thesis draws for each (1)."""
    spread: float = 0.02
    """Deviation of the noise added to the 6D numbers whose likelihood is learnt. Rotations fill only a part of that
    space, on which a density could grow without bound; joints the capture never moves would make it do so at once."""

    @classmethod
    def of_the_thesis(cls) -> Weights:
        """Those of section 4.6.3, a draw for each person, the likelihood of the pose itself."""
        return cls(
            nll=0.001, exp_2d=0.001, exp_adv=0.0005, mode_2d=0.01, mode_adv=0.0005, mode_pose=0.001,
            mode_betas=0.0005, mode_3d=0.05, orth=0.1, mode_place=0.0, draw_every=1, spread=0.0,
        )  # fmt: skip

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator has a part in it."""
        return self.mode_adv > 0 or self.exp_adv > 0


@dataclass(frozen=True)
class MadeUp(Batched):
    """What the discriminator is to tell from real bodies: the modes, then the draws. rotations: (M, 23, 3, 3)."""

    rotations: Float[Tensor, "M 23 3 3"]
    betas: Float[Tensor, "M 10"]


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
    discriminator: PoseDiscriminator | None = None,
    known: Bool[Tensor, " B"] | None = None,
) -> tuple[LossValue, MadeUp]:
    """Equation 4.9 for each person, with equations 4.5 (nll), 4.7 (exp, one draw) and 4.8 (mode), and what was made up.

    The draw's terms are taken of every `draw_every`-th person, and count as many times as much. discriminator: gives
    the adversarial terms, which without it are left out. known: the people whose bodies are known, all by default; the
    others have their 2D joints alone, and no part in nll and in what compares the mode with a body in space.
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
    of_draws = lambda value: torch.zeros(count, device=device).index_add(  # noqa: E731
        0, torch.arange(count, device=device)[some], value * weights.draw_every
    )

    with torch.autocast(device.type, enabled=False):
        rest = body_model.rest_joints(truth.betas)[:, 0]
        pelvis = (view.rotation @ (rest + truth.translation)[..., None])[..., 0]
        joints = joints_of(BodyParameters(pose, truth.betas, pelvis - rest))
        mode_pose, drawn_pose = pose_from_6d(mode), pose_from_6d(draw)
        found = joints_of(stand(body_model, mode_pose, placed))
        drawn = joints_of(stand(body_model, drawn_pose, placed[some]))
        extent = view.extent[:, None, None]
        flat = _project(joints) / extent
        terms = {
            "nll": nll,
            "mode_3d": ((found - placed.pelvis[:, None]) - (joints - pelvis[:, None])).abs().sum((1, 2)),
            "mode_2d": (_project(found) / extent - flat).abs().sum((1, 2)),
            "mode_pose": (mode_pose - pose).square().sum((1, 2, 3)),
            "mode_betas": (placed.betas - truth.betas).square().sum(1),
            "mode_place": _place_error(placed.pelvis, pelvis),
            "exp_2d": of_draws((_project(drawn) / extent[some] - flat[some]).abs().sum((1, 2))),
            "orth": orthonormality(mode) + of_draws(orthonormality(draw)),
        }
        rotations = torch.cat([mode_pose[:, 1:], drawn_pose[:, 1:]])
        made_up = MadeUp(rotations, torch.cat([placed.betas, placed.betas[some]]))
        if discriminator is not None:
            scores = discriminator(made_up.rotations, made_up.betas)
            fooled = GeneratorLoss("lsgan")({"scores": scores}, {}).per_sample
            terms |= {"mode_adv": fooled[:count], "exp_adv": of_draws(fooled[count:])}
    if known is not None:
        in_space = ("nll", "mode_3d", "mode_pose", "mode_betas", "mode_place")
        terms |= {name: torch.where(known, terms[name], 0.0) for name in in_space}
    total = sum(getattr(weights, name) * value for name, value in terms.items())
    return LossValue(torch.as_tensor(total), terms), made_up.detach()


def discrimination(discriminator: PoseDiscriminator, real: BodyParameters, made_up: MadeUp) -> LossValue:
    """The discriminator's side of the game: real bodies are 1, those made up 0 (HMR, section 3.3)."""
    loss = DiscriminatorLoss("lsgan")
    judged = discriminator(made_up.rotations, made_up.betas)
    rows = torch.arange(len(judged), device=judged.device) % len(real)
    genuine = discriminator(real.pose[:, 1:], real.betas)
    return loss({"scores": judged}, {"scores": genuine[rows]})


def _project(joints: Float[Tensor, "B J 3"]) -> Float[Tensor, "B J 2"]:
    # Not nearer than a tenth of a metre: a joint at the camera's centre has no picture, and no useful gradient.
    return joints[..., :2] / joints[..., 2:].clamp_min(0.1)


def _place_error(found: Float[Tensor, "B 3"], truth: Float[Tensor, "B 3"]) -> Float[Tensor, " B"]:
    """Off the axis in metres, along it by the logarithm of the distance."""
    across = (found[:, :2] - truth[:, :2]).abs().sum(1)
    return across + (found[:, 2].log() - truth[:, 2].clamp_min(0.1).log()).abs()
