"""Samples of a training on one CPU: augmented crops drawn once, as what the trunk's first blocks give for them."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from recon_core.datasets import Mixture, Source
from recon_core.structures import BodyParameters
from recon_spin.evaluation import photographed_people, rendered_people
from recon_spin.method import SPIN
from recon_spin.settings import TrainConfig
from recon_spin.supervision import keys_of
from recon_std.encoders.images import EfficientNetLite0
from recon_std.readers.lsp_ext import LSPExtendedDataset
from recon_std.synthetic.dataset import SyntheticDataset
from recon_std.synthetic.keypoints import KeypointSampler, PeopleConfig

DRAWN = 256
"""Samples computed at once while the crops are drawn."""


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
        there = features.float().contiguous(memory_format=torch.channels_last)
        return self.method.regress_pyramid(*self.trunk.pyramid_from(there, self.cut))

    def frozen(self) -> list[nn.Module]:
        return [self.trunk.stem, *self.trunk.blocks[: self.cut]]

    def train(self, mode: bool = True) -> Parts:
        """The frozen blocks keep the statistics of their normalisation too."""
        super().train(mode)
        for module in self.frozen():
            module.eval()
        return self


HeldOut = dict[str, dict[str, Any]]
"""Held-out subjects of each source: the fields of a batch, with "features" in the image's place."""


@dataclass(frozen=True)
class Data:
    """mixture: what the samples are drawn from. people: who is rendered in it. tests: held-out subjects."""

    mixture: Mixture
    people: KeypointSampler
    tests: HeldOut


def data_of(config: TrainConfig, first: Parts, photos: Path, mocap: Path, street: Path | None) -> Data:
    """Read from these folders."""
    size, method = config.spin.crop_size, first.method
    assert method.body_model is not None
    people = PeopleConfig(any_orientation=config.any_orientation)
    rendered = SyntheticDataset(mocap, SyntheticDataset.Config(size=size, people_settings=people))
    folders = {"photos": (photos, config.photos)} | ({"street": (street, config.street)} if street else {})
    varied = {"rotation": config.rotation, "shift": config.shift}
    sources = [Source("rendered", rendered, 1 - sum(share for _, share in folders.values()))]
    tests = {"rendered": rendered_people(method.body_model, mocap, config.rendered_tests, size)}
    for name, (folder, share) in folders.items():
        train, val = (
            LSPExtendedDataset(folder, LSPExtendedDataset.Config(split=split, crop_size=size, **varied))
            for split in ("train", "val")
        )
        sources.append(Source(name, train, share))
        tests[name] = photographed_people(val)
    mixture = Mixture(sources, DRAWN, config.seed)
    held_out = {name: with_features(first, batch) for name, batch in tests.items()}
    return Data(mixture, rendered.sampler.people, held_out)


def draw_samples(config: TrainConfig, first: Parts, mixture: Mixture, file: Path) -> dict[str, Any]:
    """The training samples: fields of a batch (recon_core.datasets.Mixture), all in one, without their images."""
    drawn_by = {"seed", "samples", "rotation", "shift", "any_orientation", "frozen_blocks"}
    shares = {source.name: source.weight for source in mixture.sources}
    drawn = config.model_dump(include=drawn_by) | {"crop_size": config.spin.crop_size, "shares": shares}
    made_of = json.dumps(drawn, sort_keys=True)
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
