"""What rasterising gives: for each pixel the surface seen through its centre."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon_core.structures import Batched


@dataclass(frozen=True)
class Fragments(Batched):
    """The nearest surface at each pixel centre of B pictures.

    face: (B, H, W) int64, number of the face among the scene's packed faces, -1 where there is none.
    barycentrics: (B, H, W, 3), perspective-correct weights of the face's three vertices, summing to 1; 0
    where there is no face. depth: (B, H, W), metres along the camera's axis; 0 where there is no face.
    barycentrics and depth carry gradients to the vertices and the camera.
    """

    face: Int[Tensor, "B H W"]
    barycentrics: Float[Tensor, "B H W 3"]
    depth: Float[Tensor, "B H W"]

    @classmethod
    def empty(cls, size: tuple[int, int, int], like: Tensor) -> Fragments:
        """B pictures (B, H, W) of nothing, with the dtype and device of `like`."""
        zeros = like.new_zeros(size)
        return cls(torch.full_like(zeros, -1, dtype=torch.int64), like.new_zeros(*size, 3), zeros)

    @property
    def mask(self) -> Bool[Tensor, "B 1 H W"]:
        """Where there is a surface. Carries no gradient: see `Renderer.silhouette`."""
        return self.face[:, None] >= 0

    @cached_property
    def visible(self) -> Visible:
        """The pixels that show a surface, as a list."""
        index = torch.nonzero(self.face.reshape(-1) >= 0).squeeze(1)
        return Visible(
            index,
            self.face.reshape(-1)[index],
            self.barycentrics.reshape(-1, 3).index_select(0, index),
            tuple(self.face.shape),  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Visible:
    """The P pixels of B pictures that show a surface.

    index: (P,) int64 positions in the flattened (B, H, W), ascending. face: (P,) packed face numbers.
    barycentrics: (P, 3). size: (B, H, W).
    """

    index: Int[Tensor, " P"]
    face: Int[Tensor, " P"]
    barycentrics: Float[Tensor, "P 3"]
    size: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def picture(self) -> Int[Tensor, " P"]:
        """The picture of each pixel."""
        return self.index // (self.size[1] * self.size[2])

    def image(
        self, values: Float[Tensor, "P C"], background: Float[Tensor, ...] | float = 0.0
    ) -> Float[Tensor, "B C H W"]:
        """The values at their pixels, over a background: a number, (C,) or (B, C, H, W)."""
        B, H, W = self.size
        C = values.shape[1]
        plane = H * W
        # Written planar at once, which saves transposing a full picture.
        position = self.index % plane + self.index // plane * (C * plane)
        position = position[:, None] + torch.arange(0, C * plane, plane, device=position.device)
        under = torch.as_tensor(background, dtype=values.dtype, device=values.device)
        if under.dim() == 1:
            under = under[:, None, None]
        flat = under.expand(B, C, H, W).reshape(-1)
        return flat.index_put((position,), values).reshape(B, C, H, W)
