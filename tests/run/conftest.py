"""What the tests of runs and results share: the toy package installed, photos with red people, recon in-process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

Rectangle = tuple[int, int, int, int]


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy package as pip would install it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(HERE / "toy_recon.py", folder)
    info = folder / "toy_recon-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: toy-recon\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[recon.plugins]\ntoy = toy_recon\n")
    return folder


@pytest.fixture(scope="package", autouse=True)
def toy(site: Path) -> Iterator[ModuleType]:
    """The toy package, found by this process's registry. Its import is the registry's own."""
    from recon_core.plugins import registry

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sys.path.insert(0, str(site))
    registry.cache_clear()
    registry()
    yield sys.modules["toy_recon"]
    sys.path.remove(str(site))
    sys.modules.pop("toy_recon", None)
    registry.cache_clear()
    torch.set_num_threads(threads)


def draw(
    path: Path, *people: Rectangle, size: tuple[int, int] = (160, 120), mode: str = "RGB", **options: object
) -> Path:
    """A picture with red rectangles x, y, w, h on grey."""
    pixels = np.full((size[1], size[0], 3), 120, np.uint8)
    for x, y, w, h in people:
        pixels[y : y + h, x : x + w] = (220, 30, 30)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Callable[..., Path]:
    """`photo("a.png", (60, 20, 30, 80), ...)` draws red people into a file of the test's folder."""
    return lambda name, *people, **options: draw(tmp_path / name, *(people or ((60, 20, 30, 80),)), **options)


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The single line of an error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def recon(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command line, in this process."""

    def call(*arguments: object) -> Ran:
        from recon_core.cli.main import main

        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ran(code, *capfd.readouterr())

    return call


@pytest.fixture
def recon_process(site: Path) -> Callable[..., subprocess.Popen[str]]:
    """The command line, started in a process of its own."""

    def start(*arguments: object, path: tuple[Path, ...] = (), **options: object) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (site, *path))),
            "OMP_NUM_THREADS": "1",
            **options.pop("env", {}),  # type: ignore[arg-type, dict-item]
        }
        command = [sys.executable, "-m", "recon_core.cli", *map(str, arguments)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
        )

    return start
