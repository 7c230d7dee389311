"""Training data for networks that read 2D joints: posed, shaped bodies before random cameras, made on the fly.

Nothing is rendered: only the joints of the body are computed, projected and disturbed the way a detector errs, so
that one device makes hundreds of thousands of people a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon_core.geometry.rotations import axis_angle_to_matrix, quaternion_to_matrix
from recon_core.interfaces import BodyModel, Settings
from recon_core.skeletons import SMPL24
from recon_core.structures import Batched, BodyParameters, Camera
from recon_std.encoders.keypoints import JOINTS, KeypointView, joint_rows, view_of_rays
from recon_std.synthetic.detection import DetectorErrors, GaussianErrors
from recon_std.synthetic.random import Source, rand, randint, randn

LEFT_ARM, RIGHT_ARM = ((13, 16, 18, 20, 22), (14, 17, 19, 21, 23))
LIMBS = (LEFT_ARM, RIGHT_ARM, (1, 2, 4, 5, 7, 8, 10, 11))
"""Parts of smpl24 that may be taken from another frame: an arm, the other arm, both legs."""


class PeopleConfig(Settings):
    """How people and cameras are drawn. Angles in degrees, shares in [0, 1]."""

    exchange: float = 0.15
    """Chance that one limb comes from another frame (an arm, or both legs)."""
    jitter: float = 4.0
    """Largest deviation of the random turns added to every joint; each person's own is most often far below it."""
    collars: float = 1.0
    """How much of a raised arm's elevation the collars take over, 0 for none, as captured."""
    betas_scale: float = 1.0
    wide_betas: float = 0.2
    """Share of people whose shape coefficients are drawn from a distribution 1.8 times as wide."""
    elevation: tuple[float, float] = (-20.0, 60.0)
    """Of the camera above the person, drawn with its weight towards 0."""
    tilt: float = 12.0
    """Deviation of the body's lean, and of the camera's roll (a third of it)."""
    any_orientation: float = 0.12
    """Share of people turned any way in space (sport, upside down, lying)."""
    focal: tuple[float, float] = (0.7, 2.5)
    """Focal length over the picture's diagonal, log-uniform."""
    height: tuple[float, float] = (0.2, 1.6)
    """How much of the picture's longer side a standing person spans, log-uniform."""
    skeletons: dict[str, float] = {"blazepose33": 0.55, "coco17": 0.15, "openpose25": 0.15, "lsp14": 0.15}
    """Which detector's joints are seen, with its share of the people."""


@dataclass(frozen=True)
class KeypointPeople(Batched):
    """B people before cameras. body: in the picture's camera frame (y down). view: what a detector saw of them.

    rays: (B, J, 2) true x/z, y/z of `JOINTS` in the picture's camera frame. known: (B, J) joints that the drawn
    detector has at all. box: (B,) longer side of the true joints' box, in units of rays.
    """

    body: BodyParameters
    view: KeypointView
    rays: Float[Tensor, "B J 2"]
    known: Bool[Tensor, "B J"]
    box: Float[Tensor, " B"]


class KeypointSampler:
    """Draws `KeypointPeople` from poses.

    poses: (F, 24, 3) axis-angle, root in a y-up frame. weights: (F,) chance of each frame. All tensors drawn live
    on the poses' device, where body and errors must be too.
    """

    def __init__(
        self,
        body: BodyModel,
        poses: Float[Tensor, "F 24 3"],
        weights: Float[Tensor, " F"],
        errors: DetectorErrors | GaussianErrors,
        config: PeopleConfig | None = None,
    ) -> None:
        self.body, self.poses, self.errors = body, poses, errors
        self.config = config or PeopleConfig()
        # Inverse of the cumulative weights on a fine grid: a draw is one look-up, whatever the number of frames.
        self.cumulative = (weights.double().cumsum(0) / weights.double().sum()).float().to(poses.device)

    def sample(self, count: int, generator: torch.Generator) -> KeypointPeople:
        """`count` people, grouped by skeleton (shuffle before splitting)."""
        pose = self._poses(count, generator)
        betas = self._betas(count, generator)
        body, half_size = self._place(pose, betas, generator)
        rays, known, sources = [], [], []
        for name, rows in self._groups(count).items():
            points = canonical_joints(self.body, body[rows], name)
            rays.append(points[..., :2] / points[..., 2:].clamp_min(0.05))
            index = torch.zeros(len(JOINTS), dtype=torch.bool, device=pose.device)
            index[list(joint_rows(name)[0])] = True
            known.append(index.expand(len(points), -1))
            sources.append(name == "blazepose33")
        rays_, known_ = torch.cat(rays), torch.cat(known)
        whole = torch.repeat_interleave(
            torch.tensor(sources, device=pose.device), torch.tensor([len(r) for r in rays], device=pose.device)
        )
        box = _longer_side(rays_, known_)
        seen, confidence = self.errors.disturb(rays_, known_, box, half_size, whole, generator)
        return KeypointPeople(body, view_of_rays(seen, confidence), rays_, known_, box)

    def bodies(self, count: int, generator: Source) -> BodyParameters:
        """`count` bodies before random cameras, in the camera frame, without what a detector sees of them."""
        return self._place(self._poses(count, generator), self._betas(count, generator), generator)[0]

    def views(self, count: int, views: int, generator: torch.Generator) -> BodyParameters:
        """`count` bodies, each before `views` random cameras, in these cameras' frames: a body's views in a row."""
        pose, betas = self._poses(count, generator), self._betas(count, generator)
        return self._place(pose.repeat_interleave(views, 0), betas.repeat_interleave(views, 0), generator)[0]

    def _groups(self, count: int) -> dict[str, slice]:
        shares = self.config.skeletons
        total, start, groups = sum(shares.values()), 0.0, {}
        for name, share in shares.items():
            groups[name] = slice(round(count * start / total), round(count * (start + share) / total))
            start += share
        return groups

    def _frames(self, count: int, generator: Source) -> Float[Tensor, "B 24 3"]:
        draws = rand(generator, count, device=self.poses.device)
        index = torch.searchsorted(self.cumulative, draws).clamp_max(len(self.poses) - 1)
        poses = self.poses[index]
        mirror = rand(generator, count, 1, 1, device=self.poses.device) < 0.5
        flipped = poses[:, list(SMPL24.mirror)] * poses.new_tensor([1.0, -1.0, -1.0])
        return torch.where(mirror, flipped, poses)

    def _poses(self, count: int, generator: Source) -> Float[Tensor, "B 24 3 3"]:
        poses, other = self._frames(count, generator), self._frames(count, generator)
        device = poses.device
        taken = rand(generator, count, device=device) < self.config.exchange
        which = randint(generator, len(LIMBS), count, device=device)
        mask = torch.zeros(count, 24, dtype=torch.bool, device=device)
        for limb, parts in enumerate(LIMBS):
            mask[:, list(parts)] = (taken & (which == limb))[:, None]
        pose = axis_angle_to_matrix(torch.where(mask[..., None], other, poses))
        pose = _raise_collars(pose, self.config.collars, generator)
        own = rand(generator, count, 1, 1, device=device).square() * math.radians(self.config.jitter)
        turns = randn(generator, count, 24, 3, device=device) * own
        # Head, wrists, hands and toes turn more freely than the capture shows, and matter least to the rest.
        turns[:, [7, 8, 10, 11, 12, 15, 20, 21, 22, 23]] *= 2
        turns[:, 0] = 0
        return pose @ axis_angle_to_matrix(turns)

    def _betas(self, count: int, generator: Source) -> Float[Tensor, "B S"]:
        device = self.poses.device
        wide = rand(generator, count, 1, device=device) < self.config.wide_betas
        scale = torch.where(wide, 1.8, 1.0) * self.config.betas_scale
        betas = randn(generator, count, self.body.shape_count, device=device) * scale
        return betas.clamp(-4, 4)

    def _place(
        self, pose: Float[Tensor, "B 24 3 3"], betas: Float[Tensor, "B S"], generator: Source
    ) -> tuple[BodyParameters, Float[Tensor, "B 2"]]:
        """Turn the root into a random camera's frame and put the body before it; half the picture in rays."""
        c, count, device = self.config, len(pose), pose.device

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * rand(generator, count, device=device)

        def normal(scale: float) -> Tensor:
            return scale * randn(generator, count, device=device)

        lean = axis_angle_to_matrix(torch.stack([normal(1), 0 * normal(1), normal(1)], -1) * math.radians(c.tilt))
        yaw = _turn("y", uniform(-math.pi, math.pi))
        free = quaternion_to_matrix(randn(generator, count, 4, device=device))
        anyhow = rand(generator, count, 1, 1, device=device) < c.any_orientation
        root = torch.where(anyhow, free, lean @ yaw) @ pose[:, 0]
        # The lower of two uniform draws: looking level is the most common, looking up or down much rarer.
        side = uniform(0, 1) * uniform(0, 1)
        down = torch.where(uniform(0, 1) < 0.65, c.elevation[1] * side, c.elevation[0] * side)
        camera = _turn("z", normal(math.radians(c.tilt / 3))) @ _turn("x", math.pi + torch.deg2rad(down))
        pose = torch.cat([(camera @ root)[:, None], pose[:, 1:]], 1)

        focal = torch.exp(uniform(math.log(c.focal[0]), math.log(c.focal[1])))
        angle = torch.atan(torch.exp(uniform(math.log(0.5), math.log(2.0))))
        half = torch.stack([angle.cos(), angle.sin()], -1) / (2 * focal[:, None])
        span = torch.exp(uniform(math.log(c.height[0]), math.log(c.height[1]))) * 2 * half.amax(-1)
        depth = (1.7 / span).clamp_min(1.2)
        # Off the middle by at most so much that the person's middle stays in the picture.
        shift = torch.stack([uniform(-1, 1), uniform(-1, 1)], -1) * half
        shift = shift * torch.where(span[:, None] > half, 0.6 * half / span[:, None], 0.85)
        pelvis = torch.cat([shift, torch.ones_like(depth)[:, None]], -1) * depth[:, None]
        return BodyParameters(pose, betas, pelvis - self.body.rest_joints(betas)[:, 0]), half


def framing_camera(
    points: Float[Tensor, "B N 3"], size: int, margin: Float[Tensor, " B"], offset: Float[Tensor, "B 2"]
) -> Camera:
    """A camera at the origin whose square picture, `size` pixels wide, frames points of its frame.

    margin: side of the picture over the longer side of the points' box. offset: of the picture's centre from the box's,
    in longer sides.
    """
    rays = points[..., :2] / points[..., 2:].clamp_min(0.1)
    low, high = rays.amin(1), rays.amax(1)
    side = (high - low).amax(-1)
    center = (low + high) / 2 + offset * side[:, None]
    focal = size / (side * margin)
    return Camera.perspective(focal, (size, size), size / 2 - focal[:, None] * center)


def canonical_joints(body_model: BodyModel, body: BodyParameters, source: str) -> Float[Tensor, "B J 3"]:
    """`JOINTS` of bodies by the definitions of skeleton `source`; zeros, one metre ahead, where it has none."""
    rows, columns = joint_rows(source)
    points = body_model.keypoints(body, source)
    out = points.new_tensor([0.0, 0.0, 1.0]).repeat(len(points), len(JOINTS), 1)
    out[:, list(rows)] = points[:, list(columns)]
    return out


def _turn(axis: str, angle: Float[Tensor, " B"]) -> Float[Tensor, "B 3 3"]:
    unit = angle.new_tensor([float(axis == a) for a in "xyz"])
    return axis_angle_to_matrix(angle[:, None] * unit)


def _longer_side(points: Float[Tensor, "B J 2"], known: Bool[Tensor, "B J"]) -> Float[Tensor, " B"]:
    far = torch.full_like(points, torch.inf)
    high = torch.where(known[..., None], points, -far).amax(1)
    low = torch.where(known[..., None], points, far).amin(1)
    return (high - low).amax(-1)


def _raise_collars(pose: Float[Tensor, "B 24 3 3"], amount: float, generator: Source) -> Float[Tensor, "B 24 3 3"]:
    """Give the collars a share of each upper arm's elevation, which the capture puts on the shoulder alone.

    A raised arm takes its shoulder with it (the scapula gives about a third of the elevation); the upper arm keeps
    its direction in the trunk.
    """
    pose = pose.clone()
    for collar, shoulder, side in ((13, 16, 1.0), (14, 17, -1.0)):
        arm = pose[:, collar] @ pose[:, shoulder] * side
        # The upper arm lies along +x (left) or -x: its height in the trunk is the y of the rotation's first column.
        elevation = torch.asin(arm[:, 1, 0].clamp(-0.999, 0.999))
        forward = torch.atan2(arm[:, 2, 0], arm[:, 0, 0].abs() + 0.3)
        share = [rand(generator, len(pose), device=pose.device) for _ in range(2)]
        lift = amount * 0.4 * share[0] * (elevation + 0.3).clamp_min(0)
        swing = amount * 0.3 * share[1] * forward.clamp(-0.5, 1.2)
        turn = _turn("z", side * lift) @ _turn("y", -side * swing)
        raised = turn @ pose[:, collar]
        pose[:, shoulder] = raised.transpose(-1, -2) @ pose[:, collar] @ pose[:, shoulder]
        pose[:, collar] = raised
    return pose
