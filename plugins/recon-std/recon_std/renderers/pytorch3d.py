"""pytorch3d behind the same interface: the peer to compare with, and the choice of those who already use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
from pytorch3d.structures import Meshes
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.interfaces import Renderer
from recon_core.rendering import Fragments, Scene
from recon_core.structures import Camera, Mesh


class Pytorch3dRenderer(Renderer):
    """Draws with pytorch3d's rasteriser (on a CPU its naive one: work grows with pixels times faces).

    pytorch3d skips faces smaller than 1e-8 of its squared NDC units, and knows float32 only.
    """

    name: ClassVar[str] = "pytorch3d"

    def rasterize(self, meshes: Mesh | Sequence[Mesh] | Scene, camera: Camera, near: float = 0.01) -> Fragments:
        scene = Scene.separate(meshes)
        width, height = camera.size
        if not scene.meshes or not len(scene.faces):
            empty = camera.K.new_zeros(scene.pictures, height, width)
            return Fragments(
                torch.full_like(empty, -1, dtype=torch.int64), empty[..., None].expand(-1, -1, -1, 3), empty
            )
        soup, order = self._soup(scene, camera)
        clip = not camera.orthographic and bool((soup[..., 2] < near).any())
        shift = self._shift(soup, camera)
        number, depth, barycentrics, _ = rasterize_meshes(
            self._meshes(soup + shift, scene, order),
            image_size=(height, width),
            faces_per_pixel=1,
            perspective_correct=not camera.orthographic,
            z_clip_value=near if clip else None,
        )
        number, depth, barycentrics = number[..., 0], depth[..., 0], barycentrics[..., 0, :]
        seen = number >= 0
        face = torch.where(seen, order[number.clamp(min=0)], -1)
        # Without perspective pytorch3d leaves its guard against division by zero in the weights: they sum to less than 1.
        total = torch.where(seen, barycentrics.sum(-1), torch.ones_like(depth))
        barycentrics = torch.where(seen[..., None], barycentrics / total[..., None], torch.zeros_like(barycentrics))
        if camera.orthographic:
            depth = (barycentrics * soup[..., 2][number.clamp(min=0)]).sum(-1)
        return Fragments(face, barycentrics, torch.where(seen, depth, torch.zeros_like(depth)))

    def _soup(self, scene: Scene, camera: Camera) -> tuple[Float[Tensor, "M 3 3"], Int[Tensor, " M"]]:
        """Corners of all faces in pytorch3d's NDC (x left, y up, the shorter side 2 long), sorted by picture."""
        width, height = camera.size
        screen = scene.project(camera)
        if screen.dtype != torch.float32:
            raise UsageError(f"the pytorch3d renderer draws float32 meshes, not {screen.dtype}: use renderer 'warp'")
        scale = 2 / min(width, height)
        ndc = torch.cat([(screen.new_tensor([width / 2, height / 2]) - screen[:, :2]) * scale, screen[:, 2:]], 1)
        order = scene.face_picture.argsort(stable=True)
        return ndc.index_select(0, scene.faces[order].reshape(-1)).reshape(-1, 3, 3), order

    @staticmethod
    def _shift(soup: Float[Tensor, "M 3 3"], camera: Camera) -> Float[Tensor, " 3"]:
        """What brings an orthographic scene before pytorch3d's camera, which sees no negative depths."""
        shift = soup.new_zeros(3)
        if camera.orthographic:
            shift[2] = 1 - soup[..., 2].detach().amin()
        return shift

    @staticmethod
    def _meshes(soup: Float[Tensor, "M 3 3"], scene: Scene, order: Int[Tensor, " M"]) -> Meshes:
        counts = torch.bincount(scene.face_picture, minlength=scene.pictures).tolist()
        corners = [part.reshape(-1, 3) for part in soup.split(counts)]
        faces = [torch.arange(len(part), device=soup.device).reshape(-1, 3) for part in corners]
        return Meshes(corners, faces)
