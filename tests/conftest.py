"""Shared by the tests of core and plugins in this folder: temporary packages with real entry points, and recon in a
process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_python() -> Run:
    """run_python("-c", program, path=[folders before the installed packages], env={...}) in a new process."""

    def run(
        *arguments: str, path: Sequence[Path] = (), env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "COLUMNS": "400"} | (env or {})
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=600, check=False, env=environment
        )

    return run


@pytest.fixture
def run_recon(run_python: Run) -> Run:
    """run_recon("methods", "--json"): the command line in a new process; `path` and `env` as of run_python."""
    return partial(run_python, "-m", "recon_core.cli")


@pytest.fixture
def installed(tmp_path: Path) -> Callable[..., Path]:
    """Lay out an installed distribution: `installed("my-pkg", {"my_pkg.py": source}, entry_point="my_pkg")`.

    Returns the folder to put on PYTHONPATH. It holds a .dist-info, which is what importlib.metadata reads.
    """

    def install(package: str, files: dict[str, str], entry_point: str, metadata: str = "") -> Path:
        site = tmp_path / "site"
        for name, source in files.items():
            file = site / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        info = site / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {package}\nVersion: 1.0\n{metadata}")
        (info / "entry_points.txt").write_text(f"[recon.plugins]\n{package} = {entry_point}\n")
        return site

    return install


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """newcomer("recon", "run", ...): a program in a new virtual environment, which sees this one's packages.

    `pip install` installs from disk alone. newcomer.folder is where programs run.
    """
    folder = tmp_path_factory.mktemp("newcomer")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    python = folder / "env/bin/python"

    def call(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command: list[object] = [python, "-m", program, *arguments]
        if program == "recon":
            command = [python, "-m", "recon_core.cli", *arguments]
        elif program == "pip":
            here = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
            command = [sys.executable, "-m", "pip", "--python", python, *arguments, *here]
        return subprocess.run(
            [*map(str, command)], cwd=folder, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    call.folder = folder  # type: ignore[attr-defined]
    return call
