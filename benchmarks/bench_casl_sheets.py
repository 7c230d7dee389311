"""Contact sheets of held-out people: each seen from eight azimuths, and four in each other's clothes (figure 8).

    python benchmarks/bench_casl_sheets.py [--data FOLDER] [--weights FILE] [--refine N] [--output FOLDER]

azimuths.png: a row a person, the photo on black and drawings 0, 45, ... 315 degrees aside. exchange.png: the photos of
the shapes on the left, of the textures above, and the drawings of each shape with each texture, from the shape's own
camera.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import imageio.v3 as iio
import torch
from jaxtyping import Float
from torch import Tensor

from recon_casl.method import CASL, CASLConfig
from recon_casl.model import Attributes
from recon_core.assets import assets
from recon_std.readers.masks import MaskedPhotosDataset

GREY = 0.25
"""Behind drawings."""


def held_out(method: CASL, folder: Path, count: int) -> Float[Tensor, "N 4 S S"]:
    """Photos on black with their masks, evenly from the validation part."""
    settings = MaskedPhotosDataset.Config(split="val", crop_size=method.crop_size, augment=False)  # type: ignore[arg-type]
    data = MaskedPhotosDataset(folder, settings)
    items = [data[i] for i in torch.linspace(0, len(data) - 1, count).round().int().tolist()]
    return torch.stack([torch.cat([item["image"] * item["mask"], item["mask"]]) for item in items])


@torch.no_grad()
def drawing(method: CASL, of: Attributes, turn: float = 0.0) -> Float[Tensor, "B 3 S S"]:
    seen = dataclasses.replace(of, view=of.view.turned(turn))
    camera = seen.view.camera(method.crop_size)
    return method.renderer.render(method.model.mesh(seen), camera, seen.light, GREY, antialias=True).image.clamp(0, 1)


def narrow(pictures: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S s"]:
    """Without the sides, where people seldom are."""
    side = pictures.shape[-1]
    return pictures[..., side // 5 : -side // 5]


def save(file: Path, rows: list[list[Tensor]]) -> None:
    picture = torch.cat([torch.cat(row, 2) for row in rows], 1)
    iio.imwrite(file, (picture.permute(1, 2, 0) * 255 + 0.5).byte().numpy())
    print(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ccp"))
    parser.add_argument("--weights", help="default: those that ship")
    parser.add_argument("--refine", type=int, default=0, help="steps by which each photo is fitted; 0: what is read")
    parser.add_argument("--output", type=Path, default=Path("runs/casl-sheets"))
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        raise SystemExit(f"{arguments.data}: no such folder; name one with --data")
    method = CASL.from_assets(CASLConfig(weights=arguments.weights, refine=arguments.refine), assets())
    arguments.output.mkdir(parents=True, exist_ok=True)

    people = held_out(method, arguments.data, 8)
    of = method.explain(people)[0] if arguments.refine else method.read(people)
    columns = [narrow(p) for p in (people[:, :3], *(drawing(method, of, 45.0 * i) for i in range(8)))]
    save(arguments.output / "azimuths.png", [[column[i] for column in columns] for i in range(len(people))])

    few = slice(0, 8, 2)
    shapes, photos = of[few], narrow(people[few, :3])
    rows = [[torch.full_like(photos[0], GREY), *photos]]
    for i, photo in enumerate(photos):
        dressed = dataclasses.replace(shapes[[i] * 4], texture=shapes.texture)
        rows.append([photo, *narrow(drawing(method, dressed))])
    save(arguments.output / "exchange.png", rows)


if __name__ == "__main__":
    main()
