"""The loop in this process: exact resume, stops, errors, logs, several optimizers."""

from __future__ import annotations

import csv
import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from recon_core.errors import OutputError, TrainingError, UsageError
from recon_core.training import train
from recon_core.training.checkpoints import newest


class Interrupted(Exception):
    pass


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "log.csv").open(newline="") as file:
        kept = csv.DictReader(file)
        return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_second")} for row in kept]


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    assert (one / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()


def crash_at(method, step: int) -> None:
    """Let the method fail as a bug or a lost machine would."""
    original = method.training_step

    def training_step(batch, at):
        if at == step:
            raise Interrupted
        return original(batch, at)

    method.training_step = training_step


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    train(tiny.made(), tiny.sources(), output, tiny.settings(), "tiny")
    return output


# -- exact resume


@pytest.mark.parametrize("step", [1, 5, 13, 23])
def test_a_crashed_run_goes_on_to_the_same_end(tiny, tmp_path, uninterrupted, step):
    method = tiny.made()
    crash_at(method, step)
    with pytest.raises(Interrupted):
        train(method, tiny.sources(), tmp_path, tiny.settings(), "tiny")
    torch.manual_seed(99)  # what a new process would begin with
    result = train(tiny.made(), tiny.sources(), tmp_path, tiny.settings(), "tiny", resume=True)
    assert result.step == 24
    assert_same_run(tmp_path, uninterrupted)


def test_mixed_precision_resumes_exactly(tiny, tmp_path):
    settings = tiny.settings(precision="bf16-mixed")
    train(tiny.made(), tiny.sources(), tmp_path / "whole", settings, "tiny")
    method = tiny.made()
    crash_at(method, 13)
    with pytest.raises(Interrupted):
        train(method, tiny.sources(), tmp_path / "cut", settings, "tiny")
    train(tiny.made(), tiny.sources(), tmp_path / "cut", settings, "tiny", resume=True)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_mixed_precision_leaves_coordinates_alone(tiny, tmp_path):
    """A batch is not rounded to half precision on its way to the method."""
    seen = []

    class Looks(tiny.Tiny):
        def training_step(self, batch, step):
            seen.append(batch["x"].dtype)
            return super().training_step(batch, step)

    train(Looks(), tiny.sources(), tmp_path, tiny.settings(precision="bf16-mixed", steps=1), "tiny")
    assert seen == [torch.float32]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(tiny, tmp_path, uninterrupted, number):
    before = signal.getsignal(number)
    method = tiny.made()
    original = method.training_step

    def training_step(batch, step):
        if step == 7:
            os.kill(os.getpid(), number)
        return original(batch, step)

    method.training_step = training_step
    result = train(method, tiny.sources(), tmp_path, tiny.settings(), "tiny")
    assert result.stopped == number.name
    assert result.step in (8, 9)
    assert newest(tmp_path) == result.checkpoint
    assert signal.getsignal(number) is before
    train(tiny.made(), tiny.sources(), tmp_path, tiny.settings(), "tiny", resume=True)
    assert_same_run(tmp_path, uninterrupted)


def test_a_finished_run_may_go_further(tiny, tmp_path):
    train(tiny.made(), tiny.sources(), tmp_path, tiny.settings(steps=9), "tiny")
    result = train(tiny.made(), tiny.sources(), tmp_path, tiny.settings(steps=12), "tiny", resume=True)
    assert result.step == 12
    assert [row["step"] for row in rows(tmp_path)] == ["3", "6", "9", "12"]
    with pytest.raises(TrainingError, match="at step 12 already, beyond --steps 10"):
        train(tiny.made(), tiny.sources(), tmp_path, tiny.settings(steps=10), "tiny", resume=True)


def test_workers_change_nothing(tiny, tmp_path, uninterrupted):
    train(tiny.made(), tiny.sources(), tmp_path, tiny.settings(workers=2), "tiny")
    assert_same_run(tmp_path, uninterrupted)


# -- checkpoints


def test_only_the_newest_checkpoints_are_kept(uninterrupted):
    kept = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert kept == ["step-00000020", "step-00000024"]


def test_a_half_written_checkpoint_is_not_taken(tiny, tmp_path, uninterrupted):
    method = tiny.made()
    crash_at(method, 13)
    with pytest.raises(Interrupted):
        train(method, tiny.sources(), tmp_path, tiny.settings(), "tiny")
    partial = tmp_path / "checkpoints" / ".partial-00000012"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half")
    train(tiny.made(), tiny.sources(), tmp_path, tiny.settings(), "tiny", resume=True)
    assert not partial.exists()
    assert_same_run(tmp_path, uninterrupted)


def test_the_body_model_is_not_in_the_weights(tiny, tmp_path):
    method = tiny.made()
    method.body_model = torch.nn.Linear(2, 2)
    train(method, tiny.sources(), tmp_path, tiny.settings(steps=2), "tiny")
    assert not [name for name in load_file(tmp_path / "weights.safetensors") if "body_model" in name]
    other = tiny.made()
    other.body_model = torch.nn.Linear(2, 2)
    train(other, tiny.sources(), tmp_path, tiny.settings(steps=3), "tiny", resume=True)


# -- what cannot go on


def begin(tiny, output: Path, **changes) -> None:
    train(tiny.made(), tiny.sources(), output, tiny.settings(steps=3, **changes), "tiny")


def again(tiny, output: Path, method=None, sources=None, name: str = "tiny", **changes) -> None:
    settings = tiny.settings(steps=6, **changes)
    train(method or tiny.made(), sources or tiny.sources(), output, settings, name, resume=True)


def test_a_run_is_not_overwritten(tiny, tmp_path):
    begin(tiny, tmp_path)
    with pytest.raises(TrainingError, match=r"holds a run already \(step 3\); go on with --resume"):
        begin(tiny, tmp_path)


def test_nothing_to_resume(tiny, tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint to resume from"):
        again(tiny, tmp_path)


def test_another_method_or_other_settings_are_refused(tiny, tmp_path):
    begin(tiny, tmp_path)
    with pytest.raises(TrainingError, match="checkpoint of method 'tiny', not of 'other'"):
        again(tiny, tmp_path, name="other")
    with pytest.raises(TrainingError, match=r"tiny\.learning_rate=0\.01, not 0\.5"):
        again(tiny, tmp_path, tiny.made(learning_rate=0.5))
    with pytest.raises(TrainingError, match=r"run\.batch_size=8, not 16"):
        again(tiny, tmp_path, batch_size=16)
    with pytest.raises(TrainingError, match=r"the run's data are numbers@0.75 \(40 subjects"):
        again(tiny, tmp_path, sources=tiny.sources()[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0.7.1", "package": "recon-tiny"}, "checkpoint of recon-tiny 0.7.1, installed is"),
        ({"processes": 4}, "4 processes, not 1"),
    ],
)
def test_a_checkpoint_of_another_version_or_machine_is_refused(tiny, tmp_path, change, message):
    begin(tiny, tmp_path)
    file = newest(tmp_path) / "checkpoint.json"
    described = json.loads(file.read_text())
    described["identity"] |= change
    file.write_text(json.dumps(described))
    with pytest.raises(TrainingError, match=message):
        again(tiny, tmp_path)


def test_a_checkpoint_of_another_format_is_refused(tiny, tmp_path):
    begin(tiny, tmp_path)
    file = newest(tmp_path) / "checkpoint.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(TrainingError, match="format 9, this recon reads format 1"):
        again(tiny, tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "training.pt", "process-0.pt", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_named(tiny, tmp_path, name, damage):
    begin(tiny, tmp_path)
    file = newest(tmp_path) / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:40])
    else:
        file.unlink()
    with pytest.raises(Exception, match=name) as error:
        again(tiny, tmp_path)
    assert type(error.value).__name__ in ("TrainingError", "AssetError")
    assert "\n" not in str(error.value)


def test_a_checkpoint_runs_no_code(tiny, tmp_path):
    begin(tiny, tmp_path)

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harmed"),))

    torch.save({"best": Evil()}, newest(tmp_path) / "process-0.pt")
    with pytest.raises(TrainingError, match=r"process-0\.pt"):
        again(tiny, tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_a_loss_that_is_not_finite_stops_with_its_batch(tiny, tmp_path):
    method = tiny.made()
    original = method.training_step

    def training_step(batch, step):
        loss = original(batch, step)
        if step == 7:
            loss.per_sample[2] = torch.nan
        return loss

    method.training_step = training_step
    with pytest.raises(TrainingError, match=r"loss of step 7 is not finite, first at n\d+") as error:
        train(method, tiny.sources(), tmp_path, tiny.settings(), "tiny")
    assert "\n" not in str(error.value)
    (file,) = tmp_path.glob("not-finite-*.json")
    record = json.loads(file.read_text())
    assert record["step"] == 7
    assert len(record["ids"]) == 8
    assert f"first at {record['ids'][2]}:" in str(error.value)
    assert newest(tmp_path).name == "step-00000005"
    assert all(torch.isfinite(v).all() for v in load_file(newest(tmp_path) / "weights.safetensors").values())


def test_a_gradient_that_is_not_finite_stops_before_the_step(tiny, tmp_path):
    method = tiny.made()
    weight = method.net[0].weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    before = weight.detach().clone()
    with pytest.raises(TrainingError, match="gradient of step 0 is not finite"):
        train(method, tiny.sources(), tmp_path, tiny.settings(), "tiny")
    assert torch.equal(weight.detach(), before)


def test_an_output_that_cannot_be_written_is_named(tiny, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match=r"file/run: cannot be written \(Not a directory\)"):
        begin(tiny, file / "run")


def test_a_method_that_does_not_learn_says_so(tiny, tmp_path):
    class Fixed(tiny.Tiny):
        training_step = tiny.Method.training_step

    with pytest.raises(UsageError, match="'fixed' cannot be trained"):
        train(Fixed(), tiny.sources(), tmp_path, tiny.settings(), "fixed")
    assert not list(tmp_path.iterdir())


def test_broken_data_in_a_worker_end_the_run_with_their_line(tiny, tmp_path):
    class Broken(tiny.Numbers):
        def draw(self, index, generator):
            if index == 5:
                raise TrainingError("im5.jpg: damaged")
            return super().draw(index, generator)

    with pytest.raises(TrainingError, match=r"^im5\.jpg: damaged$"):
        train(tiny.made(), [tiny.Source("broken", Broken())], tmp_path, tiny.settings(workers=1), "tiny")


def test_half_precision_is_not_quietly_another_one(tiny, tmp_path):
    """Fabric would take bfloat16 on a CPU."""
    with pytest.warns(match="bf16"), pytest.raises(UsageError, match="precision=16-mixed: this device"):
        begin(tiny, tmp_path, precision="16-mixed")


def test_a_device_that_is_not_there(tiny, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="accelerator=cuda"):
        begin(tiny, tmp_path, accelerator="cuda")


# -- gradients and optimizers


def test_the_gradient_is_clipped(tiny, tmp_path):
    """With plain gradient descent no step is longer than rate times the limit."""
    method = tiny.made("averaged", optimizer="sgd", learning_rate=1.0)
    method.configure_schedulers = lambda optimizers, steps: {}
    before = torch.cat([p.detach().flatten() for p in method.parameters()])
    settings = tiny.settings(steps=1, gradient_clip=0.01)
    train(method, tiny.sources()[:1], tmp_path, settings, "averaged")
    after = torch.cat([p.detach().flatten() for p in method.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)
    assert float(rows(tmp_path)[0]["gradient_norm"]) > 0.01


def test_each_optimizer_moves_its_own_parameters_in_its_turns(tiny, tmp_path):
    method = tiny.made("game")
    seen = []

    class Watched(type(method)):
        def training_step(self, batch, step, optimizer="maker"):
            state = [p.detach().clone() for p in (*self.net.parameters(), *self.critic.parameters())]
            seen.append((step, optimizer, state))
            return super().training_step(batch, step, optimizer)

    method.__class__ = Watched
    train(method, tiny.sources()[:1], tmp_path, tiny.settings(steps=4), "game")
    turns = ["maker", "maker", "critic", "maker", "maker", "critic"]
    assert [optimizer for _, optimizer, _ in seen] == turns
    for (_, mover, before), (_, _, after) in pairwise(seen):
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == ([True] * 4 + [False] * 2 if mover == "maker" else [False] * 4 + [True] * 2)
    assert {"maker/loss", "critic/loss", "learning_rate/maker"} <= rows(tmp_path)[0].keys()


def test_hooks_see_every_step(tiny, tmp_path, monkeypatch):
    from recon_core.plugins import registry

    seen = []
    monkeypatch.setattr(registry(), "call", lambda hook, **a: seen.append((hook, a["method"], a["step"])))
    begin(tiny, tmp_path)
    assert seen == [("recon_train_step", "tiny", step) for step in range(3)]


def test_preparation_happens_once(tiny, tmp_path):
    prepared = []
    method = tiny.made()
    method.before_training = lambda data: prepared.append(data.batch(0)["id"])
    train(method, tiny.sources(), tmp_path, tiny.settings(steps=2), "tiny")
    method = tiny.made()
    method.before_training = lambda data: prepared.append("again")
    train(method, tiny.sources(), tmp_path, tiny.settings(steps=3), "tiny", resume=True)
    assert len(prepared) == 1
    assert len(prepared[0]) == 8


# -- logs


def test_the_log_holds_means_of_its_window(tiny, tmp_path):
    per_step, method = [], tiny.made()
    original = method.training_step

    def training_step(batch, step):
        loss = original(batch, step)
        per_step.append(float(loss.per_sample.detach().mean()))
        return loss

    method.training_step = training_step
    train(method, tiny.sources(), tmp_path, tiny.settings(steps=7), "tiny")
    logged = [float(row["loss"]) for row in rows(tmp_path)]
    expected = [np.mean(per_step[:3]), np.mean(per_step[3:6]), per_step[6]]
    np.testing.assert_allclose(logged, expected, rtol=1e-6)
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "0", "1"]


def test_a_torn_last_row_is_taken_out(tiny, tmp_path):
    begin(tiny, tmp_path)
    with (tmp_path / "log.csv").open("a") as file:
        file.write("3,0,0.1")
    again(tiny, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == ["3", "6"]
    assert None not in rows(tmp_path)[0]


def test_pictures_and_events_are_written(tiny, tmp_path):
    train(tiny.made(), tiny.sources(), tmp_path, tiny.settings(steps=4, pictures_every=2), "tiny")
    files = sorted((tmp_path / "pictures").iterdir())
    assert [file.name for file in files] == ["noise-00000002.png", "noise-00000004.png"]
    assert Image.open(files[0]).size == (12, 8)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["noise"]
    assert "loss" in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("loss")] == [3, 4]
