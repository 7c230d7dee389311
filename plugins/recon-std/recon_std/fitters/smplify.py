"""The `smplify` fitter: SMPLify's energy (thesis 3.3.3, equation 3.2) by damped Newton steps on joints alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.interfaces import BodyModel, Fitter, Prior, Settings
from recon_core.structures import BodyParameters, FitResult, Observation
from recon_std.fitters.fused import minimise
from recon_std.fitters.levenberg_marquardt import Minimum
from recon_std.fitters.placement import place
from recon_std.fitters.problem import FitSettings, Problem
from recon_std.fitters.starts import best_start, drawn_poses, second_chance

WIDE = 3.0
"""By how much the outlier scales are widened at first (graduated non-convexity, Blake & Zisserman 1987)."""

FIRST_STEPS = 4
"""Steps after which a fit is good enough to tell whether it is a poor one (`retries`)."""


@dataclass(frozen=True)
class Trust:
    """What to make of the initial bodies: anchor, headings, starts and retries of `SmplifySettings`."""

    anchor: float
    headings: int
    starts: int
    retries: int


TRUST = {"prediction": Trust(10.0, 1, 1, 0), "mean": Trust(0.0, 8, 9, 4)}
"""Chosen on motion capture, training split (`make bench-fit`; docs/fitting.md has the tables)."""


class SmplifySettings(FitSettings):
    start: Literal["prediction", "mean"] = Field(
        default="prediction",
        description="what the initial bodies are: a network's predictions, or a mean pose that knows nothing; "
        "decides anchor, headings, starts and retries where they are not set",
    )
    anchor: float | None = Field(
        default=None, ge=0, description="pull of the body's 69 angles to their initial values, 1/rad^2"
    )
    headings: int | None = Field(
        default=None, ge=1, description="directions around the vertical axis that the camera stage starts from"
    )
    starts: int | None = Field(
        default=None, ge=1, description="poses tried: the initial one, the others drawn from the prior over the pose"
    )
    retries: int | None = Field(
        default=None,
        ge=0,
        description="other poses tried, drawn from the prior, for fits that leave a quarter of the points unexplained",
    )
    camera_iterations: int = Field(
        default=15, ge=0, description="most steps of the camera stage; 0: the initial place is where the fit starts"
    )
    wide_iterations: int = Field(
        default=3, ge=0, description="steps with three times the outlier scales, before those with the real ones"
    )
    iterations: int = Field(default=12, ge=1, description="most steps over pose, shape and place together")
    second_order: bool = Field(
        default=False, description="late steps use the kinematic second-order term: fewer of them, each dearer"
    )
    tolerance: float = Field(
        default=2e-3, gt=0, description="a fit has converged when a step lowers the energy by at most this part"
    )

    @property
    def trust(self) -> Trust:
        default = TRUST[self.start]
        given = {name: getattr(self, name) for name in ("anchor", "headings", "starts", "retries")}
        return dataclasses.replace(default, **{name: value for name, value in given.items() if value is not None})


class SmplifyFitter(Fitter):
    """Explains joints, vertices and scans by pose, shape and place, in milliseconds a person.

    First the body is held and only placed; then all variables move, by Levenberg-Marquardt with closed-form
    derivatives at the joints, the priors' curvature as damping, and Geman-McClure by reweighting (docs/fitting.md).
    Vertices are never skinned. Every subject has its own damping and its own end; a row of the batch does not depend
    on the others.

    The result is in the frame of the observation's cameras' world: the camera frame of the picture where the camera
    stands at the origin, as it does in the pipeline. Of several views of one subject (rows with equal `subject`) each
    row holds the same body; without a common world frame, at each view's own place.
    """

    Config: ClassVar[type[Settings]] = SmplifySettings
    config: SmplifySettings
    default_priors: ClassVar[tuple[str, ...]] = ("gmm", "joint-limits", "shape")

    @torch.no_grad()
    def fit(
        self,
        observation: Observation,
        initial: BodyParameters,
        body_model: BodyModel,
        priors: Mapping[str, Prior] | None = None,
        context: Float[Tensor, "B C"] | None = None,
    ) -> FitResult:
        """Explain the evidence in `observation` from `initial`. See `Fitter.fit`.

        context: (B, C), handed to the priors. Raises EvidenceError when the evidence cannot constrain a body, or
        the body cannot explain it; UsageError for a prior that is not over this body's numbers, and for a loss
        without residuals.
        """
        c, trust = self.config, self.config.trust
        problem = Problem.build(c, observation, initial, body_model, priors, context, trust.anchor)
        if stuck := [term.name for term in problem.objective.losses if not term.has_residuals]:
            raise UsageError(
                f"smplify.losses.{stuck[0]}: smplify steps by residuals, which this loss does not give; use adam"
            )
        closed = all(term.closed for term in problem.objective.priors) and not problem.objective.losses
        # Without autograd's bookkeeping, which is a sixth of the time, where nothing needs it.
        with torch.inference_mode(closed):
            found = self._minimised(problem)
        return problem.result(found.variables._map(torch.clone), found.iterations.clone(), found.converged.clone())

    def _minimised(self, problem: Problem) -> Minimum:
        c, trust, objective = self.config, self.config.trust, problem.objective
        start = place(objective.evidence, problem.start, c.camera_iterations, trust.headings)
        wide = objective.widened(WIDE)
        if trust.starts > 1:
            poses = drawn_poses(wide.priors, trust.starts - 1)
            start = best_start(wide, objective, start, poses, c.tolerance)
        first = minimise(wide, start, c.wide_iterations, c.tolerance, c.second_order)
        steps = min(c.iterations, FIRST_STEPS) if trust.retries else c.iterations
        found = minimise(objective, first.variables, steps, c.tolerance, c.second_order)
        if steps < c.iterations:
            at, left = second_chance(wide, objective, found, trust.retries, c.tolerance)
            if len(rows := left.nonzero()[:, 0]):
                last = minimise(objective.rows(rows), at[rows], c.iterations - steps, c.tolerance, c.second_order)
                found = found.improved(rows, last)
        return dataclasses.replace(found, iterations=first.iterations + found.iterations)
