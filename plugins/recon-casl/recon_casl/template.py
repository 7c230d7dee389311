"""The prototype that is deformed: a closed mesh with a texture whose back half mirrors its front half."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from recon_core.errors import UsageError
from recon_core.evidence_files import read_surface
from recon_core.geometry.primitives import icosphere
from recon_core.geometry.topology import edges

HALF_EXTENT = (0.45, 0.9, 0.3)
"""Half the size of the default prototype, an ellipsoid, along x (right), y (up) and z (to the front)."""
LARGEST_HALF_EXTENT = 0.9
"""Of every other prototype: what the camera shows of it fills the crop as the default does."""

_RIM = 0.9
"""Where the front half ends on its half of the map, of the way from the middle to the border. Faces that cross the
outline lie on one half as a whole, and reach a little beyond."""


@dataclass(frozen=True)
class Template:
    """vertices: (V, 3), y up, z to the front. faces: (F, 3). uv: (2V, 2), each vertex on the front half, then each on
    the back half of the map; uv_faces: (F, 3). mirror: (V,) the vertex nearest to the reflection at z = 0.
    """

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    uv: Float[Tensor, "T 2"]
    uv_faces: Int[Tensor, "F 3"]
    mirror: Int[Tensor, " V"]


def ellipsoid_template() -> Template:
    """The default: 642 vertices and 1280 faces (section 3.1)."""
    vertices, faces = icosphere(3)
    return template(vertices * torch.tensor(HALF_EXTENT), faces)


def read_template(file: str | Path) -> Template:
    """A closed mesh of an .obj or .ply file (y up, z to the front) as a prototype, moved to the middle and scaled.

    Raises InputError for a file that cannot be read, UsageError naming it for a mesh that is not closed.
    """
    vertices, faces = read_surface(Path(file))
    if not len(faces):
        raise UsageError(f"casl.template {file}: has no faces")
    vertices = vertices * vertices.new_tensor([1.0, -1.0, -1.0])  # read in the camera frame, y down
    vertices = vertices - (vertices.amax(0) + vertices.amin(0)) / 2
    try:
        return template(vertices * (LARGEST_HALF_EXTENT / vertices.abs().max()), faces)
    except UsageError as error:
        raise UsageError(f"casl.template {file}: {error}") from None


def template(vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Template:
    """Any closed mesh as a prototype, seen from its middle. Raises UsageError for one that is not closed."""
    if len(edges(faces).irregular):
        raise UsageError(
            f"{len(edges(faces).irregular)} edges are not shared by exactly two faces of one outside; "
            "CASL deforms closed meshes only"
        )
    direction = normalize(vertices / vertices.abs().amax(0), dim=1)
    front = direction[faces][..., 2].mean(1) >= 0
    flipped = direction * torch.tensor([1.0, 1.0, -1.0])
    uv = torch.cat([_on_map(direction), _on_map(flipped) * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 1.0])])
    uv_faces = torch.where(front[:, None], faces, faces + len(vertices))
    mirror = torch.cdist(vertices * torch.tensor([1.0, 1.0, -1.0]), vertices).argmin(1)
    return Template(vertices, faces, uv, uv_faces, mirror)


def _on_map(direction: Float[Tensor, "V 3"]) -> Float[Tensor, "V 2"]:
    """Lambert's equal-area azimuthal map of the hemisphere about +z, on the upper half of the texture: u, v."""
    angle = torch.acos(direction[:, 2].clamp(-1, 1))
    around = torch.atan2(direction[:, 1], direction[:, 0])
    radius = _RIM * math.sqrt(2) * torch.sin(angle / 2)
    x, y = (radius * torch.cos(around)).clamp(-1, 1), (radius * torch.sin(around)).clamp(-1, 1)
    return torch.stack([(x + 1) / 2, 0.5 + (y + 1) / 4], 1)


def straight_flow(height: int, width: int, half_extent: tuple[float, float]) -> Float[Tensor, "2 H W"]:
    """Where the front of an undeformed ellipsoid falls in a picture that spans [-1, 1], for each texel of the front
    half: x to the right, y down, as `grid_sample` counts. half_extent: of the ellipsoid, in the picture's units.
    """
    y, x = torch.meshgrid(
        -(torch.arange(height) + 0.5) / height * 2 + 1, (torch.arange(width) + 0.5) / width * 2 - 1, indexing="ij"
    )
    radius = (x**2 + y**2).sqrt().clamp(min=1e-6)
    angle = 2 * torch.asin((radius / (_RIM * math.sqrt(2))).clamp(max=math.sqrt(0.5)))
    across = torch.sin(angle) / radius
    return torch.stack([across * x * half_extent[0], -across * y * half_extent[1]])
