"""Rotation representations and the maps between them. Pure functions over any leading dimensions (...).

Matrices act on column vectors. Axis-angle vectors have the angle in radians as their length. All are smooth
where the rotation is: no NaN gradients at zero angle.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

SixDLayout = Literal["columns", "rows"]


def skew(v: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
    """The cross-product matrix: skew(v) @ u = v x u."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*v.shape[:-1], 3, 3)


def axis_angle_to_matrix(v: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
    """Rodrigues' formula, by its Taylor series below 1e-3 rad (1e-2 in float32), where sin(a)/a loses digits."""
    squared = (v * v).sum(-1, keepdim=True)[..., None]
    small = squared < (1e-4 if v.dtype == torch.float32 else 1e-6)
    # The angle is taken of a safe value on both branches, so that its gradient is never 0/0.
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    a = torch.where(small, 1 - squared / 6 * (1 - squared / 20), angle.sin() / angle)
    b = torch.where(small, 0.5 - squared / 24 * (1 - squared / 30), (1 - angle.cos()) / angle**2)
    W = skew(v)
    return torch.eye(3).to(v) + a * W + b * (W @ W)


def matrix_to_quaternion(R: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 4"]:
    """Unit quaternion (w, x, y, z) with w >= 0, through the best conditioned of the four square roots."""
    m = R.flatten(-2)
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = m.unbind(-1)
    trace = torch.stack([m00 + m11 + m22, m00 - m11 - m22, m11 - m00 - m22, m22 - m00 - m11], -1)
    candidates = torch.stack(
        [
            torch.stack([1 + trace[..., 0], m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, 1 + trace[..., 1], m10 + m01, m02 + m20], -1),
            torch.stack([m02 - m20, m10 + m01, 1 + trace[..., 2], m12 + m21], -1),
            torch.stack([m10 - m01, m02 + m20, m12 + m21, 1 + trace[..., 3]], -1),
        ],
        -2,
    )
    best = trace.argmax(-1)[..., None, None].expand(*trace.shape[:-1], 1, 4)
    q = normalize(candidates.gather(-2, best).squeeze(-2), dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)


def quaternion_to_matrix(q: Float[Tensor, "... 4"]) -> Float[Tensor, "... 3 3"]:
    """Rotation of a quaternion (w, x, y, z) of any length but zero."""
    w, x, y, z = normalize(q, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(*q.shape[:-1], 3, 3)


def quaternion_multiply(a: Float[Tensor, "... 4"], b: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Hamilton product of (w, x, y, z): the rotation b followed by a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def matrix_to_axis_angle(R: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 3"]:
    """Axis-angle of length in [0, pi]; accurate at 0 and at pi, through the quaternion."""
    q = matrix_to_quaternion(R)
    squared = (q[..., 1:] ** 2).sum(-1, keepdim=True)
    small = squared < 1e-12
    sine = torch.where(small, torch.ones_like(squared), squared).sqrt()
    factor = torch.where(small, 2 / q[..., :1], 2 * torch.atan2(sine, q[..., :1]) / sine)
    return q[..., 1:] * factor


def rotation_6d_to_matrix(
    x: Float[Tensor, "... 6"], layout: SixDLayout = "columns"
) -> Float[Tensor, "... 3 3"]:
    """Gram-Schmidt of two columns (Zhou et al., CVPR 2019, section 4.2); the third is their cross product.

    layout "columns": the six numbers are the first column, then the second (ProHMR). "rows": a row-major
    3 x 2 matrix of those columns (SPIN, multi-person).
    """
    if layout == "columns":
        a, b = x[..., :3], x[..., 3:]
    else:
        a, b = x[..., 0::2], x[..., 1::2]
    first = normalize(a, dim=-1)
    second = normalize(b - (first * b).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -1)


def matrix_to_rotation_6d(
    R: Float[Tensor, "... 3 3"], layout: SixDLayout = "columns"
) -> Float[Tensor, "... 6"]:
    """The first two columns of R, in one of the layouts of `rotation_6d_to_matrix`."""
    two = R[..., :2]
    return (two.transpose(-1, -2) if layout == "columns" else two).flatten(-2)


def project_to_rotation(M: Float[Tensor, "... 3 3"]) -> Float[Tensor, "... 3 3"]:
    """The rotation nearest to M in the Frobenius norm: U diag(1, 1, det(U V^T)) V^T of its SVD."""
    U, _, Vh = torch.linalg.svd(M)
    sign = torch.linalg.det(U @ Vh)
    diagonal = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
    return (U * diagonal[..., None, :]) @ Vh


def geodesic_distance(A: Float[Tensor, "... 3 3"], B: Float[Tensor, "... 3 3"]) -> Float[Tensor, ...]:
    """Angle in radians, [0, pi], of the rotation between A and B."""
    return matrix_to_axis_angle(A.transpose(-1, -2) @ B).norm(dim=-1)
