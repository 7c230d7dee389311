"""CASL: its geometry, its losses' flow of gradients, its two loops, and its use on a photo."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import grid_sample

from recon_casl.method import CASL, CASLConfig
from recon_casl.model import ATTRIBUTES, Attributes
from recon_casl.networks import Integration, grown
from recon_casl.prototype import EpochMeans, moved, watch
from recon_casl.template import ellipsoid_template, template
from recon_casl.view import View
from recon_core.errors import EvidenceError, TrainingError, UsageError
from recon_core.geometry.cameras import crop_affine, transform_points
from recon_core.geometry.primitives import icosphere
from recon_core.geometry.topology import apply_sparse, uniform_laplacian
from recon_core.rendering import sample_texture
from recon_core.structures import Camera, Observation


@pytest.fixture(scope="module")
def method():
    torch.manual_seed(0)
    return CASL(CASLConfig(width=8, texture_size=16, refine=0)).eval()


def cut_out(count=3, side=64):
    """Random colours in an ellipse."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    mask = ((x / 0.4) ** 2 + (y / 0.85) ** 2 < 1).float().expand(count, 1, side, side)
    colours = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    return torch.cat([colours * mask, mask], 1)


def perturb(method):
    """The same, with output layers that are not at rest."""
    method.load_state_dict({k: v + 0.02 * torch.randn_like(v) for k, v in method.state_dict().items()})
    return method


# -- template and view


def test_the_template_is_closed_and_its_mirror_is_its_own_inverse():
    t = ellipsoid_template()
    assert t.vertices.shape == (642, 3)
    assert t.faces.shape == (1280, 3)
    torch.testing.assert_close(t.mirror[t.mirror], torch.arange(642))
    torch.testing.assert_close(t.vertices[t.mirror] * torch.tensor([1.0, 1.0, -1.0]), t.vertices, atol=1e-6, rtol=0)


def test_the_back_has_the_colours_of_the_front():
    """A texture that is its own mirror image looks the same from the front and from behind."""
    t = ellipsoid_template()
    front = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    both = torch.cat([front, front.flip(2)], 2)
    colour = sample_texture(both, torch.zeros(len(t.uv), dtype=torch.int64), t.uv)
    torch.testing.assert_close(colour[:642], colour[642:][t.mirror], atol=1e-4, rtol=0)


def test_an_open_template_is_refused():
    vertices, faces = icosphere(1)
    with pytest.raises(UsageError, match="3 edges are not shared by exactly two faces"):
        template(vertices, faces[1:])


@settings(max_examples=30, deadline=None)
@given(st.floats(-720, 720), st.floats(-80, 80), st.floats(1.5, 6))
def test_a_camera_stands_where_its_view_says(azimuth, elevation, distance):
    a, e = torch.deg2rad(torch.tensor([azimuth, elevation], dtype=torch.float64))
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    view = View(distance * one, torch.stack([a.cos(), a.sin()])[None], e * one, zero)
    camera = view.camera(64)
    stands = -(camera.R.mT @ camera.t[..., None])[0, :, 0]
    wanted = distance * torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()])
    torch.testing.assert_close(stands, wanted, atol=1e-9, rtol=0)
    torch.testing.assert_close(camera.R @ camera.R.mT, torch.eye(3, dtype=torch.float64)[None], atol=1e-9, rtol=0)
    assert camera.R.det() > 0
    torch.testing.assert_close(camera.project(zero.new_zeros(1, 1, 3)), zero.new_full((1, 1, 2), 32.0))


def test_turning_goes_round_without_a_seam():
    view = View(torch.ones(1) * 3, torch.tensor([[-1.0, 0.0]]), torch.zeros(1), torch.zeros(1, 2))
    there, back = view.turned(1.0), view.turned(-1.0)
    assert (there.azimuth - back.azimuth).norm() < 0.04
    torch.testing.assert_close(view.turned(360.0).azimuth, view.azimuth, atol=1e-5, rtol=0)


def test_colours_grow_beyond_the_mask():
    cut = torch.zeros(1, 4, 33, 20)
    cut[:, :, 10:14, 5:9] = torch.tensor([0.2, 0.6, 0.9, 1.0])[None, :, None, None]
    torch.testing.assert_close(grown(cut), torch.tensor([0.2, 0.6, 0.9])[:, None, None].expand(1, 3, 33, 20))


def test_beyond_the_mask_is_the_colour_of_the_rim_at_that_height():
    cut = torch.zeros(1, 4, 12, 16)
    cut[:, 3, 2:10, 4:12] = 1
    cut[:, :3, 2:10, 4:12] = torch.arange(2.0, 10.0)[:, None] / 10 + torch.arange(4.0, 12.0) / 100
    colours = grown(cut)[0, 0]
    torch.testing.assert_close(colours[5, :6], torch.full((6,), 0.5 + 0.05))  # one pixel in from the rim
    torch.testing.assert_close(colours[5, 10:], torch.full((6,), 0.5 + 0.10))
    torch.testing.assert_close(colours[0], colours[3])  # above it, its first row inside the rim
    torch.testing.assert_close(colours[11], colours[8])


@pytest.mark.parametrize("enabled", [True, False])
def test_the_integration_module_is_a_layer_of_features_at_the_projected_vertices(enabled):
    torch.manual_seed(0)
    levels = [torch.randn(2, c, s, s, dtype=torch.float64) for c, s in ((4, 16), (6, 8), (8, 4))]
    vertices = ellipsoid_template().vertices.double()
    laplacian = uniform_laplacian(ellipsoid_template().faces, len(vertices), torch.float64)
    module = Integration([4, 6, 8], enabled)
    layer = torch.nn.Linear(module.channels, 5).double()
    at = (vertices[:, :2] * torch.tensor([2.5 / 2.6, -2.5 / 2.6])).expand(2, 1, -1, -1)
    local = [grid_sample(x, at, align_corners=False, padding_mode="border")[:, :, 0].mT for x in levels[1:]]
    features = [levels[-1].mean((2, 3))[:, None].expand(-1, len(vertices), -1), vertices.expand(2, -1, -1)]
    if enabled:
        features += [torch.cat(local, 2), apply_sparse(laplacian, torch.cat(local, 2))]
    torch.testing.assert_close(module(layer, levels, vertices, laplacian), layer(torch.cat(features, 2)))


# -- use


def photographed(box):
    cut = cut_out(1, 256)
    affine = crop_affine(torch.tensor([box]), 256, 1.15)
    return Observation(Camera.perspective(900.0, (640, 480)), torch.tensor([box]), cut[:, :3], affine, mask=cut[:, 3:])


def test_the_mesh_lies_in_the_photo_where_it_lies_in_the_crop(method):
    observation = photographed([400.0, 50.0, 120.0, 300.0])
    prediction = method.predict(observation)
    found = method.read(torch.cat([observation.image, observation.mask], 1))
    in_crop = found.view.camera(256).project(method.model.mesh(found).vertices)
    in_photo = transform_points(observation.to_crop, observation.camera.project(prediction.mesh.vertices))
    middle = (in_crop - in_photo).mean(1).norm()
    assert middle < 1.0  # of 256 pixels: only the strength of the perspective differs
    assert (in_crop - in_photo).norm(dim=-1).max() < 8
    torch.testing.assert_close(
        torch.pdist(prediction.mesh.vertices[0, :50]), torch.pdist(method.model.mesh(found).vertices[0, :50])
    )


def test_one_of_many_is_one_alone_and_none_is_none(method):
    cut = cut_out(3)
    many, one = method.read(cut), method.read(cut[1:2])
    for name in ATTRIBUTES:
        torch.testing.assert_close(
            method.model.comparable(name, many)[1:2], method.model.comparable(name, one), atol=1e-5, rtol=0
        )
    none = photographed([400.0, 50.0, 120.0, 300.0])[:0]
    assert len(method.predict(none).mesh) == 0


def test_an_empty_mask_is_refused(method):
    seen = photographed([400.0, 50.0, 120.0, 300.0])
    with pytest.raises(EvidenceError, match="mask of a subject is empty"):
        method.predict(dataclasses.replace(seen, mask=torch.zeros_like(seen.mask)))
    with pytest.raises(EvidenceError, match="no crop"):
        method.predict(dataclasses.replace(seen, mask=None))


# -- training


@pytest.mark.parametrize("turn", ATTRIBUTES)
def test_a_turn_teaches_its_encoder_only(turn):
    method = perturb(CASL(CASLConfig(width=8, texture_size=16)))
    cut = cut_out()
    method._epoch_steps = 10
    loss = method.training_step({"image": cut[:, :3], "mask": cut[:, 3:]}, 0, turn)
    loss.per_sample.mean().backward()
    assert {"image", "iou", "laplacian", "flatness", "symmetry", "deformation", f"cycle_{turn}", "adversarial"} == set(
        loss.terms
    )
    for name in ATTRIBUTES:
        grads = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in getattr(method.model, name).parameters()]
        assert all(grads) if name == turn else not any(grads)


def test_without_the_encoder_loop_all_learn_at_once():
    method = perturb(CASL(CASLConfig(width=8, texture_size=16, encoder_loop=False)))
    cut = cut_out()
    method._epoch_steps = 10
    method.training_step({"image": cut[:, :3], "mask": cut[:, 3:]}, 0, "encoders").per_sample.mean().backward()
    assert all(p.grad is not None for p in method.model.parameters())
    assert set(method.turns(3, method.configure_optimizers(10))) == {"encoders", "critic"}


def test_the_prototype_moves_slowly_at_first_and_never_far():
    still = torch.zeros(3, 3)
    mean = torch.tensor([[0.1, 0.0, 0.0], [0.0, 3.0, 4.0], [0.0, 0.0, 0.0]])
    early, late = (moved(still, mean, epoch, warm_up=10, rate=1.0, largest=0.2) for epoch in (0, 30))
    torch.testing.assert_close(late, torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.12, 0.16], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(early, late / 10)


def test_epoch_means_are_means_over_samples():
    epochs = EpochMeans()
    for value, rows in ((1.0, 3), (5.0, 1)):
        epochs.add(torch.full((rows, 2, 3), value), {"iou": torch.full((rows,), value)})
    torch.testing.assert_close(epochs.close(), torch.full((2, 3), 2.0))
    assert epochs.history == [{"iou": 2.0}]


def test_a_training_that_goes_wrong_stops_and_names_the_term():
    good = [{"iou": 0.1, "image": 0.1, "flatness": 0.2}]
    bad = [{"iou": 0.1 + 0.06 * i, "image": 0.1, "flatness": 0.2 * 9**i} for i in range(1, 5)]
    watch(good + bad[:3], torch.ones(4, 3))
    with pytest.raises(TrainingError, match="fell for 4 epochs, from 0.90 to 0.66, while 'flatness'"):
        watch(good + bad, torch.ones(4, 3))
    with pytest.raises(TrainingError, match="exploded after epoch 1: it reaches 3"):
        watch(good, torch.full((4, 3), 3.0))


def test_drawing_with_other_light_changes_the_colours_and_not_the_mask(method):
    found = method.read(cut_out())
    dark = Attributes(found.offsets, found.view, found.light * 0.5, found.texture)
    a, b = (method.model.draw(f, method.renderer, 64) for f in (found, dark))
    torch.testing.assert_close(a.mask, b.mask)
    torch.testing.assert_close(a.image * 0.5, b.image, atol=2e-2, rtol=0)
