"""The attributes of single photos, fitted further to them by the losses that they were learned with."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from recon_casl.model import Attributes, Drawn, Model
from recon_casl.networks import texture
from recon_casl.objective import Objective, summed
from recon_casl.view import View
from recon_core.geometry.topology import apply_sparse
from recon_core.interfaces import Renderer
from recon_core.metrics import mask_iou

SIDE = 128
"""Pixels a side at which drawing and photo are compared."""
_SMOOTHING = 8
"""Times that a change of the shape is averaged with the neighbours'. Adam moves all vertices alike, also those that the
photo says nothing of; averaged, they follow those that it tells of."""
_FLOW_CELLS = 32
"""Cells a side of the change of the flow: what lies between follows."""
_RATES = {"offsets": 0.01, "distance": 0.01, "angles": 0.01, "offset": 0.005, "light": 0.01, "flow": 0.005}
"""Adam's, of each change: template units, natural logarithm, radians, template units, coefficients, half pictures."""


def refined(
    model: Model,
    objective: Objective,
    renderer: Renderer,
    cut: Float[Tensor, "B 4 S S"],
    found: Attributes,
    flow: Float[Tensor, "B 2 H W"],
    steps: int,
) -> Attributes:
    """The attributes after `steps` steps of Adam on equations 7 and 9 and the mesh terms of equation 11: the best of
    the way by that sum, each row for itself, so never worse than `found`. Equations 8 and 10 judge networks, which stay
    as they are, and are left out. Half of equation 9 is of the soft mask of training, whose gradients reach far, half
    of the sharp one, which lies where the surface does: a thing a little too small fits a soft mask best.

    cut: the photos on black, with their masks. flow: of `found.texture`.
    """
    truth = interpolate(cut, (SIDE, SIDE), mode="area")
    image, mask = truth[:, :3], truth[:, 3:]
    zeros = lambda *shape: torch.zeros(len(cut), *shape).to(cut).requires_grad_()  # noqa: E731
    change = {
        "offsets": zeros(*found.offsets.shape[1:]),
        "distance": zeros(),
        "angles": zeros(2),
        "offset": zeros(2),
        "light": zeros(*found.light.shape[1:]),
        "flow": zeros(2, _FLOW_CELLS, _FLOW_CELLS),
    }
    adam = torch.optim.Adam([{"params": [value], "lr": _RATES[name]} for name, value in change.items()])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1), eta_min=1e-4)
    best = {name: value.detach().clone() for name, value in change.items()}
    lowest = cut.new_full((len(cut),), torch.inf)
    with torch.enable_grad():
        for step in range(steps + 1):
            now = _changed(model, cut, found, flow, change)
            drawn = model.draw(now, renderer, SIDE)
            crisp = Drawn(drawn.image, renderer.silhouette(model.mesh(now), now.view.camera(SIDE)))
            regular = objective.regular(model, now)
            soft, sharp = (summed(objective.reconstruction(d, image, mask), regular).per_sample for d in (drawn, crisp))
            better = sharp.detach() < lowest
            lowest = torch.where(better, sharp.detach(), lowest)
            for name, value in change.items():
                best[name][better] = value.detach()[better]
            if step < steps:
                adam.zero_grad()
                (0.5 * (soft + sharp)).sum().backward()
                adam.step()
                schedule.step()
    return _changed(model, cut, found, flow, best)


def _changed(
    model: Model,
    cut: Float[Tensor, "B 4 S S"],
    found: Attributes,
    flow: Float[Tensor, "B 2 H W"],
    change: dict[str, Tensor],
) -> Attributes:
    moved = change["offsets"]
    for _ in range(_SMOOTHING):
        moved = moved - 0.5 * apply_sparse(model.laplacian, moved)
    turn, rise = change["angles"].unbind(1)
    view = found.view.turned(torch.rad2deg(turn))
    distance, elevation = view.distance * change["distance"].exp(), view.elevation + rise
    bent = interpolate(change["flow"], flow.shape[-2:], mode="bilinear", align_corners=False)
    return Attributes(
        found.offsets + moved,
        View(distance, view.azimuth, elevation, view.offset + change["offset"]),
        found.light + change["light"],
        texture(cut, (flow + bent).clamp(-1, 1)),
    )


@torch.no_grad()
def overlap(model: Model, renderer: Renderer, cut: Float[Tensor, "B 4 S S"], of: Attributes) -> Float[Tensor, " B"]:
    """MaskIoU at `SIDE` pixels of the drawn mask and the photo's."""
    drawn = renderer.rasterize(model.mesh(of), of.view.camera(SIDE)).mask.to(cut)
    return mask_iou(drawn, interpolate(cut[:, 3:], (SIDE, SIDE), mode="area"))
