"""2D joints in, context out: the encoder of methods that read a detector's joints and no pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from recon_core.errors import EvidenceError
from recon_core.interfaces import Encoder, InputKind
from recon_core.skeletons import skeleton
from recon_core.structures import Batched, Camera, Features, Keypoints, Observation

JOINTS: tuple[str, ...] = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "neck", "head_top",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    "left_heel", "right_heel", "left_big_toe", "right_big_toe",
    "left_index", "right_index", "left_pinky", "right_pinky",
)  # fmt: skip
"""The joints the encoder knows: enough of each detector's (blazepose33, coco17, openpose25, lsp14) to fix a body."""

FEWEST_JOINTS = 4
"""Fewer joints than this have no view: they say neither where the body stands nor how it is turned."""


@cache
def joint_rows(source: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows of `JOINTS`, and the rows of skeleton `source` that have the same names."""
    joints = skeleton(source).joints
    pairs = [(row, joints.index(name)) for row, name in enumerate(JOINTS) if name in joints]
    if len(pairs) < FEWEST_JOINTS:
        raise EvidenceError(f"skeleton {source}: the keypoint encoder knows only {len(pairs)} of its joints")
    return tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)


@dataclass(frozen=True)
class KeypointView(Batched):
    """Joints as a camera turned to look straight at them would see them.

    Turning the camera about its own centre is exact, whatever the focal length and wherever in the picture the
    person stands: what is left to learn is how a body looks from straight ahead. rotation: (B, 3, 3), from the
    picture's camera frame to the view's. extent: (B,) tangent of the angle at which the joints' root mean square
    distance from the view's axis is seen. points: (B, J, 2) of `JOINTS`, tangents divided by extent, 0 where
    missing. confidence: (B, J), 0 where missing. towards: (B, 2) x/z and y/z of the view's axis in the picture.
    """

    rotation: Float[Tensor, "B 3 3"]
    extent: Float[Tensor, " B"]
    points: Float[Tensor, "B J 2"]
    confidence: Float[Tensor, "B J"]
    towards: Float[Tensor, "B 2"]


def look_at(towards: Float[Tensor, "B 2"]) -> Float[Tensor, "B 3 3"]:
    """The smallest rotation that turns the direction (x, y, 1) onto the z axis."""
    d = F.normalize(F.pad(towards, (0, 1), value=1.0), dim=-1)
    x, y, z = d.unbind(-1)
    k = 1 / (1 + z)
    rows = [1 - x * x * k, -x * y * k, -x, -x * y * k, 1 - y * y * k, -y, x, y, z]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def keypoint_view(camera: Camera, keypoints: Keypoints) -> KeypointView:
    """The view of each subject's joints. Only camera.K is used; joints that are not finite count as missing.

    Raises EvidenceError when a subject has fewer than `FEWEST_JOINTS` joints, or all of them on one spot.
    """
    rows, source = (list(index) for index in joint_rows(keypoints.skeleton))
    known, confidence = keypoints.points[:, source], keypoints.confidence[:, source]
    confidence = torch.where(known.isfinite().all(-1), confidence, torch.zeros_like(confidence)).clamp(0, 1)
    points = known.new_zeros(len(known), len(JOINTS), 2)
    points[:, rows] = torch.where(confidence[..., None] > 0, known, torch.zeros_like(known))
    weights = known.new_zeros(len(known), len(JOINTS))
    weights[:, rows] = confidence
    view = view_of_rays((points - camera.K[:, None, :2, 2]) @ camera.K[:, :2, :2].inverse().transpose(-1, -2), weights)
    poor = ((weights > 0).sum(-1) < FEWEST_JOINTS) | ~(view.extent > 1e-6)
    if poor.any():
        row = int(poor.nonzero()[0, 0])
        raise EvidenceError(
            f"subject {row}: {int((weights[row] > 0).sum())} usable joints of skeleton {keypoints.skeleton}; "
            f"at least {FEWEST_JOINTS} apart from each other are needed"
        )
    return view


def view_of_rays(rays: Float[Tensor, "B J 2"], confidence: Float[Tensor, "B J"]) -> KeypointView:
    """The view of joints given as x/z, y/z in the picture's camera frame; see `keypoint_view`."""
    share = confidence / confidence.sum(-1, keepdim=True).clamp_min(1e-9)
    towards = (share[..., None] * rays).sum(1)
    rotation = look_at(towards)
    turned = F.pad(rays, (0, 1), value=1.0) @ rotation.transpose(-1, -2)
    # Rays at a right angle to the view's axis, or behind it, are no joints of this person: kept finite.
    tangents = turned[..., :2] / turned[..., 2:].clamp_min(0.1)
    extent = (share * tangents.square().sum(-1)).sum(-1).sqrt()
    seen = confidence[..., None] > 0
    points = torch.where(seen, tangents / extent.clamp_min(1e-9)[:, None, None], torch.zeros_like(tangents))
    return KeypointView(rotation, extent, points, confidence, towards)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        return x + self.second(F.silu(self.first(self.norm(x))))


class KeypointEncoder(Encoder):
    """A residual network over the joints of a `KeypointView` (after Martinez et al., ICCV 2017, section 3.2).

    Fills Features.global_ (B, context). A missing joint enters as its absence (position 0 and flag 0), so that any
    subset of `JOINTS` may be given. Rows do not depend on each other, in training neither.
    """

    inputs: ClassVar[frozenset[InputKind]] = frozenset({"keypoints"})
    reach = 6.0
    """Joints further out than this many extents are drawn in to it: a single wild joint must not drown the others."""

    def __init__(self, context: int = 512, width: int = 768, blocks: int = 3) -> None:
        super().__init__()
        self.initial = nn.Linear(4 * len(JOINTS) + 3, width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.final = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, context))

    def forward(self, observation: Observation) -> Features:
        """Raises EvidenceError for a subject with too few joints (`keypoint_view`)."""
        if observation.keypoints is None:
            raise EvidenceError("the keypoint encoder needs an observation with keypoints")
        return Features(global_=self.encode(keypoint_view(observation.camera, observation.keypoints)))

    def encode(self, view: KeypointView) -> Float[Tensor, "B C"]:
        """Context of joints already in their view."""
        seen: Bool[Tensor, "B J 1"] = (view.confidence > 0)[..., None]
        points = view.points.clamp(-self.reach, self.reach)
        joints = torch.cat([points, view.confidence[..., None], seen.to(points)], -1).flatten(1)
        # ln(extent) is about -1.5 for a person who fills half of a picture with a usual lens.
        place = torch.cat([view.towards, view.extent.clamp_min(1e-9).log()[:, None] + 1.5], -1)
        return self.final(self.blocks(self.initial(torch.cat([joints, place], -1))))


def skeleton_index(source: str, device: torch.device | None = None) -> Int[Tensor, " J"]:
    """For each of `JOINTS` the row of skeleton `source`, -1 where it has none."""
    index = torch.full((len(JOINTS),), -1, device=device)
    rows, columns = joint_rows(source)
    index[list(rows)] = torch.tensor(columns, device=device)
    return index
