"""torchvision's R-CNNs as detectors: no weights are at hand, so networks of chance weights show the plumbing."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models import detection as models

from recon_core.errors import AssetError, UsageError
from recon_core.plugins import registry
from recon_std.detectors import torchvision_rcnn
from recon_std.detectors.torchvision_rcnn import KeypointRCNNDetector, MaskRCNNDetector, MaskRCNNSettings


class _Fake(torch.nn.Module):
    """A network that finds what it is told, and keeps what it was shown."""

    def __init__(self, found: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self._found = found

    def forward(self, pictures: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        self.seen = pictures
        return [self._found]


def _found(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[10.0, 20.0, 40.0, 80.0], [0.0, 0.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0]])
    return {"boxes": boxes, "labels": torch.tensor([1, 1, 3]), "scores": torch.tensor([0.95, 0.3, 0.9]), **more}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """made(detector class, found, settings...): the detector over a fake network with weights of a file."""

    def make(kind: Any, found: dict[str, torch.Tensor], **settings: Any) -> tuple[Any, _Fake]:
        network = _Fake(found)
        model = "keypointrcnn_resnet50_fpn" if kind is KeypointRCNNDetector else "maskrcnn_resnet50_fpn"

        def builder(**options: Any) -> _Fake:
            assert options["weights"] is None
            assert options["weights_backbone"] is None
            return network

        builder.__name__ = model
        monkeypatch.setattr(models, model, builder)
        torch.save({"weight": torch.ones(2)}, tmp_path / "w.pth")
        config = kind.Config(**{"weights": str(tmp_path / "w.pth"), "device": "cpu", **settings})
        return kind(config), network

    return make


def test_people_with_joints(made: Any) -> None:
    points = torch.arange(3 * 17 * 3).reshape(3, 17, 3).float()
    scores = torch.linspace(-5, 5, 17).expand(3, 17)
    detector, network = made(KeypointRCNNDetector, _found(keypoints=points, keypoints_scores=scores))
    pixels = np.zeros((90, 60, 3), np.uint8)
    pixels[3, 7] = 255, 128, 0
    (found,) = detector.detect(pixels)
    torch.testing.assert_close(network.seen[0][:, 3, 7], torch.tensor([1, 128 / 255, 0]))
    assert network.weight.tolist() == [1, 1], "the weights of the file are in use"
    assert found.box == (10, 20, 30, 60)
    assert found.score == pytest.approx(0.95)
    assert found.keypoints.skeleton == "coco17"
    torch.testing.assert_close(found.keypoints.points[0], points[0, :, :2])
    torch.testing.assert_close(found.keypoints.confidence[0], scores[0].sigmoid())


def test_things_with_masks(made: Any) -> None:
    masks = torch.rand(3, 1, 90, 60)
    detector, _ = made(MaskRCNNDetector, _found(masks=masks), label="car")
    (found,) = detector.detect(np.zeros((90, 60, 3), np.uint8))
    assert found.keypoints is None
    torch.testing.assert_close(found.mask, masks[2, 0])
    with pytest.raises(UsageError, match="did you mean 'bicycle'"):
        MaskRCNNDetector(MaskRCNNSettings(label="bycicle"))


def test_the_networks_take_the_options_they_are_given(tmp_path: Path) -> None:
    """With torchvision's own network: everything but the weights is as in use."""
    weights = models.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1
    network = models.keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2)
    torch.save(network.state_dict(), tmp_path / "chance.pth")
    assert len(weights.meta["categories"]) == 2
    config = KeypointRCNNDetector.Config(weights=str(tmp_path / "chance.pth"), least_score=0.0, min_size=64)
    found = KeypointRCNNDetector(config).detect(np.zeros((48, 64, 3), np.uint8))
    assert isinstance(found, list)


def test_weights_that_are_not_there_or_not_weights(made: Any, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"gone\.pth: no such file"):
        made(KeypointRCNNDetector, _found(), weights=str(tmp_path / "gone.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(AssetError, match=r"text\.pth: not a file of weights"):
        made(KeypointRCNNDetector, _found(), weights=str(tmp_path / "text.pth"))
    torch.save({"other": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(AssetError, match=r"other\.pth: not the weights of keypointrcnn"):
        made(KeypointRCNNDetector, _found(), weights=str(tmp_path / "other.pth"))


def test_without_internet_the_file_to_get_is_named(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **options: Any) -> None:
        assert options["weights_only"] is True
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision_rcnn.models.KeypointRCNN_ResNet50_FPN_Weights, "get_state_dict", offline)
    with pytest.raises(AssetError, match=r"https://.*keypointrcnn.*\.pth: cannot be had.*'weights'"):
        made(KeypointRCNNDetector, _found(), weights=None)


def test_registered() -> None:
    assert registry().load("detector", "keypointrcnn") is KeypointRCNNDetector
    assert registry().load("detector", "maskrcnn") is MaskRCNNDetector
