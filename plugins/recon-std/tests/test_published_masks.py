"""ATR, Market-1501-HQ and CUB-200-2011, on tiny folders of the layouts in which they are given out."""

import numpy as np
import pytest
import torch
from PIL import Image

from recon_core.datasets import Mixture, SourceSpec, load_sources
from recon_core.errors import TrainingError, UsageError
from recon_core.plugins import registry

SIZE = (40, 60)  # width, height


def write(photo, mask, value, grow=0):
    """A blue rectangle on grey, and its mask, whose pixels are `value` in the thing."""
    inside = np.zeros(SIZE[::-1], np.uint8)
    inside[10 - grow : 50 + grow, 8:32] = 1
    picture = np.full((*SIZE[::-1], 3), 120, np.uint8)
    picture[inside > 0] = (20, 40, 200)
    for path, pixels in ((photo, picture), (mask, inside * value)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def atr(tmp_path):
    for k in range(4):
        write(tmp_path / f"JPEGImages/{k}_1.jpg", tmp_path / f"SegmentationClassAug/{k}_1.png", 1 + k)
    return tmp_path


@pytest.fixture
def market(tmp_path):
    for part, people in (("train_all", ("0002", "0007")), ("query", ("0001",))):
        for person in people:
            for k in range(2):
                name = f"{person}_c1s1_00{k}"
                mask = f"{name}_0.40" if part == "train_all" and k else name
                write(
                    tmp_path / f"pytorch/{part}/{person}/{name}.png", tmp_path / f"seg/{part}/{person}/{mask}.png", 255
                )
    write(tmp_path / "pytorch/train_all/0002/big.png", tmp_path / "seg/train_all/0002/big.png", 0)
    return tmp_path


@pytest.fixture
def cub(tmp_path):
    names = [
        f"{s}/{s[4:]}_{k}" for s in ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty") for k in (1, 2)
    ]
    for name in names:
        write(tmp_path / f"images/{name}.jpg", tmp_path / f"segmentations/{name}.png", 153)
    (tmp_path / "images.txt").write_text("".join(f"{i} {n}.jpg\n" for i, n in enumerate(names, 1)))
    (tmp_path / "train_test_split.txt").write_text("".join(f"{i} {int(i < 5)}\n" for i in range(1, 7)))
    return tmp_path


def read(name, folder, **settings):
    reader = registry().load("dataset", name)
    return reader(folder, reader.Config(crop_size=32, **settings))


@pytest.mark.parametrize(("name", "settings"), [("atr", {}), ("market-hq", {}), ("cub", {})])
def test_a_photo_and_its_mask_come_as_fields_of_masks(name, settings, request):
    data = read(name, request.getfixturevalue(name.partition("-")[0]), **settings)
    assert len(data) == 4
    for index in range(4):
        for item in (data[index], data.draw(index, np.random.default_rng(index))):
            assert set(item) == {"id", "image", "mask", "to_crop", "roll", "flipped"}
            inside = item["mask"][0] > 0.99
            assert 0.3 < item["mask"].mean() < 0.6
            blue = torch.tensor([20, 40, 200]) / 255
            torch.testing.assert_close(item["image"][:, inside].mean(1), blue, atol=0.03, rtol=0)
    assert len({item["id"] for item in data}) == 4


def test_they_mix_with_one_another_in_a_training(atr, tmp_path):
    sources = load_sources([SourceSpec.parse(f"atr:{atr}"), SourceSpec.parse(f"atr:{atr}")])
    assert Mixture(sources, batch_size=4).fields["image"].shape == (3, 128, 128)


def test_splits(atr, market, cub):
    (atr / "train.txt").write_text("2_1.jpg\n9_1_0.24.png\n3_1\n")
    with pytest.raises(TrainingError, match="'9_1' has no photo, nor do 1 more"):
        read("atr", atr, split="train")
    (atr / "train.txt").write_text("2_1.jpg\n3_1_0.24.png\n")
    assert read("atr", atr, split="train").ids == ["2_1", "3_1"]
    with pytest.raises(TrainingError, match=r"val\.txt: missing; ATR has no split .*--set atr\.split=all"):
        read("atr", atr, split="val")
    assert read("market-hq", market, split="val").ids == ["query/0001/0001_c1s1_000", "query/0001/0001_c1s1_001"]
    assert len(read("market-hq", market, split="all")) == 6
    assert [name[:3] for name in read("cub", cub, split="val").ids] == ["003", "003"]
    assert [name[:3] for name in read("cub", cub, species="Laysan").ids] == ["002", "002"]


def test_masks_that_are_no_use_are_left_out_until_too_few_are_left(atr, market):
    """An empty mask lies among the pedestrians; two of ATR's cover 60 % of their photos, the others 40 %."""
    assert "train_all/0002/big" not in read("market-hq", market).ids
    with pytest.raises(TrainingError, match=r"0 of 5 photos of split 'train' have a mask that covers 0\.5 to 0\.81"):
        read("market-hq", market, foreground=(0.5, 0.81))
    for k in range(2):
        write(atr / f"JPEGImages/{k}_1.jpg", atr / f"SegmentationClassAug/{k}_1.png", 1, grow=10)
    assert read("atr", atr, foreground=(0.45, 0.9)).ids == ["0_1", "1_1"]


def _removed(folder, path):
    (folder / path).unlink()


def _corrupt(folder, path):
    (folder / path).write_bytes((folder / path).read_bytes()[:40])


@pytest.mark.parametrize(
    ("name", "spoil", "paths", "message"),
    [
        (
            "atr",
            _removed,
            ("SegmentationClassAug/1_1.png", "SegmentationClassAug/2_1.png"),
            r"'1_1' has no mask, nor do 1 more",
        ),
        (
            "atr",
            _corrupt,
            ("JPEGImages/1_1.jpg", "SegmentationClassAug/3_1.png"),
            r"1_1\.jpg: damaged.*and 1 more of 8 files",
        ),
        (
            "market-hq",
            _removed,
            ("seg/train_all/0007/0007_c1s1_000.png",),
            r"'train_all/0007/0007_c1s1_000' has no mask;",
        ),
        (
            "cub",
            _removed,
            ("images/002.Laysan_Albatross/Laysan_Albatross_1.jpg",),
            r"Laysan_Albatross_1' has no photo;",
        ),
        ("cub", _removed, ("images.txt",), r"images\.txt: cannot be read \(No such file"),
    ],
)
def test_what_is_missing_or_damaged_is_named_and_counted(name, spoil, paths, message, request):
    folder = request.getfixturevalue(name.partition("-")[0])
    for path in paths:
        spoil(folder, path)
    with pytest.raises(TrainingError, match=message):
        read(name, folder)


def test_layouts_that_are_another(atr, cub, tmp_path):
    with pytest.raises(TrainingError, match=r"pytorch/train_all: no such folder"):
        read("market-hq", tmp_path)
    (cub / "train_test_split.txt").write_text("1 1\n2 maybe\n")
    with pytest.raises(TrainingError, match=r"train_test_split\.txt: has no 0 or 1 for image 2"):
        read("cub", cub)
    (cub / "train_test_split.txt").write_text("1\n")
    with pytest.raises(TrainingError, match=r"line 1 is not a number and a value"):
        read("cub", cub)
    with pytest.raises(UsageError, match="--data cub: needs a folder"):
        read("cub", None)
    Image.new("L", (30, 30), 1).save(atr / "SegmentationClassAug/1_1.png")
    with pytest.raises(TrainingError, match=r"1_1\.png: 30x30 pixels, but its photo has 40x60"):
        read("atr", atr)
