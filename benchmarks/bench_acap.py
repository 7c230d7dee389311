"""ACAP features of a mesh, and meshes of features: recon's codec against the plain ways, side by side in one process.

    python benchmarks/bench_acap.py [--body free-full] [--bodies 8] [--bend 0.3] [--repeats 7]

Posed bodies, one at a time, float32, one thread (its own time, so that other programs do not count). Extraction's peer
gathers one-rings, solves 3 x 3 systems, takes torch.linalg.svd of every vertex and makes axis-angles consistent along a
breadth-first queue, vertex by vertex in NumPy, or (second row) by levels in torch, recon's own way. It stops there,
while recon goes on to repair meshes with strained links. "equation 1" is the codec with blur=None, as the peers;
"default" adds the correction that makes meshes return. The way back has scipy's spsolve as its peer, called afresh for
each mesh with the same right sides.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from recon_acap.features import AcapCodec, Connectivity
from recon_acap.features.codec import map_columns
from recon_acap.features.fused import split
from recon_acap.features.logarithm import to_affine
from recon_core.geometry.rotations import axis_angle_to_matrix, geodesic_distance, matrix_to_axis_angle
from recon_core.geometry.topology import face_normals
from recon_core.structures import BodyParameters
from recon_std.bodies import load_body

UPPER = (0, 1, 2, 4, 5, 8)


class PlainExtraction:
    """Equation 1 by gathering, SVD and a queue; the normal as one more edge, as the codec has it."""

    def __init__(self, mesh: Connectivity, normal_share: float = 0.05) -> None:
        self.mesh = mesh
        self.ring, weight = padded_ring(mesh)
        q = mesh.reference
        self.edge = (q[:, None] - q[self.ring]) * weight[..., None]
        M = self.edge.mT @ (q[:, None] - q[self.ring])
        self.normal_weight = (normal_share * M.diagonal(dim1=1, dim2=2).sum(1))[:, None]
        self.normal = self.normals(q[None])[0]
        M = M + (self.normal_weight * self.normal)[..., None] * self.normal[:, None]
        self.M, self.edge, self.normal, self.normal_weight = (
            x.float() for x in (M, self.edge, self.normal, self.normal_weight)
        )
        order, parent, self.ends = mesh.tree
        self.order, self.parent = order, parent
        self.queue = list(zip(order.tolist(), order[parent].tolist(), strict=True))[self.ends[0] :]

    def normals(self, vertices: Tensor) -> Tensor:
        normal = face_normals(vertices, self.mesh.faces, unit=False)
        summed = torch.zeros_like(vertices).index_add(1, self.mesh.faces.T.reshape(-1), normal.repeat(1, 3, 1))
        return torch.nn.functional.normalize(summed, dim=-1)

    def rotations(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Axis-angle vectors of at most half a turn, and stretches."""
        moved = (p[:, None] - p[self.ring]).mT @ self.edge
        moved = moved + self.normals(p[None])[0][..., None] * (self.normal_weight * self.normal)[:, None]
        T = torch.linalg.solve(self.M, moved.mT).mT
        U, S, Vh = torch.linalg.svd(T)
        sign = torch.ones_like(S)
        sign[:, 2] = torch.linalg.det(U @ Vh)
        R = (U * sign[:, None]) @ Vh
        return matrix_to_axis_angle(R), (Vh.mT * (sign * S)[:, None]) @ Vh

    def by_queue(self, p: Tensor) -> Tensor:
        vectors, stretch = self.rotations(p)
        r = vectors.numpy().copy()
        angle = np.linalg.norm(r, axis=1)
        axis = r / np.maximum(angle, 1e-12)[:, None]
        for vertex, parent in self.queue:
            turns = np.rint((axis[vertex] @ r[parent] - angle[vertex]) / (2 * np.pi))
            if turns:
                r[vertex] += 2 * np.pi * turns * axis[vertex]
        return torch.cat([torch.from_numpy(r), stretch.flatten(1)[:, list(UPPER)]], 1)

    def by_levels(self, p: Tensor) -> Tensor:
        vectors, stretch = self.rotations(p)
        r = vectors[self.order]
        angle = r.norm(dim=1, keepdim=True)
        axis = r / angle.clamp(min=1e-12)
        for start, end in zip(self.ends[:-1], self.ends[1:], strict=True):
            along = (axis[start:end] * r[self.parent[start:end]]).sum(1, keepdim=True)
            turns = ((along - angle[start:end]) / (2 * np.pi)).round()
            r[start:end] = axis[start:end] * (angle[start:end] + 2 * np.pi * turns)
        out = torch.empty_like(r)
        out[self.order] = r
        return torch.cat([out, stretch.flatten(1)[:, list(UPPER)]], 1)


def padded_ring(mesh: Connectivity) -> tuple[Tensor, Tensor]:
    """Each vertex's neighbours (V, N), padded by the vertex itself, and their cotangent weights, padded by 0."""
    start, end = torch.cat([mesh.edges, mesh.edges.flip(1)]).T
    order = start.argsort(stable=True)
    start, end, weights = start[order], end[order], mesh.edge_weights.repeat(2)[order]
    degree = torch.bincount(start, minlength=mesh.vertex_count)
    place = torch.arange(len(start)) - (degree.cumsum(0) - degree)[start]
    neighbours = torch.arange(mesh.vertex_count)[:, None].repeat(1, int(degree.max()))
    padded = torch.zeros(neighbours.shape, dtype=torch.float64)
    neighbours[start, place], padded[start, place] = end, weights
    return neighbours, padded


def posed_bodies(name: str, count: int, bend: float) -> Tensor:
    """Shapes and poses at random, joints bent by `bend` radians a coordinate (standard deviation)."""
    body = load_body(name)
    generator = torch.Generator().manual_seed(0)
    pose = bend * torch.randn(count, 24, 3, generator=generator)
    pose[:, 0] = 0
    betas = torch.randn(count, 10, generator=generator)
    return body(BodyParameters(axis_angle_to_matrix(pose), betas, torch.zeros(count, 3))).vertices


def medians(functions: dict[str, Callable[[int], object]], bodies: int, repeats: int) -> dict[str, float]:
    """Median milliseconds over bodies and rounds, in turns so that disturbances meet all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for k in range(bodies):
            for name, function in functions.items():
                start = time.thread_time()
                function(k)
                if turn:
                    times[name].append(1e3 * (time.thread_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--body", default="free-full")
    parser.add_argument("--bodies", type=int, default=8)
    parser.add_argument("--bend", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    body = load_body(options.body)
    mesh = Connectivity(body.template, body.faces)
    pure, full = AcapCodec(mesh, blur=None), AcapCodec(mesh)
    plain = PlainExtraction(mesh)
    vertices = posed_bodies(options.body, options.bodies, options.bend)
    features = full.extract(vertices)
    strained = int(pure.consistency.strained(pure.extract(vertices)[..., :3]).any(1).sum())
    print(f"{options.bodies} posed bodies ({strained} with strained links) of {mesh.vertex_count} vertices, one thread")

    with torch.no_grad():
        T = pure.affine(vertices)
        svd = torch.stack([axis_angle_to_matrix(plain.rotations(p)[0]) for p in vertices])
        gap = geodesic_distance(split(T.flatten(0, 1)).rotation.view_as(T), svd)
        S = torch.linalg.svdvals(T.double())
        sure = S[..., 1] + S[..., 2] * torch.linalg.det(T.double()).sign() > 0.05 * S[..., 0]
        print(
            f"rotations, ours against the SVD's, on every vertex: median {float(gap.median()):.1e} rad, worst "
            f"{float(gap[sure].max()):.1e}, and {float(gap.max()):.1e} where singular values cancel to 5 % "
            f"({int((~sure).sum())} of {sure.numel()} vertices)"
        )
        extraction = medians(
            {
                "plain SVD path, queue": lambda k: plain.by_queue(vertices[k]),
                "plain SVD path, levels": lambda k: plain.by_levels(vertices[k]),
                "recon, equation 1": lambda k: pure.extract(vertices[k : k + 1]),
                "recon, default": lambda k: full.extract(vertices[k : k + 1]),
            },
            options.bodies,
            options.repeats,
        )
        matrix = full.operators.grounded(full.operators.laplacian).tocsc()
        right = full.operators.right_side

        def fresh(k: int) -> Tensor:
            columns = map_columns(to_affine(features[k : k + 1])).double().numpy()
            return torch.from_numpy(scipy.sparse.linalg.spsolve(matrix, right @ columns))

        ours = full.reconstruct(features[:1])[0].double()
        theirs = fresh(0)
        print(f"points, ours against spsolve's: {float((ours - theirs - (ours - theirs).mean(0)).abs().max()):.1e} m")
        back = medians(
            {"spsolve each time": fresh, "recon": lambda k: full.reconstruct(features[k : k + 1])},
            options.bodies,
            options.repeats,
        )
    for title, times in (("mesh to features", extraction), ("features to mesh", back)):
        peers = [name for name in times if not name.startswith("recon")]
        print(f"\n{title:28}{'ms':>9}" + "".join(f"{'x ' + peer:>28}" for peer in peers))
        for name, value in times.items():
            print(f"{name:28}{value:9.2f}" + "".join(f"{times[peer] / value:27.1f}x" for peer in peers))


if __name__ == "__main__":
    main()
