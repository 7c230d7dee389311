"""Mixing sources: shares, order, coverage, and batches that follow from the seed and the step alone."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from recon_core.datasets import Mixture, Source, SourceSpec, Steps, check_pictures, data_folder, load_sources
from recon_core.errors import TrainingError, UsageError


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("synthetic", SourceSpec("synthetic")),
        ("lsp-ext:data/lsp@0.5", SourceSpec("lsp-ext", "data/lsp", 0.5)),
        ("synthetic@2", SourceSpec("synthetic", None, 2.0)),
        ("a:x@y/z", SourceSpec("a", "x@y/z")),
        ("a:C:/data@1", SourceSpec("a", "C:/data", 1.0)),
    ],
)
def test_specs_are_read(text, expected):
    assert SourceSpec.parse(text) == expected


@pytest.mark.parametrize("text", ["", ":x", "a:", "a:x@0", "a@-1", "a@nan", "a@inf"])
def test_malformed_specs_are_refused(text):
    with pytest.raises(UsageError, match="--data"):
        SourceSpec.parse(text)


def test_weights_are_for_all_or_none():
    with pytest.raises(UsageError, match="every source"):
        load_sources([SourceSpec("mocap", "x", 1.0), SourceSpec("lsp-ext", "y")])


def test_an_unknown_dataset_is_named():
    with pytest.raises(UsageError, match="unknown dataset 'mocapp'"):
        load_sources([SourceSpec("mocapp", "x")])


def test_every_epoch_has_the_shares_to_a_sample(tiny):
    mixture = Mixture(tiny.sources(), batch_size=8, seed=1)
    for epoch in range(3):
        steps = range(epoch * mixture.steps_per_epoch, (epoch + 1) * mixture.steps_per_epoch)
        drawn = Counter(s for step in steps for s in mixture.batch(step)["source"])
        total = drawn.total()
        assert abs(drawn["numbers"] - 0.75 * total) <= 1
        assert abs(drawn["unlabelled"] - 0.25 * total) <= 1


def test_shares_are_mixed_within_the_epoch(tiny):
    big = [
        Source("a", tiny.Numbers(None, tiny.Numbers.Config(count=6000)), 3),
        Source("b", tiny.Numbers(None, tiny.Numbers.Config(count=2000)), 1),
    ]
    mixture = Mixture(big, batch_size=100)
    shares = [(mixture.chosen(step)[0] == 0).mean() for step in range(mixture.steps_per_epoch)]
    assert np.std(shares) == pytest.approx((0.75 * 0.25 / 100) ** 0.5, rel=0.25)


def test_no_subject_comes_twice_before_all_came_once(tiny):
    mixture = Mixture([Source("numbers", tiny.Numbers())], batch_size=8)
    assert mixture.steps_per_epoch == 5
    orders = []
    for epoch in range(3):
        ids = [i for step in range(5 * epoch, 5 * epoch + 5) for i in mixture.batch(step)["id"]]
        assert sorted(ids) == sorted(f"n{i}" for i in range(40))
        orders.append(ids)
    assert orders[0] != orders[1] != orders[2]


def test_a_small_source_goes_round_evenly(tiny):
    """13 subjects for a quarter of the samples: over the epochs their counts differ by one round at most."""
    mixture = Mixture(tiny.sources(), batch_size=8)
    counts: Counter[str] = Counter()
    for step in range(20 * mixture.steps_per_epoch):
        batch = mixture.batch(step)
        counts.update(i for i, s in zip(batch["id"], batch["source"], strict=True) if s == "unlabelled")
    assert len(counts) == 13
    assert max(counts.values()) - min(counts.values()) <= 1


def test_sampling_weights_are_followed(tiny):
    numbers = tiny.Numbers()
    numbers.sampling_weights = torch.arange(40.0)
    mixture = Mixture([Source("numbers", numbers)], batch_size=40)
    index = np.concatenate([mixture.chosen(step)[1] for step in range(500)])
    share = np.bincount(index, minlength=40) / len(index)
    np.testing.assert_allclose(share, np.arange(40) / np.arange(40).sum(), atol=0.004)
    assert share[0] == 0


def test_batches_follow_from_seed_and_step(tiny):
    one, again, other = (Mixture(tiny.sources(), 8, seed) for seed in (0, 0, 1))
    backwards = {step: one.batch(step) for step in (31, 4, 12, 0)}
    assert all(same(batch, again.batch(step)) for step, batch in backwards.items())
    assert not same(other.batch(4), backwards[4])


def test_a_copy_in_a_worker_gives_the_same(tiny):
    mixture = Mixture(tiny.sources(), 8)
    assert same(pickle.loads(pickle.dumps(mixture)).batch(7), mixture.batch(7))


def test_processes_share_a_step_without_changing_it(tiny):
    mixture = Mixture(tiny.sources(), 8)
    whole, parts = mixture.batch(3), [mixture.batch(3, rank, 2) for rank in range(2)]
    for rank, part in enumerate(parts):
        assert part["id"] == whole["id"][rank::2]
        assert torch.equal(part["x"], whole["x"][rank::2])
    with pytest.raises(TrainingError, match="over 3 processes"):
        mixture.batch(0, 0, 3)


def test_a_missing_field_is_zero_and_says_so(tiny):
    batch = Mixture(tiny.sources(), 8).batch(0)
    labelled = torch.tensor([float(s == "numbers") for s in batch["source"]])
    assert 0 < labelled.sum() < 8
    assert torch.equal(batch["has_y"], labelled)
    assert torch.equal(batch["has_x"], torch.ones(8))
    assert batch["y"][labelled == 0].abs().max() == 0
    assert "has_id" not in batch


def test_a_dataset_may_say_itself_what_is_missing(tiny):
    class Half(tiny.Numbers):
        def draw(self, index, generator):
            return {**super().draw(index, generator), "has_y": float(index % 2)}

    batch = Mixture([Source("half", Half())], 8).batch(0)
    assert batch["has_y"].tolist() == [float(int(i[1:]) % 2) for i in batch["id"]]
    assert "has_has_y" not in batch


def test_sources_must_agree_on_their_fields(tiny):
    class Wide(tiny.Numbers):
        def draw(self, index, generator):
            return {"id": "w", "x": np.zeros(5, np.float32)}

    with pytest.raises(TrainingError, match=r"numbers and wide both give 'x', but as \[4\] float32 and \[5\] float32"):
        Mixture([Source("numbers", tiny.Numbers()), Source("wide", Wide())], 8)


def test_a_subject_of_another_shape_is_named(tiny):
    class Odd(tiny.Numbers):
        def draw(self, index, generator):
            return {"id": f"n{index}", "x": np.zeros(4 + (index == 17), np.float32)}

    mixture = Mixture([Source("odd", Odd())], 1)
    (step,) = (step for step in range(40) if mixture.chosen(step)[1][0] == 17)
    with pytest.raises(TrainingError, match="odd, n17: field 'x'"):
        mixture.batch(step)


def test_an_error_in_a_worker_keeps_its_line(tiny):
    class Broken(tiny.Numbers):
        def draw(self, index, generator):
            if index == 5:
                raise TrainingError("im5.jpg: damaged")
            return super().draw(index, generator)

    steps = Steps(Mixture([Source("broken", Broken())], 40), 0, 1)
    assert steps[0].message == "im5.jpg: damaged"


def test_pictures_are_checked_first_named_rest_counted(tmp_path):
    files = [tmp_path / f"{i}.jpg" for i in range(4)]
    for file in files[:3]:
        Image.effect_noise((64, 64), 50).save(file)
    check_pictures("set", files[:3])
    files[1].write_bytes(files[1].read_bytes()[:600])
    with pytest.raises(TrainingError, match=r"1\.jpg: damaged .*, and 1 more of 4 files; --data set") as error:
        check_pictures("set", files)
    assert "\n" not in str(error.value)
    check_pictures("set", files[:3], decode=False)  # its header is whole
    with pytest.raises(TrainingError, match=r"3\.jpg: missing; "):
        check_pictures("set", files, decode=False)


def test_folders_are_asked_for(tmp_path):
    with pytest.raises(UsageError, match="--data set:FOLDER"):
        data_folder("set", None)
    with pytest.raises(TrainingError, match="no such folder"):
        data_folder("set", tmp_path / "none")
