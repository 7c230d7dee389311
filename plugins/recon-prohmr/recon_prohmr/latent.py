"""The energy of fits in the flow's latent space: equations 4.11 and 4.12 of the thesis, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.geometry.rotations import matrix_to_axis_angle
from recon_core.skeletons import SMPL_PARENTS
from recon_core.structures import Batched
from recon_prohmr.network import POSE_DIMS, pose_from_6d
from recon_prohmr.prior import PosePrior
from recon_std.fitters.objective import Evaluation, Objective, Quadratic
from recon_std.fitters.variables import ANGLES, Variables

if TYPE_CHECKING:
    from recon_prohmr.fitter import LatentFitterConfig

_ABOVE = [max(parent, 0) for parent in SMPL_PARENTS]
_ROOT = 6
"""Numbers of a pose that turn the whole body: its own in each view. The others, theta^b, the views share."""


@dataclass(frozen=True)
class Latent(Batched):
    """The unknowns of N subjects of V views each. z: (N, V, 144) of the flow. translation: (N, V, 3), camera frame of
    the view, metres. betas: (N, S). A step's columns: z and translation of one view after the other, then betas."""

    z: Float[Tensor, "N V 144"]
    translation: Float[Tensor, "N V 3"]
    betas: Float[Tensor, "N S"]

    def moved(self, step: Float[Tensor, "N P"]) -> Latent:
        views, D = self.z.shape[1:]
        own = step[:, : views * (D + 3)].unflatten(1, (views, D + 3))
        return Latent(self.z + own[..., :D], self.translation + own[..., D:], self.betas + step[:, views * (D + 3) :])

    def columns(self) -> Int[Tensor, "V Q"]:
        """Where each view's z, betas and translation are among the columns of a step."""
        views, D = self.z.shape[1:]
        first = (D + 3) * torch.arange(views, device=self.z.device)[:, None]
        betas = (D + 3) * views + torch.arange(self.betas.shape[1], device=self.z.device)
        own = first + torch.arange(D + 3, device=self.z.device)
        return torch.cat([own[:, :D], betas.expand(views, -1), own[:, D:]], 1)


@dataclass(frozen=True)
class LatentEvaluation:
    """The energy (N,) at `latent`, whose poses are `values`, and the evidence's own evaluation, a row a view."""

    latent: Latent
    values: Float[Tensor, "N V 144"]
    inner: Evaluation
    terms: dict[str, Float[Tensor, " N"]]
    energy: Float[Tensor, " N"]


class LatentObjective:
    """Equations 4.11 and 4.12 in one: the evidence's energy through f(z; c), |z|^2 and |betas|^2, and for a subject of
    several views the squared distance of their body poses from the mean of these.

    evidence and context have a row a view, those of a subject beside each other. The evidence gives gradient and
    curvature in the columns of `Variables`; those of the latent follow by the chain rule through the 6D numbers and
    the flow. The view term is a square of theta^b, whose curvature through the flow is Gauss-Newton's.
    """

    rematches = False

    def __init__(
        self,
        evidence: Objective,
        prior: PosePrior,
        context: Float[Tensor, "NV C"],
        config: LatentFitterConfig,
        views: int = 1,
    ) -> None:
        self.evidence, self.prior, self.context, self.config, self.views = evidence, prior, context, config, views

    def matched(self, latent: Latent) -> LatentObjective:
        return self

    def rows(self, index: Int[Tensor, " M"]) -> LatentObjective:
        """The objective of some subjects."""
        every = (index[:, None] * self.views + torch.arange(self.views, device=index.device)).flatten()
        return LatentObjective(self.evidence.rows(every), self.prior, self.context[every], self.config, self.views)

    def evaluate(self, latent: Latent) -> LatentEvaluation:
        N, V, D = latent.z.shape
        values = self.prior.decode(latent.z.reshape(N * V, 1, D), self.context)[:, 0]
        pose = pose_from_6d(values)
        place = latent.translation.reshape(N * V, 1, 3)
        betas = latent.betas.repeat_interleave(V, 0)
        inner = self.evidence.evaluate(Variables(matrix_to_axis_angle(pose[:, 1:]), betas, pose[:, :1], place))
        total = lambda value: value.unflatten(0, (N, V)).sum(1)  # noqa: E731
        terms = {name: total(value) for name, value in inner.terms.items()}
        terms["pose prior"] = 0.5 * self.config.prior_weight * latent.z.square().sum((1, 2))
        terms["betas prior"] = 0.5 * self.config.betas_weight * latent.betas.square().sum(1)
        values = values.unflatten(0, (N, V))
        if V > 1:
            terms["views"] = self.config.views_weight * _apart(values).square().sum((1, 2))
        energy = sum(terms.values(), start=torch.zeros_like(latent.z[:, 0, 0]))
        energy = energy.masked_fill(~total(inner.energy).isfinite(), torch.inf)
        return LatentEvaluation(latent, values, inner, terms, energy)

    def linearize(self, at: LatentEvaluation, settled: Tensor) -> Quadratic:
        """Gauss-Newton throughout, settled or not: the turning of the levers is only a part of the second order here,
        the flow's own bend being the other."""
        latent = at.latent
        N, V, D = latent.z.shape
        flow = self.prior.jacobian(latent.z.reshape(N * V, D), self.context)
        inner = self.evidence.linearize(at.inner, settled.new_zeros(N * V))
        chain = self._chain(at, flow.unflatten(1, (24, 6)))
        columns = latent.columns()
        P = V * (D + 3) + latent.betas.shape[1]
        data = (chain.transpose(1, 2) @ inner.data @ chain).unflatten(0, (N, V))
        gradient = _gathered((inner.gradient[:, None] @ chain).reshape(N, -1), columns.flatten(), P)
        pairs = (columns[:, :, None] * P + columns[:, None, :]).flatten()
        data = _gathered(data.flatten(1), pairs, P * P).unflatten(1, (P, P))

        weight = latent.z.new_zeros(P)
        weight[columns[:, :D]] = self.config.prior_weight
        weight[V * (D + 3) :] = self.config.betas_weight
        at_place = torch.cat([torch.cat([latent.z, latent.translation], 2).flatten(1), latent.betas], 1)
        gradient = gradient + weight * at_place
        prior = torch.diag_embed(weight.expand(N, P))
        if V > 1:
            body = flow.unflatten(0, (N, V))[:, :, _ROOT:]
            slope, curve = _view_term(_apart(at.values), body)
            own = columns[:, :D].flatten()
            gradient[:, own] += 2 * self.config.views_weight * slope
            prior[:, own[:, None], own] += 2 * self.config.views_weight * curve
        return Quadratic(gradient, data, prior, data.diagonal(dim1=1, dim2=2) * 1e-2 + 1e-6)

    def _chain(self, at: LatentEvaluation, flow: Float[Tensor, "NV 24 6 D"]) -> Float[Tensor, "NV P Q"]:
        """d (columns of Variables) / d (z, betas, translation), view by view."""
        variables, posed = at.inner.variables, at.inner.pose
        turns = turn_of_6d(at.values.flatten(0, 1).unflatten(1, (24, 6)))
        # The root's columns turn it about its own axes; the other joints' are axis-angle numbers, whose charts say
        # how they turn the joint, as its parent sees it and in the root's frame.
        root = variables.root[:, 0].transpose(-1, -2) @ turns[:, 0]
        above = posed.rotations[:, _ABOVE]
        below = torch.linalg.solve(posed.charts[:, 1:], (above @ turns)[:, 1:])
        rows, D, S = len(flow), POSE_DIMS, variables.betas.shape[1]
        chain = flow.new_zeros(rows, ANGLES + S + 6, D + S + 3)
        chain[:, :ANGLES, :D] = (below @ flow[:, 1:]).flatten(1, 2)
        chain[:, ANGLES : ANGLES + S, D : D + S] = torch.eye(S).to(chain)
        chain[:, ANGLES + S : ANGLES + S + 3, :D] = root @ flow[:, 0]
        chain[:, ANGLES + S + 3 :, D + S :] = torch.eye(3).to(chain)
        return chain


def _apart(values: Float[Tensor, "N V 144"]) -> Float[Tensor, "N V 138"]:
    """theta^b of each view less their mean."""
    body = values[..., _ROOT:]
    return body - body.mean(1, keepdim=True)


def _view_term(
    apart: Float[Tensor, "N V B"], jacobian: Float[Tensor, "N V B D"]
) -> tuple[Float[Tensor, "N VD"], Float[Tensor, "N VD VD"]]:
    """Slope and curvature of half the sum of |theta_n^b - mean|^2 over the views, by all their z.

    The mean takes 1 / V of every pair of views from the curvature, and nothing from the slope, as what is left over
    sums to zero.
    """
    V = apart.shape[1]
    slope = (apart[:, :, None] @ jacobian)[:, :, 0].flatten(1)
    share = torch.eye(V).to(apart) - 1 / V
    curve = torch.einsum("vw,nvbd,nwbe->nvdwe", share, jacobian, jacobian)
    return slope, curve.flatten(3).flatten(1, 2)


def _gathered(values: Float[Tensor, "N M"], columns: Int[Tensor, " M"], count: int) -> Float[Tensor, "N count"]:
    """Values added up at their columns, of which views share some."""
    return values.new_zeros(len(values), count).index_add_(1, columns, values)


def turn_of_6d(values: Float[Tensor, "*B 6"]) -> Float[Tensor, "*B 3 6"]:
    """How a rotation turns when its 6D numbers change: d R = skew(turn @ d values) R, R by Gram-Schmidt."""
    a, b = values[..., :3], values[..., 3:]
    length = a.norm(dim=-1, keepdim=True)
    first = a / length
    along = (first * b).sum(-1, keepdim=True)
    rest = b - along * first
    height = rest.norm(dim=-1, keepdim=True)
    second = rest / height
    third = torch.linalg.cross(first, second)
    outer = lambda x, y: x[..., :, None] * y[..., None, :]  # noqa: E731
    by_a = (outer(third, second) - outer(second, third)) / length[..., None]
    by_a = by_a - outer(first, third) * (along / (length * height))[..., None]
    return torch.cat([by_a, outer(first, third) / height[..., None]], -1)
