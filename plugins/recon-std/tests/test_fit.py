"""The smplify and adam fitters: what they recover, what they must not depend on, and what they refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from recon_core.errors import EvidenceError, UsageError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.interfaces import Prior
from recon_core.metrics import mpjpe, pa_mpjpe
from recon_core.rendering.shading import vertex_normals
from recon_core.structures import BodyParameters, Camera, Keypoints, Mesh, Observation
from recon_std.bodies import load_body
from recon_std.fitters.adam import AdamFitter, AdamSettings
from recon_std.fitters.gather import Noise
from recon_std.fitters.smplify import TRUST, SmplifyFitter, SmplifySettings
from recon_std.priors.gmm import GaussianMixturePrior
from recon_std.priors.joint_limits import JointLimitsPrior
from recon_std.priors.shape import ShapePrior

B = 4
EXACT = SmplifySettings(anchor=0, iterations=60, tolerance=1e-9)


@pytest.fixture(scope="module")
def body():
    return load_body("free")


@pytest.fixture(scope="module")
def priors() -> dict[str, Prior]:
    return {"gmm": GaussianMixturePrior(), "joint-limits": JointLimitsPrior(), "shape": ShapePrior()}


@pytest.fixture(scope="module")
def truth() -> BodyParameters:
    """People before the camera in poses that the prior finds likely."""
    g = torch.Generator().manual_seed(1)
    draws = GaussianMixturePrior().sample(B, generator=g)[0].unflatten(-1, (23, 3)) * 0.5
    heading = torch.stack([torch.zeros(B), torch.linspace(-0.6, 0.6, B), torch.zeros(B)], -1)
    upright = axis_angle_to_matrix(torch.tensor([torch.pi, 0.0, 0.0]))
    root = upright @ axis_angle_to_matrix(heading)
    place = torch.tensor([0.0, 0.0, 4.0]) + 0.4 * torch.randn(B, 3, generator=g)
    return BodyParameters(
        torch.cat([root[:, None], axis_angle_to_matrix(draws)], 1), torch.randn(B, 10, generator=g), place
    )


@pytest.fixture(scope="module")
def near(truth) -> BodyParameters:
    """A start a little off the truth: about 0.1 rad a joint, the mean shape, 10 cm."""
    g = torch.Generator().manual_seed(2)
    off = axis_angle_to_matrix(0.1 * torch.randn(B, 24, 3, generator=g))
    return BodyParameters(
        truth.pose @ off, torch.zeros(B, 10), truth.translation + 0.1 * torch.randn(B, 3, generator=g)
    )


def views_of(count: int, apart: bool = True) -> Camera:
    """Cameras around a body 4 m before the first one."""
    angle = torch.linspace(0, 1.2, count) if apart else torch.zeros(count)
    R = axis_angle_to_matrix(torch.stack([torch.zeros(count), angle, torch.zeros(count)], -1))
    centre = torch.tensor([0.0, 0.0, 4.0])
    return dataclasses.replace(Camera.perspective(800.0, (640, 480), batch=count), R=R, t=centre - R @ centre)


def seen_by(camera: Camera, body, truth, skeleton="openpose25") -> Observation:
    points = camera.project(body.keypoints(truth, skeleton))
    return Observation(camera, keypoints=Keypoints(points, torch.ones(points.shape[:2]), skeleton))


@pytest.fixture(scope="module")
def photo(body, truth) -> Observation:
    return seen_by(Camera.perspective(800.0, (640, 480), batch=B), body, truth)


def vertex_mm(body, found: BodyParameters, truth: BodyParameters) -> torch.Tensor:
    return (body(found).vertices - body(truth).vertices).norm(dim=-1).mean(1) * 1000


def test_corresponded_vertices_give_back_the_body(body, truth, near, priors):
    seen = Observation(Camera.perspective(800.0, (640, 480), batch=B), mesh=Mesh(body(truth).vertices, body.faces))
    assert vertex_mm(body, SmplifyFitter(EXACT).fit(seen, near, body).body, truth).max() < 0.5
    # With priors a little is given up.
    assert vertex_mm(body, SmplifyFitter(EXACT).fit(seen, near, body, priors).body, truth).max() < 6


def test_joints_in_space_are_reached(body, truth, near, priors):
    joints = Keypoints(body.keypoints(truth, "openpose25"), torch.ones(B, 25), "openpose25")
    seen = Observation(Camera.perspective(800.0, (640, 480), batch=B), keypoints3d=joints)
    found = SmplifyFitter(EXACT).fit(seen, near, body)
    assert mpjpe(body.keypoints(found.body, "openpose25"), joints.points).max() < 0.5
    # With priors a little is given up.
    found = SmplifyFitter(EXACT).fit(seen, near, body, priors)
    assert mpjpe(body.keypoints(found.body, "openpose25"), joints.points).max() < 20


def test_joints_in_one_picture_are_reached_and_explained(body, truth, near, priors, photo):
    found = SmplifyFitter(EXACT).fit(photo, near, body, priors)
    # The people are some 350 pixels tall, and the noise allowed for is 3.4 pixels of 224.
    assert found.report.reprojection_px.max() < 4
    before, after = (pa_mpjpe(body.joints(b), body.joints(truth)) for b in (near, found.body))
    assert after.mean() < before.mean()


def test_calibrated_views_agree_on_one_body_in_the_world(body, truth, near, priors):
    rows = torch.arange(B).repeat_interleave(3)
    cameras = views_of(3)
    repeated = cameras[torch.arange(3).repeat(B)]
    seen = dataclasses.replace(seen_by(repeated, body, truth[rows]), subject=rows)
    found = SmplifyFitter(EXACT).fit(seen, near[rows], body, {"shape": priors["shape"]})
    torch.testing.assert_close(found.body.pose[0::3], found.body.pose[2::3])
    torch.testing.assert_close(found.body.translation[0::3], found.body.translation[1::3])
    # Three views know the depth, which one does not.
    assert mpjpe(body.keypoints(found.body[0::3], "openpose25"), body.keypoints(truth, "openpose25")).max() < 5


def test_uncalibrated_views_share_the_body_and_not_its_place(body, truth, near, priors):
    rows = torch.arange(B).repeat_interleave(2)
    turn = axis_angle_to_matrix(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.9, 0.0]])).repeat(B, 1, 1)

    def stand(b: BodyParameters) -> BodyParameters:
        root = (turn @ b.pose[rows, 0])[:, None]
        return BodyParameters(torch.cat([root, b.pose[rows, 1:]], 1), b.betas[rows], b.translation[rows])

    placed = stand(truth)
    seen = seen_by(Camera.perspective(800.0, (640, 480), batch=2 * B), body, placed)
    found = SmplifyFitter(EXACT).fit(dataclasses.replace(seen, subject=rows), stand(near), body, priors)
    torch.testing.assert_close(found.body.pose[0::2, 1:], found.body.pose[1::2, 1:])
    torch.testing.assert_close(found.body.betas[0::2], found.body.betas[1::2])
    assert (found.body.pose[0::2, 0] - found.body.pose[1::2, 0]).abs().amax((1, 2)).min() > 0.1
    alone = SmplifyFitter(EXACT).fit(seen, stand(near), body, priors)
    error = lambda r: pa_mpjpe(body.joints(r.body), body.joints(placed)).mean()  # noqa: E731
    assert error(found) < error(alone)


@pytest.mark.parametrize("with_normals", [False, True])
def test_scans_are_reached(body, truth, near, priors, with_normals):
    g = torch.Generator().manual_seed(3)
    pick = torch.randperm(body.vertex_count, generator=g)[:1500]
    surface = body(truth).vertices[:2]
    normals = torch.stack([vertex_normals(v, body.faces) for v in surface])[:, pick] if with_normals else None
    seen = Observation(Camera.perspective(800.0, (640, 480), batch=2), scan=surface[:, pick], scan_normals=normals)
    found = SmplifyFitter(SmplifySettings(anchor=0, iterations=30)).fit(seen, near[:2], body, priors)
    assert vertex_mm(body, found.body, truth[:2]).max() < 15
    assert vertex_mm(body, found.body, truth[:2]).mean() < 0.25 * vertex_mm(body, near[:2], truth[:2]).mean()
    assert (found.report.energy < found.report.initial_energy).all()


def test_kinds_of_evidence_add_up(body, truth, near, priors, photo):
    joints = Keypoints(body.keypoints(truth, "coco17"), torch.ones(B, 17), "coco17")
    both = SmplifyFitter(EXACT).fit(dataclasses.replace(photo, keypoints3d=joints), near, body, priors)
    alone = SmplifyFitter(EXACT).fit(photo, near, body, priors)
    assert {"keypoints", "keypoints3d"} <= set(both.report.terms)
    error = lambda r: mpjpe(body.joints(r.body), body.joints(truth)).mean()  # noqa: E731
    assert error(both) < 0.5 * error(alone)


def test_outliers_are_left_alone(body, truth, near, priors, photo):
    points = photo.keypoints.points.clone()
    points[:, 4] += 120  # right wrist
    wild = dataclasses.replace(photo, keypoints=dataclasses.replace(photo.keypoints, points=points))
    robust = SmplifyFitter(EXACT).fit(wild, near, body, priors)
    plain = SmplifyFitter(EXACT.model_copy(update={"noise": Noise(keypoints_outlier=None)})).fit(
        wild, near, body, priors
    )
    others = [j for j in range(25) if j != 4]
    error = lambda r: (  # noqa: E731
        (photo.camera.project(body.keypoints(r.body, "openpose25")) - photo.keypoints.points)[:, others].norm(dim=-1)
    ).mean()
    assert error(robust) < 0.6 * error(plain)


def test_missing_joints_may_hold_anything(body, near, priors, photo):
    points, confidence = photo.keypoints.points.clone(), torch.ones(B, 25)
    points[:, 7], confidence[:, 7] = torch.nan, 0
    confidence[1, 3], points[1, 3] = 0, 1e6
    first = SmplifyFitter().fit(
        dataclasses.replace(photo, keypoints=Keypoints(points, confidence, "openpose25")), near, body, priors
    )
    clean = torch.where(confidence[..., None] > 0, points, torch.zeros(()))
    second = SmplifyFitter().fit(
        dataclasses.replace(photo, keypoints=Keypoints(clean, confidence, "openpose25")), near, body, priors
    )
    torch.testing.assert_close(first.body.pose, second.body.pose)
    assert torch.isfinite(first.report.energy).all()


@pytest.mark.parametrize("settings", [SmplifySettings(), SmplifySettings(start="mean", headings=2, starts=3)])
def test_rows_do_not_depend_on_each_other(body, near, priors, photo, settings):
    together = SmplifyFitter(settings).fit(photo, near, body, priors)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = SmplifyFitter(settings).fit(photo[order], near[order], body, priors)
    torch.testing.assert_close(shuffled.report.energy, together.report.energy[order], rtol=1e-3, atol=1e-3)
    alone = SmplifyFitter(settings).fit(photo[2], near[2], body, priors)
    torch.testing.assert_close(alone.report.energy, together.report.energy[2:3], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(body.joints(alone.body), body.joints(together.body[2]), rtol=0, atol=5e-3)


def test_turning_the_world_turns_the_result(body, near, priors, photo):
    turn = axis_angle_to_matrix(torch.tensor([0.3, -0.5, 0.2]))
    shift = torch.tensor([0.4, -0.1, 0.7])
    rest = body.rest_joints(near.betas)[:, 0]
    moved_camera = dataclasses.replace(
        photo.camera, R=photo.camera.R @ turn.T, t=photo.camera.t - photo.camera.R @ turn.T @ shift
    )

    def moved(b: BodyParameters, pelvis: torch.Tensor) -> BodyParameters:
        pose = torch.cat([(turn @ b.pose[:, :1]), b.pose[:, 1:]], 1)
        return BodyParameters(pose, b.betas, (b.translation + pelvis) @ turn.T + shift - pelvis)

    # At the minimum: on the way there rounding decides.
    fitter = SmplifyFitter(SmplifySettings(iterations=40, tolerance=1e-5))
    here = fitter.fit(photo, near, body, priors)
    there = fitter.fit(dataclasses.replace(photo, camera=moved_camera), moved(near, rest), body, priors)
    expected = body.joints(here.body) @ turn.T + shift
    torch.testing.assert_close(body.joints(there.body), expected, rtol=0, atol=5e-3)


def test_report_adds_up(body, near, priors, photo):
    report = SmplifyFitter().fit(photo, near, body, priors).report
    assert set(report.terms) == {"keypoints", "gmm", "joint-limits", "shape", "anchor"}
    torch.testing.assert_close(sum(report.terms.values()), report.energy)
    assert (report.energy < report.initial_energy).all()
    assert report.converged.all()
    assert (report.iterations > 0).all()
    assert report.row(0)["reason"] == "converged"
    points = photo.camera.project(body.keypoints(SmplifyFitter().fit(photo, near, body, priors).body, "openpose25"))
    expected = (points - photo.keypoints.points).norm(dim=-1).mean(1)
    torch.testing.assert_close(report.reprojection_px, expected, rtol=1e-3, atol=1e-3)


def test_the_anchor_holds_the_start(body, near, priors, photo):
    def distance(weight: float) -> torch.Tensor:
        found = SmplifyFitter(SmplifySettings(anchor=weight)).fit(photo, near, body, priors)
        return (found.body.pose - near.pose)[:, 1:].norm()

    assert distance(1000.0) < 0.3 * distance(10.0) < 0.3 * distance(0.0)


def test_what_the_start_is_decides_how_far_it_is_trusted():
    assert SmplifySettings().trust == TRUST["prediction"]
    assert SmplifySettings(start="mean").trust == TRUST["mean"]
    assert SmplifySettings(start="mean", starts=1).trust == dataclasses.replace(TRUST["mean"], starts=1)


def test_more_starts_find_lower_energy(body, truth, priors, photo):
    pose = torch.eye(3).repeat(B, 24, 1, 1)
    pose[:, 0] = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    start = BodyParameters(pose, torch.zeros(B, 10), torch.tensor([[0.0, 0.0, 5.0]]).repeat(B, 1))
    energy = [
        SmplifyFitter(SmplifySettings(start="mean", starts=n)).fit(photo, start, body, priors).report.energy.mean()
        for n in (1, 9)
    ]
    assert energy[1] <= energy[0]


class Broken(Prior):
    """A prior whose density is nowhere a number."""

    over, dims = "betas", 10

    def log_prob(self, values, context=None):
        return torch.full_like(values[:, 0], torch.nan) * values.sum(1)

    def sample(self, count, context=None, generator=None):
        return torch.randn(1, count, 10, generator=generator)

    def mode(self, context=None):
        return torch.zeros(1, 10)


@pytest.mark.parametrize("fitter", [SmplifyFitter(), AdamFitter(AdamSettings(camera_steps=2, steps=2, skinned=False))])
def test_a_diverged_fit_says_so_and_gives_back_its_start(body, near, priors, photo, fitter):
    found = fitter.fit(photo, near, body, priors | {"broken": Broken()})
    assert found.report.row(1)["reason"] == "diverged: initial pose returned"
    assert not found.report.converged.any()
    assert torch.equal(found.body.pose, near.pose)
    assert torch.equal(found.body.translation, near.translation)


def test_one_diverged_row_leaves_the_others_alone(body, near, priors, photo):
    pose = near.pose.clone()
    pose[2] = torch.nan
    found = SmplifyFitter().fit(photo, dataclasses.replace(near, pose=pose), body, priors)
    assert found.report.reason.tolist() == [0, 0, 2, 0]
    assert found.body.pose[2].isnan().all()
    assert found.body.pose[[0, 1, 3]].isfinite().all()


def test_adam_lowers_the_energy_and_skinning_changes_nothing(body, near, priors, photo):
    short = {"camera_steps": 5, "steps": 8}
    skinned = AdamFitter(AdamSettings(**short)).fit(photo[:2], near[:2], body, priors)
    joints = AdamFitter(AdamSettings(**short, skinned=False)).fit(photo[:2], near[:2], body, priors)
    assert (skinned.report.energy < skinned.report.initial_energy).all()
    torch.testing.assert_close(skinned.report.energy, joints.report.energy, rtol=1e-3, atol=1e-3)
    assert skinned.report.row(0)["reason"] == "iteration limit"


def _with(photo: Observation, points=None, confidence=None) -> Observation:
    k = photo.keypoints
    return dataclasses.replace(
        photo,
        keypoints=Keypoints(
            k.points if points is None else points, k.confidence if confidence is None else confidence, k.skeleton
        ),
    )


def bad_evidence(photo: Observation, body) -> dict[str, tuple[Observation, str]]:
    none, few = torch.ones(B, 25), torch.ones(B, 25)
    none[1], few[2, 3:] = 0, 0
    wrong = photo.keypoints.points.clone()
    wrong[3, 0, 1] = torch.nan
    bare = Observation(photo.camera)
    mesh = body(BodyParameters(torch.eye(3).repeat(B, 24, 1, 1), torch.zeros(B, 10), torch.zeros(B, 3))).vertices
    views = dataclasses.replace(photo, subject=torch.tensor([0, 0, 1, 2]))
    other, holes = Mesh(mesh[:, :100], body.faces[:1]), Mesh(mesh * torch.nan, body.faces)
    empty, lost = torch.zeros(B, 0, 3), mesh * torch.nan
    return {
        "nothing": (bare, "nothing to fit"),
        "no confidence": (_with(photo, confidence=none), "subject 1: no joint has a confidence above 0"),
        "few joints": (_with(photo, confidence=few), "subject 2: only 3 joints seen"),
        "nan joint": (_with(photo, points=wrong), "keypoints of subject 3: nose is not a number"),
        "views": (views, "every view must show the same people"),
        "empty scan": (dataclasses.replace(bare, scan=empty), "scan: it has no points"),
        "nan scan": (dataclasses.replace(bare, scan=lost), "scan: some points or normals are not numbers"),
        "other mesh": (dataclasses.replace(bare, mesh=other), "only a mesh with the body's own"),
        "nan mesh": (dataclasses.replace(bare, mesh=holes), "mesh: some vertices are not numbers"),
    }


BAD = [
    "nothing",
    "no confidence",
    "few joints",
    "nan joint",
    "views",
    "empty scan",
    "nan scan",
    "other mesh",
    "nan mesh",
]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("fitter", [SmplifyFitter(), AdamFitter()])
def test_bad_evidence_gets_one_line(body, near, priors, photo, name, fitter):
    seen, message = bad_evidence(photo, body)[name]
    with pytest.raises(EvidenceError) as error:
        fitter.fit(seen, near, body, priors)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_body_without_the_regressor_is_named(body, near, photo):
    class Bare:
        name = "bare"
        shape_count = 10

    with pytest.raises(EvidenceError, match="body bare cannot explain joints of skeleton openpose25"):
        SmplifyFitter().fit(photo, near, Bare())


def test_priors_that_do_not_fit_are_refused(body, near, priors, photo):
    with pytest.raises(UsageError, match="prior_weights names 'gnm'"):
        SmplifyFitter(SmplifySettings(prior_weights={"gnm": 2.0})).fit(photo, near, body, priors)
    with pytest.raises(UsageError, match="is over 10 numbers of betas, this body has 8"):
        SmplifyFitter().fit(photo, dataclasses.replace(near, betas=near.betas[:, :8]), body, {"shape": ShapePrior()})
    with pytest.raises(UsageError, match="draws initial poses from a prior over the pose"):
        SmplifyFitter(SmplifySettings(starts=3)).fit(photo, near, body, {"shape": ShapePrior()})


def test_the_example_of_several_views_in_the_documentation(body, truth, capsys):
    page = Path(__file__).resolve().parents[3] / "docs/fitting.md"
    program = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    cameras = views_of(2)
    points = cameras.project(body.keypoints(truth[torch.tensor([0, 0])], "openpose25"))
    given = {"K": cameras.K, "R": cameras.R, "t": cameras.t, "points": points, "confidence": torch.ones(2, 25)}
    exec(compile(program, page, "exec"), given)
    result = given["result"]
    assert capsys.readouterr().out.startswith("converged")
    torch.testing.assert_close(result.body.translation[0], result.body.translation[1])
    # Two views know where in the world the person stands.
    found, true = (body.keypoints(b, "openpose25") for b in (result.body[0], truth[0]))
    assert mpjpe(found, true).max() < 60
