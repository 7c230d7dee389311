"""The whole detector, with its real files, on real photos."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from pydantic import ValidationError

from recon_core.assets import Assets, assets
from recon_core.errors import AssetError
from recon_core.images import load_image
from recon_core.plugins import registry
from recon_core.skeletons import skeleton
from recon_core.structures import Detection
from recon_std.detectors.blazepose import BlazePoseDetector, BlazePoseSettings

PHOTOS = Path("/work/shared/data/photos")
needs_photos = pytest.mark.skipif(
    not PHOTOS.is_dir(), reason="needs shared/data/photos, which is not part of the project"
)


@pytest.fixture(scope="module")
def detector() -> BlazePoseDetector:
    return BlazePoseDetector()


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return skimage.data.astronaut()


@pytest.fixture(scope="module")
def cameraman() -> np.ndarray:
    """A standing man, seen from the side, grey."""
    return skimage.data.camera()[..., None].repeat(3, 2)


def _joints(found: Detection) -> dict[str, np.ndarray]:
    assert found.keypoints is not None
    return dict(zip(skeleton("blazepose33").joints, found.keypoints.points[0].numpy(), strict=True))


def _confidence(found: Detection) -> dict[str, float]:
    assert found.keypoints is not None
    return dict(zip(skeleton("blazepose33").joints, found.keypoints.confidence[0].tolist(), strict=True))


def test_the_astronaut(detector: BlazePoseDetector, astronaut: np.ndarray) -> None:
    """Face, shoulders and what is in the picture, where they are; places read off the photo."""
    (found,) = detector.detect(astronaut)
    joints, sure = _joints(found), _confidence(found)
    for name, place, tolerance in [
        ("nose", (222, 124), 20),
        ("left_eye", (247, 102), 20),
        ("right_eye", (203, 101), 20),
        ("left_shoulder", (315, 260), 60),
        ("right_shoulder", (105, 245), 60),
    ]:
        assert np.linalg.norm(joints[name] - place) < tolerance, name
        assert sure[name] > 0.5, name
    for name in ("left_knee", "right_knee", "left_ankle", "right_ankle"):
        assert sure[name] < 0.2, f"{name} is not in the picture"
    x, y, w, h = found.box
    assert x >= 0
    assert y >= 0
    assert x + w <= 512
    assert y + h <= 512
    assert h > 400
    assert found.mask is not None
    assert found.mask.shape == (512, 512)
    assert found.mask.dtype == torch.float32
    assert found.mask.min() >= 0
    assert found.mask.max() <= 1
    assert found.mask[122, 225] > 0.9
    assert found.mask[20, 20] < 0.1
    assert found.mask[10, 480] < 0.1


def test_a_mirrored_photo_gives_mirrored_sides(detector: BlazePoseDetector, astronaut: np.ndarray) -> None:
    (plain,), (mirrored,) = detector.detect(astronaut), detector.detect(np.ascontiguousarray(astronaut[:, ::-1]))
    a, b = _joints(plain), _joints(mirrored)
    for left, right in [("left_eye", "right_eye"), ("left_shoulder", "right_shoulder")]:
        assert np.linalg.norm(a[left] - [512 - b[right][0], b[right][1]]) < 35, (
            left
        )  # 7 pixels of the crop that the model reads


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_people_are_found_whichever_way_up(detector: BlazePoseDetector, cameraman: np.ndarray, quarters: int) -> None:
    upright = _joints(detector.detect(cameraman)[0])
    size = len(cameraman)
    found = _joints(detector.detect(np.ascontiguousarray(np.rot90(cameraman, quarters)))[0])
    for name in ("nose", "left_shoulder", "right_hip"):
        x, y = found[name]
        for _ in range(quarters):
            x, y = size - y, x  # undo one turn of np.rot90, which is counter-clockwise
        assert np.linalg.norm(upright[name] - [x, y]) < 0.08 * size, name


def test_everyone_is_found_and_nobody_twice(detector: BlazePoseDetector, cameraman: np.ndarray) -> None:
    canvas = np.full((500, 1000, 3), 190, np.uint8)
    for column, man in enumerate((cameraman, cameraman[:, ::-1])):
        canvas[100:, 500 * column + 50 : 500 * column + 450] = np.asarray(Image.fromarray(man).resize((400, 400)))
    found = detector.detect(canvas)
    assert sorted(int(d.box[0] + d.box[2] / 2) // 500 for d in found) == [0, 1]
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    assert len(BlazePoseDetector(BlazePoseSettings(max_people=1)).detect(canvas)) == 1


def test_a_small_person_in_a_large_picture_is_found(detector: BlazePoseDetector, cameraman: np.ndarray) -> None:
    canvas = np.full((900, 1200, 3), 190, np.uint8)
    small = np.asarray(Image.fromarray(cameraman).resize((160, 160), Image.Resampling.BOX))
    canvas[700:860, 1000:1160] = small
    (found,) = detector.detect(canvas)
    nose = _joints(found)["nose"]
    expected = np.array([1000, 700]) + _joints(detector.detect(cameraman)[0])["nose"] * 160 / 512
    assert np.linalg.norm(nose - expected) < 12


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 2), (64, 64)])
def test_nobody_in_an_empty_picture(detector: BlazePoseDetector, shape: tuple[int, int]) -> None:
    assert detector.detect(np.full((*shape, 3), 128, np.uint8)) == []


def test_nobody_in_noise_or_in_things(detector: BlazePoseDetector) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    for pixels in (noise, skimage.data.coffee()):
        assert detector.detect(pixels) == []


def test_without_masks_and_with_care(detector: BlazePoseDetector, astronaut: np.ndarray) -> None:
    (plain,) = detector.detect(astronaut)
    (careful,) = BlazePoseDetector(BlazePoseSettings(masks=False, careful=True)).detect(astronaut)
    assert careful.mask is None
    a, b = _joints(plain), _joints(careful)
    moved = [np.linalg.norm(a[name] - b[name]) for name in ("nose", "left_shoulder", "right_shoulder")]
    assert 0 < max(moved) < 25


def test_the_same_in_threads_and_after_pickling(detector: BlazePoseDetector, astronaut: np.ndarray) -> None:
    (expected,) = detector.detect(astronaut)
    copy = pickle.loads(pickle.dumps(detector))
    with ThreadPoolExecutor(3) as pool:
        results = [*pool.map(detector.detect, [astronaut] * 3), copy.detect(astronaut)]
    for (found,) in results:
        assert found.box == expected.box
        assert torch.equal(found.keypoints.points, expected.keypoints.points)


def test_registered_by_name_with_checked_settings() -> None:
    assert registry().load("detector", "blazepose") is BlazePoseDetector
    with pytest.raises(ValidationError, match="person_threshold"):
        BlazePoseSettings(person_threshold=2)
    with pytest.raises(ValidationError, match="serch"):
        BlazePoseSettings.model_validate({"serch": "fast"})


def test_a_changed_model_file_is_refused(tmp_path: Path) -> None:
    names = ("blazepose-detection", "blazepose-landmarks")
    for path in assets().get(*names):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "blazepose-landmarks.tflite").write_bytes(b"changed")
    with pytest.raises(AssetError, match=r"blazepose-landmarks\.tflite: sha256 is .* the catalogue says e9a5c5cb"):
        BlazePoseDetector(files=Assets(assets().entries, tmp_path))


def test_loading_the_models_writes_nothing_to_stderr(astronaut: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    BlazePoseDetector().detect(astronaut[::4, ::4])
    assert capfd.readouterr().err == ""


@needs_photos
@pytest.mark.parametrize("start", ["pexels", "coco_000000000785", "coco_000000234748"])
def test_photos_with_labels(detector: BlazePoseDetector, start: str) -> None:
    """One person, whose labelled joints lie within 0.2 torso lengths, nine in ten of them; masks overlap by 0.75."""
    items = json.loads((PHOTOS / "index.json").read_text())["items"]
    item = next(i for i in items if i["image"].startswith(start))
    (found,) = detector.detect(load_image(PHOTOS / item["image"]).pixels)
    values = json.loads((PHOTOS / item["keypoints"]).read_text())["people"][0]["pose_keypoints_2d"]
    labels = {n: np.array(v) for n, v in zip(item["keypoint_names"], np.reshape(values, (-1, 3)), strict=True)}
    torso = np.linalg.norm(labels["right_shoulder"][:2] - labels["left_hip"][:2])
    joints = _joints(found)
    names = [n for n in labels if n in joints and labels[n][2] > 0.3]
    hits = [np.linalg.norm(joints[n] - labels[n][:2]) < 0.2 * torso for n in names]
    assert len(hits) >= 14
    assert np.mean(hits) >= 0.9, [n for n, hit in zip(names, hits, strict=True) if not hit]
    x, y, w, h = item["bbox_xywh"]
    assert np.abs(np.array(found.box) - [x, y, w, h]).max() < 0.12 * max(w, h)
    if item["mask"]:
        truth = np.asarray(Image.open(PHOTOS / item["mask"]).convert("L")) > 0
        mine = found.mask.numpy() > 0.5
        assert (truth & mine).sum() / (truth | mine).sum() > 0.75
