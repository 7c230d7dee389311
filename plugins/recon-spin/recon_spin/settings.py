"""Settings of the training of the shipped weights (`recon_spin.train`)."""

from __future__ import annotations

from pydantic import Field

from recon_core.interfaces import Settings
from recon_spin.method import SPINConfig
from recon_std.encoders.images import EfficientNetLite0


class TrainConfig(Settings):
    """One training. Both regressors of it have these settings."""

    seed: int = 0
    samples: int = Field(36_000, ge=1)
    """Augmented crops that are drawn once."""
    photos: float = Field(0.5, gt=0, lt=1)
    """Share of photos among them."""
    street: float = Field(0.15, ge=0, lt=1)
    """Share of photos of the second set, where there is one. The others are rendered people, whose true bodies are
    known."""
    rotation: float = 60.0
    """Largest roll of a photo in degrees, either way."""
    shift: float = Field(0.08, ge=0)
    """Largest offset of a photo's person from the crop's middle, as a share of its side."""
    any_orientation: float = Field(0.3, ge=0, le=1)
    """Share of rendered people turned any way in space."""
    truth: bool = True
    """Whether the true bodies of rendered people supervise. Without, they are treated as photos are: 2D joints are all
    that is known of them (the thesis' setting), and how far the fits are from the truth is measured."""
    frozen_blocks: int = Field(8, ge=0, le=EfficientNetLite0.middle)
    """Blocks of the trunk, after its stem, that keep their ImageNet weights; of 16."""
    steps: int = 1500
    shared_steps: int = Field(900, ge=0)
    """Of them, those before the two regressors part: on the static fits."""
    batch: int = 64
    drawn_people: int = Field(256, ge=0)
    """People besides a batch of whom nothing but the joints is drawn, and whose true bodies are known."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warm_up: int = 50
    average: float = 0.99
    """Decay of the running average of the weights, which is what is kept."""
    gradient_limit: float = 20.0
    report_every: int = 150
    rendered_tests: int = 300
    spin: SPINConfig = SPINConfig(crop_size=128, pooling="joints", dropout=0.1)
