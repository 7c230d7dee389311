"""Axis-angle vectors that agree over a mesh (the integer programme of Gao et al., arXiv 1709.01250, section 3).

A rotation by `angle` about `axis` is as well one by angle + 2 pi m about it, for any whole m (and one by the opposite
angle about the opposite axis, which is the same vector). `Consistency` chooses m for every vertex so that

    sum over links (i, j) of |r_i - r_j|^2,   r_i = (angle_i + 2 pi m_i) axis_i

is small: first along a breadth-first tree, each vertex as near to its parent as can be. If then no link would gain by a
turn at either end, each link's term is at its least, and so is the sum. Meshes with such links (around folds, where
neighbours differ by half a turn) are done again along the minimum spanning tree of their own differences, which crosses
folds last, and then single vertices are turned for as long as the sum falls: the heuristic, for these meshes only.
The roots of the tree keep an angle of at most pi: meshes are best aligned with the reference first.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from recon_acap.features.connectivity import Connectivity
from recon_acap.features.fused import launch_over
from recon_acap.features.turning import BUCKETS, turning_kernels

TURN = 2 * math.pi
LIMIT = math.pi * (1 + 1e-5)
"""Radians from which a turn at one end brings a link's ends nearer. A little over pi: at exactly half a turn either
choice is as good."""


class Consistency:
    """Chooses turns for the meshes of one connectivity. Tables are kept for each device."""

    def __init__(self, connectivity: Connectivity) -> None:
        self.connectivity = connectivity
        self._kept: dict[torch.device, _Tables] = {}

    def __call__(self, angle: Float[Tensor, "B V"], axis: Float[Tensor, "B V 3"]) -> Float[Tensor, "B V 3"]:
        """Consistent axis-angle vectors of rotations given by angle (radians) and unit axis.

        axis: all zeros where the angle is 0 and the axis arbitrary; such a vertex takes its parent's.
        """
        tables = self._on(angle.device)
        phase, axis = tables.along_tree(angle.T, axis.transpose(0, 1))
        strained = tables.strained(phase, axis).any(0).nonzero().squeeze(1)
        if len(strained):
            phase[:, strained] = tables.repaired(phase[:, strained], axis[:, strained])
        return (axis * phase[..., None]).transpose(0, 1)

    def strained(self, vectors: Float[Tensor, "B V 3"]) -> Bool[Tensor, "B L"]:
        """The links (rows of `connectivity.links`) one of whose ends a whole turn would bring nearer to the other."""
        phase = vectors.norm(dim=-1)
        axis = vectors / phase.clamp(min=torch.finfo(vectors.dtype).tiny)[..., None]
        return self._on(vectors.device).strained(phase.T, axis.transpose(0, 1)).T

    def _on(self, device: torch.device) -> _Tables:
        if device not in self._kept:
            self._kept[device] = _Tables(self.connectivity, device)
        return self._kept[device]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": {}}


class _Tables:
    """A connectivity's links and tree on one device. Vertices come first here, so that a level is one block."""

    def __init__(self, connectivity: Connectivity, device: torch.device) -> None:
        self.connectivity = connectivity
        self.device = device
        self.links = connectivity.links.int().to(device)
        order, parent, self.ends = connectivity.tree
        self.order, self.parent = order.to(device), parent.to(device)
        self.place = order.argsort().to(device)
        self.one_by_one = tuple(x.int().to(device) for x in (order, order[parent]))
        self.ring = tuple(x.to(device) for x in connectivity.linked)

    def along_tree(
        self, angle: Float[Tensor, "V B"], axis: Float[Tensor, "V B 3"]
    ) -> tuple[Float[Tensor, "V B"], Float[Tensor, "V B 3"]]:
        """Angles with their turns, and axes with the undefined ones filled in from the tree."""
        if not axis.is_cuda:
            phase, axis = (x.clone(memory_format=torch.contiguous_format) for x in (angle, axis))
            launch_over(turning_kernels(phase.dtype).along_tree, (phase.shape[1],), (phase, axis, *self.one_by_one))
            return phase, axis
        axis = axis[self.order]
        undefined = (axis == 0).all(-1)
        if undefined.any():
            axis = self._inherited(axis, undefined)
        turns = angle[self.order] / TURN
        cosine = (axis * axis[self.parent]).sum(-1)
        for start, end in zip(self.ends[:-1], self.ends[1:], strict=True):
            own = turns[start:end]
            own += (cosine[start:end] * turns[self.parent[start:end]] - own).round_()
        return turns[self.place] * TURN, axis[self.place]

    def _inherited(self, axis: Float[Tensor, "V B 3"], undefined: Bool[Tensor, "V B"]) -> Float[Tensor, "V B 3"]:
        # Each step doubles how far up the tree a vertex looks for a defined axis.
        here = torch.arange(len(axis), device=axis.device)[:, None].expand_as(undefined)
        source = torch.where(undefined, self.parent[:, None], here)
        for _ in range(len(self.ends).bit_length()):
            source = source.gather(0, source)
        return axis.gather(0, source[..., None].expand_as(axis))

    def strained(self, phase: Float[Tensor, "V B"], axis: Float[Tensor, "V B 3"]) -> Bool[Tensor, "L B"]:
        out = torch.zeros(len(self.links), phase.shape[1], dtype=torch.bool, device=self.device)
        launch_over(turning_kernels(phase.dtype).strained, out.shape, (phase, axis, self.links, LIMIT, out))
        return out

    def repaired(self, phase: Float[Tensor, "V B"], axis: Float[Tensor, "V B 3"]) -> Float[Tensor, "V B"]:
        """Phases along a tree that crosses folds last, then vertices turned while the sum of squares falls. phase:
        along the breadth-first tree."""
        kernels = turning_kernels(phase.dtype)
        vertices, meshes = phase.shape
        phase, axis = phase.clone(memory_format=torch.contiguous_format), axis.contiguous()
        table = lambda width: torch.zeros(meshes, width, dtype=torch.int32, device=self.device)  # noqa: E731
        links = len(self.links)
        forest = tuple(table(vertices) for _ in range(4))
        launch_over(kernels.parts, (meshes,), (axis, *self.one_by_one, *forest, phase))
        sorting = (self.links, table(links), table(BUCKETS + 1), table(links))
        launch_over(kernels.joined, (meshes,), (axis, *sorting, *forest, phase))
        launch_over(kernels.turned, (meshes,), (*self.one_by_one, *forest, phase))
        launch_over(kernels.settle, (meshes,), (axis, self.links, *self.ring, LIMIT, phase))
        return phase
