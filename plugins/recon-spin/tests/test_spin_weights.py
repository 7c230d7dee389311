"""The shipped weights: what the catalogue says of them, what they give, and the command line with nothing else."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import recon_spin.weights
from recon_core.assets import assets
from recon_core.cli import main
from recon_core.errors import AssetError
from recon_core.export.json_npz import ResultRecord
from recon_core.structures import BodyParameters, Camera, Observation
from recon_spin.evaluation import errors_2d, errors_3d
from recon_spin.method import SPIN, WEIGHTS, SPINConfig
from recon_spin.samples import Parts
from recon_spin.settings import TrainConfig
from recon_spin.weights import NETWORK, save_method
from recon_std.bodies import load_body
from recon_std.synthetic.dataset import SyntheticDataset

CONFIGS = ("first", "second", "loop")


@pytest.fixture(scope="module")
def shipped() -> SPIN:
    return SPIN.from_assets(SPINConfig(), assets(), load_body("free"))


@pytest.fixture(scope="module")
def rendered(shipped: SPIN) -> dict:
    """People whose poses come from the shipped mixture prior: no data set is needed."""
    people = SyntheticDataset(None, SyntheticDataset.Config(size=shipped.crop_size, seed=5, cut=0))
    return dict(people.draw_batch(range(12), range(12)))


def _observed(batch: dict) -> Observation:
    image, K = batch["image"], batch["K"]
    side = image.shape[-1]
    eye = torch.eye(3).expand(len(K), 3, 3)
    whole = torch.tensor([0.0, 0.0, side, side]).expand(len(K), 4)
    return Observation(Camera(K, eye, torch.zeros(len(K), 3), (side, side)), whole, image, eye[:, :2])


def test_the_shipped_weights_are_the_catalogues_and_small():
    status = assets().status_of(WEIGHTS)
    assert status.state == "present"
    assert status.path is not None
    assert status.path.stat().st_size == status.asset.size <= 20e6
    assert (status.path.parent / "README.md").is_file()


def test_the_configurations_beside_the_weights_are_read_and_the_last_is_of_this_network(shipped):
    folder = Path(recon_spin.weights.__file__).parent
    configs = {name: TrainConfig(**tomllib.loads((folder / f"{name}.toml").read_text())) for name in CONFIGS}
    assert {file.stem for file in folder.glob("*.toml")} == set(configs)
    for setting in NETWORK:
        assert getattr(configs["second"].spin, setting) == getattr(shipped.config, setting)
    logged = [json.loads(line) for line in (folder / "training" / "second.jsonl").read_text().splitlines()]
    assert logged[-1]["step"] == configs["second"].steps


def test_bodies_of_rendered_people_are_nearer_the_truth_than_the_mean_body(shipped, rendered):
    body, side = shipped.body_model, shipped.crop_size
    found = shipped.predict(_observed(rendered)).body
    truth = BodyParameters(rendered["pose"], rendered["betas"], rendered["translation"])
    first = SPIN(shipped.config, body).eval()
    first.load_state_dict(shipped.state_dict())
    for head in (first.regressor.decpose, first.regressor.decshape, first.regressor.deccam):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    mean = first.predict(_observed(rendered)).body
    ours, chance = (errors_3d(body, b, truth) for b in (found, mean))
    assert ours["pa_mpjpe"].mean() < 0.8 * chance["pa_mpjpe"].mean()
    assert ours["mpjpe"].mean() < 0.6 * chance["mpjpe"].mean()
    flat, chance_flat = (errors_2d(body, b, rendered, side)["reprojection"].mean() for b in (found, mean))
    assert flat < 0.5 * chance_flat


def test_one_of_many_is_one_alone(shipped, rendered):
    seen = _observed(rendered)
    together, alone = shipped.predict(seen).body, shipped.predict(seen[3]).body
    for name in ("pose", "betas", "translation"):
        torch.testing.assert_close(getattr(together, name)[3:4], getattr(alone, name), atol=1e-4, rtol=1e-4)


def test_the_cut_network_is_the_whole_one(shipped, rendered):
    """Training reads what the first blocks give, in half precision; the network then does the rest."""
    parts = Parts(shipped, 8).eval()
    with torch.no_grad():
        cut, whole = parts(parts.first(rendered["image"])), shipped.regress(rendered["image"])
    torch.testing.assert_close(cut.pose, whole.pose, atol=0.02, rtol=0)
    parts.train()
    assert not parts.trunk.blocks[7].training
    assert parts.trunk.blocks[8].training
    shipped.eval()


def test_files_say_which_network_they_are_for(shipped, tmp_path):
    save_method(shipped, tmp_path / "own.safetensors")
    again = SPIN.from_assets(SPINConfig(weights=str(tmp_path / "own.safetensors"), dropout=0.1), assets())
    assert (again.config.pooling, again.crop_size) == (shipped.config.pooling, shipped.crop_size)
    assert again.config.dropout == 0.1
    with pytest.raises(AssetError, match=r"has trunk efficientnet-lite0; leave out --set spin\.trunk"):
        SPIN.from_assets(SPINConfig(trunk="resnet50"), assets())
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(AssetError, match=r"text\.safetensors: not weights of spin"):
        SPIN.from_assets(SPINConfig(weights=str(tmp_path / "text.safetensors")), assets())


@pytest.mark.parametrize("box", ["20,5,430,505", None], ids=["box", "detector"])
def test_the_command_line_needs_nothing_but_the_repository(box: str | None, tmp_path: Path) -> None:
    """With a box nothing else is needed; without one the detector's files, which recon fetches once."""
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose astronaut is the photo, is not installed")
    if box is None:
        for name in ("blazepose-detection", "blazepose-landmarks"):
            if assets().status_of(name).state != "present":
                pytest.skip(f"asset {name} is not here: {assets().how_to_get(name)}")
    path, out = tmp_path / "astronaut.png", tmp_path / "out"
    Image.fromarray(data.astronaut()).save(path)
    command = ["run", "--method", "spin", str(path), "-o", str(out)]
    assert main([*command, "--box", box] if box else command) == 0
    record = ResultRecord.model_validate_json((out / "astronaut" / "result.json").read_text())
    assert record.method == "spin"
    (person,) = record.people
    x, y, *_ = person.joints2d["smpl24"]["head"]
    assert np.hypot(x - 222, y - 115) < 100  # her face, in a picture of 512 pixels
    with np.load(out / "astronaut" / "result.npz") as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays.files if arrays[name].dtype.kind == "f")
    assert {"overlay.png", "scene.glb", "report.html"} <= {file.name for file in (out / "astronaut").iterdir()}
