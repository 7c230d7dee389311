"""The conditional normalising flow of ProHMR: Glow with additive couplings (thesis, section 4.3.3, figures 33-35).

Data x and latent z have the same D numbers. Towards the latent, each of the building blocks applies
activation normalisation, a linear map kept as its LU factors, and an additive coupling; towards the data the
inverses in reverse order. No step's Jacobian determinant depends on x, so the density's mode is the image of z = 0
(equation 4.4).

Values are (B, N, D) here: N vectors for each of the B rows of the context (B, C).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from recon_core.interfaces import Prior


class ActNorm(nn.Module):
    """Scale and shift per dimension, set from the first data seen (Glow, section 3.1; equation 4.3's f_norm)."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dims))
        self.shift = nn.Parameter(torch.zeros(dims))

    @torch.no_grad()
    def initialize(self, values: Float[Tensor, "N D"]) -> None:
        """Give `values` zero mean and unit deviation per dimension on their way to the latent."""
        deviation = values.std(0).clamp_min(1e-3)
        self.log_scale.copy_(-deviation.log())
        self.shift.copy_(-values.mean(0) / deviation)

    def log_det(self, context: Tensor | None = None) -> Float[Tensor, ""]:
        return self.log_scale.sum()

    def to_latent(self, x: Float[Tensor, "*B D"], context: Tensor | None = None) -> Float[Tensor, "*B D"]:
        return x * self.log_scale.exp() + self.shift

    def to_data(self, z: Float[Tensor, "*B D"], context: Tensor | None = None) -> Float[Tensor, "*B D"]:
        return (z - self.shift) * (-self.log_scale).exp()

    def push(self, rows: Float[Tensor, "B T D"], z: Tensor, context: Tensor | None) -> Float[Tensor, "B T D"]:
        """Tangent vectors at z, as rows, carried towards the data."""
        return rows * (-self.log_scale).exp()


class LULinear(nn.Module):
    """x -> L U x + b, L unit lower triangular, U upper triangular with diagonal softplus(.) + 1e-3."""

    lower_index: Tensor
    upper_index: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        count = dims * (dims - 1) // 2
        self.bias = nn.Parameter(torch.zeros(dims))
        self.lower_entries = nn.Parameter(torch.zeros(count))
        self.upper_entries = nn.Parameter(torch.zeros(count))
        # softplus(this) + 1e-3 = 1: the map begins as the identity.
        self.unconstrained_upper_diag = nn.Parameter(torch.full((dims,), math.log(math.expm1(1 - 1e-3))))
        self.register_buffer("lower_index", torch.tril_indices(dims, dims, -1), persistent=False)
        self.register_buffer("upper_index", torch.triu_indices(dims, dims, 1), persistent=False)
        self._kept: tuple[tuple[tuple[int, int], ...], Tensor] | None = None

    @property
    def diagonal(self) -> Float[Tensor, " D"]:
        return F.softplus(self.unconstrained_upper_diag) + 1e-3

    def factors(self) -> tuple[Float[Tensor, "D D"], Float[Tensor, "D D"]]:
        """L and U."""
        lower = torch.diag(torch.ones_like(self.bias)).index_put(tuple(self.lower_index), self.lower_entries)
        upper = torch.diag(self.diagonal).index_put(tuple(self.upper_index), self.upper_entries)
        return lower, upper

    def inverse(self) -> Float[Tensor, "D D"]:
        """(L U)^-1, which is cheaper than a triangular solve per vector: many vectors share it.

        Kept while no gradient is wanted and the parameters stay as they are: fits ask for it dozens of times.
        """
        if torch.is_grad_enabled():
            return self._inverse()
        state = tuple((p.data_ptr(), p._version) for p in self.parameters())
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self._inverse()
        return self._kept[1]

    def _inverse(self) -> Float[Tensor, "D D"]:
        lower, upper = self.factors()
        eye = torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
        half = torch.linalg.solve_triangular(lower, eye, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, half, upper=True)

    def log_det(self, context: Tensor | None = None) -> Float[Tensor, ""]:
        return self.diagonal.log().sum()

    # Never in half precision: where the density is narrow, the map magnifies what rounding leaves.
    def to_latent(self, x: Float[Tensor, "*B D"], context: Tensor | None = None) -> Float[Tensor, "*B D"]:
        with torch.autocast(x.device.type, enabled=False):
            lower, upper = self.factors()
            return F.linear(x, lower @ upper, self.bias)

    def to_data(self, z: Float[Tensor, "*B D"], context: Tensor | None = None) -> Float[Tensor, "*B D"]:
        with torch.autocast(z.device.type, enabled=False):
            return F.linear(z - self.bias, self.inverse())

    def push(self, rows: Float[Tensor, "B T D"], z: Tensor, context: Tensor | None) -> Float[Tensor, "B T D"]:
        return F.linear(rows, self.inverse())


class ResidualBlock(nn.Module):
    """x + Linear(act(Linear(act(x)))), act = ReLU after batch normalisation if there is any (figure 35)."""

    linear_layers: Any  # nn.ModuleList of nn.Linear
    batch_norm_layers: Any  # nn.ModuleList of nn.BatchNorm1d

    def __init__(self, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.linear_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        if batch_norm:
            self.batch_norm_layers = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(2))
        self.batch_norm = batch_norm
        # The block begins near the identity.
        nn.init.uniform_(self.linear_layers[1].weight, -1e-3, 1e-3)
        nn.init.uniform_(self.linear_layers[1].bias, -1e-3, 1e-3)

    def _normalize(self, layer: int, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        return self.batch_norm_layers[layer](x.flatten(0, 1)).view_as(x) if self.batch_norm else x

    def forward(self, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        y = self.linear_layers[0](self._normalize(0, x).relu())
        return x + self.linear_layers[1](self._normalize(1, y).relu())

    def push(
        self, x: Float[Tensor, "B 1 W"], rows: Float[Tensor, "B T W"]
    ) -> tuple[Float[Tensor, "B 1 W"], Float[Tensor, "B T W"]]:
        """The block's value at x and tangent vectors at x, as rows, carried through it. Evaluation mode only."""
        y, pushed = x, rows
        for layer, linear in enumerate(self.linear_layers):
            before = self._normalize(layer, y)
            slope = (before > 0).to(y.dtype)
            if self.batch_norm:
                norm = self.batch_norm_layers[layer]
                slope = slope * norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            y = linear(before.relu())
            pushed = F.linear(pushed * slope, linear.weight)
        return x + y, rows + pushed


class ResidualNet(nn.Module):
    """The translation t of a coupling: the context is concatenated to the input at the first layer only."""

    blocks: Any  # nn.ModuleList of ResidualBlock

    def __init__(self, inputs: int, context: int, outputs: int, width: int, blocks: int, batch_norm: bool) -> None:
        super().__init__()
        self.inputs = inputs
        self.initial_layer = nn.Linear(inputs + context, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, batch_norm) for _ in range(blocks))
        self.final_layer = nn.Linear(width, outputs)

    def _initial(self, x: Float[Tensor, "B N I"], context: Float[Tensor, "B C"] | None) -> Float[Tensor, "B N W"]:
        # The context's share of the first layer is the same for all N vectors: computed once.
        weight, bias = self.initial_layer.weight, self.initial_layer.bias
        if context is None:
            return F.linear(x, weight, bias)
        shared = F.linear(context, weight[:, self.inputs :], bias)
        return F.linear(x, weight[:, : self.inputs]) + shared[:, None]

    def forward(self, x: Float[Tensor, "B N I"], context: Float[Tensor, "B C"] | None) -> Float[Tensor, "B N O"]:
        h = self._initial(x, context)
        for block in self.blocks:
            h = block(h)
        return self.final_layer(h)

    def push(
        self, x: Float[Tensor, "B 1 I"], rows: Float[Tensor, "B T I"], context: Float[Tensor, "B C"] | None
    ) -> Float[Tensor, "B T O"]:
        """Tangent vectors at x, as rows, carried through the net."""
        h = self._initial(x, context)
        rows = F.linear(rows, self.initial_layer.weight[:, : self.inputs])
        for block in self.blocks:
            h, rows = block.push(h, rows)
        return F.linear(rows, self.final_layer.weight)


class AdditiveCoupling(nn.Module):
    """Half of the numbers is kept; a function of them and of the context is added to the other half (figure 34).

    moves: 1 moves the numbers at odd positions (0-based), 0 those at even positions.
    """

    def __init__(self, dims: int, context: int, width: int, blocks: int, moves: int, batch_norm: bool) -> None:
        super().__init__()
        self.kept, self.moved = slice(1 - moves, None, 2), slice(moves, None, 2)
        kept = len(range(dims)[self.kept])
        self.transform_net = ResidualNet(kept, context, dims - kept, width, blocks, batch_norm)

    def log_det(self, context: Tensor | None = None) -> float:
        return 0.0

    def _shifted(self, x: Float[Tensor, "B N D"], context: Tensor | None, sign: int) -> Float[Tensor, "B N D"]:
        out = x.clone()
        out[..., self.moved] += sign * self.transform_net(x[..., self.kept], context).to(x.dtype)
        return out

    def to_latent(self, x: Float[Tensor, "B N D"], context: Tensor | None = None) -> Float[Tensor, "B N D"]:
        return self._shifted(x, context, 1)

    def to_data(self, z: Float[Tensor, "B N D"], context: Tensor | None = None) -> Float[Tensor, "B N D"]:
        return self._shifted(z, context, -1)

    def push(self, rows: Float[Tensor, "B T D"], z: Float[Tensor, "B 1 D"], context: Tensor | None) -> Tensor:
        out = rows.clone()
        # Through the net's own Jacobian, so that the cost does not depend on the number of rows.
        half = len(range(rows.shape[-1])[self.kept])
        eye = torch.eye(half, dtype=rows.dtype, device=rows.device).expand(len(z), half, half)
        jacobian = self.transform_net.push(z[..., self.kept], eye, context)
        out[..., self.moved] -= rows[..., self.kept] @ jacobian
        return out


class ContextScale(nn.Module):
    """Scale per dimension by a function of the context alone: how sure the density is may depend on what was seen.

    Not in the thesis, whose flow has the same volume for every context, and so is as unsure of a person in full view
    as it is on average. Like all else here its determinant is free of x, so that the mode stays f(0; c).
    """

    limit = 3.0
    """Bound of the logarithm of the scale."""

    def __init__(self, dims: int, context: int) -> None:
        super().__init__()
        self.scale = nn.Linear(context, dims)
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.scale.bias)

    def log_scale(self, context: Float[Tensor, "B C"]) -> Float[Tensor, "B D"]:
        with torch.autocast(context.device.type, enabled=False):
            return self.limit * torch.tanh(self.scale(context) / self.limit)

    def log_det(self, context: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
        return self.log_scale(context).sum(-1)

    def to_latent(self, x: Float[Tensor, "B N D"], context: Float[Tensor, "B C"]) -> Float[Tensor, "B N D"]:
        return x * self.log_scale(context).exp()[:, None]

    def to_data(self, z: Float[Tensor, "B N D"], context: Float[Tensor, "B C"]) -> Float[Tensor, "B N D"]:
        return z * (-self.log_scale(context)).exp()[:, None]

    def push(self, rows: Float[Tensor, "B T D"], z: Tensor, context: Float[Tensor, "B C"]) -> Float[Tensor, "B T D"]:
        return self.to_data(rows, context)


class ConditionalGlow(Prior):
    """p(x | context) of D numbers as a flow from a standard normal (equations 4.1-4.4).

    dims: D. context: C, 0 for none. blocks: building blocks (the thesis: 4), width and residual_blocks: of the
    couplings' residual nets (1024, 2). batch_norm: normalise inside the residual nets, as the published networks
    do; without it a row of a training batch does not depend on the others. context_scale: a last step that is not in
    the thesis, see `ContextScale`.
    """

    transforms: Any  # nn.ModuleList of ActNorm, LULinear, AdditiveCoupling and ContextScale

    def __init__(
        self,
        dims: int,
        context: int,
        blocks: int = 4,
        width: int = 1024,
        residual_blocks: int = 2,
        batch_norm: bool = True,
        context_scale: bool = False,
    ) -> None:
        super().__init__()
        self.dims = dims
        self.transforms = nn.ModuleList()
        for k in range(blocks):
            coupling = AdditiveCoupling(dims, context, width, residual_blocks, (k + 1) % 2, batch_norm)
            self.transforms.extend([ActNorm(dims), LULinear(dims), coupling])
        if context_scale:
            self.transforms.append(ContextScale(dims, context))

    @torch.no_grad()
    def initialize(self, values: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None = None) -> None:
        """Set every activation normalisation from data, once, before training (Glow, section 3.1)."""
        x = values[:, None]
        for transform in self.transforms:
            if isinstance(transform, ActNorm):
                transform.initialize(x[:, 0])
            x = transform.to_latent(x, context)

    def encode(
        self, values: Float[Tensor, "B N D"], context: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """The latent z of values."""
        for transform in self.transforms:
            values = transform.to_latent(values, context)
        return values

    def decode(self, z: Float[Tensor, "B N D"], context: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "B N D"]:
        """The values f(z; context)."""
        for transform in reversed(self.transforms):
            z = transform.to_data(z, context)
        return z

    def jacobian(self, z: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "B D D"]:
        """d decode(z) / d z. Evaluation mode only: with batch statistics a row depends on the others."""
        z = z[:, None]
        rows = torch.eye(self.dims, dtype=z.dtype, device=z.device).expand(len(z), -1, -1)
        for transform in reversed(self.transforms):
            rows = transform.push(rows, z, context)
            z = transform.to_data(z, context)
        return rows.transpose(1, 2)

    def log_det(self, context: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "..."]:
        """ln |det d z / d x|, the same for all x: (B,) with `context_scale`, else one number for all contexts."""
        return torch.as_tensor(sum(transform.log_det(context) for transform in self.transforms))

    def latent_log_prob(
        self, z: Float[Tensor, "B N D"], context: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, "B N"]:
        """ln p(decode(z)), equation 4.2: -|z|^2 / 2 - D ln(2 pi) / 2 + log_det."""
        standard = -0.5 * (z.square().sum(-1) + self.dims * math.log(2 * math.pi))
        return standard + self.log_det(context).reshape(-1, 1)

    def log_prob(
        self, values: Float[Tensor, "B D"], context: Float[Tensor, "B C"] | None = None
    ) -> Float[Tensor, " B"]:
        return self.latent_log_prob(self.encode(values[:, None], context), context)[:, 0]

    def sample(
        self, count: int, context: Float[Tensor, "B C"] | None = None, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B N D"]:
        """Draws on the generator's device, so that a CPU generator gives the same draws whatever the model's."""
        shift = self.transforms[0].shift
        rows = 1 if context is None else len(context)
        device = shift.device if generator is None else generator.device
        z = torch.randn(rows, count, self.dims, generator=generator, device=device, dtype=shift.dtype)
        return self.decode(z.to(shift.device), context)

    def mode(self, context: Float[Tensor, "B C"] | None = None) -> Float[Tensor, "B D"]:
        """f(0; context), equation 4.4."""
        shift = self.transforms[0].shift
        zero = shift.new_zeros(1 if context is None else len(context), 1, self.dims)
        return self.decode(zero, context)[:, 0]
