"""One method a fault, each otherwise good: `Good` is what they have in common."""

import random

import torch
from torch import nn

from recon_core.errors import EvidenceError
from recon_core.interfaces import Method, Settings
from recon_core.structures import LossValue, Mesh, Prediction

FACES = torch.tensor([[0, 1, 2]])


class Good(Method):
    Config = Settings
    inputs = frozenset({"image"})
    outputs = frozenset({"mesh"})
    crop_size = 16

    def __init__(self, config, body_model=None):
        super().__init__(config, body_model)
        self.layer = nn.Linear(3, 9)

    def corners(self, observation):
        if observation.image is None:
            raise EvidenceError("reads the image: the observation has no crop")
        return self.layer(observation.image.mean((2, 3))).sigmoid().reshape(-1, 3, 3) + 1

    def predict(self, observation):
        return Prediction(mesh=Mesh(self.corners(observation), FACES))

    def training_step(self, batch, step):
        color = self.layer(batch["image"].mean((2, 3)))
        return LossValue((color**2).sum(1))


class ReadsMore(Good):
    def predict(self, observation):
        corners = self.corners(observation) + observation.mask.mean((1, 2, 3))[:, None, None]
        return Prediction(mesh=Mesh(corners, FACES))


class UnknownInput(Good):
    inputs = frozenset({"image", "smell"})


class ForgetsOutput(Good):
    outputs = frozenset({"mesh", "image"})


class NotFinite(Good):
    def corners(self, observation):
        return super().corners(observation) / 0


class MixesRows(Good):
    def corners(self, observation):
        corners = super().corners(observation)
        return corners - corners.mean(0, keepdim=True) * 0.1 if len(corners) else corners


class NeedsSomebody(Good):
    def corners(self, observation):
        corners = super().corners(observation)
        return corners + 0 * corners[0]


class NoGradient(Good):
    def __init__(self, config, body_model=None):
        super().__init__(config, body_model)
        self.forgotten = nn.Linear(2, 2)


class KeepsAside(Good):
    def __init__(self, config, body_model=None):
        super().__init__(config, body_model)
        self.aside = [torch.randn(9)]

    def corners(self, observation):
        return super().corners(observation) + self.aside[0].sigmoid().reshape(3, 3)


class Rolls(Good):
    def predict(self, observation):
        return Prediction(mesh=Mesh(self.corners(observation) + random.random(), FACES))


class RollsInTraining(Good):
    def training_step(self, batch, step):
        loss = super().training_step(batch, step)
        return LossValue(loss.per_sample * (1 + random.random()))


class CannotTravel(Good):
    def __init__(self, config, body_model=None):
        super().__init__(config, body_model)
        self.activation = lambda x: x


class Obscure(Good):
    def corners(self, observation):
        return self.layer(observation.image.mean((2, 3))).sigmoid().reshape(-1, 3, 3) + 1


class Talkative(Good):
    def corners(self, observation):
        if observation.image is None:
            raise EvidenceError("no crop\nsee above")
        return super().corners(observation)


class Lax(Good):
    class Config(Settings):
        model_config = {"extra": "ignore"}


class Demanding(Good):
    class Config(Settings):
        needed: int


class NotAMethod:
    pass
