"""The hooks a plugin may implement. Arguments a hook does not need may be left out of its signature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    import click

    from recon_core.plugins import Registrar
    from recon_core.structures import LossValue, Observation, Prediction

hookspec = pluggy.HookspecMarker("recon")
hookimpl = pluggy.HookimplMarker("recon")


@hookspec
def recon_register(register: Registrar) -> None:
    """Name the parts this plugin brings: `register.method("name", "package.module:Class", summary="...")`."""


@hookspec
def recon_before_predict(method: str, observation: Observation) -> None:
    """Called with what a method is about to read."""


@hookspec
def recon_after_predict(method: str, observation: Observation, prediction: Prediction) -> None:
    """Called with what a method returned, before any fitting."""


@hookspec
def recon_export(reconstruction: Any, folder: Path) -> None:
    """Called when a Reconstruction was written to `folder`; may add files of its own there."""


@hookspec
def recon_command(cli: click.Group) -> None:
    """Add verbs: `cli.add_command(...)`. Called for `recon --help`, and for a verb recon itself lacks."""


@hookspec
def recon_train_step(method: str, step: int, loss: LossValue) -> None:
    """Called after every optimiser step of a training."""
