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

from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.reconstruction import Reconstruction, SceneObject, people_from_bodies
from recon_core.structures import BodyParameters, Camera, FitReport, Keypoints, Mesh, Samples

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

Rectangle = tuple[int, int, int, int]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy package as pip would install it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(HERE / "toy_recon.py", folder)
    info = folder / "toy_recon-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: toy-recon\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[recon.plugins]\ntoy = toy_recon\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
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


@pytest.fixture(scope="module")
def result(toy: ModuleType) -> Reconstruction:
    """Two posed, shaped people, with samples and a fit, and one textured object."""
    from recon_core.plugins import registry

    body = registry().create("body", "free")
    torch.manual_seed(0)
    turns = torch.randn(2, 24, 3) * 0.3
    turns[:, 0] = torch.tensor([torch.pi - 0.3, 0.1, 0.2])
    parameters = BodyParameters(
        axis_angle_to_matrix(turns), torch.randn(2, 10), torch.tensor([[-0.5, 0.1, 4.0], [0.7, 0.0, 5.0]])
    )
    camera = Camera.perspective(300.0, (200, 160))
    samples = Samples(
        axis_angle_to_matrix(torch.randn(2, 6, 24, 3) * 0.2),
        torch.randn(2, 6, 10),
        torch.zeros(2, 6, 3),
        torch.randn(2, 6),
    )
    one = torch.ones(2)
    report = FitReport(one * torch.nan, one, one.long(), one.bool(), one * 2.5, one.long() * 0, {"joints": one})
    joints = Keypoints(torch.rand(2, 17, 2) * 100, torch.rand(2, 17).round(), "coco17")
    people = people_from_bodies(
        body,
        parameters,
        camera,
        [(10, 20, 50, 100), (100, 20, 60, 110)],
        [0.9, 0.8],
        joints,
        samples,
        [report.row(0), None],
    )
    quad = Mesh(
        torch.tensor([[[0, 0, 3.0], [1, 0, 3], [1, 1, 3], [0, 1, 3]]]),
        torch.tensor([[0, 2, 1], [0, 3, 2]]),
        torch.tensor([[0, 1.0], [1, 1], [1, 0], [0, 0], [0.5, 0.5]]),
        torch.tensor([[0, 2, 1], [4, 3, 2]]),
        torch.rand(1, 3, 8, 8),
    )
    photo = np.random.default_rng(0).integers(0, 255, (160, 200, 3), np.uint8)
    return Reconstruction(
        Path("some/<photo> & {{facts}}.jpg"),
        "ab" * 32,
        photo,
        "toy",
        camera,
        people,
        [SceneObject((1, 2, 3, 4), 0.5, quad, {"light": np.array([1.0, np.nan])})],
        versions={"recon-core": "0.1"},
        settings={"run": {"box": None}},
        body_model=body,
    )


@pytest.fixture(scope="module")
def folder(result: Reconstruction, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "photo"
    result.save(path, formats=["obj", "ply", "bvh"])
    return path
