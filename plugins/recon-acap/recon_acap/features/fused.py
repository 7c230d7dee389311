"""Whole passes over the vertices of meshes by the kernels of `kernels`, without gradients.

What the maps of `codec.Operators` and the formulas of `logarithm` do in some dozen steps each, in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import warp as wp
from jaxtyping import Float, Int
from torch import Tensor

from recon_acap.features.kernels import kernels
from recon_core.geometry.rotations import matrix_to_axis_angle, project_to_rotation
from recon_std.renderers.warp.start import launch

UPPER = (0, 1, 2, 4, 5, 8)
"""Where the stretch's numbers (xx, xy, xz, yy, yz, zz) lie in a row-major 3 x 3 matrix."""


class Split(NamedTuple):
    """T = R S: the rotation R nearest to each T, the upper triangle of S, and R's angle (0 to pi) and axis (0 where
    the angle is)."""

    rotation: Float[Tensor, "N 3 3"]
    stretch: Float[Tensor, "N 6"]
    angle: Float[Tensor, " N"]
    axis: Float[Tensor, "N 3"]


class Ring(NamedTuple):
    """What each vertex has around it, vertex by vertex: ends (V,) of its entries, the neighbour and a vector each."""

    ends: Int[Tensor, " V"]
    neighbour: Int[Tensor, " H"]
    vector: Float[Tensor, "H 3"]

    @classmethod
    def of(
        cls, i: Int[np.ndarray, " H"], j: Int[np.ndarray, " H"], vector: Float[np.ndarray, "H 3"], count: int
    ) -> Ring:
        """From half edges (i, j) in any order."""
        order = np.argsort(i, kind="stable")
        ends = np.bincount(i, minlength=count).cumsum()
        return cls(*(torch.from_numpy(x) for x in (ends.astype("i4"), j[order].astype("i4"), vector[order])))


class Fan(NamedTuple):
    """The other two corners of each vertex's faces, in their order, vertex by vertex; `ends` (V,) of its entries."""

    ends: Int[Tensor, " V"]
    corners: Int[Tensor, "K 2"]

    @classmethod
    def of(cls, faces: Int[Tensor, "F 3"], count: int) -> Fan:
        vertex = faces.T.reshape(-1)
        others = torch.cat([faces[:, [1, 2]], faces[:, [2, 0]], faces[:, [0, 1]]])
        return cls(torch.bincount(vertex, minlength=count).cumsum(0).int(), others[vertex.argsort(stable=True)].int())


@dataclass(frozen=True)
class Tables:
    """A connectivity's tables on one device. ring: equation 1's response to each edge; normal: (V, 3), to the normal.
    links: half the weighted edges of equation 6."""

    ring: Ring
    fan: Fan
    normal: Float[Tensor, "V 3"]
    links: Ring

    def to(self, device: torch.device) -> Tables:
        moved = lambda table: type(table)(*(x.to(device) for x in table))  # noqa: E731
        return Tables(moved(self.ring), moved(self.fan), self.normal.to(device), moved(self.links))


def affine(vertices: Float[Tensor, "B V 3"], tables: Tables) -> Float[Tensor, "B V 3 3"]:
    """T of equation 1: sum over the ring of (p_i - p_j) v_ij^T, plus the unit normal of vertex i times its response."""
    out = vertices.new_empty(*vertices.shape, 3)
    arguments = (vertices, *tables.ring, *tables.fan, tables.normal, out)
    launch_over(kernels(vertices.dtype).affine, vertices.shape[:2], arguments)
    return out


def split(T: Float[Tensor, "N 3 3"]) -> Split:
    """Polar decomposition of many matrices whatever the sign of det T, in closed form; by an SVD for the few whose
    smallest singular values cancel."""
    count = len(T)
    found = Split(T.new_empty(count, 3, 3), T.new_empty(count, 6), T.new_empty(count), T.new_empty(count, 3))
    launch_over(kernels(T.dtype).split, (count,), (T, *found))
    rows = (found.angle < 0).nonzero().squeeze(1)
    if len(rows):
        hard = T[rows].double()
        R = project_to_rotation(hard)
        vector = matrix_to_axis_angle(R)
        angle = vector.norm(dim=1)
        S = R.mT @ hard
        found.rotation[rows] = R.to(T)
        found.stretch[rows] = ((S + S.mT) / 2).flatten(1)[:, list(UPPER)].to(T)
        found.angle[rows] = angle.to(T)
        found.axis[rows] = torch.where(angle[:, None] > 1e-6, vector / angle.clamp(min=1e-6)[:, None], 0).to(T)
    return found


def right_sides(features: Float[Tensor, "B V 9"], tables: Tables) -> Float[Tensor, "V B3"]:
    """Equation 6's right sides of features, float64: sum over the links of (T_i + T_j) v_ij."""
    batch, count, _ = features.shape
    T = features.new_empty(batch, count, 3, 3)
    out = torch.empty(count, batch, 3, dtype=torch.float64, device=features.device)
    own = kernels(features.dtype)
    launch_over(own.to_affine, (batch, count), (features, T))
    launch_over(own.sums, (batch, count), (T, *tables.links, out))
    return out.flatten(1)


def launch_over(kernel: wp.Kernel, dim: Sequence[int], arguments: Sequence[Any]) -> None:
    """Launch a kernel over tensors, which become arrays of the vectors and matrices that it declares.

    Tensors that it writes to must be contiguous.
    """
    if not all(dim):
        return
    held = [value.detach().contiguous() if isinstance(value, Tensor) else value for value in arguments]
    declared: list[Any] = [argument.type for argument in kernel.adj.args]
    given = [
        wp.from_torch(value, kind.dtype, return_ctype=True) if isinstance(value, Tensor) else value
        for value, kind in zip(held, declared, strict=True)
    ]
    (device,) = {value.device for value in arguments if isinstance(value, Tensor)}
    launch(kernel, [tuple(dim)], [given], device)
