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
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import Tensor

from recon_acap.features.connectivity import Connectivity

TURN = 2 * math.pi
ROUNDS = 30
"""Most rounds of turning vertices; they end as soon as nothing is gained."""


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
            phase[:, strained] = tables.repaired(angle.T[:, strained], axis[:, strained])
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
        self.links = connectivity.links.to(device)
        order, parent, self.ends = connectivity.tree
        self.order, self.parent = order.to(device), parent.to(device)
        self.place = order.argsort().to(device)

    @cached_property
    def neighbours(self) -> tuple[Int[Tensor, "V N"], Float[Tensor, "V N"]]:
        table, present = self.connectivity.linked
        return table.to(self.device), present.to(self.device)

    def along_tree(
        self, angle: Float[Tensor, "V B"], axis: Float[Tensor, "V B 3"]
    ) -> tuple[Float[Tensor, "V B"], Float[Tensor, "V B 3"]]:
        """Angles with their turns, and axes with the undefined ones filled in from the tree."""
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
        one, two = self.links.T
        far = phase.abs()
        out = far[one] + far[two] > math.pi
        link, mesh = out.nonzero().T
        if len(link):
            a, b = one[link], two[link]
            cosine = (axis[a, mesh] * axis[b, mesh]).sum(-1)
            first, second = phase[a, mesh], phase[b, mesh]
            # A little over pi: at exactly half a turn either choice is as good.
            gap = torch.maximum((cosine * second - first).abs(), (cosine * first - second).abs())
            out[link, mesh] = gap > math.pi * (1 + 1e-5)
        return out

    def repaired(self, angle: Float[Tensor, "V B"], axis: Float[Tensor, "V B 3"]) -> Float[Tensor, "V B"]:
        """Phases along the tree that crosses folds last, then vertices turned while the sum of squares falls."""
        return self._turn_vertices(angle, self._along_smoothest(angle, axis), axis)

    def _along_smoothest(self, angle: Tensor, axis: Tensor) -> Float[Tensor, "V B"]:
        """Follow each mesh's own minimum spanning tree, whose links join the rotations nearest to each other."""
        q = torch.cat([(angle / 2).cos()[..., None], (angle / 2).sin()[..., None] * axis], -1)
        one, two = self.links.T
        # A link of weight 0 would be none to scipy.
        apart = 1 - (q[one] * q[two]).sum(-1).abs() + 1e-6
        parent = torch.from_numpy(self._spanning_trees(apart.cpu().numpy())).to(self.device)
        flat, axes = angle.reshape(-1), axis.reshape(-1, 3)
        sign = torch.where((axes * axes[parent]).sum(-1) < 0, -1.0, 1.0).to(flat)
        turns = ((sign * flat[parent] - flat) / TURN).round()
        # turns_i = sign_i turns_parent + step_i is followed up the tree by as many links each time as so far.
        while (parent != parent[parent]).any():
            turns = sign * turns[parent] + turns
            sign, parent = sign * sign[parent], parent[parent]
        return (flat + TURN * turns).view_as(angle)

    def _spanning_trees(self, weight: np.ndarray) -> np.ndarray:
        """Parents in the minimum spanning trees of B meshes, by place in (V, B); a root is its own. weight: (L, B)."""
        meshes, vertices = weight.shape[1], len(self.order)
        ends = self.links.cpu().numpy()[:, None] * meshes + np.arange(meshes)[:, None]
        roots = self.order[: self.ends[0]].cpu().numpy()[:, None] * meshes + np.arange(meshes)
        count = vertices * meshes
        # One more node joins the roots, so that one tree spans all meshes.
        row = np.concatenate([ends[..., 0].reshape(-1), roots.reshape(-1)])
        column = np.concatenate([ends[..., 1].reshape(-1), np.full(roots.size, count)])
        values = np.concatenate([weight.reshape(-1), np.full(roots.size, 1e-9)])
        tree = minimum_spanning_tree(coo_matrix((values, (row, column)), (count + 1, count + 1)))
        parent = breadth_first_order(tree, count, directed=False)[1][:count]
        return np.where(parent == count, np.arange(count), parent).astype(np.int64)

    def _turn_vertices(self, angle: Tensor, phase: Tensor, axis: Tensor) -> Float[Tensor, "V B"]:
        table, present = self.neighbours
        present = present.to(phase)
        for _ in range(ROUNDS):
            link, mesh = self.strained(phase, axis).nonzero().T
            key = (self.links[link] * phase.shape[1] + mesh[:, None]).unique()
            vertex, mesh = key // phase.shape[1], key % phase.shape[1]
            ring, weight = table[vertex], present[vertex]
            # The sum over a vertex's links is least at `best`, and grows with the square of the distance from it.
            along = (axis[ring, mesh[:, None]] * axis[vertex, mesh][:, None]).sum(-1)
            best = (weight * along * phase[ring, mesh[:, None]]).sum(1) / weight.sum(1)
            own, plain = phase[vertex, mesh], angle[vertex, mesh]
            wanted = plain + TURN * ((best - plain) / TURN).round()
            gain = weight.sum(1) * ((own - best) ** 2 - (wanted - best) ** 2)
            # Neighbours must not move at once: of those that gain, the ones that gain most around them.
            gains = torch.zeros_like(phase)
            gains[vertex, mesh] = gain
            rival = torch.where(weight > 0, gains[ring, mesh[:, None]], 0)
            foremost = (rival < gain[:, None]) | ((rival == gain[:, None]) & (ring > vertex[:, None])) | (weight == 0)
            move = (gain > 1e-6) & foremost.all(1)
            if not move.any():
                break
            phase[vertex[move], mesh[move]] = wanted[move]
        return phase
