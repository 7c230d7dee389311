"""Fitting a generator's codes to meshes, markers, scans, joints and sequences (section 7)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_acap.fitting import checks
from recon_acap.fitting.evidence import Evidence, KnownPoints, PictureJoints, ScanSurface, Selection
from recon_acap.fitting.generator import Generator
from recon_acap.fitting.objective import LatentObjective, Pull
from recon_acap.fitting.settings import LatentFitSettings
from recon_acap.fitting.solve import LatentFit, Progress, adam, best_of, finished, gauss_newton
from recon_acap.fitting.variables import LatentVariables
from recon_core.errors import EvidenceError
from recon_core.geometry.alignment import similarity_alignment
from recon_core.geometry.cameras import estimate_translation
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.structures import Camera, Landmarks
from recon_std.fitters.variables import where

WIDE = 3.0
"""By how much outlier scales and reach are widened first (graduated non-convexity, Blake & Zisserman 1987)."""

ENCODINGS = 3
"""How often a mesh is encoded, each time turned as the body of the last codes: the encoder knows upright bodies."""

PLACE_STEPS, START_STEPS = 10, 6
"""Steps that place a body whose codes are held, and over all variables, by which starts are compared."""

DTYPE = torch.float64
"""The normal equations of a thousand vertices at 1 mm beside codes of weight 1 are beyond single precision."""


def _known(marks: Landmarks, count: int, noise: float, name: str = "landmarks") -> KnownPoints:
    """Landmarks as evidence on a model of `count` vertices. Raises as `checks.check_landmarks` does."""
    seen = torch.ones_like(marks.points[..., 0]) if marks.confidence is None else marks.confidence
    points = torch.where(seen[..., None] > 0, marks.points, 0.0)
    checks.check_landmarks(marks.vertices, points, count)
    selection = Selection.of_vertices(marks.vertices, DTYPE)
    return KnownPoints(selection, points.to(DTYPE), seen.to(DTYPE), noise, None, name)


@torch.no_grad()
def fit_meshes(
    generator: Generator,
    vertices: Float[Tensor, "B V 3"],
    faces: Int[Tensor, "F 3"] | None = None,
    settings: LatentFitSettings | None = None,
    frames: int = 1,
    shape: Float[Tensor, "N S"] | None = None,
) -> LatentFit:
    """Codes and places of meshes of the generator's connectivity (eq. 15), metres; from the codes of its encoder, where
    it has one and they are better than the mean body.

    frames: that many consecutive rows are one subject's and share its shape. shape: the subjects' shape codes, which
    are then held. Raises EvidenceError for meshes of another connectivity (with the counts) or that are not finite.
    """
    s = settings or LatentFitSettings()
    count = _count(generator)
    checks.check_connectivity(vertices, faces, generator.faces, count)
    index = torch.arange(count)
    known = _known(Landmarks(index, vertices), count, s.vertex_noise, "mesh")
    return _fit(generator, [known], s, frames, shape=shape, encoded=True)


@torch.no_grad()
def fit_markers(
    generator: Generator,
    markers: Landmarks,
    settings: LatentFitSettings | None = None,
    frames: int = 1,
    shape: Float[Tensor, "N S"] | None = None,
) -> LatentFit:
    """As `fit_meshes`, to points on some vertices: motion capture markers. Raises UsageError for a vertex out of
    range, EvidenceError for a row with fewer than three points that fix where the body stands."""
    s = settings or LatentFitSettings()
    return _fit(generator, [_known(markers, _count(generator), s.landmark_noise, "markers")], s, frames, shape=shape)


@torch.no_grad()
def fit_scans(
    generator: Generator,
    points: Float[Tensor, "B M 3"],
    normals: Float[Tensor, "B M 3"] | None = None,
    landmarks: Landmarks | None = None,
    settings: LatentFitSettings | None = None,
    frames: int = 1,
    confidence: Float[Tensor, "B M"] | None = None,
    shape: Float[Tensor, "N S"] | None = None,
    up: Float[Tensor, "3"] | None = None,
) -> LatentFit:
    """Codes and places that explain scans: landmarks first, then point-to-plane (section 8.1), metres.

    normals: outward and of unit length, or 0 where unknown; without, planes are the body's own. landmarks: without
    them the body starts upright in the scan's middle and `headings` directions are tried, which finds the way for
    poses near the neutral one. confidence: 0 for rows that fill up a shorter scan. up: the direction in which the
    scanned body stands, (0, 1, 0) by default. frames, shape: as in `fit_meshes`; depth images of a sequence are their
    points, frame by frame. Raises EvidenceError for points that are not finite, or fewer than 100.
    """
    s = settings or LatentFitSettings()
    if points.shape[1] < 100:
        raise EvidenceError(f"the scan has {points.shape[1]} points; 100 at least are needed for a body")
    checks.check_finite("the scan", points)
    seen = torch.ones_like(points[..., 0]) if confidence is None else confidence
    directions = torch.zeros_like(points) if normals is None else torch.nan_to_num(normals)
    some = torch.linspace(0, points.shape[1] - 1, min(s.scan_points, points.shape[1])).long()
    surface = ScanSurface(
        points[:, some].to(DTYPE), directions[:, some].to(DTYPE), seen[:, some].to(DTYPE), generator.faces,
        s.scan_noise, s.scan_outlier, s.scan_reach,
    )  # fmt: skip
    if landmarks is None:
        return _fit(generator, [surface], s, frames, shape=shape, up=up)
    known = _known(landmarks, _count(generator), s.landmark_noise)
    return _fit(generator, [known, surface], s, frames, shape=shape)


@torch.no_grad()
def fit_joints(
    generator: Generator,
    regressor: Float[Tensor, "J V"],
    points: Float[Tensor, "B J D"],
    confidence: Float[Tensor, "B J"],
    camera: Camera | None = None,
    settings: LatentFitSettings | None = None,
    frames: int = 1,
    shape: Float[Tensor, "N S"] | None = None,
    up: Float[Tensor, "3"] | None = None,
) -> LatentFit:
    """Codes and places that explain joints, with the penalty on elbows and knees (eq. 16).

    regressor: joints as sums over the model's vertices. points: pixels of `camera` (D = 2), or metres (D = 3).
    up: the upright body's direction in the camera's frame, (0, -1, 0) by default. Raises EvidenceError for a row with
    fewer than four joints in a picture, or three in space.
    """
    s = settings or LatentFitSettings()
    points = torch.where(confidence[..., None] > 0, points, 0.0).to(DTYPE)
    checks.check_finite("joints", points)
    selection = Selection.of_matrix(regressor.to(DTYPE))
    up = torch.tensor([0.0, -1.0, 0.0]) if up is None else up
    if points.shape[-1] == 3:
        known = KnownPoints(selection, points, confidence.to(DTYPE), s.joint_noise, None, "joints")
        return _fit(generator, [known], s, frames, s.bending, shape)
    if camera is None:
        raise EvidenceError("joints in a picture need its camera")
    if (few := (confidence > 0).sum(1) < 4).any():
        raise EvidenceError(f"row {int(few.nonzero()[0])} has fewer than four joints; they do not constrain a body")
    tall = points.amax(1) - torch.where(confidence[..., None] > 0, points, torch.inf).amin(1)
    noise = s.keypoint_noise * float(tall.amax(1).median()) / 1000
    seen = PictureJoints(selection, points, confidence.to(DTYPE), camera.to(DTYPE), noise, s.keypoint_outlier)
    return _fit(generator, [seen], s, frames, s.bending, shape, up)


def _count(generator: Generator) -> int:
    return int(generator.faces.max()) + 1


def _fit(
    generator: Generator,
    evidence: Sequence[Evidence],
    s: LatentFitSettings,
    frames: int,
    bending: float = 0.0,
    shape: Tensor | None = None,
    up: Tensor | None = None,
    encoded: bool = False,
) -> LatentFit:
    rows = len(evidence[0].confidence)
    if frames < 1 or rows % frames:
        raise EvidenceError(f"{rows} rows cannot be cut into subjects of {frames} frames each")
    pull = Pull(s.shape_weight, s.pose_weight, bending, s.smooth if frames > 1 else 0.0)
    objective = LatentObjective(generator, evidence, pull, frames, shape_held=shape is not None)
    start = _neutral(generator, rows // frames, frames, shape)
    first = evidence[0]
    if isinstance(first, KnownPoints):
        start = _aligned(first, start, generator)
        if encoded:
            start = _encoded(objective, start, first)
        stages = [objective]
        if len(evidence) > 1:
            stages = [objective.with_evidence([first]), objective.widened(WIDE), objective]
    else:
        start = _headed(objective, start, s, up)
        stages = [objective.widened(WIDE), objective]
    progress = Progress(start, torch.zeros(rows // frames, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    for stage in stages:
        progress = _run(stage, progress, s)
    return finished(objective, start, progress)


def _run(objective: LatentObjective, before: Progress, s: LatentFitSettings) -> Progress:
    if s.optimizer == "adam":
        found = adam(objective, before.variables, s.adam_iterations, s.adam_rate)
    else:
        found = gauss_newton(objective, before.variables, s.iterations, s.tolerance)
    return Progress(found.variables, before.iterations + found.iterations, found.converged)


def _neutral(generator: Generator, subjects: int, frames: int, shape: Tensor | None) -> LatentVariables:
    """The mean body, upright at the origin."""
    zero = torch.zeros(subjects, frames, 3, dtype=DTYPE)
    own = torch.zeros(subjects, generator.shape_count, dtype=DTYPE) if shape is None else shape.to(DTYPE)
    pose = torch.zeros(subjects, frames, generator.pose_count, dtype=DTYPE)
    return LatentVariables(own, pose, torch.eye(3, dtype=DTYPE).expand(subjects, frames, 3, 3), zero)


def _aligned(known: KnownPoints, start: LatentVariables, generator: Generator) -> LatentVariables:
    """The start where its points are nearest to the known ones."""
    checks.check_placed(known.target, known.confidence, known.name)
    own = known.selection(generator.vertices(*start.codes()))
    motion = similarity_alignment(own, known.target, known.confidence, with_scale=False)
    shape = (len(start.shape), start.frames)
    return LatentVariables(start.shape, start.pose, motion.R.unflatten(0, shape), motion.t.unflatten(0, shape))


def _encoded(objective: LatentObjective, start: LatentVariables, mesh: KnownPoints) -> LatentVariables:
    """The start, or the codes that the encoder gives the meshes as they stand there, where these are better."""
    subjects, guess = (len(start.shape), start.frames), start
    for _ in range(ENCODINGS):
        place = guess.root.flatten(0, 1), guess.translation.flatten(0, 1)[:, None]
        codes = objective.generator.encoded((mesh.target - place[1]) @ place[0])
        if codes is None:
            return start
        shape = start.shape if objective.shape_held else codes[0].unflatten(0, subjects).mean(1)
        guess = dataclasses.replace(guess, shape=shape, pose=codes[1].unflatten(0, subjects))
        guess = _aligned(mesh, guess, objective.generator)
    return where(objective.evaluate(guess).energy < objective.evaluate(start).energy, guess, start)


def _headed(
    objective: LatentObjective, start: LatentVariables, s: LatentFitSettings, up: Tensor | None
) -> LatentVariables:
    """The best of several directions about the vertical axis, by a few steps from each frame's own place.

    All frames of a subject are turned alike.
    """
    upright = _upright(up)
    angle = torch.arange(s.headings, dtype=DTYPE) * (2 * math.pi / s.headings)
    turn = upright @ axis_angle_to_matrix(angle[:, None] * torch.tensor([0.0, 1.0, 0.0], dtype=DTYPE))
    N, F, H = len(start.shape), start.frames, s.headings
    spread = lambda x: x.repeat_interleave(H, 0)  # noqa: E731
    root = turn[:, None].expand(H, F, 3, 3).repeat(N, 1, 1, 1)
    starts = LatentVariables(spread(start.shape), spread(start.pose), root, spread(start.translation))
    first = objective.evidence[0]
    several = objective.rows(torch.arange(N).repeat_interleave(H)).evidence[0]
    vertices = starts.placed(objective.generator.vertices(*starts.codes()))
    if isinstance(first, PictureJoints):
        assert isinstance(several, PictureJoints)
        camera = several.camera
        joints = several.selection(vertices) @ camera.R.transpose(-1, -2)
        place = estimate_translation(joints, several.target, several.confidence, camera.K)
        place = torch.where(place[:, 2:] > 0.5, place, place.new_tensor([0.0, 0.0, 5.0]))
        place = ((place - camera.t)[:, None] @ camera.R)[:, 0]
    else:
        assert isinstance(several, ScanSurface)
        weight = several.confidence[..., None]
        place = (several.points * weight).sum(1) / weight.sum(1) - vertices.mean(1)
    moved = LatentVariables(starts.shape, starts.pose, starts.root, place.unflatten(0, (N * H, F)))
    wide = objective.widened(WIDE)
    if isinstance(first, PictureJoints):
        placing = wide.rows(torch.arange(N).repeat_interleave(H)).placing()
        moved = gauss_newton(placing, moved, PLACE_STEPS, s.tolerance).variables
    return moved if H == 1 else best_of(wide, moved, H, START_STEPS)


def _upright(up: Float[Tensor, "3"] | None) -> Float[Tensor, "3 3"]:
    """The half turn, or none, that takes y into `up`, else the smallest rotation that does."""
    y = torch.tensor([0.0, 1.0, 0.0], dtype=DTYPE)
    target = y if up is None else up.to(DTYPE) / up.to(DTYPE).norm()
    if float(y @ target) < -0.999:
        # A half turn about x: a body that looks along +z then looks at the camera.
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=DTYPE))
    axis = torch.linalg.cross(y, target)
    angle = torch.atan2(axis.norm(), y @ target)
    return axis_angle_to_matrix(axis / axis.norm().clamp_min(1e-12) * angle)
