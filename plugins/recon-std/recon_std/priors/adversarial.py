"""HMR's factorised discriminator (Kanazawa et al., CVPR 2018, section 3.3), and the prior that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.interfaces import Prior
from recon_std.priors.gmm import GaussianMixturePrior
from recon_std.priors.weights import SHIPPED, load_weights

JOINTS, BETAS = 23, 10
# Starts of the ascent to the mode and candidates for each draw: enough for the score to decide, cheap on a CPU.
_CANDIDATES = 32


class PoseDiscriminator(nn.Module):
    """Scores of a body's rotations and shape: 25 numbers, 1 for real, 0 for made up.

    Parameter names and shapes are those of the published HMR and ProHMR checkpoints. The rotations of all joints
    pass one shared network of 1 x 1 convolutions (9 -> 32 -> 32); each joint has its own last layer, a network on
    all joints' features judges the whole pose, another the betas.
    """

    def __init__(self) -> None:
        super().__init__()
        self.D_conv1 = nn.Conv2d(9, 32, 1)
        self.D_conv2 = nn.Conv2d(32, 32, 1)
        self.pose_out = nn.ModuleList(nn.Linear(32, 1) for _ in range(JOINTS))
        self.betas_fc1 = nn.Linear(BETAS, 10)
        self.betas_fc2 = nn.Linear(10, 5)
        self.betas_out = nn.Linear(5, 1)
        self.D_alljoints_fc1 = nn.Linear(JOINTS * 32, 1024)
        self.D_alljoints_fc2 = nn.Linear(1024, 1024)
        self.D_alljoints_out = nn.Linear(1024, 1)

    def forward(self, rotations: Float[Tensor, "B 23 3 3"], betas: Float[Tensor, "B 10"]) -> Float[Tensor, "B 25"]:
        """Columns: 0 to 22 the joints of body pose in smpl24 order, 23 the shape, 24 the whole pose."""
        entries = rotations.flatten(-2).transpose(1, 2)[..., None]  # B 9 23 1, row-major entries as channels
        features = relu(self.D_conv2(relu(self.D_conv1(entries))))  # B 32 23 1
        weight = torch.cat([layer.weight for layer in self.pose_out])  # 23 32
        bias = torch.cat([layer.bias for layer in self.pose_out])
        per_joint = torch.einsum("bcj,jc->bj", features[..., 0], weight) + bias
        shape = self.betas_out(relu(self.betas_fc2(relu(self.betas_fc1(betas)))))
        whole = relu(self.D_alljoints_fc2(relu(self.D_alljoints_fc1(features.flatten(1)))))
        return torch.cat([per_joint, shape, self.D_alljoints_out(whole)], 1)


class AdversarialPrior(Prior):
    """A trained discriminator as a prior over (69 body axis-angle numbers, 10 betas).

    log_prob(x) = -sum (score - 1)^2 over the 25 scores: the generator's loss of least squares GANs, as HMR uses it.
    It is not normalised and its differences are no log likelihood ratios: give it a weight of its own in a fit.
    `weights` names a safetensors file of PoseDiscriminator's state; by default the one trained on motion capture
    (weights/README.md). Raises AssetError when the file is missing or of another network.
    """

    over: ClassVar[Literal["body"]] = "body"
    dims = JOINTS * 3 + BETAS

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        self.discriminator = PoseDiscriminator()
        state = load_weights(weights or SHIPPED / "adversarial.safetensors", self.discriminator.state_dict())
        self.discriminator.load_state_dict({name: value.float() for name, value in state.items()})
        self.requires_grad_(False)
        self._base = GaussianMixturePrior()

    def scores(self, values: Float[Tensor, "B 79"]) -> Float[Tensor, "B 25"]:
        """The discriminator's 25 scores."""
        rotations = axis_angle_to_matrix(values[:, : JOINTS * 3].reshape(-1, JOINTS, 3))
        return self.discriminator(rotations, values[:, JOINTS * 3 :])

    def log_prob(
        self, values: Float[Tensor, "B 79"], context: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, " B"]:
        """-sum (score - 1)^2, at most 0; not normalised. The context is not read."""
        return -((self.scores(values) - 1) ** 2).sum(-1)

    def quadratic(
        self, values: Float[Tensor, "B 79"], context: Float[Tensor, "B C"] | None = None
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B 79"], Float[Tensor, "B 79 79"]]:
        """-log_prob, its gradient, and Gauss-Newton's curvature 2 J^T J of the 25 residuals."""

        def residuals(row: Tensor) -> tuple[Tensor, Tensor]:
            r = self.scores(row[None])[0] - 1
            return r, r

        jacobian, r = torch.func.vmap(torch.func.jacrev(residuals, has_aux=True))(values)
        gradient = 2 * torch.einsum("brd,br->bd", jacobian, r)
        return (r**2).sum(-1), gradient, 2 * jacobian.transpose(-1, -2) @ jacobian

    def sample(
        self,
        count: int,
        context: Float[Tensor, "B C"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B N 79"]:
        """Draws of `gmm` and standard normal betas, thinned by the score: their density times exp(log_prob).

        The score by itself is of no use as a density: nearly all rotations are impossible poses, and the sum of 25
        bounded scores cannot outweigh their number. Each draw is chosen among 32 candidates.
        """
        rows = 1 if context is None else len(context)
        total = rows * count * _CANDIDATES
        pose = self._base.sample(total, generator=generator)[0]
        betas = torch.randn(total, BETAS, generator=generator, dtype=pose.dtype, device=pose.device)
        candidates = torch.cat([pose, betas], 1)
        weights = self.log_prob(candidates).reshape(-1, _CANDIDATES).softmax(-1)
        chosen = torch.multinomial(weights, 1, generator=generator)[:, 0]
        picked = candidates.reshape(-1, _CANDIDATES, self.dims)[torch.arange(len(chosen)), chosen]
        return picked.reshape(rows, count, self.dims)

    def mode(self, context: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "B 79"]:
        """A local maximum of the score, climbed to from the mode of `gmm` with the mean shape."""
        x = torch.cat([self._base.mode(), self._base.mode().new_zeros(1, BETAS)], 1).requires_grad_()
        optimizer = torch.optim.Adam([x], lr=0.01)
        with torch.enable_grad():
            for _ in range(100):
                optimizer.zero_grad()
                (-self.log_prob(x)).sum().backward()
                optimizer.step()
        return x.detach().expand(1 if context is None else len(context), -1)
