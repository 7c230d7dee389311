"""Poor fits are found, and tried again from other poses."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.interfaces import BodyModel, Prior
from recon_core.structures import BodyParameters, Camera, Keypoints, Observation
from recon_std.bodies import load_body
from recon_std.fitters.levenberg_marquardt import Minimum
from recon_std.fitters.problem import Problem
from recon_std.fitters.smplify import SmplifyFitter, SmplifySettings
from recon_std.fitters.starts import poor
from recon_std.fitters.variables import Variables
from recon_std.priors.gmm import GaussianMixturePrior
from recon_std.priors.joint_limits import JointLimitsPrior
from recon_std.priors.shape import ShapePrior

B = 24
ONCE = SmplifySettings(start="mean", headings=1, starts=1, retries=0)


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_body("free")


@pytest.fixture(scope="module")
def priors() -> dict[str, Prior]:
    return {"gmm": GaussianMixturePrior(), "joint-limits": JointLimitsPrior(), "shape": ShapePrior()}


@pytest.fixture(scope="module")
def truth() -> BodyParameters:
    """People 4 m away, turned any way about the vertical, in poses as varied as the prior's draws."""
    g = torch.Generator().manual_seed(1)
    turn = torch.zeros(B, 24, 3)
    turn[:, 1:] = GaussianMixturePrior().sample(B, generator=g)[0].unflatten(-1, (23, 3))
    turn[:, 0, 1] = 6.28 * torch.rand(B, generator=g)
    pose = axis_angle_to_matrix(turn)
    pose[:, 0] = torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ pose[:, 0]
    return BodyParameters(pose, torch.randn(B, 10, generator=g), torch.tensor([[0.0, 0.0, 4.0]]).repeat(B, 1))


@pytest.fixture(scope="module")
def photo(body: BodyModel, truth: BodyParameters) -> Observation:
    camera = Camera.perspective(800.0, (640, 480), batch=B)
    points = camera.project(body.keypoints(truth, "openpose25"))
    return Observation(camera, keypoints=Keypoints(points, torch.ones(B, 25), "openpose25"))


def test_what_counts_as_poor(body: BodyModel, truth: BodyParameters, photo: Observation) -> None:
    """Two wild joints are a detector's; eight are a limb in the wrong place, unless they do not count."""
    assert photo.keypoints is not None

    def judged(wild: int, confidence: float = 1.0) -> torch.Tensor:
        assert photo.keypoints is not None
        points, seen = photo.keypoints.points.clone(), torch.ones(B, 25)
        points[:, :wild] += 60.0
        seen[:, :wild] = confidence
        joints = Keypoints(points, seen, "openpose25")
        problem = Problem.build(ONCE, dataclasses.replace(photo, keypoints=joints), truth, body, None, None)
        return poor(problem.objective, problem.start)

    assert not judged(0).any()
    assert not judged(2).any()
    assert judged(8).all()
    assert not judged(8, confidence=0.0).any()


def test_a_second_chance_finds_lower_energy(
    body: BodyModel, truth: BodyParameters, priors: dict[str, Prior], photo: Observation
) -> None:
    start = BodyParameters(truth.pose.clone(), torch.zeros(B, 10), truth.translation)
    start.pose[:, 1:] = axis_angle_to_matrix(GaussianMixturePrior().mode().unflatten(-1, (23, 3)))
    start.pose[:, 0] = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    once = SmplifyFitter(ONCE).fit(photo, start, body, priors).report
    twice = SmplifyFitter(ONCE.model_copy(update={"retries": 2})).fit(photo, start, body, priors).report
    assert (twice.energy < 0.8 * once.energy).sum() >= 2
    assert (twice.energy < 1.05 * once.energy).float().mean() > 0.9
    assert twice.energy.mean() < 0.9 * once.energy.mean()
    # Without a prior over the pose there is nothing to draw from, and nothing to refuse.
    alone = SmplifyFitter(ONCE.model_copy(update={"retries": 2})).fit(photo, start, body)
    assert torch.isfinite(alone.report.energy).all()


def test_a_later_minimum_counts_where_it_is_no_higher() -> None:
    def minimum(value: float, energies: list[float], steps: int) -> Minimum:
        B = len(energies)
        at = Variables(
            torch.full((B, 23, 3), value),
            torch.full((B, 10), value),
            torch.eye(3).repeat(B, 1, 1, 1),
            torch.zeros(B, 1, 3),
        )
        done = torch.full((B,), value > 0)
        return Minimum(at, torch.tensor(energies), torch.full((B,), steps), done)

    rows = torch.tensor([3, 0, 2])
    both = minimum(0.0, [5.0, 5.0, 5.0, 5.0], 4).improved(rows, minimum(1.0, [4.0, 6.0, torch.nan], 3))
    assert both.energy.tolist() == [5.0, 5.0, 5.0, 4.0]
    assert both.variables.betas[:, 0].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert both.converged.tolist() == [False, False, False, True]
    assert both.iterations.tolist() == [7, 4, 7, 7]
