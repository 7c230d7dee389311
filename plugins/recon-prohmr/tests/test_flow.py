"""The conditional flow: against the published networks' numbers, and against autograd in float64."""

import importlib.util
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recon_prohmr.flow import ActNorm, ConditionalGlow

PARITY = Path(os.environ.get("RECON_PARITY_DIR", Path(__file__).parents[4] / "shared" / "parity" / "a"))
PUBLISHED = "flow.flow._transform._transforms."


@pytest.fixture(scope="module")
def formula():
    """The parity kit's own weights.py."""
    source = PARITY.parent / "weights.py"
    if not source.is_file():
        pytest.skip(f"no parity kit at {PARITY}: set RECON_PARITY_DIR")
    spec = importlib.util.spec_from_file_location("parity_weights", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomised(flow: ConditionalGlow, scale: float = 0.1) -> ConditionalGlow:
    """Every parameter moved off its initial value, so that no step is the identity."""
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += scale * torch.randn(parameter.shape, dtype=parameter.dtype)
        for name, buffer in flow.named_buffers():
            if name.endswith("running_mean"):
                buffer += scale * torch.randn_like(buffer)
            elif name.endswith("running_var"):
                buffer *= torch.exp(scale * torch.randn_like(buffer))
    return flow


@pytest.fixture(params=[(True, False), (False, True)], ids=["as published", "as shipped"])
def flow(request):
    torch.manual_seed(0)
    batch_norm, context_scale = request.param
    small = ConditionalGlow(6, 5, 3, 16, 2, batch_norm, context_scale)
    return randomised(small.double()).eval()


@pytest.mark.parametrize(("method", "dims", "context"), [("prohmr", 144, 2048), ("proskeleton", 48, 1024)])
def test_published_flows(formula, method, dims, context):
    spec = json.loads((PARITY / f"{method}.keys.json").read_text())
    gold = np.load(PARITY / f"{method}.golden.npz")
    prefix, values = spec["prefix"], "pose6d" if method == "prohmr" else "joints3d"
    state = {
        "transforms." + key["name"].removeprefix(PUBLISHED): torch.tensor(
            formula.fill(key["name"], key["shape"], prefix)
        )
        for key in spec["keys"]
        if key["name"].startswith(PUBLISHED)
        and key["fill"] not in ("zero", "true", "structural")
        and not key["name"].endswith("dummy_buffer")
    }
    flow = ConditionalGlow(dims, context).eval()
    missing, unexpected = flow.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    c = torch.tensor(gold["features"])
    inputs = {
        i["name"].rsplit("/", 1)[1]: torch.tensor(formula.named_input(i["name"], i["shape"], i["scale"], prefix))
        for i in spec["golden"]["inputs"]
    }
    given_values = inputs["pose6d" if method == "prohmr" else "kp3d"].reshape(2, 2, dims)
    with torch.no_grad():
        latent = flow.encode(given_values, c)
        found = {
            f"mode/{values}": flow.mode(c),
            f"z/{values}": flow.decode(inputs["z"], c),
            "z/log_prob": flow.latent_log_prob(inputs["z"], c),
            "given/z": latent,
            "given/log_prob": flow.latent_log_prob(latent, c),
        }
    for key, value in found.items():
        atol = spec["golden"]["outputs"][key]["suggested_atol"]
        np.testing.assert_allclose(value.numpy().reshape(gold[key].shape), gold[key], rtol=1e-5, atol=atol, err_msg=key)


def test_inverse_inverts(flow):
    x, c = torch.randn(4, 3, 6, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(flow.decode(flow.encode(x, c), c), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(flow.encode(flow.decode(x, c), c), x, rtol=0, atol=1e-10)


def test_log_determinant_and_jacobian_are_autograds(flow):
    z, c = torch.randn(6, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    exact = torch.autograd.functional.jacobian(lambda v: flow.decode(v[None, None], c)[0, 0], z)
    torch.testing.assert_close(flow.jacobian(z[None], c)[0], exact, rtol=0, atol=1e-10)
    assert torch.slogdet(exact)[1].item() == pytest.approx(-flow.log_det(c).item(), abs=1e-10)


def test_log_prob_is_the_change_of_variables(flow):
    x, c = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    z = flow.encode(x[:, None], c)[:, 0]
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(flow.log_prob(x, c), normal + flow.log_det(c))


def test_mode_is_f_of_zero_and_the_highest_density(flow):
    c = torch.randn(2, 5, dtype=torch.float64)
    mode = flow.mode(c)
    torch.testing.assert_close(mode, flow.decode(torch.zeros(2, 1, 6, dtype=torch.float64), c)[:, 0])
    near = mode[:, None] + 0.3 * torch.randn(2, 200, 6, dtype=torch.float64)
    assert (flow.latent_log_prob(flow.encode(near, c), c) < flow.log_prob(mode, c)[:, None]).all()


def test_density_integrates_to_one():
    torch.manual_seed(1)
    flow = randomised(ConditionalGlow(2, 3, 2, 8, 1, False, True).double(), 0.3)
    c = torch.randn(1, 3, dtype=torch.float64)
    axis = torch.linspace(-30, 30, 1501, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)[None]
    with torch.no_grad():
        mass = flow.latent_log_prob(flow.encode(grid, c), c).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)


def test_gradient_reaches_every_parameter(flow):
    x, c = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    flow.train()
    (-flow.log_prob(x, c).mean() + flow.mode(c).square().mean()).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_samples_have_the_density_they_are_given(flow):
    """Mean and covariance of z = encode(sample) are a standard normal's."""
    c = torch.randn(1, 5, dtype=torch.float64)
    with torch.no_grad():
        z = flow.encode(flow.sample(20000, c, torch.Generator().manual_seed(0)), c)[0]
    torch.testing.assert_close(z.mean(0), torch.zeros(6, dtype=torch.float64), atol=0.03, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(6, dtype=torch.float64), atol=0.05, rtol=0)


def test_initialize_standardises_the_data():
    torch.manual_seed(0)
    flow = ConditionalGlow(6, 5, 2, 16, 1, False).double()
    x = 3 + 7 * torch.randn(2000, 6, dtype=torch.float64)
    c = torch.randn(2000, 5, dtype=torch.float64)
    flow.initialize(x, c)
    with torch.no_grad():
        first = next(t for t in flow.transforms if isinstance(t, ActNorm)).to_latent(x)
    torch.testing.assert_close(first.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(first.std(0), torch.ones(6, dtype=torch.float64))


def test_the_kept_inverse_follows_its_parameters(flow):
    c = torch.randn(1, 5, dtype=torch.float64)
    with torch.no_grad():
        before = flow.mode(c)
        flow.transforms[1].unconstrained_upper_diag += 1
        assert not torch.allclose(flow.mode(c), before)
        x = torch.randn(1, 1, 6, dtype=torch.float64)
        torch.testing.assert_close(flow.decode(flow.encode(x, c), c), x)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.integers(2, 7))
def test_any_size_inverts(blocks, rows, dims):
    torch.manual_seed(blocks)
    flow = randomised(ConditionalGlow(dims, 2, blocks, 4, 1, False, True).double())
    x, c = torch.randn(rows, 2, dims, dtype=torch.float64), torch.randn(rows, 2, dtype=torch.float64)
    torch.testing.assert_close(flow.decode(flow.encode(x, c), c), x, rtol=0, atol=1e-9)
    assert flow.latent_log_prob(flow.encode(x, c), c).shape == (rows, 2)


def test_without_a_context():
    torch.manual_seed(0)
    flow = randomised(ConditionalGlow(4, 0, 2, 8, 1, False).double())
    x = flow.sample(5, generator=torch.Generator().manual_seed(0))
    assert x.shape == (1, 5, 4)
    assert math.isfinite(float(flow.log_prob(x[0, :1])))
    assert flow.mode().shape == (1, 4)
