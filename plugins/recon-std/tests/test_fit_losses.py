"""Registered losses as terms of a fit: derivatives in float64, what they do to a fit, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from recon_core.errors import EvidenceError, UsageError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.plugins import registry
from recon_core.rendering import SoftSettings
from recon_core.structures import BodyParameters, Camera, Keypoints, Mesh, Observation
from recon_std.bodies import load_body
from recon_std.fitters.adam import AdamFitter, AdamSettings
from recon_std.fitters.loss_terms import loss_terms
from recon_std.fitters.smplify import SmplifyFitter, SmplifySettings
from recon_std.fitters.variables import Variables, Views
from recon_std.priors.gmm import GaussianMixturePrior
from recon_std.priors.shape import ShapePrior

N, SIZE = 2, (96, 96)


@pytest.fixture(scope="module")
def body():
    return load_body("free")


def people(seed: int, dtype: torch.dtype = torch.float32, far: float = 0.3) -> BodyParameters:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    pose = axis_angle_to_matrix(far * draw(N, 24, 3))
    pose[:, 0] = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=dtype)) @ pose[:, 0]
    return BodyParameters(pose, 0.5 * draw(N, 10), torch.tensor([0.0, 0.2, 4.0], dtype=dtype) + 0.1 * draw(N, 3))


def seen(body, truth: BodyParameters, dtype: torch.dtype = torch.float32) -> Observation:
    """Every kind of evidence that a loss compares with."""
    camera = Camera.perspective(torch.tensor(120.0, dtype=dtype), SIZE, batch=N)
    flat, deep = (body.keypoints(truth, name) for name in ("openpose25", "coco17"))
    confidence = torch.linspace(0, 1, 25, dtype=dtype).expand(N, 25)
    return Observation(
        camera,
        mask=torch.zeros(N, 1, *SIZE, dtype=dtype),
        keypoints=Keypoints(camera.project(flat), confidence, "openpose25"),
        keypoints3d=Keypoints(deep, torch.ones(N, 17, dtype=dtype), "coco17"),
        mesh=Mesh(body(truth).vertices, body.faces),
    )


def variables(b: BodyParameters) -> tuple[Views, Variables]:
    views = Views.of(None, Camera.perspective(120.0, SIZE, batch=len(b)), "auto")
    return views, views.start(b)


LOSSES = [
    {"keypoints2d": 2.0},
    {"keypoints2d": {"penalty": "geman-mcclure", "sigma": 20.0, "reduction": "mean"}},
    {"keypoints3d": {"weight": 3.0, "penalty": "l2"}},
    {"keypoints3d": {"root": (), "penalty": "geman-mcclure"}},
    {"vertices": 0.5},
    {"vertices": {"penalty": "l2", "reduction": "sum"}},
    {"body-parameters": {"pose_weight": 2.0, "betas_weight": 0.3}},
]


@pytest.mark.parametrize("wanted", LOSSES, ids=lambda wanted: str(wanted))
def test_residuals_have_the_gradient_of_the_loss(wanted):
    body = load_body("free").double()
    views, v = variables(people(1, torch.float64))
    evidence = seen(body, people(2, torch.float64), torch.float64)
    (term,) = loss_terms(wanted, evidence, people(3, torch.float64), body, views)
    gradient, curvature = term.quadratic(v)
    zero = torch.zeros(N, v.columns, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(term.energy(v.moved(zero)).sum(), zero)
    # Some of the vertices' 21000 coordinates lie within 1e-4 of their target, where |e| is smoothed.
    tolerance = 1e-3 if wanted == {"vertices": 0.5} else 1e-9
    assert (gradient - expected).abs().max() < tolerance * expected.abs().max()
    assert expected.abs().max() > 0
    assert torch.linalg.eigvalsh(curvature).min() > -1e-8 * curvature.abs().max()
    # A subject by itself, as rows leave a fit one by one.
    (alone,) = (term.rows(torch.tensor([1])),)
    assert torch.equal(alone.energy(v[1]), term.energy(v)[1:])
    torch.testing.assert_close(alone.quadratic(v[1])[1], curvature[1:])


def test_squares_have_gauss_newtons_curvature():
    body = load_body("free").double()
    views, v = variables(people(1, torch.float64))
    evidence = seen(body, people(2, torch.float64), torch.float64)
    (term,) = loss_terms({"keypoints3d": {"penalty": "l2", "root": ()}}, evidence, people(1), body, views)
    jacobian = torch.autograd.functional.jacobian(
        lambda s: body.keypoints(views.body(v.moved(s)), "coco17").sum(0),
        torch.zeros(N, v.columns, dtype=torch.float64),
    )
    expected = 2 * torch.einsum("jdnp,jdnq->npq", jacobian, jacobian)
    torch.testing.assert_close(term.quadratic(v)[1], expected)


def test_a_fit_weighs_a_loss_against_the_evidence_and_reports_it(body):
    """3D joints as a loss beside 2D joints: the depth that the picture leaves open is found."""
    truth, start = people(2), people(3, far=0.1)
    priors = {"gmm": GaussianMixturePrior(), "shape": ShapePrior()}
    evidence = dataclasses.replace(seen(body, truth), mask=None, mesh=None)
    picture = dataclasses.replace(evidence, keypoints3d=None)
    settings = {"anchor": 0.0, "iterations": 40}
    loss = {"keypoints3d": {"weight": 500.0, "penalty": "l2"}}
    # Joints in space as a loss alone: as evidence they would be fitted anyway.
    noise = SmplifySettings().noise.model_copy(update={"keypoints3d": 1e3})
    error = lambda b: (  # noqa: E731
        (body.keypoints(b, "coco17") - evidence.keypoints3d.points).diff(dim=1).norm(dim=-1).mean(1)
    )
    without = SmplifyFitter(SmplifySettings(**settings)).fit(picture, start, body, priors)
    fitted = SmplifyFitter(SmplifySettings(**settings, losses=loss, noise=noise)).fit(evidence, start, body, priors)
    assert (error(fitted.body) < 0.6 * error(without.body)).all()
    report = fitted.report
    assert set(report.terms) == {"keypoints", "keypoints3d", "gmm", "shape", "loss.keypoints3d"}
    torch.testing.assert_close(sum(report.terms.values()), report.energy, rtol=1e-4, atol=1e-4)
    expected = registry().create("loss", "keypoints3d", skeleton="coco17", penalty="l2")(
        {"keypoints3d": body.keypoints(fitted.body, "coco17")},
        {"keypoints3d": evidence.keypoints3d.points, "keypoints3d_confidence": torch.ones(N, 17)},
    )
    torch.testing.assert_close(report.terms["loss.keypoints3d"], 500 * expected.per_sample, rtol=1e-3, atol=1e-4)
    assert (report.energy < report.initial_energy).all()


def test_a_loss_over_body_parameters_pulls_to_the_initial_body(body):
    truth, start = people(2), people(3, far=0.1)
    picture = dataclasses.replace(seen(body, truth), mask=None, mesh=None, keypoints3d=None)

    def moved(weight: float) -> Tensor:
        settings = SmplifySettings(anchor=0, losses={"body-parameters": weight})
        found = SmplifyFitter(settings).fit(picture, start, body, {"shape": ShapePrior()})
        return (found.body.pose - start.pose)[:, 1:].norm()

    assert moved(1000.0) < 0.3 * moved(1.0)


def test_adam_takes_a_loss_without_residuals(body):
    """The silhouette's overlap, through the soft renderer."""
    truth, start = people(2), people(3, far=0.1)
    evidence = seen(body, truth)
    mask = registry().create("renderer", "warp").soft_silhouette(evidence.mesh, evidence.camera, SoftSettings()) > 0.5
    evidence = dataclasses.replace(evidence, mask=mask.float(), mesh=None, keypoints3d=None)
    settings = AdamSettings(camera_steps=0, steps=12, skinned=False, losses={"iou": 500.0, "flatness": 1.0})
    report = AdamFitter(settings).fit(evidence, start, body).report
    views, v = variables(start)
    (term,) = loss_terms({"iou": 500.0}, evidence, start, body, views)
    assert (report.terms["loss.iou"] < 0.9 * term.energy(v)).all()
    assert "loss.flatness" in report.terms


def test_views_of_one_person_add_up(body):
    truth = people(2)
    evidence = seen(body, truth)
    one = dataclasses.replace(evidence[0], subject=torch.tensor([0]))
    index = torch.tensor([0, 0])
    two = dataclasses.replace(evidence[index], subject=torch.tensor([0, 0]))
    start = people(3)
    terms = []
    for rows in (one, two):
        views = Views.of(rows.subject, rows.camera, "uncalibrated")
        initial = start[torch.zeros(len(rows), dtype=torch.int64)]
        (term,) = loss_terms({"keypoints2d": 1.0}, rows, initial, body, views)
        terms.append(term.energy(views.start(initial)))
    torch.testing.assert_close(terms[1], 2 * terms[0])


@pytest.mark.parametrize(
    ("fitter", "losses", "error", "message"),
    [
        ("smplify", {"iou": 1.0}, UsageError, "smplify.losses.iou: smplify steps by residuals"),
        ("smplify", {"vertexes": 1.0}, UsageError, "unknown loss 'vertexes'; did you mean 'vertices'?"),
        ("smplify", {"vertices": {"penaltie": "l2"}}, UsageError, "has no option 'penaltie'; did you mean 'penalty'?"),
        ("smplify", {"vertices": 1.0}, EvidenceError, "loss 'vertices' compares with 'vertices', which the evidence"),
        ("smplify", {"keypoints3d": 1.0}, UsageError, "losses.keypoints3d: the loss needs 'skeleton'"),
        ("adam", {"lsgan-generator": 1.0}, UsageError, "reads 'scores', which a fit does not predict"),
        ("adam", {"iou": 1.0}, UsageError, "loss 'iou' reads 'mask', which a fit does not predict"),
    ],
)
def test_what_cannot_join_is_named_in_one_line(body, fitter, losses, error, message):
    picture = dataclasses.replace(seen(body, people(2)), mask=None, mesh=None, keypoints3d=None)
    made = SmplifyFitter(SmplifySettings(losses=losses))
    if fitter == "adam":
        made = AdamFitter(AdamSettings(losses=losses, camera_steps=0, steps=1, skinned=False))
    with pytest.raises(error) as caught:
        made.fit(picture, people(3), body)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
