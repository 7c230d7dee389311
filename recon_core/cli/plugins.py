"""`recon plugins`: which packages were found, what each brings, and why one did not load."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import click

from recon_core.cli.common import json_option, print_json, print_table
from recon_core.plugins import KINDS, Plugin, Registry, registry


@click.command()
@click.option("--explain", is_flag=True, help="For each name: who provides it, from where, and why that one.")
@json_option
def command(explain: bool, as_json: bool) -> None:
    """List plugins, what they bring, and why one did not load."""
    known = registry()
    conflicts = [c for kind in KINDS for name in known.names(kind) if (c := known.conflict(kind, name))]
    if as_json:
        names = _explained(known) if explain else None
        rows = [_plugin_row(plugin) for plugin in known.plugins]
        print_json({"plugins": rows, "conflicts": conflicts} | ({"names": names} if explain else {}))
        return
    print_table(
        [(p.package, p.version, "error" if p.error else "ok", p.error or _brings(p)) for p in known.plugins],
        ("package", "version", "state", "brings"),
    )
    if explain:
        click.echo()
        header = ("kind", "name", "from", "target", "why")
        print_table([tuple(row[key] or "" for key in header) for row in _explained(known)], header)
        for plugin in known.plugins:
            if plugin.details:
                click.echo(f"\n{plugin.package}: {plugin.target}\n{plugin.details.rstrip()}")
    for conflict in conflicts:
        click.echo(f"conflict: {conflict}")


def _brings(plugin: Plugin) -> str:
    names = defaultdict(list)
    for entry in plugin.entries:
        names[entry.kind].append(entry.name)
    return "; ".join(f"{kind} {', '.join(sorted(brought))}" for kind, brought in names.items()) or "hooks only"


def _plugin_row(plugin: Plugin) -> dict[str, Any]:
    return {
        "package": plugin.package,
        "version": plugin.version,
        "target": plugin.target,
        "error": plugin.error,
        "entries": [{"kind": e.kind, "name": e.name, "target": e.target} for e in plugin.entries],
    }


def _explained(known: Registry) -> list[dict[str, str | None]]:
    rows: list[dict[str, str | None]] = []
    for kind in KINDS:
        for name in known.names(kind):
            first, *others = known.candidates(kind, name)
            why = known.why(kind, name)
            rows.append({"kind": kind, "name": name, "from": first.package, "target": first.target, "why": why})
            lost = "not used" if known.winner(kind, name) else "conflict"
            rows += [{"kind": kind, "name": name, "from": o.package, "target": o.target, "why": lost} for o in others]
    return rows
