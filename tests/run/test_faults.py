"""What goes wrong, through the command line on real files: one line, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

DrawPhoto = Callable[..., Path]
TOY = ("--method", "toy-body")


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it is 60000 x 60000."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:3000])


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "folder without photos": (lambda path: path.mkdir(), "no pictures in this folder"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "truncated": (truncated, "damaged or truncated"),
    "no picture": (lambda path: path.write_text("hello"), "not a picture"),
    "decompression bomb": (bomb, "megapixels"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_cannot_be_used(kind: str, recon: Callable[..., Any], tmp_path: Path) -> None:
    make, message = BAD_FILES[kind]
    path = tmp_path / "bad.jpg"
    make(path)
    ran = recon("run", *TOY, path, "-o", tmp_path / "out")
    assert ran.code == 1
    assert ran.line.startswith(f"recon: error: {path}: ")
    assert message in ran.line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "L"),
        ("a.png", "RGBA"),
        ("a.tif", "CMYK"),
        ("a.png", "P"),
        ("a.png", "1"),
        ("a.png", "I;16"),
        ("a.jpg", "L"),
    ],
)
def test_pictures_of_every_mode_work(
    name: str, mode: str, photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path
) -> None:
    path = photo(name, mode=mode)
    # Grey people are not red: the box says where to look.
    ran = recon("run", "--method", "toy-image", path, "-o", tmp_path / "out", "--box", "60,20,30,80")
    assert (ran.code, ran.err) == (0, "")
    assert (tmp_path / "out" / "a" / "image.png").is_file()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (160, 120)])
def test_nobody_in_the_picture(
    size: tuple[int, int], photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path
) -> None:
    path = photo("a.png", (0, 0, 0, 0), size=size)
    ran = recon("run", *TOY, path, "-o", tmp_path / "out")
    assert ran.code == 3
    assert ran.line.startswith(f"recon: error: {path}: no person found")
    assert not (tmp_path / "out").exists()


def test_nobody_in_several_pictures_is_exit_3_and_with_a_bad_file_1(
    photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path
) -> None:
    empty = [photo(name, (0, 0, 0, 0)) for name in ("a.png", "b.png")]
    assert recon("run", *TOY, *empty, "-o", tmp_path / "out").code == 3
    assert recon("run", *TOY, *empty, tmp_path / "missing.png", "-o", tmp_path / "out").code == 1


@pytest.mark.parametrize("box", ["500,10,20,20", "-30,0,20,20", "10,120,5,5"])
def test_a_box_outside_the_picture(box: str, photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    ran = recon("run", *TOY, photo("a.png"), "-o", tmp_path / "out", "--box", box)
    assert ran.code == 1
    assert f"--box {box} is outside the picture of 160x120 pixels" in ran.line


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "1,2,0,4", "1,2,3,-4", "nan,1,2,3", "1,1,inf,2", ""])
def test_a_box_that_is_none(box: str, photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    ran = recon("run", *TOY, photo("a.png"), "-o", tmp_path / "out", "--box", box)
    assert ran.code == 2
    assert f"--box {box}: write it as x,y,width,height" in ran.line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "toy-bdy"], "unknown method 'toy-bdy'; did you mean 'toy-body'?"),
        ([*TOY, "--set", "toy-body.sampels=3"], "unknown setting 'sampels'; did you mean 'samples'?"),
        ([*TOY, "--set", "run.focal=3"], "unknown setting 'focal'; did you mean 'focal_px'?"),
        ([*TOY, "--set", "toybody.samples=3"], "unknown section 'toybody'; did you mean 'toy-body'?"),
        ([*TOY, "--set", "samples=3"], "write it as section.key=value"),
        ([*TOY, "--config", "no.toml"], "--config no.toml: cannot be read"),
        ([*TOY, "--format", "glbb,ply"], "unknown format 'glbb'"),
        ([*TOY, "--format", "obk"], "unknown format 'obk'; did you mean 'obj'?"),
        ([*TOY, "--detector", "read"], "unknown detector 'read'; did you mean 'red'?"),
        ([*TOY, "--samples", "-1"], "--samples"),
        ([*TOY, "--focal-px", "0"], "focal_px"),
        ([*TOY, "--focal-px", "nan"], "focal_px"),
        ([*TOY, "--device", "gpu"], "--device gpu: cannot be used"),
        (["--method", "toy-mesh", "--samples", "3"], "--samples: method 'toy-mesh' has no setting 'samples'"),
        ([*TOY, "--overwite"], "--overwrite"),
    ],
)
def test_a_wrong_call(
    arguments: list[str], message: str, photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path
) -> None:
    ran = recon("run", photo("a.png"), "-o", tmp_path / "out", *arguments)
    assert ran.code == 2
    assert message in ran.line
    assert not (tmp_path / "out").exists()


def test_no_photo_is_a_wrong_call(recon: Callable[..., Any]) -> None:
    ran = recon("run", *TOY)
    assert ran.code == 2
    assert "which photos?" in ran.line


def test_an_output_folder_that_cannot_be_written_is_named_before_any_work(
    photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path, toy: Any
) -> None:
    (tmp_path / "file").write_text("")
    toy.CALLS.clear()
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/recon-out")):
        ran = recon("run", *TOY, photo("a.png"), "-o", out)
        assert ran.code == 1
        assert ran.line.startswith(f"recon: error: {out}: cannot be written (")
    assert toy.CALLS == []


@pytest.mark.skipif(os.name != "posix", reason="folders are made read-only by their mode")
def test_an_output_folder_without_permission(photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    ran = recon("run", *TOY, photo("a.png"), "-o", out)
    assert ran.code == 1
    assert "cannot be written (Permission denied)" in ran.line


def test_a_full_disk_stops_the_run_with_one_line_and_keeps_what_is_whole(
    photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from recon_core.export import json_npz

    for i in range(4):
        photo(f"in/{i}.png")
    write = json_npz.write_npz
    written: list[Path] = []

    def filling(reconstruction: Any, path: Path) -> None:
        written.append(path)
        write(reconstruction, path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json_npz, "write_npz", filling)
    ran = recon("run", *TOY, tmp_path / "in", "-o", tmp_path / "out")
    assert ran.code == 1
    assert ran.line == (
        f"recon: error: {tmp_path / 'out' / '2'}: cannot be written (the disk is full); make room. "
        "Nothing of this result was kept"
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0", "1"}
    assert len(written) == 3  # and no work was begun that could not be kept


def test_a_file_that_grows_over_what_the_system_allows(
    photo: DrawPhoto, recon_process: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """The operating system's own refusal, in the middle of a file."""
    resource = pytest.importorskip("resource", reason="this system has no limits on file sizes")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    process = recon_process("run", *TOY, photo("a.png"), "-o", tmp_path / "out", preexec_fn=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.strip() == (
        f"recon: error: {tmp_path / 'out' / 'a'}: cannot be written (File too large); choose another folder with -o. "
        "Nothing of this result was kept"
    )
    assert not (tmp_path / "out").exists()


def test_a_broken_plugin_harms_no_run(
    photo: DrawPhoto, recon_process: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    site = tmp_path / "broken"
    info = site / "broken_recon-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "broken_recon.py").write_text("raise RuntimeError('broken on import')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: broken-recon\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[recon.plugins]\nbroken = broken_recon\n")
    process = recon_process("run", *TOY, photo("a.png"), "-o", tmp_path / "out", path=(site,))
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert "1 found" in printed


def test_a_damaged_model_file_is_named_with_its_sha256(
    photo: DrawPhoto, recon_process: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "blazepose-detection.tflite").write_bytes(b"not the model")
    command = ("run", *TOY, "--detector", "red-by-file", photo("a.png"), "-o", tmp_path / "out")
    process = recon_process(*command, env={"RECON_ASSETS_DIR": str(assets)})
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "blazepose-detection.tflite: " in errors
    assert "sha256 is " in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


JOINTS = [value for j in range(25) for value in (60 + j, 20 + 3 * j, 0.9)]


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 1, "joints.json: cannot be read"),
        ("", 1, "joints.json: the file is empty"),
        ("{", 1, "joints.json: not a JSON file"),
        ("[" * 100_000, 1, "joints.json: "),
        ("[]", 1, "joints.json: holds no keypoints"),
        ('{"people": []}', 3, "no person found"),
        (json.dumps({"people": [{"pose_keypoints_2d": [float("nan"), *JOINTS[1:]]}]}), 1, "not finite"),
        (json.dumps({"people": [{"pose_keypoints_2d": [0.0] * 75}]}), 3, "no person found"),
        (json.dumps({"people": [{"pose_keypoints_2d": JOINTS[:7]}]}), 1, "x, y, confidence"),
    ],
)
def test_a_keypoints_file_that_cannot_be_used(
    content: str | None, code: int, message: str, photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "joints.json"
    if content is not None:
        path.write_text(content)
    ran = recon("run", *TOY, photo("a.png"), "-o", tmp_path / "out", "--keypoints", path)
    assert ran.code == code
    assert message in ran.line
    assert not (tmp_path / "out").exists()


def test_a_hook_that_raises_fails_its_photo_only(
    photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo("in/a.png", (10, 10, 30, 80), (90, 10, 30, 80))
    photo("in/b.png")

    class Calls(list):
        def append(self, call: str) -> None:
            if call == "before toy-body 2":
                raise ValueError("two are too many")

    monkeypatch.setattr(toy, "CALLS", Calls())
    ran = recon("run", *TOY, tmp_path / "in", "-o", tmp_path / "out")
    assert ran.code == 1
    assert "a.png: plugin toy-recon:toy: recon_before_predict failed: ValueError: two are too many" in ran.line
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"b"}


def test_results_survive_a_failed_replacement(
    photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recon_core.export import json_npz

    path = photo("a.png")
    recon("run", *TOY, path, "-o", tmp_path / "out")
    before = (tmp_path / "out" / "a" / "result.json").read_text()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(json_npz, "write_npz", fail)
    assert recon("run", *TOY, path, "-o", tmp_path / "out", "--overwrite", "--samples", "2").code == 1
    assert (tmp_path / "out" / "a" / "result.json").read_text() == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]
    assert json.loads(before)["people"][0]["samples"] == 0
