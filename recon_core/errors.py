"""Errors a user can act on.

Every error that recon raises on purpose is a `ReconError`: its message is one line that names the file or
setting, says what is wrong and what to do. The command line prints that line and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ReconError(Exception):
    """Base of all errors raised on purpose. The message is a single line meant for the user."""

    exit_code = 1


class UsageError(ReconError):
    """The call itself is wrong: an unknown name, option or setting."""

    exit_code = 2


class InputError(ReconError):
    """A file given by the user cannot be used (missing, unreadable, of the wrong kind)."""


class OutputError(ReconError):
    """Results cannot be written: no permission, not a folder, disk full."""


class NoPersonError(ReconError):
    """The detector found nobody in the picture."""

    exit_code = 3


class AssetError(ReconError):
    """A weight or body file is missing, damaged, unsafe, or not allowed by its licence."""


class PluginError(ReconError):
    """A plugin could not be imported, registered, or does not fulfil its interface."""


class EvidenceError(ReconError):
    """What was observed is not enough, or not usable, for a fit."""


class TrainingError(ReconError):
    """A training run cannot start or had to stop (bad checkpoint, NaN loss, broken data)."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the closest of `known`, or the list itself when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else "; none is installed"


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a `name` that is not among the `known` ones of this `kind`."""
    return UsageError(f"unknown {kind} '{name}'{nearest(name, known)}")
