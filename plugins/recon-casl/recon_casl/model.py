"""The four encoders around one prototype, and the drawing that closes the loop (section 3.1, equation 6)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon_casl.networks import CameraEncoder, LightEncoder, ShapeEncoder, TextureEncoder
from recon_casl.template import Template
from recon_casl.view import View
from recon_core.geometry.topology import uniform_laplacian
from recon_core.interfaces import Renderer
from recon_core.rendering import SoftSettings
from recon_core.structures import Batched, Mesh

ATTRIBUTES = ("shape", "camera", "light", "texture")


@dataclass(frozen=True)
class Attributes(Batched):
    """What B photos show. offsets: (B, V, 3) from the prototype. view: where the camera stands. light: (B, 9, 1)
    coefficients of `recon_core.rendering.irradiance` in the template's frame. texture: (B, 3, 2H, W)."""

    offsets: Float[Tensor, "B V 3"]
    view: View
    light: Float[Tensor, "B 9 1"]
    texture: Float[Tensor, "B 3 H W"]


@dataclass(frozen=True)
class Drawn(Batched):
    """image: (B, 3, S, S), black around the thing. mask: (B, 1, S, S) in [0, 1]."""

    image: Float[Tensor, "B 3 S S"]
    mask: Float[Tensor, "B 1 S S"]

    @property
    def both(self) -> Float[Tensor, "B 4 S S"]:
        return torch.cat([self.image, self.mask], 1)


class Model(nn.Module):
    """Independent encoders of shape, camera, light and texture."""

    prototype: Float[Tensor, "V 3"]
    laplacian: Float[Tensor, "V V"]

    def __init__(
        self, template: Template, width: int, texture_size: int, integration: bool, elevations: tuple[float, float]
    ) -> None:
        """elevations: degrees between which cameras stand."""
        super().__init__()
        self.template = template
        self.register_buffer("prototype", template.vertices.clone())
        self.register_buffer("laplacian", uniform_laplacian(template.faces, len(template.vertices)), persistent=False)
        self.shape = ShapeEncoder(width, integration)
        self.camera = CameraEncoder(width, integration, elevations)
        self.light = LightEncoder(width)
        extent = template.vertices.abs().amax(0)
        self.texture = TextureEncoder(width, texture_size, (float(extent[0]), float(extent[1])))

    def encode(self, x: Float[Tensor, "B 4 S S"], learning: Collection[str] = ATTRIBUTES) -> Attributes:
        """learning: the attributes that carry gradients, of those that autograd records at all."""

        def recorded(name: str) -> torch.autograd.grad_mode.set_grad_enabled:
            return torch.set_grad_enabled(torch.is_grad_enabled() and name in learning)

        with recorded("shape"):
            offsets = self.shape(x, self.prototype, self.laplacian)
        with recorded("camera"):
            view = self.camera(x, self.prototype, self.laplacian)
        with recorded("light"):
            light = self.light(x)
        with recorded("texture"):
            texture = self.texture(x)
        return Attributes(offsets, view, light, texture)

    def again(self, name: str, x: Float[Tensor, "B 4 S S"]) -> Tensor:
        """One attribute of a picture, as `comparable` gives it."""
        if name in ("shape", "camera"):
            value = getattr(self, name)(x, self.prototype, self.laplacian)
            return value.numbers() if name == "camera" else value
        return getattr(self, name)(x)

    @staticmethod
    def comparable(name: str, of: Attributes) -> Tensor:
        """One attribute as a tensor of B rows."""
        values = {"shape": of.offsets, "camera": of.view.numbers(), "light": of.light, "texture": of.texture}
        return values[name]

    def mesh(self, of: Attributes) -> Mesh:
        """In the template's frame: y up, z to the front."""
        t = self.template
        return Mesh(self.prototype + of.offsets, t.faces, t.uv, t.uv_faces, of.texture)

    def draw(self, of: Attributes, renderer: Renderer, side: int) -> Drawn:
        """Equation 6, differentiable in all attributes."""
        mesh, camera = self.mesh(of), of.view.camera(side)
        picture = renderer.render(mesh, camera, of.light, antialias=True)
        return Drawn(picture.image.clamp(0, 1), renderer.soft_silhouette(mesh, camera, SoftSettings()))

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Faces and texture coordinates move along; the Template is plain data."""
        super()._apply(fn, recurse)
        t, device = self.template, self.prototype.device
        self.template = Template(*(getattr(t, f).to(device) for f in ("vertices", "faces", "uv", "uv_faces", "mirror")))
        return self
