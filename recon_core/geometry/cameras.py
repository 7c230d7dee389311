"""Crops and camera conversions. Pixels are in picture coordinates: pixel centres at +0.5, width w spans 0..w."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def default_focal(size: tuple[int, int]) -> float:
    """Focal length in pixels to assume when nothing is known: the picture's diagonal (about 47 degrees of view)."""
    return float((size[0] ** 2 + size[1] ** 2) ** 0.5)


def crop_affine(box: Float[Tensor, "B 4"], side: int, margin: float = 1.0) -> Float[Tensor, "B 2 3"]:
    """The map from picture pixels to pixels of a square crop of `side` pixels.

    box: x, y, w, h. The crop is centred on the box and `margin` times its longer side wide.
    """
    scale = side / (box[:, 2:].amax(-1) * margin)
    center = box[:, :2] + box[:, 2:] / 2
    affine = box.new_zeros(len(box), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale
    affine[:, :, 2] = side / 2 - scale[:, None] * center
    return affine


def transform_points(
    affine: Float[Tensor, "B 2 3"], points: Float[Tensor, "B N 2"]
) -> Float[Tensor, "B N 2"]:
    """Points through 2D affine maps."""
    return points @ affine[:, :, :2].transpose(-1, -2) + affine[:, None, :, 2]


def invert_affine(affine: Float[Tensor, "B 2 3"]) -> Float[Tensor, "B 2 3"]:
    """The inverse 2D affine maps."""
    linear = torch.linalg.inv(affine[:, :, :2])
    return torch.cat([linear, -linear @ affine[:, :, 2:]], -1)


def warp_image(
    image: Float[Tensor, "B C H W"], affine: Float[Tensor, "B 2 3"], size: tuple[int, int]
) -> Float[Tensor, "B C h w"]:
    """The picture seen through `affine` (picture pixels to output pixels), bilinear, 0 outside the picture.

    size: (width, height) of the output. Strong reductions should blur first: each output pixel reads one
    2 x 2 neighbourhood.
    """
    w, h = size
    H, W = image.shape[-2:]
    inverse = invert_affine(affine)
    # From picture coordinates to grid_sample's [-1, 1], in which -1 and 1 are the picture's outer edges.
    to_unit = image.new_tensor([2 / W, 2 / H])[:, None]
    out_scale = image.new_tensor([w / 2, h / 2])
    linear = to_unit * inverse[:, :, :2] * out_scale
    shift = to_unit * (inverse[:, :, :2] @ out_scale[:, None] + inverse[:, :, 2:]) - 1
    grid = affine_grid(
        torch.cat([linear, shift], -1), [len(affine), image.shape[1], h, w], align_corners=False
    )
    return grid_sample(image.expand(len(affine), -1, -1, -1), grid, align_corners=False)


def weak_perspective_to_translation(
    camera: Float[Tensor, "B 3"], focal: Float[Tensor, " B"] | float, side: Float[Tensor, " B"] | float
) -> Float[Tensor, "B 3"]:
    """Translation of the body in a pinhole camera that gives the scale of weak-perspective (s, tx, ty).

    focal and side in the same pixels; the principal point is the centre of the square crop. The depth is
    2 f / (s side), so that a body at the origin spans the same pixels in both cameras (thesis 4.3.3; SPIN's
    and ProHMR's published code use f = 5000 and side = 224).
    """
    s, tx, ty = camera.unbind(-1)
    return torch.stack([tx, ty, 2 * focal / (side * s + 1e-9)], -1)


def crop_to_full_translation(
    camera: Float[Tensor, "B 3"],
    center: Float[Tensor, "B 2"],
    side: Float[Tensor, " B"],
    K: Float[Tensor, "B 3 3"],
) -> Float[Tensor, "B 3"]:
    """Translation in the full picture's camera of a body whose crop camera is (s, tx, ty).

    center, side: the square crop in full-picture pixels; K: the full picture's intrinsics. The crop is
    off-centre in the full picture, so tx and ty gain the offset of its centre from the principal point, at
    the body's depth.
    """
    s, tx, ty = camera.unbind(-1)
    focal = K[:, 0, 0]
    z = 2 * focal / (side * s + 1e-9)
    offset = (center - K[:, :2, 2]) / torch.stack([focal, K[:, 1, 1]], -1) * z[:, None]
    return torch.stack([tx + offset[:, 0], ty + offset[:, 1], z], -1)


def estimate_translation(
    joints: Float[Tensor, "B J 3"],
    points: Float[Tensor, "B J 2"],
    confidence: Float[Tensor, "B J"],
    K: Float[Tensor, "B 3 3"],
) -> Float[Tensor, "B 3"]:
    """Translation t that makes K (joints + t) fall on `points`, by confidence-weighted linear least squares.

    Each joint gives two equations linear in t: f (x + tx) = (u - c)(z + tz). Rows are weighted by the square
    root of the confidence, as SPIN's code does. Needs two joints with confidence; with fewer the system is
    singular and the smallest solution is returned.
    """
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)[:, None]
    uv = torch.where(confidence[..., None] > 0, points, torch.zeros_like(points)) - K[:, None, :2, 2]
    root = confidence.clamp_min(0).sqrt()[..., None]
    A = torch.stack(
        [
            torch.stack([focal[..., 0].expand_as(uv[..., 0]), torch.zeros_like(uv[..., 0]), -uv[..., 0]], -1),
            torch.stack([torch.zeros_like(uv[..., 0]), focal[..., 1].expand_as(uv[..., 1]), -uv[..., 1]], -1),
        ],
        -2,
    )
    b = uv * joints[..., 2:] - focal * joints[..., :2]
    A, b = (A * root[..., None]).flatten(1, 2), (b * root).flatten(1)
    normal = A.transpose(-1, -2) @ A
    return (torch.linalg.pinv(normal, hermitian=True) @ (A.transpose(-1, -2) @ b[..., None]))[..., 0]
