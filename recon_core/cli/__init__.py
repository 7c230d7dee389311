"""The `recon` command: a module a verb, with a click command called `command`, imported when asked for."""

from recon_core.cli.main import main

__all__ = ["main"]
