"""Probabilistic coverage: settings, and each face's probability map over pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.interfaces import Settings


class SoftSettings(Settings):
    """How blurred a soft silhouette is. Lengths are in units of half the picture's shorter side, as in SoftRas
    and pytorch3d.

    A face covers a pixel with probability sigmoid(+-d^2 / sigma), d the distance to its projected outline.
    """

    sigma: float = Field(1e-4, gt=0)
    """Squared length over which coverage falls off."""
    faces_per_pixel: int | None = Field(None, ge=1)
    """Only this many faces nearest to the camera count at each pixel; None counts all. On a mesh whose faces are
    smaller than the blur, few of them leave holes: the nearest ones may all lie beside the pixel."""
    cutoff: float = Field(1e-4, gt=0, lt=0.5)
    """Faces of smaller probability count for nothing."""
    least_area: float = Field(1e-8, ge=0)
    """Faces of no more than half this projected area count for nothing: seen edge-on, they have no inside."""
    near: float = Field(0.01, gt=0)
    """Metres. Faces that come nearer than this to a perspective camera count for nothing."""

    @property
    def reach(self) -> float:
        """The distance at which probability falls to the cutoff."""
        return math.sqrt(math.log(1 / self.cutoff - 1) * self.sigma)


@dataclass(frozen=True)
class FaceProbabilities:
    """W of B pictures, as the list of its E entries above the cutoff: W[face, pixel] = probability.

    W_j^m is the probability of face j being projected onto pixel m (Li et al., ECCV 2020, equation 5), before
    occlusion: faces behind others count. face: (E,) packed face numbers, ascending. pixel: (E,) positions in
    the flattened (B, H, W). probability: (E,), with gradients to vertices and camera. size: (B, H, W).
    faces: how many there are, M.
    """

    face: Int[Tensor, " E"]
    pixel: Int[Tensor, " E"]
    probability: Float[Tensor, " E"]
    size: tuple[int, int, int]
    faces: int

    @property
    def position(self) -> Float[Tensor, "E 2"]:
        """Centre of each entry's pixel, x right and y down, in pixels."""
        _, height, width = self.size
        inside = self.pixel % (height * width)
        return torch.stack([inside % width, inside // width], 1).to(self.probability) + 0.5

    def where(self, keep: Tensor) -> FaceProbabilities:
        """Only the entries that `keep` (E,) marks, e.g. those of faces that are seen."""
        return FaceProbabilities(self.face[keep], self.pixel[keep], self.probability[keep], self.size, self.faces)

    def totals(self) -> Float[Tensor, " M"]:
        """sum_m W_j^m of each packed face; 0 where it reaches no pixel."""
        return self.probability.new_zeros(self.faces).index_add(0, self.face, self.probability)

    def centers(self) -> Float[Tensor, "M 2"]:
        """C_out of equation 5: the mean pixel position of each packed face, weighted by W; 0 where it has none."""
        weighted = self.position * self.probability[:, None]
        total = self.totals()
        sums = weighted.new_zeros(self.faces, 2).index_add(0, self.face, weighted)
        return sums / torch.where(total > 0, total, torch.ones_like(total))[:, None]

    def dense(self) -> Float[Tensor, "B F P"]:
        """W of each picture over its F faces and P = H W pixels. Raises UsageError if F differs between pictures.

        It takes B F P numbers: for small meshes and pictures only.
        """
        B, height, width = self.size
        if B and self.faces % B:
            raise UsageError(f"{self.faces} faces in {B} pictures are not the same number in each: use the entries")
        plane, count = height * width, self.faces // max(B, 1)
        picture = self.pixel // plane
        if not torch.equal(picture, self.face // max(count, 1)):
            raise UsageError("the pictures do not show the same number of faces each, in order: use the entries")
        flat = self.face * plane + self.pixel % plane
        W = self.probability.new_zeros(self.faces * plane).index_put((flat,), self.probability)
        return W.reshape(B, count, plane)
