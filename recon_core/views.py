"""Several photos of one person, their cameras unknown: one body for all of them, at its place in each."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recon_core.assets import sha256_of
from recon_core.batch import Outcome, material, result_names
from recon_core.errors import EvidenceError, InputError, UsageError
from recon_core.export.save import RESULT, is_result
from recon_core.fitting import Fitted
from recon_core.images import Photo
from recon_core.pipeline import Pipeline
from recon_core.reconstruction import Reconstruction
from recon_core.structures import Batched, Camera, Detection, Keypoints, Observation

AGREE = 1e-4
"""How far bodies of several views may differ, in any number of their rotations and shapes, to count as one."""


@dataclass(frozen=True)
class _View:
    photo: Photo
    digest: str
    detections: Sequence[Detection]
    observation: Observation


def reconstruct_views(pipeline: Pipeline, paths: Sequence[Path]) -> list[Reconstruction]:
    """The person that all the photos show: a Reconstruction of each, with one body pose and shape, and a global
    orientation and place in each photo's own camera.

    All views go through the method in one batch, as rows of one subject (`Observation.subject`); the fitter joins them.

    Raises UsageError for fewer than two photos and for a fitter that does not join, NoPersonError for a photo without a
    person, InputError for one with several, EvidenceError for one with too few joints: each names the photo.
    """
    _check_count(paths)
    views = [_view(pipeline, path) for path in paths]
    observation = _joined([view.observation for view in views])
    try:
        prediction, fitted = pipeline.infer(observation, ", ".join(str(path) for path in paths))
    except EvidenceError as error:
        raise _blamed(pipeline, views, error) from error
    if fitted is None:
        raise UsageError(f"--views: method '{pipeline.settings.method}' gives no body that the photos could share")
    _check_one_body(pipeline, fitted)
    names = [(view.photo.path.name, view.digest) for view in views]
    return [
        pipeline.result(
            view.photo,
            view.digest,
            view.detections,
            view.observation,
            prediction[i],
            _fitted_row(fitted, i),
            names,
        )
        for i, view in enumerate(views)
    ]


def process_views(
    pipeline: Pipeline, paths: Sequence[Path], folder: Path, overwrite: bool = False
) -> Iterator[Outcome]:
    """`reconstruct_views`, saved in a folder a photo as `recon_core.batch.process` does.

    Views that all have their result already, of these photos, are skipped; where only some have, as after an
    interruption, all are made anew. Raises what `reconstruct_views` raises, and InputError for a folder that holds
    another result.
    """
    _check_count(paths)
    folders = [folder / name for name in result_names(paths)]
    there = [] if overwrite else _already(paths, folders)
    if len(there) == len(paths):
        other = any(material(record["settings"]) != material(pipeline.used_settings) for record in there)
        for path, place in zip(paths, folders, strict=True):
            note = f"{place} was made with other settings; --overwrite replaces it" if other else ""
            yield Outcome(path, "skipped", place, note)
        return
    results = reconstruct_views(pipeline, paths)
    for path, place, result in zip(paths, folders, results, strict=True):
        settings = pipeline.settings
        result.save(place, settings.formats, settings.renderer, overwrite or is_result(place))
        yield Outcome(path, "done", place, found=len(result.people))


def _check_count(paths: Sequence[Path]) -> None:
    """Raises UsageError for fewer than two photos, or one given twice, which would count for more than it says."""
    if len(paths) < 2:
        given = f"{paths[0]} is one" if paths else "none was given"
        raise UsageError(f"--views: joins two photos or more of one person, and {given}")
    twice = [path for path, count in Counter(path.absolute() for path in paths).items() if count > 1]
    if twice:
        raise UsageError(f"--views: {twice[0].name} is given twice; name each view once")


def _view(pipeline: Pipeline, path: Path) -> _View:
    photo, digest = pipeline.read(path)
    found = pipeline.detect(photo)
    if len(found) > 1:
        raise InputError(
            f"{path}: {len(found)} people found, and --views needs one alone; crop the photo to the person"
        )
    return _View(photo, digest, found, pipeline.observe(photo, found))


def _joined(observations: Sequence[Observation]) -> Observation:
    """The rows of several observations as views of one subject. The pictures' common size is the largest of each side:
    intrinsics, which are each view's own, are what methods and fitters read."""
    rows: dict[str, Any] = {}
    for field in dataclasses.fields(Observation):
        values = [getattr(o, field.name) for o in observations]
        if field.name in ("camera", "subject") or any(value is None for value in values):
            continue
        rows[field.name] = _concatenated(values)
    cameras = [o.camera for o in observations]
    width, height = (max(camera.size[side] for camera in cameras) for side in range(2))
    K, R, t = (torch.cat([getattr(camera, name) for camera in cameras]) for name in ("K", "R", "t"))
    subject = torch.zeros(len(K), dtype=torch.int64, device=K.device)
    return Observation(Camera(K, R, t, (width, height)), subject=subject, **rows)


def _concatenated(values: Sequence[Tensor] | Sequence[Batched]) -> Tensor | Batched:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat([value for value in values if isinstance(value, Tensor)])
    if isinstance(first, Keypoints) and len({value.skeleton for value in values if isinstance(value, Keypoints)}) > 1:
        raise UsageError("--views: the detector gives joints of several skeletons; use one that gives the same for all")
    parts = {f.name: [getattr(value, f.name) for value in values] for f in dataclasses.fields(first)}  # type: ignore[arg-type]
    changed = {name: torch.cat(part) for name, part in parts.items() if isinstance(part[0], Tensor)}
    return dataclasses.replace(first, **changed)  # type: ignore[type-var]


def _blamed(pipeline: Pipeline, views: Sequence[_View], error: EvidenceError) -> EvidenceError:
    """The error, with the photo that is at fault: the first that fails by itself."""
    for view in views:
        try:
            pipeline.infer(view.observation, str(view.photo.path))
        except EvidenceError as own:
            return EvidenceError(f"{view.photo.path}: {own}")
    return error


def _check_one_body(pipeline: Pipeline, fitted: Fitted) -> None:
    body, rotations = fitted.body, fitted.body.pose[:, 1:]
    apart = max(float((value - value[:1]).abs().max()) for value in (rotations, body.betas))
    if not apart <= AGREE:
        name = pipeline.settings.fitter or pipeline.method.default_fitter
        raise UsageError(f"--views: the fitter '{name}' fits each photo by itself; use --fitter smplify")


def _fitted_row(fitted: Fitted, i: int) -> Fitted:
    return Fitted(fitted.body[i], fitted.reports[i : i + 1])


def _already(paths: Sequence[Path], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The records of the folders that hold a result, each of these views. Raises InputError for any other."""
    records = []
    wanted = None
    for place in folders:
        if not is_result(place):
            continue
        wanted = wanted or [sha256_of(path) for path in paths]
        try:
            record = json.loads((place / RESULT).read_text(encoding="utf-8"))
            found = [view["image_sha256"] for view in record["views"]]
            record["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{place}: its {RESULT} cannot be read; --overwrite replaces it") from None
        if found != wanted:
            raise InputError(f"{place}: holds a result of other photos; choose another folder with -o, or --overwrite")
        records.append(record)
    return records
