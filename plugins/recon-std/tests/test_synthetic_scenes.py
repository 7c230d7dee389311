"""Rendered people: the annotations agree with the pictures and with each other."""

from __future__ import annotations

import pytest
import torch

from recon_core.errors import InputError
from recon_core.rendering import Scene
from recon_core.structures import Mesh
from recon_std.bodies import load_body
from recon_std.renderers.warp import WarpRenderer
from recon_std.synthetic.backgrounds import BackgroundPhotos
from recon_std.synthetic.clothing import texel_map
from recon_std.synthetic.dataset import SyntheticDataset
from recon_std.synthetic.detection import GaussianErrors
from recon_std.synthetic.keypoints import KeypointSampler
from recon_std.synthetic.random import REFILL, RowGenerators, rand, randint, randn
from recon_std.synthetic.scenes import SceneConfig, SceneSampler


@pytest.fixture(scope="module")
def people():
    body = load_body("free")
    generator = torch.Generator().manual_seed(0)
    poses = 0.25 * torch.randn(64, 24, 3, generator=generator)
    poses[:, 0] = 0
    return KeypointSampler(body, poses, torch.ones(64), GaussianErrors())


def _sampler(source, **settings) -> SceneSampler:
    return SceneSampler(source, WarpRenderer(), SceneConfig(size=96, texture=64, **settings))


def test_same_seed_gives_the_same_pictures_and_another_seed_others(people):
    sampler = _sampler(people)
    first, again = (next(sampler.batches(3, seed=5)) for _ in range(2))
    torch.testing.assert_close(first.image, again.image, rtol=0, atol=0)
    torch.testing.assert_close(first.body.pose, again.body.pose, rtol=0, atol=0)
    assert (first.image != next(sampler.batches(3, seed=6)).image).any()


def test_picture_of_a_generator_does_not_depend_on_those_beside_it(people):
    sampler = _sampler(people)
    make = lambda *seeds: sampler.sample_each([torch.Generator().manual_seed(s) for s in seeds])  # noqa: E731
    three, alone = make(1, 2, 3), make(2)
    torch.testing.assert_close(three.image[1:2], alone.image, rtol=0, atol=1e-5)
    torch.testing.assert_close(three.joints2d["lsp14"][1:2], alone.joints2d["lsp14"], rtol=0, atol=1e-3)
    assert (three.image[0] - three.image[1]).abs().max() > 0.1


def test_annotations_agree_with_the_picture(people):
    sampler = _sampler(people, cut=0.0)
    batch = sampler.sample(6, torch.Generator().manual_seed(1))
    seen = batch.instance >= 0
    assert batch.image.shape == (6, 3, 96, 96)
    assert batch.image.min() >= 0
    assert batch.image.max() <= 1
    assert torch.equal(batch.mask[:, 0] > 0, seen)
    assert torch.equal(batch.part > 0, seen)
    assert torch.equal(batch.depth > 0, seen)
    assert torch.equal(torch.unique(batch.instance[2])[1:], torch.tensor([2]))
    # The parameters pose the body that was drawn: skinned and rendered again, it fills the same pixels.
    out = sampler.body(batch.body)
    mesh = Mesh(out.vertices, sampler.body.faces)
    again = sampler.renderer.rasterize(Scene.separate(mesh), batch.camera)
    assert torch.equal(again.face >= 0, seen)
    torch.testing.assert_close(again.depth, batch.depth)
    torch.testing.assert_close(batch.joints["coco17"], sampler.body.regress(out.vertices, "coco17"), atol=1e-4, rtol=0)


def test_joints_lie_on_their_own_parts(people):
    """Joints well inside a limb project onto pixels of the person, at their part or a neighbour in front of it."""
    batch = _sampler(people, cut=0.0).sample(12, torch.Generator().manual_seed(2))
    rows = torch.tensor([4, 5, 18, 19, 15])  # knees, elbows, head
    x, y = batch.joints2d["smpl24"][:, rows].long().clamp(0, 95).unbind(-1)
    on_person = batch.mask[torch.arange(12)[:, None], 0, y, x] > 0
    inside = batch.visible[:, rows]
    assert inside.float().mean() > 0.9
    assert on_person[inside].float().mean() > 0.9
    depth = batch.depth[torch.arange(12)[:, None], y, x]
    joint_depth = batch.joints["smpl24"][:, rows, 2]
    # A joint is inside the body: no deeper than the thickest part of a person behind the surface seen there.
    assert ((joint_depth - depth)[on_person & inside] > -0.1).all()


def test_people_hide_each_other_and_hidden_joints_are_marked(people):
    sampler = _sampler(people, people=3, cut=0.0)
    batch = sampler.sample(8, torch.Generator().manual_seed(3))
    assert len(batch.body) == 24
    assert torch.equal(batch.picture, torch.arange(8).repeat_interleave(3))
    for picture, instance in enumerate(batch.instance):
        rows = torch.unique(instance[instance >= 0])
        assert torch.isin(rows, torch.arange(3 * picture, 3 * picture + 3)).all()
    assert sum(len(torch.unique(i[i >= 0])) > 1 for i in batch.instance) > 3
    points = batch.joints2d["smpl24"]
    inside = ((points >= 0) & (points < 96)).all(-1)
    hidden = inside & ~batch.visible
    assert hidden.any()
    x, y = points.clamp(0, 95).long().unbind(-1)
    other = batch.instance[batch.picture[:, None], y, x]
    assert (other[hidden] != torch.arange(24)[:, None].expand_as(other)[hidden]).all()


def test_texel_map_reads_the_body_back_from_its_texture(people):
    body = people.body
    texels = texel_map(body, WarpRenderer(), 512)
    column = (body.uv[:, 0] * 512).long().clamp(0, 511)
    row = ((1 - body.uv[:, 1]) * 512).long().clamp(0, 511)
    place = torch.zeros(len(body.uv), 3)
    place[body.uv_faces.reshape(-1)] = body.template[body.faces.reshape(-1)]
    error = (texels.position[row * 512 + column] - place).norm(dim=-1)
    assert error.median() < 0.005
    # Corners on a chart's border may fall in the neighbouring chart's texel.
    assert error.quantile(0.95) < 0.02


def test_clothes_differ_between_people_and_keep_hands_and_face_bare(people):
    sampler = _sampler(people)
    textures = sampler.wardrobe.dress(24, torch.Generator().manual_seed(4)).flatten(2)
    shirt = textures[:, :, ~sampler.wardrobe.is_head & (sampler.wardrobe.position[:, 1].abs() < 0.3)].mean(-1)
    assert shirt.std(0).min() > 0.05
    hand, face = textures[:, :, sampler.wardrobe.is_hand].mean(-1), textures[:, :, sampler.wardrobe.is_head].mean(-1)
    assert (hand - face).abs().mean() < (hand - shirt).abs().mean()


def test_background_photos_fill_what_the_person_leaves_free(people, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "red.png")
    photos = BackgroundPhotos(tmp_path, side=24)
    sampler = SceneSampler(people, WarpRenderer(), SceneConfig(size=64, texture=32, grain=0.0), photos)
    batch = sampler.sample(2, torch.Generator().manual_seed(0))
    corner = batch.image[batch.mask.expand_as(batch.image) == 0].reshape(-1)
    assert corner.max() > 0.9
    away = (batch.mask == 0) & (torch.nn.functional.max_pool2d(batch.mask, 5, 1, 2) == 0)
    red = batch.image.permute(1, 0, 2, 3)[:, away[:, 0]]
    torch.testing.assert_close(red, torch.tensor([[1.0], [0], [0]]).expand_as(red), atol=1e-5, rtol=0)
    (tmp_path / "red.png").unlink()
    with pytest.raises(InputError, match=r"image|picture"):
        BackgroundPhotos(tmp_path)


def test_dataset_needs_no_files_and_streams_the_same_people_to_any_number_of_processes():
    from recon_core.datasets import Mixture, Source

    data = SyntheticDataset(config=SyntheticDataset.Config(size=64, texture=32))
    torch.testing.assert_close(data[7]["image"], data[7]["image"])
    assert (data[7]["pose"] - data[8]["pose"]).abs().max() > 0.1
    mixture = Mixture([Source("synthetic", data)], 4, seed=3)
    whole, halves = mixture.batch(0), [mixture.batch(0, rank, 2) for rank in range(2)]
    for name in ("image", "keypoints2d", "pose"):
        parts = torch.stack([half[name] for half in halves], 1).flatten(0, 1)
        torch.testing.assert_close(parts, whole[name], atol=1e-4, rtol=1e-4)
    # Truth and picture agree: the body's own joints project onto the 2D joints.
    body = load_body("free")
    from recon_core.structures import BodyParameters, Camera

    eye, zero = torch.eye(3).expand(4, 3, 3), torch.zeros(4, 3)
    placed = BodyParameters(whole["pose"], whole["betas"], whole["translation"])
    projected = Camera(whole["K"], eye, zero, (64, 64)).project(body.keypoints(placed, "lsp14"))
    torch.testing.assert_close(projected, whole["keypoints2d"], atol=1e-2, rtol=0)


def test_rows_draw_from_their_own_generators_whatever_is_beside_them_and_however_much_at_once():
    def draws(*seeds: int) -> list[torch.Tensor]:
        source = RowGenerators([torch.Generator().manual_seed(seed) for seed in seeds])
        rows = len(seeds)
        return [
            rand(source, rows, 2),
            randn(source, 3 * rows, 24).unflatten(0, (rows, 3)),
            rand(source, rows, 2 * REFILL),
            randint(source, 5, rows, 700),
            randn(source, rows, 1),
        ]

    together, alone = draws(1, 2, 3), draws(2)
    for several, one in zip(together, alone, strict=True):
        assert torch.equal(several[1], one[0])
        assert (several[0] != several[1]).any()
    uniform, normal, integers = together[2], together[1], together[3]
    assert abs(uniform.mean() - 0.5) < 0.02
    assert abs(normal.std() - 1) < 0.15
    assert torch.equal(integers.unique(), torch.arange(5))
