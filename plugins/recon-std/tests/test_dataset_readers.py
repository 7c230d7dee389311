"""Readers of training data: on small files of the layout they read, and on the real sets where those are at hand."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from recon_core.datasets import Mixture, Source, SourceSpec, crop_observation, load_sources
from recon_core.errors import TrainingError, UsageError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.skeletons import LSP14, SMPL24, SMPL_PARENTS
from recon_core.structures import Camera
from recon_std.readers.augmentation import Augmentation, AugmentationSettings, augmented_pose, original_pose
from recon_std.readers.lsp_ext import LSPExtendedDataset
from recon_std.readers.mocap import MocapDataset, action_of, mirrored, straighten_knees

DATA = Path(os.environ.get("RECON_DATA_DIR", "/work/shared/data"))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def random_poses(count: int, seed: int = 0) -> torch.Tensor:
    return 0.4 * torch.randn(count, 24, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def global_rotations(pose: torch.Tensor) -> list[torch.Tensor]:
    out: list[torch.Tensor] = []
    for joint, parent in enumerate(SMPL_PARENTS):
        out.append(pose[:, joint] if parent < 0 else out[parent] @ pose[:, joint])
    return out


# -- mocap


def write_mocap(folder: Path, split: str = "train", **changes) -> dict:
    frames = np.array([30, 10, 20])
    arrays = {
        "poses": random_poses(60).numpy().astype(np.float16),
        "clip": np.repeat(np.arange(3), frames).astype(np.int16),
        "frame": np.concatenate([np.arange(n) for n in frames]).astype(np.int16),
        "flags": np.zeros(60, np.uint8),
        "clip_names": np.array(["acrnn_salsa_01", "acrnn_salsa_02", "dm_roll"]),
        "source": np.zeros(3, np.int8),
        "source_names": np.array(["made"]),
        "clip_knee_p3": np.array([15, 2, 30], np.float32),
        "joint_names": np.array(SMPL24.joints),
    } | changes
    np.savez(folder / f"poses_{split}.npz", **{k: v for k, v in arrays.items() if v is not None})
    return arrays


def test_mocap_gives_rotations_and_ids(tmp_path):
    arrays = write_mocap(tmp_path)
    data = MocapDataset(tmp_path, MocapDataset.Config(straighten=False))
    assert len(data) == 60
    row = data[35]
    assert row["id"] == "acrnn_salsa_02/5"
    torch.testing.assert_close(
        row["recorded_pose"], axis_angle_to_matrix(torch.from_numpy(arrays["poses"][35].astype(np.float32)))
    )
    both = data.draw_batch([35, 3], [0, 0])
    assert both["id"] == ["acrnn_salsa_02/5", "acrnn_salsa_01/3"]
    torch.testing.assert_close(both["recorded_pose"][0], row["recorded_pose"])


def test_mocap_draws_actions_alike(tmp_path):
    write_mocap(tmp_path)
    data = MocapDataset(tmp_path)
    share = [float(data.sampling_weights[data.clip == c].sum()) for c in range(3)]
    assert share == pytest.approx([1 / 8, 1 / 8, 6 / 8])  # salsa one part, deepmimic three


@pytest.mark.parametrize(
    ("clip", "action"),
    [
        ("acrnn_salsa_03", "salsa"),
        ("exp_train_walking_extra_14", "walking"),
        ("exp_test_walking_1", "walking"),
        ("exp_train_basketball_signal_5", "basketball_signal"),
        ("cmu_02_01", "cmu_02"),
        ("dm_getup_faceup", "deepmimic"),
    ],
)
def test_actions_are_read_off_clip_names(clip, action):
    assert action_of(clip) == action


def test_straightening_takes_the_angle_and_leaves_hip_to_ankle_and_foot():
    pose = torch.zeros(1, 24, 3, dtype=torch.float64)
    pose[:, SMPL24.index("left_knee"), 0] = math.radians(30)
    pose[:, SMPL24.index("left_hip")] = torch.tensor([-0.4, 0.2, 0.1])
    before = axis_angle_to_matrix(pose)
    after = straighten_knees(before, torch.tensor([10.0]))
    hip, knee, ankle = (SMPL24.index(f"left_{j}") for j in ("hip", "knee", "ankle"))
    assert math.degrees(math.acos((after[0, knee].trace() - 1) / 2)) == pytest.approx(20)
    down = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
    for pair in (before, after):
        turned = global_rotations(pair)
        pair_line = turned[hip][0] @ down + turned[knee][0] @ down
        if pair is before:
            line, foot = pair_line / pair_line.norm(), turned[ankle]
        else:
            torch.testing.assert_close(pair_line / pair_line.norm(), line)
            torch.testing.assert_close(turned[ankle], foot)


def test_only_cmu_knees_are_straightened(tmp_path):
    write_mocap(tmp_path)
    raw = MocapDataset(tmp_path, MocapDataset.Config(straighten=False))
    data = MocapDataset(tmp_path)
    changed = (data.poses - raw.poses).abs().amax((1, 2)) > 1e-3
    assert changed[data.clip == 0].all()  # 8 degrees at most, off a standing clip
    assert not changed[data.clip == 1].any()  # its 2 degrees are what a straight leg has
    assert not changed[data.clip == 2].any()  # DeepMimic has true hinges


def test_a_mirrored_pose_is_the_reflected_body():
    """Joint rotations reflected in x: global rotations are M G M of the other side's."""
    pose = random_poses(3)
    before = global_rotations(axis_angle_to_matrix(pose))
    after = global_rotations(axis_angle_to_matrix(mirrored(pose)))
    M = torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64))
    for joint, other in enumerate(SMPL24.mirror):
        torch.testing.assert_close(after[joint], M @ before[other] @ M)
    torch.testing.assert_close(mirrored(mirrored(pose)), pose)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": None}, "not a motion capture file"),
        ({"joint_names": np.array(["a"] * 24)}, "not those of smpl24"),
    ],
)
def test_a_file_of_another_layout_is_refused(tmp_path, changes, message):
    write_mocap(tmp_path, **changes)
    with pytest.raises(TrainingError, match=rf"poses_train\.npz: .*{message}"):
        MocapDataset(tmp_path)


def test_a_missing_or_cut_mocap_file_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"poses_val\.npz: no such file"):
        MocapDataset(tmp_path, MocapDataset.Config(split="val"))
    write_mocap(tmp_path)
    file = tmp_path / "poses_train.npz"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(TrainingError, match=r"poses_train\.npz"):
        MocapDataset(tmp_path)
    with pytest.raises(UsageError, match="--data mocap:FOLDER"):
        MocapDataset(None)


def test_pickled_arrays_are_not_run(tmp_path):
    write_mocap(tmp_path, clip_names=np.array([{"a": 1}] * 3, dtype=object))
    with pytest.raises(TrainingError, match="not a motion capture file"):
        MocapDataset(tmp_path)


# -- augmentation


def joints_of(pose: torch.Tensor) -> torch.Tensor:
    """Joints of a body of symmetric bones, in the frame of pose[:, 0]."""
    half = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bones = half + half[list(SMPL24.mirror)] * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    turned = global_rotations(pose)
    at: list[torch.Tensor] = []
    for joint, parent in enumerate(SMPL_PARENTS):
        zero = torch.zeros(len(pose), 3, dtype=torch.float64)
        at.append(zero if parent < 0 else at[parent] + turned[parent] @ bones[joint])
    return torch.stack(at, 1)


@pytest.mark.parametrize("flipped", [False, True])
def test_the_augmented_body_lies_on_the_augmented_picture(flipped):
    """Photo joints through the crop's affine map are the augmented pose's joints through the crop's intrinsics."""
    varied = Augmentation(roll=0.4, scale=1.1, flipped=flipped)
    focal, center = 500.0, (160.0, 120.0)
    crop = varied.crop((100.0, 50.0, 80.0, 160.0), 224, 1.2)
    pose = axis_angle_to_matrix(random_poses(2))
    flags = torch.full((2,), float(flipped))
    turned = augmented_pose(pose, torch.full((2,), 0.4, dtype=torch.float64), flags)
    there = torch.tensor([0.3, -0.2, 9.0], dtype=torch.float64)

    photo_camera = Camera.perspective(torch.full((2,), focal, dtype=torch.float64), (320, 240))
    photo_camera.K[:, :2, 2] = torch.tensor(center)
    expected = photo_camera.project(joints_of(pose) + there) @ crop[:, :2].T.double() + crop[:, 2].double()
    if flipped:
        expected = expected[:, list(SMPL24.mirror)]

    c, s = math.cos(0.4), math.sin(0.4)
    sign = -1.0 if flipped else 1.0
    roll = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    moved = roll @ (there * torch.tensor([sign, 1, 1], dtype=torch.float64))
    K = varied.intrinsics(focal, center, crop).double()
    crop_camera = Camera(K.expand(2, 3, 3), photo_camera.R, photo_camera.t, (224, 224))
    torch.testing.assert_close(crop_camera.project(joints_of(turned) + moved), expected, atol=1e-3, rtol=0)


def test_the_original_pose_comes_back():
    pose = axis_angle_to_matrix(random_poses(4))
    roll = torch.tensor([0.3, -0.5, 0.0, 1.0], dtype=torch.float64)
    flipped = torch.tensor([0.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(original_pose(augmented_pose(pose, roll, flipped), roll, flipped), pose)


def test_variations_stay_in_their_ranges():
    settings = AugmentationSettings(rotation=20, scale=0.1, shift=0.06, flip=0.3, color=0.2)
    drawn = [Augmentation.draw(settings, np.random.default_rng(i)) for i in range(400)]
    roll = np.degrees([d.roll for d in drawn])
    assert np.abs(roll).max() <= 20
    assert np.abs(roll).max() > 15
    assert 0.9 <= min(d.scale for d in drawn) <= max(d.scale for d in drawn) <= 1.1
    assert np.mean([d.flipped for d in drawn]) == pytest.approx(0.3, abs=0.07)
    assert all(0.8 <= c <= 1.2 for d in drawn for c in d.color)
    shift = np.array([d.shift for d in drawn])
    assert np.abs(shift).max() <= 0.06
    assert (shift.std(0) > 0.03).all()
    assert abs(np.corrcoef(shift.T)[0, 1]) < 0.2


def test_a_shift_moves_the_person_by_its_share_of_the_crop_however_it_is_turned():
    box = (100.0, 50.0, 80.0, 160.0)
    middle = torch.tensor([140.0, 130.0, 1.0])
    for roll, flipped in ((0.0, False), (0.7, True)):
        crop = Augmentation(roll=roll, scale=1.2, flipped=flipped, shift=(0.1, -0.05)).crop(box, 200, 1.2)
        torch.testing.assert_close(crop @ middle, torch.tensor([120.0, 90.0]), atol=1e-3, rtol=0)


# -- lsp-ext


def write_lsp(folder: Path, count: int = 6) -> list[dict]:
    """Pictures with a coloured dot at each joint: red for the left wrist, green for the right ankle."""
    (folder / "images").mkdir()
    rng, items = np.random.default_rng(0), []
    for number in range(count):
        joints = rng.uniform(20, 180, (14, 2))
        image = Image.new("RGB", (200, 220), (0, 0, 40))
        draw = ImageDraw.Draw(image)
        for joint, color in (("left_wrist", (255, 0, 0)), ("right_ankle", (0, 255, 0))):
            x, y = joints[LSP14.index(joint)]
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=color)
        image.save(folder / f"images/im{number}.png")
        items.append(
            {
                "id": f"im{number}",
                "image": f"images/im{number}.png",
                "split": "val" if number == 0 else "train",
                "joints": [[*point, 1] for point in joints.tolist()],
                "crop_xyxy_in_source": [10, 20, 110, 130],
                "source_size": [300, 400],
                "resize_factor": 2.0,
            }
        )
    (folder / "index.json").write_text(json.dumps({"joint_names": LSP14.joints, "items": items}))
    return items


def colour_at(image: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    x, y = (point - 0.5).round().long().tolist()
    return image[:, y, x]


def test_joints_stay_on_what_they_mark(tmp_path):
    write_lsp(tmp_path)
    data = LSPExtendedDataset(tmp_path, LSPExtendedDataset.Config(color=0.0))
    assert len(data) == 5
    flipped = 0
    for index in range(5):
        for row in (data[index], *(data.draw(index, np.random.default_rng(s)) for s in range(6))):
            assert row["image"].shape == (3, 224, 224)
            marks = {"left_wrist": 0, "right_ankle": 1}
            if row["flipped"]:  # what was the left wrist is the picture's right one
                marks, flipped = {"right_wrist": 0, "left_ankle": 1}, flipped + 1
            for joint, channel in marks.items():
                point = row["keypoints2d"][LSP14.index(joint)]
                if (point > 4).all() and (point < 220).all():
                    colour = colour_at(row["image"], point)
                    assert colour.argmax() == channel
                    assert colour[channel] > 0.8
    assert flipped > 5


def test_the_crop_holds_the_person(tmp_path):
    items = write_lsp(tmp_path)
    row = LSPExtendedDataset(tmp_path, LSPExtendedDataset.Config(augment=False))[0]
    low, high = row["keypoints2d"].amin(0), row["keypoints2d"].amax(0)
    torch.testing.assert_close((low + high) / 2, torch.tensor([112.0, 112.0]), atol=1e-3, rtol=0)
    assert float((high - low).max()) == pytest.approx(224 / 1.2 / 1.1, rel=1e-4)
    x, y = items[1]["joints"][3][:2]
    torch.testing.assert_close(row["keypoints2d"][3], row["to_crop"] @ torch.tensor([x, y, 1.0]))


def test_a_box_of_the_index_is_cropped_in_place_of_the_joints(tmp_path):
    items = write_lsp(tmp_path)
    items[1]["box"] = [40, 30, 60, 100]
    (tmp_path / "index.json").write_text(json.dumps({"joint_names": LSP14.joints, "items": items}))
    row = LSPExtendedDataset(tmp_path, LSPExtendedDataset.Config(augment=False))[0]
    torch.testing.assert_close(row["to_crop"] @ torch.tensor([70.0, 80.0, 1.0]), torch.tensor([112.0, 112.0]))
    assert float(row["to_crop"][0, 0]) == pytest.approx(224 / 120)


def test_intrinsics_are_those_of_the_source_photo(tmp_path):
    """The photo's centre (150, 200), and its diagonal 500 px as focal length, through both crops."""
    write_lsp(tmp_path)
    row = LSPExtendedDataset(tmp_path, LSPExtendedDataset.Config(augment=False))[0]
    scale = float(row["to_crop"][0, 0])
    assert float(row["K"][0, 0]) == pytest.approx(500 * 2 * scale, rel=1e-5)
    center = torch.tensor([(150 - 10) * 2.0, (200 - 20) * 2.0, 1.0])
    torch.testing.assert_close(row["K"][:2, 2], row["to_crop"] @ center)


def test_missing_and_damaged_pictures_are_counted(tmp_path):
    write_lsp(tmp_path)
    (tmp_path / "images/im2.png").unlink()
    file = tmp_path / "images/im4.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(TrainingError, match=r"im2\.png: missing, and 1 more of 5 files; --data lsp-ext"):
        LSPExtendedDataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("joint_names"), "not an index of this layout"),
        (lambda index: index.update(joint_names=["nose"]), "not those of lsp14"),
        (lambda index: index["items"][2].pop("source_size"), "im2 has no source_size"),
        (lambda index: index["items"][2].update(joints=[[1, 2, 3]]), r"im2 has joints of shape \(1, 3\)"),
        (lambda index: index["items"][2].update(box=[1, 2, 0, 3]), "im2 has a box that is not x, y, width, height"),
        (lambda index: index["items"][2].update(box="here"), "not an index of this layout"),
    ],
)
def test_an_index_of_another_layout_is_refused(tmp_path, change, message):
    write_lsp(tmp_path)
    file = tmp_path / "index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    with pytest.raises(TrainingError, match=message):
        LSPExtendedDataset(tmp_path)


def test_no_index_at_all(tmp_path):
    with pytest.raises(TrainingError, match=r"index\.json: no such file"):
        LSPExtendedDataset(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(TrainingError, match="not an index of this layout"):
        LSPExtendedDataset(tmp_path)


def test_both_sets_mix_into_one_batch(tmp_path):
    write_lsp(tmp_path)
    write_mocap(tmp_path)
    sources = load_sources([SourceSpec("lsp-ext", str(tmp_path), 0.5), SourceSpec("mocap", str(tmp_path), 0.5)])
    batch = Mixture(sources, 8).batch(0)
    assert torch.equal(batch["has_image"], 1 - batch["has_recorded_pose"])
    seen = crop_observation(batch)
    torch.testing.assert_close(seen.keypoints.points, batch["keypoints2d"])
    assert seen.keypoints.confidence[batch["has_image"] == 0].abs().max() == 0
    assert seen.camera.size == (224, 224)
    assert batch["image"].shape == (8, 3, 224, 224)
    assert batch["recorded_pose"].shape == (8, 24, 3, 3)
    assert set(batch["source"]) == {"lsp-ext", "mocap"}


# -- the real sets


@pytest.mark.skipif(not (DATA / "lsp_ext/index.json").exists(), reason=f"no lsp_ext in {DATA} (RECON_DATA_DIR)")
def test_the_real_lsp_ext_is_read_whole():
    data = LSPExtendedDataset(DATA / "lsp_ext")
    held_out = LSPExtendedDataset(DATA / "lsp_ext", LSPExtendedDataset.Config(split="val"))
    assert (len(data), len(held_out)) == (1350, 150)
    assert not {item["id"] for item in data.items} & {item["id"] for item in held_out.items}
    batch = Mixture([Source("lsp-ext", data)], 4).batch(0)
    assert torch.isfinite(batch["keypoints2d"]).all()
    assert 0.05 < float(batch["image"].mean()) < 0.95


@pytest.mark.skipif(not (DATA / "mocap/poses_val.npz").exists(), reason=f"no mocap in {DATA} (RECON_DATA_DIR)")
def test_the_real_mocap_is_read_whole():
    data = MocapDataset(DATA / "mocap", MocapDataset.Config(split="val"))
    assert len(data) == 9937
    knees = data.poses[:, [SMPL24.index("left_knee"), SMPL24.index("right_knee")], 0]
    assert (knees > -math.radians(15)).float().mean() > 0.999
