"""CASL with the authors' weights: photo and mask in, the textured mesh of the published encoders out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import interpolate

from recon_casl.method import CASL, CASLConfig
from recon_casl.model import Attributes
from recon_casl.published.network import PublishedAttributes, PublishedEncoders, Ranges
from recon_casl.view import View
from recon_core.assets import Assets, load_safetensors
from recon_core.errors import AssetError, UsageError
from recon_core.geometry.topology import uniform_laplacian
from recon_core.structures import Mesh, Observation

if TYPE_CHECKING:
    from recon_core.interfaces import BodyModel

_ASSETS = {"published": ("casl-published", False), "published-cub": ("casl-cub-published", True)}
_OWN = ("refine", "project", "template")
"""Settings of recon's own networks that the published ones have no use for."""


class PublishedModel(nn.Module):
    """The encoders and the prototype that belongs to them."""

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    uv: Float[Tensor, "T 2"]
    uv_faces: Int[Tensor, "F 3"]
    laplacian: Float[Tensor, "V V"]

    def __init__(self, encoders: PublishedEncoders, prototype: dict[str, Tensor], size: tuple[int, int]) -> None:
        """size: height and width of the photos that the encoders read."""
        super().__init__()
        self.encoders, self.size = encoders, size
        for name in ("vertices", "faces", "uv", "uv_faces"):
            self.register_buffer(name, prototype[name])
        self.register_buffer("laplacian", -uniform_laplacian(self.faces, len(self.vertices)).to_dense())

    def forward(self, photos: Float[Tensor, "B 4 S S"]) -> PublishedAttributes:
        """photos: square crops about the thing, whole, and its mask. The encoders see their middle, as wide as the
        published photos are beside their height."""
        height, width = self.size
        side = photos.shape[-1]
        aside = side * (height - width) // (2 * height)
        seen = interpolate(photos[..., aside : side - aside], self.size, mode="area")
        seen = torch.cat([seen[:, :3], (seen[:, 3:] > 0.5).to(seen)], 1)
        return self.encoders(seen, self.vertices, self.laplacian)

    def mesh(self, of: Attributes) -> Mesh:
        """In the prototype's frame: y up, z to the front."""
        return Mesh(self.vertices + of.offsets, self.faces, self.uv, self.uv_faces, of.texture)


class PublishedCASL(CASL):
    """Neither refined nor projected: what the published networks see in a photo."""

    def __init__(self, config: CASLConfig, model: PublishedModel) -> None:
        super().__init__(config)
        self.model = model  # type: ignore[assignment]

    @classmethod
    def from_assets(cls, config: CASLConfig, assets: Assets, body_model: BodyModel | None = None) -> PublishedCASL:  # type: ignore[override]
        """Raises AssetError when the checkpoint was not added or is of another version, UsageError for settings that
        only recon's own networks have."""
        if wrong := [name for name in _OWN if name in config.model_fields_set and getattr(config, name)]:
            raise UsageError(
                f"casl.{wrong[0]} is for recon's own networks: leave it out with casl.weights={config.weights}"
            )
        name, attended = _ASSETS[str(config.weights)]
        path = assets.find(name)
        tensors = load_safetensors(path)
        prototype = {
            key.removeprefix("prototype."): tensors.pop(key) for key in list(tensors) if key.startswith("prototype.")
        }
        try:
            with safe_open(path, "pt") as file:
                options: dict[str, Any] = json.loads(file.metadata()["options"])
            encoders = PublishedEncoders(
                attended, Ranges(*(tuple(options[name]) for name in ("distance", "elevation")))
            )
            encoders.load_state_dict(tensors)
            model = PublishedModel(encoders, prototype, (options["height"], options["width"]))
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise AssetError(
                f"{path}: of another version ({reason}); `recon assets add` the checkpoint again"
            ) from error
        return cls(config, model).eval()

    def _seen(self, observation: Observation) -> tuple[Attributes, dict[str, Tensor]]:
        self._cut(observation)
        assert observation.image is not None
        assert observation.mask is not None
        found = self.model(torch.cat([observation.image, observation.mask], 1))
        around = torch.deg2rad(found.azimuth)
        azimuth = torch.stack([around.cos(), around.sin()], 1)
        view = View(found.distance, azimuth, torch.deg2rad(found.elevation), found.offset)
        return Attributes(found.offsets, view, found.light[..., None], found.texture.clamp(0, 1)), {}
