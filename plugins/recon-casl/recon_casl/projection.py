"""The flow of what the camera sees: each texel of the visible surface takes its colour where it lies on the photo."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from recon_casl.model import Attributes, Model
from recon_core.interfaces import Renderer
from recon_core.rendering.shading import vertex_normals
from recon_core.structures import Camera, Mesh

_SIDE = 256
"""Pixels a side of the depth map that tells what is hidden."""
_BEHIND = 0.03
"""Template units by which a point may lie behind the depth map's surface and still be on it."""
_GRAZING = (0.15, 0.4)
"""Cosines between the surface's normal and the way to the camera: below the first a texel keeps its flow, above the
second it has the projection. A grazing surface takes many texels from few pixels, and takes them from the outline."""


@torch.no_grad()
def seen_flow(
    model: Model, renderer: Renderer, of: Attributes, flow: Float[Tensor, "B 2 h w"], size: int
) -> Float[Tensor, "B 2 s s"]:
    """The flow of `size` texels a side of the front half, changed where the camera sees the surface.

    flow: of the encoder (equation 5), which has learned from all photos where the colours of unseen texels are; the
    paper takes it for all of them. A texel that is seen has its true place as soon as shape and camera are known.
    """
    flow = interpolate(flow, (size, size), mode="bilinear", align_corners=False)
    mesh, camera = model.mesh(of), of.view.camera(_SIDE)
    faces, weights = _texels(model, renderer, size)
    on_map = faces >= 0
    corners = mesh.faces[faces[on_map]]

    def at_texels(values: Float[Tensor, "B V C"]) -> Float[Tensor, "B C s s"]:
        picked = (values[:, corners] * weights[on_map][..., None]).sum(2)
        grid = values.new_zeros(len(values), size, size, values.shape[-1])
        grid[:, on_map] = picked
        return grid.permute(0, 3, 1, 2)

    points = mesh.vertices @ camera.R.mT + camera.t[:, None]
    place = at_texels(camera.project(mesh.vertices) / _SIDE * 2 - 1)
    depth = at_texels(points)[:, 2:]
    normals = torch.stack([vertex_normals(row, mesh.faces) for row in points])
    toward = -(at_texels(normals) * torch.nn.functional.normalize(at_texels(points), dim=1)).sum(1, keepdim=True)

    fragments = renderer.rasterize(mesh, camera)
    surface = torch.where(fragments.mask, fragments.depth[:, None], torch.inf)
    nearest = grid_sample(surface, place.permute(0, 2, 3, 1), mode="nearest", align_corners=False)
    open_ = (depth <= nearest + _BEHIND) & on_map
    weight = ((toward - _GRAZING[0]) / (_GRAZING[1] - _GRAZING[0])).clamp(0, 1) * open_
    # Averaged with its neighbours, so that what is seen fades into what is not.
    weight = torch.minimum(weight, avg_pool2d(weight, 5, stride=1, padding=2))
    return torch.lerp(flow, place.clamp(-1, 1), weight)


def _texels(model: Model, renderer: Renderer, size: int) -> tuple[Tensor, Tensor]:
    """The front half's face (-1: none) and barycentrics at each texel: the map itself, drawn as a picture. (s, s)."""
    t = model.template
    uv = t.uv.to(model.prototype)
    flat = torch.stack([uv[:, 0], 1 - uv[:, 1], torch.ones_like(uv[:, 0])], 1)
    front = t.uv_faces[:, 0] < len(t.vertices)
    K = flat.new_tensor([[size, 0.0, 0.0], [0.0, 2.0 * size, 0.0], [0.0, 0.0, 1.0]])[None]
    camera = Camera(K, torch.eye(3).to(flat)[None], flat.new_zeros(1, 3), (size, size))
    drawn = renderer.rasterize(Mesh(flat[None], t.uv_faces[front]), camera)
    rows = front.nonzero()[:, 0]
    return torch.where(drawn.mask[0, 0], rows[drawn.face[0].clamp(min=0)], -1), drawn.barycentrics[0]
