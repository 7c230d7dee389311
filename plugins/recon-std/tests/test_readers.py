"""Joints from OpenPose and COCO files, and what is said of files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recon_core.errors import InputError, UsageError
from recon_core.images import Photo
from recon_core.plugins import registry
from recon_core.skeletons import skeleton
from recon_std.readers.coco_json import CocoReader, CocoSettings
from recon_std.readers.openpose_json import OpenPoseReader, OpenPoseSettings

PHOTOS = Path("/work/shared/data/photos")


def _photo(name: str = "walk.jpg", size: tuple[int, int] = (200, 300)) -> Photo:
    return Photo(np.zeros((size[1], size[0], 3), np.uint8), Path("photos") / name, None, size)


def _triples(joints: int, shift: float = 0.0, confidence: float = 0.8) -> list[float]:
    """Joint j at (20 + j, 50 + 3 j)."""
    return [v for j in range(joints) for v in (20.0 + j + shift, 50.0 + 3 * j, confidence)]


def _openpose(tmp_path: Path, people: Any, name: str = "joints.json") -> OpenPoseReader:
    path = tmp_path / name
    path.write_text(json.dumps({"version": 1.3, "people": people}))
    return OpenPoseReader(OpenPoseSettings(path=str(path)))


def _person(values: list[float]) -> dict[str, Any]:
    return {"person_id": [-1], "pose_keypoints_2d": values, "face_keypoints_2d": []}


def test_body_25(tmp_path: Path) -> None:
    values = _triples(25)
    values[3 * 4 : 3 * 5] = [0, 0, 0]
    (found,) = _openpose(tmp_path, [_person(values)]).detect_photo(_photo())
    keypoints = found.keypoints
    assert keypoints is not None
    assert keypoints.skeleton == "openpose25"
    wrist, ankle = skeleton("openpose25").index("right_wrist"), skeleton("openpose25").index("left_ankle")
    assert keypoints.confidence[0, wrist] == 0
    torch.testing.assert_close(keypoints.points[0, ankle], torch.tensor([34.0, 92.0]))
    assert found.score == pytest.approx(0.8)
    x, y, w, h = found.box
    margin = 7.2  # a tenth of the joints' extent of 72
    np.testing.assert_allclose((x, y, w, h), (20 - margin, 50 - margin, 24 + 2 * margin, 72 + 2 * margin), atol=1e-4)


def test_the_coco_layout_of_openpose_lands_on_the_same_joints(tmp_path: Path) -> None:
    (found,) = _openpose(tmp_path, [_person(_triples(18))]).detect_photo(_photo())
    assert found.keypoints is not None
    points = dict(zip(skeleton("openpose25").joints, found.keypoints.points[0, :, 0].tolist(), strict=True))
    order = "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee "
    order += "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear"
    assert [points[name] for name in order.split()] == [20.0 + j for j in range(18)]
    sure = dict(zip(skeleton("openpose25").joints, found.keypoints.confidence[0].tolist(), strict=True))
    assert sure["mid_hip"] == sure["left_heel"] == 0


def test_people_without_joints_are_left_out_and_the_clearest_is_first(tmp_path: Path) -> None:
    people = [_person(_triples(25, confidence=0.3)), _person([0.0] * 75), _person(_triples(25, shift=50.0))]
    found = _openpose(tmp_path, people).detect_photo(_photo())
    assert [round(d.score, 1) for d in found] == [0.8, 0.3]
    assert _openpose(tmp_path, []).detect_photo(_photo()) == []


def test_a_folder_holds_a_file_for_each_photo(tmp_path: Path) -> None:
    _openpose(tmp_path, [_person(_triples(25))], "walk_keypoints.json")
    reader = OpenPoseReader(OpenPoseSettings(path=str(tmp_path)))
    assert len(reader.detect_photo(_photo("walk.jpg"))) == 1
    with pytest.raises(InputError, match=r"no run_keypoints\.json"):
        reader.detect_photo(_photo("run.jpg"))


def _nan(joints: int) -> list[float]:
    values = _triples(joints)
    values[4] = float("nan")
    return values


OPENPOSE_FAULTS: list[tuple[Any, str]] = [
    ([_person(_nan(25))], "person 1.*not finite"),
    ([_person(_triples(25)), _person(_triples(24))], "person 2.*24 joints"),
    ([_person(_triples(25)[:-1])], "list of x, y, confidence"),
    ([_person([])], "list of x, y, confidence"),
    ([{"hand": 1}], "list of x, y, confidence"),
    (["somebody"], "list of x, y, confidence"),
    ([_person(["1"] * 75)], "list of x, y, confidence"),  # type: ignore[list-item]
    ([_person([10**400] * 75)], "not finite"),
    ([_person(_triples(25, confidence=-0.5))], "between 0 and 1"),
    ([_person([v / 1000 if i % 3 < 2 else v for i, v in enumerate(_triples(25))])], "keypoint_scale 0"),
    ([_person(_triples(25, shift=1000.0))], "outside the picture of 200x300"),
    ("nobody", "no list 'people'"),
]


@pytest.mark.parametrize(("people", "expected"), OPENPOSE_FAULTS)
def test_faulty_openpose_files(tmp_path: Path, people: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        _openpose(tmp_path, people).detect_photo(_photo())
    assert str(tmp_path / "joints.json") in str(caught.value)
    assert "\n" not in str(caught.value)


CONTENT_FAULTS = [
    (b"", "file is empty"),
    (b" \n", "file is empty"),
    (b"{people: 1}", "not a JSON file"),
    (b"\xff\xfe\x00", "not a JSON file"),
    (b"[" * 100_000, "nested too deeply|not a JSON file"),
    (b"5", "no list|not in COCO's layout"),
]


@pytest.mark.parametrize(("content", "expected"), CONTENT_FAULTS)
@pytest.mark.parametrize("kind", ["openpose-json", "coco-json"])
def test_files_that_are_no_json_of_joints(tmp_path: Path, kind: str, content: bytes, expected: str) -> None:
    (tmp_path / "joints.json").write_bytes(content)
    detector = registry().load("detector", kind)
    with pytest.raises(InputError, match=expected) as caught:
        detector(detector.Config(path=str(tmp_path / "joints.json"))).detect_photo(_photo())
    assert str(tmp_path / "joints.json") in str(caught.value)


@pytest.mark.parametrize("kind", ["openpose-json", "coco-json"])
def test_readers_need_a_file(tmp_path: Path, kind: str) -> None:
    detector = registry().load("detector", kind)
    with pytest.raises(InputError, match=r"gone\.json"):
        detector(detector.Config(path=str(tmp_path / "gone.json")))
    with pytest.raises(UsageError, match="--keypoints FILE"):
        detector()


def _coco(tmp_path: Path, content: Any, **settings: Any) -> CocoReader:
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return CocoReader(CocoSettings(path=str(tmp_path / "coco.json"), **settings))


def _annotation(image: int, shift: float = 0.0, **more: Any) -> dict[str, Any]:
    values = _triples(17, shift, 2)
    values[2], values[5] = 0, 1
    return {"image_id": image, "category_id": 1, "iscrowd": 0, "keypoints": values, "bbox": [18, 40, 60, 200], **more}


IMAGES = [{"id": 7, "file_name": "train/walk.jpg"}, {"id": 8, "file_name": "train/run.jpg"}]


def test_annotations_are_found_by_the_photos_name(tmp_path: Path) -> None:
    content = {"images": IMAGES, "annotations": [_annotation(7), _annotation(8, 50.0), _annotation(8, iscrowd=1)]}
    reader = _coco(tmp_path, content)
    (found,) = reader.detect_photo(_photo("run.jpg"))
    assert found.box == (18, 40, 60, 200)
    assert found.score == 1
    assert found.keypoints is not None
    assert found.keypoints.skeleton == "coco17"
    assert found.keypoints.points[0, 3, 0] == 73
    assert found.keypoints.confidence[0, :3].tolist() == [0, 0.5, 1]
    with pytest.raises(InputError, match=r"nothing about jump\.jpg \(it is about 2 pictures"):
        reader.detect_photo(_photo("jump.jpg"))


def test_two_pictures_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "photos/walk.jpg"}, {"id": 2, "file_name": "other/walk.jpg"}]
    content = {"images": images, "annotations": [_annotation(1), _annotation(2, 9.0)]}
    (found,) = _coco(tmp_path, content).detect_photo(_photo("walk.jpg"))
    assert found.keypoints is not None
    assert found.keypoints.points[0, 0, 0] == 20
    for image in images:
        image["file_name"] = "elsewhere/walk.jpg"
    with pytest.raises(InputError, match=r"several pictures called walk\.jpg"):
        _coco(tmp_path, content).detect_photo(_photo("walk.jpg"))


def test_a_listed_photo_without_people_is_nobody(tmp_path: Path) -> None:
    reader = _coco(tmp_path, {"images": IMAGES, "annotations": [_annotation(7)]})
    assert reader.detect_photo(_photo("run.jpg")) == []


def test_results_of_a_detector(tmp_path: Path) -> None:
    rows = [
        {"image_id": 785, "category_id": 1, "keypoints": _triples(17, confidence=0.6), "score": 0.5},
        {"image_id": 785, "category_id": 1, "keypoints": _triples(17, 30.0), "score": 0.9},
        {"image_id": 785, "category_id": 1, "keypoints": _triples(17, 60.0), "score": 0.1},
        {"image_id": 9, "category_id": 1, "keypoints": _triples(17), "score": 0.9},
    ]
    found = _coco(tmp_path, rows).detect_photo(_photo("000000000785.jpg"))
    assert [d.score for d in found] == [0.9, 0.5]
    assert found[1].keypoints is not None
    assert found[1].keypoints.confidence[0, 0] == pytest.approx(0.6)
    assert len(_coco(tmp_path, rows, least_score=0.0).detect_photo(_photo("000000000785.jpg"))) == 3
    by_name = [{**row, "image_id": "walk.jpg"} for row in rows[:1]]
    assert len(_coco(tmp_path, by_name).detect_photo(_photo("any.jpg"))) == 1


def test_a_picture_without_name_needs_a_file_about_one(tmp_path: Path) -> None:
    pixels = np.zeros((300, 200, 3), np.uint8)
    assert len(_coco(tmp_path, {"images": IMAGES[:1], "annotations": [_annotation(7)]}).detect(pixels)) == 1
    with pytest.raises(InputError, match="about 2 pictures"):
        _coco(tmp_path, {"images": IMAGES, "annotations": [_annotation(7)]}).detect(pixels)


COCO_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"keypoints": _nan(17)}, "person 1, keypoints.*not finite"),
    ({"keypoints": _triples(16, confidence=2)}, "16 joints"),
    ({"keypoints": _triples(17, confidence=0.5)}, "0, 1 or 2"),
    ({"keypoints": []}, "list of x, y, confidence"),
    ({"bbox": [1, 2, 3]}, "bbox should be"),
    ({"bbox": [1, 2, -3, 4]}, "bbox should be"),
    ({"score": "high"}, "score should be a number"),
    ({"bbox": [500, 40, 60, 200]}, "outside the picture"),
    ({"image_id": None}, "without image_id"),
    ({"keypoints": None}, "holds no keypoints"),
]


@pytest.mark.parametrize(("change", "expected"), COCO_FAULTS)
def test_faulty_coco_files(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    content = {"images": IMAGES[:1], "annotations": [_annotation(7) | change]}
    with pytest.raises(InputError, match=expected) as caught:
        _coco(tmp_path, content).detect_photo(_photo())
    assert str(tmp_path / "coco.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"images": IMAGES}, {"annotations": []}, [5], {"images": [1], "annotations": []}])
def test_other_json_is_not_in_cocos_layout(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InputError, match="not in COCO's layout"):
        _coco(tmp_path, content)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs shared/data/photos, which is not part of the project")
@pytest.mark.parametrize(("start", "skeleton_name"), [("pexels", "openpose25"), ("coco_000000000785", "coco17")])
def test_files_as_other_tools_write_them(start: str, skeleton_name: str) -> None:
    items = json.loads((PHOTOS / "index.json").read_text())["items"]
    item = next(i for i in items if i["image"].startswith(start))
    reader = OpenPoseReader(OpenPoseSettings(path=str(PHOTOS / item["keypoints"])))
    (found,) = reader.detect_photo(_photo(item["image"], tuple(item["size"])))
    assert found.keypoints is not None
    assert found.keypoints.skeleton == skeleton_name
    assert (found.keypoints.confidence > 0.5).sum() > 15
    x, y, w, h = item["bbox_xywh"]
    np.testing.assert_allclose(found.box, (x, y, w, h), atol=0.15 * max(w, h))
