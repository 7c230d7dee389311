"""What joints can do: elbows and knees bend one way, and every angle has a range.

A product of one-dimensional densities over the 69 body axis-angle numbers, so that its normaliser, samples and mode
are exact (by quadrature). Two parts:

hinge   SMPLify (Bogo et al., ECCV 2016, equation 6): elbows and knees pay exp(s theta)^2, s theta > 0 where they bend
        unnaturally. It grows smoothly from a bent, through a straight, to an overstretched limb.
range   nothing inside [lower, upper]; (theta - bound)^2 / (2 sigma^2) outside: once continuously differentiable.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.interfaces import Prior
from recon_core.skeletons import SMPL24
from recon_std.priors.weights import SHIPPED, load_weights

# (column of the 69, sign): elbows turn about y, flexed is negative on the left; knees about x, flexed is positive.
_HINGES = tuple(
    ((SMPL24.index(joint) - 1) * 3 + axis, sign)
    for joint, axis, sign in (
        ("left_elbow", 1, 1.0),
        ("right_elbow", 1, -1.0),
        ("left_knee", 0, -1.0),
        ("right_knee", 0, -1.0),
    )
)
_GRID = 4096


class JointLimitsPrior(Prior):
    """Hinges of elbows and knees, and the range of each of the 69 axis-angle numbers (radians).

    `weights` names a safetensors file with lower (69) and upper (69); by default the ranges seen in motion capture
    (weights/README.md). hinge_weight: energy of a straight limb; the default is the published weights'
    ratio (15.2 / 4.78)^2, so that a fitter may give this prior and `gmm` one common weight. sigma: softness of the
    range, radians. Raises AssetError when the file is missing or does not hold these.
    """

    over: ClassVar[Literal["body-pose"]] = "body-pose"
    dims = 69

    lower: Float[Tensor, "69"]
    upper: Float[Tensor, "69"]
    _hinge_weight: Float[Tensor, "69"]
    _hinge_sign: Float[Tensor, "69"]
    _grid: Float[Tensor, "G 69"]
    _cdf: Float[Tensor, "G 69"]
    _log_normaliser: Float[Tensor, "69"]
    _mode: Float[Tensor, "69"]

    def __init__(
        self, weights: str | Path | None = None, hinge_weight: float = (15.2 / 4.78) ** 2, sigma: float = 0.1
    ) -> None:
        super().__init__()
        bounds = load_weights(weights or SHIPPED / "joint_limits.safetensors", ("lower", "upper"))
        self.sigma = sigma
        lower, upper = bounds["lower"].double(), bounds["upper"].double()
        weight, sign = torch.zeros_like(lower), torch.zeros_like(lower)
        for column, direction in _HINGES:
            weight[column], sign[column] = hinge_weight, direction
        buffers = {"lower": lower, "upper": upper, "_hinge_weight": weight, "_hinge_sign": sign}
        for name, value in buffers.items():
            self.register_buffer(name, value)
        # The densities on a grid that reaches 8 sigma beyond the bounds: all but 1e-15 of their mass.
        steps = torch.linspace(0, 1, _GRID, dtype=torch.float64)[:, None]
        grid = lower - 8 * sigma + steps * (upper - lower + 16 * sigma)
        energy = self._energy(grid)
        density = torch.exp(-energy)
        mass = torch.cat([torch.zeros_like(lower)[None], torch.cumulative_trapezoid(density, grid, dim=0)])
        # Without a hinge the whole range is alike: take the point nearest to the rest pose.
        highest = torch.where(weight > 0, grid.gather(0, energy.argmin(0)[None])[0], lower.clamp(0).minimum(upper))
        buffers |= {"_grid": grid, "_cdf": mass / mass[-1], "_log_normaliser": mass[-1].log(), "_mode": highest}
        for name, value in buffers.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=name in ("lower", "upper"))

    @property
    def hinges(self) -> tuple[Float[Tensor, "69"], Float[Tensor, "69"]]:
        """The hinge's weight on each number, 0 but for elbows and knees, and the sign of its unnatural side."""
        return self._hinge_weight, self._hinge_sign

    def terms(self, values: Float[Tensor, "B 69"]) -> dict[str, Float[Tensor, "B 69"]]:
        """Energy of each number in nats, by part: "hinge" (non-zero on four columns) and "range"."""
        return {
            "hinge": self._hinge_weight * torch.exp(2 * self._hinge_sign * values),
            "range": 0.5 * (self._beyond(values) / self.sigma) ** 2,
        }

    def _beyond(self, values: Float[Tensor, "B 69"]) -> Float[Tensor, "B 69"]:
        """How far each number is outside its range, 0 within."""
        return values - values.clamp(self.lower, self.upper)

    def _energy(self, values: Float[Tensor, "B 69"]) -> Float[Tensor, "B 69"]:
        terms = self.terms(values)
        return terms["hinge"] + terms["range"]

    def log_prob(
        self, values: Float[Tensor, "B 69"], context: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, " B"]:
        """Natural log density per rad^69, normalised. The context is not read."""
        return -(self._energy(values) + self._log_normaliser).sum(-1)

    def quadratic(
        self, values: Float[Tensor, "B 69"], context: Float[Tensor, "B C"] | None = None
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B 69"], Float[Tensor, "B 69"]]:
        """Energy without the normaliser, its gradient, and its Hessian's diagonal, exact off the bounds."""
        double = 2 * self._hinge_sign
        hinge = self._hinge_weight * torch.exp(double * values)
        beyond, precision = self._beyond(values), self.sigma**-2
        energy = torch.addcmul(hinge, beyond, beyond, value=0.5 * precision).sum(-1)
        gradient = torch.addcmul(beyond * precision, double, hinge)
        return energy, gradient, torch.add(beyond.ne(0) * precision, hinge, alpha=4)

    def sample(
        self,
        count: int,
        context: Float[Tensor, "B C"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B N 69"]:
        """Independent draws of each number, through the inverse of its distribution function."""
        rows = 1 if context is None else len(context)
        uniform = torch.rand(69, rows * count, generator=generator, dtype=self.lower.dtype, device=self.lower.device)
        cdf, grid = self._cdf.T.contiguous(), self._grid.T
        right = torch.searchsorted(cdf, uniform).clamp(1, _GRID - 1)
        low, high = cdf.gather(1, right - 1), cdf.gather(1, right)
        fraction = (uniform - low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny)
        start, end = grid.gather(1, right - 1), grid.gather(1, right)
        return (start + fraction * (end - start)).T.reshape(rows, count, 69)

    def mode(self, context: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "B 69"]:
        """The rest pose but for elbows and knees, which the hinge term wants as bent as their range lets them."""
        return self._mode.expand(1 if context is None else len(context), -1)
