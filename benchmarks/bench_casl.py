"""CASL on photos it has not learned from: MaskIoU, SSIM and the cameras it finds, beside the paper's figures.

    python benchmarks/bench_casl.py [--data FOLDER] [--split val] [--refine N] [--weights FILE] [--sheet FILE.png]

FOLDER holds images/, masks/ and index.json (`recon_std.readers.masks`). Drawings and photos are compared at 128 x 128
pixels, things on black, in crops about the mask's box with a margin of 15 %. The Frechet distances are of the photos
of the split and as many drawings; few pictures make them larger, so they compare only with others of this script.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import imageio.v3 as iio
import torch

from recon_casl.evaluation import evaluate
from recon_casl.method import CASL, CASLConfig
from recon_core.assets import assets
from recon_core.frechet import picture_features
from recon_std.readers.masks import MaskedPhotosDataset

PAPER = """paper: MaskIoU 82.0 % on ATR (table 2; HMR 69.7, ROMP 70.3). On Market-HQ (table 4), with Inception's FID:
                    MaskIoU   SSIM  recon  novel     90
No IM                  71.5   55.8   49.1   83.1  123.8
No Prototype Loop      77.7   59.6   38.1   66.1  116.0
No Encoder Loop        85.3   70.6   19.5   65.4  190.1
Ours                   81.1   61.8   29.9   58.2  109.0"""
TURNS = (0.0, 45.0, 90.0, 180.0)


@torch.no_grad()
def sheet(method: CASL, folder: Path, split: str, file: Path) -> None:
    """Sixteen photos, each with its drawing from the camera found and from TURNS degrees aside."""
    side = method.crop_size
    data = MaskedPhotosDataset(folder, MaskedPhotosDataset.Config(split=split, crop_size=side, augment=False))  # type: ignore[arg-type]
    rows = []
    for index in torch.linspace(0, len(data) - 1, 16).round().int().tolist():
        cut = torch.cat([data[index]["image"] * data[index]["mask"], data[index]["mask"]])[None]
        found, pictures = method.read(cut), [cut[0, :3]]
        for turn in TURNS:
            seen = dataclasses.replace(found, view=found.view.turned(turn))
            camera = seen.view.camera(side)
            pictures.append(
                method.renderer.render(method.model.mesh(seen), camera, seen.light, 0.2, antialias=True).image[0]
            )
        rows.append(torch.cat([p[:, :, side // 6 : -side // 6] for p in pictures], 2))
    picture = torch.cat([torch.cat(rows[:8], 1), torch.cat(rows[8:], 1)], 2).clamp(0, 1)
    iio.imwrite(file, (picture.permute(1, 2, 0) * 255 + 0.5).byte().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ccp"))
    parser.add_argument("--split", default="val")
    parser.add_argument("--only", default="*", help="pattern of the photos' names")
    parser.add_argument("--refine", type=int, default=0, help="steps by which each photo is fitted; 0: what is read")
    parser.add_argument("--weights", help="default: those that ship")
    parser.add_argument("--sheet", type=Path, help="write pictures of sixteen pairs here")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        raise SystemExit(f"{arguments.data}: no such folder; name one with --data")
    method = CASL.from_assets(CASLConfig(weights=arguments.weights, refine=arguments.refine), assets())
    evaluation = evaluate(method, arguments.data, arguments.split, arguments.only, bool(arguments.refine))
    found = evaluation.values
    print(f"{arguments.data}, split {arguments.split}: {len(found['mask_iou'])} pairs")
    for name in ("mask_iou", "ssim"):
        value = 100 * found[name]
        print(f"{name:10} mean {value.mean():5.1f} %   a tenth is below {value.quantile(0.1):5.1f} %")
    for name in ("azimuth_degrees", "elevation_degrees"):
        print(f"{name:18} mean {found[name].mean():6.1f}   standard deviation {found[name].std():5.1f}")
    for name, value in evaluation.distances(picture_features()).items():
        print(f"{name:24} {value:6.1f}")
    print(PAPER)
    if arguments.sheet:
        sheet(method, arguments.data, arguments.split, arguments.sheet)
        print(f"pictures: {arguments.sheet}")


if __name__ == "__main__":
    main()
