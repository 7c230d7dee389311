"""The fused kernel takes the steps of the batched way, which test_fit_derivatives holds against autograd."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from torch import Tensor

from recon_core.errors import PluginError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.interfaces import BodyModel
from recon_core.structures import BodyParameters, Camera, Keypoints, Observation
from recon_std.bodies import load_body
from recon_std.fitters import fused as package
from recon_std.fitters import levenberg_marquardt
from recon_std.fitters.curvature import PriorTerm
from recon_std.fitters.evidence import Joints2D
from recon_std.fitters.fused import fits, launching, minimise
from recon_std.fitters.gather import Noise, Sampling, gather
from recon_std.fitters.objective import Objective
from recon_std.fitters.variables import Variables, Views
from recon_std.priors.gmm import GaussianMixturePrior
from recon_std.priors.joint_limits import JointLimitsPrior
from recon_std.priors.shape import ShapePrior

N, S = 5, 10
PRIORS = {"gmm": GaussianMixturePrior, "joint-limits": JointLimitsPrior, "shape": ShapePrior}


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_body("free").double()


def variables(scale: float = 0.3) -> Variables:
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    angles = scale * draw(N, 23, 3)
    angles[0, 3] = 0
    angles[0, 4] *= 1e-4
    before = torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64)
    return Variables(angles, draw(N, S), axis_angle_to_matrix(draw(N, 1, 3)), before + 0.3 * draw(N, 1, 3))


def objective_of(
    body: BodyModel,
    weights: dict[str, float],
    anchor: float = 0.0,
    noise: Noise | None = None,
    skeleton: str = "openpose25",
    dtype: torch.dtype = torch.float64,
) -> Objective:
    """Joints of other people than `variables`, some wild, some missing, before cameras with skewed pixels."""
    g = torch.Generator().manual_seed(2)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    K = torch.tensor([[700.0, 3.0, 320.0], [0.0, 720.0, 240.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    camera = Camera(K.repeat(N, 1, 1), axis_angle_to_matrix(0.2 * rand(N, 3)), 0.2 * rand(N, 3), (640, 480))
    v = variables(0.2)
    pose = torch.cat([v.root, axis_angle_to_matrix(v.angles)], 1)
    points = camera.project(body.keypoints(BodyParameters(pose, v.betas, v.translation[:, 0]), skeleton))
    points = points + 60 * (rand(*points.shape[:2], 1) < 0.1) * rand(*points.shape)
    confidence = rand(*points.shape[:2]) * (rand(*points.shape[:2]) < 0.9)
    seen = Observation(camera, keypoints=Keypoints(points, confidence, skeleton)).to(dtype)
    camera, body = seen.camera, body if dtype == torch.float64 else load_body("free")
    views = Views.of(None, camera, "auto")
    terms = [PriorTerm(name, PRIORS[name]().to(dtype), weight, views, camera, None) for name, weight in weights.items()]
    pull = (anchor, variables().angles.to(dtype)) if anchor else None
    return Objective(gather(seen, body, views, S, noise or Noise(), Sampling()), terms, pull)


EVERY = {"gmm": 0.7, "joint-limits": 2.0, "shape": 1.5}
CASES = {
    "all priors, an anchor": {"weights": EVERY, "anchor": 3.0},
    "mixture alone, plain squares": {"weights": {"gmm": 1.0}, "noise": Noise(keypoints_outlier=None)},
    "no mixture": {"weights": {"joint-limits": 1.0, "shape": 1.0}, "anchor": 1.0},
    "another skeleton": {"weights": EVERY, "skeleton": "smpl24"},
}


def apart(a: Variables, b: Variables) -> float:
    fields = [f.name for f in dataclasses.fields(a)]
    return max(float((getattr(a, name) - getattr(b, name)).abs().amax()) for name in fields)


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("case", CASES)
def test_takes_the_steps_of_the_batched_way(body: BodyModel, case: str, steps: int) -> None:
    """Energy, gradient, curvature, damping and ends all decide where it goes."""
    objective, start = objective_of(body, **CASES[case]), variables()
    assert fits(objective)
    expected = levenberg_marquardt.minimise(objective, start, steps, 1e-3)
    found = launching.fused(objective, start, steps, 1e-3)
    assert apart(found.variables, expected.variables) < 1e-8
    assert torch.allclose(found.energy, expected.energy, rtol=1e-10)
    assert found.iterations.equal(expected.iterations)
    assert found.converged.equal(expected.converged)
    # It went somewhere, by steps of which some were refused.
    assert apart(found.variables, start) > 1e-2
    if steps > 1:
        assert (found.energy < 0.7 * objective.evaluate(start).energy).all()


def test_a_refused_step_leaves_the_likeliest_component_as_it_was(body: BodyModel) -> None:
    """Components so near each other that most steps change over, and evidence so far off that some are refused."""
    objective, start = objective_of(body, {"gmm": 1.0}), variables()
    mixture = objective.priors[0].prior
    g = torch.Generator().manual_seed(5)
    mixture.means = 0.2 * torch.randn(8, 69, generator=g, dtype=torch.float64)
    tightness = torch.linspace(2, 300, 8, dtype=torch.float64)
    mixture.precisions = tightness[:, None, None] * torch.eye(69, dtype=torch.float64)
    mixture.log_peaks = 34 * tightness.log()
    expected = levenberg_marquardt.minimise(objective, start, 7, 1e-9)
    assert apart(launching.fused(objective, start, 7, 1e-9).variables, expected.variables) < 1e-8


def test_moves_a_held_body(body: BodyModel) -> None:
    start = variables()
    objective = objective_of(body, EVERY).holding(start)
    assert fits(objective)
    expected = levenberg_marquardt.minimise(objective, start, 6, 1e-4)
    found = launching.fused(objective, start, 6, 1e-4)
    assert apart(found.variables, expected.variables) < 1e-8
    assert torch.allclose(found.energy, expected.energy, rtol=1e-10)
    assert found.variables.angles.equal(start.angles)
    assert (found.variables.translation - start.translation).abs().amin() > 1e-4


def test_its_step_solves_for_the_gradient_of_autograd(body: BodyModel) -> None:
    """The first step against the gradient of the energy by autograd."""
    objective, start = objective_of(body, EVERY, 3.0), variables()
    stepped = launching.fused(objective, start, 1, 1e-9)
    taken = stepped.energy < objective.evaluate(start).energy
    assert taken.any()
    turn = torch.linalg.solve(start.root[:, 0], stepped.variables.root[:, 0])
    # The logarithm of a turn, by which the root's columns are counted.
    angle = ((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).acos()
    axis = torch.stack([turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0], turn[:, 1, 0] - turn[:, 0, 1]], 1)
    root = axis * (angle / (2 * angle.sin()))[:, None]
    moved = lambda name: (getattr(stepped.variables, name) - getattr(start, name)).flatten(1)  # noqa: E731
    step = torch.cat([moved("angles"), moved("betas"), root, moved("translation")], 1)

    zero = torch.zeros(N, start.columns, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective.energy(start.moved(zero)).sum(), zero)
    model = objective.linearize(objective.evaluate(start), torch.zeros(N, dtype=torch.bool))
    lam = levenberg_marquardt.FIRST
    damped = model.data + (1 + lam) * model.prior + lam * torch.diag_embed(model.floor)
    residual = (damped @ step[..., None])[..., 0] + gradient
    assert (residual.abs().amax(1) < 1e-8 * gradient.abs().amax(1))[taken].all()


def test_a_row_that_is_not_a_number_or_unseen_leaves_the_others_alone(body: BodyModel) -> None:
    objective, start = objective_of(body, EVERY), variables()
    alone = launching.fused(objective, start, 5, 1e-3)
    angles, translation = start.angles.clone(), start.translation.clone()
    angles[1] = torch.nan
    translation[3, :, 2] = -5.0
    bad = dataclasses.replace(start, angles=angles, translation=translation)
    found, expected = launching.fused(objective, bad, 5, 1e-3), levenberg_marquardt.minimise(objective, bad, 5, 1e-3)
    others = torch.tensor([0, 2, 4])
    assert apart(found.variables[others], alone.variables[others]) == 0
    assert found.energy.isnan()[1]
    assert found.energy.isinf()[3]
    assert found.iterations.equal(expected.iterations)
    assert found.converged.equal(expected.converged)
    assert found.variables.angles[1].isnan().all()
    assert found.variables.translation[3].equal(translation[3])


def test_threads_and_neighbours_change_nothing(body: BodyModel) -> None:
    objective, start = objective_of(body, EVERY, 3.0), variables()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = launching.fused(objective, start, 4, 1e-3)
        torch.set_num_threads(3)
        three = launching.fused(objective, start, 4, 1e-3)
    finally:
        torch.set_num_threads(threads)
    assert apart(one.variables, three.variables) == 0
    rows = torch.tensor([4, 1])
    some = launching.fused(objective.rows(rows), start[rows], 4, 1e-3)
    assert apart(one.variables[rows], some.variables) == 0
    none = launching.fused(objective.rows(rows[:0]), start[rows[:0]], 4, 1e-3)
    assert none.energy.shape == (0,)


def test_single_precision_is_near(body: BodyModel) -> None:
    objective, start = objective_of(body, EVERY), variables()
    exact = launching.fused(objective, start, 3, 1e-3)
    rough = launching.fused(objective_of(body, EVERY, dtype=torch.float32), start.to(torch.float32), 3, 1e-3)
    assert rough.energy.dtype == torch.float32
    assert torch.allclose(rough.energy.double(), exact.energy, rtol=1e-3)


def unknown(body: BodyModel) -> dict[str, Objective]:
    plain = objective_of(body, EVERY)
    (e,) = plain.evidence
    assert isinstance(e, Joints2D)

    class Other(ShapePrior):
        pass

    camera = Camera(e.R[:, 0], e.R[:, 0], e.t[:, 0], (640, 480))
    other = PriorTerm("other", Other(), 1.0, Views.of(None, camera, "auto"), camera, None)
    many = dataclasses.replace(e.basis, offsets=torch.zeros(24, 3, len(e.basis), 18, dtype=torch.float64))
    return {
        "an orthographic picture": Objective([dataclasses.replace(e, orthographic=True)]),
        "two kinds of evidence": Objective([e, e]),
        "two views": Objective([dataclasses.replace(e, target=e.target.repeat(1, 2, 1, 1))]),
        "a prior twice": Objective([e], [*plain.priors, plain.priors[0]]),
        "a prior of another class": Objective([e], [other]),
        "too many betas": Objective([dataclasses.replace(e, basis=many)]),
    }


def test_what_the_kernel_does_not_know_is_left_to_the_batched_way(body: BodyModel) -> None:
    assert [name for name, objective in unknown(body).items() if fits(objective)] == []
    assert not fits(object())


def test_without_warp_fits_go_on_and_say_so(
    body: BodyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(dtype: torch.dtype) -> None:
        raise PluginError("Warp does not work here")

    def unreachable(*arguments: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(launching, "prepare", broken)
    monkeypatch.setattr(launching, "fused", unreachable)
    package._works.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            objective, start = objective_of(body, EVERY), variables()
            found = minimise(objective, start, 2, 1e-3)
            minimise(objective, start, 1, 1e-3)
    finally:
        package._works.cache_clear()
    assert apart(found.variables, levenberg_marquardt.minimise(objective, start, 2, 1e-3).variables) == 0
    assert [record.message for record in caplog.records] == [
        "fits of 2D joints take several times longer: Warp does not work here"
    ]
