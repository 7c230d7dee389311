"""`recon train`: one training loop for every method."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recon_core.cli.common import settings_options

if TYPE_CHECKING:
    from recon_core.config import Configuration
    from recon_core.interfaces import Method, Settings
    from recon_core.training import TrainingSettings


@click.command()
@click.option("--method", required=True, metavar="NAME", help="What to train; `recon methods` lists them.")
@click.option(
    "--data",
    "data",
    required=True,
    multiple=True,
    metavar="NAME[:FOLDER][@SHARE]",
    help="A data set and its share of the samples; may be repeated.",
)
@click.option("--output", required=True, metavar="FOLDER", help="The run's log, checkpoints and weights.")
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder.")
@click.option("--weights", metavar="FILE", help="Begin with these weights (.safetensors).")
@click.option("--body", metavar="NAME", help="Body model.  [default: the method's]")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Steps in all.  [default: 10000]")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Samples a step, over all devices.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="[default: 0]")
@click.option("--precision", metavar="NAME", help="32-true, 16-mixed or bf16-mixed.  [default: 32-true]")
@click.option("--gradient-clip", type=float, metavar="NORM", help="Largest gradient norm.  [default: no limit]")
@click.option("--accelerator", metavar="NAME", help="cpu, cuda or mps.  [default: auto]")
@click.option("--devices", type=click.IntRange(min=1), metavar="N", help="Devices on each node.  [default: 1]")
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="Machines.  [default: 1]")
@click.option("--workers", type=click.IntRange(min=0), metavar="N", help="Data processes for each device.")
@click.option("--checkpoint-every", type=click.IntRange(min=1), metavar="N", help="Steps.  [default: 1000]")
@settings_options
def command(
    method: str,
    data: tuple[str, ...],
    output: str,
    resume: bool,
    weights: str | None,
    body: str | None,
    configuration: Configuration,
    **options: Any,
) -> int:
    """Train a method.

    Settings of the method and of each data set are set by their names (--set spin.trunk=resnet50,
    --set lsp-ext.rotation=45), those of the run as run.log_every. The output folder holds log.csv, TensorBoard
    events, pictures, checkpoints, and at the end weights.safetensors. Stopped by SIGTERM or Ctrl-C, the run is
    saved first; --resume goes on from the last checkpoint exactly as if it had never stopped.

    Exit codes: 0 done, 1 something failed, 2 the call is wrong, 128 + n stopped by signal n.
    """
    from recon_core.config import RUN
    from recon_core.datasets import SourceSpec, load_sources
    from recon_core.errors import UsageError
    from recon_core.plugins import registry
    from recon_core.training import TrainingSettings, train
    from recon_core.training.checkpoints import load_weights

    if resume and weights:
        raise UsageError("--weights begins a run, --resume goes on with one: drop one of them")
    found = registry().load("method", method)
    specs = [SourceSpec.parse(text) for text in data]
    settings = configuration.settings(RUN, TrainingSettings, **options)
    configuration.check([method, *(spec.name for spec in specs)])
    sources = load_sources(specs, lambda name, model: _data_settings(configuration, name, model, found))
    learner = _method(found, configuration.settings(method, found.Config), body, settings)
    if weights:
        load_weights(learner, Path(weights))
    result = train(learner, sources, output, settings, method, resume)
    if result.rank == 0:
        said = f"stopped by {result.stopped} at step {result.step}; go on with --resume"
        done = f"{output}: {result.step} steps, weights in {Path(output) / 'weights.safetensors'}"
        click.echo(said if result.stopped else done, err=True)
    return 128 + signal.Signals[result.stopped].value if result.stopped else 0


def _data_settings(configuration: Configuration, name: str, model: type[Settings], method: type[Method]) -> Settings:
    """A data set's settings; its crops are cut as the method wants them unless the user says otherwise."""
    config = configuration.settings(name, model)
    wanted = {field: getattr(method, field) for field in ("crop_size", "crop_margin") if field in model.model_fields}
    return config.model_copy(update={k: v for k, v in wanted.items() if k not in config.model_fields_set})


def _method(found: type[Method], config: Settings, body: str | None, settings: TrainingSettings) -> Method:
    """The method with new weights, the same ones for the same seed."""
    import torch

    from recon_core.plugins import registry

    torch.manual_seed(settings.seed)
    name = body or found.body or ("free" if "body" in found.outputs else None)
    return found(config, registry().create("body", name) if name else None)
