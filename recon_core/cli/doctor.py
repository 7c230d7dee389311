"""`recon doctor`: what works on this machine, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import click

from recon_core.catalogue import catalogue
from recon_core.cli.common import json_option, print_json, print_table
from recon_core.errors import ReconError
from recon_core.plugins import registry

LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "warp-lang",
    "ai-edge-litert",
    "pydantic",
    "pluggy",
    "lightning",
)


@dataclass(frozen=True)
class Check:
    """One line of the report. state: "ok", "missing" (can be had: see advice), or "broken"."""

    area: str
    name: str
    state: str
    detail: str = ""
    advice: str = ""


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Say what works here, what is missing, and how to get it.

    Renderers, bodies, detectors and methods are imported; files are compared with their sha256.
    """
    checks = list(examine())
    if as_json:
        print_json([asdict(check) for check in checks])
        return
    rows = [(c.area, c.name, c.state, "; ".join(t for t in (c.detail, c.advice) if t)) for c in checks]
    print_table(rows, ("what", "name", "state", ""))


def examine() -> Iterator[Check]:
    """All checks, in the order they are shown. None raises: what fails is a check that says so."""
    for area in (_versions, _devices, _plugins, _parts, _files):
        yield from _guarded(area)


def _guarded(area: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from area()
    except Exception as error:
        yield Check(area.__name__.strip("_"), "", "broken", f"{type(error).__name__}: {error}")


def _versions() -> Iterator[Check]:
    yield Check("version", "python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for name in ("recon-core", *LIBRARIES):
        try:
            yield Check("version", name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check("version", name, "missing", advice=f"pip install {name}")


def _devices() -> Iterator[Check]:
    import torch

    yield Check("device", "cpu", "ok", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            yield Check("device", f"cuda:{index}", "ok", f"{properties.name}, {memory}")
    else:
        yield Check("device", "cuda", "missing", "none is needed; everything runs on the cpu")
    if torch.backends.mps.is_available():
        yield Check("device", "mps", "ok")


def _plugins() -> Iterator[Check]:
    for plugin in registry().plugins:
        if plugin.error:
            yield Check("plugin", plugin.package, "broken", plugin.error, "recon plugins --explain")
        else:
            yield Check("plugin", plugin.package, "ok", plugin.version)


def _parts() -> Iterator[Check]:
    """Import every renderer, body, detector, fitter and method, and name those that are not installed."""
    known, listed = registry(), catalogue()
    for kind in ("renderer", "body", "detector", "fitter", "method"):
        for name in known.names(kind):
            try:
                # A part that needs a file of the user's may say that it is not here.
                missing = getattr(known.load(kind, name), "missing", None)
                advice = missing() if callable(missing) else ""
                yield Check(kind, name, "missing" if advice else "ok", known.entry(kind, name).package, advice)
            except ReconError as error:
                yield Check(kind, name, "broken", str(error))
    tables: dict[str, Any] = {"body": listed.bodies, "detector": listed.detectors, "method": listed.methods}
    for kind, table in tables.items():
        for name in sorted(set(table) - set(known.names(kind))):
            yield Check(kind, name, "missing", advice=table[name].how_to_get)


def _files() -> Iterator[Check]:
    from recon_core.assets import assets

    store = assets()
    for status in store.status():
        state = {"present": "ok", "missing": "missing", "damaged": "broken"}[status.state]
        advice = "" if state == "ok" else store.how_to_get(status.name)
        yield Check("file", status.name, state, status.problem or str(status.path or ""), advice)
