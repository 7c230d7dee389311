"""Rendered people as training data: `--data synthetic`, or `--data synthetic:MOCAP_FOLDER` for captured poses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from recon_core.datasets import MAX_EPOCH
from recon_core.interfaces import Dataset
from recon_std.bodies import load_body
from recon_std.priors.gmm import GaussianMixturePrior
from recon_std.readers.mocap import MocapDataset
from recon_std.renderers.warp import WarpRenderer
from recon_std.synthetic.backgrounds import BackgroundPhotos, random_backgrounds
from recon_std.synthetic.detection import GaussianErrors
from recon_std.synthetic.keypoints import KeypointSampler, PeopleConfig
from recon_std.synthetic.scenes import RenderedPeople, SceneConfig, SceneSampler

POSES = 20_000
"""Poses drawn from the mixture prior where no motion capture is given."""


class SyntheticDataset(Dataset):
    """People made up as they are drawn, without end; the fields are those of photos with joints, and the truth.

    Without a location poses come from the shipped mixture prior, so that nothing needs to be downloaded; with one
    from the motion capture there. Subject n is always the same; in training each draw is a new person.
    """

    class Config(SceneConfig):
        size: int = Field(default=224, ge=32)
        """Side of the picture in pixels."""
        seed: int = 0
        length: int = Field(default=MAX_EPOCH, ge=1)
        """Subjects an epoch counts."""
        backgrounds: str | None = None
        """A folder of pictures to put people before; random patterns without it."""
        people_settings: PeopleConfig = PeopleConfig()

    config: Config

    def __init__(self, location: str | Path | None = None, config: Config | None = None) -> None:
        super().__init__(location, config)
        self._sampler: SceneSampler | None = None
        self._poses, self._weights = _poses(location)

    def __len__(self) -> int:
        return self.config.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.draw_batch([index], [(self.config.seed << 32) + index])
        return {name: value[0] for name, value in batch.items()}

    def draw_batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Mapping[str, Any]:
        rendered = self.sampler.sample_each([torch.Generator().manual_seed(seed) for seed in seeds])
        return {"id": [f"synthetic-{seed}" for seed in seeds], **fields(rendered)}

    @property
    def sampler(self) -> SceneSampler:
        """Made on first use, in each worker process for itself: the renderer's threads do not outlive a fork."""
        if self._sampler is None:
            people = KeypointSampler(
                load_body("free"), self._poses, self._weights, GaussianErrors(), self.config.people_settings
            )
            folder = self.config.backgrounds
            backgrounds = random_backgrounds if folder is None else BackgroundPhotos(Path(folder))
            self._sampler = SceneSampler(people, WarpRenderer(), self.config, backgrounds)
        return self._sampler

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_sampler": None}


def fields(rendered: RenderedPeople) -> dict[str, Tensor]:
    """The first person of each picture, in the fields of docs/training.md; pixels of the picture, camera frame."""
    count = len(rendered.image)
    people = len(rendered.picture) // count
    first = torch.arange(count) * people
    size = rendered.camera.size[0]
    joints2d = rendered.joints2d["lsp14"][first]
    inside = ((joints2d >= 0) & (joints2d < size)).all(-1)
    return {
        "image": rendered.image,
        "mask": (rendered.instance == first[:, None, None]).to(rendered.image)[:, None],
        "K": rendered.camera.K,
        "to_crop": torch.eye(3)[:2].expand(count, 2, 3),
        "keypoints2d": joints2d,
        "keypoints2d_confidence": inside.to(joints2d),
        "keypoints3d": rendered.joints["lsp14"][first],
        "keypoints3d_confidence": torch.ones_like(joints2d[..., 0]),
        "pose": rendered.body.pose[first],
        "betas": rendered.body.betas[first],
        "translation": rendered.body.translation[first],
        "roll": torch.zeros(count),
        "flipped": torch.zeros(count),
    }


def _poses(location: str | Path | None) -> tuple[Float[Tensor, "F 24 3"], Float[Tensor, " F"]]:
    """Axis-angle poses, root upright, and the chance of each."""
    if location is not None:
        captured = MocapDataset(location, MocapDataset.Config())
        return captured.poses, captured.sampling_weights
    with torch.no_grad():
        drawn = GaussianMixturePrior().sample(POSES, generator=torch.Generator().manual_seed(0))[0]
    angles = torch.cat([torch.zeros(POSES, 1, 3), drawn.float().unflatten(1, (23, 3))], 1)
    return angles, torch.full((POSES,), 1 / POSES)
