"""The picture of docs/methods/casl.md, from the photo that ships with scikit-image (NASA, public domain):

    python docs/pictures/make_casl.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import skimage.data
from make_pictures import save
from PIL import Image

import recon_core

VIEWS = 8


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "astronaut.png"
        Image.fromarray(skimage.data.astronaut()).save(photo)
        recon_core.run(photo, method="casl").save(Path(folder) / "out", formats=("gif",))
        frames = iio.imread(Path(folder) / "out" / "turntable.gif")
    rows = [frames[i * len(frames) // VIEWS] for i in range(VIEWS)]
    save(np.concatenate(rows, 1)[::2, ::2], "casl.jpg")


if __name__ == "__main__":
    main()
