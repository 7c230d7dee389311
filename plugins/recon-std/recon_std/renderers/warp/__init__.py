"""The default renderer: one source for CPU and CUDA, compiled by NVIDIA Warp and kept between runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.interfaces import Renderer
from recon_core.rendering import FaceProbabilities, Fragments, Scene, SoftSettings, outline
from recon_core.structures import Camera, Mesh
from recon_std.renderers.warp.hard import Rasterize, coverage
from recon_std.renderers.warp.soft import CoverageList, CoverageSum, NearestCoverageSum, Reach


class WarpRenderer(Renderer):
    """Rasteriser over faces: every face visits the pixels of its own bounding box.

    The work grows with faces plus covered pixels, not with their product. Float64 meshes are drawn in float64,
    except that surfaces nearer to each other than float32 tells apart are ordered by face number. On a CPU
    pictures are shared among torch's threads, and results do not depend on how many there are.
    """

    name: ClassVar[str] = "warp"

    def rasterize(self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, near: float = 0.01) -> Fragments:
        scene = Scene.separate(meshes)
        return _fragments(scene, _screen(scene, camera), camera, near)

    def silhouette(
        self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, near: float = 0.01
    ) -> Float[Tensor, "B 1 H W"]:
        # As in the base class, with one projection for both, and without fragments.
        scene = Scene.separate(meshes)
        screen = _screen(scene, camera)
        width, height = camera.size
        size = (scene.pictures, height, width)
        mask = coverage(screen, scene.faces, scene.face_picture, size, camera.orthographic, near)[:, None]
        return outline(scene, camera, mask, near, screen).blend(mask.to(screen.dtype)).clamp(0, 1)

    def soft_silhouette(
        self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, settings: SoftSettings | None = None
    ) -> Float[Tensor, "B 1 H W"]:
        scene, settings = Scene.separate(meshes), settings or SoftSettings()
        limits, scale = _reach(scene, camera, settings)
        if not len(scene.faces):
            return camera.K.new_zeros(scene.pictures, 1, *limits.size[1:])
        arguments = (_screen(scene, camera), scene.faces, scene.face_picture, scale, limits)
        if settings.faces_per_pixel is None:
            total = CoverageSum.apply(*arguments)
        else:
            total = NearestCoverageSum.apply(*arguments, settings.faces_per_pixel, camera.orthographic)
        return -torch.expm1(-total)[:, None]

    def face_probabilities(
        self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, settings: SoftSettings | None = None
    ) -> FaceProbabilities:
        scene, settings = Scene.separate(meshes), settings or SoftSettings()
        limits, scale = _reach(scene, camera, settings)
        if not len(scene.faces):
            none = torch.zeros(0, dtype=torch.int64, device=camera.K.device)
            return FaceProbabilities(none, none, camera.K.new_zeros(0), limits.size, 0)
        face, pixel, square = CoverageList.apply(_screen(scene, camera), scene.faces, scene.face_picture, limits)
        return FaceProbabilities(face, pixel, torch.sigmoid(square * scale), limits.size, len(scene.faces))


def _fragments(scene: Scene, screen: Float[Tensor, "N 3"], camera: Camera, near: float) -> Fragments:
    width, height = camera.size
    size = (scene.pictures, height, width)
    if not len(scene.faces):
        return Fragments.empty(size, camera.K)
    return Fragments(*Rasterize.apply(screen, scene.faces, scene.face_picture, size, camera.orthographic, near))


def _screen(scene: Scene, camera: Camera) -> Float[Tensor, "N 3"]:
    screen = scene.project(camera)
    if screen.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"the warp renderer draws float32 and float64 meshes, not {screen.dtype}")
    return screen


def _reach(scene: Scene, camera: Camera, settings: SoftSettings) -> tuple[Reach, float]:
    """Limits in pixels, and 1 / sigma in 1 / pixels^2."""
    width, height = camera.size
    unit = 2 / min(width, height)
    near = -1e30 if camera.orthographic else settings.near
    size = (scene.pictures, height, width)
    return Reach(settings.reach / unit, settings.least_area / unit**2, near, size), unit**2 / settings.sigma
