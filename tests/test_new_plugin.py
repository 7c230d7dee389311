"""`recon new plugin`: what it writes works as it is, in an environment that a newcomer would make; what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon_core.cli.new import KINDS, create_plugin
from recon_core.errors import OutputError, UsageError

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/recon-template"

Call = Callable[..., subprocess.CompletedProcess[str]]


def files_of(folder: Path) -> dict[str, str]:
    """Path -> text of every file, but for what Python and pip leave."""
    found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_text() for p in found}


@pytest.fixture(scope="module")
def written(newcomer: Call) -> Path:
    """A package of each kind, by the command line, installed by `pip install -e`."""
    folder: Path = newcomer.folder  # type: ignore[attr-defined]
    for kind in KINDS:
        done = newcomer("recon", "new", "plugin", f"my-{kind}", "--kind", kind)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"pip install -e my-{kind}" in done.stdout
    folders = [argument for kind in KINDS for argument in ("-e", f"./my-{kind}")]
    done = newcomer("pip", "install", *folders)
    assert done.returncode == 0, done.stderr
    pixels = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def run(newcomer: Call, written: Path) -> Callable[..., dict]:
    """run("body", "--method", ...): result.json of the photo, by the command line. Each name is run once."""

    @cache
    def result(name: str, *arguments: str) -> dict:
        done = newcomer("recon", "run", "photo.png", "-o", name, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads((written / name / "photo/result.json").read_text())

    return result


BOX = ("--box", "100,30,80,180")


@pytest.mark.parametrize(("kind", "gives"), [("body", "people"), ("object", "objects"), ("image", "images")])
def test_its_method_gives_a_result_as_written(run, kind, gives):
    result = run(kind, "--method", f"my-{kind}", *BOX)
    assert result["method"] == f"my-{kind}"
    assert result["versions"][f"my-{kind}"] == "0.1.0"
    assert len(result[gives]) == 1


def test_its_fitter_moves_a_body_onto_the_joints_as_written(run, written):
    """The joints of the body that `my-body` gives, 20 pixels to the right."""
    (person,) = run("body", "--method", "my-body", *BOX)["people"]
    joints = person["joints2d"]["coco17"].values()
    annotation = {
        "images": [{"id": 1, "file_name": "photo.png", "width": 320, "height": 240}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [100, 30, 80, 180], "num_keypoints": 17,
             "keypoints": [number for x, y in joints for number in (x + 20, y, 2)]}
        ],
    }  # fmt: skip
    (written / "joints.json").write_text(json.dumps(annotation))
    (fitted,) = run("fit", "--method", "my-body", "--fitter", "my-fit", "--keypoints", "joints.json")["people"]
    assert fitted["fit"]["energy"] < 0.01 * fitted["fit"]["initial_energy"]
    before, after = (one["joints2d"]["smpl24"]["pelvis"][0] for one in (person, fitted))
    assert after - before == pytest.approx(20, abs=1)


def test_its_own_tests_and_those_of_every_plugin_pass(newcomer, written):
    chosen = [word for kind in KINDS for word in ("--recon-plugin", f"my_{kind}")]
    tests = [f"my-{kind}/tests" for kind in KINDS]
    done = newcomer("pytest", "-p", "no:cacheprovider", "--import-mode=importlib", *tests, *chosen)
    assert done.returncode == 0, done.stdout[-3000:]
    # Four of their own; for each package two, and for its part from five on.
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= len(KINDS) * (1 + 2 + 5)


def test_the_example_is_what_it_writes(tmp_path):
    made = create_plugin("recon-template", "body", "mean-pose", tmp_path)
    assert files_of(made) == files_of(EXAMPLE)


REFUSED = {
    "a name with capitals": (["MyMethod"], "PACKAGE 'MyMethod': write lower-case words"),
    "a path": (["../my-method"], "PACKAGE '../my-method': write lower-case words"),
    "a number first": (["3d-pose"], "PACKAGE '3d-pose': write lower-case words joined by '-', beginning with a letter"),
    "a word of Python": (["lambda"], "PACKAGE 'lambda': Python has a 'lambda' of its own"),
    "a module of Python": (["json"], "PACKAGE 'json': Python has a 'json' of its own"),
    "an installed package": (["recon-std"], "PACKAGE 'recon-std': Python has a 'recon_std' of its own or installed"),
    "a method that is there": (["new-one", "--name", "prohmr"], "method 'prohmr' is brought by recon-prohmr"),
    "a fitter that is there": (["adam", "--kind", "fit"], "fitter 'adam' is brought by recon-std"),
    "a bad registered name": (["new-one", "--name", "New One"], "--name 'New One': write lower-case words"),
    "an unknown kind": (["new-one", "--kind", "bodies"], "'bodies' is not one of"),
    "a folder that is there": (["taken"], "taken: is there already; choose another name"),
    "no such place": (["new-one", "-o", "nowhere"], "nowhere: no such folder; make it first"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_refuses_it_refuses_in_one_line_and_writes_nothing(run_recon, tmp_path, monkeypatch, case):
    arguments, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    done = run_recon("new", "plugin", *arguments)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("recon: error: ")
    assert message in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    assert not list((tmp_path / "taken").iterdir())


def test_nothing_is_half_written(tmp_path, monkeypatch):
    def full(self: Path, *arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="my-method: cannot be written \\(No space left on device\\)"):
        create_plugin("my-method", "body", parent=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_a_folder_is_refused_before_python_is_asked(tmp_path):
    create_plugin("plain", "image", parent=tmp_path)
    with pytest.raises(UsageError, match="is there already"):
        create_plugin("plain", "image", parent=tmp_path)
