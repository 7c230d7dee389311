"""The command line's frame: finds the verb, and turns every error into one line and an exit code.

Exit codes: 0 done, 1 something could not be done, 2 the call is wrong, 3 nobody found in any picture, 130
interrupted.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any

import click

from recon_core import __version__
from recon_core.errors import PluginError, ReconError, UsageError, nearest

VERBS = {
    "run": "Reconstruct the people or objects in photos.",
    "fit": "Fit a body to joints, a mesh or a scan.",
    "train": "Train a method.",
    "eval": "Measure a method on a data set.",
    "reproduce": "Run a published evaluation and print its figures beside the paper's.",
    "view": "Look at a result in an interactive viewer.",
    "assets": "List, fetch, add and verify weight and body files.",
    "methods": "List methods, installed or not, with paper and licences.",
    "plugins": "List plugins, what they bring, and why one did not load.",
    "doctor": "Say what works here, what is missing, and how to get it.",
    "new": "Write a new plugin to start from.",
}
"""What `recon --help` says of each verb without importing it. A verb exists if its module does."""


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().ensure_object(dict)["debug"] = True


def _prefer(_ctx: click.Context, _param: click.Parameter, choices: tuple[str, ...]) -> None:
    if choices:
        from recon_core.plugins import registry

        for choice in choices:
            name, equals, package = choice.partition("=")
            if not (equals and name and package):
                raise UsageError(f"--plugin {choice}: write it as name=package")
            registry().prefer(name, package)


def _common_options() -> list[click.Parameter]:
    """What every verb accepts."""
    return [
        click.Option(
            ["--plugin"],
            metavar="NAME=PACKAGE",
            multiple=True,
            expose_value=False,
            callback=_prefer,
            help="Which package provides NAME, where several do.",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=_debug,
            help="Show the traceback of an error.",
        ),
    ]


class Verbs(click.Group):
    """Verbs by module, imported one at a time, and those of plugins (`recon_command`)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        own = [verb for verb in VERBS if importlib.util.find_spec(f"recon_core.cli.{verb}")]
        return own + sorted(set(self.commands) - set(own))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in VERBS and importlib.util.find_spec(f"recon_core.cli.{name}"):
            command = importlib.import_module(f"recon_core.cli.{name}").command
        else:
            self._ask_plugins()
            command = self.commands.get(name)
        if command is None:
            return None
        # A copy: the module's own object stays as its author wrote it.
        command = copy.copy(command)
        command.params = [*command.params, *_common_options()]
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UsageError(f"unknown command '{args[0]}'{nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        try:
            self._ask_plugins()
        except PluginError as error:
            click.echo(f"recon: warning: {error}", err=True)
        rows = [(n, VERBS.get(n) or self.commands[n].get_short_help_str()) for n in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _ask_plugins(self) -> None:
        from recon_core.plugins import registry

        registry().call("recon_command", cli=self)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="recon")
@click.option("--debug", is_flag=True, expose_value=False, callback=_debug, help="Show the traceback of an error.")
def cli() -> None:
    """3D reconstructions of people and objects from photos, by published methods.

    Start with: recon run --method prohmr photo.jpg
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Errors are one line on stderr."""
    state: dict[str, Any] = {"debug": False}
    try:
        code = cli.main(arguments, prog_name="recon", standalone_mode=False, obj=state)
        # Written here, where a closed pipe can still be answered.
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except ReconError as error:
        _say(str(error), state)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        _say(error.format_message(), state)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted", state)
        return 130
    except BrokenPipeError:
        # Whoever read our output has closed it (`recon methods | head`); nothing is left to be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        kept = "" if state["debug"] else f"; {_keep_traceback()}"
        _say(f"unexpected {type(error).__name__}: {error}{kept}", state)
        return 1


def _say(message: str, state: dict[str, Any]) -> None:
    if state["debug"]:
        click.echo(traceback.format_exc(), err=True, nl=False)
    click.echo(f"recon: error: {' '.join(message.split())}", err=True)


def _keep_traceback() -> str:
    """Where the traceback is now, for the user to read or to send."""
    text = traceback.format_exc()
    try:
        with tempfile.NamedTemporaryFile("w", prefix="recon-", suffix=".log", delete=False) as file:
            file.write(text)
        return f"the traceback is in {file.name}"
    except OSError:
        return "--debug shows the traceback"
