"""Errors between reconstructions and truth, as the field reports them. One value a batch row."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.geometry.alignment import similarity_alignment
from recon_core.structures import Keypoints

_MM = 1000.0


def mpjpe(
    predicted: Float[Tensor, "B J 3"],
    truth: Float[Tensor, "B J 3"],
    root: int | tuple[int, ...] | None = None,
) -> Float[Tensor, " B"]:
    """Mean per-joint position error in millimetres of joints in metres.

    root: joint (or joints, whose mean counts) that both are first aligned at; None compares absolute positions.
    Thesis 4.6.5: aligned at the pelvis.
    """
    if root is not None:
        index = [root] if isinstance(root, int) else list(root)
        predicted = predicted - predicted[:, index].mean(1, keepdim=True)
        truth = truth - truth[:, index].mean(1, keepdim=True)
    return (predicted - truth).norm(dim=-1).mean(-1) * _MM


def pa_mpjpe(predicted: Float[Tensor, "B J 3"], truth: Float[Tensor, "B J 3"]) -> Float[Tensor, " B"]:
    """MPJPE in millimetres after the best similarity (Procrustes) alignment of each prediction; thesis 4.6.5."""
    return mpjpe(similarity_alignment(predicted, truth)(predicted), truth)


def pck(
    predicted: Keypoints,
    truth: Keypoints,
    threshold: float = 0.2,
    torso: tuple[str, str] = ("right_shoulder", "left_hip"),
) -> Float[Tensor, "B J"]:
    """Per joint: 1 where the prediction lies within `threshold` torso lengths of the truth, 0 where not.

    The torso is the distance between two joints of the truth (Yang & Ramanan, PAMI 2013: a shoulder to the
    opposite hip). Joints that the truth lacks are NaN; joints that the prediction lacks count as missed.
    """
    from recon_core.skeletons import skeleton

    a, b = (skeleton(truth.skeleton).index(name) for name in torso)
    length = (truth.points[:, a] - truth.points[:, b]).norm(dim=-1)
    distance = (predicted.points - truth.points).norm(dim=-1)
    hit = (distance <= threshold * length[:, None]) & (predicted.confidence > 0)
    return torch.where(truth.confidence > 0, hit.to(distance), torch.full_like(distance, torch.nan))


def mask_iou(predicted: Float[Tensor, "B 1 H W"], truth: Float[Tensor, "B 1 H W"]) -> Float[Tensor, " B"]:
    """Intersection over union of masks in [0, 1], cut at one half. Two empty masks agree: 1."""
    p, t = (predicted > 0.5).flatten(1), (truth > 0.5).flatten(1)
    union = (p | t).sum(1)
    return torch.where(
        union > 0, (p & t).sum(1) / union.clamp_min(1), torch.ones_like(union, dtype=torch.float32)
    )


def structural_similarity(
    predicted: Float[Tensor, "B C H W"], truth: Float[Tensor, "B C H W"]
) -> Float[Tensor, " B"]:
    """SSIM of pictures in [0, 1] (Wang et al., 2004), with a Gaussian window of 11 pixels, sigma 1.5; by torchmetrics.

    Raises UsageError where torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise UsageError("the metric SSIM needs torchmetrics: pip install torchmetrics") from None
    value = structural_similarity_index_measure(predicted, truth, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return value.reshape(-1)
