"""The embedding's network: sizes, variants, learnable skinning, files."""

import pytest
import torch

from recon_acap.data import make_template
from recon_acap.network import (
    BodyEmbedding,
    EmbeddingConfig,
    LearnableSkinning,
    Template,
    encoder_file,
    load_embedding,
    save_embedding,
)
from recon_core.errors import AssetError
from recon_core.geometry.primitives import icosphere


@pytest.fixture(scope="module")
def template():
    vertices, faces = icosphere(2)
    part = (vertices[:, 1] > 0).long() + 2 * (vertices[:, 0] > 0).long()
    return Template(vertices.float(), faces, part, torch.ones(4, len(vertices)).bool(), torch.arange(len(vertices)))


def embedding_of(template, **settings):
    torch.manual_seed(0)
    sizes = {"parts": 4, "shape_dims": 5, "pose_dims": 6, "hidden": 16, "width": 24}
    network = BodyEmbedding(EmbeddingConfig(vertices=len(template.reference), **(sizes | settings)), template)
    identity = torch.tensor([0.0, 0, 0, 1, 0, 0, 1, 0, 1])
    for bounds in [
        network.decoder.bounds,
        *([network.decoder.part_bounds] if hasattr(network.decoder, "coarse") else []),
    ]:
        middle = identity.repeat(bounds.shape[1] // 9)
        bounds.copy_(torch.stack([middle + 0.1, middle - 0.1]))
    return network.eval()


def test_the_sizes_are_the_papers():
    config = EmbeddingConfig(vertices=12500)
    assert (config.parts, config.shape_dims, config.pose_dims, config.hidden, config.width) == (16, 50, 72, 400, 800)


@pytest.mark.parametrize("variant", ["hierarchical", "baseline", "meshvae"])
def test_codes_of_features_and_bodies_of_codes(template, variant):
    network = embedding_of(template, variant=variant)
    features = torch.randn(3, len(template.reference), 9) * 0.05
    latent = network.encode(features)
    assert latent.shape.shape == (3, 5)
    assert latent.pose_std.shape == (3, 6)
    assert bool((latent.pose_std > 0).all() and (latent.pose_std < 2).all())
    assert network.decode(latent.shape, latent.pose).shape == features.shape
    vertices = network.vertices(latent.shape, latent.pose)
    assert vertices.shape == (3, len(template.reference), 3)
    assert torch.allclose(vertices.mean(1), template.reference.mean(0).expand(3, 3), atol=1e-5)


def test_without_a_pose_code_the_body_is_that_of_pose_code_zero(template):
    network, shape = embedding_of(template), torch.randn(2, 5)
    assert torch.equal(network.decode(shape), network.decode(shape, torch.zeros(2, 6)))
    released = embedding_of(template, neutral="shape-branch")
    assert not torch.allclose(released.decode(shape), released.decode(shape, torch.zeros(2, 6)))


def test_vertices_have_gradients_to_both_codes(template):
    network = embedding_of(template).double()
    shape = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    pose = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    some = [0, 17, 40]
    assert torch.autograd.gradcheck(lambda s, p: network.vertices(s, p)[:, some], (shape, pose))


def test_skinning_rows_lie_on_the_simplex_over_the_allowed_parts():
    mask = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 1]]).bool()
    skinning = LearnableSkinning(mask).double()
    torch.nn.init.normal_(skinning.logits)
    weights = skinning.weights()
    assert bool((weights >= 0).all())
    assert torch.allclose(weights.sum(1), torch.ones(3, dtype=torch.float64))
    assert bool((weights[~mask.T] == 0).all())
    parts = torch.randn(2, 3, 9, dtype=torch.float64)
    assert torch.allclose(skinning(parts)[:, 0], parts[:, 0])
    assert torch.autograd.gradcheck(lambda x, _: skinning(x), (parts.requires_grad_(), skinning.logits))


def test_a_vertex_without_a_part_is_named():
    with pytest.raises(AssetError, match="vertex 1 has no part"):
        LearnableSkinning(torch.tensor([[1, 0], [1, 0]]).bool())


def test_a_network_without_base_path_has_no_part_features(template):
    with pytest.raises(AssetError, match="no base path"):
        embedding_of(template, variant="baseline").decode_parts(torch.zeros(1, 5))


def test_files_hold_the_network(template, tmp_path):
    network, path = embedding_of(template), tmp_path / "net.safetensors"
    torch.nn.init.normal_(network.decoder.skinning.logits)
    save_embedding(network, path, torch.float32)
    back = load_embedding(path)
    shape, pose = torch.randn(2, 5), torch.randn(2, 6)
    assert torch.equal(back.decode(shape, pose), network.decode(shape, pose))
    features = network.decode(shape, pose)
    assert torch.equal(back.encode(features).pose, network.encode(features).pose)
    assert torch.equal(back.faces, template.faces)


def test_without_the_encoders_file_there_is_a_decoder(template, tmp_path):
    path = tmp_path / "net.safetensors"
    save_embedding(embedding_of(template), path)
    encoder_file(path).unlink()
    back = load_embedding(path)
    assert back.vertices(torch.zeros(1, 5)).isfinite().all()
    with pytest.raises(AssetError, match="no encoder"):
        back.encode(torch.zeros(1, len(template.reference), 9))


def test_an_encoder_of_another_network_is_refused(template, tmp_path):
    path, other = tmp_path / "net.safetensors", tmp_path / "other.safetensors"
    save_embedding(embedding_of(template), path)
    save_embedding(embedding_of(template, hidden=8), other)
    encoder_file(other).replace(encoder_file(path))
    with pytest.raises(AssetError, match="encoder of another network"):
        load_embedding(path)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", None])
def test_a_file_that_is_no_embedding_is_named(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AssetError, match="bad.safetensors"):
        load_embedding(path)


def test_the_template_is_one_piece_with_every_part():
    from recon_std.bodies import load_body

    made = make_template(load_body("free"), 1150)
    assert made.part.unique().tolist() == list(range(16))
    assert bool(made.mask[made.part, torch.arange(len(made.part))].all()), "its own part is always near"
    assert 1.2 < float(made.mask.sum(0).float().mean()) < 4
    assert made.reference.shape[0] - made.faces.shape[0] // 2 == 2, "closed, without holes"


def test_the_shipped_embedding_encodes_and_decodes_bodies():
    from recon_acap.data import neutral_meshes
    from recon_acap.evaluation import mean_vertex_distance
    from recon_acap.network import SHIPPED
    from recon_std.bodies import load_body

    assert max(SHIPPED.stat().st_size, encoder_file(SHIPPED).stat().st_size) <= 20_000_000
    embedding, body = load_embedding(), load_body("free")
    template = Template(embedding.reference, embedding.faces, embedding.part, torch.zeros(0), embedding.source)
    people = torch.linspace(-1, 1, 3)[:, None] * torch.ones(1, body.shape_count)
    vertices = neutral_meshes(body, template, people)
    with torch.no_grad():
        latent = embedding.encode(embedding.codec.extract(vertices))
        back = embedding.vertices(latent.shape)
    assert float(mean_vertex_distance(back, vertices).max()) < 0.01
    assert float(mean_vertex_distance(back[:1], vertices[2:]).max()) > 0.02, "large and small people differ"
