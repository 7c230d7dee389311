"""The fit that follows a prediction: the priors it is given, and what becomes of people it cannot fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.errors import EvidenceError, UsageError, nearest
from recon_core.interfaces import BodyModel, Fitter, Method, Prior
from recon_core.plugins import registry
from recon_core.structures import BodyParameters, FitResult, Observation, Prediction


@dataclass(frozen=True)
class Fitted:
    """body: B bodies after the fit. reports: how each went (`FitReport.row`), None for those not fitted."""

    body: BodyParameters
    reports: Sequence[Mapping[str, Any] | None]


@dataclass(frozen=True)
class FitStage:
    """A fitter with what a run gives it.

    priors: by name. lender: the method a prior was borrowed from, where that is not the run's own: its prediction
    gives that prior's context. required: the user named the fitter, so that a photo without joints is an error.
    """

    fitter: Fitter
    priors: Mapping[str, Prior] = field(default_factory=dict)
    lender: Method | None = None
    required: bool = False

    def __call__(self, observation: Observation, prediction: Prediction, body_model: BodyModel) -> Fitted:
        """Fit everyone. People without enough evidence keep their prediction, with None for a report.

        Raises EvidenceError when that is everyone.
        """
        assert prediction.body is not None
        unfitted = Fitted(prediction.body, [None] * len(prediction.body))
        if observation.keypoints is None:
            if self.required:
                raise EvidenceError(
                    "no joints to fit to were given: use a detector that finds them, or --keypoints FILE"
                )
            return unfitted
        context = self._context(observation, prediction)
        try:
            return _rows(self._fit(observation, prediction.body, body_model, context))
        except EvidenceError as error:
            # Views of one subject are fitted together or not at all.
            if len(observation) == 1 or observation.subject is not None:
                raise
            return self._one_by_one(observation, prediction.body, body_model, context, error)

    def _context(self, observation: Observation, prediction: Prediction) -> Tensor | None:
        if self.lender is None:
            return prediction.context
        with torch.no_grad():
            return self.lender.predict(observation).context

    def _fit(
        self,
        observation: Observation,
        initial: BodyParameters,
        body_model: BodyModel,
        context: Float[Tensor, "B C"] | None,
    ) -> FitResult:
        return self.fitter.fit(observation, initial, body_model, self.priors or None, context)

    def _one_by_one(
        self,
        observation: Observation,
        initial: BodyParameters,
        body_model: BodyModel,
        context: Float[Tensor, "B C"] | None,
        error: EvidenceError,
    ) -> Fitted:
        bodies: list[BodyParameters] = []
        reports: list[Mapping[str, Any] | None] = []
        for i in range(len(observation)):
            row = None if context is None else context[i : i + 1]
            try:
                result = _rows(self._fit(observation[i], initial[i], body_model, row))
            except EvidenceError:
                result = Fitted(initial[i], [None])
            bodies.append(result.body)
            reports += result.reports
        if not any(reports):
            raise error
        return Fitted(BodyParameters.joined(bodies), reports)


_COVERS = {"body-pose": {"pose"}, "pose-6d": {"pose"}, "betas": {"shape"}, "body": {"pose", "shape"}}
"""What of a body a prior speaks of, by its `over`. One over codes of its own speaks of the whole."""


def choose_priors(
    names: Sequence[str] | None,
    fitter: type[Fitter],
    running: Method | None,
    load_prior: Callable[[str], Prior],
    load_method: Callable[[str], Method],
    provided: Set[str] = frozenset({"keypoints"}),
) -> tuple[dict[str, Prior], Method | None]:
    """The priors of a fit by name, and the method one of them was borrowed from.

    names: what the user asked for, each a registered prior or a method that brings one; None is the fitter's
    `default_priors`. Of the defaults those stay that speak of a part of the body, pose or shape, which no named prior
    speaks of: `--prior prohmr` replaces the priors over the pose, and a shape that nothing holds would run away.
    running: the run's method. provided: what a context can be read from besides that method's inputs. Raises
    UsageError for a name that is neither, and for priors whose contexts the run cannot provide.
    """
    priors: dict[str, Prior] = {}
    lender: Method | None = None
    lenders = []
    known = registry().names("prior")
    for name in names if names is not None else fitter.default_priors:
        if name in known:
            priors[name] = load_prior(name)
            continue
        if name not in registry().names("method"):
            raise UsageError(f"--prior: unknown prior '{name}'{nearest(name, {*known, *registry().names('method')})}")
        brings = load_method(name)
        prior = brings.prior()
        if prior is None:
            raise UsageError(f"--prior {name}: method '{name}' brings no prior")
        if strange := sorted(brings.inputs - provided - (frozenset() if running is None else running.inputs)):
            raise UsageError(
                f"--prior {name}: its context is read from the {' and '.join(strange)}, which this run does not provide"
            )
        priors[name] = prior
        lenders.append(name)
        lender = None if brings is running else brings
    if len(lenders) > 1:
        raise UsageError(f"--prior: {' and '.join(lenders)} each need a context of their own; use one of them")
    covered = set().union(*(_COVERS.get(prior.over, {"pose", "shape"}) for prior in priors.values()))
    for name in fitter.default_priors:
        if name in known and name not in priors and not covered >= {"pose", "shape"}:
            prior = load_prior(name)
            if not _COVERS.get(prior.over, {"pose", "shape"}) & covered:
                priors[name] = prior
    return priors, lender


def _rows(result: FitResult) -> Fitted:
    return Fitted(result.body, [result.report.row(i) for i in range(len(result.body))])
