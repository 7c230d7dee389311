"""`recon fit --method NAME`: a method that reads meshes, scans, markers or joints, without a photo."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recon_core.errors import EvidenceError, InputError, UsageError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from recon_core.config import Configuration
    from recon_core.images import Photo
    from recon_core.interfaces import Method
    from recon_core.reconstruction import Reconstruction
    from recon_core.structures import Camera, Landmarks, Observation, Prediction

UNITS = {"metres": 1.0, "centimetres": 0.01, "millimetres": 0.001}
TALLEST = (0.3, 3.0)
"""Metres between which the largest extent of a body, or of a good part of one, lies; the ranges of the three units do
not overlap."""


def in_metres(points: Float[Tensor, "N 3"], path: Path) -> tuple[Float[Tensor, "N 3"], str]:
    """The points in metres and the unit they were in, by their largest extent.

    Raises InputError when that is no body's in any of metres, centimetres and millimetres, or not a number.
    """
    import torch

    if not torch.isfinite(points).all():
        row = int((~torch.isfinite(points).all(1)).nonzero()[0])
        raise InputError(f"{path}: vertex {row} is not finite; remove such vertices")
    extent = float((points.amax(0) - points.amin(0)).amax()) if len(points) else 0.0
    for unit, scale in UNITS.items():
        if TALLEST[0] <= extent * scale <= TALLEST[1]:
            return points * scale, unit
    raise InputError(
        f"{path}: its largest extent is {extent:g}, which is no body's in metres, centimetres or millimetres; scale it"
    )


def read_landmarks(path: Path, target: Float[Tensor, "N 3"] | None, scale: float = 1.0) -> Landmarks:
    """Pairs from a json list: [vertex of the method's mesh, vertex of the file fitted to] or [vertex, [x, y, z]].

    target: (N, 3) vertices of that file, metres, camera frame. Places in the json are in the file's own unit, of which
    `scale` makes metres, y up. Raises InputError naming the file and the pair.
    """
    import torch

    from recon_core.structures import Landmarks

    try:
        pairs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable json file ({error})") from None
    if not isinstance(pairs, list) or not pairs:
        raise InputError(f"{path}: give a list of pairs, [[vertex, vertex], ...] or [[vertex, [x, y, z]], ...]")
    rows, points = [], []
    for i, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and _whole(pair[0])):
            raise InputError(f"{path}: pair {i} is not [vertex, vertex] or [vertex, [x, y, z]]")
        own, other = pair
        if _whole(other) and target is not None:
            if not 0 <= other < len(target):
                raise InputError(
                    f"{path}: pair {i} names vertex {other} of the target, which has vertices 0 to {len(target) - 1}"
                )
            points.append(target[other])
        elif isinstance(other, list) and len(other) == 3 and all(isinstance(x, int | float) for x in other):
            points.append(torch.tensor(other, dtype=torch.float32) * scale * torch.tensor([1.0, -1.0, -1.0]))
        else:
            raise InputError(f"{path}: pair {i}: the second of a pair is a vertex of the target, or [x, y, z]")
        rows.append(own)
    return Landmarks(torch.tensor(rows), torch.stack(points)[None])


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def observe_surface(path: Path, camera: Camera, kind: str | None, landmarks: str | None) -> tuple[Observation, str]:
    """A mesh or scan file and its landmarks as an observation, and a note on its unit.

    kind: "mesh" or "scan", the only thing it is then given as; None: as both, and the method takes the mesh if it is
    of its own connectivity. A file without faces is a scan. Normals are those of the file's triangles.
    """
    from recon_core.evidence_files import read_surface
    from recon_core.rendering.shading import vertex_normals
    from recon_core.structures import Mesh, Observation

    vertices, faces = read_surface(path)
    vertices, unit = in_metres(vertices, path)
    if kind == "mesh" and not len(faces):
        raise InputError(f"{path}: has no faces, so it is no mesh; leave out --as mesh and --register")
    known = None if landmarks is None else read_landmarks(Path(landmarks), vertices, UNITS[unit])
    seen = Observation(camera, landmarks=known)
    if kind != "scan" and len(faces):
        seen = dataclasses.replace(seen, mesh=Mesh(vertices[None], faces))
    if kind != "mesh":
        normals = vertex_normals(vertices, faces)[None] if len(faces) else None
        seen = dataclasses.replace(seen, scan=vertices[None], scan_normals=normals)
    return seen, unit


def observe_markers(path: Path, camera: Camera) -> Observation:
    """Markers alone: a json of [vertex, [x, y, z]], metres, y up."""
    from recon_core.structures import Observation

    return Observation(camera, landmarks=read_landmarks(path, None))


def fit_by_method(
    name: str,
    path: Path,
    observation: Observation,
    picture: Photo,
    with_photo: bool,
    folder: Path,
    overwrite: bool,
    configuration: Configuration,
) -> list[Mapping[str, Any]]:
    """Run a method on evidence that is no photo and save what it gives; the numbers of each subject's fit.

    Raises UsageError for a method that reads no such evidence or gives no mesh, EvidenceError naming the file.
    """
    from recon_core.assets import assets
    from recon_core.pipeline import predict
    from recon_core.plugins import registry

    found: type[Method] = registry().load("method", name)
    given = {kind for kind in ("mesh", "scan", "landmarks", "keypoints", "keypoints3d") if _has(observation, kind)}
    if not given & found.inputs or "mesh" not in found.outputs:
        what = f"reads {', '.join(sorted(found.inputs))} and gives {', '.join(sorted(found.outputs))}"
        raise UsageError(f"--method {name}: the method {what}; recon fit needs one that makes a mesh of {path.name}")
    configuration.check({name})
    settings = configuration.settings(name, found.Config)
    method = found.from_assets(settings, assets()).eval()
    try:
        prediction = predict(method, name, observation, str(picture.path))
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error}") from error
    _save(name, path, observation, prediction, picture, with_photo, folder, overwrite, settings.model_dump(mode="json"))
    numbers = ("energy", "iterations", "converged", "reprojection_px")
    rows = range(len(observation))
    return [{key: _number(prediction.extra[key][i]) for key in numbers if key in prediction.extra} for i in rows]


def _has(observation: Observation, kind: str) -> bool:
    return getattr(observation, kind) is not None


def _number(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def _save(
    name: str,
    path: Path,
    observation: Observation,
    prediction: Prediction,
    picture: Photo,
    with_photo: bool,
    folder: Path,
    overwrite: bool,
    settings: Mapping[str, Any],
) -> None:
    from recon_core.reconstruction import Reconstruction, scene_objects

    frame = (0.0, 0.0, float(picture.size[0]), float(picture.size[1]))
    boxes = [frame] * len(observation) if observation.box is None else observation.box.tolist()
    objects = scene_objects(prediction, [tuple(box) for box in boxes], [1.0] * len(observation))
    source = picture.path if with_photo else path
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    camera = observation.camera[0]
    result = Reconstruction(source, digest, picture.pixels, name, camera, objects=objects, settings={name: settings})
    save_fit(result, with_photo, folder, overwrite)


def save_fit(result: Reconstruction, with_photo: bool, folder: Path, overwrite: bool) -> None:
    """Write what was fitted, as meshes too; drawn over the photo where one was given."""
    from recon_core.export.glb import write_glb
    from recon_core.export.json_npz import write_json, write_npz
    from recon_core.export.obj_ply import write_obj, write_ply
    from recon_core.export.save import RESULT, new_folder

    if with_photo:
        result.save(folder, ("ply", "obj"), overwrite=overwrite)
        return
    with new_folder(folder, overwrite) as partial:
        write_npz(result, partial / "result.npz")
        write_glb(result, partial / "scene.glb")
        write_ply(result, partial)
        write_obj(result, partial)
        write_json(result, partial / RESULT)


def report(folder: Path, rows: list[Mapping[str, Any]], unit: str) -> None:
    """What the user is told."""
    if unit != "metres":
        click.echo(f"{folder.name}: by its size the file is in {unit}; the result is in metres", err=True)
    for i, row in enumerate(rows):
        ended = "converged" if row.get("converged") else "stopped"
        pixels = row.get("reprojection_px")
        error = "" if pixels is None else f", {pixels:.1f} px"
        click.echo(f"{folder}: object {i}: {ended} after {row.get('iterations') or 0:.0f} iterations{error}")
