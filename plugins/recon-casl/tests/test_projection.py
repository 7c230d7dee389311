"""Texels that the camera sees take their colours where they lie on the photo; the others keep the flow they had."""

import torch

from recon_casl.method import CASL, CASLConfig
from recon_casl.model import Attributes, Drawn
from recon_casl.networks import texture
from recon_casl.projection import seen_flow
from recon_casl.view import View

EVEN = torch.zeros(1, 9, 1)
EVEN[:, 0] = 1 / 0.282095  # the constant harmonic: irradiance 1 everywhere


def ball(azimuth_degrees: float) -> tuple[CASL, Attributes]:
    """A method whose networks are not asked, and its undeformed prototype seen from some azimuth."""
    method = CASL(CASLConfig(width=8, texture_size=16))
    angle = torch.deg2rad(torch.tensor(azimuth_degrees))
    view = View(torch.full((1,), 3.0), torch.stack([angle.cos(), angle.sin()])[None], torch.zeros(1), torch.zeros(1, 2))
    # A gradient of colours that no two places share, red across and green down.
    ramp = torch.linspace(0.1, 0.9, 128)
    front = torch.stack([ramp.expand(128, 128), ramp[:, None].expand(128, 128), torch.full((128, 128), 0.5)])
    return method, Attributes(torch.zeros(1, 642, 3), view, EVEN, torch.cat([front, front.flip(1)], 1)[None])


def redrawn(method: CASL, found: Attributes) -> tuple[Drawn, torch.Tensor]:
    """The photo and mask that `found` would give, and the drawing with a texture that was projected from it."""
    photo = method.model.draw(found, method.renderer, 256)
    cut = torch.cat([photo.image * photo.mask, photo.mask], 1)
    nowhere = torch.zeros(1, 2, 64, 64)
    flow = seen_flow(method.model, method.renderer, found, nowhere, 256)
    again = Attributes(found.offsets, found.view, found.light, texture(cut, flow))
    return photo, method.model.draw(again, method.renderer, 256).image


def test_a_projected_texture_gives_the_photo_again():
    method, found = ball(0.0)
    photo, drawn = redrawn(method, found)
    # Beside the outline, where surfaces graze and the flow is kept.
    inside = torch.nn.functional.max_pool2d(1 - photo.mask, 41, stride=1, padding=20) < 0.5
    assert inside.sum() > 3000
    error = (drawn - photo.image).abs().amax(1, keepdim=True)[inside]
    assert error.mean() < 0.003
    assert error.max() < 0.01


def test_texels_that_are_not_seen_keep_their_flow():
    """From behind no texel of the front half is seen; from the side its far part is not."""
    method, found = ball(180.0)
    flow = torch.rand(1, 2, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kept = seen_flow(method.model, method.renderer, found, flow, 64)
    torch.testing.assert_close(kept, flow)
    method, found = ball(90.0)  # the camera is at +x, the right of the map
    moved = (seen_flow(method.model, method.renderer, found, flow, 64) - flow).abs().amax(1)[0] > 1e-3
    assert moved[28:36, 40:56].float().mean() > 0.9
    assert not moved[:, :26].any()
