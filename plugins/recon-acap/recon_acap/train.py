"""Train the body embedding: `python -m recon_acap.train --data DIR --out DIR [--config file.toml]`.

DIR is what `python -m recon_acap.data` made. Plain torch on one device; every random number comes from one seed. Writes
the weights, the whole configuration, and log lines with errors on the held-out people, as it goes.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_acap.data import GROUP, People, load_people, make_template, neutral_meshes, posed_meshes
from recon_acap.evaluation import mean_vertex_distance
from recon_acap.features import AcapCodec, part_features
from recon_acap.low_rank import compress, fold
from recon_acap.network import BodyEmbedding, EmbeddingConfig, Template, Variant, save_embedding, scaling
from recon_acap.objective import FINE_TUNING, Batch, Weights, objective
from recon_core.errors import ReconError
from recon_core.interfaces import Settings
from recon_std.bodies import load_body
from recon_std.bodies.smpl import SMPLBody

EXTRACTED_AT_ONCE = 250
VARIANTS: tuple[Variant, ...] = get_args(Variant)
SAVE_EVERY = 500


class TrainConfig(Settings):
    """One training run. The defaults are the paper's, but for the mesh, its being the free body's."""

    seed: int = 0
    steps: int = 500_000
    """2,200 passes over 5,434 posed meshes, 12 a step."""
    minutes: float | None = None
    """Wall-clock limit of the training proper, after the features were made."""
    groups: int = 3
    """Groups of four posed meshes a step; as many neutral meshes come beside them."""
    learning_rate: float = 1e-4
    warm_up: int = 0
    anneal: bool = False
    """Let the learning rate fall to a hundredth along half a cosine, instead of keeping it."""
    bfloat16: bool = False
    vertices: int | None = None
    """About how many vertices of the free body's skin are kept; None for all."""
    variant: Variant = "hierarchical"
    exchange: float = 0.0
    """Chance that codes come from another mesh of the same person and of the same pose (`objective`)."""
    first: Weights = Weights()
    second: Weights = FINE_TUNING
    first_share: float = 1600 / 2200
    """Share of the training in the first phase."""
    rank: int | None = None
    """Train the two largest layers through this many principal components of the features (`low_rank`)."""
    rank_share: float = 1.0
    """Share of the training after which these layers are trained as they are, at their full cost."""


@dataclass(frozen=True)
class FeatureSet:
    """Features of N posed meshes and their N/2 people, in the people's order, not scaled.

    posed: (N, V, 9). neutral: (N/2, V, 9). posed_parts, neutral_parts: the same of the K parts.
    """

    posed: Float[Tensor, "N V 9"]
    neutral: Float[Tensor, "P V 9"]
    posed_parts: Float[Tensor, "N K 9"]
    neutral_parts: Float[Tensor, "P K 9"]

    def bounds(self) -> tuple[Float[Tensor, "2 V9"], Float[Tensor, "2 K9"]]:
        """Largest and smallest value of every number of the vertices' and the parts' features."""

        def of(*features: Tensor) -> Tensor:
            high = torch.stack([f.amax(0) for f in features]).amax(0)
            return torch.stack([high, torch.stack([f.amin(0) for f in features]).amin(0)]).flatten(1)

        return of(self.posed, self.neutral), of(self.posed_parts, self.neutral_parts)

    def scaled(self, bounds: Float[Tensor, "2 V9"], part_bounds: Float[Tensor, "2 K9"]) -> FeatureSet:
        """The features in [-0.95, 0.95]."""
        return FeatureSet(
            scaling(bounds).scale(self.posed),
            scaling(bounds).scale(self.neutral),
            scaling(part_bounds).scale(self.posed_parts),
            scaling(part_bounds).scale(self.neutral_parts),
        )

    def batch(self, groups: int, generator: torch.Generator) -> Batch:
        """`groups` groups of posed meshes, and as many neutral meshes as these are."""
        device = generator.device
        chosen = torch.randint(len(self.posed) // GROUP, (groups, 1), generator=generator, device=device)
        posed = (GROUP * chosen + torch.arange(GROUP, device=device)).flatten()
        people = torch.randint(len(self.neutral), (len(posed),), generator=generator, device=device)
        person = torch.cat([posed // 2, people])
        first = GROUP * torch.arange(groups, device=device)[:, None]
        own = torch.arange(len(posed), 2 * len(posed), device=device)
        neutral, neutral_parts = self.neutral[person], self.neutral_parts[person]
        return Batch(
            features=torch.cat([self.posed[posed], self.neutral[people]]),
            neutral=neutral,
            parts=torch.cat([self.posed_parts[posed], self.neutral_parts[people]]),
            neutral_parts=neutral_parts,
            same_person=torch.cat([(first + torch.tensor([1, 0, 3, 2], device=device)).flatten(), own]),
            same_pose=torch.cat([(first + torch.tensor([2, 3, 0, 1], device=device)).flatten(), own.roll(1)]),
        )


def feature_set(codec: AcapCodec, template: Template, body: SMPLBody, people: People) -> FeatureSet:
    """Features of the people's meshes and of their neutral counterparts."""
    rows: Int[Tensor, " P"] = torch.arange(0, len(people), 2)
    posed, neutral = [], []
    for betas, pose in zip(people.betas.split(EXTRACTED_AT_ONCE), people.pose.split(EXTRACTED_AT_ONCE), strict=True):
        posed.append(_extract(codec, template, posed_meshes(body, template, betas, pose)))
    for betas in people.betas[rows].split(EXTRACTED_AT_ONCE):
        neutral.append(_extract(codec, template, neutral_meshes(body, template, betas)))
    (features, parts), (neutral_features, neutral_parts) = (
        map(torch.cat, zip(*x, strict=True)) for x in (posed, neutral)
    )
    return FeatureSet(features, neutral_features, parts, neutral_parts)


def _extract(codec: AcapCodec, template: Template, vertices: Tensor) -> tuple[Tensor, Tensor]:
    features = codec.extract(vertices)
    return features, part_features(vertices, features, template.reference, template.part)


@dataclass(frozen=True)
class TrainingData:
    """What all variants of one run are trained on: the template, and features of training and held-out people."""

    template: Template
    known: FeatureSet
    held_out: FeatureSet


def prepare(config: TrainConfig, data: Path) -> TrainingData:
    """Features of the people in `data` on the configured mesh. Raises TrainingError when there are no people."""
    people = load_people(data)
    body = load_body("free")
    template = make_template(body, config.vertices)
    codec = AcapCodec(template.reference, template.faces)
    return TrainingData(template, *(feature_set(codec, template, body, people[split]) for split in ("train", "test")))


def train(config: TrainConfig, data: TrainingData, out: Path, device: str = "cpu") -> BodyEmbedding:
    """Run `config`; weights, configuration and log go to `out`. Returns the network on the CPU."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    sizes = EmbeddingConfig(vertices=len(data.template.reference), variant=config.variant)
    embedding = BodyEmbedding(sizes, data.template)
    bounds = data.known.bounds()
    embedding.decoder.bounds.copy_(bounds[0])
    if config.variant == "hierarchical":
        embedding.decoder.part_bounds.copy_(bounds[1])
    embedding = embedding.to(device)
    known = _to(data.known.scaled(*bounds), device)
    (out / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    plain = embedding
    with (out / "log.jsonl").open("w") as log:
        for line in steps(config, embedding, known):
            plain = copy.deepcopy(embedding).cpu().eval()
            fold(plain)
            save_embedding(plain, out / "acap-vae.safetensors")
            line |= _held_out_errors(plain, data.held_out)
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
    return plain


def steps(config: TrainConfig, embedding: BodyEmbedding, known: FeatureSet) -> Iterator[dict[str, float]]:
    """Train; yields the mean terms of the objective every `SAVE_EVERY` steps and at the end."""
    device = known.posed.device
    generator = torch.Generator(device).manual_seed(config.seed)
    if config.rank:
        compress(embedding, known.posed, known.posed_parts, config.rank)
    optimizer = torch.optim.Adam(embedding.parameters(), config.learning_rate, fused=True)
    compressed = bool(config.rank)
    exchange = config.exchange if config.variant != "meshvae" else 0.0
    start, progress, step = time.perf_counter(), 0.0, 0
    sums: dict[str, float] = {}
    while progress < 1:
        if compressed and progress >= config.rank_share:
            fold(embedding)
            optimizer = torch.optim.Adam(embedding.parameters(), config.learning_rate, fused=True)
            compressed = False
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(config, step, progress)
        weights = config.first if progress < config.first_share else config.second
        batch = known.batch(config.groups, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
            loss = objective(embedding, batch, weights, exchange, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.per_sample.mean().backward()
        optimizer.step()
        step += 1
        elapsed = time.perf_counter() - start
        progress = max(step / config.steps, elapsed / (60 * config.minutes) if config.minutes else 0.0)
        for name, value in loss.terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach().mean())
        if step % SAVE_EVERY == 0 or progress >= 1:
            count = step % SAVE_EVERY or SAVE_EVERY
            yield {"step": step, "seconds": round(elapsed, 1)} | {n: round(v / count, 4) for n, v in sums.items()}
            sums = {}


def _schedule(config: TrainConfig, step: int, progress: float) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine down to a hundredth if asked for."""
    warm = min(1.0, (step + 1) / config.warm_up) if config.warm_up else 1.0
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))) if config.anneal else warm


def _to(features: FeatureSet, device: str) -> FeatureSet:
    return FeatureSet(*(getattr(features, f.name).to(device) for f in fields(features)))


@torch.no_grad()
def _held_out_errors(embedding: BodyEmbedding, known: FeatureSet) -> dict[str, float]:
    """Mean vertex distance in mm of held-out meshes encoded and decoded: posed, neutral, and neutral from posed."""
    posed = embedding.encode(known.posed)
    neutral = embedding.encode(known.neutral)
    truth = embedding.codec.reconstruct(known.posed)
    truth_neutral = embedding.codec.reconstruct(known.neutral)
    errors = {
        "held_out_posed_mm": (embedding.vertices(posed.shape, posed.pose), truth),
        "held_out_neutral_mm": (embedding.vertices(neutral.shape, neutral.pose), truth_neutral),
    }
    if embedding.config.variant != "meshvae":
        errors["held_out_neutral_of_posed_mm"] = (
            embedding.vertices(posed.shape),
            truth_neutral.repeat_interleave(2, 0),
        )
    return {name: round(1000 * float(mean_vertex_distance(*pair).mean()), 2) for name, pair in errors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that `python -m recon_acap.data` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="toml with settings of TrainConfig")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compare", action="store_true", help="train all variants on the same data, each into its own folder of --out"
    )
    options = parser.parse_args()
    config = TrainConfig(**(tomllib.loads(options.config.read_text()) if options.config else {}))
    try:
        data = prepare(config, options.data)
    except ReconError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    if not options.compare:
        train(config, data, options.out, options.device)
        return
    for variant in VARIANTS:
        train(config.model_copy(update={"variant": variant}), data, options.out / variant, options.device)


if __name__ == "__main__":
    main()
