"""What SMPL files do not hold, derived from their meshes: mirror pairs and texture coordinates."""

from __future__ import annotations

import numpy as np


def find_mirror(template: np.ndarray, tolerance: float = 0.02) -> np.ndarray | None:
    """(V,) the vertex nearest to each one's mirror image about x = 0; None unless these are mutual pairs.

    tolerance: metres that a vertex may lie from its partner's image.
    """
    flipped = template * [-1, 1, 1]
    square = (template**2).sum(1)
    partner = np.empty(len(template), np.int64)
    nearest = np.empty(len(template))
    for rows in np.array_split(np.arange(len(template)), 1 + len(template) // 1000):
        distance = square[rows, None] + square - 2 * flipped[rows] @ template.T
        partner[rows], nearest[rows] = distance.argmin(1), distance.min(1)
    mutual = (partner[partner] == np.arange(len(template))).all()
    return partner if mutual and (nearest < tolerance**2).all() else None


def face_atlas(faces: int) -> tuple[np.ndarray, np.ndarray]:
    """uv (3F, 2) and uv_faces (F, 3) that give every face a triangle of the texture to itself.

    For meshes that come without texture coordinates, as SMPL files do. Two faces share a square cell; margins
    keep them from bleeding into each other.
    """
    side = int(np.ceil(np.sqrt(faces / 2)))
    cell = np.arange(faces) // 2
    corner = np.stack([cell % side, cell // side], -1)
    near, far = 0.06, 0.85
    lower = np.array([[near, near], [far, near], [near, far]])
    triangle = np.where((np.arange(faces) % 2 == 0)[:, None, None], lower, 1 - lower)
    return ((corner[:, None] + triangle) / side).reshape(-1, 2), np.arange(3 * faces).reshape(-1, 3)
