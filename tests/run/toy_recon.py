"""A third party's package for these tests: small parts of every kind that a run uses, and the hooks.

The detector finds plain red rectangles, so that tests need no model files.
"""

import time
from pathlib import Path

import torch

from recon_core.assets import assets
from recon_core.geometry.cameras import estimate_translation
from recon_core.hookspecs import hookimpl
from recon_core.interfaces import Detector, Fitter, Method, Prior, Settings
from recon_core.structures import (
    BodyParameters,
    Detection,
    FitReport,
    FitResult,
    Keypoints,
    Mesh,
    Observation,
    Prediction,
    Samples,
)

CALLS: list[str] = []
"""Names of the hooks that were called."""

# coco17 joints of a standing person seen from the front, as fractions of the box.
_UPRIGHT = torch.tensor(
    [
        [0.5, 0.08], [0.53, 0.06], [0.47, 0.06], [0.57, 0.08], [0.43, 0.08], [0.66, 0.2], [0.34, 0.2], [0.82, 0.33],
        [0.18, 0.33], [0.95, 0.45], [0.05, 0.45], [0.6, 0.52], [0.4, 0.52], [0.6, 0.75], [0.4, 0.75], [0.6, 0.95],
        [0.4, 0.95],
    ]
)  # fmt: skip


class RedDetector(Detector):
    """People are red; each blob of columns is one."""

    gives = frozenset({"box", "keypoints", "mask"})

    def detect(self, image):
        red = torch.from_numpy((image[..., 0] > 180) & (image[..., 1] < 80) & (image[..., 2] < 80))
        columns = red.any(0).int()
        edges = torch.diff(torch.nn.functional.pad(columns, (1, 1))).nonzero()[:, 0].reshape(-1, 2)
        found = []
        for left, right in edges.tolist():
            rows = red[:, left:right].any(1).nonzero()[:, 0]
            top, bottom = int(rows[0]), int(rows[-1]) + 1
            box = (float(left), float(top), float(right - left), float(bottom - top))
            points = _UPRIGHT * torch.tensor(box[2:]) + torch.tensor(box[:2])
            mask = torch.zeros(red.shape)
            mask[:, left:right] = red[:, left:right].float()
            found.append(Detection(box, 0.9, Keypoints(points[None], torch.ones(1, 17), "coco17"), mask))
        return found


class FileDetector(RedDetector):
    """The same, once its model file was found whole."""

    def __init__(self, config=None):
        super().__init__(config)
        assets().find("blazepose-detection")


def _mean_bodies(body_model, observation):
    count = len(observation)
    pose = torch.eye(3).repeat(count, 24, 1, 1)
    pose[:, 0, 1, 1] = pose[:, 0, 2, 2] = -1
    return BodyParameters(pose, torch.zeros(count, body_model.shape_count), torch.zeros(count, 3))


def _placed(body_model, body, observation):
    joints = body_model.keypoints(body, observation.keypoints.skeleton)
    keypoints = observation.keypoints
    shift = estimate_translation(joints, keypoints.points, keypoints.confidence, observation.camera.K)
    return BodyParameters(body.pose, body.betas, body.translation + shift)


class ToyBody(Method):
    """The mean body five metres away, and noise around it for samples."""

    class Config(Settings):
        samples: int = 0
        nap: float = 0.0
        fail: str = ""

    inputs = frozenset({"keypoints"})
    outputs = frozenset({"body"})
    default_fitter = "toy-fit"
    default_detector = "red"

    def predict(self, observation: Observation) -> Prediction:
        time.sleep(self.config.nap)
        if self.config.fail == "raise":
            raise ValueError("the toy\nbroke")
        body = _mean_bodies(self.body_model, observation)
        body = BodyParameters(body.pose, body.betas, body.translation + torch.tensor([0.0, 0.0, 5.0]))
        if self.config.fail == "nan":
            body.translation[:] = torch.nan
        if self.config.fail == "rows":
            body = body[:0]
        count, n = len(body), self.config.samples
        samples = None
        if n:
            noise = torch.randn(count, n, 3) * 0.1
            samples = Samples(
                body.pose[:, None].repeat(1, n, 1, 1, 1),
                body.betas[:, None] + torch.randn(count, n, body.betas.shape[-1]),
                body.translation[:, None] + noise,
                -noise.square().sum(-1),
            )
        return Prediction(body=body, samples=samples, context=torch.ones(count, 2))

    def prior(self):
        return FlatPrior()


class ToyMesh(Method):
    """A textured quad two metres away that covers the box: no body anywhere."""

    inputs = frozenset({"image", "mask"})
    outputs = frozenset({"mesh"})
    crop_size = 32
    default_detector = "red"

    def predict(self, observation: Observation) -> Prediction:
        assert observation.image.shape[1:] == (3, 32, 32)
        assert observation.mask.shape[1:] == (1, 32, 32)
        assert observation.keypoints is not None
        count, box, K = len(observation), observation.box, observation.camera.K
        corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        pixels = box[:, None, :2] + corners * box[:, None, 2:]
        xy = (pixels - K[:, None, :2, 2]) / K[:, None, 0, :1] * 2
        vertices = torch.cat([xy, torch.full((count, 4, 1), 2.0)], -1)
        faces = torch.tensor([[0, 2, 1], [0, 3, 2]])
        uv = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
        mesh = Mesh(vertices, faces, uv, faces, observation.image)
        return Prediction(mesh=mesh, extra={"light": torch.ones(count, 9)})


class ToyImage(Method):
    """The negative of the crop."""

    inputs = frozenset({"image"})
    outputs = frozenset({"image"})
    crop_size = 48
    default_detector = "red"

    def predict(self, observation: Observation) -> Prediction:
        return Prediction(image=1 - observation.image)


class ToyFitter(Fitter):
    """Moves the body onto the joints."""

    default_priors = ("flat",)

    class Config(Settings):
        steps: int = 1

    def fit(self, observation, initial, body_model, priors=None, context=None):
        CALLS.append(f"fit with {', '.join(priors or {})}, context {None if context is None else tuple(context.shape)}")
        body = _placed(body_model, initial, observation)
        found = body_model.keypoints(body, observation.keypoints.skeleton)
        distance = (observation.camera.project(found) - observation.keypoints.points).norm(dim=-1).mean(1)
        count = len(body)
        report = FitReport(
            initial_energy=torch.full((count,), torch.nan),
            energy=distance,
            iterations=torch.full((count,), self.config.steps),
            converged=torch.ones(count, dtype=torch.bool),
            reprojection_px=distance,
            reason=torch.zeros(count, dtype=torch.int64),
            terms={"joints": distance},
        )
        return FitResult(body, report)


class FlatPrior(Prior):
    """Everything is as probable."""

    over = "betas"
    dims = 10

    def log_prob(self, values, context=None):
        return values.new_zeros(len(values))

    def sample(self, count, context=None, generator=None):
        return torch.zeros(1, count, 10)

    def mode(self, context=None):
        return torch.zeros(1, 10)


def write_note(reconstruction, folder: Path):
    path = folder / "note.txt"
    path.write_text(f"{len(reconstruction.people)}\n")
    return [path]


@hookimpl
def recon_register(register):
    register.method("toy-body", "toy_recon:ToyBody")
    register.method("toy-mesh", "toy_recon:ToyMesh")
    register.method("toy-image", "toy_recon:ToyImage")
    register.detector("red", "toy_recon:RedDetector")
    register.detector("red-by-file", "toy_recon:FileDetector")
    register.fitter("toy-fit", "toy_recon:ToyFitter")
    register.prior("flat", "toy_recon:FlatPrior")
    register.exporter("note", "toy_recon:write_note")


@hookimpl
def recon_before_predict(method, observation):
    CALLS.append(f"before {method} {len(observation)}")


@hookimpl
def recon_after_predict(method, prediction):
    CALLS.append(f"after {method}")


@hookimpl
def recon_export(reconstruction, folder):
    CALLS.append(f"export {reconstruction.method}")
