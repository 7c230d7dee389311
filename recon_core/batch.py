"""Many photos into one output folder: names, resuming, going on past bad files, and keeping two cores busy."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from recon_core.assets import sha256_of
from recon_core.config import RUN
from recon_core.errors import InputError, NoPersonError, OutputError, ReconError
from recon_core.export.save import RESULT, is_result, unwritable
from recon_core.images import Photo
from recon_core.pipeline import Pipeline
from recon_core.reconstruction import Reconstruction
from recon_core.structures import Detection

AHEAD = 2
"""Photos read and detected, and results being written, beside the one that is being reconstructed."""

_IMMATERIAL = frozenset({"formats", "renderer", "device"})
"""Settings of a run that do not change what is found."""

Status = Literal["done", "skipped", "nobody", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one input. path: the photo, None for an input that led to none.

    folder: of the result, where there is one. message: what the user should know. error: what stopped a "failed" or
    "nobody" one. found: subjects in the result.
    """

    path: Path | None
    status: Status
    folder: Path | None = None
    message: str = ""
    found: int = 0
    error: ReconError | None = None


def result_names(paths: Sequence[Path]) -> list[str]:
    """The folder of each photo's result: its name without ending, "a" for x/a.jpg.

    Photos that would share one get their full name ("a.jpg", "a.png"), and those that still do, the folders in which
    they differ ("x_a.jpg", "y_a.jpg"). Names that differ only in case count as the same.
    """
    parents = [path.absolute() for path in paths]
    common = Path(os.path.commonpath([p.parent for p in parents])) if parents else Path()
    stages = (
        lambda i: paths[i].stem,
        lambda i: paths[i].name,
        lambda i: "_".join(parents[i].relative_to(common).parts),
    )
    names = [stages[0](i) for i in range(len(paths))]
    for stage in stages[1:]:
        count = Counter(name.casefold() for name in names)
        names = [stage(i) if count[name.casefold()] > 1 else name for i, name in enumerate(names)]
    # a/b_c.jpg and a_b/c.jpg both become a_b_c.jpg.
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):
        seen[name.casefold()] += 1
        names[i] = name if seen[name.casefold()] == 1 else f"{name}-{seen[name.casefold()]}"
    return names


def check_output(folder: Path) -> None:
    """Make `folder` and see that it can be written, before any work. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


def process(pipeline: Pipeline, paths: Sequence[Path], folder: Path, overwrite: bool = False) -> Iterator[Outcome]:
    """Reconstruct each photo into `folder`, and tell what became of each, in order.

    A photo whose result is there already is skipped unless `overwrite`. One that fails stops no other. Reading and
    detecting, reconstructing, and writing go on at once for successive photos, each in a thread of its own.

    Raises OutputError when nothing more can be written. When stopped from outside (Ctrl-C), results that are being
    written are finished and no others are begun.
    """
    steps = _Steps(pipeline, overwrite)
    jobs = [_Job(path, folder / name) for path, name in zip(paths, result_names(paths), strict=True)]
    reading: deque[Future[_Seen | Outcome]] = deque()
    writing: deque[Future[Outcome]] = deque()
    share = max(1, (os.cpu_count() or 1) // 2)
    reader, writer = (ThreadPoolExecutor(1, name, _use_threads, (1,)) for name in ("recon-read", "recon-write"))
    before = _use_threads(share)
    try:
        for i in range(len(jobs)):
            reading += [reader.submit(steps.see, job) for job in jobs[i + len(reading) : i + AHEAD]]
            made = steps.reconstruct(reading.popleft().result())
            writing.append(writer.submit(steps.write, made))
            while len(writing) > AHEAD or (writing and writing[0].done()):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()
    finally:
        reader.shutdown(cancel_futures=True)
        writer.shutdown(cancel_futures=True)
        _use_threads(before)


def _use_threads(count: int) -> int:
    """Let this thread's torch operations use `count` cores; returns what it was. More threads than cores wait on
    each other in barriers, which costs far more than it gains."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    return before


@dataclass(frozen=True)
class _Job:
    path: Path
    folder: Path


@dataclass(frozen=True)
class _Seen:
    job: _Job
    photo: Photo
    digest: str
    detections: Sequence[Detection]


@dataclass(frozen=True)
class _Made:
    job: _Job
    reconstruction: Reconstruction


class _Steps:
    """The stages of one photo. Each passes on an Outcome that an earlier one came to."""

    def __init__(self, pipeline: Pipeline, overwrite: bool) -> None:
        self._pipeline, self._overwrite = pipeline, overwrite
        self._unwritable: OutputError | None = None

    def see(self, job: _Job) -> _Seen | Outcome:
        with _judged(job) as verdict:
            if not self._overwrite and is_result(job.folder):
                return self._already(job)
            photo, digest = self._pipeline.read(job.path)
            return _Seen(job, photo, digest, self._pipeline.detect(photo))
        return verdict[0]

    def reconstruct(self, seen: _Seen | Outcome) -> _Made | Outcome:
        if isinstance(seen, Outcome):
            return seen
        with _judged(seen.job) as verdict:
            return _Made(seen.job, self._pipeline.reconstruct(seen.photo, seen.digest, seen.detections))
        return verdict[0]

    def write(self, made: _Made | Outcome) -> Outcome:
        if self._unwritable is not None:
            raise self._unwritable
        if isinstance(made, Outcome):
            return made
        job, result = made.job, made.reconstruction
        with _judged(job) as verdict:
            settings = self._pipeline.settings
            try:
                result.save(job.folder, settings.formats, settings.renderer, self._overwrite)
            except OutputError as error:
                self._unwritable = error
                raise
            found = len(result.people) + len(result.objects) + len(result.images)
            return Outcome(job.path, "done", job.folder, found=found)
        return verdict[0]

    def _already(self, job: _Job) -> Outcome:
        """A result is there: of this photo and these settings, of this photo, or of another one."""
        try:
            record = json.loads((job.folder / RESULT).read_text(encoding="utf-8"))
            digest, settings, method = record["image_sha256"], record["settings"], record["method"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{job.folder}: its {RESULT} cannot be read; --overwrite replaces it") from None
        if digest != sha256_of(job.path):
            raise InputError(
                f"{job.path}: {job.folder} holds the result of another picture; choose another folder with -o, "
                "or --overwrite replaces it"
            )
        note = ""
        if material(settings) != material(self._pipeline.used_settings):
            note = f"{job.folder} was made by {method} with other settings; --overwrite replaces it"
        return Outcome(job.path, "skipped", job.folder, note)


@contextmanager
def _judged(job: _Job) -> Iterator[list[Outcome]]:
    """Turn what is raised into an Outcome, left in the list. Only a full or lost disk is for all photos alike."""
    verdict: list[Outcome] = []
    try:
        yield verdict
    except OutputError:
        raise
    except NoPersonError as error:
        verdict.append(Outcome(job.path, "nobody", message=str(error), error=error))
    except ReconError as error:
        verdict.append(Outcome(job.path, "failed", message=_named(job.path, str(error)), error=error))
    except Exception as error:
        message = f"{job.path}: unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        unexpected = ReconError(message)
        unexpected.__cause__ = error
        verdict.append(Outcome(job.path, "failed", message=message, error=unexpected))


def _named(path: Path, message: str) -> str:
    """The message, with the photo it is about."""
    return message if str(path) in message else f"{path}: {message}"


def material(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what is found, as JSON gives them back."""
    plain = json.loads(json.dumps(settings))
    return plain | {RUN: {k: v for k, v in plain.get(RUN, {}).items() if k not in _IMMATERIAL}}
