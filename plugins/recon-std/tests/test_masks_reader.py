"""Photos with masks: pairs are found by name, refused when they are no use, and cropped alike."""

import json

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from recon_core.errors import TrainingError
from recon_std.readers.masks import MaskedPhotosDataset


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["a", "deep/b", "deep/c"]):
        mask = np.zeros((60, 80), np.uint8)
        mask[20:50, 30 + i : 45 + i] = 255
        photo = np.full((60, 80, 3), 90, np.uint8)
        photo[mask > 0] = (200, 100, 50)
        for kind, picture in (("images", photo), ("masks", mask)):
            path = tmp_path / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            iio.imwrite(path, picture)
    return tmp_path


def read(folder, **settings):
    return MaskedPhotosDataset(folder, MaskedPhotosDataset.Config(**{"split": "all", "crop_size": 32, **settings}))


def test_photo_and_mask_are_cropped_alike(folder):
    data = read(folder)
    assert data.ids == ["a", "deep/b", "deep/c"]
    for index in range(3):
        for item in (data[index], data.draw(index, np.random.default_rng(index))):
            inside = item["mask"][0] > 0.99
            assert 0.3 < item["mask"].mean() < 0.6
            torch.testing.assert_close(
                item["image"][:, inside].mean(1), torch.tensor([200, 100, 50]) / 255, atol=2e-3, rtol=0
            )


def test_a_pattern_and_a_split_choose(folder):
    assert read(folder, only="deep/*").ids == ["deep/b", "deep/c"]
    items = [
        {"image": f"images/{n}.png", "split": s} for n, s in (("a", "train"), ("deep/b", "val"), ("deep/c", "train"))
    ]
    (folder / "index.json").write_text(json.dumps({"items": items}))
    assert read(folder, split="train").ids == ["a", "deep/c"]
    with pytest.raises(TrainingError, match="1 pairs .* for split 'val'"):
        read(folder, split="val")
    (folder / "index.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"index\.json: not a list of items"):
        read(folder, split="val")


def _without_mask(folder):
    (folder / "masks/a.png").unlink()


def _other_size(folder):
    iio.imwrite(folder / "masks/a.png", np.full((30, 40), 255, np.uint8))


def _filled(value):
    return lambda folder: iio.imwrite(folder / "masks/a.png", np.full((60, 80), value, np.uint8))


def _damaged(folder):
    (folder / "images/a.png").write_bytes(b"no picture")


def _no_masks(folder):
    (folder / "masks").rename(folder / "other")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_mask, r"images/a\.png: has no mask"),
        (_other_size, r"masks/a\.png: 40x30 pixels, but its photo has 80x60"),
        (_filled(0), r"masks/a\.png: the mask is empty"),
        (_filled(255), r"masks/a\.png: the mask is full"),
        (_damaged, r"images/a\.png: damaged"),
        (_no_masks, r"masks: no such folder"),
    ],
)
def test_what_cannot_be_learned_from_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(TrainingError, match=message):
        read(folder)
