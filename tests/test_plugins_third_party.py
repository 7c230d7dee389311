"""A third party's package adds a method that `recon run` runs, and a broken one beside it harms nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TEMPLATE = Path(__file__).parents[1] / "examples/recon-template"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template, installed by pip into a folder of its own."""
    folder = tmp_path_factory.mktemp("third-party")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", folder, TEMPLATE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_its_method_is_listed_explained_and_runs_beside_a_broken_plugin(run_recon, installed, site, tmp_path):
    broken = installed("broken-pkg", {"broken_pkg.py": "raise RuntimeError('I am broken')"}, "broken_pkg")
    path = [site, broken]

    (row,) = [r for r in json.loads(run_recon("methods", "--json", path=path).stdout) if r["name"] == "mean-pose"]
    assert (row["package"], row["installed"], row["code_licence"]) == ("recon-template", True, "Apache-2.0")

    plugins = run_recon("plugins", path=path).stdout
    assert re.search(r"^recon-template +0.1.0 +ok +method mean-pose", plugins, re.M)
    assert re.search(
        r"^broken-pkg +1.0 +error +plugin broken-pkg \(broken_pkg\): RuntimeError: I am broken", plugins, re.M
    )

    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)).save(photo)
    done = run_recon(
        "run", "--method", "mean-pose", "--box", "100,30,80,180", "--set", "mean-pose.height=1.8",
        "--out", str(tmp_path / "out"), str(photo), path=path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out/photo"
    wanted = {"result.json", "result.npz", "scene.glb", "overlay.png", "report.html"}
    assert {p.name for p in folder.iterdir()} >= wanted
    result = json.loads((folder / "result.json").read_text())
    assert result["method"] == "mean-pose"
    assert result["settings"]["mean-pose"] == {"height": 1.8}
    assert result["versions"]["recon-template"] == "0.1.0"
    (person,) = result["people"]
    # It stands in the box: head above pelvis above feet, all inside, in the picture as the box says.
    joints = person["joints2d"]["smpl24"]
    heights = [joints[name][1] for name in ("head", "pelvis", "left_foot")]
    assert heights == sorted(heights)
    assert 30 < heights[0] < heights[-1] < 210
    assert joints["pelvis"][0] == pytest.approx(140, abs=3)

    strict = run_recon("methods", path=path, env={"RECON_STRICT_PLUGINS": "1"})
    assert (strict.returncode, strict.stdout) == (1, "")
    assert strict.stderr == "recon: error: plugin broken-pkg (broken_pkg): RuntimeError: I am broken\n"


def test_a_wrong_setting_of_its_method_is_refused(run_recon, site, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    done = run_recon(
        "run", "--method", "mean-pose", "--box", "1,1,30,60", "--set", "mean-pose.hieght=2",
        "--out", str(tmp_path / "out"), str(photo), path=[site],
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == ("recon: error: --set mean-pose.hieght=2: unknown setting 'hieght'; did you mean 'height'?\n")
    assert not (tmp_path / "out/photo").exists()


def test_a_taken_name_is_shown_and_the_catalogue_keeps_its_owner(run_recon, installed):
    source = "from recon_core import hookimpl\n@hookimpl\ndef recon_register(register):\n"
    calls = '    register.method("prohmr", "thief:Method")\n    register.renderer("warp", "thief:Renderer")\n'
    site = installed("thief", {"thief.py": source + calls}, "thief")
    done = run_recon("plugins", "--explain", path=[site])
    assert re.search(r"^method +prohmr +recon-prohmr +\S+ +registry.toml", done.stdout, re.M)
    assert re.search(r"^method +prohmr +thief +thief:Method +not used", done.stdout, re.M)
    assert "conflict: renderer 'warp' is registered by recon-std and thief: choose with --plugin" in done.stdout
    rows = json.loads(run_recon("methods", "--json", path=[site]).stdout)
    assert {r["name"]: r for r in rows}["prohmr"]["package"] == "recon-prohmr"
    chosen = run_recon("plugins", "--explain", "--plugin", "warp=recon-std", path=[site])
    assert re.search(r"^renderer +warp +recon-std +\S+ +--plugin warp=recon-std", chosen.stdout, re.M)
    assert "conflict:" not in chosen.stdout


def test_a_plugin_adds_a_verb(run_recon, installed):
    source = (
        "import click\nfrom recon_core import hookimpl\n"
        "@click.command()\ndef hello():\n    'Say hello.'\n    click.echo('hello there')\n"
        "@hookimpl\ndef recon_command(cli):\n    cli.add_command(hello)\n"
    )
    site = installed("greeter", {"greeter.py": source}, "greeter")
    assert "hello" in run_recon("--help", path=[site]).stdout
    assert run_recon("hello", path=[site]).stdout == "hello there\n"
    assert run_recon("helo", path=[site]).stderr == "recon: error: unknown command 'helo'; did you mean 'hello'?\n"


def test_a_plugin_whose_verb_hook_raises_leaves_the_other_verbs(run_recon, installed):
    source = "from recon_core import hookimpl\n@hookimpl\ndef recon_command(cli):\n    1 / 0\n"
    site = installed("crasher", {"crasher.py": source}, "crasher")
    done = run_recon("--help", path=[site])
    assert done.returncode == 0
    assert "methods" in done.stdout
    assert "warning: plugin crasher:crasher: recon_command failed: ZeroDivisionError" in done.stderr
    assert run_recon("methods", path=[site]).stderr == ""
