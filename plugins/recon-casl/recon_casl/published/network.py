"""The published encoders of camera, shape, texture, light and background, as in their checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import grid_sample
from torchvision.models import resnet34

from recon_casl.published.hrnet import HRNet, hrnet_w18_small, hrnet_w18_small_v2
from recon_casl.published.layers import Dilated, Halving, MixedPool, Residuals, Unit, attention

MEAN, STD = (0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 1.0)
"""Of red, green, blue and mask: the encoders normalise by themselves."""


@dataclass(frozen=True)
class Ranges:
    """What the camera encoder's numbers span: distances, and elevations in degrees. Defaults as published."""

    distance: tuple[float, float] = (2.0, 6.0)
    elevation: tuple[float, float] = (-25.0, 25.0)


@dataclass(frozen=True)
class PublishedAttributes:
    """azimuth, elevation: (B,) degrees; the camera stands at distance (cos e sin a, sin e, cos e cos a) from the origin
    and looks at (offset, 0). offsets: (B, V, 3) from the template. light: (B, 9). flow: (B, 2, H, W) in [-1, 1], x to
    the right and y down, -1 and 1 the middles of the outermost pixels. texture: (B, 3, 2H, W), the front above its
    mirror image. background: (B, 3, H, W) in [0, 1]."""

    azimuth: Float[Tensor, " B"]
    elevation: Float[Tensor, " B"]
    distance: Float[Tensor, " B"]
    offset: Float[Tensor, "B 2"]
    offsets: Float[Tensor, "B V 3"]
    light: Float[Tensor, "B 9"]
    flow: Float[Tensor, "B 2 H W"]
    texture: Float[Tensor, "B 3 H2 W"]
    background: Float[Tensor, "B 3 H W"]


class Plain(nn.Module):
    """The camera's own trunk, to a sixteenth of the resolution."""

    channels = 288

    def __init__(self) -> None:
        super().__init__()
        self.layer3 = nn.Sequential(
            Unit(4, 36, 5, 2, norm=False, coordinates=True),
            Halving(36),
            Residuals(1, 72),
            Halving(72),
            Residuals(3, 144),
        )
        self.layer4 = nn.Sequential(Halving(144), Residuals(3, 288))
        self.layer5 = nn.Sequential(Residuals(3, 288))

    def forward(self, x: Float[Tensor, "B 4 H W"]) -> Float[Tensor, "B 288 h w"]:
        coarse = self.layer4(self.layer3(x))
        return coarse + self.layer5(coarse)


class Attended(nn.Module):
    """HRNet, its channels weighted by attention."""

    channels = HRNet.channels

    def __init__(self, model: HRNet) -> None:
        super().__init__()
        self.model = model
        self.ca = attention(self.channels)

    def forward(self, x: Float[Tensor, "B 4 H W"]) -> Float[Tensor, "B 2048 h w"]:
        y = self.model(x)
        return y * self.ca(y)


class CameraEncoder(nn.Module):
    """Where the camera stands."""

    def __init__(self, trunk: Plain | Attended, ranges: Ranges) -> None:
        super().__init__()
        self.encoder1 = trunk
        self.ranges = ranges
        self.avgpool1, self.avgpool2 = MixedPool(2), MixedPool(2)
        self.linear1, self.linear2, self.linear3 = (
            nn.Sequential(nn.Linear(8 * trunk.channels, 128), nn.BatchNorm1d(128), nn.Dropout(0.2), nn.Linear(128, 2))
            for _ in range(3)
        )

    def forward(
        self, x: Float[Tensor, "B 4 H W"], template: Float[Tensor, "V 3"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Azimuth, elevation, distance, offset."""
        features = self.encoder1(x)
        local = sampled(features, template, align_corners=False)
        both = torch.cat([self.avgpool1(features), self.avgpool2(local)], 1).flatten(1)
        far, around, offset = self.linear1(both), self.linear2(both), self.linear3(both)
        share = torch.sigmoid(far)
        distance, elevation = (
            low + (high - low) * share[:, k]
            for k, (low, high) in enumerate((self.ranges.distance, self.ranges.elevation))
        )
        azimuth = -torch.atan2(around[:, 1], around[:, 0]) * (180 / math.pi)
        return azimuth, elevation, distance, torch.tanh(offset)


class ShapeEncoder(nn.Module):
    """Offsets of the template's vertices, at most 0.5 before their mean is taken away."""

    def __init__(self, vertices: int) -> None:
        super().__init__()
        self.mmpool = MixedPool()
        self.encoder1 = Attended(hrnet_w18_small_v2(4))
        self.encoder2 = nn.Sequential(
            nn.Conv1d(3 * HRNet.channels + 3, 256, 1),
            nn.BatchNorm1d(256),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.2),
            nn.Conv1d(256, 3, 1),
            nn.BatchNorm1d(3),
        )
        self.linear3 = nn.Linear(3 * vertices, 3 * vertices)

    def forward(
        self, x: Float[Tensor, "B 4 H W"], template: Float[Tensor, "V 3"], laplacian: Float[Tensor, "V V"]
    ) -> Float[Tensor, "B V 3"]:
        features = self.encoder1(x)
        local = sampled(features, template, align_corners=True)[..., 0]
        everywhere = self.mmpool(features)[..., 0].expand_as(local)
        # The published code multiplies from the right: the transpose acts.
        change = (laplacian.mT @ local.mT).mT
        places = template.mT.expand(len(x), -1, -1)
        y = self.encoder2(torch.cat([local, everywhere, change, places], 1))
        offsets = 0.5 * torch.tanh(self.linear3(y.mT.flatten(1))).unflatten(1, (-1, 3))
        return offsets - offsets.mean(1, keepdim=True)


def sampled(
    features: Float[Tensor, "B C h w"], template: Float[Tensor, "V 3"], align_corners: bool
) -> Float[Tensor, "B C V 1"]:
    """Features where the template's x and y fall; y points down here, as in the published code."""
    grid = template[None, :, None, :2].expand(len(features), -1, -1, -1)
    return grid_sample(features, grid, align_corners=align_corners)


class Pyramid(nn.Module):
    """From coarse to fine and back (after Tan et al., "EfficientDet", CVPR 2020, figure 2d, with fixed weights).

    Levels have 64, 128, 256 and 512 channels, finest first. The last pyramid gives the finest level only.
    """

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.up1, self.up2, self.up3 = (_doubling(i, o) for i, o in ((512, 256), (256, 128), (128, 64)))
        self.last = last
        if not last:
            self.up4 = nn.Sequential(Unit(64, 64))
            self.down1, self.down2, self.down3 = (Unit(i, 2 * i, stride=2) for i in (64, 128, 256))

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        a, b, c, d = levels
        c2 = self.up1(d) + 0.2 * c
        b2 = self.up2(c2) + 0.2 * b
        a2 = self.up3(b2) + 0.2 * a
        if self.last:
            return [a2]
        a = a + 0.2 * self.up4(a2)
        b = b + 0.2 * (b2 + self.down1(a))
        c = c + 0.2 * (c2 + self.down2(b))
        return [a, b, c, d + 0.2 * self.down3(c)]


def _doubling(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Unit(inputs, outputs), nn.Upsample(scale_factor=2.0))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bifpn1, self.bifpn2, self.bifpn3 = Pyramid(), Pyramid(), Pyramid(last=True)
        self.up5, self.up5a = (
            nn.Sequential(Unit(i, o), Dilated(o), nn.Upsample(scale_factor=2.0)) for i, o in ((64, 32), (32, 16))
        )
        self.up6 = nn.Sequential(Unit(16, 2, 5, norm=False, active=False, padding="reflect"), nn.Hardtanh())

    def forward(self, levels: list[Tensor]) -> Float[Tensor, "B 2 H W"]:
        (finest,) = self.bifpn3(self.bifpn2(self.bifpn1(levels)))
        return self.up6(self.up5a(self.up5(finest)))


class TextureEncoder(nn.Module):
    """ResNet-34 and a decoder that gives the flow."""

    def __init__(self) -> None:
        super().__init__()
        trunk = resnet34(weights=None)
        self.block1 = nn.Sequential(nn.Conv2d(4, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.block2 = nn.Sequential(trunk.maxpool, trunk.layer1)
        self.block3, self.block4, self.block5 = trunk.layer2, trunk.layer3, trunk.layer4
        self.decoder = Decoder()

    def forward(self, x: Float[Tensor, "B 4 H W"]) -> Float[Tensor, "B 2 H W"]:
        levels = [self.block2(self.block1(x))]
        for block in (self.block3, self.block4, self.block5):
            levels.append(block(levels[-1]))
        return self.decoder(levels)


class LightEncoder(nn.Module):
    """Nine spherical-harmonics coefficients."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder1 = nn.Sequential(
            Unit(4, 32, 5, 2, coordinates=True),
            Unit(32, 64, 5, 2, coordinates=True),
            Unit(64, 96, 5, 2),
            Unit(96, 192, 5, 2),
            Unit(192, 96, 5, 2),
            MixedPool(),
        )
        self.encoder2 = nn.Sequential(nn.Linear(96, 48), nn.BatchNorm1d(48))
        self.linear3 = nn.Linear(48, 9)

    def forward(self, x: Float[Tensor, "B 4 H W"]) -> Float[Tensor, "B 9"]:
        raw = torch.tanh(self.linear3(self.encoder2(self.encoder1(x).flatten(1))))
        return raw * raw.new_tensor([0.5] + [0.1] * 8) + raw.new_tensor([3.0] + [0.0] * 8)


class BackgroundEncoder(nn.Module):
    """The photo without the thing."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            Unit(3, 32, 3, 2, norm=False, active=False),
            Residuals(3, 32, norm=False),
            nn.Upsample(scale_factor=2.0),
            nn.Dropout2d(0.1),
            Unit(32, 3, norm=False, active=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Float[Tensor, "B 4 H W"]) -> Float[Tensor, "B 3 H W"]:
        return self.encoder(x[:, :3] * (1 - x[:, 3:]))


class PublishedEncoders(nn.Module):
    """All five. photos: (B, 4, H, W), the whole photo and the thing's mask in [0, 1]; H and W multiples of 32.

    attended: the camera has an HRNet (the published birds), not a trunk of its own (the published pedestrians).
    """

    vertices = 642

    def __init__(self, attended: bool = False, ranges: Ranges | None = None) -> None:
        super().__init__()
        self.camera_enc = CameraEncoder(Attended(hrnet_w18_small(4)) if attended else Plain(), ranges or Ranges())
        self.shape_enc = ShapeEncoder(self.vertices)
        self.texture_enc = TextureEncoder()
        self.light_enc = LightEncoder()
        self.bg_enc = BackgroundEncoder()

    def forward(
        self, photos: Float[Tensor, "B 4 H W"], template: Float[Tensor, "V 3"], laplacian: Float[Tensor, "V V"]
    ) -> PublishedAttributes:
        """laplacian: mean of the neighbours minus the vertex itself."""
        mean, std = (photos.new_tensor(v).reshape(4, 1, 1) for v in (MEAN, STD))
        x = (photos - mean) / std
        flow = self.texture_enc(x)
        front = grid_sample(photos[:, :3], flow.permute(0, 2, 3, 1), mode="bicubic", align_corners=True)
        azimuth, elevation, distance, offset = self.camera_enc(x, template)
        return PublishedAttributes(
            azimuth=azimuth,
            elevation=elevation,
            distance=distance,
            offset=offset,
            offsets=self.shape_enc(x, template, laplacian),
            light=self.light_enc(x),
            flow=flow,
            texture=torch.cat([front, front.flip(2)], 2),
            background=self.bg_enc(photos),
        )
