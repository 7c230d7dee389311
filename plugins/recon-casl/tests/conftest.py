"""A small training folder: coloured blobs on grey, with their masks."""

import imageio.v3 as iio
import numpy as np
import pytest


@pytest.fixture(scope="session")
def blobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blobs")
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:96, :64]
    for i in range(8):
        width, height = generator.uniform(8, 20), generator.uniform(30, 40)
        inside = ((x - 32) / width) ** 2 + ((y - 48) / height) ** 2 < 1
        colour = generator.uniform(60, 250, 3)
        picture = np.where(inside[..., None], colour * (0.7 + 0.3 * (y[..., None] < 48)), 128).astype(np.uint8)
        for kind, values in (("images", picture), ("masks", inside.astype(np.uint8) * 255)):
            (folder / kind).mkdir(exist_ok=True)
            iio.imwrite(folder / kind / f"{i}.png", values)
    return folder
