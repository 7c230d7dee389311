"""From per-vertex affine maps T = R S to the nine numbers of a feature, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from recon_acap.features.fused import UPPER, split
from recon_core.geometry.rotations import axis_angle_to_matrix, skew

Choice = Callable[[Float[Tensor, "B V"], Float[Tensor, "B V 3"]], Float[Tensor, "B V 3"]]
"""Chooses among the axis-angle vectors of each rotation, given by angle and axis (zeros where it has none)."""


def to_features(T: Float[Tensor, "B V 3 3"], choose: Choice) -> Float[Tensor, "B V 9"]:
    """Axis-angle r (3) of the rotation and upper triangle s (6) of the stretch of T = R(r) S(s).

    Differentiable in T wherever R is (the two smallest singular values do not cancel) and r is (its angle is not a
    whole number of turns, except none); the choice of turns is constant.
    """
    return _Features.apply(T, choose)


def to_affine(features: Float[Tensor, "B V 9"]) -> Float[Tensor, "B V 3 3"]:
    """T = R(r) S(s) of features; the inverse of `to_features`."""
    return axis_angle_to_matrix(features[..., :3]) @ stretch(features)


def stretch(features: Float[Tensor, "B V 9"]) -> Float[Tensor, "B V 3 3"]:
    """The symmetric matrix S of features."""
    xx, xy, xz, yy, yz, zz = features[..., 3:].unbind(-1)
    return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).unflatten(-1, (3, 3))


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, T: Tensor, choose: Choice) -> Tensor:
        found = split(T.reshape(-1, 3, 3))
        r = choose(found.angle.view(T.shape[:2]), found.axis.view(*T.shape[:2], 3))
        features = torch.cat([r, found.stretch.view(*T.shape[:2], 6)], -1)
        ctx.save_for_backward(found.rotation.view_as(T), features)
        return features

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """With R' = R [w]x: R^T T' = [w]x S + S', so (tr S - S) w = axial(R^T T'), and r' = J(r)^-1 w."""
        R, features = ctx.saved_tensors
        S, r = stretch(features), features[..., :3]
        of_stretch = grad.new_zeros(*grad.shape[:-1], 9)
        of_stretch[..., list(UPPER)] = grad[..., 3:]
        of_stretch = of_stretch.unflatten(-1, (3, 3))
        of_stretch = (of_stretch + of_stretch.mT) / 2
        of_turn = (_inverse_jacobian(r).mT @ grad[..., :3, None]).squeeze(-1) - _axial(of_stretch @ S)
        trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        matrix = trace * torch.eye(3).to(S) - S
        turn = torch.linalg.solve_ex(matrix, of_turn)[0]
        return R @ (of_stretch + skew(turn)), None


def _axial(A: Float[Tensor, "B V 3 3"]) -> Float[Tensor, "B V 3"]:
    """a with <A, [w]x> = a . w for all w."""
    return torch.stack([A[..., 2, 1] - A[..., 1, 2], A[..., 0, 2] - A[..., 2, 0], A[..., 1, 0] - A[..., 0, 1]], -1)


def _inverse_jacobian(r: Float[Tensor, "B V 3"]) -> Float[Tensor, "B V 3 3"]:
    """J with r' = J w for R(r)' = R(r) [w]x: I + [r]x / 2 + (1/a^2 - cot(a/2) / 2a) [r]x^2, a = |r|."""
    squared = r.square().sum(-1)[..., None, None]
    small = squared < 1e-4
    a = torch.where(small, 1, squared).sqrt()
    # Kept finite where the angle is a whole number of turns, and r has no derivative.
    half = a / 2
    sine = half.sin()
    least = math.sqrt(torch.finfo(r.dtype).eps)
    sine = torch.where(sine.abs() < least, least, sine)
    factor = torch.where(small, 1 / 12 + squared / 720, 1 / a**2 - half.cos() / sine / (2 * a))
    W = skew(r)
    return torch.eye(3).to(r) + W / 2 + factor * (W @ W)
