"""Colours from fragments: attributes, textures, normals and light. Shared by all renderers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from recon_core.errors import UsageError
from recon_core.geometry.topology import face_normals
from recon_core.rendering.fragments import Visible
from recon_core.rendering.scene import Scene

GREY = 0.7
"""Reflectance of a mesh that has neither a texture nor colours."""


def interpolate(visible: Visible, faces: Int[Tensor, "M 3"], values: Float[Tensor, "N C"]) -> Float[Tensor, "P C"]:
    """Values of packed vertices at the visible pixels. Differentiable in values and barycentrics."""
    corners = faces.index_select(0, visible.face)
    a, b, c = (values.index_select(0, corner) for corner in corners.unbind(1))
    u, v, w = visible.barycentrics.split(1, 1)
    return a * u + b * v + c * w


def sample_texture(
    texture: Float[Tensor, "B C H W"], row: Int[Tensor, " P"], uv: Float[Tensor, "P 2"]
) -> Float[Tensor, "P C"]:
    """Bilinear texture lookup, wrapped around at the borders.

    row: which of the B textures. uv: u to the right, v up; (0, 0) is the lower left corner of the picture,
    and texel centres lie at half texels. Differentiable in texture and uv.
    """
    channels, height, width = texture.shape[1:]
    x = uv[:, 0] * width - 0.5
    y = (1 - uv[:, 1]) * height - 0.5
    left, top = x.floor(), y.floor()
    a, b = (x - left)[:, None], (y - top)[:, None]
    x0, y0 = left.long() % width, top.long() % height
    x1, y1 = (x0 + 1) % width, (y0 + 1) % height
    # Channels last and one index: with the channels between two of them a lookup takes several times as long.
    flat = texture.permute(0, 2, 3, 1).reshape(-1, channels)
    first = row * (height * width)
    texel = lambda y, x: flat.index_select(0, first + y * width + x)  # noqa: E731
    upper = torch.lerp(texel(y0, x0), texel(y0, x1), a)
    lower = torch.lerp(texel(y1, x0), texel(y1, x1), a)
    return torch.lerp(upper, lower, b)


def albedo(scene: Scene, visible: Visible) -> Float[Tensor, "P C"]:
    """Unlit colour of the visible pixels: each mesh's texture, else its colours, else grey.

    Raises UsageError when meshes of one scene have colours of differing channel counts.
    """
    if scene.meshes and all(mesh.texture is None and mesh.colors is not None for mesh in scene.meshes):
        channels = {mesh.colors.shape[2] for mesh in scene.meshes if mesh.colors is not None}
        if len(channels) == 1:
            return interpolate(visible, scene.faces, scene.packed([m.colors for m in scene.meshes]))  # type: ignore[misc]
    parts: list[Tensor] = []
    index: list[Tensor] = []
    for i, mesh in enumerate(scene.meshes):
        start, end = scene.face_starts[i : i + 2]
        if len(scene.meshes) == 1:
            here = visible
            position = torch.arange(len(visible), device=visible.index.device)
        else:
            position = torch.nonzero((visible.face >= start) & (visible.face < end)).squeeze(1)
            here = Visible(
                visible.index[position], visible.face[position], visible.barycentrics[position], visible.size
            )
        local = here.face - start
        row, face = local // max(len(mesh.faces), 1), local % max(len(mesh.faces), 1)
        if mesh.texture is not None and mesh.uv is not None and mesh.uv_faces is not None:
            corners = mesh.uv.to(here.barycentrics)[mesh.uv_faces[face]]
            colour = sample_texture(mesh.texture, row, (corners * here.barycentrics[..., None]).sum(1))
        elif mesh.colors is not None:
            vertex = mesh.faces[face] + (row * mesh.vertices.shape[1])[:, None]
            picked = mesh.colors.reshape(-1, mesh.colors.shape[-1])[vertex]
            colour = (picked * here.barycentrics[..., None]).sum(1)
        else:
            colour = here.barycentrics.new_full((len(here), 3), GREY)
        parts.append(colour)
        index.append(position)
    if not parts:
        return visible.barycentrics.new_zeros(0, 3)
    if len({part.shape[1] for part in parts}) > 1:
        raise UsageError("the meshes of one scene must have colors or textures of the same number of channels")
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts)[torch.cat(index).argsort()]


def vertex_normals(vertices: Float[Tensor, "N 3"], faces: Int[Tensor, "M 3"]) -> Float[Tensor, "N 3"]:
    """Unit normals of packed vertices: the area-weighted mean of their faces', outwards; 0 without any area."""
    corners = faces.reshape(-1).long()
    area = face_normals(vertices[None], faces, unit=False)[0]
    total = torch.zeros_like(vertices).index_add(0, corners, area.repeat_interleave(3, 0))
    return _unit(total)


def _unit(v: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 3"]:
    """Of length 1; vectors too short to have a direction become 0, with gradients 0."""
    squared = (v * v).sum(-1, keepdim=True)
    has_direction = squared > 1e-36
    return torch.where(has_direction, v * torch.where(has_direction, squared, torch.ones_like(squared)).rsqrt(), 0)


def pixel_normals(scene: Scene, visible: Visible) -> Float[Tensor, "P 3"]:
    """Unit surface normals at the visible pixels, world frame, smooth across faces."""
    values = vertex_normals(scene.vertices, scene.faces)
    return _unit(interpolate(visible, scene.faces, values))


def harmonics(directions: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 9"]:
    """The nine real spherical harmonics up to degree 2 of unit directions.

    Order: 1, y, z, x, xy, yz, 3z^2-1, xz, x^2-y^2 with their orthonormal factors (Ramamoorthi and Hanrahan,
    SIGGRAPH 2001, equation 3).
    """
    x, y, z = directions.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, 0.282095),
            0.488603 * y,
            0.488603 * z,
            0.488603 * x,
            1.092548 * x * y,
            1.092548 * y * z,
            0.315392 * (3 * z * z - 1),
            1.092548 * x * z,
            0.546274 * (x * x - y * y),
        ],
        -1,
    )


def irradiance(
    light: Float[Tensor, "B 9 C"], picture: Int[Tensor, " P"], normals: Float[Tensor, "P 3"]
) -> Float[Tensor, "P C"]:
    """Light falling on surfaces: the sum of 9 coefficients a channel times the harmonics of the normal, at least 0.

    light: coefficients of each picture, in the frame of the normals; C is 1 for white light. (The factors
    that turn radiance into irradiance are taken to be part of the coefficients.)
    """
    per_picture = light[picture] if len(light) > 1 else light.expand(len(picture), -1, -1)
    return (harmonics(normals)[:, :, None] * per_picture).sum(1).clamp(min=0)


def directional_light(
    direction: Float[Tensor, "B 3"], ambient: float = 0.4, diffuse: float = 0.6
) -> Float[Tensor, "B 9 1"]:
    """Coefficients for `irradiance` of white ambient light and a lamp far away in `direction` (from the surface).

    The lamp's clamped cosine is replaced by its projection on the harmonics up to degree 2, off by at most 0.1.
    """
    # Clamped cosine's coefficients by degree: pi, 2 pi / 3, pi / 4 (same paper, equation 8).
    band = torch.tensor([torch.pi] + [2 * torch.pi / 3] * 3 + [torch.pi / 4] * 5).to(direction)
    light = diffuse * band * harmonics(normalize(direction, dim=-1))
    constant = torch.zeros_like(light)
    constant[:, 0] = ambient / 0.282095
    return (light + constant)[..., None]
