"""ProHMR as a method: a detector's 2D joints in, a distribution of bodies out (thesis, chapter 4)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from recon_core.assets import Assets
from recon_core.errors import EvidenceError, UsageError
from recon_core.interfaces import BodyModel, InputKind, Method, OutputKind, Settings
from recon_core.published import SMPL
from recon_core.structures import BodyParameters, Observation, Prediction
from recon_prohmr.network import NetworkConfig, ProHMRNetwork, pose_from_6d, stand, to_camera
from recon_prohmr.prior import PosePrior
from recon_prohmr.published import PublishedProHMR
from recon_prohmr.sampling import samples_as_set
from recon_prohmr.weights import load_network
from recon_std.encoders.keypoints import KeypointView, keypoint_view

WEIGHTS = "prohmr-keypoints"
"""Name of the shipped weights in the catalogue."""


class ProHMRConfig(Settings):
    """samples: draws of the distribution besides its mode. seed: of the draws; the same for every subject, so that a
    subject's samples do not depend on who else is in the picture. weights: "published" for the authors' network,
    which reads the image and needs SMPL (docs/checkpoints.md); without it the shipped one. quantised_from: draw so
    many, and keep as samples those that stand for them (`representatives`); table 12 has 4096."""

    weights: Literal["published"] | None = None
    samples: int = Field(default=0, ge=0, le=100_000)
    quantised_from: int | None = Field(default=None, ge=2, le=100_000)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _enough_to_choose_from(self) -> ProHMRConfig:
        if self.quantised_from is not None and not 0 < self.samples <= self.quantised_from:
            raise ValueError("quantised_from should be at least samples, of which there should be one or more")
        return self


class ProHMR(Method):
    """The body is the mode of the distribution (equation 4.4); shape and camera are regressed from the context.

    Network and flow live in the frame of a camera turned to look straight at the joints (`KeypointView`), which
    makes the perspective exact for any focal length and place in the picture; results are in the picture's camera.
    """

    Config = ProHMRConfig
    inputs: ClassVar[frozenset[InputKind]] = frozenset({"keypoints"})
    outputs: ClassVar[frozenset[OutputKind]] = frozenset({"body"})
    default_fitter = "prohmr-latent"
    config: ProHMRConfig

    def __init__(
        self, config: ProHMRConfig, body_model: BodyModel | None = None, network: NetworkConfig | None = None
    ) -> None:
        super().__init__(config, body_model)
        if body_model is None:
            raise UsageError("prohmr gives a body: it needs a body model (--body free)")
        self.network = ProHMRNetwork(network)

    @classmethod
    def body_for(cls, config: ProHMRConfig) -> str | None:  # type: ignore[override]
        """SMPL for the published weights."""
        return SMPL if config.weights == "published" else cls.body

    @classmethod
    def from_assets(  # type: ignore[override]
        cls, config: ProHMRConfig, assets: Assets, body_model: BodyModel | None = None
    ) -> ProHMR | PublishedProHMR:
        """With the shipped weights, checked by their sha256, or the network of the published ones."""
        if config.weights == "published":
            return PublishedProHMR.from_assets(config, assets, body_model)
        network = load_network(assets.find(WEIGHTS), ProHMRNetwork)
        method = cls(config, body_model, network.config)
        method.network = network
        return method.eval()

    @torch.no_grad()
    def predict(self, observation: Observation) -> Prediction:
        """Raises EvidenceError for a subject with fewer than four joints."""
        if observation.keypoints is None:
            raise EvidenceError("prohmr reads 2D joints: the observation has none")
        view = keypoint_view(observation.camera, observation.keypoints)
        context = self.network.encoder.encode(view)
        pose = pose_from_6d(self.network.flow.mode(context))
        body = self._in_camera(pose, context, view)
        samples = samples_as_set(self.config, self.body_model, self.network.flow, context, view.rotation, body)
        return Prediction(body=body, samples=samples, context=PosePrior.packed(context, view.rotation))

    def prior(self) -> PosePrior:
        """p(pose | joints) over "pose-6d"; its context is that of `predict`."""
        return PosePrior(self.network.flow)

    def _in_camera(
        self, pose: Float[Tensor, "B 24 3 3"], context: Float[Tensor, "B C"], view: KeypointView
    ) -> BodyParameters:
        assert self.body_model is not None
        placed = self.network.place(context, view)
        return to_camera(stand(self.body_model, pose, placed), view.rotation, self.body_model)
