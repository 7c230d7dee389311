"""What a regressor reads of a trunk's features: besides their mean, joints found in the picture."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from recon_core.skeletons import LSP14
from recon_std.encoders.images import PyramidEncoder

WIDTH, HIDDEN, LIFT = 128, 1024, 512
"""Channels of the map that joints are found in, and the inner and the last features of what reads their places."""


class Joints(NamedTuple):
    """lift: (B, LIFT) features for the regressor, of where the joints are. log_maps: (B, 14, h, w) logarithm of the
    share of each place of the crop in where a joint of lsp14 is. points: (B, 14, 2) its mean place, in sides of the
    crop from its upper left corner."""

    lift: Float[Tensor, "B M"]
    log_maps: Float[Tensor, "B 14 h w"]
    points: Float[Tensor, "B 14 2"]


class JointPooling(nn.Module):
    """A map for each joint of lsp14, and features of the joints' places.

    The place of a joint is the mean over a softmax of its map (integral regression: Sun et al., ECCV 2018, equation
    2). The places go through a perceptron, since the regressor that reads them has no activations of its own. It reads
    nothing else, so that it can learn from people who are not in any picture.
    """

    def __init__(self, trunk: PyramidEncoder) -> None:
        super().__init__()
        joints = len(LSP14)
        self.middle = nn.Conv2d(trunk.middle_channels, WIDTH, 1, bias=False)
        self.last = nn.Conv2d(trunk.channels, WIDTH, 1, bias=False)
        self.map = nn.Sequential(
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH, bias=False),
            nn.Conv2d(WIDTH, WIDTH, 1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
        )
        self.heat = nn.Conv2d(WIDTH, joints, 1)
        self.places = nn.Sequential(
            nn.Linear(2 * joints, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, LIFT),
            nn.ReLU(),
        )

    def forward(self, middle: Float[Tensor, "B M h w"], last: Float[Tensor, "B C h2 w2"]) -> Joints:
        height, width = middle.shape[-2:]
        above = F.interpolate(self.last(last), (height, width), mode="bilinear", align_corners=False)
        found = self.map(self.middle(middle) + above)
        log_maps = self.heat(found).flatten(2).log_softmax(-1)
        points = log_maps.exp() @ _centers(height, width).to(log_maps)
        return Joints(self.lift(points), log_maps.unflatten(2, (height, width)), points)

    def lift(self, points: Float[Tensor, "B 14 2"]) -> Float[Tensor, "B M"]:
        """Features of joints, given in sides of the crop from its upper left corner."""
        return self.places(4 * (points - 0.5).flatten(1))


def map_error(
    log_maps: Float[Tensor, "B J h w"], points: Float[Tensor, "B J 2"], confidence: Float[Tensor, "B J"]
) -> Float[Tensor, " B"]:
    """Cross-entropy of maps from labelled points, the mean over the joints weighted by their confidence.

    points: in sides of the crop; each is spread over the four places about it. One outside the crop does not count.
    """
    height, width = log_maps.shape[-2:]
    place = points * points.new_tensor([width, height]) - 0.5
    inside = ((points >= 0) & (points < 1)).all(-1)
    weight = confidence * inside
    low = torch.where(inside[..., None], place, torch.zeros_like(place)).floor()
    share = place - low
    total = torch.zeros_like(confidence)
    flat = log_maps.flatten(2)
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = (low[..., 0] + dx).clamp(0, width - 1), (low[..., 1] + dy).clamp(0, height - 1)
            part = (share[..., 0] if dx else 1 - share[..., 0]) * (share[..., 1] if dy else 1 - share[..., 1])
            value = flat.gather(2, (y * width + x).long()[..., None])[..., 0]
            total = total - torch.where(weight > 0, part * value, torch.zeros_like(value))
    return (weight * total).sum(1) / weight.sum(1).clamp_min(1e-6)


def _centers(height: int, width: int) -> Float[Tensor, "N 2"]:
    """x, y of the places of a map, row by row, in [0, 1] of its extent."""
    y, x = ((torch.arange(n) + 0.5) / n for n in (height, width))
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)
