"""Layers that the published encoders share."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d


def attention(channels: int) -> nn.Sequential:
    """A weight in (0, 1) for each channel, from all of them."""
    few = channels // 16
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, few, 1), nn.ReLU(), nn.Conv2d(few, channels, 1), nn.Sigmoid()
    )


class Unit(nn.Module):
    """Convolution, batch normalisation, leaky ReLU; each of the latter two may be left out, and without normalisation
    the convolution has a bias. coordinates: two more channels, the row and the column in [-1, 1]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        norm: bool = True,
        active: bool = True,
        coordinates: bool = False,
        padding: Literal["zeros", "reflect"] = "zeros",
    ) -> None:
        super().__init__()
        self.coordinates = coordinates
        self.conv = nn.Conv2d(
            inputs + 2 * coordinates, outputs, kernel, stride, kernel // 2, bias=not norm, padding_mode=padding
        )
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.activation = nn.LeakyReLU(0.2) if active else nn.Identity()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        if self.coordinates:
            rows, columns = (torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[2:])
            grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
            x = torch.cat([x, grid.expand(len(x), -1, -1, -1)], 1)
        return self.activation(self.norm(self.conv(x)))


class Residual(nn.Module):
    """0.2 x + f(x), f narrowing to half the channels."""

    def __init__(self, channels: int, norm: bool = True) -> None:
        super().__init__()
        self.model = nn.Sequential(
            Unit(channels, channels // 2, norm=norm), Unit(channels // 2, channels, norm=norm, active=False)
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return 0.2 * x + self.model(x)


class Residuals(nn.Module):
    """`count` residual blocks, added to their input by the attention of their output."""

    def __init__(self, count: int, channels: int, norm: bool = True) -> None:
        super().__init__()
        self.model = nn.Sequential(*(Residual(channels, norm) for _ in range(count)))
        self.ca = attention(channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        y = self.model(x)
        return x + self.ca(y) * y


class Halving(nn.Module):
    """Half the resolution, twice the channels: two convolutions beside an average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(Unit(channels, channels, stride=2), Unit(channels, channels, active=False))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 2C h w"]:
        return torch.cat([self.model(x), avg_pool2d(x, 3, 2, 1)], 1)


class Dilated(nn.Module):
    """Four convolutions at once that look 1, 2, 4 and 8 pixels far, weighted by attention and added to x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Conv2d(channels, channels // 4, 3, padding=far, dilation=far, padding_mode="reflect")
            for far in (1, 2, 4, 8)
        )
        self.ca = attention(channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        f = torch.cat([self.conv1(x), self.conv2(x), self.conv3(x), self.conv4(x)], 1)
        return x + f * self.ca(f)


class MixedPool(nn.Module):
    """Between the maximum and the mean of each of side x side cells, by a learned weight."""

    def __init__(self, side: int = 1) -> None:
        super().__init__()
        self.side = side
        self.p = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C s s"]:
        share = torch.sigmoid(self.p)
        return share * adaptive_max_pool2d(x, self.side) + (1 - share) * adaptive_avg_pool2d(x, self.side)
