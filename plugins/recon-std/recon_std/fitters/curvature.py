"""Priors as terms of an energy: value, gradient and curvature in the columns of a fitter's step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.errors import ReconError, UsageError
from recon_core.geometry.rotations import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_rotation_6d,
    rotation_6d_to_matrix,
    skew,
)
from recon_core.interfaces import Prior
from recon_core.structures import Camera
from recon_std.fitters.kinematics import PARENT, Pose, pose
from recon_std.fitters.variables import ANGLES, Variables, Views

DRAWS = 256
"""Samples from which the curvature of a prior without a closed form is estimated."""


class PriorTerm:
    """weight * -log prior, over the part of the variables that the prior names in `over`.

    A prior with `quadratic` gives its own curvature. Any other is differentiated by autograd, and its curvature is
    the inverse covariance of its draws, fixed for the fit: exact where it is Gaussian, and elsewhere a metric, which
    is all a damped method needs. A prior that cannot be sampled gets none, and relies on the damping alone.
    """

    def __init__(
        self,
        name: str,
        prior: Prior,
        weight: float,
        views: Views,
        camera: Camera,
        context: Float[Tensor, "B C"] | None,
    ) -> None:
        if prior.over == "latent":
            raise UsageError(f"prior '{name}' is over codes of its own, which only its own fitter can decode")
        self.name, self.prior, self.weight = name, prior, weight
        # A prior over all 24 rotations reads each view's own context; the others the first view's.
        self.per_view = prior.over == "pose-6d"
        self.context = None if context is None else context[views.rows if self.per_view else views.rows[:, :1]]
        self.to_camera = camera.R[views.rows if context is not None or not views.together else views.rows[:, :1]]
        self.closed = type(prior).quadratic is not Prior.quadratic
        self.fixed: Tensor | None = None

    def check(self, variables: Variables) -> None:
        """Raises UsageError when the prior is not over as many numbers as this body has."""
        S = variables.betas.shape[-1]
        need = {"body-pose": ANGLES, "betas": S, "body": ANGLES + S, "pose-6d": 144}[self.prior.over]
        if self.prior.dims != need:
            raise UsageError(
                f"prior '{self.name}' is over {self.prior.dims} numbers of {self.prior.over}, this body has {need}"
            )

    def rows(self, index: Tensor) -> PriorTerm:
        """The term of some subjects."""
        part = object.__new__(PriorTerm)
        part.__dict__.update(self.__dict__)
        part.context = None if self.context is None else self.context[index]
        part.to_camera = self.to_camera[index]
        part.fixed = None if self.fixed is None else self.fixed[index]
        return part

    def _values(self, v: Variables) -> Float[Tensor, "M D"]:
        angles = v.angles.flatten(1)
        if self.prior.over == "body-pose":
            return angles
        if self.prior.over == "betas":
            return v.betas
        if self.prior.over == "body":
            return torch.cat([angles, v.betas], -1)
        # Each view sees the body turned into its own camera's frame.
        root = (self.to_camera @ v.root)[:, :, None]
        below = axis_angle_to_matrix(v.angles)[:, None].expand(-1, root.shape[1], -1, -1, -1)
        return matrix_to_rotation_6d(torch.cat([root, below], 2)).flatten(2).flatten(0, 1)

    def _given(self, values: Tensor) -> Tensor | None:
        return None if self.context is None else self.context.flatten(0, 1)

    def energy(self, variables: Variables) -> Float[Tensor, " N"]:
        """Weighted energy a subject, differentiable."""
        values = self._values(variables)
        given = self._given(values)
        if self.closed:
            energy = self.prior.quadratic(values, given)[0]
        else:
            energy = -self.prior.log_prob(values, given)
        return self.weight * energy.reshape(len(variables.betas), -1).sum(1)

    def slice(self, variables: Variables) -> slice:
        """The columns that this term curves."""
        return {
            "body-pose": slice(0, ANGLES),
            "betas": slice(ANGLES, variables.places),
            "body": slice(0, variables.places),
            "pose-6d": slice(0, variables.columns),
        }[self.prior.over]

    def quadratic(
        self, variables: Variables
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N C"], Float[Tensor, "N C C"] | Float[Tensor, "N C"]]:
        """Energy, gradient and positive semi-definite curvature (or its diagonal) over the columns `slice`."""
        if self.closed:
            values = self._values(variables)
            energy, gradient, curvature = self.prior.quadratic(values, self._given(values))
            if self.per_view:
                curvature = curvature if curvature.dim() == 3 else torch.diag_embed(curvature)
                energy, gradient, curvature = self._in_columns(variables, energy, gradient, curvature)
            if self.weight == 1:
                return energy, gradient, curvature
            return self.weight * energy, self.weight * gradient, self.weight * curvature
        with torch.enable_grad():
            step = variables.betas.new_zeros(len(variables.betas), variables.columns).requires_grad_()
            energy = self.energy(variables.moved(step))
            (gradient,) = torch.autograd.grad(energy.sum(), step)
        if self.fixed is None:
            self.fixed = self._sampled(variables)
        columns = self.slice(variables)
        return energy.detach(), gradient[:, columns], self.weight * self.fixed

    def _in_columns(
        self, v: Variables, energy: Tensor, gradient: Tensor, curvature: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A quadratic over the views' 6D numbers as one over the columns of a step."""
        N, V = self.to_camera.shape[:2]
        slope = _six_by_turn(pose(v.angles), v, self.to_camera)
        # (N, V, 72, ...): root first, joint by joint through its own 6 x 3 block.
        g = (slope.transpose(-1, -2) @ gradient.view(N, V, 24, 6, 1)).flatten(2)
        rows = slope.transpose(-1, -2) @ curvature.view(N, V, 24, 6, 144)
        both = (rows.flatten(2, 3).unflatten(-1, (24, 6)).transpose(2, 3) @ slope).transpose(2, 3).flatten(3)
        return energy.view(N, V).sum(1), self._gathered(g, v), self._gathered(both, v)

    def _gathered(self, each: Float[Tensor, "N V 72 ..."], v: Variables) -> Float[Tensor, "N C ..."]:
        """Sums over views, root first, into a step's columns."""
        V = each.shape[1]
        places = v.root.shape[1]
        columns = torch.zeros(V, 72, dtype=torch.int64, device=each.device)
        columns[:, 3:] = torch.arange(ANGLES)
        first = v.places + 6 * torch.arange(V).clamp(max=places - 1)
        columns[:, :3] = first[:, None] + torch.arange(3)
        select = torch.nn.functional.one_hot(columns, v.columns).to(each)
        if each.dim() == 3:
            return torch.einsum("nva,vac->nc", each, select)
        return torch.einsum("nvab,vac,vbd->ncd", each, select, select)

    def poses(self, count: int) -> Float[Tensor, "N M 23 3"] | None:
        """Draws as axis-angle numbers, N = 1 without context; of a prior over all views, the first view's. None where
        the prior is not over poses, or cannot be sampled."""
        if self.prior.over == "betas":
            return None
        context = None if self.context is None else self.context[:, 0]
        try:
            draws = self.prior.sample(count, context, self._seeded())
        except ReconError:
            return None
        if self.prior.over == "pose-6d":
            return matrix_to_axis_angle(rotation_6d_to_matrix(draws.unflatten(-1, (24, 6)))[:, :, 1:])
        return draws[..., :ANGLES].unflatten(-1, (23, 3))

    def _seeded(self) -> torch.Generator:
        device = next((x.device for x in (*self.prior.buffers(), *self.prior.parameters())), "cpu")
        return torch.Generator(device).manual_seed(0)

    @torch.no_grad()
    def _sampled(self, v: Variables) -> Float[Tensor, "N C C"]:
        """Inverse covariance of the prior's draws, in columns; summed over views."""
        columns = len(range(*self.slice(v).indices(v.columns)))
        none = v.betas.new_zeros(len(v.betas), columns, columns)
        given = self._given(v.betas)
        try:
            draws = self.prior.sample(DRAWS, given, self._seeded()).to(v.betas)
        except ReconError:
            return none
        if self.prior.over != "pose-6d":
            return none + _precision(draws)
        rotations = rotation_6d_to_matrix(draws.unflatten(-1, (24, 6)))
        # About the first draw: the logarithm of the others' roots relative to it stays small.
        root = matrix_to_axis_angle(rotations[:, :1, 0].transpose(-1, -2) @ rotations[:, :, 0])
        body = matrix_to_axis_angle(rotations[:, :, 1:]).flatten(2)
        each = _precision(torch.cat([root, body], -1))
        each = each.expand(len(v.betas) * self.to_camera.shape[1], -1, -1)
        return self._gathered(each.unflatten(0, (len(v.betas), -1)), v)


def _six_by_turn(at: Pose, v: Variables, to_camera: Tensor) -> Float[Tensor, "N V 24 6 3"]:
    """d (6D numbers) / d (columns) of each rotation: c -> (Jl dv) x c for the columns c of a joint's own rotation, and
    c -> R (d x e) for those of the root, which turns about its own axes."""
    local = axis_angle_to_matrix(v.angles)
    above = at.rotations[:, PARENT[1:].to(v.angles.device)]
    jacobian = above.transpose(-1, -2) @ at.charts[:, 1:]
    joints = torch.cat([-skew(local[..., i]) @ jacobian for i in (0, 1)], -2)
    root = to_camera @ v.root
    axes = torch.eye(3).to(root)
    top = torch.cat([-root @ skew(axes[i]) for i in (0, 1)], -2)
    return torch.cat([top[:, :, None], joints[:, None].expand(-1, top.shape[1], -1, -1, -1)], 2)


def _precision(draws: Float[Tensor, "M n D"], shrink: float = 0.1, floor: float = 1e-4) -> Float[Tensor, "M D D"]:
    """Inverse of the draws' covariance, drawn to its diagonal (Ledoit & Wolf 2004) and floored at (0.01)^2."""
    centred = draws - draws.mean(1, keepdim=True)
    covariance = centred.transpose(-1, -2) @ centred / (draws.shape[1] - 1)
    diagonal = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1) * shrink + floor)
    return torch.linalg.inv((1 - shrink) * covariance + diagonal)


def prior_terms(
    priors: Mapping[str, Prior] | None,
    weights: Mapping[str, float],
    variables: Variables,
    views: Views,
    camera: Camera,
    context: Tensor | None,
) -> list[PriorTerm]:
    """The terms of all priors. Raises UsageError for a weight without its prior and for a prior that does not fit."""
    priors = priors or {}
    if strange := set(weights) - set(priors):
        known = ", ".join(priors) or "none"
        raise UsageError(f"prior_weights names '{sorted(strange)[0]}', which is not among the priors given: {known}")
    terms = [PriorTerm(name, prior, weights.get(name, 1.0), views, camera, context) for name, prior in priors.items()]
    for term in terms:
        term.check(variables)
    return terms
