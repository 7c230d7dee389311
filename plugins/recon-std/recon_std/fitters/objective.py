"""The energy of a fit, its gradient and its curvature, in closed form over batches of subjects."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from recon_std.fitters.curvature import PriorTerm
from recon_std.fitters.evidence import Evidence, Residuals, ScanPoints
from recon_std.fitters.kinematics import JOINTS, SUBTREES, Pose, chart_bend, pose
from recon_core.structures import Batched
from recon_std.fitters.variables import ANGLES, Variables

# Strict ancestors of each joint, spread over the 3 numbers of a joint: 72 x 72, row above column.
_ABOVE = (SUBTREES - torch.eye(JOINTS)).repeat_interleave(3, 0).repeat_interleave(3, 1)


@dataclass(frozen=True)
class Measured:
    """One kind of evidence at some variables: levers (N, 24, 3, K), mass (K,) or (1,) of its points, residuals."""

    levers: Float[Tensor, "N 24 3 K"]
    mass: Float[Tensor, " K"]
    residuals: Residuals


@dataclass(frozen=True)
class Evaluation:
    """The energy at some variables and what its derivatives need. energy is +inf where the variables are invalid."""

    variables: Variables
    pose: Pose
    measured: list[Measured]
    quadratics: list[tuple[Tensor, Tensor, Tensor]]
    terms: dict[str, Float[Tensor, " N"]]
    energy: Float[Tensor, " N"]


@dataclass(frozen=True)
class Quadratic(Batched):
    """gradient (N, P) and curvature (N, P, P) of the energy; metric (N, P, P): what a step is damped by."""

    gradient: Float[Tensor, "N P"]
    curvature: Float[Tensor, "N P P"]
    metric: Float[Tensor, "N P P"]

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.gradient, self.curvature, self.metric


class Objective:
    """Evidence and priors as one energy over `Variables`.

    anchor: (weight, angles (N, 23, 3)): half the squared distance to those axis-angle numbers, times weight.
    second_order: add how a joint's lever turns with the joints above it (module docstring of kinematics), which
    Gauss-Newton leaves out. The result may be indefinite: the caller must check its factor.
    """

    def __init__(
        self,
        evidence: Sequence[Evidence],
        priors: Sequence[PriorTerm] = (),
        anchor: tuple[float, Tensor] | None = None,
        second_order: bool = False,
    ) -> None:
        self.evidence, self.priors, self.anchor = list(evidence), list(priors), anchor
        self.second_order = second_order
        self.held: tuple[Pose, list[Tensor]] | None = None

    def _with(self, evidence: list[Evidence]) -> Objective:
        other = copy.copy(self)
        other.evidence = evidence
        return other

    def holding(self, variables: Variables) -> Objective:
        """The same evidence with the body held as it is: the places are the only unknowns, and priors say nothing."""
        other = Objective(self.evidence)
        posed = pose(variables.angles)
        other.held = posed, [e.basis.levers(posed, variables.betas) for e in self.evidence]
        return other

    def rows(self, index: Tensor) -> Objective:
        """The objective of some subjects."""
        other = self._with([e[index] for e in self.evidence])
        other.priors = [p.rows(index) for p in self.priors]
        if self.anchor is not None:
            other.anchor = self.anchor[0], self.anchor[1][index]
        if self.held is not None:
            other.held = self.held[0][index], [levers[index] for levers in self.held[1]]
        return other

    @property
    def rematches(self) -> bool:
        """Whether the energy depends on correspondences, which `matched` finds anew."""
        return any(isinstance(e, ScanPoints) for e in self.evidence)

    def matched(self, variables: Variables) -> Objective:
        """The objective with the correspondences of its scans as they are at `variables`."""
        if not self.rematches:
            return self
        posed = pose(variables.angles)
        return self._with([e.matched(posed, variables) if isinstance(e, ScanPoints) else e for e in self.evidence])

    def evaluate(self, variables: Variables) -> Evaluation:
        """The energy and its terms, +inf for a subject with a joint that counts behind its camera."""
        posed = pose(variables.angles) if self.held is None else self.held[0]
        measured, terms = [], {}
        valid = torch.ones(len(variables.betas), dtype=torch.bool, device=variables.betas.device)
        for i, e in enumerate(self.evidence):
            levers = e.basis.levers(posed, variables.betas) if self.held is None else self.held[1][i]
            mass = e.basis.mass
            if isinstance(e, ScanPoints):
                levers, mass = e.of_match(levers, 3), mass[:1]
            points = variables.points(levers[:, 0], mass, e.basis.root_joint(variables.betas))
            residuals = e.residuals(points)
            measured.append(Measured(levers, mass, residuals))
            terms[e.name] = residuals.energy
            valid &= residuals.valid
        quadratics = [p.quadratic(variables) for p in self.priors]
        terms |= {p.name: quadratic[0] for p, quadratic in zip(self.priors, quadratics, strict=True)}
        if self.anchor is not None:
            weight, angles = self.anchor
            terms["anchor"] = 0.5 * weight * (variables.angles - angles).square().sum((1, 2))
        energy = torch.stack(list(terms.values())).sum(0)
        energy = torch.where(valid, energy, torch.full_like(energy, torch.inf))
        return Evaluation(variables, posed, measured, quadratics, terms, energy)

    def linearize(self, at: Evaluation) -> Quadratic:
        """Gradient, curvature and metric over the step's columns, or over the places' alone while the body is held.

        The metric is the priors' curvature: it knows which joints are stiff and which move together, and needs half
        the iterations of Marquardt's diagonal. A hundredth of the evidence's diagonal covers what no prior curves.
        """
        v = at.variables
        columns = v.columns - (0 if self.held is None else v.places)
        gradient = v.betas.new_zeros(len(v.betas), columns)
        curvature = v.betas.new_zeros(len(v.betas), columns, columns)
        pulls = v.betas.new_zeros(len(v.betas), JOINTS, 3, 3)
        second_order = self.second_order and self.held is None
        for e, m in zip(self.evidence, at.measured, strict=True):
            r = m.residuals
            slopes = v.root.transpose(-1, -2)[:, :, None] @ r.jacobian
            rows = _places(m, slopes, v)
            if self.held is None:
                rows = torch.cat([*_body(e, m, slopes, at.pose), rows], 1)
            weighted = r.weight[:, :, None] * r.value
            weight = r.weight[:, :, None].expand_as(r.value).flatten(1)
            gradient += (rows @ weighted.flatten(1)[..., None])[..., 0]
            curvature += (rows * weight[:, None]) @ rows.transpose(-1, -2)
            if second_order:
                pull = (weighted[..., None, :] * slopes).sum((1, 2))
                pulls += (m.levers.flatten(1, 2) @ pull.transpose(-1, -2)).unflatten(1, (JOINTS, 3))
        metric = torch.diag_embed(curvature.diagonal(dim1=-2, dim2=-1) * 1e-2 + 1e-6)
        if second_order:
            _add_turning(curvature, pulls, at.pose, v.places)
        for p, (_, slope, curve) in zip(self.priors, at.quadratics, strict=True):
            own = p.slice(v)
            gradient[:, own] += slope
            curvature[:, own, own] += curve
            metric[:, own, own] += curve
        if self.anchor is not None:
            weight_, angles = self.anchor
            gradient[:, :ANGLES] += weight_ * (v.angles - angles).flatten(1)
            curvature.diagonal(dim1=-2, dim2=-1)[:, :ANGLES] += weight_
            metric.diagonal(dim1=-2, dim2=-1)[:, :ANGLES] += weight_
        return Quadratic(gradient, curvature, metric)


def _body(e: Evidence, m: Measured, slopes: Tensor, at: Pose) -> tuple[Tensor, Tensor]:
    """Rows of the transposed Jacobian: the angles' (N, 69, V d K) and the betas' (N, S, V d K).

    slopes: (N, V, d, 3, K), of the residuals by the points in the body's frame.
    """
    # p . (w x a) = w . (a x p): how a residual of slope p answers to turning its lever a by w.
    p = slopes.flatten(1, 2).transpose(1, 2)[:, None]
    a = m.levers[:, 1:, :, None]
    torque = a.new_empty(len(a), JOINTS - 1, 3, p.shape[3], p.shape[4])
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        torch.mul(a[:, :, j], p[:, :, k], out=torque[:, :, i])
        torque[:, :, i].addcmul_(a[:, :, k], p[:, :, j], value=-1)
    angles = (at.charts[:, 1:].transpose(-1, -2) @ torque.flatten(3)).flatten(1, 2)
    shape = e.basis.shape_jacobian(at)
    if isinstance(e, ScanPoints):
        shape = e.of_match(shape, 2)
    betas = (shape.permute(0, 3, 1, 2)[..., None, :] * p).sum(2)
    # The rest pelvis, about which the root turns, moves with the betas too.
    pelvis = torch.einsum("nmik,is->nsmk", m.residuals.jacobian.flatten(1, 2), e.basis.root[:, 1:])
    return angles, (betas + pelvis * m.mass).flatten(2)


def _places(m: Measured, slopes: Tensor, v: Variables) -> Float[Tensor, "N 6G VdK"]:
    """Rows of the transposed Jacobian for the places: turns of the root about its own axes, then metres."""
    lever = m.levers[:, None, None, 0].expand_as(slopes)
    turn = torch.linalg.cross(lever, slopes, dim=3)
    each = torch.cat([turn, m.residuals.jacobian * m.mass], 3)
    N, V, d, _, K = each.shape
    if v.root.shape[1] == 1:
        return each.permute(0, 3, 1, 2, 4).flatten(2)
    # A view's residuals answer to its own place alone.
    rows = each.new_zeros(N, V, 6, V, d, K)
    view = torch.arange(V, device=each.device)
    rows[:, view, :, view] = each.permute(1, 0, 3, 2, 4)
    return rows.flatten(1, 2).flatten(2)


def _add_turning(
    curvature: Float[Tensor, "N P P"], pulls: Float[Tensor, "N 24 3 3"], at: Pose, places: int
) -> None:
    """Add the second derivatives of the points by the rotations, times the energy's slope at the points.

    pulls: A_j = sum_k a_kj g_k^T, g_k the energy's gradient at point k in the body's frame. Turning j above l by u, and
    l by w, moves x_k in second order by u x (w x a_kl): in all u^T (A_l - tr A_l I) w. On a joint's own axis-angle
    numbers the same with its symmetric part, and the chart's own bend (d Jl(v) along dv) dv against the torque. The
    root's turns are taken with one place only, on top.
    """
    M = pulls - pulls.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * torch.eye(3).to(pulls)
    turned = M @ at.charts
    pairs = at.charts.transpose(-1, -2).flatten(1, 2) @ turned.transpose(1, 2).flatten(2)
    pairs *= _ABOVE.to(pulls)
    pairs = pairs + pairs.transpose(-1, -2)
    own = at.charts.transpose(-1, -2) @ turned
    own = 0.5 * (own + own.transpose(-1, -2))
    # The torque of the points about each joint: sum_k a_kj x g_k.
    torque = torch.stack([pulls[..., i, j] - pulls[..., j, i] for i, j in ((1, 2), (2, 0), (0, 1))], -1)
    own[:, 1:] += chart_bend(at, torque)
    pairs.unflatten(1, (JOINTS, 3)).unflatten(3, (JOINTS, 3)).diagonal(dim1=1, dim2=3).add_(own.permute(0, 2, 3, 1))
    curvature[:, :ANGLES, :ANGLES] += pairs[:, 3:, 3:]
    if curvature.shape[1] == places + 6:
        turn = slice(places, places + 3)
        curvature[:, turn, :ANGLES] += pairs[:, :3, 3:]
        curvature[:, :ANGLES, turn] += pairs[:, 3:, :3]
        curvature[:, turn, turn] += pairs[:, :3, :3]
