"""pytorch3d behind the same interface: the peer to compare with, and the choice of those who already use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.errors import PluginError, UsageError
from recon_core.interfaces import Renderer
from recon_core.rendering import FaceProbabilities, Fragments, Scene, SoftSettings
from recon_core.structures import Camera, Mesh

try:
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes
except Exception as error:  # a library built for another torch fails in many ways
    raise PluginError(
        f"pytorch3d does not work here ({type(error).__name__}: {' '.join(str(error).split())}): "
        f"use renderer 'warp', or on Linux pip install --force-reinstall easypytorch3d"
    ) from error

FIRST_TRY = 32
"""Faces a pixel to ask for first when all are wanted; doubled until they fit."""


class Pytorch3dRenderer(Renderer):
    """Draws with pytorch3d's rasteriser (on a CPU its naive one: work grows with pixels times faces).

    pytorch3d skips faces of less than 1e-8 of its squared NDC units, whatever the settings, and knows float32 only.
    """

    name: ClassVar[str] = "pytorch3d"

    def rasterize(self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, near: float = 0.01) -> Fragments:
        scene = Scene.separate(meshes)
        width, height = camera.size
        if not len(scene.faces):
            return Fragments.empty((scene.pictures, height, width), camera.K)
        soup = _Soup.of(scene, camera)
        clip = not camera.orthographic and bool((soup.corners[..., 2] < near).any())
        number, depth, barycentrics, _ = rasterize_meshes(
            soup.meshes(),
            image_size=(height, width),
            faces_per_pixel=1,
            perspective_correct=not camera.orthographic,
            z_clip_value=near if clip else None,
        )
        number, depth, barycentrics = number[..., 0], depth[..., 0], barycentrics[..., 0, :]
        seen = number >= 0
        # pytorch3d leaves its guard against division by zero in the weights: they sum to a little less than 1.
        total = torch.where(seen, barycentrics.sum(-1), torch.ones_like(depth))
        weights = torch.where(seen[..., None], barycentrics / total[..., None], torch.zeros_like(barycentrics))
        depth = torch.where(seen, depth - soup.shift, torch.zeros_like(depth))
        if camera.orthographic:
            depth = (weights * soup.corners[..., 2][number.clamp(min=0)]).sum(-1)
        return Fragments(torch.where(seen, soup.face[number.clamp(min=0)], -1), weights, depth)

    def soft_silhouette(
        self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, settings: SoftSettings | None = None
    ) -> Float[Tensor, "B 1 H W"]:
        scene, settings = Scene.separate(meshes), settings or SoftSettings()
        number, x = self._soft(scene, camera, settings)
        empty = torch.where(number >= 0, torch.sigmoid(-x), torch.ones_like(x)).prod(-1)
        return (1 - empty)[:, None]

    def face_probabilities(
        self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, settings: SoftSettings | None = None
    ) -> FaceProbabilities:
        scene, settings = Scene.separate(meshes), settings or SoftSettings()
        number, x = self._soft(scene, camera, settings.model_copy(update={"faces_per_pixel": None}))
        entry = torch.nonzero(number.reshape(-1) >= 0).squeeze(1)
        face, pixel = number.reshape(-1)[entry], entry // number.shape[-1]
        by_face = (face * (pixel.max() + 1 if len(pixel) else 1) + pixel).argsort()
        return FaceProbabilities(
            face[by_face],
            pixel[by_face],
            torch.sigmoid(x.reshape(-1)[entry[by_face]]),
            tuple(number.shape[:3]),  # type: ignore[arg-type]
            len(scene.faces),
        )

    def _soft(
        self, scene: Scene, camera: Camera, settings: SoftSettings
    ) -> tuple[Int[Tensor, "B H W K"], Float[Tensor, "B H W K"]]:
        """Packed face numbers (-1: none) within reach of each pixel, nearest first, and the logit of their coverage."""
        width, height = camera.size
        if not len(scene.faces):
            none = camera.K.new_zeros(scene.pictures, height, width, 1)
            return torch.full_like(none, -1, dtype=torch.int64), none
        soup = _Soup.of(scene, camera, settings)
        keep = settings.faces_per_pixel or min(FIRST_TRY, len(scene.faces))
        while True:
            number, _, _, distance = rasterize_meshes(
                soup.meshes(),
                image_size=(height, width),
                blur_radius=settings.reach**2,
                faces_per_pixel=keep,
                perspective_correct=not camera.orthographic,
                clip_barycentric_coords=True,
            )
            if settings.faces_per_pixel or keep >= len(scene.faces) or not bool((number[..., -1] >= 0).any()):
                break
            keep *= 2
        face = torch.where(number >= 0, soup.face[number.clamp(min=0)], -1)
        return face, -distance / settings.sigma


@dataclass(frozen=True)
class _Soup:
    """Faces without shared vertices, sorted by picture, in pytorch3d's NDC (x left, y up, the shorter side 2 long).

    corners: (M', 3, 3). face: (M',) the scene's packed number of each. counts: how many each picture has.
    shift: added to depths to bring an orthographic scene before pytorch3d's camera, which sees no negative ones.
    """

    corners: Float[Tensor, "M 3 3"]
    face: Int[Tensor, " M"]
    counts: list[int]
    shift: float

    @classmethod
    def of(cls, scene: Scene, camera: Camera, settings: SoftSettings | None = None) -> _Soup:
        """All faces, or those that `settings` lets count."""
        width, height = camera.size
        screen = scene.project(camera)
        if screen.dtype != torch.float32:
            raise UsageError(f"the pytorch3d renderer draws float32 meshes, not {screen.dtype}: use renderer 'warp'")
        middle = screen.new_tensor([width / 2, height / 2])
        ndc = torch.cat([(middle - screen[:, :2]) * (2 / min(width, height)), screen[:, 2:]], 1)
        order = scene.face_picture.argsort(stable=True)
        corners = ndc.index_select(0, scene.faces[order].reshape(-1)).reshape(-1, 3, 3)
        if settings is not None:
            a, b, c = corners.detach()[..., :2].unbind(1)
            area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
            counted = area.abs() > settings.least_area
            if not camera.orthographic:
                counted &= corners[..., 2].detach().amin(1) >= settings.near
            order, corners = order[counted], corners[counted]
        counts = torch.bincount(scene.face_picture[order], minlength=scene.pictures).tolist()
        shift = 1 - float(corners[..., 2].detach().amin()) if camera.orthographic and len(corners) else 0.0
        return cls(corners, order, counts, shift)

    def meshes(self) -> Meshes:
        moved = self.corners + self.corners.new_tensor([0.0, 0.0, self.shift])
        parts = [part.reshape(-1, 3) for part in moved.split(self.counts)]
        return Meshes(parts, [torch.arange(len(p), device=p.device).reshape(-1, 3) for p in parts])
