"""How the priors are trained: expectation maximisation, ranges, and the script end to end on a small recording."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from recon_core.skeletons import SMPL24
from recon_std.priors.adversarial import AdversarialPrior
from recon_std.priors.adversarial_training import area_under_curve
from recon_std.priors.gmm import GaussianMixturePrior
from recon_std.priors.joint_limits import JointLimitsPrior
from recon_std.priors.mixture_fitting import fit_mixture
from recon_std.priors.train import main, weighted_quantiles


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_em_finds_the_clusters_and_never_loses_likelihood():
    g = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0], [5, 0], [0, 5]]).double()
    x = centres[torch.arange(900) % 3] + 0.3 * torch.randn(900, 2, generator=g, dtype=torch.float64)
    floor = torch.full((2,), 1e-6, dtype=torch.float64)
    tensors, history = fit_mixture(x, torch.ones(900).double(), 3, floor, g, tolerance=1e-9)
    found = tensors["means"][tensors["means"].sum(1).argsort()]
    assert torch.cdist(found, centres).amin(1).max() < 0.1
    assert (np.diff(history) > -1e-9).all()
    torch.testing.assert_close(tensors["log_weights"].exp().sum(), torch.tensor(1.0).double())


def test_em_obeys_the_weights():
    """Samples of weight 0 change nothing."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=g, dtype=torch.float64)
    weight = torch.ones(600).double()
    weight[300:] = 0
    floor = torch.full((2,), 1e-6, dtype=torch.float64)
    tensors, _ = fit_mixture(torch.cat([x, x + 100]), weight, 1, floor, g)
    torch.testing.assert_close(tensors["means"][0], x.mean(0))


def test_weighted_quantiles():
    x = torch.tensor([[3.0], [1.0], [2.0], [4.0]])
    assert weighted_quantiles(x, torch.full((4,), 0.25), 0.5).item() == 2.0
    assert weighted_quantiles(x, torch.tensor([0.7, 0.1, 0.1, 0.1]), 0.5).item() == 3.0


def test_area_under_curve():
    assert area_under_curve(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1
    assert area_under_curve(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 2.0])) == 0.5


def recording(folder, split: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = 240
    np.savez(
        folder / f"poses_{split}.npz",
        poses=(0.3 * rng.standard_normal((frames, 24, 3))).astype(np.float16),
        clip=np.repeat(np.arange(4), frames // 4).astype(np.int16),
        frame=np.tile(np.arange(frames // 4), 4).astype(np.int16),
        flags=np.zeros(frames, np.uint8),
        clip_names=np.array(["acrnn_salsa_01", "exp_train_walking_1", "dm_roll", "cmu_01_01"]),
        source=np.zeros(4, np.int8),
        source_names=np.array(["made"]),
        clip_knee_p3=np.array([10, 12, 0, 3], np.float32),
        joint_names=np.array(SMPL24.joints),
    )


def test_the_script_writes_loadable_priors_and_their_card(tmp_path):
    for split, seed in (("train", 0), ("val", 1)):
        recording(tmp_path, split, seed)
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["--data", str(tmp_path), "--output", str(out), "--steps", "2"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for prior, file in (
        (GaussianMixturePrior, "gmm"),
        (JointLimitsPrior, "joint_limits"),
        (AdversarialPrior, "adversarial"),
    ):
        made = prior(out / f"{file}.safetensors")
        assert torch.isfinite(made.log_prob(made.sample(3)[0])).all()
    assert "| eight Gaussians |" in (out / "README.md").read_text()


def test_the_script_names_what_is_missing(tmp_path):
    result = CliRunner().invoke(main, ["--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "poses_train.npz: no such file" in result.output
