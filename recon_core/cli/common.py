"""What several verbs share: the settings options and the forms of output."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--config` and `--set`; the command receives them as `configuration`, a `config.Configuration`."""

    @click.option("--config", "config_file", metavar="FILE", help="TOML file of settings, a table a part.")
    @click.option(
        "--set", "assignments", metavar="PART.NAME=VALUE", multiple=True, help="One setting; may be repeated."
    )
    @wraps(command)
    def with_configuration(*args: Any, config_file: str | None, assignments: tuple[str, ...], **rest: Any) -> Any:
        from recon_core.config import Configuration

        return command(*args, configuration=Configuration.read(config_file, assignments), **rest)

    return with_configuration


def print_json(value: Any) -> None:
    """Indented UTF-8 JSON on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Left-aligned columns; the last one wraps at the terminal's width."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = max(30, shutil.get_terminal_size((120, 24)).columns - indent)
    for row in (header, *rows):
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        lines = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        click.echo("\n".join([start + lines[0], *(" " * indent + line for line in lines[1:])]).rstrip())
