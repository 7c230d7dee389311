"""A sheet of spin's overlays beside prohmr's on sport photos: `python benchmarks/spin_overlays.py [--out FILE]`.

Each row: the photo, spin as regressed, spin then fitted to the detector's joints (`--fitter smplify`), prohmr with its
own fit. The box and the joints of all are the detector's. Reads shared/data/lsp_ext (benchmarks/lsp_ext.py).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from lsp_ext import photos
from PIL import Image, ImageDraw

from recon_core.cli import main as recon

HERE = Path(__file__).resolve().parent
RUNS = {
    "spin": ["--method", "spin"],
    "spin + smplify": ["--method", "spin", "--fitter", "smplify"],
    "prohmr": ["--method", "prohmr"],
}
SIDE = 200
"""Pixels of a picture on the sheet."""


def framed(file: Path) -> Image.Image:
    """A picture within a square cell; an empty cell where there is none (nobody was found)."""
    cell = Image.new("RGB", (SIDE, SIDE), "white")
    if file.is_file():
        picture = Image.open(file).convert("RGB")
        picture.thumbnail((SIDE, SIDE))
        cell.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return cell


def sheet(files: list[Path], folder: Path, columns: int = 2) -> Image.Image:
    """`columns` photos side by side, each with its runs to the right of it."""
    across = 1 + len(RUNS)
    rows = -(-len(files) // columns)
    picture = Image.new("RGB", (columns * across * SIDE, rows * SIDE + 20), "white")
    pen = ImageDraw.Draw(picture)
    for column in range(columns):
        for k, name in enumerate(["photo", *RUNS]):
            pen.text(((column * across + k) * SIDE + 8, 4), name, fill="black")
    for i, file in enumerate(files):
        cells = [file] + [folder / name / file.stem / "overlay.png" for name in RUNS]
        for k, cell in enumerate(cells):
            picture.paste(framed(cell), ((i % columns * across + k) * SIDE, i // columns * SIDE + 20))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE.parent / "out" / "spin-overlays.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    every = photos("val")
    chosen = [photo.path for photo in every[:: max(1, len(every) // options.count)][: options.count]]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in RUNS.items():
            recon(["run", *arguments, *map(str, chosen), "-o", str(Path(folder) / name)])
        sheet(chosen, Path(folder)).save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
