"""The kinematic second-order term: how levers turn with the joints above them, which Gauss-Newton leaves out.

Turning joint j, at or above l, by u and joint l by w moves point k in second order by u x (w x a_kl) (frames and
levers as in `kinematics`). Against the energy's slope g_k at the point, and with A_l = sum_k a_kl g_k^T, that is
u^T (A_l - tr(A_l) I) w: one 3 x 3 matrix a joint holds the term for all joints above it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recon_std.fitters.kinematics import JOINTS, PARENT, SUBTREES, Pose, rodrigues
from recon_std.fitters.variables import ANGLES

# Strict ancestors of each joint, spread over the 3 numbers of a joint: 72 x 72, row above column.
_ABOVE = (SUBTREES - torch.eye(JOINTS)).repeat_interleave(3, 0).repeat_interleave(3, 1)


def add_turning(
    curvature: Float[Tensor, "N P P"], pulls: Float[Tensor, "N 24 3 3"], at: Pose, places: int
) -> Float[Tensor, "N P P"]:
    """The curvature over a step's columns with the term added, in place. The sum may be indefinite.

    pulls: the A_l of the module's text. The root's rows are filled where the body has one place (columns `places` on).
    """
    M = pulls - pulls.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * torch.eye(3).to(pulls)
    turned = M @ at.charts
    pairs = at.charts.transpose(-1, -2).flatten(1, 2) @ turned.transpose(1, 2).flatten(2)
    pairs *= _ABOVE.to(pulls)
    pairs = pairs + pairs.transpose(-1, -2)
    own = at.charts.transpose(-1, -2) @ turned
    own = 0.5 * (own + own.transpose(-1, -2))
    # The torque of the points about each joint: sum_k a_kj x g_k.
    torque = torch.stack([pulls[..., i, j] - pulls[..., j, i] for i, j in ((1, 2), (2, 0), (0, 1))], -1)
    own[:, 1:] += chart_bend(at, torque)
    pairs.unflatten(1, (JOINTS, 3)).unflatten(3, (JOINTS, 3)).diagonal(dim1=1, dim2=3).add_(own.permute(0, 2, 3, 1))
    curvature[:, :ANGLES, :ANGLES] += pairs[:, 3:, 3:]
    if curvature.shape[1] == places + 6:
        turn = slice(places, places + 3)
        curvature[:, turn, :ANGLES] += pairs[:, :3, 3:]
        curvature[:, :ANGLES, turn] += pairs[:, 3:, :3]
        curvature[:, turn, turn] += pairs[:, :3, :3]
    return curvature


def chart_bend(at: Pose, torque: Float[Tensor, "N 24 3"]) -> Float[Tensor, "N 23 3 3"]:
    """The quadratic form dv -> torque . (d Jl(v) along dv) dv: how axis-angle numbers bend away from a turn at
    constant rate, Jl the left Jacobian of the exponential map. torque: about each joint, in the root's frame.
    """
    v = at.angles
    h = (at.rotations[:, PARENT[1:].to(v.device)].transpose(-1, -2) @ torque[:, 1:, :, None])[..., 0]
    s = (v * v).sum(-1)[..., None, None]
    a, b, c = rodrigues(s)
    small = s < 1e-2
    safe = torch.where(small, torch.ones_like(s), s)
    b_slope = torch.where(small, -1 / 12 + s / 180 * (1 - s / 37.333), (a - 2 * b) / safe)
    c_slope = torch.where(small, -1 / 60 + s / 1260 * (1 - s / 48), (b - 3 * c) / safe)
    outer = lambda x, y: x[..., :, None] * y[..., None, :]  # noqa: E731
    along = (h * v).sum(-1)[..., None, None]
    bend = b_slope * outer(v, torch.linalg.cross(h, v)) + c_slope * along * outer(v, v)
    bend = bend - (c_slope * s + c) * outer(v, h)
    return 0.5 * (bend + bend.transpose(-1, -2)) + c * along * torch.eye(3).to(v)
