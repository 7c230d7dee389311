"""Points that ride on a skinned body, and their derivatives in closed form.

A linear regressor over skinned vertices (a joint of any skeleton, or a single vertex) moves as

    x_k = sum_p [ R_p (b_kp - c_kp J_p) + c_kp t_p ],   t_p = t_parent + R_parent (J_p - J_parent)

(docs/architecture.md, Bodies). Collecting everything that a rotation R_q multiplies, and splitting off the root's
rotation R and place T, gives the form used here, in which R_q is relative to the root:

    x_k = R sum_q R_q o_kq(betas) + m_k (J_0(betas) + T)
    o_kq = b_kq - c_kq J_q + sum over children p of q of M_kp (J_p - J_q)

with M_kp the sum of c_k over p and what hangs on it, and m_k = M_k0. The lever arm of joint j on point k is
a_kj = sum over q in j's subtree of R_q o_kq: turning j by a small w moves x_k by R (w x a_kj).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.errors import EvidenceError, ReconError
from recon_core.geometry.rotations import skew
from recon_core.interfaces import BodyModel
from recon_core.skeletons import SMPL_PARENTS
from recon_core.structures import Batched, BodyOutput

JOINTS = len(SMPL_PARENTS)


def _subtrees() -> Tensor:
    """(24, 24): 1 where the column's joint is the row's or hangs on it."""
    member = torch.eye(JOINTS)
    for joint in reversed(range(1, JOINTS)):
        member[SMPL_PARENTS[joint]] += member[joint]
    return member


def _jumps() -> Tensor:
    """(4, 25): each joint's ancestor at distance 1, 2, 4, 8; 24 stands for nothing above the root."""
    ancestor = torch.tensor([JOINTS if p < 0 else p for p in SMPL_PARENTS] + [JOINTS])
    jumps = []
    while (ancestor != JOINTS).any():
        jumps.append(ancestor)
        ancestor = ancestor[ancestor]
    return torch.stack(jumps)


SUBTREES = _subtrees()
_EYE = torch.eye(3)
_GENERATORS = skew(_EYE).flatten(1)
_JUMPS = _jumps()
PARENT = torch.tensor([max(p, 0) for p in SMPL_PARENTS])


@dataclass(frozen=True)
class Pose(Batched):
    """Rotations of all parts relative to the root, at axis-angle numbers v of the 23 joints below it.

    angles: (N, 23, 3) radians. rotations: (N, 24, 3, 3), row 0 the identity. charts: (N, 24, 3, 3): a change dv of
    joint j turns its subtree by charts[j] @ dv; row 0, the root, is turned by its own frame's axes: identity.
    """

    angles: Float[Tensor, "N 23 3"]
    rotations: Float[Tensor, "N 24 3 3"]
    charts: Float[Tensor, "N 24 3 3"]


def rodrigues(squared: Float[Tensor, "..."]) -> tuple[Tensor, Tensor, Tensor]:
    """sin(x)/x, (1 - cos x)/x^2, (x - sin x)/x^3 of x^2; the last by its series near 0, where it loses digits."""
    x = squared.clamp_min(1e-30).sqrt()
    a = torch.sinc(x / torch.pi)
    half = torch.sinc(x / (2 * torch.pi))
    small = squared < (1e-2 if squared.dtype == torch.float32 else 1e-4)
    series = torch.addcmul(_SIXTH.to(squared), squared, torch.add(_LINEAR.to(squared), squared, alpha=1 / 5040))
    return a, half * half * 0.5, torch.where(small, series, (a - 1) / squared.masked_fill(small, 1.0).neg())


_SIXTH, _LINEAR = torch.tensor(1 / 6, dtype=torch.float64), torch.tensor(-1 / 120, dtype=torch.float64)


def turned(angles: Float[Tensor, "... 3"]) -> tuple[Float[Tensor, "... 3 3"], Float[Tensor, "... 3 3"]]:
    """The exponential map of axis-angle numbers and its left Jacobian, in few operations: they are on the hot path.

    With W the cross-product matrix of v: I + a W + b W^2 and I + b W + c W^2, a, b, c as in `rodrigues`.
    """
    squared = (angles * angles).sum(-1)[..., None, None]
    a, b, c = rodrigues(squared)
    cross = (angles @ _GENERATORS.to(angles)).unflatten(-1, (3, 3))
    square = angles[..., :, None] * angles[..., None, :] - squared * _EYE.to(angles)
    return _EYE.to(angles) + a * cross + b * square, _EYE.to(angles) + b * cross + c * square


def turn(angles: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3 3"]:
    """The exponential map alone."""
    squared = (angles * angles).sum(-1)[..., None, None]
    x = squared.clamp_min(1e-30).sqrt()
    half = torch.sinc(x / (2 * torch.pi))
    cross = (angles @ _GENERATORS.to(angles)).unflatten(-1, (3, 3))
    square = angles[..., :, None] * angles[..., None, :] - squared * _EYE.to(angles)
    return _EYE.to(angles) + torch.sinc(x / torch.pi) * cross + (0.5 * half * half) * square


def pose(angles: Float[Tensor, "N 23 3"]) -> Pose:
    """Forward kinematics: rotations down the tree, and how each axis-angle number turns what hangs on it.

    The chain is a prefix product: after multiplying by the ancestor at distance 1, 2, 4 and 8 every joint holds
    the product from the root (depth of the SMPL tree: 8).
    """
    local, jacobian = turned(angles)
    top = _EYE.to(angles).expand(len(angles), 1, 3, 3)
    chain = torch.cat([top, local, top], 1)
    for ancestor in _JUMPS.to(angles.device):
        chain = chain[:, ancestor] @ chain
    rotations = chain[:, :JOINTS].contiguous()
    charts = torch.cat([top, rotations[:, PARENT[1:].to(angles.device)] @ jacobian], 1)
    return Pose(angles, rotations, charts)


@dataclass(frozen=True)
class PointBasis:
    """K points on a body: offsets (24, 3, K, 1+S) of the module's o_kq, mass (K,) of m_k, root (3, 1+S) of J_0.

    The last dimension holds the mean shape, then one entry a beta. rows: (K,) which joints of `skeleton` the points
    are, or, where that is None, which vertices.
    """

    offsets: Float[Tensor, "24 3 K S1"]
    mass: Float[Tensor, " K"]
    root: Float[Tensor, "3 S1"]
    rows: Int[Tensor, " K"]
    skeleton: str | None

    @classmethod
    def _build(
        cls,
        shares: Float[Tensor, "K 24 3 S1"],
        weights: Float[Tensor, "K 24"],
        joints: Float[Tensor, "24 3 S1"],
        rows: Int[Tensor, " K"],
        skeleton: str | None,
    ) -> PointBasis:
        """shares: b_kp, weights: c_kp, joints: J_p of the module's first formula, linear in the betas."""
        # Built in double: differences of nearly equal places are summed over the tree.
        b, c, J = shares.double(), weights.double(), joints.double()
        mass = c @ SUBTREES.to(c).T
        offsets = b - c[..., None, None] * J
        for child in range(1, JOINTS):
            parent = SMPL_PARENTS[child]
            offsets[:, parent] += mass[:, child, None, None] * (J[child] - J[parent])
        dtype = shares.dtype
        offsets = offsets.permute(1, 2, 0, 3).to(dtype).contiguous()
        return cls(offsets, mass[:, 0].to(dtype), joints[0], rows, skeleton)

    @classmethod
    def of_skeleton(
        cls, body: BodyModel, skeleton: str, betas: int, rows: Int[Tensor, " K"] | None = None
    ) -> PointBasis:
        """Joints of a named skeleton (all, or those in `rows`), moved by the first `betas` shape directions.

        Raises EvidenceError when the body has no regressor for that skeleton.
        """
        try:
            shares, weights = body.keypoint_basis(skeleton)  # type: ignore[operator]
        except (ReconError, AttributeError) as error:
            raise EvidenceError(
                f"body {getattr(body, 'name', type(body).__name__)} cannot explain joints of skeleton {skeleton}: "
                f"it has no regressor for them; convert the joints or choose another body ({error})"
            ) from error
        if rows is None:
            rows = torch.arange(len(shares), device=shares.device)
        return cls._build(shares[rows][..., : 1 + betas], weights[rows], _rest_joints(body, betas), rows, skeleton)

    @classmethod
    def of_vertices(cls, body: BodyModel, vertices: Int[Tensor, " K"], betas: int) -> PointBasis:
        """Single vertices: each rides on its parts by its skinning weights. Pose correctives are left out.

        Raises EvidenceError when the body does not show its skinning.
        """
        try:
            rest = body.template[vertices]  # type: ignore[index]
            directions = body.shape_directions[:betas].unflatten(-1, (-1, 3))[:, vertices]  # type: ignore[index]
            weights = body.weights[vertices]  # type: ignore[index]
        except AttributeError as error:
            raise EvidenceError(
                f"body {getattr(body, 'name', type(body).__name__)} cannot explain a surface: {error}"
            ) from error
        place = torch.cat([rest[..., None], directions.permute(1, 2, 0)], -1)
        shares = weights[..., None, None] * place[:, None]
        return cls._build(shares, weights, _rest_joints(body, betas), vertices, None)

    def __len__(self) -> int:
        return len(self.mass)

    def __getitem__(self, points: slice) -> PointBasis:
        """Some of the points."""
        return replace(
            self, offsets=self.offsets[:, :, points].contiguous(), mass=self.mass[points], rows=self.rows[points]
        )

    def of_output(self, body: BodyModel, output: BodyOutput) -> Float[Tensor, "B K 3"]:
        """The same points taken from a skinned body."""
        if self.skeleton is None:
            return output.vertices[:, self.rows]
        if self.skeleton == "smpl24":
            return output.joints[:, self.rows]
        return body.regress(output.vertices, self.skeleton)[:, self.rows]

    def levers(self, pose: Pose, betas: Float[Tensor, "N S"]) -> Float[Tensor, "N 24 3 K"]:
        """The arms a_kj of every joint on every point; row 0 is the point itself relative to the root, unturned."""
        K, S = len(self), betas.shape[-1]
        mean, directions = self.offsets[..., 0], self.offsets[..., 1:]
        offsets = torch.addmm(mean.reshape(1, -1), betas, directions.reshape(-1, S).T).view(-1, JOINTS, 3, K)
        turned = (pose.rotations @ offsets).flatten(2)
        return (SUBTREES.to(turned) @ turned).view(-1, JOINTS, 3, K)

    def root_joint(self, betas: Float[Tensor, "N S"]) -> Float[Tensor, "N 3"]:
        """J_0: the rest pelvis."""
        return self.root[:, 0] + betas @ self.root[:, 1:].T

    def shape_jacobian(self, pose: Pose) -> Float[Tensor, "N 3 K S"]:
        """sum_q R_q do_kq/dbetas: how each beta moves the point relative to the root, unturned."""
        turn = pose.rotations.transpose(1, 2).flatten(2)
        return (turn @ self.offsets[..., 1:].flatten(2).flatten(0, 1)).unflatten(-1, (len(self), -1))


def _rest_joints(body: BodyModel, betas: int) -> Float[Tensor, "24 3 S1"]:
    """J_p of the body's mean shape, then what each beta adds."""
    mean = body.weights.new_zeros(1, betas)  # type: ignore[operator, union-attr]
    places = body.rest_joints(torch.cat([mean, torch.eye(betas).to(mean)]))  # type: ignore[operator]
    return torch.cat([places[:1], places[1:] - places[:1]]).permute(1, 2, 0)
