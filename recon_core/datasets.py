"""Training data: weighted sources, mixed into batches that depend on nothing but the seed and the step.

A run's data is a list of sources, each a registered Dataset with a weight (`--data lsp-ext:DIR@0.5`). Step n of a
run always has the same batch: which subjects it holds, in which order, and how each is augmented follow from
(seed, n), however many processes and workers share the work, and whether the run was resumed or not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recon_core.errors import ReconError, TrainingError, UsageError
from recon_core.interfaces import Dataset, Settings
from recon_core.structures import Camera, Keypoints, Observation

MAX_EPOCH = 1_000_000
"""Samples of the longest epoch: sources that make their subjects up have no natural end."""

_CHECKED = 5000
"""Pictures of a set up to which all are decoded before a training begins; of larger sets only the headers are read."""


@dataclass(frozen=True)
class SourceSpec:
    """One `--data` argument: the registered dataset's name, where it lies, and its share of the samples."""

    name: str
    location: str | None = None
    weight: float | None = None

    @classmethod
    def parse(cls, text: str) -> SourceSpec:
        """Read "name[:location][@weight]". Raises UsageError when it is not of that form."""
        body, at, tail = text.rpartition("@")
        weight: float | None = None
        with contextlib.suppress(ValueError):
            weight = float(tail) if at else None
        if weight is None:
            body = text
        name, colon, location = body.partition(":")
        if not name or (colon and not location):
            raise UsageError(f"--data {text}: write it as name:FOLDER@WEIGHT, for example lsp-ext:data/lsp_ext@0.5")
        if weight is not None and not (math.isfinite(weight) and weight > 0):
            raise UsageError(f"--data {text}: the weight must be above 0")
        return cls(name, location or None, weight)


@dataclass(frozen=True)
class Source:
    """A dataset and its share of the samples, any unit."""

    name: str
    dataset: Dataset
    weight: float = 1.0


def load_sources(
    specs: Sequence[SourceSpec], settings: Callable[[str, type[Settings]], Settings] | None = None
) -> list[Source]:
    """The datasets of `--data` arguments. settings: (name, Config) -> the dataset's settings, defaults without it.

    Without weights a source counts by its length. Raises UsageError for unknown names and weights given to some
    sources only, TrainingError when a dataset cannot be read or is empty.
    """
    from recon_core.plugins import registry

    if len({spec.weight is None for spec in specs}) > 1:
        raise UsageError("--data: give every source a weight (name:FOLDER@0.5), or none of them")
    sources = []
    for spec in specs:
        found = registry().load("dataset", spec.name)
        dataset = found(spec.location, settings(spec.name, found.Config) if settings else found.Config())
        if len(dataset) == 0:
            where = f" in {spec.location}" if spec.location else ""
            raise TrainingError(f"--data {spec.name}: no subjects{where} with these settings")
        sources.append(Source(spec.name, dataset, spec.weight or float(len(dataset))))
    return sources


@dataclass(frozen=True)
class Field:
    """What a source gives under one name. shape None: texts."""

    shape: tuple[int, ...] | None
    dtype: torch.dtype | None

    def __str__(self) -> str:
        return "text" if self.shape is None else f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}"


class Mixture:
    """Batches of several sources.

    An epoch is the longest in which no source gives a subject twice (MAX_EPOCH samples at most); in it each source
    has its share of the samples, exactly but for rounding. A source goes through its subjects in a new order each
    time around, or draws them by its `sampling_weights`.

    Every batch holds the union of the sources' fields: tensors (B, ...), and lists of texts for "id" and "source".
    has_<field> (B,) is 1 where a subject's source gives that field and 0 where it does not; the field is then 0.

    Raises TrainingError when two sources give a field of different shapes, or the batch cannot be split.
    """

    def __init__(self, sources: Sequence[Source], batch_size: int, seed: int = 0) -> None:
        """batch_size: samples a step, over all processes."""
        self.sources, self.batch_size, self.seed = list(sources), batch_size, seed
        total = sum(source.weight for source in sources)
        self.shares = [source.weight / total for source in sources]
        longest = min(len(s.dataset) / share for s, share in zip(sources, self.shares, strict=True))
        self.steps_per_epoch = max(1, int(min(longest, MAX_EPOCH)) // batch_size)
        self.fields = _union([(s.name, _fields(_drawn(s.dataset, [0], [0]))) for s in sources])
        self._plan = lru_cache(maxsize=2)(self._planned)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_plan"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._plan = lru_cache(maxsize=2)(self._planned)

    def epoch(self, step: int) -> int:
        """Number of the epoch that step (from 0) is in, from 0."""
        return step // self.steps_per_epoch

    def chosen(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The samples of a step, over all processes: source, index in it, and seed of each."""
        plan = self._plan(self.epoch(step))
        at = (step % self.steps_per_epoch) * self.batch_size
        source, index, seed = (column[at : at + self.batch_size] for column in plan)
        return source, index, seed

    def batch(self, step: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
        """The part of step's batch that process `rank` of `world` works on: every world-th sample."""
        if self.batch_size % world:
            raise TrainingError(f"batch size {self.batch_size} cannot be split over {world} processes evenly")
        source, index, seed = (column[rank::world] for column in self.chosen(step))
        out: dict[str, Any] = {}
        for name, field in self.fields.items():
            if field.shape is None:
                out[name] = [""] * len(source)
            else:
                out[name] = torch.zeros((len(source), *field.shape), dtype=field.dtype)
                if not name.startswith("has_"):
                    out.setdefault(f"has_{name}", torch.zeros(len(source)))
        out["source"] = [self.sources[s].name for s in source]
        for number in np.unique(source):
            rows = np.flatnonzero(source == number)
            drawn = _drawn(self.sources[number].dataset, index[rows].tolist(), seed[rows].tolist())
            self._place(out, torch.from_numpy(rows), drawn, self.sources[number].name)
        return out

    def _place(self, out: dict[str, Any], rows: Tensor, drawn: Mapping[str, Any], name: str) -> None:
        given = _fields(drawn)
        for key, value in drawn.items():
            if self.fields.get(key) != given[key]:
                raise TrainingError(
                    f"data source {name}, {drawn['id'][0]}: field '{key}' is {given[key]}, "
                    f"where its first subject has {self.fields.get(key)}"
                )
            if isinstance(value, Tensor):
                out[key][rows] = value
                if f"has_{key}" in out and f"has_{key}" not in drawn:
                    out[f"has_{key}"][rows] = 1
            else:
                for row, text in zip(rows.tolist(), value, strict=True):
                    out[key][row] = text

    def _planned(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = self.steps_per_epoch * self.batch_size
        source = np.repeat(np.arange(len(self.sources)), _apportioned(self.shares, count))
        index = np.empty(count, np.int64)
        for number, entry in enumerate(self.sources):
            rows = np.flatnonzero(source == number)
            index[rows] = _subjects(entry.dataset, len(rows), epoch, (self.seed, number))
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(count)
        return source[order], index[order], generator.integers(2**63, size=count)


def _apportioned(shares: Sequence[float], count: int) -> np.ndarray:
    """`count` split by shares, to the nearest whole numbers (largest remainders)."""
    exact = np.asarray(shares) * count
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: count - whole.sum()]] += 1
    return whole


def _subjects(dataset: Dataset, count: int, epoch: int, seed: tuple[int, ...]) -> np.ndarray:
    """The subjects that a source gives in an epoch: the next `count` of an endless row of shuffles."""
    length, weights = len(dataset), dataset.sampling_weights
    if weights is not None:
        cumulative = np.cumsum(np.asarray(weights, np.float64))
        uniform = np.random.default_rng((*seed, epoch)).random(count) * cumulative[-1]
        return np.minimum(np.searchsorted(cumulative, uniform, side="right"), length - 1)
    if length > MAX_EPOCH:
        return np.random.default_rng((*seed, epoch)).integers(length, size=count)
    position = np.arange(epoch * count, (epoch + 1) * count)
    index = np.empty(count, np.int64)
    for around in range(position[0] // length, position[-1] // length + 1) if count else ():
        rows = position // length == around
        index[rows] = np.random.default_rng((*seed, around)).permutation(length)[position[rows] % length]
    return index


def _drawn(dataset: Dataset, indices: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
    """Subjects of one source, batched: tensors and lists of texts."""
    together = dataset.draw_batch(indices, seeds)
    if together is None:
        each = [dataset.draw(i, np.random.default_rng(s)) for i, s in zip(indices, seeds, strict=True)]
        together = {name: [subject[name] for subject in each] for name in each[0]}
    return {name: _stacked(value) for name, value in together.items()}


def _stacked(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value[0], str):
        return list(value)
    if isinstance(value[0], int | float):
        return torch.tensor(value, dtype=torch.float32 if isinstance(value[0], float) else None)
    return torch.stack([torch.as_tensor(one) for one in value])


def _fields(drawn: Mapping[str, Any]) -> dict[str, Field]:
    return {
        name: Field(tuple(value.shape[1:]), value.dtype) if isinstance(value, Tensor) else Field(None, None)
        for name, value in drawn.items()
    }


def _union(sources: Sequence[tuple[str, Mapping[str, Field]]]) -> dict[str, Field]:
    union: dict[str, Field] = {}
    first: dict[str, str] = {}
    for source, fields in sources:
        if "id" not in fields:
            raise TrainingError(f"data source {source}: its subjects have no field 'id'")
        for name, field in fields.items():
            if union.setdefault(name, field) != field:
                raise TrainingError(
                    f"data sources {first[name]} and {source} both give '{name}', but as {union[name]} and {field}: "
                    "choose settings that agree"
                )
            first.setdefault(name, source)
    return union


def crop_observation(batch: Mapping[str, Any], skeleton: str = "lsp14") -> Observation:
    """What a method reads, of a batch of crops: the crop is taken as the whole picture, so that a body in its camera
    is in the crop's camera.

    Reads image, K and, where they are, mask, and keypoints2d with its confidence, of `skeleton`. Rows whose source
    has no camera get that of a picture seen at about 53 degrees.
    """
    image = batch["image"]
    side = image.shape[-1]
    assumed = Camera.perspective(float(side), (side, side), batch=len(image)).K.to(image)
    K = torch.where(batch["has_K"][:, None, None] > 0, batch["K"], assumed)
    eye = torch.eye(3).to(K).expand(len(K), 3, 3)
    keypoints = None
    if "keypoints2d" in batch:
        keypoints = Keypoints(batch["keypoints2d"], batch["keypoints2d_confidence"], skeleton)
    whole = image.new_tensor([0.0, 0.0, side, side]).expand(len(image), 4)
    camera = Camera(K, eye, K.new_zeros(len(K), 3), (side, side))
    return Observation(camera, whole, image, eye[:, :2], batch.get("mask"), keypoints)


# -- for readers of data sets


def data_folder(name: str, location: str | Path | None) -> Path:
    """The folder of a data set. Raises UsageError when none was named, TrainingError when there is none."""
    if location is None:
        raise UsageError(f"--data {name}: needs a folder, as in --data {name}:FOLDER")
    folder = Path(location)
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder; --data {name} reads the data set from there")
    return folder


def check_pictures(name: str, files: Iterable[Path], decode: bool | None = None) -> None:
    """Look at every picture of a data set. decode: read the pixels too; None does so for sets up to 5,000.

    Raises TrainingError naming the first file that is missing or damaged and counting the rest.
    """
    paths = list(files)
    decode = len(paths) <= _CHECKED if decode is None else decode
    problems = [(path, problem) for path in paths if (problem := _picture_problem(path, decode))]
    if problems:
        path, problem = problems[0]
        rest = f", and {len(problems) - 1} more of {len(paths)} files" if len(problems) > 1 else ""
        raise TrainingError(f"{path}: {problem}{rest}; --data {name} needs the whole data set")


def _picture_problem(path: Path, decode: bool) -> str | None:
    try:
        with Image.open(path) as picture:
            if decode:
                picture.load()
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"damaged ({' '.join(str(error).split()) or type(error).__name__})"
    return None


def read_picture(path: Path) -> np.ndarray:
    """A picture of a data set as (H, W, 3) uint8 RGB. Raises TrainingError naming the file."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise TrainingError(f"{path}: {_picture_problem(path, True) or 'cannot be read'}") from None


@dataclass(frozen=True)
class Failure:
    """An error met while making a batch in a worker process, to be raised where the run is."""

    message: str


class Steps(torch.utils.data.Dataset):
    """Batches by step, for a DataLoader without batching of its own (batch_size=None)."""

    def __init__(self, mixture: Mixture, rank: int, world: int) -> None:
        self.mixture, self.rank, self.world = mixture, rank, world

    def __getitem__(self, step: int) -> dict[str, Any] | Failure:
        try:
            return self.mixture.batch(step, self.rank, self.world)
        except ReconError as error:
            # A DataLoader wraps an exception's text in that of its own: hand it over as a value.
            return Failure(str(error))
