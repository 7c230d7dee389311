"""Cameras all around, tried for things that are seen from everywhere.

Where the camera stands and what the thing looks like explain each other: cameras that all begin in front stay there,
and every photo gets a shape of its own. So the prototype's outline is compared with the mask from a grid of views, and
a photo whose mask another view explains better is drawn from there; in training the camera encoder is pulled to it.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from recon_casl.model import Model
from recon_casl.networks import USUAL_DISTANCE
from recon_casl.view import View
from recon_core.interfaces import Renderer
from recon_core.structures import LossValue, Mesh
from recon_std.losses.common import single

_SIDE = 32
"""Pixels a side at which outlines are compared."""
_FILLED = 1 / 1.15
"""Share of the picture that the longer side of an outline takes, in crops as in what is compared with them."""
_MARGIN = 0.02
"""Intersection over union by which another view must be better than the encoder's own."""


def grid(azimuths: int, elevations: int, between: tuple[float, float]) -> View:
    """Views evenly around the circle, at the middles of equal parts of the elevations `between` (degrees)."""
    low, high = (torch.deg2rad(torch.tensor(v)) for v in between)
    around = torch.arange(azimuths) * (2 * torch.pi / azimuths)
    up = low + (torch.arange(elevations) + 0.5) / elevations * (high - low)
    turn, rise = (v.flatten() for v in torch.meshgrid(around, up, indexing="ij"))
    direction = torch.stack([turn.cos(), turn.sin()], 1)
    return View(torch.full_like(turn, USUAL_DISTANCE), direction, rise, torch.zeros_like(direction))


@torch.no_grad()
def outlines(model: Model, renderer: Renderer, view: View) -> Float[Tensor, "B 1 s s"]:
    """The prototype's masks, each moved and scaled to fill its picture as things fill their crops."""
    vertices = model.prototype.expand(len(view.distance), -1, -1)
    camera = view.camera(_SIDE)
    points = camera.project(vertices)
    low, high = points.amin(1), points.amax(1)
    scale = _FILLED * _SIDE / (high - low).amax(1)
    shift = _SIDE / 2 - scale[:, None] * (high + low) / 2
    affine = torch.cat([torch.diag_embed(scale[:, None].expand(-1, 2)), shift[..., None]], 2)
    framed = camera.cropped(affine, (_SIDE, _SIDE))
    return renderer.rasterize(Mesh(vertices, model.template.faces), framed).mask.to(vertices)


@torch.no_grad()
def likelier(model: Model, renderer: Renderer, view: View, mask: Float[Tensor, "B 1 S S"], tried: View) -> View:
    """`view`, with the azimuth and elevation of that one of `tried` that explains a photo's mask best, where it does so
    clearly better than `view` itself."""
    truth = (interpolate(mask, (_SIDE, _SIDE), mode="area") > 0.5).flatten(1)
    others = (outlines(model, renderer, tried) > 0.5).flatten(1)
    own = (outlines(model, renderer, view) > 0.5).flatten(1)
    found, best = _overlap(truth[:, None], others[None]).max(1)
    better = found > _overlap(truth, own) + _MARGIN
    return dataclasses.replace(
        view,
        azimuth=torch.where(better[:, None], tried.azimuth[best], view.azimuth),
        elevation=torch.where(better, tried.elevation[best], view.elevation),
    )


def moved_to(view: View, there: View) -> View:
    """The azimuth and elevation of `there`, with the gradients of `view`."""
    turn = torch.view_as_complex(there.azimuth) * torch.view_as_complex(view.azimuth.detach()).conj()
    azimuth = torch.view_as_real(turn * torch.view_as_complex(view.azimuth))
    elevation = view.elevation + (there.elevation - view.elevation).detach()
    return dataclasses.replace(view, azimuth=azimuth, elevation=elevation)


def pull(view: View, there: View) -> LossValue:
    """One minus the cosine between azimuths, and the squared difference of elevations in radians."""
    apart = 1 - (view.azimuth * there.azimuth).sum(1) + (view.elevation - there.elevation).square()
    return single("view", apart, 1.0)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boolean masks along the last axis."""
    return (a & b).sum(-1) / (a | b).sum(-1).clamp(min=1)
