"""Probabilistic coverage as differentiable functions of screen coordinates. All give sums or squared pixels;
what they mean is told in `soft_kernels`."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import warp as wp
from jaxtyping import Float, Int
from torch import Tensor

from recon_std.renderers.warp.soft_kernels import soft_kernels
from recon_std.renderers.warp.start import face_jobs, launch, pixel_jobs


@dataclass(frozen=True)
class Reach:
    """Which faces count at which pixels: those no further than `reach` pixels, wholly beyond `near` metres, and
    covering more than `least_area` squared pixels (twice the area). size: (B, H, W)."""

    reach: float
    least_area: float
    near: float
    size: tuple[int, int, int]


class _Faces:
    """Kernel arguments that all launches over faces begin with, and how the launches are shared out."""

    def __init__(self, screen: Tensor, faces: Tensor, picture: Tensor, limits: Reach) -> None:
        self.kernels: SimpleNamespace = soft_kernels(screen.dtype)
        self.screen, self.faces, self.picture = screen.detach().contiguous(), faces.contiguous(), picture.contiguous()
        self.limits = limits
        self.points = wp.from_torch(self.screen, dtype=self.kernels.vec3)
        self.corners = wp.from_torch(self.faces, dtype=wp.vec3i)

    def launch(self, kernel: wp.Kernel, *rest: Any) -> None:
        device, limits = self.screen.device, self.limits
        # Whole pictures a thread, never bands of rows: a face's kernel covers all its pixels.
        jobs = face_jobs(self.picture, limits.size, device, bands=False)
        head = (self.points, self.corners, wp.from_torch(self.picture))
        tail = (limits.reach, limits.least_area, limits.near, *rest)
        launch(kernel, [count for _, count, _, _ in jobs], [(*head, first, *tail) for first, _, _, _ in jobs], device)

    def launch_pixels(self, kernel: wp.Kernel, *rest: Any) -> None:
        B, H, W = self.limits.size
        jobs = pixel_jobs(B * H * W, self.screen.device, H * W)
        head = (self.points, self.corners)
        launch(kernel, [count for _, count in jobs], [(*head, first, *rest) for first, _ in jobs], self.screen.device)


class CoverageSum(torch.autograd.Function):
    """sum over all faces of softplus(x): (B, H, W). One pass over faces each way; nothing is kept a pixel."""

    @staticmethod
    def forward(
        ctx: Any,
        screen: Float[Tensor, "N 3"],
        faces: Int[Tensor, "M 3"],
        picture: Int[Tensor, " M"],
        scale: float,
        limits: Reach,
    ) -> Float[Tensor, "B H W"]:
        job = _Faces(screen, faces, picture, limits)
        total = screen.new_zeros(limits.size)
        job.launch(job.kernels.sum_forward, scale, wp.from_torch(total))
        ctx.job, ctx.scale = job, scale
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        job = ctx.job
        grad = torch.zeros_like(job.screen)
        job.launch(
            job.kernels.sum_backward,
            ctx.scale,
            wp.from_torch(grad_total.contiguous()),
            wp.from_torch(grad, dtype=job.kernels.vec3),
        )
        return grad, None, None, None, None


class NearestCoverageSum(torch.autograd.Function):
    """sum over the `keep` faces nearest to the camera at each pixel of softplus(x): (B, H, W)."""

    @staticmethod
    def forward(
        ctx: Any,
        screen: Float[Tensor, "N 3"],
        faces: Int[Tensor, "M 3"],
        picture: Int[Tensor, " M"],
        scale: float,
        limits: Reach,
        keep: int,
        orthographic: bool,
    ) -> Float[Tensor, "B H W"]:
        job = _Faces(screen, faces, picture, limits)
        (B, H, W), device = limits.size, screen.device
        counts = torch.zeros(B * H * W, dtype=torch.int32, device=device)
        job.launch(job.kernels.count, 0, wp.from_torch(counts), H, W)
        ends = counts.cumsum(0)
        starts = ends - counts
        entries = torch.empty(int(ends[-1]) if len(ends) else 0, dtype=torch.int64, device=device)
        cursor = starts.clone()
        job.launch(job.kernels.list_faces, int(orthographic), H, W, wp.from_torch(cursor), wp.from_torch(entries))
        total = screen.new_zeros(limits.size)
        ctx.job = job
        ctx.lists = (starts, counts, entries)
        ctx.arguments = (scale, keep, H, W, *(wp.from_torch(part) for part in ctx.lists))
        job.launch_pixels(job.kernels.select, *ctx.arguments, wp.from_torch(total.view(-1)))
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        job = ctx.job
        grad = torch.zeros_like(job.screen)
        job.launch_pixels(
            job.kernels.select_backward,
            *ctx.arguments,
            wp.from_torch(grad_total.contiguous().view(-1)),
            wp.from_torch(grad, dtype=job.kernels.vec3),
        )
        return grad, None, None, None, None, None, None


class CoverageList(torch.autograd.Function):
    """Every pair of face and pixel within reach, by face: packed face (E,), flat pixel (E,), and the squared
    distance in pixels to the face's outline, positive inside (E,)."""

    @staticmethod
    def forward(
        ctx: Any,
        screen: Float[Tensor, "N 3"],
        faces: Int[Tensor, "M 3"],
        picture: Int[Tensor, " M"],
        limits: Reach,
    ) -> tuple[Int[Tensor, " E"], Int[Tensor, " E"], Float[Tensor, " E"]]:
        job = _Faces(screen, faces, picture, limits)
        (_, H, W), device = limits.size, screen.device
        counts = torch.zeros(len(faces), dtype=torch.int32, device=device)
        job.launch(job.kernels.count, 1, wp.from_torch(counts), H, W)
        ends = counts.cumsum(0)
        length = int(ends[-1]) if len(ends) else 0
        face = torch.empty(length, dtype=torch.int64, device=device)
        pixel = torch.empty_like(face)
        square = screen.new_empty(length)
        arrays = [wp.from_torch(part) for part in (ends - counts, face, pixel, square)]
        job.launch(job.kernels.list_pixels, arrays[0], H, W, *arrays[1:])
        ctx.job = job
        ctx.save_for_backward(face, pixel)
        ctx.mark_non_differentiable(face, pixel)
        return face, pixel, square

    @staticmethod
    def backward(ctx: Any, _face: Tensor, _pixel: Tensor, grad_square: Tensor) -> tuple[Tensor | None, ...]:
        job = ctx.job
        face, pixel = ctx.saved_tensors
        _, H, W = job.limits.size
        grad = torch.zeros_like(job.screen)
        inputs = (
            job.points,
            job.corners,
            H,
            W,
            wp.from_torch(face),
            wp.from_torch(pixel),
            wp.from_torch(grad_square.contiguous()),
            wp.from_torch(grad, dtype=job.kernels.vec3),
        )
        launch(job.kernels.list_backward, [len(face)], [inputs], job.screen.device)
        return grad, None, None, None
