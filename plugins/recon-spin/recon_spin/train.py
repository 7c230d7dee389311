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
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recon_core.datasets import Mixture, Source
from recon_core.interfaces import Settings
from recon_core.structures import BodyParameters
from recon_core.training.checkpoints import load_weights
from recon_spin.evaluation import errors_2d, errors_3d, photographed_people, rendered_people
from recon_spin.method import SPIN, SPINConfig, in_crop, load_imagenet
from recon_spin.supervision import keys_of
from recon_spin.weights import save_method
from recon_std.bodies import load_body
from recon_std.encoders.images import EfficientNetLite0
from recon_std.readers.lsp_ext import LSPExtendedDataset
from recon_std.synthetic.dataset import SyntheticDataset
from recon_std.synthetic.keypoints import PeopleConfig

DRAWN = 256
"""Samples computed at once while the crops are drawn."""


class TrainConfig(Settings):
    """One training. Both regressors of it have these settings."""

    seed: int = 0
    samples: int = Field(36_000, ge=1)
    """Augmented crops that are drawn once."""
    photos: float = Field(0.55, gt=0, lt=1)
    """Share of photos among them; the others are rendered people, whose true bodies are known."""
    rotation: float = 60.0
    """Largest roll of a photo in degrees, either way."""
    any_orientation: float = Field(0.3, ge=0, le=1)
    """Share of rendered people turned any way in space."""
    truth: bool = True
    """Whether the true bodies of rendered people supervise. Without, they are treated as photos are: 2D joints are all
    that is known of them (the thesis' setting), and how far the fits are from the truth is measured."""
    frozen_blocks: int = Field(8, ge=0, le=16)
    """Blocks of the trunk, after its stem, that keep their ImageNet weights; of 16."""
    steps: int = 1500
    shared_steps: int = Field(900, ge=0)
    """Of them, those before the two regressors part: on the static fits."""
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warm_up: int = 50
    average: float = 0.99
    """Decay of the running average of the weights, which is what is kept."""
    gradient_limit: float = 20.0
    report_every: int = 150
    rendered_tests: int = 300
    spin: SPINConfig = SPINConfig(crop_size=128, pooling="grid", dropout=0.1)


class Parts(nn.Module):
    """A light SPIN cut in two behind one of the trunk's blocks."""

    def __init__(self, method: SPIN, frozen_blocks: int) -> None:
        super().__init__()
        trunk = method.trunk
        assert isinstance(trunk, EfficientNetLite0)
        self.method, self.cut = method, frozen_blocks

    @property
    def trunk(self) -> EfficientNetLite0:
        assert isinstance(self.method.trunk, EfficientNetLite0)
        return self.method.trunk

    @torch.no_grad()
    def first(self, image: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B C h w"]:
        """What the frozen blocks give, in half precision."""
        trunk = self.trunk
        normal = ((image - trunk.mean) / trunk.std).contiguous(memory_format=torch.channels_last)
        return trunk.blocks[: self.cut](trunk.stem(normal)).half()

    def forward(self, features: Float[Tensor, "B C h w"]) -> Any:
        """The regressor's output for what `first` gives."""
        later = self.trunk.blocks[self.cut :](features.float().contiguous(memory_format=torch.channels_last))
        return self.method.regress_spatial(self.trunk.head(later))

    def frozen(self) -> list[nn.Module]:
        return [self.trunk.stem, *self.trunk.blocks[: self.cut]]

    def train(self, mode: bool = True) -> Parts:
        """The frozen blocks keep the statistics of their normalisation too."""
        super().train(mode)
        for module in self.frozen():
            module.eval()
        return self


@dataclass(frozen=True)
class HeldOut:
    """Held-out subjects: the fields of a batch, with "features" in the image's place."""

    rendered: dict[str, Any]
    photos: dict[str, Any]


def train_both(
    config: TrainConfig, photos: Path, mocap: Path, out: Path, modes: tuple[str, ...], begin_with: Path | None = None
) -> None:
    """Draw the samples, fill the dictionary, train the part that is shared and then each mode ("static", "in-loop").

    `out` gets samples.pt (kept for a further run of the same settings), config.json, and a folder for each mode with
    log.jsonl (the shared part in it too) and spin-lite.safetensors, new at every report. begin_with: weights of an
    earlier training of the same frozen blocks to go on from, with a fresh optimizer.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    method = new_method(config, in_loop=False)
    first = Parts(method, config.frozen_blocks).eval()
    size = config.spin.crop_size
    train_photos, val_photos = (
        LSPExtendedDataset(photos, LSPExtendedDataset.Config(split=split, crop_size=size, rotation=config.rotation))
        for split in ("train", "val")
    )
    people = PeopleConfig(any_orientation=config.any_orientation)
    rendered = SyntheticDataset(mocap, SyntheticDataset.Config(size=size, people_settings=people))
    sources = [Source("photos", train_photos, config.photos), Source("rendered", rendered, 1 - config.photos)]
    mixture = Mixture(sources, DRAWN, config.seed)
    assert method.body_model is not None
    tests = HeldOut(
        with_features(first, rendered_people(method.body_model, mocap, config.rendered_tests, size)),
        with_features(first, photographed_people(val_photos)),
    )
    samples = draw_samples(config, first, mixture, out / "samples.pt")
    method.supervisor.populate(mixture)
    truth = None
    if not config.truth:
        samples, truth = without_truth(samples)
        method.supervisor.fill(samples, torch.nonzero(samples["has_truth"]).squeeze(1), size)
    if begin_with:
        load_weights(method, begin_with)
    else:
        pose, betas = method.supervisor.mean()
        method.regressor.set_mean(pose, betas, method.regressor.init_cam[0].clone())
    shared = Training(config, method, truth)
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


def draw_samples(config: TrainConfig, first: Parts, mixture: Mixture, file: Path) -> dict[str, Any]:
    """The training samples: fields of a batch (recon_core.datasets.Mixture), all in one, without their images."""
    drawn_by = {"seed", "samples", "photos", "rotation", "any_orientation", "frozen_blocks"}
    made_of = json.dumps(config.model_dump(include=drawn_by) | {"crop_size": config.spin.crop_size}, sort_keys=True)
    if file.is_file():
        kept = torch.load(file, weights_only=True, mmap=True)
        if kept.pop("made_of") == made_of:
            return kept
    parts: list[dict[str, Any]] = []
    begun = time.perf_counter()
    for step in range(math.ceil(config.samples / DRAWN)):
        parts.append(with_features(first, mixture.batch(step)))
        if step % 10 == 9:
            print(f"{(step + 1) * DRAWN} samples, {time.perf_counter() - begun:.0f} s", flush=True)
    samples: dict[str, Any] = {}
    for name, value in parts[0].items():
        every = [part[name] for part in parts]
        samples[name] = torch.cat(every) if isinstance(value, Tensor) else list(chain.from_iterable(every))
    torch.save(samples | {"made_of": made_of}, file)
    return samples


def without_truth(samples: dict[str, Any]) -> tuple[dict[str, Any], Truth]:
    """The samples with nothing but 2D joints known of any; the true bodies, by key of the dictionary, for measuring."""
    rows = torch.nonzero(samples["has_pose"]).squeeze(1)
    keys = keys_of(samples, rows)
    truth = Truth(keys, BodyParameters(*(samples[name][rows] for name in ("pose", "betas", "translation"))))
    known_in_space = ("pose", "betas", "translation", "keypoints3d", "keypoints3d_confidence")
    left_out = {name for field in known_in_space for name in (field, f"has_{field}")}
    kept = {name: value for name, value in samples.items() if name not in left_out}
    return kept | {"has_truth": samples["has_pose"]}, truth


def with_features(first: Parts, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with "features", what the frozen blocks give, in its pictures' place."""
    left_out = ("image", "mask", "has_image", "has_mask")
    kept = {name: value for name, value in batch.items() if name not in left_out}
    return kept | {"features": torch.cat([first.first(part) for part in batch["image"].split(64)])}


@dataclass(frozen=True)
class Truth:
    """True bodies of samples that are trained on as if only their 2D joints were known, by their dictionary keys."""

    keys: list[str]
    body: BodyParameters


class Training:
    """A regressor, its optimizer and the running average of its weights, at some step.

    Its dictionary of fits is compared with the one it began with, and with `truth` where that is given.
    """

    def __init__(self, config: TrainConfig, method: SPIN, truth: Truth | None = None) -> None:
        self.config, self.method, self.truth, self.step, self.seconds = config, method, truth, 0, 0.0
        self.filled = deepcopy(method.supervisor.best)
        self.parts = Parts(method, config.frozen_blocks)
        for module in self.parts.frozen():
            module.requires_grad_(False)
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
        copy = Training(self.config, method, self.truth)
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
        loss = self.method.supervised(self.parts(batch["features"]), batch, self.config.spin.crop_size)
        self.optimizer.zero_grad(set_to_none=True)
        loss.per_sample.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learned, self.config.gradient_limit)
        self.optimizer.step()
        self.average.update_parameters(self.method)
        self.step += 1
        terms = {**loss.terms, "loss": loss.per_sample, "gradient": norm}
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
        photo = torch.tensor([key.startswith("photos/") for key in keys], dtype=torch.bool)
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
    found = {name: in_crop(parts(b["features"]), b["K"], size) for name, b in vars(tests).items()}
    truth = BodyParameters(*(tests.rendered[name] for name in ("pose", "betas", "translation")))
    values = {f"rendered_{k}": v for k, v in errors_3d(body, found["rendered"], truth).items()}
    values |= {f"photos_{k}": v for k, v in errors_2d(body, found["photos"], tests.photos, size).items()}
    return {name: float(value.mean()) for name, value in values.items()}


def batch_of(samples: dict[str, Any], step: int, config: TrainConfig) -> dict[str, Any]:
    """The batch of a step: samples in a new order each time around, which follows from the seed."""
    count = len(samples["id"])
    around, place = divmod(step, count // config.batch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed + around))
    rows = order[place * config.batch : (place + 1) * config.batch]
    return {
        name: value[rows] if isinstance(value, Tensor) else [value[i] for i in rows.tolist()]
        for name, value in samples.items()
    }


def _schedule(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return min(1.0, (step + 1) / config.warm_up) * (0.01 + 0.99 * cosine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="the lsp_ext folder")
    parser.add_argument("--mocap", type=Path, required=True, help="folder of poses_train.npz and poses_val.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="toml with settings of TrainConfig")
    parser.add_argument("--only", choices=("static", "in-loop"), help="train one of the two regressors")
    parser.add_argument("--begin-with", type=Path, help="weights of an earlier training to go on from")
    options = parser.parse_args()
    settings = tomllib.loads(options.config.read_text()) if options.config else {}
    modes = (options.only,) if options.only else ("static", "in-loop")
    train_both(TrainConfig(**settings), options.photos, options.mocap, options.out, modes, options.begin_with)


if __name__ == "__main__":
    main()
