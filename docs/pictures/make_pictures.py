"""The pictures of the documentation, from the photo that ships with scikit-image (NASA, public domain):

    python docs/pictures/make_pictures.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

import recon_core
from recon_core.export.pictures import overlay, side_view, top_view
from recon_core.export.save import run_renderer

HERE = Path(__file__).parent
LARGEST = 200_000
"""Bytes of a picture."""


def save(pixels: np.ndarray, name: str) -> None:
    """As JPEG, small enough for a page."""
    file = HERE / name
    Image.fromarray(pixels).save(file, quality=85, optimize=True)
    size = file.stat().st_size
    assert size < LARGEST, f"{name} has {size} bytes"
    print(f"{file}: {size // 1000} kB")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "astronaut.png"
        Image.fromarray(skimage.data.astronaut()).save(photo)
        result = recon_core.run(photo, method="prohmr")
    renderer = run_renderer(result)
    meshes = list(result.meshes().values())
    drawn = overlay(result.photo, meshes, result.camera, renderer)
    save(np.concatenate([result.photo, drawn], 1), "before-after.jpg")
    save(np.concatenate([drawn, side_view(meshes, renderer), top_view(meshes, renderer)], 1), "views.jpg")


if __name__ == "__main__":
    main()
