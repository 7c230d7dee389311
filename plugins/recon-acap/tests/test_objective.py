"""The loss of equation 13: its terms, the exchange of codes, the variants."""

import dataclasses

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from recon_acap.network import BodyEmbedding, EmbeddingConfig, Latent, Template
from recon_acap.objective import FINE_TUNING, Batch, Weights, kl_to_standard_normal, objective
from recon_core.geometry.primitives import icosphere


@pytest.fixture
def made():
    torch.manual_seed(0)
    vertices, faces = icosphere(1)
    count = len(vertices)
    part = (vertices[:, 1] > 0).long()
    template = Template(vertices.float(), faces, part, torch.ones(2, count).bool(), torch.arange(count))

    def network(variant="hierarchical"):
        config = EmbeddingConfig(vertices=count, parts=2, shape_dims=3, pose_dims=4, hidden=8, width=8, variant=variant)
        return BodyEmbedding(config, template)

    shapes = [(4, count, 9), (4, count, 9), (4, 2, 9), (4, 2, 9)]
    batch = Batch(*(torch.randn(s) for s in shapes), torch.tensor([1, 0, 3, 2]), torch.tensor([2, 3, 0, 1]))
    return network, batch


def test_the_phases_are_the_papers():
    first, second = Weights(), FINE_TUNING
    assert (first.neutral, first.posed) == (2.5e3, 2.5e4), "second row of table 9"
    assert (second.neutral, second.posed) == (1e3, 1e4), "first row of table 9"
    assert (first.shape_kl, first.pose_kl, first.coarse, second.coarse) == (1, 1, 0.6, 0.6)


def test_divergence_from_the_standard_normal():
    mean, std = torch.randn(5, 3), torch.rand(5, 3) + 0.1
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(kl_to_standard_normal(mean, std), expected, atol=1e-5)


def test_the_loss_is_the_weighted_sum_of_equations_10_to_12(made):
    network, batch = made[0](), made[1]
    weights = Weights(shape_kl=2, pose_kl=3, neutral=5, posed=7, coarse=0.5)
    loss = objective(network, batch, weights, generator=torch.Generator().manual_seed(1))
    latent = network.encoder(batch.features)
    shape, pose = latent.sample(torch.Generator().manual_seed(1))
    posed, neutral = network.decoder(shape, pose), network.decoder(shape, torch.zeros_like(pose))
    l1 = lambda a, b: (a - b).abs().mean((1, 2))  # noqa: E731
    expected = (
        7 * l1(posed.features, batch.features)
        + 3.5 * l1(posed.parts, batch.parts)
        + 5 * l1(neutral.features, batch.neutral)
        + 2.5 * l1(neutral.parts, batch.neutral_parts)
        + 2 * kl_to_standard_normal(latent.shape, latent.shape_std)
        + 3 * kl_to_standard_normal(latent.pose, latent.pose_std)
    )
    assert torch.allclose(loss.per_sample, expected, rtol=1e-5)


def test_exchanged_codes_come_from_the_same_person_and_the_same_pose(made, monkeypatch):
    network, batch = made[0](), made[1]
    seen = []
    decoder = network.decoder.forward
    monkeypatch.setattr(network.decoder, "forward", lambda s, p: seen.append((s, p)) or decoder(s, p))
    rows = torch.arange(4.0)[:, None]
    codes = rows.expand(4, 3), rows.expand(4, 4) + 10
    monkeypatch.setattr(Latent, "sample", lambda *_: codes)
    objective(network, batch, Weights(), exchange=1.0)
    assert seen[0][0][:, 0].tolist() == [1, 0, 3, 2]
    assert seen[0][1][:, 0].tolist() == [12, 13, 10, 11]
    seen.clear()
    objective(network, batch, Weights())
    assert seen[0][0][:, 0].tolist() == [0, 1, 2, 3]


def test_the_variants_have_the_terms_they_can_have(made):
    terms = {v: objective(made[0](v), made[1], Weights()).terms for v in ("hierarchical", "baseline", "meshvae")}
    assert float(terms["hierarchical"]["posed_parts"].min()) > 0
    assert not terms["baseline"]["posed_parts"].any()
    assert "neutral" in terms["baseline"]
    assert "neutral" not in terms["meshvae"]


def test_every_weight_of_the_network_is_trained(made):
    network, batch = made[0](), made[1]
    objective(network, dataclasses.replace(batch), Weights()).per_sample.mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
