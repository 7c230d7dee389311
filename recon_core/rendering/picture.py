"""A lit colour picture from fragments."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from recon_core.rendering.fragments import Fragments
from recon_core.rendering.scene import Scene
from recon_core.rendering.shading import albedo, irradiance, pixel_normals
from recon_core.structures import Batched


@dataclass(frozen=True)
class Picture(Batched):
    """image: (B, C, H, W). mask: (B, 1, H, W) where a surface is seen. depth: (B, 1, H, W), metres, 0 elsewhere.
    fragments: what each pixel shows."""

    image: Float[Tensor, "B C H W"]
    mask: Bool[Tensor, "B 1 H W"]
    depth: Float[Tensor, "B 1 H W"]
    fragments: Fragments


def shade(
    scene: Scene,
    fragments: Fragments,
    light: Float[Tensor, "B 9 C"] | None = None,
    background: Float[Tensor, ...] | float = 0.0,
) -> Picture:
    """Colour the fragments of a scene: albedo, times light where it is given, over a background.

    light: coefficients of `irradiance` in the world frame, one row a picture or one for all. background: a
    number, (C,), or (B, C, H, W). Differentiable in attributes, textures, light, background and geometry.
    """
    visible = fragments.visible
    colour = albedo(scene, visible)
    if light is not None:
        colour = colour * irradiance(light, visible.picture, pixel_normals(scene, visible))
    return Picture(visible.image(colour, background), fragments.mask, fragments.depth[:, None], fragments)
