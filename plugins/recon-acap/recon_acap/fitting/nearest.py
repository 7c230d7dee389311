"""The nearest point of a triangle mesh: by a KD tree over face centres, then exactly on the candidates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree


class Nearest(NamedTuple):
    """distance (M,) metres; face (M,); barycentric (M, 3), coordinates of the nearest point in that face."""

    distance: Float[np.ndarray, " M"]
    face: Int[np.ndarray, " M"]
    barycentric: Float[np.ndarray, "M 3"]


def nearest_on_mesh(
    points: Float[np.ndarray, "M 3"],
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    normals: Float[np.ndarray, "M 3"] | None = None,
    candidates: int = 8,
    exact: bool = False,
) -> Nearest:
    """The point of the surface nearest to each of `points`.

    normals: unit normals of the points (length 0 where unknown): faces that look the other way by more than 75
    degrees are taken only where no candidate looks the same way. candidates: faces tried a point, those with the
    nearest centres; nearly always enough on meshes of even faces. exact: try further faces until none left out can be
    nearer, for measuring.
    """
    corners = vertices[faces]
    centres = corners.mean(1)
    radius = float(np.linalg.norm(corners - centres[:, None], axis=-1).max(initial=0.0))
    tree = cKDTree(centres)
    k = min(candidates, len(faces))
    distance, chosen, weights = _among(points, corners, normals, tree, k)
    while exact and k < len(faces):
        # A face whose centre is farther than the best distance plus the largest radius cannot hold a nearer point.
        beyond, _ = tree.query(points, k=[k])
        open_ = np.flatnonzero(beyond[:, 0] < distance + radius)
        if not len(open_):
            break
        k = min(2 * k, len(faces))
        part = None if normals is None else normals[open_]
        distance[open_], chosen[open_], weights[open_] = _among(points[open_], corners, part, tree, k)
    return Nearest(distance, chosen, weights)


def _among(points, corners, normals, tree, k):  # type: ignore[no-untyped-def]
    _, index = tree.query(points, k=range(1, k + 1))
    triangle = corners[index]
    weights = barycentric_of_nearest(points[:, None], triangle)
    gap = np.linalg.norm((weights[..., None] * triangle).sum(-2) - points[:, None], axis=-1)
    penalty = np.zeros_like(gap)
    if normals is not None:
        facing = np.cross(triangle[:, :, 1] - triangle[:, :, 0], triangle[:, :, 2] - triangle[:, :, 0])
        length = np.linalg.norm(facing, axis=-1)
        cosine = (facing * normals[:, None]).sum(-1) / np.maximum(length, 1e-30)
        known = np.linalg.norm(normals, axis=-1, keepdims=True) > 0.5
        penalty = np.where(known & (cosine < np.cos(np.radians(75))), 1e3, 0.0)
    best = (gap + penalty).argmin(1)
    row = np.arange(len(points))
    return gap[row, best], index[row, best], weights[row, best]


def barycentric_of_nearest(
    points: Float[np.ndarray, "... 3"], triangles: Float[np.ndarray, "... 3 3"]
) -> Float[np.ndarray, "... 3"]:
    """Barycentric coordinates of the point of each triangle nearest to a point.

    The projection into the plane where it falls inside, else the best of the three edges; a triangle without area is
    its edges.
    """
    a, b, c = (triangles[..., i, :] for i in range(3))
    ab, ac, ap = b - a, c - a, points - a
    aa, bb, cross = (ab * ab).sum(-1), (ac * ac).sum(-1), (ab * ac).sum(-1)
    pa, pc = (ap * ab).sum(-1), (ap * ac).sum(-1)
    area = aa * bb - cross * cross
    flat = area <= 1e-12 * np.maximum(aa * bb, 1e-300)
    scale = 1 / np.where(flat, 1.0, area)
    v, w = (bb * pa - cross * pc) * scale, (aa * pc - cross * pa) * scale
    inside = np.stack([1 - v - w, v, w], -1)
    options, gaps = [inside], [np.where(flat | (inside < 0).any(-1), np.inf, 0.0)]
    for start, end in ((0, 1), (1, 2), (2, 0)):
        p, q = triangles[..., start, :], triangles[..., end, :]
        edge = q - p
        along = ((points - p) * edge).sum(-1) / np.maximum((edge * edge).sum(-1), 1e-300)
        along = along.clip(0, 1)
        weight = np.zeros((*along.shape, 3))
        weight[..., start], weight[..., end] = 1 - along, along
        options.append(weight)
        gaps.append(np.linalg.norm(p + along[..., None] * edge - points, axis=-1))
    best = np.stack(gaps, -1).argmin(-1)
    return np.take_along_axis(np.stack(options, -2), best[..., None, None], -2)[..., 0, :]


def nearest_points(
    points: Float[np.ndarray, "M 3"], cloud: Float[np.ndarray, "N 3"]
) -> tuple[Float[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Distance and index of the nearest point of a cloud."""
    return cKDTree(cloud).query(points)
