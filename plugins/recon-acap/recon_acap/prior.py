"""The embedding as a prior over the body's joint angles: `--prior acap`.

The pose code z ~ N(0, I) moves the parts of the decoded body; from the parts' rotations follow the angles a(z) of the
joints between them. Angles x are held to be drawn as x = a(z) + noise, so that

    p(x) = integral N(x; a(z), sigma^2 I) N(z; 0, I) dz  ~  N(x; a(z*) - A z*, A A^T + sigma^2 I),   A = da/dz at z*,

z* the likeliest code of x, found by Gauss-Newton: Laplace's approximation of a nonlinear factor analysis.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacfwd, vmap

from recon_acap.network import BodyEmbedding, load_embedding
from recon_core.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from recon_core.interfaces import Prior
from recon_core.skeletons import SMPL24
from recon_std.bodies.parts import ANATOMICAL_PARTS

JOINTS = (
    ("spine1", "pelvis", "abdomen"),
    ("spine2", "abdomen", "chest"),
    ("neck", "chest", "head"),
    ("left_shoulder", "chest", "left_upper_arm"),
    ("right_shoulder", "chest", "right_upper_arm"),
    ("left_elbow", "left_upper_arm", "left_forearm"),
    ("right_elbow", "right_upper_arm", "right_forearm"),
    ("left_wrist", "left_forearm", "left_hand"),
    ("right_wrist", "right_forearm", "right_hand"),
    ("left_hip", "pelvis", "left_thigh"),
    ("right_hip", "pelvis", "right_thigh"),
    ("left_knee", "left_thigh", "left_shank"),
    ("right_knee", "right_thigh", "right_shank"),
    ("left_ankle", "left_shank", "left_foot"),
    ("right_ankle", "right_shank", "right_foot"),
)
"""The joint between each two parts. The 8 other joints of the body lie inside of parts (spine3, collars, head, feet and
hands): the embedding does not tell them from these, and their angles are held to 0 by `inside`."""

COLUMNS = tuple(3 * (SMPL24.index(joint) - 1) + axis for joint, _, _ in JOINTS for axis in range(3))


class AcapPosePrior(Prior):
    """A density over the 69 axis-angle numbers (radians) of pose rows 1 to 23, up to Laplace's approximation.

    The embedding's parts are 16, so that 15 joints have a density of their own, in the mean shape; the other joints
    are independent and normal about 0 with a deviation of `inside` radians. sigma: deviation, radians, of angles about
    those of the embedding. steps: Gauss-Newton steps to the likeliest code. Raises AssetError when the weights are
    missing or of a network without base path.
    """

    over: ClassVar[Literal["body-pose"]] = "body-pose"
    dims = 69

    def __init__(
        self,
        embedding: BodyEmbedding | None = None,
        sigma: float = 0.2,
        inside: float = 0.2,
        steps: int = 4,
    ) -> None:
        super().__init__()
        self.embedding = (embedding or load_embedding()).requires_grad_(False)
        self.sigma, self.inside, self.steps = sigma, inside, steps
        self.codes = self.embedding.config.pose_dims
        parts = [[ANATOMICAL_PARTS.index(joint[i]) for joint in JOINTS] for i in (1, 2)]
        self._above, self._below = parts
        rest = [i for i in range(self.dims) if i not in COLUMNS]
        self._inside = rest
        self.embedding.decode_parts(self.embedding.reference.new_zeros(1, self.embedding.config.shape_dims))

    def angles(self, code: Float[Tensor, "B P"]) -> Float[Tensor, "B 45"]:
        """a(z): axis-angle numbers, radians, of the 15 joints of the mean-shaped body of pose codes."""
        shape = code.new_zeros(len(code), self.embedding.config.shape_dims)
        turn = axis_angle_to_matrix(self.embedding.decode_parts(shape, code)[..., :3])
        return matrix_to_axis_angle(turn[:, self._above].transpose(-1, -2) @ turn[:, self._below]).flatten(1)

    @torch.no_grad()
    def encode(self, values: Float[Tensor, "B 69"]) -> Float[Tensor, "B P"]:
        """z*: the likeliest pose codes of angles."""
        target = values[:, COLUMNS]
        code = values.new_zeros(len(values), self.codes)
        energy = self._energy(code, target)
        damping = torch.ones_like(energy)
        eye = torch.eye(self.codes).to(values)
        for _ in range(self.steps):
            angles, A = self._linearized(code)
            gap = (angles - target) / self.sigma**2
            curvature = A.transpose(1, 2) @ A / self.sigma**2 + eye * damping[:, None, None]
            step = torch.linalg.solve(curvature, (gap[:, None] @ A)[:, 0] + code)
            tried = self._energy(code - step, target)
            better = tried < energy
            code = torch.where(better[:, None], code - step, code)
            energy = torch.where(better, tried, energy)
            damping = torch.where(better, (damping / 3).clamp_min(1.0), damping * 10)
        return code

    def _energy(self, code: Tensor, target: Tensor) -> Float[Tensor, " B"]:
        gap = (self.angles(code) - target) / self.sigma
        return 0.5 * (gap.square().sum(1) + code.square().sum(1))

    def _linearized(self, code: Tensor) -> tuple[Float[Tensor, "B 45"], Float[Tensor, "B 45 P"]]:
        def one(z: Tensor) -> tuple[Tensor, Tensor]:
            value = self.angles(z[None])[0]
            return value, value

        slope, value = vmap(jacfwd(one, has_aux=True))(code)
        return value, slope

    def _gaussian(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, 45) and covariance (B, 45, 45) of the angles about the likeliest code of `values`."""
        code = self.encode(values)
        angles, A = self._linearized(code)
        mean = angles - (A @ code[..., None])[..., 0]
        eye = torch.eye(angles.shape[1]).to(values)
        return mean, A @ A.transpose(1, 2) + self.sigma**2 * eye

    def log_prob(
        self, values: Float[Tensor, "B 69"], context: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, " B"]:
        """Natural log density per rad^69 by Laplace's approximation; differentiable with z* held. No context is
        read."""
        mean, covariance = self._gaussian(values.detach())
        L = torch.linalg.cholesky(covariance)
        gap = torch.linalg.solve_triangular(L, (values[:, COLUMNS] - mean)[..., None], upper=False)[..., 0]
        volume = L.diagonal(dim1=-2, dim2=-1).log().sum(1) + 0.5 * gap.shape[1] * math.log(2 * math.pi)
        still = torch.distributions.Normal(0.0, self.inside).log_prob(values[:, self._inside])
        return still.sum(1) - 0.5 * gap.square().sum(1) - volume

    @torch.no_grad()
    def quadratic(
        self, values: Float[Tensor, "B 69"], context: Float[Tensor, "B C"] | None = None
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B 69"], Float[Tensor, "B 69 69"]]:
        """Half the squared distances of `log_prob`'s Gaussians: its energy less the determinant, which changes slowly
        and would reward poses of little freedom. The curvature is the inverse covariance."""
        mean, covariance = self._gaussian(values)
        precision = torch.linalg.inv(covariance)
        gap = values[:, COLUMNS] - mean
        pull = (precision @ gap[..., None])[..., 0]
        gradient = values / self.inside**2
        gradient[:, COLUMNS] = pull
        curvature = torch.diag_embed(torch.full_like(values, self.inside**-2))
        columns = torch.tensor(COLUMNS)
        curvature[:, columns[:, None], columns] = precision
        energy = 0.5 * ((gap * pull).sum(1) + (values[:, self._inside] / self.inside).square().sum(1))
        return energy, gradient, curvature

    @torch.no_grad()
    def sample(
        self,
        count: int,
        context: Float[Tensor, "B C"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B N 69"]:
        """Angles of pose codes drawn from N(0, I), with the noise of the model: exact draws, not of the
        approximation."""
        rows = (1 if context is None else len(context)) * count
        like = self.embedding.reference
        random = lambda width: torch.randn(  # noqa: E731
            rows, width, generator=generator, dtype=like.dtype, device=like.device
        )
        values = self.inside * random(self.dims)
        angles = self.angles(random(self.codes))
        values[:, COLUMNS] = angles + self.sigma * random(angles.shape[1])
        return values.unflatten(0, (-1, count))

    @torch.no_grad()
    def mode(self, context: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "B 69"]:
        """The angles of the code 0, the likeliest code."""
        values = self.embedding.reference.new_zeros(1 if context is None else len(context), self.dims)
        values[:, COLUMNS] = self.angles(values.new_zeros(len(values), self.codes))
        return values
