"""The other parts: bodies, priors, losses, fitters, renderers, encoders, detectors and data sets, each by its
interface."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import urllib.error
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from recon_core.errors import AssetError, EvidenceError, PluginError, ReconError
from recon_core.geometry.primitives import icosphere
from recon_core.interfaces import BodyModel, Dataset, Detector, Fitter, Method, Prior
from recon_core.plugins import Entry, registry
from recon_core.structures import BodyParameters, Camera, Features, LossValue, Mesh
from recon_core.testing.build import build_fitter
from recon_core.testing.compare import (
    assert_body,
    assert_equal,
    assert_finite,
    assert_gradient,
    assert_rows,
    assert_said_in_one_line,
)
from recon_core.testing.plugin import of
from recon_core.testing.synthetic import People, restricted, synthetic_people, training_batch

COUNT = 3


@pytest.fixture(autouse=True)
def _nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *_: Any, **__: Any) -> None:
        raise urllib.error.URLError("checks download nothing")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@cache
def part(kind: str, name: str) -> Any:
    """One a process, or why it is not to be had: a file or library that is not here, arguments of its own."""
    found = registry().load(kind, name)
    if kind == "fitter":
        return build_fitter(name)
    body = people().body_model
    known = {"faces": body.faces, "vertex_count": len(body.weights), "skeleton": "lsp14"} if kind == "loss" else {}
    parameters = inspect.signature(found).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if strange := [name for name in needed if name not in known]:
        return f"is made with {', '.join(strange)}, which the checks have not"
    try:
        return found(**{name: known[name] for name in needed})
    except (AssetError, PluginError) as error:
        assert_said_in_one_line(error, f"making {kind} '{name}'")
        return str(error)


def present(entry: Entry) -> Any:
    made = part(entry.kind, entry.name)
    if isinstance(made, str):
        pytest.skip(made)
    return made


@cache
def people() -> People:
    return synthetic_people(COUNT)


@of("body", "prior", "loss", "fitter", "encoder")
def test_it_can_be_sent_to_another_process(entry: Entry) -> None:
    made = present(entry)
    try:
        sent = pickle.loads(pickle.dumps(made))
    except Exception as error:
        raise AssertionError(f"it cannot be pickled: {error}") from error
    assert type(sent) is type(made)


# -- bodies


def _standing(body: BodyModel, count: int) -> BodyParameters:
    pose, place = people().body.pose[:count], people().body.translation[:count]
    betas = torch.linspace(-1, 1, count * body.shape_count).reshape(count, body.shape_count)
    return BodyParameters(pose, betas, place)


@of("body")
def test_a_body_is_posed_row_by_row(entry: Entry) -> None:
    body = present(entry)
    parameters = _standing(body, COUNT)
    out = body(parameters)
    vertices = len(body.weights)
    assert (out.vertices.shape, out.joints.shape) == ((COUNT, vertices, 3), (COUNT, 24, 3))
    assert_finite(out, "forward")
    assert_equal(body(parameters[1]), out[1], "one body by itself")
    empty = body(parameters[:0])
    assert (empty.vertices.shape, empty.joints.shape) == ((0, vertices, 3), (0, 24, 3))
    assert_equal(body(parameters), out, "a second time", 0.0)


@of("body")
def test_its_keypoints_are_those_of_its_mesh(entry: Entry) -> None:
    body = present(entry)
    parameters = _standing(body, COUNT)
    out = body(parameters)
    assert_equal(body.keypoints(parameters, "smpl24"), out.joints, "keypoints(smpl24)")
    assert_equal(body.keypoints(parameters, "lsp14"), body.regress(out.vertices, "lsp14"), "keypoints(lsp14)", 1e-3)


@of("body")
def test_gradients_reach_pose_shape_and_place(entry: Entry) -> None:
    body = present(entry)
    parameters = _standing(body, 1)._map(lambda v: v.clone().requires_grad_())
    body(parameters).vertices.square().sum().backward()
    for field in dataclasses.fields(parameters):
        assert_gradient(getattr(parameters, field.name), field.name)


# -- priors


def _values(prior: Prior) -> torch.Tensor:
    return 0.1 * torch.randn(COUNT, prior.dims, generator=torch.Generator().manual_seed(0))


@of("prior")
def test_a_prior_gives_one_density_a_row(entry: Entry) -> None:
    prior = present(entry)
    values = _values(prior)
    with torch.no_grad():
        density = prior.log_prob(values)
        assert density.shape == (COUNT,), f"log_prob is {list(density.shape)}, not one number a row"
        assert_finite(density, "log_prob")
        assert_equal(prior.log_prob(values[1:2]), density[1:2], "log_prob of one row")
        assert prior.log_prob(values[:0]).shape == (0,), "log_prob of no row is not empty"
    values.requires_grad_()
    (slope,) = torch.autograd.grad(prior.log_prob(values).sum(), values)
    assert_finite(slope, "gradient of log_prob")


@of("prior")
def test_samples_and_mode_of_a_prior_are_values_of_it(entry: Entry) -> None:
    prior = present(entry)
    for name, shape, draw in (
        ("sample(5)", (1, 5, prior.dims), lambda: prior.sample(5, generator=torch.Generator().manual_seed(3))),
        ("mode()", (1, prior.dims), prior.mode),
    ):
        try:
            with torch.no_grad():
                drawn, again = draw(), draw()
        except ReconError as error:
            assert_said_in_one_line(error, name)
            continue
        assert drawn.shape == shape, f"{name} is {list(drawn.shape)}, not {list(shape)}"
        assert_finite(drawn, name)
        assert_equal(again, drawn, f"{name} a second time, with the same generator", 0.0)


# -- losses


class _Trainee(Method):
    """Says which crops a training batch has."""

    inputs = frozenset()
    outputs = frozenset({"body"})

    def predict(self, observation: Any) -> Any:
        raise PluginError("a method that is only shown to a loss")


@of("loss")
def test_a_loss_gives_one_number_a_sample(entry: Entry) -> None:
    loss = present(entry)
    batch = training_batch(_Trainee(_Trainee.Config(), people().body_model))
    guess = {n: v + 0.01 if torch.is_tensor(v) and not n.startswith("has_") else v for n, v in batch.items()}
    try:
        value = loss(guess, batch)
    except KeyError as error:
        pytest.skip(f"reads {error}, which the synthetic batch has not")
    assert isinstance(value, LossValue), f"it returned {type(value).__name__}, not a LossValue"
    assert_rows({"per_sample": value.per_sample, **value.terms}, len(batch["id"]), "loss")
    assert_finite({"per_sample": value.per_sample, **value.terms}, "loss")


# -- fitters


def _fit(fitter: Fitter, rows: slice = slice(None)) -> Any:
    """From bodies that were moved and turned a little, to joints in the picture."""
    start = people().body[rows]
    moved = dataclasses.replace(start, translation=start.translation + torch.tensor([0.05, 0.05, 0.2]))
    registered = registry().names("prior")
    priors = {name: registry().create("prior", name) for name in fitter.default_priors if name in registered}
    missing = sorted(set(fitter.default_priors) - set(registered))
    context = None
    if missing:
        from recon_core.testing.build import build_method

        lender = build_method(missing[0])
        priors[missing[0]] = lender.prior()
        context = lender.predict(restricted(people().observation[rows], lender.inputs)).context
    observation = restricted(people().observation[rows], {"keypoints"})
    torch.manual_seed(0)
    return fitter.fit(observation, moved, people().body_model, priors or None, context)


@cache
def _fitted(name: str) -> Any:
    return _fit(part("fitter", name))


@of("fitter")
def test_a_fitter_reports_on_every_subject_and_makes_none_worse(entry: Entry) -> None:
    present(entry)
    result = _fitted(entry.name)
    report = result.report
    assert_body(result.body, people().body_model, "fit")
    assert_rows(report, COUNT, "report")
    assert_finite({"energy": report.energy, "pixels": report.reprojection_px}, "report")
    assert (report.energy <= report.initial_energy * (1 + 1e-4)).all(), "the energy rose, and the fit was kept"
    assert all(report.row(i)["reason"] in report.REASONS for i in range(COUNT))


@of("fitter")
def test_a_fit_is_the_same_alone_and_again(entry: Entry) -> None:
    fitter = present(entry)
    result = _fitted(entry.name)
    assert_equal(_fit(fitter).body, result.body, "a second time", 0.0)
    one = _fit(fitter, slice(1, 2))
    # Iterations amplify rounding: what the body looks like is compared, to a millimetre and a tenth of a pixel.
    both = [people().body_model.keypoints(body, "smpl24") for body in (one.body, result.body[1])]
    assert (both[0] - both[1]).norm(dim=-1).max() < 1e-3, "a subject fitted by itself becomes another body"


@of("fitter")
def test_a_fitter_says_in_one_line_that_there_is_nothing_to_fit_to(entry: Entry) -> None:
    fitter = present(entry)
    nothing = restricted(people().observation, ())
    try:
        fitter.fit(nothing, people().body, people().body_model)
    except Exception as error:
        assert_said_in_one_line(error, "without evidence")
    else:
        raise AssertionError(f"without evidence, fit should raise {EvidenceError.__name__}")


# -- renderers, encoders, detectors, data sets


@of("renderer")
def test_a_renderer_sees_a_ball(entry: Entry) -> None:
    renderer = present(entry)
    vertices, faces = icosphere(1)
    vertices = (vertices[None] * 0.5 + torch.tensor([0.0, 0.0, 3.0])).repeat(2, 1, 1).requires_grad_()
    camera = Camera.perspective(60.0, (48, 40), batch=2)
    found = renderer.rasterize(Mesh(vertices.detach(), faces), camera)
    assert found.mask.shape == (2, 1, 40, 48), f"rasterize gives pictures of {list(found.mask.shape)}"
    assert found.mask[..., 20, 24].all(), "nothing in the middle, where the ball is"
    assert not found.mask[..., 0, 0].any(), "something in the corner, where nothing is"
    assert ((found.depth[..., 20, 24] - 2.5).abs() < 0.1).all(), "the depth in the middle is not that of the near side"
    soft = renderer.soft_silhouette(Mesh(vertices, faces), camera)
    assert soft.shape == (2, 1, 40, 48), f"soft_silhouette gives pictures of {list(soft.shape)}"
    assert 0 <= soft.min() <= soft.max() <= 1, "a silhouette is not within [0, 1]"
    soft.sum().backward()
    assert_gradient(vertices, "the vertices")


@of("encoder")
def test_an_encoder_gives_features_row_by_row(entry: Entry) -> None:
    encoder = present(entry).eval()
    observation = restricted(people().observation, encoder.inputs)
    with torch.no_grad():
        features = encoder(observation)
        assert isinstance(features, Features), f"it returned {type(features).__name__}, not Features"
        assert_rows(features, COUNT, "features")
        assert_finite(features, "features")
        assert_equal(encoder(observation[1]), features[1], "one subject by itself")


@of("detector")
def test_a_detector_finds_nobody_in_an_empty_picture(entry: Entry) -> None:
    found = registry().load("detector", entry.name)
    if any(field.is_required() for field in found.Config.model_fields.values()):
        pytest.skip("reads a file that the command line names")
    detector: Detector = present(entry)
    assert detector.gives <= {"box", "keypoints", "mask"}, f"gives {sorted(detector.gives)}"
    assert detector.detect(np.full((120, 160, 3), 128, np.uint8)) == []


@of("dataset")
def test_a_data_set_is_read_or_says_what_it_needs(entry: Entry) -> None:
    try:
        dataset: Dataset = registry().create("dataset", entry.name)
    except Exception as error:
        assert_said_in_one_line(error, f"{entry.name} without a folder")
        pytest.skip(f"needs files: {error}")
    assert len(dataset) > 0, "it has no subjects"
    assert isinstance(dataset[0]["id"], str), "its subjects have no 'id' that is text"
    sent = pickle.loads(pickle.dumps(dataset))
    drawn = [d.draw_batch([0, 1], [5, 6]) or d.draw(0, np.random.default_rng(5)) for d in (dataset, sent)]
    assert_equal(drawn[1], drawn[0], "drawn in another process, from the same seeds", 0.0)
