"""Losses that keep a mesh well formed. prediction["vertices"]: (B, V, 3) metres, of the connectivity given at first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.geometry import topology
from recon_core.interfaces import Loss
from recon_core.structures import LossValue
from recon_std.losses.common import difference, presence, single


class MeshLaplacianLoss(Loss):
    """Mean squared length of Laplacian coordinates, or of their change from the target's.

    faces: (F, 3). laplacian "uniform": a vertex minus the mean of its neighbours (CASL section 3.3). "cotangent": the
    weights of the mesh `reference` (V, 3), which must then be given; they stay fixed. relative: compare with the
    coordinates of target["vertices"] (target may hold has_vertices (B,)); else smooth towards 0 (CMR, UMR).
    """

    operator: Tensor

    def __init__(
        self,
        faces: Int[Tensor, "F 3"],
        vertex_count: int,
        laplacian: Literal["uniform", "cotangent"] = "uniform",
        reference: Float[Tensor, "V 3"] | None = None,
        relative: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if laplacian == "uniform":
            operator = topology.uniform_laplacian(faces, vertex_count)
        elif reference is not None:
            operator = topology.cotangent_laplacian(reference, faces)
        else:
            raise UsageError("loss mesh-laplacian: the cotangent form needs the vertices of a reference mesh")
        self.register_buffer("operator", operator, persistent=False)
        self.relative, self.weight = relative, weight

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        vertices = prediction["vertices"]
        known = vertices.new_ones(len(vertices))
        if self.relative:
            known = presence(target, "vertices", vertices)
            vertices = difference(vertices, target["vertices"], known)
        coordinates = topology.apply_sparse(self.operator.to(vertices), vertices)
        return single("mesh-laplacian", known * (coordinates**2).sum(-1).mean(1), self.weight)


class FlatnessLoss(Loss):
    """Mean of (1 - cos a)^2 over pairs of adjacent faces, a the angle between their normals: 0 on a flat mesh.

    With the angle between the faces themselves, t = pi - a, it is (cos t + 1)^2 (Soft Rasterizer; CASL section 3.3).
    """

    pairs: Int[Tensor, "P 2"]
    faces: Int[Tensor, "F 3"]

    def __init__(self, faces: Int[Tensor, "F 3"], weight: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("faces", faces, persistent=False)
        self.register_buffer("pairs", topology.adjacent_faces(faces), persistent=False)
        self.weight = weight

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        """Reads no target."""
        normals = topology.face_normals(prediction["vertices"], self.faces)
        first, second = normals[:, self.pairs].unbind(2)
        value = ((1 - (first * second).sum(-1)) ** 2).mean(1)
        return single("flatness", value, self.weight)


class EdgeLengthLoss(Loss):
    """Mean squared edge length in m^2 (Pixel2Mesh; UMR's regularisation), or its change from the target's lengths.

    relative: compare with the edges of target["vertices"] (target may hold has_vertices (B,)).
    """

    edges: Int[Tensor, "E 2"]

    def __init__(self, faces: Int[Tensor, "F 3"], relative: bool = False, weight: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("edges", topology.edges(faces).vertices, persistent=False)
        self.relative, self.weight = relative, weight

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        squared = self._squared_lengths(prediction["vertices"])
        known = squared.new_ones(len(squared))
        if self.relative:
            known = presence(target, "vertices", squared)
            # The root of a clamped square: an edge of length 0 has gradient 0, not NaN.
            tiny = torch.finfo(squared.dtype).tiny
            wanted = self._squared_lengths(target["vertices"]).clamp(min=tiny).sqrt()
            squared = difference(squared.clamp(min=tiny).sqrt(), wanted, known) ** 2
        return single("edge-length", known * squared.mean(1), self.weight)

    def _squared_lengths(self, vertices: Float[Tensor, "B V 3"]) -> Float[Tensor, "B E"]:
        start, end = vertices[:, self.edges].unbind(2)
        return ((end - start) ** 2).sum(-1)


class MirrorSymmetryLoss(Loss):
    """Mean |Z(p) + Z(p')| over vertices p and their mirror images p' (CASL section 3.3, after Tulsiani et al., 2020):
    what is as far in front of the plane z = 0 as its mirror image is behind it costs nothing.

    mirror: (V,) the vertex that mirrors each.
    """

    mirror: Int[Tensor, " V"]

    def __init__(self, mirror: Int[Tensor, " V"], weight: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mirror", mirror, persistent=False)
        self.weight = weight

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        """Reads no target."""
        depth = prediction["vertices"][..., 2]
        return single("mirror-symmetry", (depth + depth[:, self.mirror]).abs().mean(1), self.weight)


class DeformationLoss(Loss):
    """Mean length of the offsets prediction["offsets"], (B, V, 3), from a template (CASL section 3.3; CMR)."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: Mapping[str, Any], target: Mapping[str, Any]) -> LossValue:
        """Reads no target."""
        # The root of 1e-12 keeps the gradient of offsets that are 0 from being NaN.
        length = ((prediction["offsets"] ** 2).sum(-1) + 1e-12).sqrt()
        return single("deformation", length.mean(1), self.weight)
