"""Fitting in the flow's latent space, to one view or several (thesis, section 4.3.5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.geometry.rotations import project_to_rotation
from recon_core.interfaces import BodyModel, Fitter, Prior, Settings
from recon_core.structures import BodyParameters, Camera, FitReport, FitResult, Observation
from recon_prohmr.latent import Latent, LatentEvaluation, LatentObjective
from recon_prohmr.network import pose_from_6d
from recon_prohmr.prior import PosePrior
from recon_std.fitters.evidence import Evidence, Joints2D
from recon_std.fitters.gather import Noise, Sampling, gather
from recon_std.fitters.levenberg_marquardt import minimise
from recon_std.fitters.objective import Evaluation, Objective
from recon_std.fitters.variables import Views


class LatentFitterConfig(Settings):
    """Settings of the latent fit."""

    iterations: int = Field(default=15, ge=1)
    tolerance: float = Field(default=3e-3, gt=0, description="relative fall of the energy at which a fit has converged")
    prior_weight: float = Field(default=1.0, ge=0, description="of |z|^2 / 2, the negative log density")
    betas_weight: float = Field(default=1.0, ge=0, description="of |betas|^2 / 2")
    views_weight: float = Field(
        default=3000.0, gt=0, description="of the squared distance of the views' body poses from their mean (lambda)"
    )
    evidence: bool = Field(
        default=True, description="false: equation 4.12 to the letter: what was seen counts through the densities alone"
    )
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


class LatentFitter(Fitter):
    """Pulls ProHMR's prediction onto what was seen, with its own density as the prior.

    Damped Gauss-Newton steps in the latent z, the betas and the translation, from the mode z = 0; the betas and the
    translation start where `initial` has them. Reads every kind of evidence that `recon_std.fitters` does.

    Rows of one subject (`Observation.subject`) are uncalibrated views of one person: they come out with one body pose
    and shape, and a global orientation and place each (equation 4.12).
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
        """Each row by itself, in the frame of its own camera, or the views of each subject together.

        Raises EvidenceError for too little evidence and for subjects with different numbers of views, UsageError
        without ProHMR's prior and context.
        """
        prior = self._prior(priors, context)
        assert context is not None
        count = len(initial)
        if count == 0:
            empty = initial.betas.new_zeros(0)
            none = torch.zeros(0, dtype=torch.int64)
            return FitResult(initial, FitReport(empty, empty, none, none.bool(), empty, none), observation.camera)
        views = Views.of(observation.subject, observation.camera, "uncalibrated")
        order, V = views.rows.flatten(), views.rows.shape[1]
        start = Latent(
            context.new_zeros(*views.rows.shape, prior.dims),
            initial.translation[views.rows],
            initial.betas[views.rows].mean(1),
        )
        evidence = self._evidence(observation, body_model, initial.betas.shape[1])
        objective = LatentObjective(Objective(evidence).rows(order), prior, context[order], self.config, V)
        before = objective.evaluate(start)
        found = minimise(objective, start, self.config.iterations, self.config.tolerance)
        iterations = found.iterations
        if self.config.adapt and evidence:
            inner = objective.evaluate(found.variables).inner
            adapted = _adapted(objective.evidence.evidence, inner, self.config.adapt)
            objective = LatentObjective(Objective(adapted), prior, context[order], self.config, V)
            before = objective.evaluate(start)
            found = minimise(objective, found.variables, self.config.iterations, self.config.tolerance)
            iterations = iterations + found.iterations
        after = objective.evaluate(found.variables)
        failed = ~torch.isfinite(after.energy)
        converged = found.converged & ~failed
        report = FitReport(
            initial_energy=views.spread(before.energy),
            energy=views.spread(after.energy),
            iterations=views.spread(iterations),
            converged=views.spread(converged),
            reprojection_px=views.unfold(_reprojection(objective.evidence.evidence, after.inner).unflatten(0, (-1, V))),
            reason=views.spread(torch.where(failed, 2, torch.where(converged, 0, 1))),
            terms={name: views.spread(value) for name, value in after.terms.items()},
        )
        return FitResult(_chosen(views, after, initial, failed), report, observation.camera)

    def _evidence(self, observation: Observation, body_model: BodyModel, betas: int) -> list[Evidence]:
        """What was seen, a row a view; nothing where the densities alone decide."""
        if not self.config.evidence:
            return []
        each = Views(torch.arange(len(observation), device=observation.camera.K.device)[:, None], True)
        seen = dataclasses.replace(observation, camera=_at_origin(observation.camera), subject=None)
        return gather(seen, body_model, each, betas, self.config.noise, Sampling())

    @staticmethod
    def _prior(priors: Mapping[str, Prior] | None, context: Tensor | None) -> PosePrior:
        given = dict(priors or {})
        if context is None or not any(isinstance(prior, PosePrior) for prior in given.values()):
            raise UsageError("the fitter 'prohmr-latent' works in the latent space of prohmr: use it with that method")
        if others := [name for name, prior in given.items() if not isinstance(prior, PosePrior)]:
            raise UsageError(f"the fitter 'prohmr-latent' has its own prior and takes no '{others[0]}'; use smplify")
        return next(prior for prior in given.values() if isinstance(prior, PosePrior))


def _chosen(
    views: Views, after: LatentEvaluation, initial: BodyParameters, failed: Bool[Tensor, " N"]
) -> BodyParameters:
    """The body of each observation row. Views agree but for what their weight leaves; their mean is the one body.
    Where the fit failed it is the initial one, averaged over the views."""
    V = views.rows.shape[1]
    values = after.values.clone()
    values[:, :, 6:] = values[:, :, 6:].mean(1, keepdim=True)
    pose = views.unfold(pose_from_6d(values))
    rest = rotation_average(initial.pose[views.rows][:, :, 1:]) if V > 1 else initial.pose[views.rows][:, 0, 1:]
    old = torch.cat([initial.pose[:, :1], views.spread(rest)], 1)
    pick = lambda new, old: torch.where(views.spread(failed).reshape(-1, *[1] * (new.dim() - 1)), old, new)  # noqa: E731
    return BodyParameters(
        pick(pose, old),
        pick(views.spread(after.latent.betas), views.spread(initial.betas[views.rows].mean(1))),
        pick(views.unfold(after.latent.translation), initial.translation),
    )


def rotation_average(rotations: Float[Tensor, "N V J 3 3"]) -> Float[Tensor, "N J 3 3"]:
    """The rotations nearest to the means over the views: table 14's "rot avg" (section 4.4.2)."""
    return project_to_rotation(rotations.mean(1))


def _at_origin(camera: Camera) -> Camera:
    eye = torch.eye(3).to(camera.R).expand_as(camera.R)
    return dataclasses.replace(camera, R=eye, t=torch.zeros_like(camera.t))


NOISE_RANGE = (0.4, 2.5)
"""Bounds of the adapted noise, in units of the first fit's."""

RESIDUAL_OF_NOISE = (0.17, 0.59)
"""What a first fit leaves over: constant + slope * noise, in units of the first fit's noise. Measured on held-out
motion capture with joints disturbed by 0, 0.5, 1, 2 and 3 % of the box (0.18, 0.42, 0.72, 1.27, 1.83): the constant is
what the body cannot explain, and the slope is below 1 because the body follows some of the noise."""


def _adapted(evidence: Sequence[Evidence], at: Evaluation, share: float) -> list[Evidence]:
    """2D joints with `share` of the noise that each person's residuals show, by the median, which outliers leave alone.

    The distance of a joint with normal errors in x and y has the median sqrt(2 ln 2) = 1.1774 deviations. Since the
    residuals now say how good the whole reading is, confidences only say which joints are better than others: they are
    divided by their own mean, each joint counting by its confidence.
    """
    constant, slope = RESIDUAL_OF_NOISE
    changed: list[Evidence] = []
    for e, measured in zip(evidence, at.measured, strict=True):
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


def _reprojection(evidence: Sequence[Evidence], at: Evaluation) -> Float[Tensor, " N"]:
    """Confidence-weighted mean distance of the 2D joints in pixels, NaN without any."""
    for e, measured in zip(evidence, at.measured, strict=True):
        if isinstance(e, Joints2D):
            return e.pixel_error(measured.residuals.value)[:, 0]
    return torch.full_like(at.energy, torch.nan)
