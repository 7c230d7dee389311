"""Train the keypoint ProHMR: `python -m recon_prohmr.train --mocap DIR --out DIR [--config file.toml]`.

Plain torch on one device, CPU or GPU; every random number comes from one seed. Writes the averaged weights
(float16), the whole configuration, and the figures on validation poses.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import tomllib
from pathlib import Path

import torch
from torch import Tensor, nn

from recon_core.interfaces import BodyModel, Settings
from recon_core.structures import BodyParameters
from recon_prohmr.evaluation import people_of, sample_errors
from recon_prohmr.network import NetworkConfig, ProHMRNetwork, pose_to_6d, turned
from recon_prohmr.objective import LossJoints, MadeUp, Weights, discrimination, objective
from recon_prohmr.weights import load_network, save_network
from recon_std.bodies import load_body
from recon_std.encoders.keypoints import KeypointView, keypoint_view
from recon_std.priors.adversarial import PoseDiscriminator
from recon_std.readers.mocap import MocapDataset
from recon_std.synthetic.detection import DetectorErrors
from recon_std.synthetic.keypoints import KeypointSampler, PeopleConfig


class PeopleTrainConfig(Settings):
    """What every training on made-up people has: the people, and the clock."""

    seed: int = 0
    steps: int = 20000
    minutes: float | None = None
    """Wall-clock limit. The learning rate then falls with the time used, so that the run always ends cooled down."""
    learning_rate: float = 1e-3
    average: float = 0.999
    """Decay of the running average of the weights, which is what is kept."""
    even_frames: float = 0.5
    """Share of frames drawn evenly; the rest are drawn by action (MocapDataset.sampling_weights)."""
    people: PeopleConfig = PeopleConfig()
    errors: DetectorErrors = DetectorErrors()


class TrainConfig(PeopleTrainConfig):
    """One training run."""

    batch: int = 4096
    weight_decay: float = 1e-4
    warm_up: int = 500
    gradient_limit: float = 1.0
    unlabelled: float = 0.0
    """Share of people whose body is withheld, as of photos with 2D joints alone (the thesis: COCO and MPII)."""
    discriminator_rate: float = 1e-4
    """Learning rate of the discriminator, where weights.mode_adv or weights.exp_adv want one."""
    bfloat16: bool = False
    network: NetworkConfig = NetworkConfig()
    weights: Weights = Weights()


class WeightAverage:
    """Running average of a network's weights, warmed up so that it forgets the beginning."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.source = [p.data for p in network.state_dict().values() if p.is_floating_point()]
        self.mean = [p.clone() for p in self.source]

    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self.mean, self.source, 1 - decay)

    def copy_to(self, network: nn.Module) -> None:
        targets = [p for p in network.state_dict().values() if p.is_floating_point()]
        for target, mean in zip(targets, self.mean, strict=True):
            target.copy_(mean)


class Adversary:
    """The discriminator of the adversarial terms, and its own optimiser."""

    def __init__(self, config: TrainConfig, device: str) -> None:
        self.discriminator = PoseDiscriminator().to(device)
        self.optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), config.discriminator_rate, weight_decay=config.weight_decay
        )

    def learn(self, real: BodyParameters, made_up: MadeUp) -> float:
        """One step on as many real bodies as made-up ones; the loss before it."""
        loss = discrimination(self.discriminator, real, made_up).per_sample.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def mixed_weights(data: MocapDataset, even: float) -> Tensor:
    """Chance of each frame: `even` of it uniform, the rest balanced by action."""
    return even / len(data) + (1 - even) * data.sampling_weights


def people_to_train_on(
    config: PeopleTrainConfig, body: BodyModel, mocap: Path
) -> tuple[KeypointSampler, KeypointView, BodyParameters]:
    """The source of training people, and 2,000 held-out ones, as seen and as they are. On the body's device."""
    data = MocapDataset(mocap, MocapDataset.Config(split="train"))
    held_out = MocapDataset(mocap, MocapDataset.Config(split="val"))
    device = next(body.buffers()).device
    weights = mixed_weights(data, config.even_frames)
    sampler = KeypointSampler(body, data.poses.to(device), weights, config.errors, config.people)
    seen, truth = people_of(body, held_out.poses.to(device), 2000)
    assert seen.keypoints is not None
    return sampler, keypoint_view(seen.camera, seen.keypoints), truth


def train(config: TrainConfig, mocap: Path, out: Path, device: str, begin_with: Path | None = None) -> ProHMRNetwork:
    """Run `config`; returns the averaged network. Checkpoint, configuration and log lines go to `out`.

    begin_with: weights of an earlier run to go on from, with a fresh optimizer.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    body = load_body("free").to(device)
    sampler, view, truth = people_to_train_on(config, body, mocap)
    generator = torch.Generator(device).manual_seed(config.seed)
    network = ProHMRNetwork(config.network).to(device)
    if begin_with:
        network.load_state_dict(load_network(begin_with, ProHMRNetwork).state_dict())
    else:
        initialize(network, sampler, generator, config.weights.spread)
    averaged = ProHMRNetwork(config.network).to(device)
    average = WeightAverage(network, config.average)
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=device == "cuda"
    )
    joints_of = LossJoints(body)
    adversary = Adversary(config, device) if config.weights.adversarial else None
    start, progress, step = time.perf_counter(), 0.0, 0
    (out / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    log = (out / "log.jsonl").open("w")
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, progress, config.warm_up)
        network.train()
        people = sampler.sample(config.batch, generator)
        with torch.autocast(device, torch.bfloat16, enabled=config.bfloat16):
            known = torch.rand(config.batch, generator=generator, device=device) >= config.unlabelled
            judge = adversary.discriminator if adversary else None
            loss, made_up = objective(network, joints_of, people, config.weights, generator, judge, known)
        optimizer.zero_grad(set_to_none=True)
        loss.per_sample.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.gradient_limit)
        optimizer.step()
        if adversary:
            adversary.learn(people.body, made_up)
        average.update()
        step += 1
        elapsed = time.perf_counter() - start
        progress = max(step / config.steps, elapsed / (60 * config.minutes) if config.minutes else 0.0)
        if step % 500 == 0 or step == 20 or progress >= 1:
            average.copy_to(averaged)
            line = {"step": step, "seconds": round(elapsed, 1), "gradient": round(float(norm), 3)}
            line |= {name: round(float(value.detach().mean()), 4) for name, value in loss.terms.items()}
            line["val_pa_mpjpe"] = round(float(sample_errors(averaged.eval(), body, view, truth)["mode"].mean()), 2)
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
            save_network(averaged, out / "prohmr-keypoints.safetensors")
    final = sample_errors(averaged, body, view, truth, (1, 5, 10, 25, 100))
    print(json.dumps({name: round(float(value.mean()), 2) for name, value in final.items()}), flush=True)
    return averaged


def initialize(network: ProHMRNetwork, sampler: KeypointSampler, generator: torch.Generator, spread: float) -> None:
    """Set the flow's activation normalisation from a first batch."""
    people = sampler.sample(4096, generator)
    values = pose_to_6d(turned(people.body.pose, people.view.rotation))
    with torch.no_grad():
        context = network.encoder.encode(people.view)
    network.flow.initialize(values + spread * torch.randn_like(values), context)


def schedule(step: int, progress: float, warm_up: int) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    return min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mocap", type=Path, required=True, help="folder of poses_train.npz and poses_val.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="toml with settings of TrainConfig")
    parser.add_argument("--begin-with", type=Path, help="weights of an earlier run to go on from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    settings = tomllib.loads(options.config.read_text()) if options.config else {}
    train(TrainConfig(**settings), options.mocap, options.out, options.device, options.begin_with)


if __name__ == "__main__":
    main()
