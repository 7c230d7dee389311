"""The fit in the training loop: bodies that supervise the regressor where no 3D truth is given (thesis 3.3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor

from recon_core.datasets import Mixture
from recon_core.geometry.rotations import axis_angle_to_matrix, project_to_rotation
from recon_core.interfaces import BodyModel, Fitter, Prior
from recon_core.structures import BodyParameters, Camera, Keypoints, Observation
from recon_spin.best_fits import BestFits, Fits
from recon_std.fitters.gather import LEAST_JOINTS
from recon_std.readers.augmentation import augmented_pose, original_pose

POPULATE_BATCH = 64


@dataclass(frozen=True)
class Target:
    """What supervises each sample. body: in the crop's camera frame. weight: (B,) 1 where the body may supervise.
    error: (B,) mean reprojection error of the fit in pixels of the crop, 0 where the truth is given."""

    body: BodyParameters
    weight: Float[Tensor, " B"]
    error: Float[Tensor, " B"]


def crop_camera(K: Float[Tensor, "B 3 3"], side: int) -> Camera:
    """The camera of augmented crops, `side` pixels wide and high."""
    eye = torch.eye(3).to(K).expand(len(K), 3, 3)
    return Camera(K, eye, K.new_zeros(len(K), 3), (side, side))


def observed(batch: Mapping[str, Any], side: int, skeleton: str = "lsp14") -> Observation:
    """The 2D joints of a training batch of crops `side` pixels wide as evidence for a fitter."""
    joints = Keypoints(batch["keypoints2d"], batch["keypoints2d_confidence"], skeleton)
    return Observation(camera=crop_camera(batch["K"], side), keypoints=joints)


class Supervisor:
    """Fits bodies to the samples that have no 3D truth, remembers the best, and says what to learn from.

    fitter: run from the regressed body. starter: the fitter that fills the dictionary, from a standing body. priors:
    of both. reject: fits with a larger mean reprojection error, in crop sides, do not supervise. in_loop: False leaves
    the dictionary as it was filled before training (the thesis' "static fits").
    """

    def __init__(
        self,
        body: BodyModel,
        fitter: Fitter,
        starter: Fitter,
        priors: Mapping[str, Prior],
        reject: float,
        in_loop: bool,
    ) -> None:
        self.body, self.fitter, self.starter, self.priors = body, fitter, starter, priors
        self.reject, self.in_loop = reject, in_loop
        self.best = BestFits(body.shape_count)

    def target(self, batch: Mapping[str, Any], regressed: BodyParameters, side: int) -> Target:
        """The truth where it is given, the best fit so far elsewhere. Fits start at `regressed`, a body in the camera
        of the batch's crops, which are `side` pixels wide."""
        given = batch.get("has_pose", torch.zeros(len(regressed))).to(regressed.betas) > 0.5
        rows = torch.nonzero(~given).squeeze(1)
        parts = {name: value.index_select(0, rows) for name, value in _fit_fields(batch).items()}
        keys = keys_of(batch, rows)
        if self.in_loop:
            self._fit(self.fitter, keys, parts, regressed.detach()[rows], side)
        fits = _to_crop(self.best.get(keys).to(regressed.betas.device), parts)
        pose, betas, translation = (x.clone() for x in (regressed.pose, regressed.betas, regressed.translation))
        if "pose" in batch:
            pose = torch.where(given[:, None, None, None], batch["pose"], pose)
            betas = torch.where(given[:, None], batch["betas"], betas)
            translation = torch.where(given[:, None], batch["translation"], translation)
        known = fits.error.isfinite()
        pose[rows] = torch.where(known[:, None, None, None], fits.pose, pose[rows])
        betas[rows] = torch.where(known[:, None], fits.betas, betas[rows])
        translation[rows] = torch.where(known[:, None], self.body_of(fits).translation, translation[rows])
        weight, error = torch.ones_like(betas[:, 0]), torch.zeros_like(betas[:, 0])
        error[rows] = fits.error
        weight[rows] = (fits.error < self.reject * side).to(weight)
        body = BodyParameters(pose.detach(), betas.detach(), translation.detach())
        return Target(body, weight, torch.where(error.isfinite(), error, torch.zeros_like(error)))

    def populate(self, data: Mixture) -> None:
        """Fill the dictionary before training: fits of every picture without 3D truth, from a standing body."""
        for source in data.sources:
            subjects = source.dataset
            if not len(subjects) or "keypoints2d" not in subjects[0] or "pose" in subjects[0]:
                continue
            for start in range(0, len(subjects), POPULATE_BATCH):
                drawn = [subjects[i] for i in range(start, min(start + POPULATE_BATCH, len(subjects)))]
                parts = {name: _stack([d[name] for d in drawn]) for name in _FIELDS}
                keys = [f"{source.name}/{d['id']}" for d in drawn]
                self._fit(self.starter, keys, parts, standing(self.body, len(drawn)), drawn[0]["image"].shape[-1])

    def fill(self, samples: Mapping[str, Any], rows: Tensor, side: int) -> None:
        """Fill the dictionary with fits of some rows of samples that are never drawn anew, from a standing body."""
        for some in rows.split(POPULATE_BATCH):
            parts = {name: value[some] for name, value in _fit_fields(samples).items()}
            self._fit(self.starter, keys_of(samples, some), parts, standing(self.body, len(some)), side)

    def body_of(self, fits: Fits) -> BodyParameters:
        """The fitted bodies, in the frame the fits are in."""
        return BodyParameters(fits.pose, fits.betas, fits.root - self._rest_root(fits.betas))

    def mean(self) -> tuple[Float[Tensor, "24 3 3"], Float[Tensor, " S"]]:
        """Mean pose and shape of the best fits that may supervise nothing but where a regressor starts."""
        fits = self.best.all()
        rows = fits.error <= fits.error.median()
        return project_to_rotation(fits.pose[rows].mean(0)), fits.betas[rows].mean(0)

    def _fit(
        self, fitter: Fitter, keys: Sequence[str], parts: Mapping[str, Tensor], initial: BodyParameters, side: int
    ) -> None:
        """Fit, and offer the fits to the dictionary. Samples with fewer joints than a fit needs are left out."""
        enough = torch.nonzero((parts["keypoints2d_confidence"] > 0).sum(1) >= LEAST_JOINTS).squeeze(1)
        if len(enough):
            keys = [keys[i] for i in enough.tolist()]
            parts = {name: value[enough] for name, value in parts.items()}
            initial = initial[enough]
            with torch.no_grad():
                found = fitter.fit(observed(parts, side), initial, self.body, self.priors)
                root = found.body.translation + self._rest_root(found.body.betas)
                fits = Fits(found.body.pose, found.body.betas, root, found.report.reprojection_px)
                offers = [(list(keys), _to_photo(fits, parts).to("cpu"))]
        else:
            offers = []
        # Every process remembers the fits of all, in one order, so that all hold the same dictionary.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, offers)
            offers = [offer for part in gathered for offer in part]
        for names, found_fits in offers:
            self.best.offer(names, found_fits)

    def _rest_root(self, betas: Float[Tensor, "B S"]) -> Float[Tensor, "B 3"]:
        return self.body.rest_joints(betas)[:, 0]


def keys_of(batch: Mapping[str, Any], rows: Tensor) -> list[str]:
    """Keys of the dictionary for rows of a batch: the source and the subject's id in it."""
    return [f"{batch['source'][i]}/{batch['id'][i]}" for i in rows.tolist()]


def standing(body: BodyModel, count: int) -> BodyParameters:
    """Upright, facing the camera, arms a little lowered, a few metres away; a fitter's camera stage places it."""
    angles = torch.zeros(count, 24, 3)
    angles[:, 0, 0] = torch.pi
    angles[:, 16, 2], angles[:, 17, 2] = -0.9, 0.9
    betas = torch.zeros(count, body.shape_count)
    return BodyParameters(axis_angle_to_matrix(angles), betas, torch.tensor([0.0, 0.0, 5.0]).repeat(count, 1))


_FIELDS = ("K", "to_crop", "keypoints2d", "keypoints2d_confidence", "roll", "flipped")


def _fit_fields(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: batch[name] for name in _FIELDS}


def _stack(values: Sequence[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(v, dtype=torch.float32) for v in values])


def _scale(parts: Mapping[str, Tensor]) -> Float[Tensor, " B"]:
    """Crop pixels per photo pixel."""
    return parts["to_crop"][:, :, :2].det().abs().sqrt()


def _to_photo(fits: Fits, parts: Mapping[str, Tensor]) -> Fits:
    """Fits in crop frames, errors in crop pixels, as fits in photo frames."""
    pose = original_pose(fits.pose, parts["roll"], parts["flipped"])
    error = torch.nan_to_num(fits.error, nan=torch.inf) / _scale(parts)
    return Fits(pose, fits.betas, _turned(fits.root, -parts["roll"], parts["flipped"], flip_first=False), error)


def _to_crop(fits: Fits, parts: Mapping[str, Tensor]) -> Fits:
    """The inverse of `_to_photo`."""
    pose = augmented_pose(fits.pose, parts["roll"], parts["flipped"])
    root = _turned(fits.root, parts["roll"], parts["flipped"], flip_first=True)
    return Fits(pose, fits.betas, root, fits.error * _scale(parts))


def _turned(
    points: Float[Tensor, "B 3"], angle: Float[Tensor, " B"], flipped: Float[Tensor, " B"], flip_first: bool
) -> Float[Tensor, "B 3"]:
    """Points through x -> Rz(angle) F x, or F Rz(angle) x, F the mirror of flipped rows (x_crop = Rz F x_photo)."""
    sign = torch.stack([1 - 2 * flipped, torch.ones_like(flipped), torch.ones_like(flipped)], -1)
    spin = axis_angle_to_matrix(torch.stack([0 * angle, 0 * angle, angle], -1))
    if flip_first:
        return (spin @ (sign * points)[..., None])[..., 0]
    return sign * (spin @ points[..., None])[..., 0]
