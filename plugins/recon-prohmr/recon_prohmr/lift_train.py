"""Train the lifting flow: `python -m recon_prohmr.lift_train --mocap DIR --out DIR [--config file.toml]`.

As `recon_prohmr.train`, from the same people, cameras and detector errors: plain torch on one device, every random
number from one seed. Writes the averaged weights (float16), the whole configuration, and figures on validation poses.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.interfaces import BodyModel
from recon_core.metrics import mpjpe, pa_mpjpe
from recon_core.structures import BodyParameters
from recon_prohmr.skeletons import (
    SKELETON,
    SkeletonNetwork,
    SkeletonNetworkConfig,
    SkeletonWeights,
    joints_in_view,
    lifting_objective,
)
from recon_prohmr.train import PeopleTrainConfig, WeightAverage, people_to_train_on, schedule
from recon_prohmr.weights import save_network
from recon_std.bodies import load_body
from recon_std.encoders.keypoints import KeypointView


class LiftTrainConfig(PeopleTrainConfig):
    """One training run; the thesis' (section 4.6.3): 300,000 steps of 64, at a learning rate of 0.0001."""

    batch: int = 512
    warm_up: int = 200
    gradient_limit: float = 10.0
    network: SkeletonNetworkConfig = SkeletonNetworkConfig()
    weights: SkeletonWeights = SkeletonWeights()


@torch.no_grad()
def lifting_errors(
    network: SkeletonNetwork,
    body: BodyModel,
    view: KeypointView,
    truth: BodyParameters,
    counts: tuple[int, ...] = (),
    seed: int = 7,
) -> dict[str, tuple[Float[Tensor, " B"], Float[Tensor, " B"]]]:
    """MPJPE and PA-MPJPE in millimetres over h36m17 (section 4.6.5) of the mode, and the least of n samples."""
    joints = body.keypoints(truth, SKELETON)
    joints = (joints - joints[:, :1]) @ view.rotation.transpose(-1, -2)
    context = network.encoder.encode(view)

    def errors(values: Float[Tensor, "B N 48"]) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
        count = values.shape[1]
        found = torch.nn.functional.pad(values.unflatten(-1, (-1, 3)), (0, 0, 1, 0)).flatten(0, 1)
        wanted = joints.repeat_interleave(count, 0)
        both = mpjpe(found, wanted), pa_mpjpe(found, wanted)
        return both[0].unflatten(0, (-1, count)), both[1].unflatten(0, (-1, count))

    plain, aligned = errors(network.flow.mode(context)[:, None])
    result = {"mode": (plain[:, 0], aligned[:, 0])}
    generator = torch.Generator().manual_seed(seed)
    parts = []
    most = max(counts, default=0)
    for first in range(0, most, 64):
        z = torch.randn(len(context), min(64, most - first), network.flow.dims, generator=generator).to(context)
        parts.append(errors(network.flow.decode(z, context)))
    if parts:
        plain, aligned = (torch.cat([part[i] for part in parts], 1).cummin(1).values for i in range(2))
        result |= {f"best of {count}": (plain[:, count - 1], aligned[:, count - 1]) for count in counts}
    return result


def train(config: LiftTrainConfig, mocap: Path, out: Path, device: str) -> SkeletonNetwork:
    """Run `config`; returns the averaged network. Checkpoint, configuration and log lines go to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    body = load_body("free").to(device)
    sampler, view, truth = people_to_train_on(config, body, mocap)
    generator = torch.Generator(device).manual_seed(config.seed)
    network = SkeletonNetwork(config.network).to(device)
    first = sampler.sample(4096, generator)
    with torch.no_grad():
        values, context = joints_in_view(body, first), network.encoder.encode(first.view)
        noise = torch.randn(values.shape, generator=generator, device=device)
        network.flow.initialize(values + config.weights.spread * noise, context)
    averaged = SkeletonNetwork(config.network).to(device)
    average = WeightAverage(network, config.average)
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)
    start, progress, step = time.perf_counter(), 0.0, 0
    (out / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    with (out / "log.jsonl").open("w") as log:
        while progress < 1:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(step, progress, config.warm_up)
            people = sampler.sample(config.batch, generator)
            loss = lifting_objective(network, body, people, config.weights, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.per_sample.mean().backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.gradient_limit)
            optimizer.step()
            average.update()
            step += 1
            elapsed = time.perf_counter() - start
            progress = max(step / config.steps, elapsed / (60 * config.minutes) if config.minutes else 0.0)
            if step % 500 == 0 or step == 20 or progress >= 1:
                average.copy_to(averaged)
                line: dict[str, float | list[float]] = {"step": step, "seconds": round(elapsed, 1)}
                line["gradient"] = round(float(norm), 3)
                line |= {name: round(float(value.detach().mean()), 4) for name, value in loss.terms.items()}
                line |= _rounded(lifting_errors(averaged.eval(), body, view, truth))
                print(json.dumps(line), flush=True)
                log.write(json.dumps(line) + "\n")
                log.flush()
                save_network(averaged, out / "prohmr-lift.safetensors")
    print(json.dumps(_rounded(lifting_errors(averaged, body, view[:500], truth[:500], (1, 5, 25, 100)))), flush=True)
    return averaged


def _rounded(errors: dict[str, tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """Means over the people, by name: MPJPE, PA-MPJPE."""
    return {name: [round(float(value.mean()), 2) for value in both] for name, both in errors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mocap", type=Path, required=True, help="folder of poses_train.npz and poses_val.npz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="toml with settings of LiftTrainConfig")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    settings = tomllib.loads(options.config.read_text()) if options.config else {}
    train(LiftTrainConfig(**settings), options.mocap, options.out, options.device)


if __name__ == "__main__":
    main()
