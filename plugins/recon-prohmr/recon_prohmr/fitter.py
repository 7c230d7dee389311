"""Fitting in the flow's latent space (thesis, section 4.3.5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.geometry.rotations import matrix_to_axis_angle
from recon_core.interfaces import BodyModel, Fitter, Prior, Settings
from recon_core.skeletons import SMPL_PARENTS
from recon_core.structures import Batched, BodyParameters, Camera, FitReport, FitResult, Observation
from recon_prohmr.network import pose_from_6d
from recon_prohmr.prior import PosePrior
from recon_std.fitters.evidence import Evidence, Joints2D
from recon_std.fitters.gather import Noise, Sampling, gather
from recon_std.fitters.levenberg_marquardt import minimise
from recon_std.fitters.objective import Evaluation, Objective, Quadratic
from recon_std.fitters.variables import ANGLES, Variables, Views

_ABOVE = [max(parent, 0) for parent in SMPL_PARENTS]


class LatentFitterConfig(Settings):
    """Settings of the latent fit."""

    iterations: int = Field(default=15, ge=1)
    tolerance: float = Field(default=3e-3, gt=0, description="relative fall of the energy at which a fit has converged")
    prior_weight: float = Field(default=1.0, ge=0, description="of |z|^2 / 2, the negative log density")
    betas_weight: float = Field(default=1.0, ge=0, description="of |betas|^2 / 2")
    adapt: float = Field(
        default=0.65,
        ge=0,
        description="fit again with this share of the noise that a first fit finds in each person's 2D joints; below 1 "
        "the joints are followed more closely than the most probable body would; 0: no second fit",
    )
    noise: Noise = Field(
        default_factory=lambda: Noise(keypoints=2.0, keypoints_outlier=16.0),
        description="of the evidence; with adapt, of the first fit",
    )


@dataclass(frozen=True)
class Latent(Batched):
    """z: (N, 144) of the flow. betas: (N, S). translation: (N, 3), camera frame, metres; a step's columns in this
    order."""

    z: Float[Tensor, "N 144"]
    betas: Float[Tensor, "N S"]
    translation: Float[Tensor, "N 3"]

    def moved(self, step: Float[Tensor, "N P"]) -> Latent:
        z, betas, translation = step.split([self.z.shape[1], self.betas.shape[1], 3], 1)
        return Latent(self.z + z, self.betas + betas, self.translation + translation)


@dataclass(frozen=True)
class LatentEvaluation:
    """The energy (N,) at `latent`, whose pose is `values` (N, 144), and the evidence's own evaluation."""

    latent: Latent
    values: Float[Tensor, "N 144"]
    inner: Evaluation
    terms: dict[str, Float[Tensor, " N"]]
    energy: Float[Tensor, " N"]


class LatentObjective:
    """Equation 4.11 over (z, betas, translation): the evidence's energy through f(z; c), |z|^2 and |betas|^2.

    The evidence gives gradient and curvature in the columns of `Variables`; those of the latent follow by the chain
    rule through the 6D numbers and the flow.
    """

    rematches = False

    def __init__(
        self, evidence: Objective, prior: PosePrior, context: Float[Tensor, "N C"], config: LatentFitterConfig
    ) -> None:
        self.evidence, self.prior, self.context, self.config = evidence, prior, context, config

    def matched(self, latent: Latent) -> LatentObjective:
        return self

    def rows(self, index: Tensor) -> LatentObjective:
        return LatentObjective(self.evidence.rows(index), self.prior, self.context[index], self.config)

    def evaluate(self, latent: Latent) -> LatentEvaluation:
        values = self.prior.decode(latent.z[:, None], self.context)[:, 0]
        pose = pose_from_6d(values)
        angles = matrix_to_axis_angle(pose[:, 1:])
        inner = self.evidence.evaluate(Variables(angles, latent.betas, pose[:, :1], latent.translation[:, None]))
        terms = dict(inner.terms)
        terms["pose prior"] = 0.5 * self.config.prior_weight * latent.z.square().sum(1)
        terms["betas prior"] = 0.5 * self.config.betas_weight * latent.betas.square().sum(1)
        return LatentEvaluation(latent, values, inner, terms, inner.energy + terms["pose prior"] + terms["betas prior"])

    def linearize(self, at: LatentEvaluation, settled: Float[Tensor, " N"]) -> Quadratic:
        """Gauss-Newton throughout, settled or not: the turning of the levers is only a part of the second order here,
        the flow's own bend being the other."""
        inner, latent = self.evidence.linearize(at.inner, torch.zeros_like(settled)), at.latent
        chain = self._chain(at)
        weights = (self.config.prior_weight, self.config.betas_weight, 0.0)
        parts = (latent.z, latent.betas, latent.translation)
        own = torch.cat([torch.full_like(part, weight) for part, weight in zip(parts, weights, strict=True)], 1)
        gradient = (inner.gradient[:, None] @ chain)[:, 0] + own * torch.cat(parts, 1)
        data = chain.transpose(1, 2) @ inner.data @ chain
        floor = data.diagonal(dim1=1, dim2=2) * 1e-2 + 1e-6
        return Quadratic(gradient, data, torch.diag_embed(own), floor)

    def _chain(self, at: LatentEvaluation) -> Float[Tensor, "N P Q"]:
        """d (columns of Variables) / d (columns of Latent)."""
        latent, variables, posed = at.latent, at.inner.variables, at.inner.pose
        turns = turn_of_6d(at.values.unflatten(1, (24, 6)))
        # The root's columns turn it about its own axes; the other joints' are axis-angle numbers, whose charts say
        # how they turn the joint, as its parent sees it and in the root's frame.
        root = variables.root[:, 0].transpose(-1, -2) @ turns[:, 0]
        above = posed.rotations[:, _ABOVE]
        below = torch.linalg.solve(posed.charts[:, 1:], (above @ turns)[:, 1:])
        flow = self.prior.jacobian(latent.z, self.context).unflatten(1, (24, 6))
        N, D, S = len(latent.z), latent.z.shape[1], latent.betas.shape[1]
        chain = latent.z.new_zeros(N, ANGLES + S + 6, D + S + 3)
        chain[:, :ANGLES, :D] = (below @ flow[:, 1:]).flatten(1, 2)
        chain[:, ANGLES : ANGLES + S, D : D + S] = torch.eye(S).to(chain)
        chain[:, ANGLES + S : ANGLES + S + 3, :D] = root @ flow[:, 0]
        chain[:, ANGLES + S + 3 :, D + S :] = torch.eye(3).to(chain)
        return chain


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


class LatentFitter(Fitter):
    """Pulls ProHMR's prediction onto what was seen, with its own density as the prior.

    Damped Gauss-Newton steps in the latent z, the betas and the translation, from the mode z = 0; the betas and the
    translation start where `initial` has them. Reads every kind of evidence that `recon_std.fitters` does.
    """

    Config: ClassVar[type[Settings]] = LatentFitterConfig
    default_priors: ClassVar[tuple[str, ...]] = ("prohmr",)

    def __init__(self, config: LatentFitterConfig | None = None) -> None:
        self.config = config or LatentFitterConfig()

    @torch.no_grad()
    def fit(
        self,
        observation: Observation,
        initial: BodyParameters,
        body_model: BodyModel,
        priors: Mapping[str, Prior] | None = None,
        context: Float[Tensor, "B C"] | None = None,
    ) -> FitResult:
        """Each row by itself, in the frame of its own camera.

        Raises EvidenceError for too little evidence, UsageError without ProHMR's prior and context.
        """
        prior = self._prior(priors, context)
        assert context is not None
        count = len(initial)
        if count == 0:
            empty = initial.betas.new_zeros(0)
            none = torch.zeros(0, dtype=torch.int64)
            return FitResult(initial, FitReport(empty, empty, none, none.bool(), empty, none), observation.camera)
        views = Views(torch.arange(count, device=initial.betas.device)[:, None], True)
        seen = dataclasses.replace(observation, camera=_at_origin(observation.camera), subject=None)
        evidence = gather(seen, body_model, views, initial.betas.shape[1], self.config.noise, Sampling())
        objective = LatentObjective(Objective(evidence), prior, context, self.config)
        start = Latent(torch.zeros_like(context[:, :1]).expand(-1, prior.dims), initial.betas, initial.translation)
        before = objective.evaluate(start)
        found = minimise(objective, start, self.config.iterations, self.config.tolerance)
        iterations = found.iterations
        if self.config.adapt:
            evidence = _adapted(evidence, objective.evaluate(found.variables), self.config.adapt)
            objective = LatentObjective(Objective(evidence), prior, context, self.config)
            before = objective.evaluate(start)
            found = minimise(objective, found.variables, self.config.iterations, self.config.tolerance)
            iterations = iterations + found.iterations
        after = objective.evaluate(found.variables)
        failed = ~torch.isfinite(after.energy)
        latent = after.latent
        pick = lambda new, old: torch.where(failed.reshape(-1, *[1] * (new.dim() - 1)), old, new)  # noqa: E731
        body = BodyParameters(
            pick(pose_from_6d(after.values), initial.pose),
            pick(latent.betas, initial.betas),
            pick(latent.translation, initial.translation),
        )
        converged = found.converged & ~failed
        report = FitReport(
            initial_energy=before.energy,
            energy=after.energy,
            iterations=iterations,
            converged=converged,
            reprojection_px=_reprojection(evidence, after),
            reason=torch.where(failed, 2, torch.where(converged, 0, 1)),
            terms=after.terms,
        )
        return FitResult(body, report, observation.camera)

    @staticmethod
    def _prior(priors: Mapping[str, Prior] | None, context: Tensor | None) -> PosePrior:
        given = dict(priors or {})
        if context is None or not any(isinstance(prior, PosePrior) for prior in given.values()):
            raise UsageError("the fitter 'prohmr-latent' works in the latent space of prohmr: use it with that method")
        if others := [name for name, prior in given.items() if not isinstance(prior, PosePrior)]:
            raise UsageError(f"the fitter 'prohmr-latent' has its own prior and takes no '{others[0]}'; use smplify")
        return next(prior for prior in given.values() if isinstance(prior, PosePrior))


def _at_origin(camera: Camera) -> Camera:
    eye = torch.eye(3).to(camera.R).expand_as(camera.R)
    return dataclasses.replace(camera, R=eye, t=torch.zeros_like(camera.t))


NOISE_RANGE = (0.4, 2.5)
"""Bounds of the adapted noise, in units of the first fit's."""

RESIDUAL_OF_NOISE = (0.17, 0.59)
"""What a first fit leaves over: constant + slope * noise, in units of the first fit's noise. Measured on held-out
motion capture with joints disturbed by 0, 0.5, 1, 2 and 3 % of the box (0.18, 0.42, 0.72, 1.27, 1.83): the constant is
what the body cannot explain, and the slope is below 1 because the body follows some of the noise."""


def _adapted(evidence: Sequence[Evidence], at: LatentEvaluation, share: float) -> list[Evidence]:
    """2D joints with `share` of the noise that each person's residuals show, by the median, which outliers leave alone.

    The distance of a joint with normal errors in x and y has the median sqrt(2 ln 2) = 1.1774 deviations. Since the
    residuals now say how good the whole reading is, confidences only say which joints are better than others: they are
    divided by their own mean, each joint counting by its confidence.
    """
    constant, slope = RESIDUAL_OF_NOISE
    changed: list[Evidence] = []
    for e, measured in zip(evidence, at.inner.measured, strict=True):
        if isinstance(e, Joints2D):
            distance = measured.residuals.value.norm(dim=2).masked_fill(e.confidence <= 0, torch.nan)
            residual = distance.nanmedian(-1).values / 1.1774
            scale = (share * (residual - constant) / slope).nan_to_num(1.0).clamp(*NOISE_RANGE)
            total = e.confidence.sum(-1, keepdim=True).clamp_min(1e-6)
            typical = e.confidence.square().sum(-1, keepdim=True) / total
            e = dataclasses.replace(
                e,
                confidence=e.confidence / typical.clamp_min(1e-6),
                target=e.target / scale[..., None, None],
                intrinsics=e.intrinsics / scale[..., None, None],
                noise=e.noise * scale,
            )
        changed.append(e)
    return changed


def _reprojection(evidence: Sequence[Evidence], at: LatentEvaluation) -> Float[Tensor, " N"]:
    """Confidence-weighted mean distance of the 2D joints in pixels, NaN without any."""
    for e, measured in zip(evidence, at.inner.measured, strict=True):
        if isinstance(e, Joints2D):
            v = at.inner.variables
            points = v.points(measured.levers[:, 0], measured.mass, e.basis.root_joint(v.betas))
            return e.pixel_error(points)[:, 0]
    return torch.full_like(at.energy, torch.nan)
