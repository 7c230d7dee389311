"""The energy of a latent fit (equations 15 and 16), its gradient and its Gauss-Newton curvature, over a batch."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon_acap.fitting.evidence import Evidence, PictureJoints, Residuals, ScanSurface
from recon_acap.fitting.generator import Generator, forward_jacobian
from recon_acap.fitting.variables import LatentVariables
from recon_std.fitters.objective import Quadratic


@dataclass(frozen=True)
class Pull:
    """Weights of what is not evidence, each of half a square.

    shape, pose: of the codes' squares; 1 is their density as trained. bending: of exp(angle) of elbows and knees that
    bend the unnatural way (SMPLify's penalty on the hinge angles of equation 16). smooth: of the difference of pose
    codes of consecutive frames.
    """

    shape: float = 1.0
    pose: float = 1.0
    bending: float = 0.0
    smooth: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """The energy at some variables, +inf where they are invalid, and what its derivatives need."""

    variables: LatentVariables
    residuals: list[Residuals]
    terms: dict[str, Float[Tensor, " N"]]
    energy: Float[Tensor, " N"]


class LatentObjective:
    """Evidence and pulls as one energy over `LatentVariables`, in the form recon-std's `minimise` takes.

    frames: rows of evidence a subject. held: whether the codes stay as they are, so that only the places move.
    shape_held: whether the shape does.
    """

    def __init__(
        self,
        generator: Generator,
        evidence: Sequence[Evidence],
        pull: Pull,
        frames: int = 1,
        held: bool = False,
        shape_held: bool = False,
    ) -> None:
        self.generator, self.evidence, self.pull = generator, list(evidence), pull
        self.frames, self.held, self.shape_held = frames, held, shape_held

    def with_evidence(self, evidence: Sequence[Evidence]) -> LatentObjective:
        other = copy.copy(self)
        other.evidence = list(evidence)
        return other

    def placing(self) -> LatentObjective:
        """The same with the codes held."""
        other = copy.copy(self)
        other.held = True
        return other

    def widened(self, factor: float) -> LatentObjective:
        """The same with outliers allowed, and matches sought, `factor` times as far."""

        def wide(e: Evidence) -> Evidence:
            if e.outlier is not None:
                e = dataclasses.replace(e, outlier=factor * e.outlier)
            return dataclasses.replace(e, reach=factor * e.reach) if isinstance(e, ScanSurface) else e

        return self.with_evidence([wide(e) for e in self.evidence])

    def rows(self, index: Tensor) -> LatentObjective:
        """The objective of some subjects; each has as many rows of evidence as frames."""
        wide = (index[:, None] * self.frames + torch.arange(self.frames, device=index.device)).flatten()
        return self.with_evidence([e[wide] for e in self.evidence])

    @property
    def rematches(self) -> bool:
        return any(isinstance(e, ScanSurface) for e in self.evidence)

    def matched(self, variables: LatentVariables) -> LatentObjective:
        """The objective with its scans matched to the bodies at `variables`."""
        if not self.rematches:
            return self
        vertices = variables.placed(self._vertices(variables))
        return self.with_evidence([e.matched(vertices) if isinstance(e, ScanSurface) else e for e in self.evidence])

    def _vertices(self, variables: LatentVariables) -> Tensor:
        return self.generator.vertices(*variables.codes())

    def evaluate(self, variables: LatentVariables) -> Evaluation:
        """The energy and its terms. Scans count as they were last matched."""
        world = variables.placed(self._vertices(variables))
        subjects = (len(variables.shape), variables.frames)
        residuals, terms = [], {}
        for e in self.evidence:
            assert e.selection is not None
            residuals.append(e.residuals(e.selection(world)))
            terms[e.name] = residuals[-1].energy.unflatten(0, subjects).sum(1)
        pull, frames = self.pull, variables.frames
        terms["shape"] = 0.5 * pull.shape * variables.shape.square().sum(1)
        terms["pose"] = 0.5 * pull.pose * variables.pose.square().sum((1, 2))
        if pull.bending > 0:
            bends = self.generator.bends(*variables.codes())
            terms["bending"] = pull.bending * bends.exp().sum(1).unflatten(0, subjects).sum(1)
        if pull.smooth > 0 and frames > 1:
            terms["smooth"] = 0.5 * pull.smooth * variables.pose.diff(dim=1).square().sum((1, 2))
        energy = sum(terms.values(), start=torch.zeros_like(variables.shape[:, 0]))
        return Evaluation(variables, residuals, terms, torch.nan_to_num(energy, nan=torch.inf))

    def linearize(self, at: Evaluation, settled: Bool[Tensor, " N"]) -> Quadratic:
        """Gradient and curvature over all columns of a step; those that are held have none and stay."""
        v = at.variables
        N, F, S, P = len(v.shape), v.frames, v.shape.shape[1], v.pose.shape[2]
        # First each frame by itself over (shape, pose, turn, translation), then frames of one shape together.
        gradient = v.shape.new_zeros(N * F, S + P + 6)
        data = v.shape.new_zeros(N * F, S + P + 6, S + P + 6)
        if self.held:
            vertices, slope = self._vertices(v), None
        else:
            vertices, slope = self.generator.linearized(*v.codes())
        root = v.root.flatten(0, 1)
        for e, r in zip(self.evidence, at.residuals, strict=True):
            assert e.selection is not None
            rows = _rows(e.selection, r, vertices, slope, root, S + P)
            weight = r.weight[..., None].expand_as(r.value).flatten(1)
            gradient += ((weight * r.value.flatten(1))[:, None] @ rows)[:, 0]
            data += (rows * weight[..., None]).transpose(1, 2) @ rows
        if self.pull.bending > 0 and not self.held:
            bends, by_code = forward_jacobian(self.generator.bends, *v.codes())
            force = self.pull.bending * bends.exp()
            gradient[:, : S + P] += (force[:, None] @ by_code)[:, 0]
            data[:, : S + P, : S + P] += (by_code * force[..., None]).transpose(1, 2) @ by_code
        return self._joined(v, gradient.unflatten(0, (N, F)), data.unflatten(0, (N, F)))

    def _joined(self, v: LatentVariables, gradient: Tensor, data: Tensor) -> Quadratic:
        """Frames that share a shape as one system: an arrow, whose tip is the shape."""
        N, F, C = gradient.shape
        S, P = v.shape.shape[1], v.pose.shape[2]
        own = C - S
        g = torch.cat([gradient[..., :S].sum(1), gradient[..., S:].flatten(1)], 1)
        D = g.new_zeros(N, S + F * own, S + F * own)
        D[:, :S, :S] = data[:, :, :S, :S].sum(1)
        across = data[:, :, :S, S:].permute(0, 2, 1, 3).flatten(2)
        D[:, :S, S:], D[:, S:, :S] = across, across.transpose(1, 2)
        frame = torch.arange(F)
        blocks = D[:, S:, S:].unflatten(1, (F, own)).unflatten(3, (F, own))
        blocks[:, frame, :, frame] = data[:, :, S:, S:].transpose(0, 1)
        weight = torch.cat([v.shape.new_full((S,), self.pull.shape), v.shape.new_full((F * own,), self.pull.pose)])
        place = (torch.arange(F * own) % own) >= P
        weight[S:][place] = 0
        at = torch.cat([v.shape, torch.cat([v.pose, v.pose.new_zeros(N, F, 6)], 2).flatten(1)], 1)
        prior = torch.diag_embed(weight.expand(N, -1))
        if self.pull.smooth > 0 and F > 1:
            chain = torch.diag_embed(v.pose.new_tensor([1.0] + [2.0] * (F - 2) + [1.0]))
            chain -= torch.diag_embed(v.pose.new_ones(F - 1), 1) + torch.diag_embed(v.pose.new_ones(F - 1), -1)
            moving = torch.diag_embed((torch.arange(own) < P).to(v.pose))
            prior[:, S:, S:] += self.pull.smooth * torch.kron(chain, moving)
        g = g + (prior @ at[..., None])[..., 0]
        still = torch.zeros(len(weight), dtype=torch.bool)
        still[:S] = self.held or self.shape_held
        still[S:][~place] |= self.held
        if still.any():
            g = g.masked_fill(still, 0.0)
            gone = still[:, None] | still
            D, prior = D.masked_fill(gone, 0.0), prior.masked_fill(gone, 0.0)
            prior[:, still, still] = 1
        # The pulls leave the places free; a hundredth of the evidence's diagonal damps what nothing curves.
        floor = D.diagonal(dim1=-2, dim2=-1) * 1e-2 + 1e-6
        return Quadratic(g, D, prior, floor)


def _rows(
    selection: object, r: Residuals, vertices: Tensor, slope: Tensor | None, root: Float[Tensor, "B 3 3"], codes: int
) -> Float[Tensor, "B Kd C"]:
    """Jacobian of the residuals by (codes, turn, translation); 0 by the codes where `slope` is None."""
    by_model = r.jacobian @ root[:, None]
    points = selection(vertices)  # type: ignore[operator]
    # p . (w x a) = w . (a x p): how a residual of slope p answers to turning its lever a by w.
    turn = torch.linalg.cross(points[:, :, None].expand_as(by_model), by_model, dim=-1)
    if slope is None:
        by_codes = turn.new_zeros(*turn.shape[:3], codes)
    else:
        picked = selection(slope.flatten(2)).unflatten(2, (3, codes))  # type: ignore[operator]
        by_codes = by_model @ picked
    return torch.cat([by_codes, turn, r.jacobian], -1).flatten(1, 2)


def reprojection(objective: LatentObjective, variables: LatentVariables) -> Float[Tensor, " B"]:
    """Mean pixel distance of the joints in each frame; NaN without joints in pictures."""
    for e in objective.evidence:
        if isinstance(e, PictureJoints):
            world = variables.placed(objective.generator.vertices(*variables.codes()))
            return e.pixel_error(e.selection(world))
    return variables.shape.new_full((len(variables.shape) * variables.frames,), torch.nan)
