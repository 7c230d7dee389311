"""SPIN as a method: an image crop in, a body in the full image's camera out (thesis chapter 3)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from recon_std.encoders.images import EfficientNetLite0, ImageEncoder, ResNet50
from torch import Tensor

from recon_core.assets import Assets, load_safetensors
from recon_core.errors import EvidenceError
from recon_core.geometry.cameras import crop_to_full_translation
from recon_core.interfaces import BodyModel, InputKind, Method, OutputKind, Settings
from recon_core.structures import BodyParameters, Observation, Prediction
from recon_spin.regressor import IterativeRegressor, Regressed

TRUNKS: dict[str, type[ImageEncoder]] = {"efficientnet-lite0": EfficientNetLite0, "resnet50": ResNet50}


class SPINConfig(Settings):
    """trunk: the image encoder; published checkpoints have "resnet50", the shipped weights the light one.
    iterations: corrections of the estimate (three in the paper). dropout: of the regressor, in training."""

    trunk: Literal["efficientnet-lite0", "resnet50"] = "efficientnet-lite0"
    iterations: int = Field(3, ge=1, le=10)
    dropout: float = Field(0.5, ge=0, lt=1)


def square_crop(observation: Observation) -> tuple[Float[Tensor, "B 2"], Float[Tensor, " B"]]:
    """Centre (B, 2) and side (B,) in full-image pixels of the square crops in `observation.image`."""
    if observation.image is None or observation.to_crop is None:
        raise EvidenceError("spin reads the image: the observation has no crop")
    scale = observation.to_crop[:, 0, 0]
    size = observation.image.shape[-1]
    return (size / 2 - observation.to_crop[:, :, 2]) / scale[:, None], size / scale


class SPIN(Method):
    """The regressor on top of an image trunk. Needs no keypoints: the box is all it is told.

    The published camera is weak-perspective in the crop; its translation is taken to the full image's camera at
    the depth that gives the body the same size there. As published, the rotation is not turned by the angle at
    which the crop is seen, which for a person at the edge of a wide picture leaves an error of that angle.
    """

    Config = SPINConfig
    inputs: ClassVar[frozenset[InputKind]] = frozenset({"image"})
    outputs: ClassVar[frozenset[OutputKind]] = frozenset({"body"})
    config: SPINConfig
    crop_size = 224
    crop_margin = 1.2

    def __init__(self, config: SPINConfig, body_model: BodyModel | None = None) -> None:
        super().__init__(config, body_model)
        self.trunk = TRUNKS[config.trunk]()
        self.regressor = IterativeRegressor(self.trunk.channels, dropout=config.dropout)

    @classmethod
    def from_assets(cls, config: SPINConfig, assets: Assets, body_model: BodyModel | None = None) -> SPIN:  # type: ignore[override]
        """With the shipped weights of the light trunk, or a converted published checkpoint for ResNet-50."""
        method = cls(config, body_model)
        name = "spin-lite" if config.trunk == "efficientnet-lite0" else "spin-published"
        method.load_state_dict(load_safetensors(assets.find(name)))
        return method.eval()

    def regress(self, observation: Observation) -> Regressed:
        """The network's own output, in the crop's camera."""
        square_crop(observation)
        features = self.trunk(observation).global_
        return self.regressor(features, self.config.iterations)

    def place(self, out: Regressed, observation: Observation) -> BodyParameters:
        """The body in the camera of the full image."""
        center, side = square_crop(observation)
        translation = crop_to_full_translation(out.camera, center, side, observation.camera.K)
        return BodyParameters(out.pose, out.betas, translation)

    @torch.no_grad()
    def predict(self, observation: Observation) -> Prediction:
        return Prediction(body=self.place(self.regress(observation), observation))
