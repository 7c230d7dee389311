"""Checkpoints: folders that appear under their name whole or not at all, and run no code when read.

checkpoints/step-00001000/
    weights.safetensors     the method's parameters and buffers, without its body model's
    training.pt             optimizers, schedules and loss scaler (read by torch.load with weights_only)
    process-0.pt            what the method keeps itself, of each process
    checkpoint.json         method, its version and settings, the run's settings, the step; written last
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from recon_core.assets import load_safetensors
from recon_core.errors import OutputError, TrainingError
from recon_core.interfaces import Method

FORMAT = 1
_FOLDER = re.compile(r"step-(\d{8,})")
_BODY = "body_model."


@dataclass(frozen=True)
class Identity:
    """What a run trains, and on what: a run is resumed only by the same.

    package, version: the distribution that brings the method, "" where it is not registered. config: its settings.
    data: of each source its name, number of subjects, weight and settings. exact: the run's settings that its
    numbers follow from.
    """

    method: str
    package: str
    version: str
    config: Mapping[str, Any]
    data: tuple[Mapping[str, Any], ...]
    processes: int
    exact: Mapping[str, Any]


def newest(output: Path) -> Path | None:
    """The last complete checkpoint of a run."""
    found = [p for p in (output / "checkpoints").glob("step-*") if _FOLDER.fullmatch(p.name) and p.is_dir()]
    return max(found, key=lambda path: int(path.name[5:]), default=None)


def folder_of(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:08d}"


def partial_of(output: Path, step: int) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return output / "checkpoints" / f".partial-{step:08d}"


def weights_of(method: Method) -> dict[str, Tensor]:
    """Parameters and buffers on the CPU. The body model has a file, and a licence, of its own."""
    state = method.state_dict()
    return {name: v.detach().cpu().clone() for name, v in state.items() if not name.startswith(_BODY)}


def load_weights(method: Method, path: Path) -> None:
    """Take parameters and buffers from a safetensors file.

    Raises AssetError when it cannot be read and TrainingError when it is of another method or other settings.
    """
    given, own = load_safetensors(path), method.state_dict()
    wanted = {name: value for name, value in own.items() if not name.startswith(_BODY)}
    if missing := sorted(wanted.keys() - given.keys()):
        raise TrainingError(f"{path}: not weights of this method: lacks '{missing[0]}'{_more(missing)}")
    if extra := sorted(given.keys() - wanted.keys()):
        raise TrainingError(f"{path}: not weights of this method: has '{extra[0]}'{_more(extra)}")
    for name, value in wanted.items():
        if given[name].shape != value.shape:
            shapes = f"{list(given[name].shape)}, here {list(value.shape)}"
            raise TrainingError(f"{path}: '{name}' is {shapes}: the method's settings differ")
    method.load_state_dict(given, strict=False)


def write_process(folder: Path, rank: int, state: Mapping[str, Any]) -> None:
    """One process's own file. The folder is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    _save(dict(state), folder / f"process-{rank}.pt")


def write_shared(
    folder: Path, weights: Mapping[str, Tensor], training: Mapping[str, Any], description: Mapping[str, Any]
) -> None:
    """The files that all processes share, by one of them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), folder / "weights.safetensors")
    _synchronise(folder / "weights.safetensors")
    _save(dict(training), folder / "training.pt")
    (folder / "checkpoint.json").write_text(json.dumps({"format": FORMAT} | dict(description), indent=2) + "\n")
    _synchronise(folder / "checkpoint.json")


def export_weights(checkpoint: Path, output: Path) -> None:
    """Put the checkpoint's weights in the run's own folder: the result of a finished run."""
    partial = output / ".partial-weights"
    shutil.copyfile(checkpoint / "weights.safetensors", partial)
    partial.replace(output / "weights.safetensors")


def publish(partial: Path, final: Path, keep: int) -> None:
    """Give a written checkpoint its name, and delete all but the `keep` newest."""
    _synchronise(partial)
    if final.exists():  # of an earlier end at the same step, so the same numbers
        shutil.rmtree(final)
    partial.rename(final)
    _synchronise(final.parent)
    complete = sorted(p for p in final.parent.glob("step-*") if _FOLDER.fullmatch(p.name))
    for old in complete[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def read_description(folder: Path, identity: Identity) -> dict[str, Any]:
    """checkpoint.json, held to what this run is.

    Raises TrainingError when it cannot be read or is of another format, method, version, data or settings.
    """
    file = folder / "checkpoint.json"
    try:
        described = json.loads(file.read_text())
        found = described["format"], described["step"], described["window"], described["identity"]
        known = {name: found[3][name] for name in vars(identity)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{file}: not the description of a checkpoint ({error})") from None
    if found[0] != FORMAT:
        raise TrainingError(f"{folder}: checkpoint of format {found[0]}, this recon reads format {FORMAT}")
    here = json.loads(json.dumps(vars(identity)))
    if known["method"] != here["method"]:
        raise TrainingError(f"{folder}: checkpoint of method '{known['method']}', not of '{here['method']}'")
    if _minor(known["version"]) != _minor(here["version"]):
        raise TrainingError(
            f"{folder}: checkpoint of {known['package']} {known['version']}, installed is {here['version']}; install "
            "that version, or begin a new run with --weights from its weights.safetensors"
        )
    for part, label in (("config", f"{here['method']}."), ("exact", "run.")):
        for name in sorted(known[part].keys() | here[part].keys()):
            before, now = known[part].get(name), here[part].get(name)
            if before != now:
                raise TrainingError(
                    f"{folder}: the run has {label}{name}={before}, not {now}; a resumed run keeps its settings"
                )
    if known["data"] != here["data"]:
        raise TrainingError(f"{folder}: the run's data are {_in_words(known['data'])}, not {_in_words(here['data'])}")
    if known["processes"] != here["processes"]:
        raise TrainingError(f"{folder}: the run has {known['processes']} processes, not {here['processes']}")
    return described


def read_state(path: Path) -> dict[str, Any]:
    """A .pt file of a checkpoint. Only tensors and plain values are read, nothing is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path}: missing; delete this checkpoint's folder to resume from an older one") from None
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise TrainingError(
            f"{path}: damaged ({reason}); delete this checkpoint's folder to resume from an older one"
        ) from None


def unwritable(output: Path, error: OSError) -> OutputError:
    """The line for a run's folder that cannot be written."""
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return OutputError(f"{output}: cannot be written ({reason}); make room or choose another --output")


def _save(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)
    _synchronise(path)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _in_words(data: list[dict[str, Any]]) -> str:
    sources = []
    for source in data:
        settings = ", ".join(f"{name}={value}" for name, value in source["config"].items())
        sources.append(f"{source['name']}@{source['weight']:g} ({source['subjects']} subjects; {settings})")
    return " + ".join(sources)


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
