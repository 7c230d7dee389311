"""`recon fit views.npz`: joints of the same people in several pictures, with and without calibration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recon_core.cli.fit import _unposed
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.interfaces import BodyModel
from recon_core.metrics import mpjpe, pa_mpjpe
from recon_core.plugins import registry
from recon_core.structures import BodyParameters, Camera

SIZE, FOCAL, VIEWS = (640, 480), 700.0, 3
QUICK = ("--set", "smplify.starts=1", "--set", "smplify.headings=1")


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return registry().create("body", "free")


@pytest.fixture(scope="module")
def people(body: BodyModel) -> BodyParameters:
    """Two people side by side, in the first view's camera frame; one reaches forward, which one view hardly shows."""
    stand = _unposed(body, 2)
    turn = torch.zeros(2, 24, 3)
    turn[:, 16, 2], turn[:, 17, 2] = -1.1, 1.1
    turn[0, 17, 1], turn[1, 4, 0], turn[1, 1, 0] = 1.2, 1.0, -0.9
    place = torch.tensor([[-0.6, 0.0, 4.5], [0.6, 0.1, 4.2]])
    return BodyParameters(stand.pose @ axis_angle_to_matrix(turn), torch.zeros(2, 10), place)


@pytest.fixture(scope="module")
def views(body: BodyModel, people: BodyParameters) -> dict[str, Any]:
    """The arrays of the file. World: turned and moved against the first camera."""
    angle = torch.tensor([0.0, 0.8, -0.9])
    about = axis_angle_to_matrix(torch.stack([0 * angle, angle, 0 * angle], 1))
    middle = torch.tensor([0.0, 0.0, 4.4])
    from_first = about, middle - about @ middle
    K = Camera.perspective(FOCAL, SIZE).K.repeat(VIEWS, 1, 1)
    points = [
        Camera(K[[v, v]], from_first[0][[v, v]], from_first[1][[v, v]], SIZE).project(
            body.keypoints(people, "openpose25")
        )
        for v in range(VIEWS)
    ]
    world = axis_angle_to_matrix(torch.tensor([0.3, -0.2, 0.1]))
    shift = torch.tensor([1.0, 2.0, 0.5])
    return {
        "points": torch.stack(points).numpy(),
        "skeleton": "openpose25",
        "K": K.numpy(),
        "size": np.array(SIZE),
        "R": (from_first[0] @ world).numpy(),
        "t": (from_first[0] @ shift + from_first[1]).numpy(),
    }


def fitted(folder: Path) -> BodyParameters:
    """The bodies of a result folder."""
    arrays = np.load(folder / "result.npz")
    return BodyParameters(*(torch.from_numpy(arrays[name]) for name in ("pose", "betas", "translation")))


def test_calibrated_views_find_the_place_and_pose_that_one_leaves_open(
    recon: Callable[..., Any], tmp_path: Path, body: BodyModel, people: BodyParameters, views: dict[str, Any]
) -> None:
    np.savez(tmp_path / "views.npz", **views)
    one = {name: value if name in ("skeleton", "size") else value[:1] for name, value in views.items()}
    np.savez(tmp_path / "one.npz", **one)
    for name in ("views", "one"):
        assert recon("fit", tmp_path / f"{name}.npz", *QUICK, "-o", tmp_path / "out").code == 0
    true = body.joints(people)
    several, single = (mpjpe(body.joints(fitted(tmp_path / "out" / name)), true) for name in ("views", "one"))
    assert several.max() < 40
    assert (several < 0.5 * single).all()
    result = json.loads((tmp_path / "out" / "views" / "result.json").read_text())
    assert len(result["people"]) == 2
    assert all(person["fit"]["reprojection_px"] < 3 for person in result["people"])


def test_uncalibrated_views_share_the_pose_alone(
    recon: Callable[..., Any], tmp_path: Path, body: BodyModel, people: BodyParameters, views: dict[str, Any]
) -> None:
    """Each view has a place of its own; someone whom a view misses has confidence 0 there."""
    confidence = np.ones((VIEWS, 2, 25))
    confidence[1, 1] = 0
    kept = {name: value.copy() if name == "points" else value for name, value in views.items() if name not in "Rt"}
    kept["points"][1, 1] = np.nan
    np.savez(tmp_path / "views.npz", **kept, confidence=confidence)
    assert recon("fit", tmp_path / "views.npz", *QUICK, "-o", tmp_path / "out").code == 0
    assert pa_mpjpe(body.joints(fitted(tmp_path / "out" / "views")), body.joints(people)).max() < 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"K": None}, "has no array 'K'"),
        ({"skeleton": "spider"}, "unknown skeleton 'spider'"),
        ({"points": np.zeros((VIEWS, 2, 7, 2))}, "needs points (views, people, 25, 2)"),
        ({"confidence": np.ones((VIEWS, 1, 25))}, "every view must show the same people"),
        ({"t": None}, "R and t belong together"),
        ({"K": np.zeros((2, 3, 3))}, "K must be finite numbers of shape (3, 3, 3)"),
        ({"R": np.zeros((VIEWS, 3, 3))}, "R is not a rotation"),
        ({"size": np.array([0, 480])}, "must be pixels above 0"),
        ({"points": np.full((VIEWS, 2, 25, 2), np.nan)}, "is not a number; give it confidence 0"),
        ({"confidence": np.zeros((VIEWS, 2, 25))}, "no joint has a confidence above 0"),
    ],
)
def test_bad_views_are_one_line(
    recon: Callable[..., Any], tmp_path: Path, views: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    arrays = {name: value for name, value in (views | change).items() if value is not None}
    np.savez(tmp_path / "views.npz", **arrays)
    ran = recon("fit", tmp_path / "views.npz", "-o", tmp_path / "out", *QUICK)
    assert ran.code in (1, 2)
    assert message in ran.line
    assert "views.npz" in ran.line
    assert not (tmp_path / "out" / "views").exists()
