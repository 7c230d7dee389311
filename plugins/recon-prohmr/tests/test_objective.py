"""The training objective: equation 4.9 with the nine terms and the weights of section 4.6.3."""

import pytest
import torch

from recon_core.structures import BodyParameters
from recon_prohmr.network import NetworkConfig, ProHMRNetwork, pose_from_6d, pose_to_6d, turned
from recon_prohmr.objective import LossJoints, MadeUp, Weights, discrimination, objective, orthonormality
from recon_prohmr.train import Adversary, TrainConfig, initialize
from recon_std.bodies import load_body
from recon_std.priors.adversarial import PoseDiscriminator
from recon_std.synthetic.detection import DetectorErrors
from recon_std.synthetic.keypoints import KeypointSampler

NINE = {"nll": 0.001, "exp_2d": 0.001, "exp_adv": 0.0005, "mode_2d": 0.01, "mode_adv": 0.0005, "mode_3d": 0.05,
        "mode_pose": 0.001, "mode_betas": 0.0005, "orth": 0.1}  # fmt: skip
IN_SPACE = {"nll", "mode_3d", "mode_pose", "mode_betas"}


@pytest.fixture(scope="module")
def body():
    return load_body("free")


@pytest.fixture(scope="module")
def sampler(body):
    poses = torch.randn(50, 24, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    return KeypointSampler(body, poses, torch.ones(50), DetectorErrors())


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ProHMRNetwork(NetworkConfig(context=16, encoder_width=32, encoder_blocks=1, flow_width=32, head_width=16))


def some(sampler, count=48):
    return sampler.sample(count, torch.Generator().manual_seed(0))


def test_the_nine_terms_have_the_weights_of_the_thesis(body, sampler, network):
    people, weights = some(sampler), Weights.of_the_thesis()
    loss, _ = objective(
        network, LossJoints(body), people, weights, torch.Generator().manual_seed(1), PoseDiscriminator()
    )
    assert set(loss.terms) - {"mode_place"} == set(NINE)
    total = sum(weight * loss.terms[name] for name, weight in NINE.items())
    torch.testing.assert_close(loss.per_sample, total)
    assert all(value.shape == (48,) and (value.abs() > 0).all() for value in loss.terms.values())


def test_terms_are_what_the_thesis_says(body, sampler, network):
    """Of people whose truth the mode and the draw are compared with by hand: sums over all numbers, l1 of joints."""
    people, joints_of = some(sampler), LossJoints(body)
    weights = Weights.of_the_thesis()
    critic = PoseDiscriminator()
    terms = objective(network, joints_of, people, weights, torch.Generator().manual_seed(1), critic)[0].terms
    with torch.no_grad():
        context = network.encoder.encode(people.view)
        truth = turned(people.body.pose, people.view.rotation)
        placed = network.place(context, people.view)
        torch.testing.assert_close(terms["nll"], -network.flow.log_prob(pose_to_6d(truth), context))
        mode = network.flow.mode(context)
        torch.testing.assert_close(terms["mode_pose"], (pose_from_6d(mode) - truth).square().flatten(1).sum(1))
        torch.testing.assert_close(terms["mode_betas"], (placed.betas - people.body.betas).square().sum(1))
        generator = torch.Generator().manual_seed(1)
        torch.randn(48, 144, generator=generator)
        draw = network.flow.decode(torch.randn(48, 1, 144, generator=generator), context)[:, 0]
        torch.testing.assert_close(terms["orth"], orthonormality(mode) + orthonormality(draw))
        for name, values in (("mode_adv", mode), ("exp_adv", draw)):
            scores = critic(pose_from_6d(values)[:, 1:], placed.betas)
            torch.testing.assert_close(terms[name], (scores - 1).square().sum(1))
        joints = [joints_of(BodyParameters(p, b, torch.zeros(48, 3))) for p, b in
                  ((truth, people.body.betas), (pose_from_6d(mode), placed.betas))]  # fmt: skip
        pelvis = [body.rest_joints(b)[:, :1] for b in (people.body.betas, placed.betas)]
        apart = (joints[1] - pelvis[1]) - (joints[0] - pelvis[0])
        torch.testing.assert_close(terms["mode_3d"], apart.abs().sum((1, 2)), rtol=1e-3, atol=1e-3)


def test_orthonormal_numbers_cost_nothing():
    pose = pose_from_6d(torch.randn(5, 144))
    torch.testing.assert_close(orthonormality(pose_to_6d(pose)), torch.zeros(5), atol=1e-9, rtol=0)
    # Twice a rotation: |4 I - I|^2 = 18 for each of 24 joints.
    torch.testing.assert_close(orthonormality(2 * pose_to_6d(pose)), torch.full((5,), 24 * 18.0))


def test_people_with_2d_joints_alone(body, sampler, network):
    """They have the terms of 2D joints and of the discriminator, and none that needs a body."""
    known = torch.arange(48) % 3 > 0
    whole, part = (
        objective(
            network, LossJoints(body), some(sampler), Weights.of_the_thesis(), torch.Generator().manual_seed(1),
            PoseDiscriminator(), given,
        )[0].terms
        for given in (None, known)
    )  # fmt: skip
    for name in IN_SPACE:
        assert (part[name][~known] == 0).all()
        torch.testing.assert_close(part[name][known], whole[name][known])
    for name in ("exp_2d", "mode_2d", "orth"):
        torch.testing.assert_close(part[name], whole[name])


def test_a_draw_of_every_fourth_person_counts_four_times(body, sampler, network):
    """Its mean is that of draws for everybody but for chance."""
    terms = {
        every: objective(
            network, LossJoints(body), some(sampler, 400), Weights(draw_every=every), torch.Generator().manual_seed(1)
        )[0].terms["exp_2d"]
        for every in (1, 4)
    }
    assert (terms[4] == 0).sum() == 300
    torch.testing.assert_close(terms[4].mean(), terms[1].mean(), rtol=0.15, atol=0)


def test_it_learns_and_reaches_every_parameter(body, sampler, network):
    people = some(sampler, 64)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    totals = []
    for _ in range(15):
        loss, _ = objective(network, LossJoints(body), people, Weights(), torch.Generator().manual_seed(1))
        optimizer.zero_grad()
        loss.per_sample.mean().backward()
        optimizer.step()
        totals.append(float(loss.per_sample.detach().mean()))
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert totals[-1] < 0.8 * totals[0]
    assert set(loss.terms) <= set(Weights.model_fields)
    assert "mode_adv" not in loss.terms


def test_the_adversary_learns_and_its_gradient_moves_the_network(body, sampler, network):
    torch.manual_seed(0)
    people, adversary = some(sampler, 64), Adversary(TrainConfig(discriminator_rate=3e-3), "cpu")
    weights = Weights.of_the_thesis()
    losses = []
    for _ in range(30):
        _, made_up = objective(network, LossJoints(body), people, weights, torch.Generator().manual_seed(1))
        losses.append(adversary.learn(people.body, made_up))
    assert losses[-1] < 0.5 * losses[0]
    real, false = (adversary.discriminator(*given).mean() for given in (
        (people.body.pose[:, 1:], people.body.betas), (made_up.rotations, made_up.betas)))  # fmt: skip
    assert real > false + 0.3
    loss, _ = objective(
        network, LossJoints(body), people, weights, torch.Generator().manual_seed(1), adversary.discriminator
    )
    (loss.terms["mode_adv"] + loss.terms["exp_adv"]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.flow.parameters() if p.requires_grad)


def test_made_up_bodies_carry_no_gradient(body, sampler, network):
    _, made_up = objective(network, LossJoints(body), some(sampler), Weights(), torch.Generator().manual_seed(1))
    assert isinstance(made_up, MadeUp)
    assert not made_up.rotations.requires_grad
    assert len(made_up.betas) == 48 + 12
    loss = discrimination(PoseDiscriminator(), some(sampler).body, made_up)
    assert loss.per_sample.shape == (60,)


def test_activation_normalisation_starts_from_the_data(sampler, network):
    """After `initialize` the first batch has zero mean and unit deviation behind every ActNorm (Glow, section 3.1)."""
    initialize(network, sampler, torch.Generator().manual_seed(3), 0.02)
    people = sampler.sample(4096, torch.Generator().manual_seed(3))
    values = pose_to_6d(turned(people.body.pose, people.view.rotation))
    values = values + 0.02 * torch.randn(values.shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        context, x = network.encoder.encode(people.view), values[:, None]
        for step, transform in enumerate(network.flow.transforms):
            x = transform.to_latent(x, context)
            if step % 3 == 0 and step < 12:
                assert x.mean(0).abs().max() < 0.1
                assert (x.std(0) - 1).abs().max() < 0.2
        volume = network.flow.log_det(context)
    # What follows the last normalisation is near the identity in the beginning.
    assert x.square().sum(-1).mean() / 144 == pytest.approx(1, abs=0.5)
    assert volume.isfinite().all()
