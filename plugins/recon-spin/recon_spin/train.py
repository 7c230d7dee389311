"""Train the shipped SPIN on one CPU: `python -m recon_spin.train --photos DIR --mocap DIR --out DIR [--config FILE]`.

The real loop of recon (`recon train --method spin`) trains the whole network and wants a GPU. Here the trunk's
first blocks keep their ImageNet weights, so that what they give for a fixed number of augmented crops is computed once,
and a step costs a few milliseconds a sample. A regressor is trained on these samples and on fits made beforehand, and
copied: one copy goes on with these fits ("static"), the other with the fits in the loop ("in-loop"), alike in
seed, order of samples and steps. They take turns, so that a training that is stopped leaves two of equal length.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recon_core.structures import BodyParameters
from recon_core.training.checkpoints import load_weights
from recon_spin.evaluation import errors_2d, errors_3d
from recon_spin.lifting import people_in_crops
from recon_spin.method import SPIN, in_crop, load_imagenet
from recon_spin.samples import HeldOut, Parts, Truth, batch_of, data_of, draw_samples, without_truth
from recon_spin.settings import TrainConfig
from recon_spin.weights import save_method
from recon_std.bodies import load_body
from recon_std.synthetic.keypoints import KeypointSampler


def train_both(
    config: TrainConfig,
    photos: Path,
    mocap: Path,
    out: Path,
    modes: tuple[str, ...],
    street: Path | None = None,
    begin_with: Path | None = None,
) -> None:
    """Draw the samples, fill the dictionary, train the part that is shared and then each mode ("static", "in-loop").

    `out` gets samples.pt (kept for a further run of the same settings), config.json, and a folder for each mode with
    log.jsonl (the shared part in it too) and spin-lite.safetensors, new at every report. begin_with: weights of an
    earlier training, whose frozen blocks include these, to go on from.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    method = new_method(config, in_loop=False)
    first = Parts(method, config.frozen_blocks).eval()
    data = data_of(config, first, photos, mocap, street)
    samples, tests = draw_samples(config, first, data.mixture, out / "samples.pt"), data.tests
    method.supervisor.populate(data.mixture)
    truth, people = None, data.people if config.truth and config.drawn_people else None
    if not config.truth:
        samples, truth = without_truth(samples)
        method.supervisor.fill(samples, torch.nonzero(samples["has_truth"]).squeeze(1), config.spin.crop_size)
    if begin_with:
        load_weights(method, begin_with)
    else:
        pose, betas = method.supervisor.mean()
        method.regressor.set_mean(pose, betas, method.regressor.init_cam[0].clone())
    shared = Training(config, method, truth, people)
    lines = shared.run(config.shared_steps, samples, tests) if config.shared_steps else []
    trainings = {mode: shared.copied(in_loop=mode == "in-loop") for mode in modes}
    logs = {mode: list(lines) for mode in modes}
    while (step := min(training.step for training in trainings.values())) < config.steps:
        until = min(step + config.report_every, config.steps)
        for mode, training in trainings.items():
            logs[mode] += training.run(until, samples, tests)
            (out / mode).mkdir(exist_ok=True)
            (out / mode / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logs[mode]))
            save_method(training.averaged, out / mode / "spin-lite.safetensors")


def new_method(config: TrainConfig, in_loop: bool) -> SPIN:
    """Begun from the seed and the trunk's ImageNet weights."""
    torch.manual_seed(config.seed)
    method = SPIN(config.spin.model_copy(update={"in_loop": in_loop}), load_body("free"))
    load_imagenet(method.trunk)
    method.trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method


class Training:
    """A regressor, its optimizer and the running average of its weights, at some step.

    Its dictionary of fits is compared with the one it began with, and with `truth` where that is given. people: whom
    it draws besides the samples (`TrainConfig.drawn_people`).
    """

    def __init__(
        self, config: TrainConfig, method: SPIN, truth: Truth | None = None, people: KeypointSampler | None = None
    ) -> None:
        self.config, self.method, self.truth, self.people = config, method, truth, people
        self.step, self.seconds = 0, 0.0
        self.filled = deepcopy(method.supervisor.best)
        self.parts = Parts(method, config.frozen_blocks)
        for module in self.parts.frozen():
            module.requires_grad_(False)
        for module in self.parts.trunk.modules():
            # On a CPU the gradient of a filter for each channel costs more than all else of a block together.
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                module.weight.requires_grad_(False)
        self.learned = [p for p in self.parts.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, config.learning_rate, weight_decay=config.weight_decay)
        self.average = AveragedModel(method, multi_avg_fn=get_ema_multi_avg_fn(config.average))

    @property
    def averaged(self) -> SPIN:
        """The network with the average of its weights."""
        method = self.average.module
        assert isinstance(method, SPIN)
        return method

    def copied(self, in_loop: bool) -> Training:
        """Another training at the same point, with a dictionary of its own."""
        method = new_method(self.config, in_loop)
        method.load_state_dict(self.method.state_dict())
        method.restore_training_state(self.method.training_state())
        copy = Training(self.config, method, self.truth, self.people)
        copy.optimizer.load_state_dict(deepcopy(self.optimizer.state_dict()))
        copy.average.load_state_dict(self.average.state_dict())
        copy.step, copy.seconds, copy.filled = self.step, self.seconds, self.filled
        return copy

    def run(self, until: int, samples: dict[str, Any], tests: HeldOut) -> list[dict[str, Any]]:
        """Train up to step `until`. Returns a line of figures every `report_every` steps, and at the very start."""
        lines = [] if self.step else [self._line({}, tests)]
        sums: dict[str, list[float]] = {}
        while self.step < until:
            begun = time.perf_counter()
            for name, value in self._one_step(batch_of(samples, self.step, self.config)).items():
                sums.setdefault(name, []).append(value)
            self.seconds += time.perf_counter() - begun
            if self.step % self.config.report_every == 0 or self.step == until:
                lines.append(self._line({name: sum(v) / len(v) for name, v in sums.items()}, tests))
                sums = {}
        return lines

    def _one_step(self, batch: dict[str, Any]) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * _schedule(self.step, self.config)
        torch.manual_seed(self.config.seed + self.step)
        self.parts.train()
        size = self.config.spin.crop_size
        loss = self.method.supervised(self.parts(batch["features"]), batch, size)
        total, extra = loss.per_sample.mean(), {}
        if self.people is not None:
            generator = torch.Generator().manual_seed(self.config.seed + self.step)
            drawn = people_in_crops(self.people, self.config.drawn_people, size, generator)
            lifted = self.method.supervised(self.method.regress_joints(drawn["points"]), drawn, size)
            total = total + lifted.per_sample.mean()
            extra = {f"drawn_{name}": lifted.terms[name] for name in ("keypoints2d", "keypoints3d", "body.pose")}
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learned, self.config.gradient_limit)
        self.optimizer.step()
        self.average.update_parameters(self.method)
        self.step += 1
        terms = {**loss.terms, **extra, "loss": loss.per_sample, "gradient": norm}
        return {name: float(value.detach().mean()) for name, value in terms.items()}

    def _line(self, means: dict[str, float], tests: HeldOut) -> dict[str, Any]:
        line = {"step": self.step, "seconds": self.seconds} | means | self._fits()
        line |= figures(self.averaged, self.config.frozen_blocks, tests)
        line = {name: round(value, 4) for name, value in line.items()}
        print("in-loop" if self.method.config.in_loop else "static", json.dumps(line), flush=True)
        return line

    def _fits(self) -> dict[str, float]:
        """Of the dictionary: mean and median reprojection error of the photos' fits in pixels of the photo, the share
        that is better than at first; of the rendered people's, where truth is withheld, the same in pixels of the crop
        and how far they are from the truth, millimetres."""
        supervisor = self.method.supervisor
        keys = self.filled.state()["keys"]
        error, began = supervisor.best.get(keys).error, self.filled.all().error
        photo = torch.tensor([not key.startswith("rendered/") for key in keys], dtype=torch.bool)
        found: dict[str, float] = {}
        for name, rows in (("fits", photo), ("rendered_fits", ~photo)):
            if rows.any():
                found |= {
                    f"{name}_mean_px": float(error[rows].mean()),
                    f"{name}_median_px": float(error[rows].median()),
                    f"{name}_improved": float((error < began)[rows].float().mean()),
                }
        if self.truth is not None:
            body = supervisor.body_of(supervisor.best.get(self.truth.keys))
            off = errors_3d(supervisor.body, body, self.truth.body)
            found |= {f"rendered_fits_{name}": float(value.mean()) for name, value in off.items()}
        return found


@torch.no_grad()
def figures(method: SPIN, frozen_blocks: int, tests: HeldOut) -> dict[str, float]:
    """Means over the held-out subjects."""
    body, size = method.body_model, method.crop_size
    assert body is not None
    parts = Parts(method, frozen_blocks).eval()
    values: dict[str, Tensor] = {}
    for name, batch in tests.items():
        found = in_crop(parts(batch["features"]), batch["K"], size)
        if "pose" in batch:
            truth = BodyParameters(batch["pose"], batch["betas"], batch["translation"])
            values |= {f"{name}_{k}": v for k, v in errors_3d(body, found, truth).items()}
        else:
            values |= {f"{name}_{k}": v for k, v in errors_2d(body, found, batch, size).items()}
    return {name: float(value.mean()) for name, value in values.items()}


def _schedule(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return min(1.0, (step + 1) / config.warm_up) * (0.01 + 0.99 * cosine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="the lsp_ext folder")
    parser.add_argument("--street", type=Path, help="a second folder of that layout, as label_photos writes")
    parser.add_argument("--mocap", type=Path, required=True, help="folder of poses_train.npz and poses_val.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="toml with settings of TrainConfig")
    parser.add_argument("--seed", type=int, help="in place of the configuration's")
    parser.add_argument("--only", choices=("static", "in-loop"), help="train one of the two regressors")
    parser.add_argument("--begin-with", type=Path, help="weights of an earlier training to go on from")
    options = parser.parse_args()
    settings = tomllib.loads(options.config.read_text()) if options.config else {}
    modes = (options.only,) if options.only else ("static", "in-loop")
    config = TrainConfig(**settings | ({} if options.seed is None else {"seed": options.seed}))
    train_both(config, options.photos, options.mocap, options.out, modes, options.street, options.begin_with)


if __name__ == "__main__":
    main()
