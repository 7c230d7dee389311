"""`recon methods`: what there is to run, installed or not, whose it is and under which licence."""

from __future__ import annotations

from dataclasses import asdict
from importlib import metadata
from typing import Any

import click

from recon_core.catalogue import PERMISSIVE, Figure, MethodRecord, catalogue
from recon_core.cli.common import json_option, print_json, print_table
from recon_core.errors import unknown
from recon_core.plugins import Entry, registry


@click.command()
@click.argument("name", required=False)
@click.option(
    "--licence",
    type=click.Choice(["permissive"]),
    help="Only methods whose code and weights allow commercial use.",
)
@json_option
def command(name: str | None, licence: str | None, as_json: bool) -> None:
    """List methods, or show one: paper, licences, what it reads and gives, figures."""
    rows = {row["name"]: row for row in describe_all()}
    if name is not None:
        if name not in rows:
            raise unknown("method", name, rows)
        print_json(rows[name]) if as_json else _show(rows[name])
        return
    chosen = [row for row in rows.values() if licence is None or row["permissive"]]
    if as_json:
        print_json(chosen)
        return
    print_table([_table_row(row) for row in chosen], ("method", "state", "licence", "what it does"))


def describe_all() -> list[dict[str, Any]]:
    """Every method of the catalogue and of the installed plugins, by name."""
    known = registry()
    listed, registered = catalogue().methods, known.names("method")
    return [
        _describe(name, listed.get(name), known.candidates("method", name), known.conflict("method", name))
        for name in sorted({*listed, *registered})
    ]


def _describe(
    name: str, record: MethodRecord | None, entries: tuple[Entry, ...], conflict: str | None
) -> dict[str, Any]:
    entry = entries[0] if entries else None
    row: dict[str, Any] = {
        "name": name,
        "summary": (entry and entry.summary) or (record and record.title) or "",
        "installed": entry is not None,
        "package": entry.package if entry else record.package if record else "",
        "conflict": conflict,
    }
    # What the catalogue says holds for the package that it names, not for another of the same method name.
    if record and (entry is None or entry.package == record.package):
        known = asdict(record)
        row |= {key: value for key, value in known.items() if key not in ("title", "package", "install")}
        row |= {"permissive": record.permissive, "install": None if entry else record.how_to_get}
    elif entry:
        code = _distribution_licence(entry.package)
        weights = str(entry.facts.get("weights_licence", ""))
        row |= {
            "code_licence": code,
            "weights_licence": weights,
            "permissive": code in PERMISSIVE and weights in PERMISSIVE | {""},
            "inputs": [str(kind) for kind in entry.facts.get("inputs", ())],
            "outputs": [str(kind) for kind in entry.facts.get("outputs", ())],
            "install": None,
        }
    return row


def _distribution_licence(package: str) -> str:
    """SPDX expression in the package's own metadata, or ""."""
    try:
        return str(metadata.metadata(package).json.get("license_expression", ""))
    except metadata.PackageNotFoundError:
        return ""


def _table_row(row: dict[str, Any]) -> tuple[str, ...]:
    state = "conflict" if row["conflict"] else "installed" if row["installed"] else row["status"]
    state = "not installed" if state == "available" else state
    licence = row["code_licence"] or ("unknown" if row["installed"] else "-")
    if row["weights_licence"] not in ("", licence):
        licence += f"; weights {row['weights_licence']}"
    about = row["conflict"] or row["summary"]
    if row["inputs"] and row["outputs"]:
        about += f" ({', '.join(row['inputs'])} to {', '.join(row['outputs'])})"
    if state == "not installed":
        about += f": {row['install']}"
    return (row["name"], state, licence, about)


def _show(row: dict[str, Any]) -> None:
    click.echo(f"{row['name']}: {row['summary']}")
    if paper := row.get("paper"):
        click.echo(f"  paper      {paper['authors']}: {paper['title']}. {paper['venue']} {paper['year']}.")
    state = "installed" if row["installed"] else row["install"]
    for label, value in (
        ("package", f"{row['package']} ({state})"),
        ("reads", ", ".join(row["inputs"])),
        ("gives", ", ".join(row["outputs"])),
        ("bodies", ", ".join(row.get("bodies", ()))),
        ("code", row["code_licence"] or ("licence unknown" if row["installed"] else "")),
        ("weights", row["weights_licence"]),
        ("files", ", ".join(row.get("assets", ()))),
        ("conflict", row["conflict"]),
    ):
        if value:
            click.echo(f"  {label:<10} {value}")
    for label in ("reported", "measured"):
        if figures := row.get(label):
            click.echo(f"\n{label}")
            rows = [_figure_row(Figure(**figure)) for figure in figures]
            print_table(rows, ("  data", "metric", "value", "protocol", "source"))


def _figure_row(f: Figure) -> tuple[str, ...]:
    return (f"  {f.dataset}", f.metric, f"{f.value:g} {f.unit}".strip(), f.protocol or "-", f.source)
