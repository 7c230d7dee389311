"""Methods: what they read and give, on made-up people (`recon_core.testing.synthetic`)."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from recon_core.errors import ReconError
from recon_core.interfaces import InputKind, Method, OutputKind
from recon_core.plugins import Entry, registry
from recon_core.structures import LossValue, Observation, Prediction
from recon_core.testing.build import build_method
from recon_core.testing.compare import assert_equal, assert_prediction, assert_said_in_one_line, tensors
from recon_core.testing.plugin import of
from recon_core.testing.synthetic import restricted, synthetic_observation, synthetic_people, training_batch
from recon_core.training.checkpoints import load_weights, weights_of

COUNT = 3
GPU_TOLERANCE = 5e-3


def made(name: str, seed: int = 0) -> Method:
    """With chance that falls the same each time, for methods whose weights are not here."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_method(name, **registry().load("method", name).quick)


built = cache(made)
"""One a process: no check changes it."""


@cache
def seen(name: str) -> Observation:
    return synthetic_observation(built(name), COUNT)


def predicted(method: Method, observation: Observation) -> Prediction:
    """As the pipeline does it: without gradients, with chance that falls the same each time."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return method.predict(observation)


@cache
def expected(name: str) -> Prediction:
    return predicted(built(name), seen(name))


@of("method")
def test_it_declares_what_it_reads_and_gives(entry: Entry) -> None:
    found = registry().load("method", entry.name)
    for attribute, known in (("inputs", get_args(InputKind)), ("outputs", get_args(OutputKind))):
        declared = getattr(found, attribute, None)
        assert isinstance(declared, frozenset), f"{attribute} is {declared!r}, not a frozenset of {', '.join(known)}"
        strange = sorted(declared - set(known))
        assert not strange, f"{attribute} has {', '.join(strange)}; known: {', '.join(known)}"
    assert found.outputs, "outputs is empty: it gives nothing"
    for kind, name in (("fitter", found.default_fitter), ("detector", found.default_detector), ("body", found.body)):
        assert name is None or name in registry().names(kind), f"its {kind} '{name}' is not registered"
    method = built(entry.name)
    everything = synthetic_people(COUNT, 0, method.body_model, method.crop_size, method.crop_margin).observation
    whole = predicted(method, everything)
    # A method that is shown less than it reads fails in `predict`, or gives something else.
    try:
        assert_equal(expected(entry.name), whole, "shown only what `inputs` declares, it")
    except (AttributeError, TypeError, ReconError) as error:
        raise AssertionError(f"shown only what `inputs` declares, predict fails: {error}") from error


@of("method")
def test_it_predicts_on_the_synthetic_batch(entry: Entry) -> None:
    method = built(entry.name)
    assert_prediction(expected(entry.name), method.outputs, COUNT, method.body_model)


@of("method")
def test_a_batch_of_one_is_a_row_of_a_batch_of_many(entry: Entry) -> None:
    for row in range(COUNT):
        alone = predicted(built(entry.name), seen(entry.name)[row])
        assert_equal(alone, _row(expected(entry.name), row), f"subject {row} by itself")


@of("method")
def test_an_empty_batch_gives_an_empty_prediction(entry: Entry) -> None:
    method = built(entry.name)
    assert_prediction(predicted(method, seen(entry.name)[:0]), method.outputs, 0, method.body_model)


@of("method")
def test_cpu_and_gpu_agree(entry: Entry) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    there = predicted_on("cuda", entry.name)
    assert_equal(there, expected(entry.name), "on a GPU", GPU_TOLERANCE)


def predicted_on(device: str, name: str) -> Prediction:
    """The prediction by a copy on another device, of which every tensor is there."""
    there = predicted(copy.deepcopy(built(name)).to(device), seen(name).to(device))
    strays = sorted(name for name, value in tensors(there) if value.device.type != device)
    assert not strays, f"on {device}, predict gives {', '.join(strays)} on the CPU"
    return there


@of("method")
def test_gradients_reach_every_trainable_parameter(entry: Entry) -> None:
    method = _in_training(entry.name)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in _trainable(method):
            # Layers that begin at zero would keep gradients from those before them.
            parameter += 0.01 * torch.randn(parameter.shape, generator=noise)
    for loss in _steps(method):
        assert torch.isfinite(loss.per_sample).all(), "training_step gives a loss that is not finite"
        loss.per_sample.mean().backward()
    without = [name for name, p in _trainable(method) if p.grad is None or not p.grad.any()]
    assert not without, f"no gradient reaches {', '.join(without[:5])} ({len(without)} parameters)"
    broken = [name for name, p in _trainable(method) if p.grad is not None and not torch.isfinite(p.grad).all()]
    assert not broken, f"gradients that are not finite: {', '.join(broken[:5])}"


@of("method")
def test_saved_and_loaded_it_predicts_the_same(entry: Entry, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(weights_of(built(entry.name)), file)
    other, noise = made(entry.name, seed=1), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in _trainable(other):
            parameter += torch.randn(parameter.shape, generator=noise)
    load_weights(other, file)
    assert_equal(predicted(other, seen(entry.name)), expected(entry.name), "saved, and loaded into another")


@of("method")
def test_it_does_the_same_again_under_the_same_seed(entry: Entry) -> None:
    again = predicted(built(entry.name), seen(entry.name))
    assert_equal(again, expected(entry.name), "under the same seed", 0.0)
    anew = predicted(made(entry.name), seen(entry.name))
    assert_equal(anew, expected(entry.name), "made anew, under the same seed", 0.0)


@of("method")
def test_a_training_step_does_the_same_again_under_the_same_seed(entry: Entry) -> None:
    first, second = ([loss.per_sample for loss in _steps(_in_training(entry.name))] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "training_step differs under one seed"


@of("method")
def test_it_can_be_sent_to_another_process(entry: Entry) -> None:
    try:
        sent = pickle.loads(pickle.dumps(built(entry.name)))
    except Exception as error:
        raise AssertionError(f"it cannot be pickled: {error}") from error
    assert_equal(predicted(sent, seen(entry.name)), expected(entry.name), "pickled")


@of("method")
def test_what_it_cannot_do_without_it_says_in_one_line(entry: Entry) -> None:
    method = built(entry.name)
    for missing in sorted(method.inputs):
        # Several kinds may each be enough; what is not is an error of one line.
        _tried(method, restricted(seen(entry.name), method.inputs - {missing}), f"without {missing}")
    if method.inputs:
        error = _tried(method, restricted(seen(entry.name), ()), f"without {' or '.join(sorted(method.inputs))}")
        assert error, f"without {' or '.join(sorted(method.inputs))}, predict should raise an EvidenceError"


def _tried(method: Method, observation: Observation, doing: str) -> Exception | None:
    try:
        predicted(method, observation)
    except Exception as error:
        assert_said_in_one_line(error, doing)
        return error
    return None


def _row(prediction: Prediction, row: int) -> Prediction:
    return prediction[row : row + 1]


def _trainable(method: Method) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((n, p) for n, p in method.named_parameters() if p.requires_grad and not n.startswith("body_model."))


def _in_training(name: str) -> Method:
    """A method of its own to train, or a skip where it does not learn."""
    found: type[Method] = registry().load("method", name)
    if found.training_step is Method.training_step:
        pytest.skip("it defines no training_step")
    return made(name).train()


def _steps(method: Method) -> Iterator[LossValue]:
    """The losses of step 0; of a method that trains by turns, until each optimizer had one."""
    batch = training_batch(method)
    several = "optimizer" in inspect.signature(method.training_step).parameters
    for step, turn in _turns(method) if several else ((0, ()),):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            try:
                loss = method.training_step(batch, step, *turn)
            except KeyError as error:
                pytest.skip(f"training_step reads the field {error}, which the synthetic batch has not")
        count = len(batch["id"])
        assert isinstance(loss, LossValue), f"training_step returned {type(loss).__name__}, not a LossValue"
        for name, value in {"per_sample": loss.per_sample, **loss.terms}.items():
            shape = tuple(value.shape) if isinstance(value, Tensor) else None
            assert shape == (count,), f"loss: {name} is not one number a sample"
        yield loss


def _turns(method: Method) -> Iterator[tuple[int, tuple[str]]]:
    optimizers = method.configure_optimizers(100)
    waiting = set(optimizers)
    for step in range(2 * len(optimizers)):
        if not waiting:
            return
        for name in method.turns(step, optimizers):
            yield step, (name,)
            waiting.discard(name)
