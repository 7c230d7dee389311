"""The `smplify` fitter: SMPLify's energy (thesis 3.3.3, equation 3.2), minimised by damped Newton steps on joints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from recon_core.interfaces import BodyModel, Fitter, Prior, Settings
from recon_core.structures import BodyParameters, FitReport, FitResult, Observation
from recon_std.fitters.curvature import prior_terms
from recon_std.fitters.evidence import Joints2D
from recon_std.fitters.gather import Noise, Sampling, gather
from recon_std.fitters.levenberg_marquardt import minimise
from recon_std.fitters.objective import Objective
from recon_std.fitters.placement import place
from recon_std.fitters.variables import Variables, ViewMode, Views, where


class SmplifyConfig(Settings):
    iterations: int = Field(default=40, ge=1)
    camera_iterations: int = Field(default=20, ge=0)
    tolerance: float = 1e-4
    damping: float = 1.0
    second_order: bool = True
    anchor: float = 0.0
    headings: int = Field(default=1, ge=1)
    views: ViewMode = "auto"
    prior_weights: dict[str, float] = Field(default_factory=dict)
    noise: Noise = Field(default_factory=Noise)
    sampling: Sampling = Field(default_factory=Sampling)


class SmplifyFitter(Fitter):
    Config: ClassVar[type[Settings]] = SmplifyConfig

    def __init__(self, config: SmplifyConfig | None = None) -> None:
        self.config = config or SmplifyConfig()

    @torch.no_grad()
    def fit(
        self,
        observation: Observation,
        initial: BodyParameters,
        body_model: BodyModel,
        priors: Mapping[str, Prior] | None = None,
        context: Float[Tensor, "B C"] | None = None,
    ) -> FitResult:
        c = self.config
        views = Views.of(observation.subject, observation.camera, c.views)
        start = views.start(initial)
        evidence = gather(observation, body_model, views, start.betas.shape[-1], c.noise, c.sampling)
        terms = prior_terms(priors, c.prior_weights, start, views, observation.camera, context)
        anchor = (c.anchor, start.angles) if c.anchor > 0 else None
        objective = Objective(evidence, terms, anchor, c.second_order)
        before = objective.matched(start).evaluate(start)
        placed = place(evidence, start, c.camera_iterations, c.headings)
        found = minimise(objective, placed, c.iterations, c.tolerance, c.damping)
        return found, views, objective, before
