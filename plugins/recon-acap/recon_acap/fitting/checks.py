"""What a fit refuses, in one line each, before anything is computed."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.errors import EvidenceError, UsageError


def check_finite(name: str, values: Float[Tensor, "B ..."]) -> None:
    """Raises EvidenceError naming the first row and entry that is not a finite number."""
    bad = ~torch.isfinite(values)
    if bad.any():
        where = [int(i) for i in bad.nonzero()[0]]
        place = f"entry {where[1]} of row {where[0]}" if len(where) > 1 else f"row {where[0]}"
        raise EvidenceError(
            f"{name}: {int(bad.sum())} numbers are not finite, the first in {place}; remove such points"
        )


def check_connectivity(
    vertices: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"] | None, model: Tensor, count: int
) -> None:
    """Raises EvidenceError unless meshes have the `count` vertices, and where given the faces, of the model."""
    if vertices.shape[1] != count:
        raise EvidenceError(
            f"the mesh has {vertices.shape[1]} vertices and the model {count}: they are not of one connectivity; "
            "fit it as a scan, or convert it with --register"
        )
    if faces is not None and not (faces.shape == model.shape and bool((faces == model.to(faces)).all())):
        different = "" if faces.shape == model.shape else f" ({len(faces)}, the model has {len(model)})"
        raise EvidenceError(
            f"the mesh has as many vertices as the model, {count}, but other faces{different}: they are not of one "
            "connectivity; fit it as a scan, or convert it with --register"
        )


def check_landmarks(index: Int[Tensor, " L"], points: Float[Tensor, "B L 3"], count: int) -> None:
    """Raises UsageError for landmarks that name no vertex of the model, or one twice; EvidenceError for NaN."""
    if points.shape[1] != len(index):
        raise UsageError(f"landmarks: {len(index)} vertices of the model are paired with {points.shape[1]} points")
    outside = index[(index < 0) | (index >= count)]
    if len(outside):
        raise UsageError(
            f"landmarks: vertex {int(outside[0])} is out of range; the model has vertices 0 to {count - 1}"
        )
    values, times = index.unique(return_counts=True)
    if (times > 1).any():
        raise UsageError(f"landmarks: vertex {int(values[times > 1][0])} of the model is named twice; keep one of them")
    check_finite("landmarks", points)


def check_placed(points: Float[Tensor, "B K 3"], confidence: Float[Tensor, "B K"], name: str) -> None:
    """Raises EvidenceError for a row whose points do not fix a rigid motion: fewer than three, or all on a line."""
    weight = (confidence > 0).to(points)[..., None]
    centred = (points - (points * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)) * weight
    spread = torch.linalg.svdvals(centred)
    loose = ((confidence > 0).sum(1) < 3) | (spread[:, 1] <= 1e-3 * spread[:, 0])
    if loose.any():
        raise EvidenceError(
            f"{name} of row {int(loose.nonzero()[0])}: fewer than three points that are not on one line; "
            "they do not tell where the body stands"
        )
