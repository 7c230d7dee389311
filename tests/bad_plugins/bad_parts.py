"""The same for the other parts."""

import random
from dataclasses import replace

import torch

from recon_core.interfaces import Dataset, Detector, Encoder, Loss
from recon_core.plugins import registry
from recon_core.structures import Detection, Features, LossValue
from recon_std.fitters.smplify import SmplifyFitter
from recon_std.priors.shape import ShapePrior
from recon_std.renderers.warp import WarpRenderer


def _free(change):
    body = registry().create("body", "free")
    body.forward = change(body.forward)
    return body


def mixing_body():
    return _free(lambda pose: lambda p: replace(pose(p), vertices=pose(p).vertices - pose(p).vertices.mean((0, 1))))


def stiff_body():
    return _free(lambda pose: lambda p: pose(replace(p, betas=p.betas.detach())))


def crooked_body():
    body = registry().create("body", "free")
    keypoints = body.keypoints
    body.keypoints = lambda p, skeleton: keypoints(p, skeleton) + 0.1
    return body


class SummingPrior(ShapePrior):
    def log_prob(self, values, context=None):
        return super().log_prob(values, context).sum().reshape(1)


class FicklePrior(ShapePrior):
    def sample(self, count, context=None, generator=None):
        return torch.rand(1, count, self.dims)


class SummingLoss(Loss):
    def forward(self, prediction, target):
        return LossValue((prediction["betas"] - target["betas"]).square().sum().reshape(1))


class StuckLoss(Loss):
    def __init__(self):
        super().__init__()
        self.penalty = lambda x: x

    def forward(self, prediction, target):
        return LossValue((prediction["betas"] - target["betas"]).square().sum(1))


class BoastfulFitter(SmplifyFitter):
    def fit(self, *arguments, **named):
        result = super().fit(*arguments, **named)
        return replace(result, report=replace(result.report, energy=result.report.initial_energy * 2))


class RestlessFitter(SmplifyFitter):
    def fit(self, *arguments, **named):
        result = super().fit(*arguments, **named)
        moved = result.body.translation + 0.01 * random.random()
        return replace(result, body=replace(result.body, translation=moved))


class ObliviousFitter(SmplifyFitter):
    def fit(self, observation, initial, *arguments, **named):
        return initial if observation.keypoints is None else super().fit(observation, initial, *arguments, **named)


class OpaqueRenderer(WarpRenderer):
    def soft_silhouette(self, *arguments, **named):
        return super().soft_silhouette(*arguments, **named).detach()


class MixingEncoder(Encoder):
    inputs = frozenset({"image"})

    def forward(self, observation):
        color = observation.image.mean((2, 3))
        return Features(color - color.mean(0))


class GhostDetector(Detector):
    gives = frozenset({"box"})

    def detect(self, image):
        return [Detection((0, 0, 9, 9), 1.0)]


class ObscureDataset(Dataset):
    def __init__(self, location=None, config=None):
        super().__init__(location, config)
        raise KeyError("index")

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"id": "one"}
