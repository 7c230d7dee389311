"""The regressor: the published network's numbers, and what its initial estimate means."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from recon_spin.regressor import IterativeRegressor
from recon_std.encoders.images import EfficientNetLite0, ResNet50

PARITY = Path(os.environ.get("RECON_PARITY_DIR", Path(__file__).parents[4] / "shared" / "parity" / "a"))


def _weights_module():
    spec = importlib.util.spec_from_file_location("parity_weights", PARITY.parent / "weights.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def published():
    """(spec, golden arrays, trunk and regressor with the parity kit's weights, input image)."""
    if not (PARITY / "spin.keys.json").exists():
        pytest.skip(f"parity kit not at {PARITY}")
    formula = _weights_module()
    spec = json.loads((PARITY / "spin.keys.json").read_text())
    state = {}
    for entry in spec["keys"]:
        if entry["fill"] == "zero":
            state[entry["name"]] = torch.zeros(tuple(entry["shape"]), dtype=torch.int64)
        else:
            filled = formula.fill(entry["name"], tuple(entry["shape"]), spec["prefix"], entry.get("gain", 1.0))
            state[entry["name"]] = torch.from_numpy(filled).reshape(entry["shape"])
    trunk, regressor = ResNet50().eval(), IterativeRegressor().eval()
    own = set(regressor.state_dict())
    regressor.load_state_dict({k: v for k, v in state.items() if k in own})
    trunk.load_state_dict({k: v for k, v in state.items() if k not in own})
    (image,) = spec["golden"]["inputs"]
    x = formula.named_input(image["name"], image["shape"], image["scale"], spec["prefix"])
    return spec, np.load(PARITY / "spin.golden.npz"), trunk, regressor, torch.from_numpy(x)


@pytest.mark.parametrize("variant", ["", "meanparams/"])
@torch.no_grad()
def test_network_reproduces_the_published_one(published, variant):
    spec, golden, trunk, regressor, image = published
    features = trunk.spatial(image).mean((2, 3))
    if variant:
        means = [golden[f"aux/init_{n}"] for n in ("pose", "shape", "cam")]
        for buffer, value in zip((regressor.init_pose, regressor.init_shape, regressor.init_cam), means, strict=True):
            buffer.copy_(torch.from_numpy(value).reshape(buffer.shape))
    out, one = regressor(features), regressor(features, iterations=1)
    values = {
        "features": features, "pose6d": out.pose_6d, "rotmat": out.pose, "betas": out.betas, "camera": out.camera,
        "rotmat_1iter": one.pose, "betas_1iter": one.betas, "camera_1iter": one.camera,
    }  # fmt: skip
    for name, value in values.items():
        atol = spec["golden"]["outputs"][variant + name]["suggested_atol"]
        np.testing.assert_allclose(value.numpy(), golden[variant + name], rtol=1e-5, atol=atol, err_msg=name)


def test_untrained_estimate_is_a_person_upright_before_the_camera():
    regressor = IterativeRegressor(features=8).eval()
    out = regressor(torch.zeros(2, 8), iterations=1)
    torch.testing.assert_close(
        out.pose[:, 0], torch.diag(torch.tensor([1.0, -1, -1])).expand(2, 3, 3), atol=0.05, rtol=0
    )
    assert (out.camera[:, 0] > 0.5).all()


def test_mean_is_where_the_iteration_starts():
    regressor = IterativeRegressor(features=8).eval()
    torch.nn.init.zeros_(regressor.decpose.weight)
    torch.nn.init.zeros_(regressor.decpose.bias)
    pose = torch.linalg.qr(torch.randn(24, 3, 3, generator=torch.Generator().manual_seed(0)))[0]
    pose = pose * torch.linalg.det(pose)[:, None, None]
    regressor.set_mean(pose, torch.ones(10), torch.tensor([0.5, 0.1, 0.2]))
    torch.testing.assert_close(regressor(torch.zeros(1, 8)).pose[0], pose)


def test_light_trunk_gives_features_of_any_crop_size_and_trains():
    trunk = EfficientNetLite0()
    for size, cells in ((224, 7), (130, 5), (64, 2)):
        assert trunk.spatial(torch.rand(1, 3, size, size)).shape == (1, 1280, cells, cells)
    trunk.spatial(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trunk.parameters())
