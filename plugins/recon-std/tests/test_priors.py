"""The priors as densities: normalised where they say so, sampled as they score, with derivatives that agree."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recon_core.errors import AssetError, UsageError
from recon_core.interfaces import Prior
from recon_core.plugins import registry
from recon_core.skeletons import SMPL24
from recon_std.priors.adversarial import AdversarialPrior
from recon_std.priors.gmm import GaussianMixturePrior
from recon_std.priors.joint_limits import JointLimitsPrior
from recon_std.priors.shape import ShapePrior

PRIORS = {
    "gmm": GaussianMixturePrior,
    "joint-limits": JointLimitsPrior,
    "shape": ShapePrior,
    "adversarial": AdversarialPrior,
}


@pytest.fixture(autouse=True)
def _double():
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def points(prior: Prior, generator: torch.Generator, count: int = 6) -> torch.Tensor:
    """Draws, pushed outwards so that limits are exceeded too."""
    drawn = prior.sample(count, generator=generator)[0]
    return drawn + 0.3 * torch.randn(drawn.shape, generator=generator)


def small_mixture(folder: Path, dims: int = 3, components: int = 2, seed: int = 0) -> Path:
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(components, dims, dims, generator=g) * 0.4
    covariance = factor @ factor.transpose(1, 2) + 0.1 * torch.eye(dims)
    file = folder / "mixture.safetensors"
    save_file(
        {
            "log_weights": torch.randn(components, generator=g).log_softmax(0),
            "means": torch.randn(components, dims, generator=g),
            "covariance_cholesky": torch.linalg.cholesky(covariance).contiguous(),
        },
        file,
    )
    return file


@pytest.mark.parametrize("name", PRIORS)
def test_registered_under_its_name_with_its_interface(name):
    assert registry().load("prior", name) is PRIORS[name]
    prior = registry().create("prior", name)
    assert prior.over in ("body-pose", "betas", "body")
    values = prior.sample(4)
    assert values.shape == (1, 4, prior.dims)
    assert prior.log_prob(values[0]).shape == (4,)
    assert prior.sample(2, context=torch.zeros(3, 5)).shape == (3, 2, prior.dims)
    assert prior.mode(torch.zeros(3, 5)).shape == (3, prior.dims)
    assert prior.log_prob(values[0, :0]).shape == (0,)


@pytest.mark.parametrize("name", PRIORS)
def test_quadratic_gradient_is_autograds_and_curvature_is_positive(name, generator):
    prior = PRIORS[name]().double()
    x = points(prior, generator).requires_grad_()
    energy, gradient, curvature = prior.quadratic(x)
    (expected,) = torch.autograd.grad(energy.sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    curvature = curvature if curvature.dim() == 3 else torch.diag_embed(curvature)
    torch.testing.assert_close(curvature, curvature.transpose(1, 2))
    assert torch.linalg.eigvalsh(curvature).min() > -1e-9 * curvature.abs().max()


@pytest.mark.parametrize("name", ["joint-limits", "shape", "adversarial"])
def test_energy_is_minus_log_prob_up_to_a_constant(name, generator):
    prior = PRIORS[name]().double()
    x = points(prior, generator)
    constant = prior.quadratic(x)[0] + prior.log_prob(x)
    torch.testing.assert_close(constant, constant[:1].expand_as(constant))


@pytest.mark.parametrize("name", PRIORS)
def test_no_draw_beats_the_mode_nearby(name, generator):
    prior = PRIORS[name]().double()
    mode = prior.mode()
    near = mode + 0.02 * torch.randn(64, prior.dims, generator=generator)
    assert (prior.log_prob(near) <= prior.log_prob(mode) + 1e-6).all()


@pytest.mark.parametrize("name", PRIORS)
def test_draws_follow_the_generator(name):
    prior = PRIORS[name]()
    first, second, other = (prior.sample(3, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


# -- gmm


def test_mixture_agrees_with_torch_distributions(generator):
    prior = GaussianMixturePrior()
    d = torch.distributions
    reference = d.MixtureSameFamily(
        d.Categorical(logits=prior.log_weights),
        d.MultivariateNormal(prior.means, scale_tril=prior.covariance_cholesky),
    )
    x = points(prior, generator, 20)
    torch.testing.assert_close(prior.log_prob(x), reference.log_prob(x), rtol=1e-9, atol=1e-7)


def test_mixture_integrates_to_one(tmp_path):
    prior = GaussianMixturePrior(small_mixture(tmp_path, dims=2))
    axis = torch.linspace(-6, 6, 400)
    grid = torch.cartesian_prod(axis, axis)
    mass = prior.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-4)


def test_mixture_samples_have_its_moments(tmp_path, generator):
    prior = GaussianMixturePrior(small_mixture(tmp_path))
    x = prior.sample(200_000, generator=generator)[0]
    weights = prior.log_weights.exp()
    mean = weights @ prior.means
    L = prior.covariance_cholesky
    second = torch.einsum("k,kij->ij", weights, L @ L.transpose(1, 2) + prior.means[:, :, None] * prior.means[:, None])
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(x.T @ x / len(x), second, rtol=0, atol=0.03)


def test_mixture_energy_is_smplifys_minimum(generator):
    prior = GaussianMixturePrior()
    x = points(prior, generator, 12)
    energy, _, curvature = prior.quadratic(x)
    gap = energy - (prior.log_peaks.max() - prior.log_prob(x))
    assert (gap > -1e-9).all()
    assert (gap < math.log(8)).all()
    torch.testing.assert_close(curvature, prior.precisions[prior.active(x)])
    assert float(prior.quadratic(prior.means)[0].min()) == pytest.approx(0, abs=1e-9)


def test_mixture_mode_is_stationary():
    prior = GaussianMixturePrior()
    x = prior.mode().requires_grad_()
    (slope,) = torch.autograd.grad(prior.log_prob(x).sum(), x)
    assert slope.norm() < 1e-6
    assert (prior.log_prob(x) >= prior.log_prob(prior.means).max() - 1e-9).all()


def test_knees_of_the_mixture_bend_the_right_way(generator):
    """Knees of draws bend backwards by over 15 degrees in at most 2 %: what the recordings never do."""
    prior = GaussianMixturePrior()
    x = prior.sample(2000, generator=generator)[0].reshape(-1, 23, 3)
    for knee in ("left_knee", "right_knee"):
        assert (x[:, SMPL24.index(knee) - 1, 0] < -math.radians(15)).double().mean() < 0.02


# -- joint limits


def test_limits_cost_nothing_inside_the_range(generator):
    prior = JointLimitsPrior()
    share = torch.rand(50, 69, generator=generator)
    inside = prior.lower + share * (prior.upper - prior.lower)
    assert prior.terms(inside)["range"].abs().max() == 0
    free = prior._hinge_weight == 0
    _, gradient, curvature = prior.quadratic(inside)
    assert gradient[:, free].abs().max() == 0
    assert curvature[:, free].abs().max() == 0


def test_limits_are_one_sided_and_smooth():
    prior = JointLimitsPrior()
    step = 1e-6
    for bound, outwards in ((prior.upper, 1.0), (prior.lower, -1.0)):
        energies = [prior.terms((bound + outwards * s)[None])["range"][0] for s in (-0.1, 0.0, step, 0.1)]
        assert energies[0].abs().max() == 0
        assert energies[1].abs().max() == 0
        assert (energies[2] < 1e-9).all()
        torch.testing.assert_close(energies[3], torch.full((69,), 0.5), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("joint", "axis", "natural"),
    [("left_elbow", 1, -1), ("right_elbow", 1, 1), ("left_knee", 0, 1), ("right_knee", 0, 1)],
)
def test_hinges_resist_the_unnatural_direction(joint, axis, natural):
    prior = JointLimitsPrior()
    pose = torch.zeros(3, 23, 3)
    pose[0, SMPL24.index(joint) - 1, axis] = natural * 0.5
    pose[2, SMPL24.index(joint) - 1, axis] = -natural * 0.5
    hinge = prior.terms(pose.flatten(1))["hinge"].sum(1)
    straight = (15.2 / 4.78) ** 2
    assert float(hinge[1]) == pytest.approx(4 * straight)
    assert float(hinge[2] - hinge[1]) == pytest.approx(straight * (math.e - 1))
    assert float(hinge[0] - hinge[1]) == pytest.approx(straight * (1 / math.e - 1))


def test_limits_are_normalised_and_sampled_as_scored(generator):
    prior = JointLimitsPrior()
    knee = (SMPL24.index("left_knee") - 1) * 3
    for column in (0, knee):
        axis = torch.linspace(float(prior.lower[column]) - 1, float(prior.upper[column]) + 1, 20001)
        x = prior.mode().expand(len(axis), -1).clone()
        x[:, column] = axis
        rest = prior.mode()
        # All other numbers stay: their share of the density is that of the mode without this number's own.
        others = prior.log_prob(rest) + (prior._energy(rest) + prior._log_normaliser)[:, column]
        density = (prior.log_prob(x) - others).exp()
        assert float(torch.trapezoid(density, axis)) == pytest.approx(1, abs=1e-5)
        draws = prior.sample(20_000, generator=generator)[0, :, column]
        mean = torch.trapezoid(density * axis, axis)
        assert float(draws.mean()) == pytest.approx(float(mean), abs=0.02)


# -- shape


def test_shape_is_a_standard_normal(generator):
    prior = ShapePrior(4)
    reference = torch.distributions.Normal(0.0, 1.0)
    x = torch.randn(5, 4, generator=generator) * 3
    torch.testing.assert_close(prior.log_prob(x), reference.log_prob(x).sum(1))
    assert prior.improbable(torch.tensor([[0.0, 2.9, 0, 0], [0, 0, -3.1, 0]])).tolist() == [False, True]


# -- adversarial


def test_discriminator_prefers_recorded_poses_to_random_rotations(generator):
    prior = AdversarialPrior().double()
    plausible = GaussianMixturePrior().double().sample(200, generator=generator)[0]
    random = (torch.rand(200, 69, generator=generator) - 0.5) * 4
    betas = torch.randn(200, 10, generator=generator)
    good = prior.log_prob(torch.cat([plausible, betas], 1))
    bad = prior.log_prob(torch.cat([random, betas], 1))
    assert good.median() > bad.quantile(0.95)
    assert (good <= 0).all()


# -- weight files


def test_a_missing_weight_file_is_named(tmp_path):
    with pytest.raises(AssetError, match=r"nowhere\.safetensors"):
        GaussianMixturePrior(tmp_path / "nowhere.safetensors")


def test_weights_of_another_prior_are_refused(tmp_path):
    with pytest.raises(AssetError, match="lacks the tensor 'lower'"):
        JointLimitsPrior(small_mixture(tmp_path))


def test_a_damaged_weight_file_is_refused(tmp_path):
    file = tmp_path / "bad.safetensors"
    file.write_bytes(b"not a safetensors file")
    with pytest.raises(AssetError, match=r"bad\.safetensors"):
        AdversarialPrior(file)


def test_a_prior_without_curvature_says_what_to_do():
    class Flat(ShapePrior):
        quadratic = Prior.quadratic

    with pytest.raises(UsageError, match="--fitter adam"):
        Flat().quadratic(torch.zeros(1, 10))
