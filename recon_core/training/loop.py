"""The training loop: every method, one or several processes, resumable to the last bit.

All that is random at a step follows from (seed, step, process): the batch (recon_core.datasets) and the global
generators, which are seeded anew at every step. So a run that is resumed from any checkpoint goes on exactly as it
would have, without any generator's state being kept.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from recon_core.datasets import Failure, Mixture, Source, Steps
from recon_core.errors import PluginError, TrainingError, UsageError
from recon_core.interfaces import Method
from recon_core.plugins import registry
from recon_core.structures import LossValue
from recon_core.training import checkpoints
from recon_core.training.checkpoints import Identity
from recon_core.training.logs import RunLog, Window
from recon_core.training.settings import TrainingResult, TrainingSettings
from recon_core.training.signals import StopSignals, in_worker


def train(
    method: Method,
    sources: Sequence[Source],
    output: str | Path,
    settings: TrainingSettings,
    name: str,
    resume: bool = False,
) -> TrainingResult:
    """Train `method` in place and leave log, checkpoints and weights.safetensors in `output`.

    name: the method's registered name. With several devices every process makes this same call (Fabric starts the
    others by running the program again, unless torchrun did). On SIGTERM or SIGINT a checkpoint is written and
    `stopped` set.

    Raises TrainingError when the data do not fit together, for a loss or gradient that is not finite (the batch's
    ids are in output/not-finite-*.json), when `output` holds a run and resume is False or the other way round, or
    its checkpoint is of another method, version, settings or data; OutputError when it cannot be written;
    UsageError for settings that cannot be had.
    """
    return _Run(method, sources, Path(output), settings, name, resume).run()


class _Turn(nn.Module):
    """A method's training_step as a module's forward, which is what Fabric and DDP wrap.

    The batch is set, not passed: mixed precision would round what is passed, pixel coordinates included.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        self.batch: Mapping[str, Any] = {}

    def forward(self, step: int, *optimizer: str) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.method.training_step(self.batch, step, *optimizer)
        return loss.per_sample, dict(loss.terms)


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        method: Method,
        sources: Sequence[Source],
        output: Path,
        settings: TrainingSettings,
        name: str,
        resume: bool,
    ) -> None:
        self.method, self.output, self.settings, self.name, self.resume = method, output, settings, name, resume
        if type(method).training_step is Method.training_step:
            raise UsageError(f"method '{name}' cannot be trained: it defines no training_step")
        self.optimizers = dict(method.configure_optimizers(settings.steps))
        self.schedulers = dict(method.configure_schedulers(self.optimizers, settings.steps))
        self.fabric = _fabric(settings, several_optimizers=len(self.optimizers) > 1)
        self.fabric.launch()
        self.mixture = Mixture(sources, settings.batch_size, settings.seed)
        if settings.batch_size % self.fabric.world_size:
            raise TrainingError(
                f"batch_size {settings.batch_size} cannot be split over {self.fabric.world_size} processes evenly"
            )
        exact = {field: getattr(settings, field) for field in TrainingSettings.EXACT}
        package, version = _distribution(name)
        config = method.config.model_dump(mode="json")
        data = tuple(_described(source) for source in sources)
        self.identity = Identity(name, package, version, config, data, self.fabric.world_size, exact)
        self.step, self.loss = 0, float("nan")
        self.window = Window()

    def run(self) -> TrainingResult:
        self._begin()
        turn = _Turn(self.method.train())
        wrapped, *optimizers = self.fabric.setup(turn, *self.optimizers.values())
        self.wrapped, self.turn = wrapped, turn
        self.stepping = dict(zip(self.optimizers, optimizers, strict=True))
        with StopSignals() as signals:
            if self.resume:
                self._restore()
            else:
                _seed(self.settings.seed, -1, self.fabric.global_rank)
                self.method.before_training(self.mixture)
                self.method.train()
                self._save()
            log = self._open_log()
            try:
                stopped = self._loop(log, signals)
            finally:
                if log:
                    log.close()
        checkpoint = checkpoints.folder_of(self.output, self.step)
        return TrainingResult(self.step, self.loss, checkpoint, stopped, self.fabric.global_rank)

    def _begin(self) -> None:
        """Look at the output folder before any work is done."""
        found = checkpoints.newest(self.output)
        if self.resume and found is None:
            raise TrainingError(f"{self.output}: holds no checkpoint to resume from; leave out --resume to begin")
        if not self.resume and found is not None:
            raise TrainingError(
                f"{self.output}: holds a run already (step {int(found.name[5:])}); go on with --resume, "
                "or choose another --output"
            )
        # Every process has looked before one of them writes.
        self.fabric.barrier()
        with self._writing():
            if self.fabric.is_global_zero:
                for partial in (self.output / "checkpoints").glob(".partial-*"):
                    shutil.rmtree(partial)
                (self.output / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.fabric.barrier()

    # -- the loop

    def _loop(self, log: RunLog | None, signals: StopSignals) -> str | None:
        batches = self._batches()
        while self.step < self.settings.steps:
            try:
                batch = next(batches)
            except RuntimeError:
                # The same signal may have ended the data workers first. Several processes could not agree to save now.
                if not signals.received or self.fabric.world_size > 1:
                    raise
                self._save()
                return signals.received
            if isinstance(batch, Failure):
                raise TrainingError(batch.message)
            stop = self._one_step(self.fabric.to_device(batch), log, stop=signals.received is not None)
            done = self.step == self.settings.steps
            if self.step % self.settings.checkpoint_every == 0 or stop or done:
                self._save()
            if stop and not done:
                return signals.received or "SIGTERM"
        return None

    def _one_step(self, batch: Mapping[str, Any], log: RunLog | None, stop: bool) -> bool:
        """All turns of one step. Returns whether any process was told to stop."""
        _seed(self.settings.seed, self.step, self.fabric.global_rank)
        self.turn.batch = batch
        values: dict[str, Tensor] = {}
        stop_anywhere = stop
        for turn in self.method.turns(self.step, self.optimizers):
            optimizer = self.stepping[turn]
            named = (turn,) if len(self.optimizers) > 1 else ()
            self.wrapped.zero_grad(set_to_none=True)
            per_sample, terms = self.wrapped(self.step, *named)
            loss = per_sample.mean()
            bad, told = self._anywhere(not bool(torch.isfinite(loss)), stop)
            stop_anywhere = stop_anywhere or told
            if bad:
                raise self._not_finite("loss", turn, batch, per_sample, terms)
            self.fabric.backward(loss)
            limit = self.settings.gradient_clip or float("inf")
            norm = self.fabric.clip_gradients(self.wrapped, optimizer, max_norm=limit, error_if_nonfinite=False)
            # A loss scaler finds its scale by overflowing now and then, and leaves such steps out itself.
            if self.settings.precision != "16-mixed" and not bool(torch.isfinite(norm)):
                raise self._not_finite("gradient", turn, batch, per_sample, terms)
            optimizer.step()
            self.loss = float(loss.detach())
            prefix = f"{turn}/" if named else ""
            values |= {f"{prefix}loss": loss, f"{prefix}gradient_norm": norm}
            values |= {f"{prefix}{term}": value.mean() for term, value in terms.items()}
            value = LossValue(per_sample.detach(), {term: v.detach() for term, v in terms.items()})
            registry().call("recon_train_step", method=self.name, step=self.step, loss=value)
        with warnings.catch_warnings():
            # A schedule counts steps of the run, those in which its optimizer has no turn as well.
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
            for scheduler in self.schedulers.values():
                scheduler.step()
        self.step += 1
        self._note(values, batch, log)
        return stop_anywhere

    def _note(self, values: Mapping[str, Tensor], batch: Mapping[str, Any], log: RunLog | None) -> None:
        """Log a step that is done."""
        self.window.add(values)
        if log:
            log.advance(self.loss)
        if self.step % self.settings.log_every == 0 or self.step == self.settings.steps:
            steps, means = self.window.steps, self.window.means()
            if self.fabric.world_size > 1:
                numbers = torch.tensor(list(means.values()), device=self.fabric.device)
                means = dict(zip(means, self.fabric.all_reduce(numbers, reduce_op="mean").tolist(), strict=True))
            rates = {f"learning_rate/{n}": o.param_groups[0]["lr"] for n, o in self.optimizers.items()}
            if log:
                with self._writing():
                    log.write(self.step, self.mixture.epoch(self.step - 1), means | rates, steps)
        every = self.settings.pictures_every
        if log and every and self.step % every == 0:
            with torch.no_grad():
                pictures = self.method.eval().training_pictures(batch)
            self.method.train()
            with self._writing():
                log.draw(self.step, pictures)

    def _batches(self) -> Iterator[Any]:
        workers = self.settings.worker_count()
        loader = DataLoader(
            Steps(self.mixture, self.fabric.global_rank, self.fabric.world_size),
            batch_size=None,
            sampler=range(self.step, self.settings.steps),
            num_workers=workers,
            pin_memory=self.fabric.device.type == "cuda",
            worker_init_fn=in_worker if workers else None,
        )
        return iter(loader)

    def _anywhere(self, bad: bool, stop: bool) -> tuple[bool, bool]:
        """Whether any process has a bad loss, or was told to stop: all must act alike."""
        if self.fabric.world_size == 1:
            return bad, stop
        flags = torch.tensor([float(bad), float(stop)], device=self.fabric.device)
        # Fabric has no maximum; a sum is above 0 if any is.
        summed = self.fabric.all_reduce(flags, reduce_op="sum").tolist()
        return summed[0] > 0, summed[1] > 0

    def _not_finite(
        self, what: str, turn: str, batch: Mapping[str, Any], per_sample: Tensor, terms: Mapping[str, Tensor]
    ) -> TrainingError:
        """Write down which samples were in the batch, and say where."""
        file = self.output / f"not-finite-step-{self.step}-process-{self.fabric.global_rank}.json"
        rows = {"loss": per_sample.detach(), **{term: value.detach() for term, value in terms.items()}}
        record = {
            "step": self.step,
            "optimizer": turn,
            "ids": list(batch["id"]),
            "source": list(batch["source"]),
            "values": {key: [None if v != v else str(v) for v in value.tolist()] for key, value in rows.items()},
        }
        with self._writing():
            file.write_text(json.dumps(record, indent=2) + "\n")
        guilty = [i for i, v in zip(batch["id"], per_sample.tolist(), strict=True) if not np.isfinite(v)]
        whose = f", first at {guilty[0]}" if guilty else ""
        return TrainingError(
            f"the {what} of step {self.step} is not finite{whose}: its batch is in {file}; the last checkpoint is whole"
        )

    # -- checkpoints

    def _save(self) -> None:
        partial = checkpoints.partial_of(self.output, self.step)
        fabric = self.fabric
        with self._writing():
            checkpoints.write_process(partial, fabric.global_rank, self.method.training_state())
            fabric.barrier()
            if fabric.is_global_zero:
                training = {
                    "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
                    "schedulers": {name: s.state_dict() for name, s in self.schedulers.items()},
                    "precision": fabric.strategy.precision.state_dict(),
                }
                weights = checkpoints.weights_of(self.method)
                description = {"step": self.step, "identity": vars(self.identity), "window": self.window.state}
                checkpoints.write_shared(partial, weights, training, description)
                final = checkpoints.folder_of(self.output, self.step)
                checkpoints.publish(partial, final, self.settings.checkpoints)
                if self.step == self.settings.steps:
                    checkpoints.export_weights(final, self.output)
        fabric.barrier()

    def _restore(self) -> None:
        folder = checkpoints.newest(self.output)
        assert folder is not None
        described = checkpoints.read_description(folder, self.identity)
        self.step = int(described["step"])
        if self.step > self.settings.steps:
            raise TrainingError(f"{self.output}: is at step {self.step} already, beyond --steps {self.settings.steps}")
        self.window = Window(described["window"])
        checkpoints.load_weights(self.method, folder / "weights.safetensors")
        training = checkpoints.read_state(folder / "training.pt")
        own = checkpoints.read_state(folder / f"process-{self.fabric.global_rank}.pt")
        try:
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(training["optimizers"][name])
            for name, scheduler in self.schedulers.items():
                scheduler.load_state_dict(training["schedulers"][name])
            self.fabric.strategy.precision.load_state_dict(training["precision"])
        except (KeyError, ValueError) as error:
            raise TrainingError(f"{folder / 'training.pt'}: of other optimizers than the method's ({error})") from None
        self.method.restore_training_state(own)

    def _open_log(self) -> RunLog | None:
        if not self.fabric.is_global_zero:
            return None
        s = self.settings
        with self._writing():
            return RunLog(self.output, self.step, s.steps, s.batch_size, s.progress)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise checkpoints.unwritable(self.output, error) from error


def _fabric(settings: TrainingSettings, several_optimizers: bool) -> Any:
    """Fabric for these settings. Raises UsageError when it is not installed or cannot have the devices."""
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.strategies import DDPStrategy
    except ImportError:
        raise UsageError("training needs Lightning: pip install 'recon-core[train]'") from None
    devices, nodes = settings.devices, settings.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    strategy: Any = "auto"
    if devices * nodes > 1:
        # With several optimizers a turn leaves the others' parameters without a gradient. Buffers are not sent around
        # at every step: most of them are a body model's constants, and running means may differ a little.
        strategy = DDPStrategy(find_unused_parameters=several_optimizers, broadcast_buffers=False)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=devices,
            num_nodes=nodes,
            precision=settings.precision,
            strategy=strategy,
        )
    except (RuntimeError, ValueError, TypeError) as error:  # Fabric's MisconfigurationException is a RuntimeError
        wanted = f"accelerator={settings.accelerator}, devices={devices}, precision={settings.precision}"
        raise UsageError(f"{wanted}: cannot be had here ({' '.join(str(error).split())})") from None
    if fabric.strategy.precision.precision != settings.precision:
        raise UsageError(f"precision={settings.precision}: this device has none; take bf16-mixed or 32-true")
    return fabric


def _seed(seed: int, step: int, rank: int) -> None:
    """Set the global generators of Python, NumPy and torch for one step of one process."""
    words = np.random.SeedSequence((seed, step + 1, rank)).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


def _described(source: Source) -> dict[str, Any]:
    """What of a source must be the same when its run is resumed."""
    return {
        "name": source.name,
        "subjects": len(source.dataset),
        "weight": source.weight,
        "config": source.dataset.config.model_dump(mode="json"),
    }


def _distribution(method: str) -> tuple[str, str]:
    """Package and version that bring a registered method; empty for one that is not."""
    try:
        package = registry().entry("method", method).package
        return package, metadata.version(package)
    except (UsageError, PluginError, metadata.PackageNotFoundError):
        return "", ""
