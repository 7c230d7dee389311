"""CASL as a method: a photo and its mask in, a textured mesh in the full photo's camera out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import interpolate

from recon_casl.hypotheses import grid, likelier, moved_to, pull
from recon_casl.model import ATTRIBUTES, Attributes, Drawn, Model
from recon_casl.networks import Critic, texture
from recon_casl.objective import Objective, summed
from recon_casl.projection import seen_flow
from recon_casl.prototype import EpochMeans, moved, watch
from recon_casl.refine import overlap, refined
from recon_casl.template import ellipsoid_template, read_template
from recon_casl.view import FOCAL
from recon_core.assets import Assets, load_safetensors
from recon_core.datasets import Mixture
from recon_core.errors import AssetError, EvidenceError, TrainingError
from recon_core.geometry.cameras import crop_to_full_translation
from recon_core.interfaces import BodyModel, InputKind, Method, OutputKind, Renderer, Settings
from recon_core.plugins import registry
from recon_core.structures import LossValue, Mesh, Observation, Prediction
from recon_std.losses.adversarial import DiscriminatorLoss, gradient_penalty

WEIGHTS = "casl-people"

_BLACK = 2 / 255


class CASLConfig(Settings):
    """Settings of the networks and of their training."""

    weights: str | None = None
    """A weights.safetensors of `recon train --method casl`; None is those that ship. "published" and "published-cub"
    are the authors', once `recon assets add` has them (docs/checkpoints.md)."""
    side: Literal[64, 128] = 64
    """Pixels a side of the pictures that the encoders read, and of the crops they learn from (masks.crop_size)."""
    width: int = Field(24, ge=8, le=128)
    """Channels of the encoders' first level; they double three times."""
    texture_size: int = Field(128, ge=16, le=1024)
    """Texels a side of each half of the map."""
    texture_from: str | None = None
    """Another photo, whose first subject's texture every shape is given."""
    shape_from: str | None = None
    """Another photo, whose first subject's shape every texture is given."""
    refine: int = Field(50, ge=0)
    """Steps by which the attributes of each photo are fitted further; 0 leaves them as the encoders read them."""
    project: bool = True
    """Texels that the photo shows have their colours from where they lie on it; without, the flow tells it for all."""
    template: str | None = None
    """A closed mesh (.obj, .ply; y up, z to the front) to begin with; None is the ellipsoid of 642 vertices."""
    elevations: tuple[float, float] = (-25.0, 25.0)
    """Degrees between which the camera stands; the default is the published one for people."""
    hypotheses: tuple[int, int] = (1, 1)
    """Azimuths and elevations tried for each photo; for things that are seen from everywhere."""
    integration: bool = True
    """The integration module; without it shape and camera see the global feature only ("No IM")."""
    encoder_loop: bool = True
    """Train one encoder a step and hold the others; without it all learn at once ("No Encoder Loop")."""
    prototype_loop: bool = True
    """Move the prototype by the mean offset after each epoch ("No Prototype Loop" without it)."""
    prototype_rate: float = Field(0.1, ge=0, le=1)
    """Share of the mean offset by which it moves; 1 is the paper's."""
    prototype_warm_up: int = Field(10, ge=0)
    """Epochs over which the share rises."""
    prototype_largest: float = Field(0.05, gt=0)
    """No vertex of the prototype moves farther than this after an epoch."""
    learning_rate: float = Field(5e-4, gt=0)
    critic_rate: float = Field(1e-4, gt=0)
    gradient_penalty: float = Field(10.0, ge=0)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.texture_from and self.shape_from:
            raise ValueError("texture_from and shape_from: one of them; the photo gives the other")
        if not -89 <= self.elevations[0] < self.elevations[1] <= 89:
            raise ValueError("elevations: two degrees between -89 and 89, the lower one first")
        if min(self.hypotheses) < 1:
            raise ValueError("hypotheses: at least one azimuth and one elevation")
        return self


class CASL(Method):
    """The four encoders, the prototype, and their training from photos and masks alone."""

    Config = CASLConfig
    inputs: ClassVar[frozenset[InputKind]] = frozenset({"image", "mask"})
    outputs: ClassVar[frozenset[OutputKind]] = frozenset({"mesh"})
    quick: ClassVar[Mapping[str, Any]] = {"refine": 2}
    config: CASLConfig
    crop_size = 256
    crop_margin = 1.15

    def __init__(self, config: CASLConfig, body_model: BodyModel | None = None) -> None:
        super().__init__(config, body_model)
        start = read_template(config.template) if config.template else ellipsoid_template()
        self.model = Model(start, config.width, config.texture_size, config.integration, config.elevations)
        self.guide = config.texture_from or config.shape_from
        self.critic = Critic(config.width)
        self._objective: Objective | None = None
        self._renderer: Renderer | None = None
        self._epochs = EpochMeans()
        self._epoch_steps = 0
        self._drawn: Drawn | None = None

    @classmethod
    def from_assets(cls, config: CASLConfig, assets: Assets, body_model: BodyModel | None = None) -> CASL:  # type: ignore[override]
        """With the shipped weights, or those that `config.weights` names. Raises AssetError when they do not fit."""
        if config.weights in ("published", "published-cub"):
            from recon_casl.published.method import PublishedCASL

            return PublishedCASL.from_assets(config, assets)
        path = Path(config.weights) if config.weights else assets.find(WEIGHTS)
        method = cls(config, body_model)
        try:
            method.load_state_dict(load_safetensors(path))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise AssetError(f"{path}: not weights of casl with these settings ({reason})") from error
        return method.eval()

    @property
    def renderer(self) -> Renderer:
        if self._renderer is None:
            self._renderer = registry().create("renderer", "warp")
        return self._renderer

    @property
    def objective(self) -> Objective:
        if self._objective is None:
            self._objective = Objective(self.model)
        return self._objective

    # -- use

    @torch.no_grad()
    def predict(self, observation: Observation) -> Prediction:
        """extra: light (9), distance, azimuth_degrees, elevation_degrees and offset of the recovered camera; with
        `refine`, mask_iou_before and mask_iou of photo and drawing, before and after it.

        With a guide, the texture or shape is of that subject, and the rest of the photo's.
        """
        found, extra = self._seen(observation)
        if observation.guide is not None:
            other, _ = self._seen(observation.guide)
            if self.config.texture_from:
                found = dataclasses.replace(found, texture=other.texture)
            else:
                found = dataclasses.replace(found, offsets=other.offsets)
        return Prediction(
            mesh=self._in_photo(found, observation),
            extra={
                "light": found.light[..., 0],
                "distance": found.view.distance,
                "azimuth_degrees": found.view.azimuth_degrees,
                "elevation_degrees": torch.rad2deg(found.view.elevation),
                "offset": found.view.offset,
                **extra,
            },
        )

    def _seen(self, observation: Observation) -> tuple[Attributes, dict[str, Tensor]]:
        """`explain` what is seen. Raises EvidenceError where it shows nothing."""
        return self.explain(self._cut(observation))

    @staticmethod
    def _cut(observation: Observation) -> Float[Tensor, "B 4 S S"]:
        """The photo on black, and the mask. Raises EvidenceError where they show nothing."""
        if observation.image is None or observation.mask is None or observation.to_crop is None:
            raise EvidenceError("casl reads the photo and its mask: the observation has no crop of them")
        cut = torch.cat([observation.image * observation.mask, observation.mask], 1)
        if bool((observation.mask.mean((1, 2, 3)) < 0.002).any()):
            raise EvidenceError("casl: the mask of a subject is empty; give the mask of the thing, or another --box")
        if bool((cut[:, :3].amax((1, 2, 3)) < _BLACK).any()):
            raise EvidenceError("casl: the photo is black within the mask of a subject; there is no colour to take")
        return cut

    @torch.no_grad()
    def explain(self, cut: Float[Tensor, "B 4 S S"]) -> tuple[Attributes, dict[str, Tensor]]:
        """What `read` gives of photos on black, refined, with the photos' own colours where they are seen; and
        mask_iou_before and mask_iou, which say how far refining helped. `config` says what of it is done."""
        found, flow = self._read(cut)
        extra: dict[str, Tensor] = {}
        if not len(cut):
            return found, extra
        if self.config.refine:
            better = refined(self.model, self.objective, self.renderer, cut, found, flow, self.config.refine)
            before, after = (overlap(self.model, self.renderer, cut, a) for a in (found, better))
            found, extra = better, {"mask_iou_before": before, "mask_iou": after}
        if self.config.project:
            flow = seen_flow(self.model, self.renderer, found, flow, 2 * self.config.texture_size)
            found = dataclasses.replace(found, texture=texture(cut, flow))
        return found, extra

    def read(self, cut: Float[Tensor, "B 4 S S"]) -> Attributes:
        """The attributes of photos on black, with their masks, of any size; colours are taken at that size."""
        return self._read(cut)[0]

    def _read(self, cut: Float[Tensor, "B 4 S S"]) -> tuple[Attributes, Float[Tensor, "B 2 H W"]]:
        """`read`, and the flow of its texture."""
        small = self.reduced(cut)
        found, _ = self._from_elsewhere(self.model.encode(small), small[:, 3:])
        flow = self.model.texture.flow(small)
        return dataclasses.replace(found, texture=texture(cut, flow)), flow

    def reduced(self, cut: Float[Tensor, "B 4 S S"]) -> Float[Tensor, "B 4 s s"]:
        """At the size that the encoders read."""
        return interpolate(cut, (self.config.side, self.config.side), mode="area")

    def _in_photo(self, found: Attributes, observation: Observation) -> Mesh:
        """The mesh in the full photo's camera: as large as in the crop at its middle, its shape kept."""
        assert observation.to_crop is not None
        mesh, camera = self.model.mesh(found), found.view.camera(self.crop_size)
        scale = observation.to_crop[:, 0, 0]
        center = (self.crop_size / 2 - observation.to_crop[:, :, 2]) / scale[:, None]
        weak = torch.cat([FOCAL / camera.t[:, 2:], camera.t[:, :2]], 1)
        at = crop_to_full_translation(weak, center, self.crop_size / scale, observation.camera.K)
        vertices = mesh.vertices @ camera.R.mT + at[:, None]
        return Mesh(vertices, mesh.faces, mesh.uv, mesh.uv_faces, mesh.texture)

    # -- training

    def configure_optimizers(self, steps: int) -> Mapping[str, torch.optim.Optimizer]:
        c = self.config
        groups: dict[str, nn.Module | list[nn.Module]] = {name: getattr(self.model, name) for name in ATTRIBUTES}
        if not c.encoder_loop:
            groups = {"encoders": self.model}
        adam = {
            name: torch.optim.Adam(module.parameters(), c.learning_rate, betas=(0.5, 0.999))  # type: ignore[union-attr]
            for name, module in groups.items()
        }
        return adam | {"critic": torch.optim.Adam(self.critic.parameters(), c.critic_rate, betas=(0.5, 0.9))}

    def configure_schedulers(
        self, optimizers: Mapping[str, torch.optim.Optimizer], steps: int
    ) -> Mapping[str, torch.optim.lr_scheduler.LRScheduler]:
        return {
            name: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.05 * self.config.learning_rate)
            for name, optimizer in optimizers.items()
            if name != "critic"
        }

    def turns(self, step: int, optimizers: Mapping[str, torch.optim.Optimizer]) -> Sequence[str]:
        """One encoder in its turn, or all; and once in four steps the critic."""
        encoder = ATTRIBUTES[step % 4] if self.config.encoder_loop else "encoders"
        return (encoder, "critic") if step % 4 == 3 else (encoder,)

    def before_training(self, data: Mixture) -> None:
        if "mask" not in data.fields:
            raise TrainingError("casl learns from photos with masks: give --data masks:FOLDER")
        given = data.fields["image"].shape or (0,)
        if given != (3, self.config.side, self.config.side):
            raise TrainingError(
                f"casl reads pictures of {self.config.side} pixels a side, the data give {given[-1]}: --set "
                f"masks.crop_size={self.config.side}, or --set casl.side={given[-1]}"
            )
        self._epoch_steps = data.steps_per_epoch

    def training_step(self, batch: Mapping[str, Any], step: int, optimizer: str = "encoders") -> LossValue:
        """Equation 11 for the encoder whose turn it is, or the critic's side of equation 8."""
        image, mask = batch["image"], batch["mask"]
        real = torch.cat([image * mask, mask], 1)
        if optimizer == "critic":
            return self._criticise(real)
        if self._epoch_steps and step and step % self._epoch_steps == 0:
            self._end_epoch()
        learning = ATTRIBUTES if optimizer == "encoders" else (optimizer,)
        found = self.model.encode(real, learning)
        found, astray = self._from_elsewhere(found, mask)
        drawn = self.model.draw(found, self.renderer, image.shape[-1])
        objective = self.objective
        loss = summed(
            objective.reconstruction(drawn, image, mask),
            objective.regular(self.model, found),
            objective.cycle(self.model, found, drawn, learning),
            objective.fooling(self.critic, drawn),
            *astray,
        )
        self._epochs.add(found.offsets, loss.terms)
        self._drawn = drawn.detach()
        return loss

    def _from_elsewhere(self, found: Attributes, mask: Float[Tensor, "B 1 S S"]) -> tuple[Attributes, list[LossValue]]:
        """The same from the views that explain the masks best, and what pulls the camera there."""
        azimuths, elevations = self.config.hypotheses
        if azimuths * elevations == 1:
            return found, []
        tried = grid(azimuths, elevations, self.config.elevations).to(mask.device)
        there = likelier(self.model, self.renderer, found.view.detach(), mask, tried)
        return dataclasses.replace(found, view=moved_to(found.view, there)), [pull(found.view, there)]

    def _criticise(self, real: Float[Tensor, "B 4 S S"]) -> LossValue:
        assert self._drawn is not None
        made_up = self._drawn.both
        game = DiscriminatorLoss("wgan")({"scores": self.critic(made_up)}, {"scores": self.critic(real)})
        slope = gradient_penalty(self.critic, real, made_up)
        return LossValue(
            game.per_sample + self.config.gradient_penalty * slope.per_sample, {**game.terms, **slope.terms}
        )

    def _end_epoch(self) -> None:
        c, epochs = self.config, self._epochs
        mean = epochs.close()
        if c.prototype_loop:
            self.model.prototype.copy_(
                moved(
                    self.model.prototype,
                    mean,
                    len(epochs.history) - 1,
                    c.prototype_warm_up,
                    c.prototype_rate,
                    c.prototype_largest,
                )
            )
        watch(epochs.history, self.model.prototype)

    def training_state(self) -> dict[str, Any]:
        return {"epochs": self._epochs.state(), "epoch_steps": self._epoch_steps}

    def restore_training_state(self, state: Mapping[str, Any]) -> None:
        self._epochs.restore(state["epochs"])
        self._epoch_steps = int(state["epoch_steps"])

    def training_pictures(self, batch: Mapping[str, Any]) -> Mapping[str, Float[Tensor, "3 H W"]]:
        """Rows: photos, drawings, drawings seen from 90 degrees aside."""
        image, mask = batch["image"][:8], batch["mask"][:8]
        found = self.model.encode(torch.cat([image * mask, mask], 1))
        side = Attributes(found.offsets, found.view.turned(90.0), found.light, found.texture)
        rows = [image * mask, *(self.model.draw(a, self.renderer, image.shape[-1]).image for a in (found, side))]
        return {"drawings": torch.cat([torch.cat(list(row), 2) for row in rows], 1).clamp(0, 1)}
