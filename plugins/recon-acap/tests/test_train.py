"""Training: the low-rank layers, the phases, one step at full resolution, the command."""

import json
import sys

import pytest
import torch

from recon_acap.data import People, make_template, save_people
from recon_acap.low_rank import compress, fold, principal_components
from recon_acap.network import BodyEmbedding, EmbeddingConfig, load_embedding
from recon_acap.train import FeatureSet, TrainConfig, main, prepare, steps, train
from recon_std.bodies import load_body


def people_of(count, seed):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(count // 4)[:, None]
    betas = torch.randn(count // 2, load_body("free").shape_count, generator=generator)
    pose = 0.2 * torch.randn(count // 2, 24, 3, generator=generator)
    pose[:, 0] = 0
    return People(
        betas[(2 * groups + torch.tensor([0, 0, 1, 1])).flatten()],
        pose[(2 * groups + torch.tensor([0, 1, 0, 1])).flatten()],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    save_people({"train": people_of(24, 0), "test": people_of(4, 1)}, folder)
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return prepare(TrainConfig(vertices=1150), folder)


def test_a_batch_pairs_meshes_of_a_person_and_of_a_pose(data):
    batch = data.known.batch(2, torch.Generator().manual_seed(0))
    assert len(batch.features) == 16, "as many neutral meshes as posed ones"
    posed = slice(0, 8)
    assert torch.equal(batch.neutral[batch.same_person], batch.neutral)
    assert not torch.equal(batch.features[posed][batch.same_person[posed]], batch.features[posed])
    assert torch.equal(batch.neutral[8:], batch.features[8:])
    assert sorted(batch.same_pose[8:].tolist()) == list(range(8, 16))
    # Of one pose, turned parts agree: rotations of the forearms, of which shape changes little.
    part = batch.parts[posed][:, 6, :3]
    assert float((part[batch.same_pose[posed]] - part).norm(dim=1).max()) < 0.3


def test_layers_through_components_fold_into_the_plain_layers(data):
    bounds = data.known.bounds()
    known = data.known.scaled(*bounds)
    assert float(known.posed.abs().max()) <= 0.95 + 1e-4
    network = BodyEmbedding(EmbeddingConfig(vertices=len(data.template.reference)), data.template)
    network.decoder.bounds.copy_(bounds[0])
    network.decoder.part_bounds.copy_(bounds[1])
    names = set(network.state_dict())
    compress(network, known.posed, known.posed_parts, 10)
    shape, pose = torch.randn(3, 50), torch.randn(3, 72)
    before = network.encoder(known.posed).pose, network.decoder(shape, pose).features
    fold(network)
    assert set(network.state_dict()) == names
    after = network.encoder(known.posed).pose, network.decoder(shape, pose).features
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_principal_components_find_the_space():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(30, 4)).Q.T
    features = torch.randn(200, 4) * torch.tensor([4.0, 3, 2, 1]) @ basis + 5
    mean, directions, deviation = principal_components(features, 10)
    assert len(directions) == 4, "there are no more"
    assert torch.allclose(directions @ directions.T, torch.eye(4), atol=1e-4)
    back = mean + (features - mean) @ directions.T @ directions
    assert torch.allclose(back, features, atol=1e-3)
    assert torch.allclose(deviation, torch.tensor([4.0, 3, 2, 1]), rtol=0.2)


@pytest.mark.parametrize("rank", [None, 8])
def test_training_lowers_the_loss_and_its_files_load(data, tmp_path, rank):
    config = TrainConfig(vertices=1150, groups=2, steps=20, learning_rate=1e-3, exchange=0.5, rank=rank, anneal=True)
    network = train(config, data, tmp_path)
    bounds = data.known.bounds()
    known = data.known.scaled(*bounds)
    untrained = BodyEmbedding(network.config, data.template)
    untrained.decoder.bounds.copy_(bounds[0])
    untrained.decoder.part_bounds.copy_(bounds[1])
    truth = known.neutral.repeat_interleave(2, 0)

    def error(n):
        return float((n.decoder(n.encoder(known.posed).shape, None).features - truth).abs().mean())

    assert error(network) < 0.8 * error(untrained)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 20
    assert line["held_out_posed_mm"] > 0
    loaded = load_embedding(tmp_path / "acap-vae.safetensors")
    assert torch.allclose(loaded.decode(torch.zeros(1, 50)), network.decode(torch.zeros(1, 50)), atol=5e-2)


def test_the_same_seed_trains_the_same_network(data):
    def trained():
        config = TrainConfig(vertices=1150, groups=1, steps=3, rank=8)
        torch.manual_seed(0)
        network = BodyEmbedding(EmbeddingConfig(vertices=len(data.template.reference), width=32), data.template)
        list(steps(config, network, data.known.scaled(*data.known.bounds())))
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(trained(), trained())


def test_one_step_at_full_resolution():
    """The configuration of all 6,910 vertices of the free body's skin, with the paper's layers."""
    template = make_template(load_body("free"))
    count = len(template.reference)
    known = FeatureSet(*(torch.rand(n, k, 9) - 0.5 for n, k in ((4, count), (2, count), (4, 16), (2, 16))))
    network = BodyEmbedding(EmbeddingConfig(vertices=count), template)
    before = network.decoder.difference.output.weight.detach().clone()
    (line,) = steps(TrainConfig(steps=1, groups=1), network, known)
    assert line["posed"] > 0
    change = (network.decoder.difference.output.weight - before).abs().max()
    assert 0.5e-4 < float(change) < 2e-4, "Adam's first step is the learning rate"


def test_without_people_the_command_says_how_to_make_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "no such file; make it with: python -m recon_acap.data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
