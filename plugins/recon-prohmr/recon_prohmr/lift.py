"""`prohmr-lift`: a skeleton in space for a detector's 2D joints (thesis, sections 4.3.6 and 4.6.2)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from recon_core.assets import Assets
from recon_core.errors import EvidenceError, InputError, UsageError
from recon_core.geometry.cameras import estimate_translation
from recon_core.interfaces import BodyModel, InputKind, Method, OutputKind, Settings
from recon_core.skeletons import skeleton
from recon_core.structures import Keypoints, Observation, Prediction
from recon_prohmr.flow import ConditionalGlow
from recon_prohmr.lifting import JOINTS_IN, JOINTS_OUT, LiftNetwork, load_lift
from recon_prohmr.skeletons import SKELETON, SkeletonNetwork, SkeletonNetworkConfig
from recon_prohmr.weights import load_network
from recon_std.encoders.keypoints import keypoint_view

WEIGHTS = "prohmr-lift"
"""Name of the shipped weights in the catalogue."""

NEAREST = 0.2
"""Metres before the camera at which the nearest joint stands at least."""

BEYOND_EARS = 1.6
"""From the neck to the top of the head, over the way to the middle of the ears: measured on the free body at rest."""

_OURS = {"jaw": "nose", "head": "head_top"}
"""Joints of h36m17 by their names in the published list, where these differ."""


class LiftConfig(Settings):
    """samples: draws of the distribution besides its mode. seed: of the draws, the same for every subject. weights:
    "published" for a checkpoint of the authors' network (docs/checkpoints.md); without it the shipped one. statistics:
    for a published checkpoint, an npz file of `mean` and `std`, (17, 2) each: pixels of the joints of its training."""

    weights: Literal["published"] | None = None
    statistics: Path | None = None
    samples: int = Field(default=0, ge=0, le=100_000)
    seed: int = Field(default=0, ge=0)


class Lift(Method):
    """The joints of the distribution's mode (equation 4.4) relative to the pelvis, which is put where they fall on the
    2D joints: 17 joints of h36m17 in the picture's camera frame, metres. Samples are in `Prediction.extra`.
    """

    Config = LiftConfig
    inputs: ClassVar[frozenset[InputKind]] = frozenset({"keypoints"})
    outputs: ClassVar[frozenset[OutputKind]] = frozenset({"keypoints3d"})
    config: LiftConfig

    def __init__(
        self, config: LiftConfig, body_model: BodyModel | None = None, network: SkeletonNetworkConfig | None = None
    ) -> None:
        super().__init__(config, body_model)
        self.network = SkeletonNetwork(network)

    @classmethod
    def from_assets(  # type: ignore[override]
        cls, config: LiftConfig, assets: Assets, body_model: BodyModel | None = None
    ) -> Lift:
        """With the shipped weights, checked by their sha256, or the published ones. Raises AssetError without them."""
        if config.weights == "published":
            return PublishedLift.from_assets(config, assets, body_model)
        network = load_network(assets.find(WEIGHTS), SkeletonNetwork)
        method = cls(config, body_model, network.config)
        method.network = network
        return method.eval()

    @torch.no_grad()
    def predict(self, observation: Observation) -> Prediction:
        """Raises EvidenceError for a subject with too few joints."""
        if observation.keypoints is None:
            raise EvidenceError("prohmr-lift reads 2D joints: the observation has none")
        context, back = self._context(observation)
        flow = self.network.flow
        zero = context.new_zeros(len(context), 1, flow.dims)
        relative = self._joints(flow.decode(zero, context)) @ back[:, None]
        seen = observation.keypoints.converted(SKELETON)
        K = observation.camera.K
        place = estimate_translation(relative[:, 0], seen.points, seen.confidence, K)[:, None]
        place[..., 2] += (NEAREST - (relative[:, 0, :, 2] + place[..., 2]).amin(-1, keepdim=True)).clamp_min(0)
        joints = relative[:, 0] + place
        extra: dict[str, Tensor] = {}
        if self.config.samples:
            extra = self._draws(flow, context, back, place)
        return Prediction(keypoints3d=Keypoints(joints, torch.ones_like(joints[..., 0]), SKELETON), extra=extra)

    def _draws(
        self,
        flow: ConditionalGlow,
        context: Float[Tensor, "B C"],
        back: Float[Tensor, "B 3 3"],
        place: Float[Tensor, "B 1 3"],
    ) -> dict[str, Tensor]:
        """samples (B, N, 17, 3), metres, camera frame, with the mode's pelvis; their log_prob (B, N); joint_std_mm
        (B, 17), the root mean square distance of a joint from its mean over the samples."""
        generator = torch.Generator().manual_seed(self.config.seed)
        z = torch.randn(1, self.config.samples, flow.dims, generator=generator).to(context)
        z = z.expand(len(context), -1, -1)
        joints = self._joints(flow.decode(z, context)) @ back[:, None]
        spread = (joints - joints.mean(1, keepdim=True)).square().sum(-1).mean(1).sqrt() * 1000
        return {
            "samples": joints + place[:, None],
            "log_prob": flow.latent_log_prob(z, context),
            "joint_std_mm": spread,
        }

    def _context(self, observation: Observation) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B 3 3"]]:
        """What the flow is told, and the rotation, applied from the right, from its frame to the camera frame."""
        assert observation.keypoints is not None
        view = keypoint_view(observation.camera, observation.keypoints)
        return self.network.encoder.encode(view), view.rotation

    def _joints(self, values: Float[Tensor, "B N 48"]) -> Float[Tensor, "B N 17 3"]:
        """h36m17 of the flow's numbers, the pelvis at the origin."""
        return pad(values.unflatten(-1, (-1, 3)), (0, 0, 1, 0))


class PublishedLift(Lift):
    """`prohmr-lift` with weights = "published", as Lift.from_assets makes it: the joints' pixels, less `mean` and over
    `std`, go in; what comes out stands in the camera frame as it is."""

    network: LiftNetwork  # type: ignore[assignment]
    mean: Tensor
    std: Tensor

    def __init__(self, config: LiftConfig, body_model: BodyModel | None = None) -> None:
        Method.__init__(self, config, body_model)
        if config.statistics is None:
            raise UsageError(
                "prohmr-lift with published weights needs the mean and deviation of the 2D joints it was trained on: "
                "--set prohmr-lift.statistics=FILE.npz (docs/checkpoints.md)"
            )
        self.network = LiftNetwork()
        mean, std = _statistics(config.statistics)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def from_assets(  # type: ignore[override]
        cls, config: LiftConfig, assets: Assets, body_model: BodyModel | None = None
    ) -> PublishedLift:
        """Raises AssetError when the checkpoint was not added."""
        network = load_lift(assets)
        method = cls(config, body_model)
        method.network = network
        return method.eval()

    def _context(self, observation: Observation) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B 3 3"]]:
        assert observation.keypoints is not None
        joints = _all_joints(observation.keypoints)
        eye = torch.eye(3).to(joints).expand(len(joints), 3, 3)
        return self.network.encode((joints[:, _rows(JOINTS_IN)] - self.mean) / self.std), eye

    def _joints(self, values: Float[Tensor, "B N 48"]) -> Float[Tensor, "B N 17 3"]:
        given = values.unflatten(-1, (-1, 3))
        joints = given.new_zeros(*given.shape[:2], len(skeleton(SKELETON)), 3)
        joints[:, :, _rows(JOINTS_OUT)] = given
        return joints


def _rows(names: tuple[str, ...]) -> list[int]:
    """Rows of h36m17 of the published list's joints."""
    return [skeleton(SKELETON).index(_OURS.get(name, name)) for name in names]


def _all_joints(keypoints: Keypoints) -> Float[Tensor, "B 17 2"]:
    """Pixels of h36m17. Where a detector has no spine joint or no top of the head, the spine is halfway between pelvis
    and neck, and the top of the head beyond the middle of the ears (docs/methods/prohmr.md).

    Raises EvidenceError when a joint is missing, which the published network cannot be told.
    """
    found = keypoints.converted(SKELETON)
    index = skeleton(SKELETON).index
    points, seen = found.points.clone(), found.confidence > 0
    known = skeleton(keypoints.skeleton).joints
    neck, pelvis = (points[:, index(name)] for name in ("neck", "pelvis"))
    if "spine" not in known:
        points[:, index("spine")] = (neck + pelvis) / 2
        seen[:, index("spine")] = seen[:, [index("neck"), index("pelvis")]].all(1)
    if "head_top" not in known and {"left_ear", "right_ear"} <= set(known):
        ears = [known.index(name) for name in ("left_ear", "right_ear")]
        points[:, index("head_top")] = neck + BEYOND_EARS * (keypoints.points[:, ears].mean(1) - neck)
        seen[:, index("head_top")] = seen[:, index("neck")] & (keypoints.confidence[:, ears] > 0).all(1)
    if not seen.all():
        row, joint = (~seen).nonzero()[0].tolist()
        raise EvidenceError(
            f"subject {row}: {skeleton(SKELETON).joints[joint]} was not seen, and prohmr-lift with published weights "
            "needs every joint; the shipped weights do not"
        )
    return points


def _statistics(path: Path) -> tuple[Float[Tensor, "17 2"], Float[Tensor, "17 2"]]:
    """Raises InputError for a file that does not hold them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values = [torch.from_numpy(np.asarray(file[name], np.float32).reshape(17, 2)) for name in ("mean", "std")]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: should be an npz file with the arrays mean and std, (17, 2) each") from error
    if not all(torch.isfinite(value).all() for value in values) or not (values[1] > 0).all():
        raise InputError(f"{path}: mean and std should be finite, and std positive")
    return values[0], values[1]
