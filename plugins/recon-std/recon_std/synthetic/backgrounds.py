"""Backgrounds: pictures from a folder, or random ones made of smooth gradients, shapes and grain."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from recon_core.errors import InputError
from recon_core.images import find_images, load_image
from recon_std.synthetic.random import Source, rand, randint


def random_backgrounds(count: int, size: tuple[int, int], generator: Source) -> Float[Tensor, "B 3 H W"]:
    """`count` pictures of `size` (width, height): coloured noise at several scales with a few shapes.

    Painted at a third of the size and enlarged: what lies behind a person is mostly out of focus, and it is nine
    times cheaper.
    """
    width, height = (-(-n // 3) for n in size)

    def noise(cells: int) -> Tensor:
        grey = rand(generator, count, 1, cells, cells) - 0.5
        tint = rand(generator, count, 3, cells, cells) - 0.5
        return torch.lerp(grey.expand(-1, 3, -1, -1), tint, 0.4)

    picture = rand(generator, count, 1, 1, 1) + 0.4 * noise(1)
    picture = picture.expand(-1, -1, height, width)
    for cells, weight in ((3, 0.6), (8, 0.35), (32, 0.2)):
        picture = picture + weight * F.interpolate(noise(cells), (height, width), mode="bilinear")
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)
    for _ in range(5):
        a, b, c, d = (rand(generator, count, 1, 1) for _ in range(4))
        colour = rand(generator, count, 1, 1, 1) + 0.8 * noise(1)
        box = ((x - a).abs() < 0.3 * c) & ((y - b).abs() < 0.5 * d)
        round_ = ((x - a) / (0.3 * c + 0.02)) ** 2 + ((y - b) / (0.3 * d + 0.02)) ** 2 < 1
        shape = torch.where(rand(generator, count, 1, 1) < 0.5, box, round_)
        picture = torch.where(shape[:, None], 0.7 * colour + 0.3 * picture, picture)
    return F.interpolate(picture.clamp(0, 1), (size[1], size[0]), mode="bilinear")


class BackgroundPhotos:
    """Random crops of the pictures of a folder, held in memory at a small size.

    folder: with images of any kind `recon_core.images` reads. side: shorter side they are kept at, pixels.
    Raises InputError when the folder has none.
    """

    def __init__(self, folder: Path, side: int = 320) -> None:
        self.pictures: list[Tensor] = []
        for path in find_images([str(folder)]):
            pixels = torch.from_numpy(load_image(path).pixels).permute(2, 0, 1)[None].float() / 255
            scale = side / min(pixels.shape[-2:])
            target = [max(side, round(n * scale)) for n in pixels.shape[-2:]]
            small = F.interpolate(pixels, size=target, mode="bilinear", antialias=True, align_corners=False)
            self.pictures.append((small[0] * 255).round().to(torch.uint8))
        if not self.pictures:
            raise InputError(f"{folder}: no pictures for backgrounds")

    def __call__(self, count: int, size: tuple[int, int], generator: Source) -> Float[Tensor, "B 3 H W"]:
        """Crops of `size` (width, height), each from a random picture, mirrored half of the time."""
        width, height = size
        crops = []
        chosen = randint(generator, len(self.pictures), count).tolist()
        for index, draws in zip(chosen, rand(generator, count, 3), strict=True):
            picture = self.pictures[index]
            share = 0.5 + 0.5 * float(draws[0])
            h, w = (max(2, int(n * share)) for n in picture.shape[-2:])
            top = int(draws[1] * (picture.shape[-2] - h))
            left = int(draws[2] * (picture.shape[-1] - w))
            crop = picture[None, :, top : top + h, left : left + w].float() / 255
            crops.append(F.interpolate(crop, size=(height, width), mode="bilinear", align_corners=False))
        picture_batch = torch.cat(crops)
        mirrored = rand(generator, count, 1, 1, 1) < 0.5
        return torch.where(mirrored, picture_batch.flip(-1), picture_batch)
