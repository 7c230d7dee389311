"""The unknowns of a fit, and which rows of an observation are views of one subject."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon_core.errors import EvidenceError
from recon_core.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle, project_to_rotation
from recon_core.structures import Batched, BodyParameters, Camera
from recon_std.fitters.kinematics import turn

ANGLES = 69

ViewMode = Literal["auto", "calibrated", "uncalibrated"]

Unknowns = TypeVar("Unknowns", bound=Batched)
"""What a minimiser moves: a dataclass of tensors with one row a subject, and `moved(step)`."""


@dataclass(frozen=True)
class Variables(Batched):
    """angles: (N, 23, 3) axis-angle numbers below the root. betas: (N, S). root: (N, G, 3, 3) and translation:
    (N, G, 3): the body's place, one (G = 1) or one a view (views without a common world frame).

    A step's columns: 69 angles, S betas, then for each of the G places 3 numbers that turn the root about its own
    axes and 3 metres.
    """

    angles: Float[Tensor, "N 23 3"]
    betas: Float[Tensor, "N S"]
    root: Float[Tensor, "N G 3 3"]
    translation: Float[Tensor, "N G 3"]

    @property
    def places(self) -> int:
        """Where the places' columns start."""
        return ANGLES + self.betas.shape[-1]

    @property
    def columns(self) -> int:
        return self.places + 6 * self.root.shape[1]

    def moved(self, step: Float[Tensor, "N P"]) -> Variables:
        """After a step over all columns, or over the places' alone."""
        place = step[:, -6 * self.root.shape[1] :].unflatten(1, (-1, 6))
        root = self.root @ turn(place[..., :3])
        translation = self.translation + place[..., 3:]
        if step.shape[1] < self.columns:
            return Variables(self.angles, self.betas, root, translation)
        angles = self.angles + step[:, :ANGLES].unflatten(1, (-1, 3))
        return Variables(angles, self.betas + step[:, ANGLES : self.places], root, translation)

    def points(
        self, relative: Float[Tensor, "N 3 K"], mass: Float[Tensor, " K"], root_joint: Float[Tensor, "N 3"]
    ) -> Float[Tensor, "N G 3 K"]:
        """Points given relative to the root, unturned, at each of the body's places in the world."""
        place = self.translation + root_joint[:, None]
        return self.root @ relative[:, None] + place[..., None] * mass


def where(condition: Bool[Tensor, " N"], a: Unknowns, b: Unknowns) -> Unknowns:
    """Row by row: a where the condition holds, b elsewhere."""

    def pick(name: str) -> Tensor:
        x, y = getattr(a, name), getattr(b, name)
        return torch.where(condition.reshape(-1, *[1] * (x.dim() - 1)), x, y)

    return type(a)(**{f.name: pick(f.name) for f in fields(a)})  # type: ignore[arg-type]


def with_rows(a: Unknowns, rows: Int[Tensor, " M"], b: Unknowns) -> Unknowns:
    """a with some of its rows taken from b, which has just these."""
    new = {f.name: getattr(a, f.name).index_copy(0, rows, getattr(b, f.name)) for f in fields(a)}  # type: ignore[arg-type]
    return type(a)(**new)


@dataclass(frozen=True)
class Views:
    """rows: (N, V) rows of the observation that show each subject. together: one place in a common world frame."""

    rows: Int[Tensor, "N V"]
    together: bool

    @classmethod
    def of(cls, subject: Tensor | None, camera: Camera, mode: ViewMode) -> Views:
        """Group rows by subject. "auto": views are calibrated when their cameras differ in place or direction.

        Raises EvidenceError when subjects have different numbers of views.
        """
        if subject is None:
            return cls(torch.arange(len(camera), device=camera.K.device)[:, None], True)
        names, index, counts = torch.unique(subject, return_inverse=True, return_counts=True)
        if len(counts) and (counts != counts[0]).any():
            most, least = int(counts.argmax()), int(counts.argmin())
            raise EvidenceError(
                f"subject {int(names[most])} has {int(counts[most])} views and subject {int(names[least])} has "
                f"{int(counts[least])}: every view must show the same people; give a person whom a view misses a "
                "row of confidence 0"
            )
        rows = index.argsort(stable=True).reshape(len(names), -1)
        if mode == "auto":
            R, t = camera.R[rows], camera.t[rows]
            together = rows.shape[1] == 1 or bool(
                ((R - R[:, :1]).abs().amax() > 1e-6) | ((t - t[:, :1]).abs().amax() > 1e-6)
            )
        else:
            together = mode == "calibrated" or rows.shape[1] == 1
        return cls(rows, together)

    def start(self, initial: BodyParameters) -> Variables:
        """The initial bodies of a subject's views as one: the mean of their poses and shapes; the first view's
        place in a common world frame, else each its own."""
        own = self.rows if not self.together else self.rows[:, :1]
        rotation = initial.pose[:, 1:][self.rows]
        mean = rotation[:, 0] if rotation.shape[1] == 1 else project_to_rotation(rotation.mean(1))
        return Variables(
            matrix_to_axis_angle(mean),
            initial.betas[self.rows].mean(1),
            initial.pose[own, 0],
            initial.translation[own],
        )

    def unfold(self, value: Float[Tensor, "N V ..."]) -> Float[Tensor, "B ..."]:
        """A value a view as a value an observation row, in the observation's order."""
        return value.flatten(0, 1)[self.rows.flatten().argsort()]

    def spread(self, value: Float[Tensor, "N ..."]) -> Float[Tensor, "B ..."]:
        """A value a subject as a value an observation row."""
        return self.unfold(value[:, None].expand(*self.rows.shape, *value.shape[1:]))

    def body(self, variables: Variables) -> BodyParameters:
        """The body of each observation row."""
        wide = lambda x: self.unfold(x.expand(*self.rows.shape, *x.shape[2:]))  # noqa: E731
        local = self.spread(axis_angle_to_matrix(variables.angles))
        pose = torch.cat([wide(variables.root)[:, None], local], 1)
        return BodyParameters(pose, self.spread(variables.betas), wide(variables.translation))
