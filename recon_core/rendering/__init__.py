"""Drawing meshes: scenes, fragments, and the shading that every renderer shares. docs/rendering.md."""

from recon_core.rendering.coverage import FaceProbabilities, SoftSettings
from recon_core.rendering.edges import Outline, outline
from recon_core.rendering.fragments import Fragments, Visible
from recon_core.rendering.picture import Picture, shade
from recon_core.rendering.scene import Scene
from recon_core.rendering.shading import (
    albedo,
    directional_light,
    harmonics,
    interpolate,
    irradiance,
    pixel_normals,
    sample_texture,
    vertex_normals,
)

__all__ = [
    "FaceProbabilities",
    "Fragments",
    "Outline",
    "Picture",
    "Scene",
    "SoftSettings",
    "Visible",
    "albedo",
    "directional_light",
    "harmonics",
    "interpolate",
    "irradiance",
    "outline",
    "pixel_normals",
    "sample_texture",
    "shade",
    "vertex_normals",
]
