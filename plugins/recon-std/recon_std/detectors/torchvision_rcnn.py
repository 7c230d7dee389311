"""torchvision's R-CNN detectors: people with 17 joints, or COCO's things with masks. The weights are not shipped.

He et al., "Mask R-CNN", ICCV 2017. torchvision keeps the weights in its own cache and downloads them where there is
internet; elsewhere the user names the file.
"""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torchvision.models import detection as models

from recon_core.errors import AssetError, unknown
from recon_core.interfaces import Detector, Settings
from recon_core.structures import Detection, Keypoints


class KeypointRCNNSettings(Settings):
    """weights: a .pth file of torchvision's, where it may not be downloaded. least_score: of a person. min_size:
    shorter side in pixels that pictures are scaled to. device: "auto" takes cuda where there is one."""

    weights: str | None = None
    least_score: float = Field(0.7, ge=0, le=1)
    max_found: int = Field(20, ge=1)
    min_size: int = Field(800, ge=64)
    device: str = "auto"


class MaskRCNNSettings(KeypointRCNNSettings):
    """label: the COCO category that is looked for, e.g. person, car, bird, horse."""

    label: str = "person"


class _RCNN(Detector):
    """What both share: weights, one forward pass, the choice by score."""

    config: KeypointRCNNSettings

    def __init__(self, model: Any, weights: Any, config: KeypointRCNNSettings) -> None:
        self.config = config
        cuda = torch.cuda.is_available()
        self._device = ("cuda" if cuda else "cpu") if config.device == "auto" else config.device
        network = model(
            weights=None,
            weights_backbone=None,
            num_classes=len(weights.meta["categories"]),
            min_size=config.min_size,
            box_score_thresh=min(0.05, config.least_score),
            box_detections_per_img=config.max_found,
        )
        try:
            network.load_state_dict(_state(weights, config.weights))
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise AssetError(
                f"{config.weights or weights.url}: not the weights of {model.__name__} ({reason})"
            ) from None
        self._network = network.eval().to(self._device)

    def _found(self, image: np.ndarray, label: int) -> dict[str, Tensor]:
        pixels = torch.from_numpy(image).to(self._device).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            (found,) = self._network([pixels])
        good = (found["labels"] == label) & (found["scores"] >= self.config.least_score)
        return {name: value[good].float().cpu() for name, value in found.items()}


class KeypointRCNNDetector(_RCNN):
    """People with coco17 joints. A joint's confidence is the logistic of its heat, 0.5 at heat 0."""

    Config: ClassVar[type[Settings]] = KeypointRCNNSettings
    gives: ClassVar[frozenset[str]] = frozenset({"box", "keypoints"})

    def __init__(self, config: KeypointRCNNSettings | None = None) -> None:
        weights = models.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1
        super().__init__(models.keypointrcnn_resnet50_fpn, weights, config or KeypointRCNNSettings())

    def detect(self, image: np.ndarray) -> list[Detection]:
        """People in an upright (H, W, 3) uint8 RGB picture, best first."""
        found = self._found(image, 1)
        confidence = found["keypoints_scores"].sigmoid()
        return [
            Detection(_xywh(box), float(score), Keypoints(points[None, :, :2], sure[None], "coco17"))
            for box, score, points, sure in zip(
                found["boxes"], found["scores"], found["keypoints"], confidence, strict=True
            )
        ]


class MaskRCNNDetector(_RCNN):
    """Things of one COCO category with masks: for methods that read image and mask."""

    Config: ClassVar[type[Settings]] = MaskRCNNSettings
    gives: ClassVar[frozenset[str]] = frozenset({"box", "mask"})

    def __init__(self, config: MaskRCNNSettings | None = None) -> None:
        config = config or MaskRCNNSettings()
        weights = models.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
        categories = weights.meta["categories"]
        if config.label not in categories:
            raise unknown(
                "label of maskrcnn", config.label, [c for c in categories if c not in ("N/A", "__background__")]
            )
        self._label = categories.index(config.label)
        super().__init__(models.maskrcnn_resnet50_fpn, weights, config)

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Things in an upright (H, W, 3) uint8 RGB picture, best first."""
        found = self._found(image, self._label)
        return [
            Detection(_xywh(box), float(score), None, mask[0])
            for box, score, mask in zip(found["boxes"], found["scores"], found["masks"], strict=True)
        ]


def _xywh(box: Float[Tensor, " 4"]) -> tuple[float, float, float, float]:
    left, top, right, bottom = box.tolist()
    return left, top, right - left, bottom - top


def _state(weights: Any, path: str | None) -> dict[str, Tensor]:
    """The state of the network, from the user's file or torchvision's cache; only tensors are unpickled."""
    if path is not None:
        if not Path(path).is_file():
            raise AssetError(f"{path}: no such file")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged or unsafe pickle fails in many ways
            raise AssetError(f"{path}: not a file of weights ({type(error).__name__})") from None
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise AssetError(
            f"{weights.url}: cannot be had ({error}); download it by hand and name it with the setting 'weights'"
        ) from None
