"""What every fitter shares: settings, the energy to minimise, the report of how it went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from recon_core.interfaces import BodyModel, Prior, Settings
from recon_core.structures import BodyParameters, FitReport, FitResult, Observation
from recon_std.fitters.curvature import prior_terms
from recon_std.fitters.evidence import Joints2D
from recon_std.fitters.gather import Noise, Sampling, gather
from recon_std.fitters.loss_terms import loss_terms
from recon_std.fitters.objective import Evaluation, Objective
from recon_std.fitters.variables import Variables, ViewMode, Views, where


class FitSettings(Settings):
    """Settings of the energy, which all fitters of this package minimise."""

    prior_weights: dict[str, float] = Field(
        default_factory=dict, description="weight of a prior's energy by its name; 1 for those not named"
    )
    losses: dict[str, float | dict[str, Any]] = Field(
        default_factory=dict,
        description="registered losses that join the energy: a weight by name, or a table of the loss' options",
    )
    views: ViewMode = Field(
        default="auto",
        description="rows of one subject share a world frame (calibrated) or only a body (uncalibrated); "
        "auto: calibrated when their cameras differ in place or direction",
    )
    noise: Noise = Field(default_factory=Noise)
    sampling: Sampling = Field(default_factory=Sampling)


@dataclass(frozen=True)
class Problem:
    """One call of a fitter. start: the initial bodies; objective: evidence, priors and anchor as one energy."""

    observation: Observation
    initial: BodyParameters
    views: Views
    start: Variables
    objective: Objective

    @classmethod
    def build(
        cls,
        settings: FitSettings,
        observation: Observation,
        initial: BodyParameters,
        body: BodyModel,
        priors: Mapping[str, Prior] | None,
        context: Float[Tensor, "B C"] | None,
        anchor: float = 0.0,
    ) -> Problem:
        """anchor: pull of the angles to their initial values, 1/rad^2.

        Raises EvidenceError as `gather`, `Views.of` and `loss_terms` do, UsageError as `prior_terms` and `loss_terms`.
        """
        views = Views.of(observation.subject, observation.camera, settings.views)
        start = views.start(initial)
        evidence = gather(observation, body, views, start.betas.shape[-1], settings.noise, settings.sampling)
        terms = prior_terms(priors, settings.prior_weights, start, views, observation.camera, context)
        pull = (anchor, start.angles) if anchor > 0 else None
        losses = loss_terms(settings.losses, observation, initial, body, views)
        return cls(observation, initial, views, start, Objective(evidence, terms, pull, losses))

    def result(self, found: Variables, iterations: Int[Tensor, " N"], converged: Bool[Tensor, " N"]) -> FitResult:
        """The fit and its report, a row an observation row.

        A fit has diverged when its energy is not a number, or higher than at the start: it then returns the start.
        """
        before = self.objective.matched(self.start).evaluate(self.start)
        after = self.objective.matched(found).evaluate(found)
        diverged = ~torch.isfinite(after.energy) | (after.energy > before.energy)
        found = where(diverged, self.start, found)
        energy = torch.where(diverged, before.energy, after.energy)
        terms = {name: torch.where(diverged, before.terms[name], after.terms[name]) for name in after.terms}
        converged = converged & ~diverged
        reason = torch.where(diverged, 2, torch.where(converged, 0, 1))
        spread = self.views.spread
        report = FitReport(
            initial_energy=spread(before.energy),
            energy=spread(energy),
            iterations=spread(iterations),
            converged=spread(converged),
            reprojection_px=torch.where(spread(diverged), self._reprojection(before), self._reprojection(after)),
            reason=spread(reason),
            terms={name: spread(value) for name, value in terms.items()},
        )
        # A diverged fit gives back the very numbers it was given, NaN or not.
        body, lost = self.views.body(found), spread(diverged)
        given = lambda new, old: torch.where(lost.reshape(-1, *[1] * (new.dim() - 1)), old, new)  # noqa: E731
        body = BodyParameters(
            given(body.pose, self.initial.pose),
            given(body.betas, self.initial.betas),
            given(body.translation, self.initial.translation),
        )
        return FitResult(body, report, self.observation.camera)

    def _reprojection(self, at: Evaluation) -> Float[Tensor, " B"]:
        for e, measured in zip(self.objective.evidence, at.measured, strict=True):
            if isinstance(e, Joints2D):
                return self.views.unfold(e.pixel_error(measured.residuals.value))
        return at.variables.betas.new_full((len(self.observation),), torch.nan)
