"""The `adam` fitter: the published routine (SPIN's SMPLify), for comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from recon_core.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from recon_core.interfaces import BodyModel, Fitter, Prior, Settings
from recon_core.structures import BodyParameters, FitResult, Observation
from recon_std.fitters.evidence import Evidence
from recon_std.fitters.objective import Objective
from recon_std.fitters.problem import FitSettings, Problem
from recon_std.fitters.variables import Variables


class AdamSettings(FitSettings):
    camera_steps: int = Field(default=100, ge=0)
    steps: int = Field(default=100, ge=1)
    learning_rate: float = Field(default=1e-2, gt=0)
    skinned: bool = Field(
        default=True, description="take the points from the skinned mesh, as published; false: from joints alone"
    )


class AdamFitter(Fitter):
    """Adam, learning rate 1e-2: 100 steps over the body's direction and place, 100 over direction, pose and shape.

    The energy is `smplify`'s, so that the two can be compared; the routine is the one of SPIN's published code, which
    skins the whole mesh at every step and holds the place in its second stage.
    """

    Config: ClassVar[type[Settings]] = AdamSettings
    config: AdamSettings
    default_priors: ClassVar[tuple[str, ...]] = ("gmm", "joint-limits", "shape")

    def fit(
        self,
        observation: Observation,
        initial: BodyParameters,
        body_model: BodyModel,
        priors: Mapping[str, Prior] | None = None,
        context: Float[Tensor, "B C"] | None = None,
    ) -> FitResult:
        """Explain the evidence in `observation` from `initial`. See `SmplifyFitter.fit`; it never counts as
        converged, since it ends after a fixed number of steps."""
        c = self.config
        problem = Problem.build(c, observation, initial, body_model, priors, context)
        views, objective, start = problem.views, problem.objective, problem.start
        camera = Objective([e.for_camera() for e in objective.evidence])

        def surface(v: Variables) -> Callable[[Evidence], Tensor] | None:
            if not c.skinned:
                return None
            output = body_model(views.body(v))
            return lambda e: e.basis.of_output(body_model, output).transpose(1, 2)[views.rows]

        def descend(
            energy: Objective, free: dict[str, Tensor], held: dict[str, Tensor], steps: int
        ) -> dict[str, Tensor]:
            leaves = {name: value.clone().requires_grad_() for name, value in free.items()}
            optimiser = torch.optim.Adam(list(leaves.values()), lr=c.learning_rate)
            for _ in range(steps):
                v = _variables(**leaves, **held)
                optimiser.zero_grad()
                energy.energy(v, surface(v)).sum().backward()
                optimiser.step()
            return {name: value.detach() for name, value in leaves.items()} | held

        state = {
            "angles": start.angles,
            "betas": start.betas,
            "direction": matrix_to_axis_angle(start.root),
            "translation": start.translation,
        }
        pick = lambda *names: {name: state[name] for name in names}  # noqa: E731
        with torch.enable_grad():
            if c.camera_steps:
                state = descend(camera, pick("direction", "translation"), pick("angles", "betas"), c.camera_steps)
            state = descend(objective, pick("angles", "betas", "direction"), pick("translation"), c.steps)
        with torch.no_grad():
            found = _variables(**state)
            steps = torch.full_like(views.rows[:, 0], c.steps)
            return problem.result(found, steps, torch.zeros_like(steps, dtype=torch.bool))


def _variables(angles: Tensor, betas: Tensor, direction: Tensor, translation: Tensor) -> Variables:
    return Variables(angles, betas, axis_angle_to_matrix(direction), translation)
