"""`recon run` on real files: what is written, names, resuming, summaries and exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon_core.batch import result_names
from recon_core.export.json_npz import ResultRecord

DrawPhoto = Callable[..., Path]
FILES = {"result.json", "result.npz", "scene.glb", "overlay.png", "report.html"}
TOY = ("--method", "toy-body")
NOBODY = (0, 0, 0, 0)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_one_photo(photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    ran = recon("run", *TOY, photo("a.png"), "-o", tmp_path / "out", "--samples", 4)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{tmp_path / 'out' / 'a'}: 1 found in ")
    assert files(tmp_path / "out") == {"a"}
    assert files(tmp_path / "out" / "a") == FILES
    record = ResultRecord.model_validate_json((tmp_path / "out" / "a" / "result.json").read_text())
    assert record.method == "toy-body"
    assert record.people[0].samples == 4
    assert set(record.people[0].joint_std_mm) > {"left_wrist"}


def test_formats_and_a_third_partys_exporter(photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    ran = recon("run", *TOY, photo("a.png"), "-o", tmp_path / "out", "--format", "obj,ply", "--format", "bvh,note")
    assert ran.code == 0
    assert files(tmp_path / "out" / "a") == FILES | {"person_0.obj", "person_0.ply", "person_0.bvh", "note.txt"}


def test_options_settings_and_files_of_settings(photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('[run]\nmethod = "toy-body"\nfocal_px = 111\n[toy-body]\nsamples = 2\n[toy-fit]\nsteps = 9\n')
    ran = recon("run", photo("a.png"), "-o", tmp_path / "out", "--config", config, "--set", "toy-body.samples=3")
    assert ran.code == 0
    record = json.loads((tmp_path / "out" / "a" / "result.json").read_text())
    assert record["camera"]["K"][0][0] == 111
    assert record["people"][0]["samples"] == 3
    assert record["people"][0]["fit"]["iterations"] == 9
    ran = recon("run", photo("a.png"), "-o", tmp_path / "b", "--config", config, "--focal-px", 99, "--no-fit")
    record = json.loads((tmp_path / "b" / "a" / "result.json").read_text())
    assert record["camera"]["K"][0][0] == 99
    assert record["people"][0]["fit"] is None


def test_a_folder_with_bad_files_is_gone_through_and_summed_up(
    photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("in/a.png", "in/b.png", "in/d.png"):
        photo(name)
    photo("in/nobody.png", NOBODY)
    (tmp_path / "in" / "c.jpg").write_bytes(b"no picture")
    ran = recon("run", *TOY, tmp_path / "in", tmp_path / "missing.jpg", "-o", tmp_path / "out")
    assert ran.code == 1
    assert files(tmp_path / "out") == {"a", "b", "d"}
    assert all(files(folder) == FILES for folder in (tmp_path / "out").iterdir())
    lines = ran.err.strip().splitlines()
    assert len(lines) == 3
    assert f"recon: {tmp_path / 'missing.jpg'}: no such file" in lines
    assert any("c.jpg: not a picture" in line for line in lines)
    assert any("nobody.png: no person found" in line for line in lines)
    assert "3 done, 1 without a person: nobody.png, 2 failed: (missing) c.jpg" in ran.out


def test_finished_photos_are_skipped_unless_overwritten(
    photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    photo("in/a.png")
    recon("run", *TOY, tmp_path / "in", "-o", out)
    stamp = (out / "a" / "result.json").stat().st_mtime_ns
    photo("in/b.png")
    ran = recon("run", *TOY, tmp_path / "in", "-o", out)
    assert ran.code == 0
    assert ran.out.startswith("1 done, 1 skipped (")
    assert ran.err == ""
    assert (out / "a" / "result.json").stat().st_mtime_ns == stamp
    # Other settings: still skipped, and said so. What changes no numbers is no other setting.
    ran = recon("run", *TOY, tmp_path / "in" / "a.png", "-o", out, "--samples", 3)
    assert ran.code == 0
    assert "with other settings; --overwrite replaces it" in ran.out
    ran = recon("run", *TOY, tmp_path / "in" / "a.png", "-o", out, "--format", "ply", "--device", "cpu")
    assert ran.out == f"{out / 'a'} is there already; --overwrite replaces it\n"
    ran = recon("run", *TOY, tmp_path / "in", "-o", out, "--samples", 3, "--overwrite")
    assert ran.out.startswith("2 done (")
    assert json.loads((out / "a" / "result.json").read_text())["people"][0]["samples"] == 3
    assert files(out) == {"a", "b"}


def test_another_picture_of_the_same_name_is_not_taken_for_finished(
    photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path
) -> None:
    recon("run", *TOY, photo("a.png"), "-o", tmp_path / "out")
    ran = recon("run", *TOY, photo("other/a.png", (10, 10, 40, 90)), "-o", tmp_path / "out")
    assert ran.code == 1
    assert "holds the result of another picture" in ran.line


def test_a_folder_of_the_users_own_is_never_replaced(
    photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path
) -> None:
    own = tmp_path / "out" / "a" / "diary.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    ran = recon("run", *TOY, photo("a.png"), "-o", tmp_path / "out", "--overwrite")
    assert ran.code == 1
    assert "is there already and is no result of recon" in ran.line
    assert own.read_text() == "mine"
    assert files(tmp_path / "out") == {"a"}


def test_photos_of_one_name_get_folders_of_their_own(
    photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path
) -> None:
    inputs = [photo("x/a.png"), photo("x/a.bmp", (90, 10, 30, 90)), photo("x/b.png"), photo("y/b.png")]
    ran = recon("run", *TOY, *inputs, "-o", tmp_path / "out")
    assert ran.code == 0
    assert files(tmp_path / "out") == {"a.png", "a.bmp", "x_b.png", "y_b.png"}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["p/a.jpg", "p/b.jpg"], ["a", "b"]),
        (["p/a.jpg", "p/A.jpg"], ["a.jpg", "A.jpg-2"]),
        (["p/a.jpg", "p/a.png", "p/b.png"], ["a.jpg", "a.png", "b"]),
        (["p/x/a.jpg", "p/y/a.jpg"], ["x_a.jpg", "y_a.jpg"]),
        (["p/a/b_c.jpg", "p/a_b/c.jpg", "p/c.jpg", "p/b_c.jpg"], ["a_b_c.jpg", "a_b_c.jpg-2", "c.jpg", "b_c.jpg"]),
        ([], []),
    ],
)
def test_result_names(paths: list[str], names: list[str]) -> None:
    found = result_names([Path(path) for path in paths])
    assert found == names
    assert len({name.casefold() for name in found}) == len(found)


def test_json_tells_programs_what_became_of_each(photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    ran = recon("run", *TOY, photo("a.png"), photo("n.png", NOBODY), "-o", tmp_path / "out", "--json")
    assert (ran.code, ran.err) == (1, "")
    a, nobody = json.loads(ran.out)
    assert (a["status"], a["found"], a["folder"]) == ("done", 1, str(tmp_path / "out" / "a"))
    assert (nobody["status"], nobody["folder"]) == ("nobody", None)
    assert "no person found" in nobody["message"]


def test_the_box_option(photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    path = photo("a.png", (20, 20, 30, 80), (100, 10, 40, 100))
    assert recon("run", *TOY, path, "-o", tmp_path / "out", "--box", "95,5,50,110").code == 0
    record = json.loads((tmp_path / "out" / "a" / "result.json").read_text())
    assert [person["box"] for person in record["people"]] == [[95, 5, 50, 110]]
    assert record["settings"]["run"]["box"] == [95, 5, 50, 110]


def test_joints_from_openpose_and_coco_files(photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    path = photo("a.png", NOBODY)
    openpose = [value for j in range(25) for value in (60 + j, 20 + 3 * j, 0.9)]
    (tmp_path / "a_keypoints.json").write_text(json.dumps({"people": [{"pose_keypoints_2d": openpose}]}))
    coco = {
        "image_id": 7,
        "keypoints": [v for j in range(17) for v in (60 + j, 20 + 4 * j, 2)],
        "bbox": [50, 10, 40, 90],
    }
    (tmp_path / "coco.json").write_text(
        json.dumps(
            {"images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}], "annotations": [coco]}
        )
    )
    for name, skeleton in (("a_keypoints.json", "openpose25"), (".", "openpose25"), ("coco.json", "coco17")):
        out = tmp_path / f"out {skeleton} {len(name)}"
        ran = recon("run", *TOY, path, "-o", out, "--keypoints", tmp_path / name)
        assert (ran.code, ran.err) == (0, "")
        (person,) = json.loads((out / "a" / "result.json").read_text())["people"]
        assert person["detected"][skeleton]["nose"][:2] == [60, 20]
        assert person["fit"]["converged"]


def test_a_mesh_method_gets_the_same_files(photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    ran = recon("run", "--method", "toy-mesh", photo("a.png"), "-o", tmp_path / "out", "--format", "obj,bvh")
    assert ran.code == 0
    assert files(tmp_path / "out" / "a") == FILES | {"object_0.obj", "object_0.mtl", "object_0.png"}
    record = json.loads((tmp_path / "out" / "a" / "result.json").read_text())
    assert record["people"] == []
    assert record["objects"][0]["textured"] is True
    assert record["objects"][0]["extra"]["light"] == [1] * 9


def test_ctrl_c_leaves_whole_results_and_the_rest_for_the_next_run(
    photo: DrawPhoto, recon_process: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for i in range(8):
        photo(f"in/{i}.png")
    slow = recon_process("run", *TOY, tmp_path / "in", "-o", out, "--set", "toy-body.nap=0.4")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (out / "1").exists():
        assert slow.poll() is None, slow.communicate()
        time.sleep(0.05)
    slow.send_signal(signal.SIGINT)
    printed, errors = slow.communicate(timeout=120)
    assert slow.returncode == 130, errors
    assert printed == ""
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    finished = files(out)
    assert 2 <= len(finished) < 8
    assert all(files(out / name) == FILES for name in finished)  # and no folder under construction
    for name in finished:
        ResultRecord.model_validate_json((out / name / "result.json").read_text())
    again = recon_process("run", *TOY, tmp_path / "in", "-o", out)
    printed, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert f"{8 - len(finished)} done, {len(finished)} skipped" in printed
    assert files(out) == {str(i) for i in range(8)}


def test_the_default_detector_and_renderer_on_a_real_photo(recon: Callable[..., Any], tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose astronaut is the photo, is not installed")
    from PIL import Image

    from recon_core.assets import assets

    for name in ("blazepose-detection", "blazepose-landmarks"):
        if assets().status_of(name).state != "present":
            pytest.skip(f"asset {name} is not here: {assets().how_to_get(name)}")
    path = tmp_path / "astronaut.png"
    Image.fromarray(data.astronaut()).save(path)
    ran = recon("run", *TOY, path, "-o", tmp_path / "out", "--detector", "blazepose")
    assert ran.code == 0, ran.err
    record = json.loads((tmp_path / "out" / "astronaut" / "result.json").read_text())
    x, y, w, h = record["people"][0]["box"]
    assert x < 220 < x + w  # her face
    assert y < 120 < y + h
    nose = np.array(record["people"][0]["detected"]["blazepose33"]["nose"])
    np.testing.assert_allclose(nose[:2], [222, 115], atol=25)
