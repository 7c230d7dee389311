"""The default renderer: one source for CPU and CUDA, compiled by NVIDIA Warp and kept between runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import warp as wp
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.interfaces import Renderer
from recon_core.rendering import Fragments, Scene
from recon_core.structures import Camera, Mesh
from recon_std.renderers.warp_hard import hard_kernels
from recon_std.renderers.warp_start import launch

NOTHING = 2**63 - 1
ROWS_A_THREAD = 256
"""A picture with at least this many rows a thread is shared among CPU threads by rows."""


class WarpRenderer(Renderer):
    """Rasteriser over faces: every face writes its depth and number where it is nearest.

    The work grows with faces plus covered pixels, not with their product. Float64 meshes are drawn in float64,
    except that surfaces nearer to each other than float32 tells apart are ordered by face number.
    """

    name: ClassVar[str] = "warp"

    def rasterize(self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, near: float = 0.01) -> Fragments:
        scene = Scene.separate(meshes)
        width, height = camera.size
        if not scene.meshes:
            # No mesh to take dtype and device from: the camera's.
            empty = camera.K.new_zeros(scene.pictures, height, width)
            return Fragments(
                torch.full_like(empty, -1, dtype=torch.int64), empty[..., None].expand(-1, -1, -1, 3), empty
            )
        screen = scene.project(camera)
        if screen.dtype not in (torch.float32, torch.float64):
            raise UsageError(f"the warp renderer draws float32 and float64 meshes, not {screen.dtype}")
        face, barycentrics, depth = _Rasterize.apply(
            screen, scene.faces, scene.face_picture, (scene.pictures, height, width), camera.orthographic, near
        )
        return Fragments(face, barycentrics, depth)


class _Rasterize(torch.autograd.Function):
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
        screen, faces, picture = screen.detach().contiguous(), faces.contiguous(), picture.contiguous()
        device = screen.device
        kernels = hard_kernels(screen.dtype)
        keys = torch.full(size, NOTHING, dtype=torch.int64, device=device)
        face = torch.empty(size, dtype=torch.int64, device=device)
        barycentrics = screen.new_empty(B, H, W, 3)
        depth = screen.new_empty(size)
        points = wp.from_torch(screen, dtype=kernels.vec3)
        corners = wp.from_torch(faces, dtype=wp.vec3i)
        if len(faces):
            jobs = _face_jobs(picture, size, device)
            launch(
                kernels.scatter,
                [count for _, count, _, _ in jobs],
                [
                    (
                        points,
                        corners,
                        wp.from_torch(picture),
                        first,
                        top,
                        bottom,
                        int(orthographic),
                        near,
                        wp.from_torch(keys),
                    )
                    for first, _, top, bottom in jobs
                ],
                device,
            )
        outputs = (
            wp.from_torch(face.view(-1)),
            wp.from_torch(barycentrics.view(-1, 3), dtype=kernels.vec3),
            wp.from_torch(depth.view(-1)),
        )
        jobs = _pixel_jobs(B * H * W, device)
        launch(
            kernels.resolve,
            [count for _, count in jobs],
            [
                (points, corners, wp.from_torch(keys.view(-1)), first, W, H, int(orthographic), *outputs)
                for first, _ in jobs
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
        # Pictures do not share vertices, so threads that take whole pictures never add to the same place.
        jobs = _pixel_jobs(B * H * W, screen.device, H * W)
        launch(
            kernels.backward,
            [count for _, count in jobs],
            [(*inputs, first, W, H, ctx.orthographic, *grads) for first, _ in jobs],
            screen.device,
        )
        return grad, None, None, None, None, None


def _pixel_jobs(pixels: int, device: torch.device, unit: int = 1) -> list[tuple[int, int]]:
    """(first pixel, number of pixels) of each launch; on a CPU one a thread, in multiples of `unit`."""
    threads = 1 if device.type == "cuda" or pixels < 2**15 else torch.get_num_threads()
    units = pixels // max(unit, 1)
    step = -(-units // threads) * unit
    return [(first, min(step, pixels - first)) for first in range(0, pixels, step or 1)]


def _face_jobs(
    picture: Int[Tensor, " M"], size: tuple[int, int, int], device: torch.device
) -> list[tuple[int, int, int, int]]:
    """(first face, number of faces, first row, end row) of each launch.

    On a CPU threads take whole pictures where faces come sorted by picture, or bands of rows of large ones.
    """
    faces, (pictures, height, _) = len(picture), size
    threads = 1 if device.type == "cuda" else torch.get_num_threads()
    if threads > 1 and pictures >= threads and bool((picture[1:] >= picture[:-1]).all()):
        first = torch.arange(0, threads + 1) * pictures // threads
        cuts = torch.searchsorted(picture, first.to(picture)).tolist()
        return [(a, b - a, 0, height) for a, b in zip(cuts[:-1], cuts[1:], strict=True) if b > a]
    bands = min(threads, height // ROWS_A_THREAD) or 1
    rows = [height * i // bands for i in range(bands + 1)]
    return [(0, faces, a, b) for a, b in zip(rows[:-1], rows[1:], strict=True)]
