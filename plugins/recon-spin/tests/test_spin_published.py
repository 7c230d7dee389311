"""SPIN's published file: imported, held to the original network's outputs, run from the command line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from recon_core.assets import Assets
from recon_core.catalogue import catalogue
from recon_core.errors import AssetError, UsageError
from recon_core.geometry.cameras import crop_affine, invert_affine, transform_points
from recon_core.testing.parity import Parity, parity_folder
from recon_spin.convert import SPINImporter
from recon_spin.method import SPIN, SPINConfig
from recon_std.bodies import load_body
from recon_std.bodies.data import load_body_file
from recon_std.bodies.library import SHIPPED
from recon_std.bodies.licensed import smpl_arrays

pytestmark = pytest.mark.skipif(
    not (parity_folder() / "spin.keys.json").is_file(), reason=f"no parity kit in {parity_folder()}"
)


@pytest.fixture(scope="module")
def kit() -> Parity:
    return Parity(parity_folder(), "spin")


@pytest.fixture(scope="module")
def state(kit: Parity) -> dict[str, Tensor]:
    return kit.state_dict()


@pytest.fixture(scope="module")
def published(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the authors' trainer saved it, with torch 1.1: the older format, other entries beside the weights."""
    path = tmp_path_factory.mktemp("spin") / "model_checkpoint.pt"
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 3e-5, "params": [0]}]}
    beside = {"optimizer": optimizer, "epoch": 4, "batch_idx": 0, "batch_size": 64, "dataset_perm": [2, 0, 1]}
    torch.save({"model": state, **beside}, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def store(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Assets:
    assets = Assets(catalogue().assets, tmp_path_factory.mktemp("assets"))
    (line,) = assets.add(published)
    assert "spin.weights=published" in line
    assert "left out" not in line
    return assets


def outputs(method: SPIN, image: Tensor) -> dict[str, Tensor]:
    features = method.trunk.spatial(image).mean((2, 3))
    found = {"features": features}
    for suffix, steps in (("", 3), ("_1iter", 1)):
        out = method.regressor(features, steps)
        found |= {f"rotmat{suffix}": out.pose, f"betas{suffix}": out.betas, f"camera{suffix}": out.camera}
        if not suffix:
            found["pose6d"] = out.pose_6d
    return found


@torch.no_grad()
def test_the_imported_network_gives_the_originals_numbers(kit: Parity, store: Assets) -> None:
    method = SPIN.from_assets(SPINConfig(weights="published"), store)
    assert method.config.trunk == "resnet50"
    image = kit.inputs()["0"]
    found = outputs(method, image)
    for name, value in found.items():
        kit.check(name, value)
    # The pipeline's crops are normalised as the published network's inputs are.
    kit.check("rotmat", method.regress(image * method.trunk.std + method.trunk.mean).pose)
    for name in ("pose", "shape", "cam"):
        getattr(method.regressor, f"init_{name}").copy_(torch.from_numpy(kit.golden[f"aux/init_{name}"]))
    for name, value in outputs(method, image).items():
        kit.check(f"meanparams/{name}", value)


def test_both_formats_an_unknown_entry_and_missing_counters(state: dict[str, Tensor], tmp_path: Path) -> None:
    entries = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save({"model": entries | {"somebody.else": torch.zeros(3)}}, tmp_path / "model.pt")
    line = SPINImporter().add(tmp_path / "model.pt", tmp_path)
    assert line.endswith("left out, not known: somebody.else")
    assert (tmp_path / "spin-published.safetensors").is_file()


def test_what_is_wrong_is_named_and_nothing_is_left_behind(state: dict[str, Tensor], tmp_path: Path) -> None:
    add, path = SPINImporter().add, tmp_path / "model.pt"
    torch.save({"model": state | {"fc2.weight": torch.zeros(1024, 1000)}}, path)
    with pytest.raises(
        AssetError, match=r"model.pt: .*SPIN: fc2.weight has shape \(1024, 1000\), expected \(1024, 1024"
    ):
        add(path, tmp_path / "store")
    torch.save({"model": {name: value for name, value in state.items() if name != "deccam.bias"}}, path)
    with pytest.raises(AssetError, match=r"model.pt: .*1 of its \d+ entries are missing \(deccam.bias\)"):
        add(path, tmp_path / "store")
    torch.save({"model": state | {"deccam.bias": torch.full((3,), torch.nan)}}, path)
    with pytest.raises(AssetError, match=r"model.pt: damaged: deccam.bias holds NaN"):
        add(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_truncated_files_say_so(published: Path, tmp_path: Path) -> None:
    data = published.read_bytes()
    for share in (0.9, 0.5, 0.0001):
        (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(AssetError, match=r"cut.pt: truncated or damaged.*get the file again"):
            SPINImporter().matches(tmp_path / "cut.pt")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("1/0",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_unrun(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"model": _Evil()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(AssetError, match=r"evil.pt: refused: it asks for .*eval"):
        SPINImporter().matches(path)
    path.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(AssetError, match=r"evil.pt: refused: it asks for .*eval"):
        SPINImporter().matches(path)


def test_the_crop_is_the_published_one_before_its_rounding(kit: Parity) -> None:
    """The published crop begins and ends at whole pixels, and so is up to a pixel larger on each side."""
    with np.load(kit.folder / "geometry.golden.npz") as golden:
        where, corners = golden["spin_crop/center_scale"], golden["spin_crop/ul_br"]
    center, side = torch.from_numpy(where[:, :2]), 200 * torch.from_numpy(where[:, 2:])
    shown = invert_affine(crop_affine(torch.cat([center - side / 2, side, side], 1), SPIN.crop_size))
    ends = transform_points(shown, torch.tensor([[[0.0, 0.0], [224.0, 224.0]]]).to(shown).expand(len(shown), 2, 2))
    assert (ends.flatten(1) - torch.from_numpy(corners)).abs().max() <= 1.5


def test_another_body_is_refused(store: Assets) -> None:
    with pytest.raises(UsageError, match="body 'free' does not have.*--body smpl-neutral"):
        SPIN.from_assets(SPINConfig(weights="published"), store, load_body("free"))


def test_the_catalogue_says_what_the_importer_says() -> None:
    asset = catalogue().assets[SPINImporter.asset]
    assert (asset.licence, asset.source.page) == (SPINImporter.licence, SPINImporter.origin)


def _smpl_file(folder: Path) -> Path:
    """The free body cut to SMPL's number of vertices, in the layout and under the name of SMPL's file."""
    content, count = smpl_arrays(load_body_file(SHIPPED / "free.npz")), 6890
    content |= {name: content[name][:count] for name in ("v_template", "shapedirs", "posedirs", "weights")}
    regressor = content["J_regressor"][:, :count]
    faces = content["f"]
    content |= {"J_regressor": regressor / regressor.sum(1, keepdims=True), "f": faces[(faces < count).all(1)]}
    path = folder / "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def test_from_the_published_file_to_a_body_on_the_command_line(published: Path, tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose astronaut is the photo, is not installed")
    Image.fromarray(data.astronaut()).save(tmp_path / "astronaut.png")

    def recon(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"RECON_ASSETS_DIR": str(tmp_path / "assets")}
        command = [sys.executable, "-m", "recon_core.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    run = ("run", "--method", "spin", "--set", "spin.weights=published", "--box", "60,0,360,512", "astronaut.png")
    added = recon("assets", "add", "spin", str(published))
    assert added.returncode == 0, added.stderr
    refused = recon(*run)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert "https://smpl.is.tue.mpg.de" in line
    assert "`recon assets add basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl`" in line
    added = recon("assets", "add", _smpl_file(tmp_path).name)
    assert added.returncode == 0, added.stderr
    done = recon(*run)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "astronaut" / "result.json").read_text())
    assert record["settings"]["spin"]["weights"] == "published"
    assert len(record["people"]) == 1
