"""Attributes fitted further to single photos, and cameras tried all around."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

from recon_casl.evaluation import Evaluation, seen
from recon_casl.hypotheses import grid, likelier, moved_to, outlines, pull
from recon_casl.method import CASL, CASLConfig
from recon_casl.refine import overlap, refined
from recon_casl.view import View
from recon_core.assets import assets
from recon_core.frechet import PictureFeatures
from recon_core.metrics import mask_iou
from recon_std.readers.masks import MaskedPhotosDataset

CCP = Path(__file__).parents[4] / "shared" / "data" / "ccp"


@pytest.fixture(scope="module")
def method():
    torch.manual_seed(0)
    return CASL(CASLConfig(width=8, texture_size=16)).eval()


def refine(method, cut, steps):
    with torch.no_grad():
        found, flow = method.read(cut), method.model.texture.flow(method.reduced(cut))
    return found, refined(method.model, method.objective, method.renderer, cut, found, flow, steps)


def cut_out(widths):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    mask = torch.stack([((x / w) ** 2 + (y / 0.8) ** 2 < 1).float()[None] for w in widths])
    colours = torch.rand(len(widths), 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return torch.cat([colours * mask, mask], 1)


# -- refine


def test_rows_are_refined_each_for_itself_and_the_network_stays(method):
    before = {name: value.clone() for name, value in method.state_dict().items()}
    cut = cut_out([0.2, 0.6])
    _, both = refine(method, cut, 4)
    _, one = refine(method, cut[1:], 4)
    torch.testing.assert_close(both.offsets[1:], one.offsets, atol=1e-4, rtol=0)
    torch.testing.assert_close(both.view.distance[1:], one.view.distance, atol=1e-4, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_no_step_changes_nothing_and_steps_never_make_the_sum_worse(method):
    cut = cut_out([0.3])
    found, same = refine(method, cut, 0)
    torch.testing.assert_close(same.offsets, found.offsets)
    torch.testing.assert_close(same.texture, found.texture, atol=1e-5, rtol=0)
    _, better = refine(method, cut, 6)
    assert overlap(method.model, method.renderer, cut, better) > overlap(method.model, method.renderer, cut, found)


@pytest.mark.skipif(not CCP.is_dir(), reason=f"needs the photos of {CCP}")
def test_held_out_photos_agree_better_after_refining():
    shipped = CASL.from_assets(CASLConfig(), assets())
    settings = MaskedPhotosDataset.Config(split="val", crop_size=128, augment=False)
    data = MaskedPhotosDataset(CCP, settings)
    items = [data[i] for i in (0, 40, 80)]
    cut = torch.stack([torch.cat([item["image"] * item["mask"], item["mask"]]) for item in items])
    found, better = refine(shipped, cut, 12)
    before, after = (overlap(shipped.model, shipped.renderer, cut, a) for a in (found, better))
    assert (after > before + 0.01).all(), (before, after)
    assert after.mean() > before.mean() + 0.03


# -- cameras tried all around


@pytest.fixture(scope="module")
def long(method):
    """A prototype that is longer than wide, one end raised: it looks different from each side."""
    made = CASL(CASLConfig(width=8, texture_size=16)).eval()
    vertices = method.model.prototype * torch.tensor([2.0, 0.5, 1.2])
    made.model.prototype.copy_(vertices + torch.tensor([0.0, 0.4, 0.0]) * vertices[:, :1])
    return made


def test_the_grid_covers_the_circle_and_the_elevations():
    view = grid(4, 2, (0.0, 80.0))
    torch.testing.assert_close(view.azimuth_degrees.round().abs(), torch.tensor([0, 0, 90, 90, 180, 180, 90, 90.0]))
    torch.testing.assert_close(torch.rad2deg(view.elevation), torch.tensor([20.0, 60.0] * 4))
    torch.testing.assert_close(view.azimuth.norm(dim=1), torch.ones(8))


def test_the_view_that_explains_the_mask_is_found(long):
    tried = grid(8, 2, (0.0, 60.0))
    wanted = [2, 7, 12]
    there = View(*(getattr(tried, f.name)[wanted] for f in dataclasses.fields(View)))
    mask = outlines(long.model, long.renderer, there)
    start = dataclasses.replace(there.turned(100.0), elevation=torch.full((3,), 1.4))
    found = likelier(long.model, long.renderer, start, mask, tried)
    again = outlines(long.model, long.renderer, found)
    torch.testing.assert_close(again, mask)
    kept = likelier(long.model, long.renderer, there, mask, tried)
    torch.testing.assert_close(kept.azimuth, there.azimuth)


def test_a_method_that_tries_views_reads_the_one_that_explains_the_mask(long):
    tried = grid(8, 1, (-25.0, 25.0))
    mask = interpolate(outlines(long.model, long.renderer, tried), (64, 64))
    cut = torch.cat([mask.expand(-1, 3, -1, -1), mask], 1)
    config = CASLConfig(width=8, texture_size=16, hypotheses=(8, 1))
    trying = CASL(config).eval()
    trying.load_state_dict(long.state_dict())
    ahead, found = long.read(cut).view, trying.read(cut).view
    assert ahead.azimuth_degrees.abs().max() < 45
    again = outlines(long.model, long.renderer, found)
    assert (mask_iou(again, interpolate(mask, (32, 32))) > 0.9).all()
    assert found.azimuth_degrees.abs().max() > 100


def test_outlines_fill_their_pictures(long):
    filled = outlines(long.model, long.renderer, grid(8, 3, (0.0, 89.0)))
    longer = torch.maximum(filled.amax(2).sum(-1), filled.amax(3).sum(-1)).squeeze(1)
    assert ((longer - 32 / 1.15).abs() < 1.5).all()


def test_a_view_is_moved_with_its_gradients():
    azimuth = torch.tensor([[0.6, 0.8]], dtype=torch.float64, requires_grad=True)
    elevation = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    here = View(torch.ones(1, dtype=torch.float64), azimuth, elevation, torch.zeros(1, 2, dtype=torch.float64))
    there = dataclasses.replace(here.detach().turned(140.0), elevation=torch.tensor([0.5], dtype=torch.float64))
    moved = moved_to(here, there)
    torch.testing.assert_close(moved.azimuth, there.azimuth)
    torch.testing.assert_close(moved.elevation, there.elevation)
    (moved.azimuth[0, 0] + moved.elevation[0]).backward()
    angle = torch.deg2rad(torch.tensor(140.0, dtype=torch.float64))
    torch.testing.assert_close(azimuth.grad, torch.stack([angle.cos(), -angle.sin()])[None])
    assert elevation.grad == 1
    expected = 1 - angle.cos() + 0.4**2
    torch.testing.assert_close(pull(here, there).per_sample, expected[None])


# -- evaluation


def test_distances_are_of_each_set_of_drawings_from_the_photos(method):
    """With the mean colour as features, a set of the same pictures is at distance 0, and a darker one farther."""
    found = method.read(cut_out([0.3, 0.4, 0.5, 0.6]))
    photos = seen(method, found)[0]
    sets = Evaluation([], {}, photos, photos, photos * 0.8, photos * 0.5)
    values = sets.distances(PictureFeatures("colour", lambda pictures: pictures.mean((2, 3))))
    assert list(values) == ["colour recon", "colour novel", "colour 90"]
    assert abs(values["colour recon"]) < 1e-4 < values["colour novel"] < values["colour 90"]
