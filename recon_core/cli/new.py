"""`recon new plugin`: a package to start from, complete with tests."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shutil
import string
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click

from recon_core.errors import OutputError, UsageError
from recon_core.plugins import registry

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


@dataclass(frozen=True)
class Kind:
    """What differs between the packages of two kinds. setting: an assignment that its README shows."""

    part: str
    description: str
    summary: str
    call: str
    setting: str


KINDS = {
    "body": Kind(
        part="method",
        description="A method that gives a body",
        summary="The mean body facing the camera, as tall as the box",
        call="recon run --method {name} photo.jpg",
        setting="height=1.8",
    ),
    "object": Kind(
        part="method",
        description="A method that gives the mesh of an object",
        summary="A cuboid that fills the box, in the colour of what is there",
        call="recon run --method {name} --box 40,30,200,160 photo.jpg",
        setting="height=0.8",
    ),
    "image": Kind(
        part="method",
        description="A method that makes a picture",
        summary="The subject in few shades",
        call="recon run --method {name} photo.jpg",
        setting="shades=3",
    ),
    "fit": Kind(
        part="fitter",
        description="A fitter",
        summary="Moves bodies onto the joints detected, without turning or bending them",
        call="recon run --fitter {name} photo.jpg",
        setting="confidence=0.5",
    ),
}


@click.group()
def command() -> None:
    """Write a new plugin to start from."""


@command.command()
@click.argument("package", metavar="PACKAGE")
@click.option("--kind", type=click.Choice(list(KINDS)), default="body", show_default=True, help="What it gives.")
@click.option("--name", metavar="NAME", help="What users call it by.  [default: PACKAGE without recon-]")
@click.option("-o", "--output", default=".", metavar="FOLDER", help="The package's folder is put in here.")
def plugin(package: str, kind: str, name: str | None, output: str) -> None:
    """Write a package that adds a method (or a fitter) to recon, with tests.

    PACKAGE is what pip will call it: lower-case words joined by '-', for example my-method. It works as written:
    install it with `pip install -e PACKAGE`, then change one function.
    """
    folder = create_plugin(package, kind, name, Path(output))
    chosen = name or _registered(package)
    click.echo(f"{folder}: written. Next:")
    click.echo(f"  pip install -e {folder}")
    click.echo(f"  {KINDS[kind].call.format(name=chosen)}")
    click.echo(f"  pytest {folder / 'tests'} --recon-plugin {package.replace('-', '_')}")


def create_plugin(package: str, kind: str, name: str | None = None, parent: Path = Path()) -> Path:
    """Write the package below `parent` and return its folder, which appears when it is whole.

    Raises UsageError for a name that cannot be used or is taken, OutputError where nothing can be written.
    """
    folder = parent / package
    name = name or _registered(package)
    for option, value in (("PACKAGE", package), ("--name", name)):
        if not _NAME.fullmatch(value):
            raise UsageError(f"{option} '{value}': write lower-case words joined by '-', beginning with a letter")
    module = package.replace("-", "_")
    if folder.exists():
        raise UsageError(f"{folder}: is there already; choose another name, or another place with -o")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or importlib.util.find_spec(module):
        raise UsageError(f"PACKAGE '{package}': Python has a '{module}' of its own or installed; choose another name")
    known = registry()
    part = KINDS[kind].part
    if name in known.names(part):
        owner = known.candidates(part, name)[0].package
        raise UsageError(f"{part} '{name}' is brought by {owner}; choose another name")
    if not parent.is_dir():
        raise OutputError(f"{parent}: no such folder; make it first, or choose another with -o")
    try:
        unfinished = Path(tempfile.mkdtemp(prefix=".recon-new-", dir=parent))
    except OSError as error:
        raise OutputError(f"{parent}: cannot be written to ({error.strerror})") from error
    try:
        for path, text in _files(package, module, kind, name).items():
            file = unfinished / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        unfinished.chmod(0o777 & ~_umask())
        os.rename(unfinished, folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _registered(package: str) -> str:
    return package.removeprefix("recon-")


def _files(distribution: str, package: str, kind: str, name: str) -> dict[str, str]:
    """Path in the package's folder -> text."""
    facts = KINDS[kind]
    module = facts.part
    values = {
        "distribution": distribution,
        "package": package,
        "kind": kind,
        "name": name,
        "naming": "" if name == _registered(distribution) else f" --name {name}",
        "part": facts.part,
        "module": module,
        "class_name": "".join(word.capitalize() for word in re.split("[-_]", name)),
        "description": facts.description,
        "summary": facts.summary,
        "command": facts.call.format(name=name),
        "setting": facts.setting,
    }
    sources = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{package}/__init__.py": "__init__.py",
        f"{package}/{module}.py": f"{kind}.py",
        f"tests/test_{module}.py": f"test_{kind}.py",
    }
    templates = resources.files("recon_core.templates") / "plugin"
    return {
        path: string.Template((templates / f"{source}.txt").read_text(encoding="utf-8")).substitute(values)
        for path, source in sources.items()
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
