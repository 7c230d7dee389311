"""HRNet, small: several resolutions side by side that exchange their features again and again.

Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", PAMI 2020, with the classification
head of its appendix but without the classifier. Entries are named as in timm, whose HRNet the published encoders use.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu
from torchvision.models.resnet import BasicBlock, Bottleneck

_HEAD = (32, 64, 128, 256)
"""Widths of the head's bottlenecks, whose outputs are four times as wide."""


def _unit(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, active: bool = True, bias: bool = False
) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU()) if active else nn.Sequential(*layers)


def _bottlenecks(inputs: int, width: int, count: int) -> nn.Sequential:
    outputs = width * Bottleneck.expansion
    first = Bottleneck(inputs, width, downsample=_unit(inputs, outputs, 1, active=False))
    return nn.Sequential(first, *(Bottleneck(outputs, width) for _ in range(count - 1)))


class _Exchange(nn.Module):
    """Residual blocks at each resolution, then every resolution gets the sum of all, resampled to it."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(BasicBlock(w, w), BasicBlock(w, w)) for w in widths)
        places = range(len(widths))
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(widths, source, target) for source in places) for target in places
        )

    @staticmethod
    def _path(widths: tuple[int, ...], source: int, target: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            return nn.Sequential(
                *_unit(widths[source], widths[target], 1, active=False),
                nn.Upsample(scale_factor=2.0 ** (source - target)),
            )
        steps = [widths[source]] * (target - source) + [widths[target]]
        last = len(steps) - 2
        return nn.Sequential(*(_unit(i, o, stride=2, active=k < last) for k, (i, o) in enumerate(pairwise(steps))))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        levels = [branch(x) for branch, x in zip(self.branches, levels, strict=True)]
        return [relu(self._sum(row, levels)) for row in self.fuse_layers]

    @staticmethod
    def _sum(row: nn.Module, levels: list[Tensor]) -> Tensor:
        assert isinstance(row, nn.ModuleList)
        return torch.stack([path(x) for path, x in zip(row, levels, strict=True)]).sum(0)


class HRNet(nn.Module):
    """(B, inputs, H, W) to (B, 2048, H / 32, W / 32).

    first: number and width of the bottlenecks before the first exchange. width: of the finest resolution; each coarser
    one is twice as wide. exchanges: their number with two, three and four resolutions.
    """

    channels = 2048

    def __init__(self, inputs: int, first: tuple[int, int], width: int, exchanges: tuple[int, int, int]) -> None:
        super().__init__()
        widths = tuple(width * 2**k for k in range(4))
        count, narrow = first
        self.conv1, self.bn1 = nn.Conv2d(inputs, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        self.layer1 = _bottlenecks(64, narrow, count)
        wide = narrow * Bottleneck.expansion
        self.transition1 = nn.ModuleList([_unit(wide, widths[0]), nn.Sequential(_unit(wide, widths[1], stride=2))])
        self.transition2, self.transition3 = (
            nn.ModuleList([nn.Identity()] * n + [nn.Sequential(_unit(widths[n - 1], widths[n], stride=2))])
            for n in (2, 3)
        )
        self.stage2, self.stage3, self.stage4 = (
            nn.Sequential(*(_Exchange(widths[:n]) for _ in range(k))) for n, k in zip((2, 3, 4), exchanges, strict=True)
        )
        out = [w * Bottleneck.expansion for w in _HEAD]
        self.incre_modules = nn.ModuleList(_bottlenecks(i, w, 1) for i, w in zip(widths, _HEAD, strict=True))
        self.downsamp_modules = nn.ModuleList(_unit(i, o, stride=2, bias=True) for i, o in pairwise(out))
        self.final_layer = _unit(out[-1], self.channels, 1, bias=True)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 2048 h w"]:
        x = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
        x = self.layer1(x)
        levels = self.stage2([step(x) for step in self.transition1])
        levels = self.stage3([*levels, self.transition2[-1](levels[-1])])
        levels = self.stage4([*levels, self.transition3[-1](levels[-1])])
        wide = [widen(level) for widen, level in zip(self.incre_modules, levels, strict=True)]
        y = wide[0]
        for reduce, level in zip(self.downsamp_modules, wide[1:], strict=True):
            y = level + reduce(y)
        return self.final_layer(y)


def hrnet_w18_small_v2(inputs: int) -> HRNet:
    return HRNet(inputs, (2, 64), 18, (1, 3, 2))


def hrnet_w18_small(inputs: int) -> HRNet:
    return HRNet(inputs, (1, 32), 16, (1, 1, 1))
