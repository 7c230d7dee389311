"""The hard pass as a differentiable function of screen coordinates."""

from __future__ import annotations

from typing import Any

import torch
import warp as wp
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon_std.renderers.warp.hard_kernels import hard_kernels
from recon_std.renderers.warp.start import face_jobs, launch, pixel_jobs

NOTHING = 2**63 - 1
"""What the depth buffer holds where no face is."""


def coverage(
    screen: Float[Tensor, "N 3"],
    faces: Int[Tensor, "M 3"],
    picture: Int[Tensor, " M"],
    size: tuple[int, int, int],
    orthographic: bool,
    near: float,
) -> Bool[Tensor, "B H W"]:
    """Which pixel centres some face covers: `Rasterize` without looking up what is seen there."""
    return _depth_keys(screen.detach().contiguous(), faces, picture, size, orthographic, near) != NOTHING


def _depth_keys(
    screen: Float[Tensor, "N 3"],
    faces: Int[Tensor, "M 3"],
    picture: Int[Tensor, " M"],
    size: tuple[int, int, int],
    orthographic: bool,
    near: float,
) -> Int[Tensor, "B H W"]:
    """Depth and number of the nearest face at each pixel in one integer, NOTHING where there is none."""
    kernels = hard_kernels(screen.dtype)
    keys = torch.full(size, NOTHING, dtype=torch.int64, device=screen.device)
    if not len(faces):
        return keys
    points, corners = wp.from_torch(screen, dtype=kernels.vec3), wp.from_torch(faces.contiguous(), dtype=wp.vec3i)
    owner, target = wp.from_torch(picture.contiguous()), wp.from_torch(keys)
    jobs = face_jobs(picture, size, screen.device)
    launch(
        kernels.scatter,
        [count for _, count, _, _ in jobs],
        [(points, corners, owner, first, top, end, int(orthographic), near, target) for first, _, top, end in jobs],
        screen.device,
    )
    return keys


class Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        screen: Float[Tensor, "N 3"],
        faces: Int[Tensor, "M 3"],
        picture: Int[Tensor, " M"],
        size: tuple[int, int, int],
        orthographic: bool,
        near: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, H, W = size
        screen, faces = screen.detach().contiguous(), faces.contiguous()
        device = screen.device
        kernels = hard_kernels(screen.dtype)
        keys = _depth_keys(screen, faces, picture, size, orthographic, near)
        face = torch.empty(size, dtype=torch.int64, device=device)
        barycentrics = screen.new_empty(B, H, W, 3)
        depth = screen.new_empty(size)
        points = wp.from_torch(screen, dtype=kernels.vec3)
        corners = wp.from_torch(faces, dtype=wp.vec3i)
        outputs = (
            wp.from_torch(face.view(-1)),
            wp.from_torch(barycentrics.view(-1, 3), dtype=kernels.vec3),
            wp.from_torch(depth.view(-1)),
        )
        pixels = pixel_jobs(B * H * W, device)
        launch(
            kernels.resolve,
            [count for _, count in pixels],
            [
                (points, corners, wp.from_torch(keys.view(-1)), first, W, H, int(orthographic), *outputs)
                for first, _ in pixels
            ],
            device,
        )
        ctx.save_for_backward(screen, faces, face)
        ctx.orthographic = int(orthographic)
        ctx.mark_non_differentiable(face)
        return face, barycentrics, depth

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad_barycentrics: Tensor, grad_depth: Tensor) -> tuple[Tensor | None, ...]:
        screen, faces, face = ctx.saved_tensors
        B, H, W = face.shape
        kernels = hard_kernels(screen.dtype)
        grad = torch.zeros_like(screen)
        inputs = (
            wp.from_torch(screen, dtype=kernels.vec3),
            wp.from_torch(faces, dtype=wp.vec3i),
            wp.from_torch(face.view(-1)),
        )
        grads = (
            wp.from_torch(grad_barycentrics.contiguous().view(-1, 3), dtype=kernels.vec3),
            wp.from_torch(grad_depth.contiguous().view(-1)),
            wp.from_torch(grad, dtype=kernels.vec3),
        )
        thinnest = torch.finfo(screen.dtype).eps * max(H, W)
        # Pictures do not share vertices, so threads that take whole pictures never add to the same place.
        jobs = pixel_jobs(B * H * W, screen.device, H * W)
        launch(
            kernels.backward,
            [count for _, count in jobs],
            [(*inputs, first, W, H, ctx.orthographic, thinnest, *grads) for first, _ in jobs],
            screen.device,
        )
        return grad, None, None, None, None, None
