"""The base of importers of published checkpoints, on a toy network; the papers' own are tested in their plugins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from recon_core.assets import Assets
from recon_core.cli.assets import _named_importer
from recon_core.errors import AssetError, InputError, UsageError
from recon_core.published import PublishedImporter, load_published


class Toy(PublishedImporter):
    title, origin, licence = "Toy", "https://example.org/toy", "MIT"
    asset, use, weights_at = "toy-published", "--method toy", "state_dict"
    marks = frozenset({"trunk.0.weight", "trunk.1.running_var"})
    idle = re.compile(r"body\..*")

    def module(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def published_name(self, name: str) -> str:
        return f"trunk.{name}"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {f"trunk.{name}": value + 1 for name, value in Toy().module().state_dict().items()}


def test_the_module_gets_the_files_numbers_whatever_wraps_them(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    parallel = {
        f"module.{name}": value.double() if value.is_floating_point() else value for name, value in state.items()
    }
    for content in ({"state_dict": state, "epoch": 1}, state, {"state_dict": parallel}):
        torch.save(content, tmp_path / "toy.pt")
        assert Toy().matches(tmp_path / "toy.pt")
        Toy().add(tmp_path / "toy.pt", tmp_path / "assets")
        module = load_published(Toy().module(), tmp_path / "assets" / "toy-published.safetensors")
        assert not module.training
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value, state[f"trunk.{name}"])
    with safe_open(tmp_path / "assets" / "toy-published.safetensors", "pt") as file:
        about = file.metadata()
    assert (about["origin"], about["licence"], about["source"]) == ("https://example.org/toy", "MIT", "toy.pt")
    assert len(about["source_sha256"]) == 64


def test_known_idle_entries_are_silent_and_unknown_ones_are_named(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    del state["trunk.1.num_batches_tracked"]
    torch.save({"state_dict": state | {"body.faces": torch.ones(2)}}, tmp_path / "toy.pt")
    assert "left out" not in Toy().add(tmp_path / "toy.pt", tmp_path)
    torch.save({"state_dict": state | {f"extra{i}": torch.ones(2) for i in range(7)}}, tmp_path / "toy.pt")
    line = Toy().add(tmp_path / "toy.pt", tmp_path)
    assert line.endswith("left out, not known: extra0, extra1, extra2, extra3, extra4 and 2 more")


def test_a_bad_file_leaves_what_was_added_before(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    kept = tmp_path / "assets" / "toy-published.safetensors"
    torch.save({"state_dict": state}, tmp_path / "toy.pt")
    Toy().add(tmp_path / "toy.pt", kept.parent)
    before = kept.read_bytes()
    torch.save({"state_dict": state | {"trunk.0.bias": torch.tensor([1, 2])}}, tmp_path / "toy.pt")
    with pytest.raises(AssetError, match=r"toy.pt: trunk.0.bias holds torch.int64, expected torch.float32"):
        Toy().add(tmp_path / "toy.pt", kept.parent)
    torch.save({"state_dict": state | {"trunk.0.bias": torch.ones(1)}}, tmp_path / "toy.pt")
    with pytest.raises(AssetError, match=r"toy.pt: .*trunk.0.bias has shape \(1,\), expected \(2,\)"):
        Toy().add(tmp_path / "toy.pt", kept.parent)
    assert kept.read_bytes() == before
    assert list(kept.parent.iterdir()) == [kept]


def test_weights_of_an_older_version_are_told_apart(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": state}, tmp_path / "toy.pt")
    Toy().add(tmp_path / "toy.pt", tmp_path)
    with pytest.raises(AssetError, match=r"toy-published.safetensors: of another version.*`recon assets add`"):
        load_published(nn.Linear(3, 5), tmp_path / "toy-published.safetensors")


def test_what_no_importer_knows(tmp_path: Path) -> None:
    torch.save({"state_dict": {"somebody.elses": torch.ones(1)}}, tmp_path / "model.pt")
    store = Assets({}, tmp_path / "assets")
    with pytest.raises(InputError, match="model.pt: is no file of the catalogue and no importer .*spin.* knows it"):
        store.add(tmp_path / "model.pt")
    with pytest.raises(InputError, match="model.pt: is no file of spin"):
        store.add(tmp_path / "model.pt", "spin")


def test_a_method_may_be_named_before_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _named_importer(("spin", "a.pt", "b.pt")) == ("spin", ("a.pt", "b.pt"))
    assert _named_importer(("spin",)) == (None, ("spin",))
    with pytest.raises(UsageError, match="unknown importer 'spni'; did you mean 'spin'"):
        _named_importer(("spni", "a.pt"))
    with pytest.raises(UsageError, match=r"method 'spice' .*(not available yet|no published checkpoint)"):
        _named_importer(("spice", "a.pt"))
    (tmp_path / "a.pt").touch()
    assert _named_importer(("a.pt", "b.pt")) == (None, ("a.pt", "b.pt"))
