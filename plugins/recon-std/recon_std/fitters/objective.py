"""The energy of a fit, its gradient and its curvature, in closed form over batches of subjects."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon_core.structures import Batched
from recon_std.fitters.curvature import PriorTerm
from recon_std.fitters.evidence import Evidence, Residuals, ScanPoints
from recon_std.fitters.kinematics import JOINTS, Pose, pose
from recon_std.fitters.loss_terms import LossTerm
from recon_std.fitters.turning import add_turning
from recon_std.fitters.variables import ANGLES, Variables


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

    def rows(self, index: Tensor) -> Evaluation:
        """The evaluation of some subjects."""
        return Evaluation(
            self.variables[index],
            self.pose[index],
            [Measured(m.levers[index], m.mass, m.residuals[index]) for m in self.measured],
            [(energy[index], slope[index], curve[index]) for energy, slope, curve in self.quadratics],
            {name: value[index] for name, value in self.terms.items()},
            self.energy[index],
        )


@dataclass(frozen=True)
class Quadratic(Batched):
    """gradient (N, P) of the energy; data (N, P, P) and prior (N, P, P): the curvature of the evidence and of the
    priors; floor (N, P): a little of the evidence's diagonal."""

    gradient: Float[Tensor, "N P"]
    data: Float[Tensor, "N P P"]
    prior: Float[Tensor, "N P P"]
    floor: Float[Tensor, "N P"]

    def replaced(self, rows: Tensor, other: Quadratic) -> Quadratic:
        """This, with some rows taken from another, which has just these."""
        for name in ("gradient", "data", "prior", "floor"):
            getattr(self, name)[rows] = getattr(other, name)
        return self


class Objective:
    """Evidence, priors and losses as one energy over `Variables`.

    anchor: (weight, angles (N, 23, 3)): half the squared distance to those axis-angle numbers, times weight.
    """

    def __init__(
        self,
        evidence: Sequence[Evidence],
        priors: Sequence[PriorTerm] = (),
        anchor: tuple[float, Tensor] | None = None,
        losses: Sequence[LossTerm] = (),
    ) -> None:
        self.evidence, self.priors, self.anchor, self.losses = list(evidence), list(priors), anchor, list(losses)
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

    def widened(self, factor: float) -> Objective:
        """The same with outliers allowed `factor` times as far: fewer local minima, less robust."""
        wide = lambda e: e if e.outlier is None else dataclasses.replace(e, outlier=factor * e.outlier)  # noqa: E731
        return self._with([wide(e) for e in self.evidence])

    def coarse(self) -> Objective:
        """The same with its scans thinned out."""
        return self._with([e.coarse() if isinstance(e, ScanPoints) else e for e in self.evidence])

    def rows(self, index: Tensor) -> Objective:
        """The objective of some subjects."""
        other = self._with([e[index] for e in self.evidence])
        other.priors = [p.rows(index) for p in self.priors]
        other.losses = [loss.rows(index) for loss in self.losses]
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
        measured, terms, valid = [], {}, None
        for i, e in enumerate(self.evidence):
            levers = e.basis.levers(posed, variables.betas) if self.held is None else self.held[1][i]
            mass = e.basis.mass
            if isinstance(e, ScanPoints):
                levers, mass = e.of_match(levers, 3), mass[:1]
            points = variables.points(levers[:, 0], mass, e.basis.root_joint(variables.betas))
            residuals = e.residuals(points)
            measured.append(Measured(levers, mass, residuals))
            terms[e.name] = residuals.energy
            valid = residuals.valid if valid is None else valid & residuals.valid
        quadratics = [p.quadratic(variables) for p in self.priors]
        terms |= {p.name: quadratic[0] for p, quadratic in zip(self.priors, quadratics, strict=True)}
        terms |= {f"loss.{loss.name}": loss.energy(variables) for loss in self.losses}
        terms |= self._anchored(variables)
        energy = sum(terms.values(), start=torch.zeros_like(variables.betas[:, 0]))
        if valid is not None:
            energy = energy.masked_fill(~valid, torch.inf)
        return Evaluation(variables, posed, measured, quadratics, terms, energy)

    def energy(
        self, variables: Variables, surface: Callable[[Evidence], Float[Tensor, "N V 3 K"]] | None = None
    ) -> Float[Tensor, " N"]:
        """The energy alone, differentiable by autograd. surface: gives the points of an evidence in place of the
        closed form. Points behind a camera count as if just before it."""
        posed = pose(variables.angles)
        objective = self.matched(variables)
        total = torch.zeros_like(variables.betas[:, 0])
        for e in objective.evidence:
            if surface is None:
                levers = e.basis.levers(posed, variables.betas)[:, 0]
                points = variables.points(levers, e.basis.mass, e.basis.root_joint(variables.betas))
            else:
                points = surface(e)
            if isinstance(e, ScanPoints):
                points = e.of_match(points, 3)
            total = total + e.residuals(points).energy
        total = sum((p.energy(variables) for p in objective.priors), start=total)
        total = sum((loss.energy(variables) for loss in objective.losses), start=total)
        return sum(self._anchored(variables).values(), start=total)

    def _anchored(self, variables: Variables) -> dict[str, Tensor]:
        if self.anchor is None:
            return {}
        weight, angles = self.anchor
        return {"anchor": 0.5 * weight * (variables.angles - angles).square().sum((1, 2))}

    def linearize(self, at: Evaluation, settled: Bool[Tensor, " N"]) -> Quadratic:
        """Gradient and curvature over the step's columns, or over the places' alone while the body is held.

        settled: the subjects whose curvature is to include how the levers themselves turn (`turning`).
        """
        v = at.variables
        columns = v.columns - (0 if self.held is None else v.places)
        gradient = v.betas.new_zeros(len(v.betas), columns)
        data: Tensor | None = None
        late = settled.nonzero()[:, 0]
        pulls = v.betas.new_zeros(len(v.betas), JOINTS, 3, 3) if len(late) else None
        for e, m in zip(self.evidence, at.measured, strict=True):
            r = m.residuals
            slopes = v.root.transpose(-1, -2)[:, :, None] @ r.jacobian
            rows = _places(m, slopes, v)
            if self.held is None:
                rows = torch.cat([*_body(e, m, slopes, at), rows], 1)
            weighted = r.weight[:, :, None] * r.value
            weight = r.weight[:, :, None].expand_as(r.value).flatten(1)
            gradient += (rows @ weighted.flatten(1)[..., None])[..., 0]
            own = (rows * weight[:, None]) @ rows.transpose(-1, -2)
            data = own if data is None else data + own
            if pulls is not None:
                pull = (weighted[..., None, :] * slopes).sum((1, 2))
                pulls += (m.levers.flatten(1, 2) @ pull.transpose(-1, -2)).unflatten(1, (JOINTS, 3))
        prior = v.betas.new_zeros(len(v.betas), columns, columns)
        data = torch.zeros_like(prior) if data is None else data
        # Priors leave the places free; a hundredth of the evidence's diagonal damps what no prior curves.
        floor = data.diagonal(dim1=-2, dim2=-1) * 1e-2 + 1e-6
        if self.held is not None:
            return Quadratic(gradient, data, prior, floor)
        if pulls is not None:
            data[late] = add_turning(data[late], pulls[late], at.pose[late], v.places)
        for p, (_, slope, curve) in zip(self.priors, at.quadratics, strict=True):
            some = p.slice(v)
            gradient[:, some] += slope
            block = prior[:, some, some]
            block = block if curve.dim() == 3 else block.diagonal(dim1=-2, dim2=-1)
            block += curve
        for loss in self.losses:
            slope, curve = loss.quadratic(v)
            gradient += slope
            data += curve
        if self.anchor is not None:
            weight_, angles = self.anchor
            gradient[:, :ANGLES] += weight_ * (v.angles - angles).flatten(1)
            prior.diagonal(dim1=-2, dim2=-1)[:, :ANGLES] += weight_
        return Quadratic(gradient, data, prior, floor)


def _body(e: Evidence, m: Measured, slopes: Tensor, at: Evaluation) -> tuple[Tensor, Tensor]:
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
    angles = (at.pose.charts[:, 1:].transpose(-1, -2) @ torque.flatten(3)).flatten(1, 2)
    shape = e.basis.shape_jacobian(at.pose)
    if isinstance(e, ScanPoints):
        shape = e.of_match(shape, 2)
    # The rest pelvis, about which the root turns, moves with the betas too, and is not turned.
    pelvis = at.variables.root.transpose(-1, -2) @ e.basis.root[:, 1:]
    shape = shape[:, None] + pelvis[:, :, :, None] * m.mass[:, None]
    betas = (shape.permute(0, 4, 1, 2, 3)[:, :, :, None] * slopes[:, None]).sum(4)
    return angles, betas.flatten(2)


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
