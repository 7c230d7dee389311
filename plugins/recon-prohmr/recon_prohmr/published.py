"""ProHMR as published: a picture's crop in, ResNet-50, the flow of the thesis with its full sizes (section 4.6.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon_core.assets import Assets
from recon_core.errors import EvidenceError
from recon_core.geometry.cameras import crop_to_full_translation
from recon_core.interfaces import BodyModel, InputKind, Method, OutputKind
from recon_core.published import check_smpl, load_published
from recon_core.structures import BodyParameters, Observation, Prediction
from recon_prohmr.flow import ConditionalGlow
from recon_prohmr.network import POSE_DIMS, ShapeCameraHead, pose_from_6d
from recon_prohmr.prior import PosePrior
from recon_prohmr.sampling import samples_as_set
from recon_std.encoders.images import ResNet50
from recon_std.priors.adversarial import PoseDiscriminator

if TYPE_CHECKING:
    from recon_prohmr.method import ProHMRConfig


class PublishedNetwork(nn.Module):
    """Trunk, flow over 24 x 6 numbers (columns layout), head for shape and camera, and the training's discriminator.

    Poses stand in the camera frame of the crop. The camera is weak-perspective (s, tx, ty) in the crop.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet50()
        self.flow = ConditionalGlow(POSE_DIMS, ResNet50.channels)
        self.head = ShapeCameraHead(ResNet50.channels, 1024)
        self.discriminator = PoseDiscriminator()

    def encode(self, image: Float[Tensor, "B 3 224 224"]) -> Float[Tensor, "B 2048"]:
        """The context of crops, RGB in [0, 1]."""
        return self.encode_normalized((image - self.backbone.mean) / self.backbone.std)

    def encode_normalized(self, image: Float[Tensor, "B 3 224 224"]) -> Float[Tensor, "B 2048"]:
        """The context of crops from which ImageNet's mean is taken already, divided by its deviation."""
        return self.backbone.spatial(image).mean((2, 3))


class PublishedProHMR(Method):
    """`prohmr` with weights = "published", as ProHMR.from_assets makes it.

    Reads the picture; joints, where the detector gives them, serve the fit alone. The translation is taken to the
    full picture's camera at the depth that gives the body the same size there; as published, the rotation is not
    turned by the angle at which the crop is seen.
    """

    inputs: ClassVar[frozenset[InputKind]] = frozenset({"image"})
    outputs: ClassVar[frozenset[OutputKind]] = frozenset({"body"})
    default_fitter = "prohmr-latent"
    crop_size = 224
    crop_margin = 1.2

    def __init__(self, config: ProHMRConfig, body_model: BodyModel | None = None) -> None:
        super().__init__(config, body_model)
        check_smpl(body_model, "ProHMR")
        self.network = PublishedNetwork()

    @classmethod
    def from_assets(  # type: ignore[override]
        cls, config: ProHMRConfig, assets: Assets, body_model: BodyModel | None = None
    ) -> PublishedProHMR:
        """Raises AssetError when the checkpoint was not added."""
        path = assets.find("prohmr-published")
        method = cls(config, body_model)
        load_published(method.network, path)
        return method.eval()

    @torch.no_grad()
    def predict(self, observation: Observation) -> Prediction:
        if observation.image is None or observation.to_crop is None:
            raise EvidenceError("prohmr with published weights reads the image: the observation has no crop")
        context = self.network.encode(observation.image)
        pose = pose_from_6d(self.network.flow.mode(context))
        betas, camera = self.network.head(context)
        scale = observation.to_crop[:, 0, 0]
        side = observation.image.shape[-1] / scale
        center = (observation.image.shape[-1] / 2 - observation.to_crop[:, :, 2]) / scale[:, None]
        body = BodyParameters(pose, betas, crop_to_full_translation(camera, center, side, observation.camera.K))
        upright = torch.eye(3).to(context).expand(len(context), 3, 3)
        samples = samples_as_set(self.config, self.body_model, self.network.flow, context, upright, body)
        return Prediction(body=body, samples=samples, context=PosePrior.packed(context, upright))

    def prior(self) -> PosePrior:
        """p(pose | crop) over "pose-6d"; its context is that of `predict`."""
        return PosePrior(self.network.flow)
