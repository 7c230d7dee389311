"""The four encoders (section 3.2), small enough for a CPU, and the critic.

All read the photo cut out by its mask, and the mask: (B, 4, S, S). Sections and equations are of Zheng et al., "3D
Magic Mirror: Clothing Reconstruction from a Single Image via a Causal Perspective". Normalisation is by groups, so that
a picture's result does not depend on the others in its batch.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import conv2d, grid_sample, interpolate, max_pool2d, normalize

from recon_casl.template import straight_flow
from recon_casl.view import FOCAL, View
from recon_core.geometry.topology import apply_sparse

NEAREST, FARTHEST = 2.0, 6.0
"""Distances of the camera, as published."""
USUAL_DISTANCE = 2.6
"""The distance at which the default prototype fills its crop: where training begins, and texels look straight on."""


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, group normalisation, activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.GroupNorm(min(8, outputs // 4), outputs),
        nn.LeakyReLU(0.1, inplace=True),
    )


class Trunk(nn.Module):
    """Features at a half, quarter, eighth and sixteenth of the picture's side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [4, width, 2 * width, 4 * width, 8 * width]
        self.channels = sizes[1:]
        self.stages = nn.ModuleList(
            nn.Sequential(block(i, o, 2), *([block(o, o)] if level else []))
            for level, (i, o) in enumerate(pairwise(sizes))
        )

    def forward(self, x: Float[Tensor, "B 4 S S"]) -> list[Float[Tensor, "B C h w"]]:
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


class Integration(nn.Module):
    """The integration module: local features at the projected template, the change from a vertex to its neighbours,
    and the global feature (section 3.2, figure 5). enabled False leaves out what is local ("No IM" of table 4)."""

    def __init__(self, channels: list[int], enabled: bool) -> None:
        super().__init__()
        self.local = channels[-2:] if enabled else []
        self.everywhere = channels[-1]
        self.channels = self.everywhere + 3 + 2 * sum(self.local)

    def forward(
        self,
        layer: nn.Linear,
        levels: list[Tensor],
        vertices: Float[Tensor, "V 3"],
        laplacian: Float[Tensor, "V V"],
    ) -> Float[Tensor, "B V C"]:
        """`layer` of the `channels` features of each vertex: global feature, place, local features, and their change.

        The layer goes before the sampling, which is linear too: maps have fewer pixels than the template vertices.
        """
        widths = [self.everywhere, 3] + ([sum(self.local)] * 2 if self.local else [])
        everywhere, place, *local = layer.weight.split(widths, 1)
        y = (levels[-1].mean((2, 3)) @ everywhere.T)[:, None] + (vertices @ place.T + layer.bias)
        if not local:
            return y
        at = vertices[:, :2] * vertices.new_tensor([1.0, -1.0]) * (FOCAL / USUAL_DISTANCE)
        grid = at.expand(len(y), 1, -1, -1)
        kernels = torch.cat(local)[..., None, None].split(self.local, 1)
        sampled = [
            grid_sample(conv2d(x, kernel), grid, align_corners=False, padding_mode="border")[:, :, 0]
            for x, kernel in zip(levels[-2:], kernels, strict=True)
        ]
        own, change = (sampled[0] + sampled[1]).transpose(1, 2).chunk(2, 2)
        return y + own + apply_sparse(laplacian, change)


class ShapeEncoder(nn.Module):
    """Offsets of the template's vertices (equation 1), at most 0.5, of mean 0: where the thing is, is the camera's."""

    def __init__(self, width: int, integration: bool) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        self.integration = Integration(self.trunk.channels, integration)
        self.head = nn.Sequential(
            nn.Linear(self.integration.channels, 128), nn.LeakyReLU(0.1), nn.Linear(128, 64), nn.LeakyReLU(0.1)
        )
        self.out = nn.Linear(64, 3)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Float[Tensor, "B 4 S S"], vertices: Float[Tensor, "V 3"], laplacian: Float[Tensor, "V V"]
    ) -> Float[Tensor, "B V 3"]:
        first, *rest = self.head
        y = self.integration(first, self.trunk(x), vertices, laplacian)
        for layer in rest:
            y = layer(y)
        offset = 0.5 * torch.tanh(self.out(y))
        return offset - offset.mean(1, keepdim=True)


class CameraEncoder(nn.Module):
    """Distance, azimuth, elevation and offset (equation 3)."""

    def __init__(self, width: int, integration: bool, elevations: tuple[float, float]) -> None:
        """elevations: degrees between which cameras stand."""
        super().__init__()
        low, high = (math.radians(v) for v in elevations)
        self.level, self.reach = (low + high) / 2, (high - low) / 2
        self.trunk = Trunk(width)
        self.integration = Integration(self.trunk.channels, integration)
        self.local = nn.Sequential(nn.Linear(self.integration.channels, 64), nn.LeakyReLU(0.1))
        last = nn.Linear(64, 6)
        self.head = nn.Sequential(nn.Linear(self.trunk.channels[-1] + 64, 64), nn.LeakyReLU(0.1), last)
        share = (USUAL_DISTANCE - NEAREST) / (FARTHEST - NEAREST)
        nn.init.normal_(last.weight, std=1e-2)
        nn.init.zeros_(last.bias)
        nn.init.constant_(last.bias[:1], math.log(share / (1 - share)))

    def forward(
        self, x: Float[Tensor, "B 4 S S"], vertices: Float[Tensor, "V 3"], laplacian: Float[Tensor, "V V"]
    ) -> View:
        levels = self.trunk(x)
        local = self.local[1](self.integration(self.local[0], levels, vertices, laplacian)).mean(1)
        raw = self.head(torch.cat([levels[-1].mean((2, 3)), local], 1))
        distance = NEAREST + (FARTHEST - NEAREST) * torch.sigmoid(raw[:, 0])
        ahead = raw.new_tensor([1.0, 0.0])
        azimuth = normalize(raw[:, 1:3] + ahead, dim=1, eps=1e-6)
        return View(distance, azimuth, self.level + self.reach * torch.tanh(raw[:, 3]), torch.tanh(raw[:, 4:6]))


class LightEncoder(nn.Module):
    """Nine spherical-harmonics coefficients (equation 4): even light, up to a sixth of it more or less, and a tenth
    of it from any side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = Trunk(width)
        self.head = nn.Linear(self.trunk.channels[-1], 9)
        nn.init.normal_(self.head.weight, std=1e-2)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Float[Tensor, "B 4 S S"]) -> Float[Tensor, "B 9 1"]:
        raw = torch.tanh(self.head(self.trunk(x)[-1].mean((2, 3))))
        # As published, 3 + 0.5 tanh and 0.1 tanh; the first harmonic is 0.282, so even light is 0.85.
        even = raw.new_tensor([3.0] + [0.0] * 8)
        reach = raw.new_tensor([0.5] + [0.1] * 8)
        return (even + reach * raw)[..., None]


class TextureEncoder(nn.Module):
    """A U-Net whose picture is the flow: where in the photo each texel of the front half has its colour (equation 5).

    The flow is a change of where an undeformed template would have it. The back half is the front half's mirror.
    """

    def __init__(self, width: int, size: int, half_extent: tuple[float, float]) -> None:
        """half_extent: half the template's size along x and y."""
        super().__init__()
        shown = FOCAL / USUAL_DISTANCE
        self.extent = (half_extent[0] * shown, half_extent[1] * shown)
        self.trunk = Trunk(width)
        channels = self.trunk.channels
        self.up = nn.ModuleList(
            block(below + here, here) for below, here in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.out = nn.Conv2d(channels[0], 2, 3, padding=1)
        for start in self.out.parameters():
            nn.init.zeros_(start)
        self.size = size

    def flow(self, x: Float[Tensor, "B 4 S S"]) -> Float[Tensor, "B 2 H W"]:
        """x to the right, y down, in [-1, 1] over the photo."""
        levels = self.trunk(x)
        y = levels[-1]
        for up, skip in zip(self.up, levels[-2::-1], strict=True):
            y = up(torch.cat([interpolate(y, scale_factor=2.0, mode="nearest"), skip], 1))
        change = interpolate(self.out(y), (self.size, self.size), mode="bilinear", align_corners=False)
        straight = straight_flow(self.size, self.size, self.extent).to(x)
        return (straight + change).clamp(-1, 1)

    def forward(self, x: Float[Tensor, "B 4 S S"]) -> Float[Tensor, "B 3 2H W"]:
        return texture(x, self.flow(x))


def texture(cut: Float[Tensor, "B 4 S S"], flow: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B 3 2H W"]:
    """The map: the colours of the thing where the flow points, and their mirror image below. cut: the photo on black,
    and the mask; where the flow misses the thing, it finds the colours nearest to there."""
    front = grid_sample(grown(cut), flow.permute(0, 2, 3, 1), align_corners=False, padding_mode="border")
    return torch.cat([front, front.flip(2)], 2)


def grown(cut: Float[Tensor, "B 4 S S"]) -> Float[Tensor, "B 3 S S"]:
    """The thing's colours carried on beyond its mask, along each row from its nearest pixel, so that a side takes the
    colours that the rim has at its height; rows without any take those of the nearest row."""
    mask = cut[:, 3:]
    own = cut[:, :3] / mask.clamp(min=1e-4)
    # Pixels of the rim are half background in a photo: the colours start one pixel further in, where there is one.
    eroded = 1 - max_pool2d(1 - mask, 3, stride=1, padding=1)
    most = eroded.amax((2, 3), keepdim=True) >= 0.5
    inside = torch.where(most, eroded >= 0.5, mask >= 0.5 * mask.amax((2, 3), keepdim=True))
    row = own.gather(3, nearest(inside).expand_as(own))
    whole = row.gather(2, nearest(inside.any(3, keepdim=True).mT).mT.expand_as(own))
    return torch.where(inside, own, whole)


def nearest(there: Bool[Tensor, "*B W"]) -> Int[Tensor, "*B W"]:
    """Index along the last axis of the nearest true entry; that of the first entry where there is none."""
    count = there.shape[-1]
    index = torch.arange(count, device=there.device).expand(there.shape)
    before = torch.where(there, index, -count).cummax(-1).values
    after = -torch.where(there, -index, -3 * count).flip(-1).cummax(-1).values.flip(-1)
    chosen = torch.where(index - before <= after - index, before, after)
    return torch.where(there.any(-1, keepdim=True), chosen, 0)


class Critic(nn.Module):
    """Scores photo and mask, (B, 4, S, S), higher for real ones (equation 8, by Wasserstein's game)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [4, width, 2 * width, 4 * width, 4 * width]
        self.layers = nn.Sequential(
            *[layer for i, o in pairwise(sizes) for layer in (nn.Conv2d(i, o, 4, 2, 1), nn.LeakyReLU(0.2))],
            nn.Conv2d(sizes[-1], 1, 3, 1, 1),
        )

    def forward(self, x: Float[Tensor, "B 4 S S"]) -> Float[Tensor, "B 1"]:
        return self.layers(x).mean((2, 3))
