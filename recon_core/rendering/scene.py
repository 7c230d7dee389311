"""Which mesh is drawn in which picture, and where its vertices fall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.structures import Camera, Mesh

SMALLEST_DEPTH = 1e-8
"""Depths nearer to the camera plane than this, in metres, become this before anything is divided by them."""


@dataclass(frozen=True)
class Scene:
    """Meshes of any connectivity and the picture each of their rows is drawn in.

    meshes: vertices in the world frame of the camera, one dtype and device. picture: (R,) int64 on the CPU, for
    each row of each mesh, mesh after mesh, the picture it belongs to. pictures: how many there are, B.

    Faces and vertices are numbered through, mesh after mesh and row after row ("packed"): row r of a mesh
    whose packed faces begin at s owns faces s + r F to s + (r + 1) F. `Fragments.face` holds such numbers.
    Raises UsageError, naming the mesh, for face indices out of range, NaN or infinite vertices, mixed dtypes or
    devices, and textures without UV coordinates.
    """

    meshes: tuple[Mesh, ...]
    picture: Int[Tensor, " R"]
    pictures: int

    def __post_init__(self) -> None:
        rows = sum(len(mesh) for mesh in self.meshes)
        if len(self.picture) != rows:
            raise UsageError(f"a scene of {rows} mesh rows needs {rows} picture numbers, got {len(self.picture)}")
        if rows and not 0 <= int(self.picture.min()) <= int(self.picture.max()) < self.pictures:
            raise UsageError(f"picture numbers of a scene of {self.pictures} pictures must be 0..{self.pictures - 1}")
        for i, mesh in enumerate(self.meshes):
            _check(mesh, i, self.meshes[0])

    @classmethod
    def separate(cls, meshes: Mesh | Sequence[Mesh] | Scene) -> Scene:
        """Every row of every mesh in a picture of its own, in order. A scene is returned as it is."""
        if isinstance(meshes, Scene):
            return meshes
        group = (meshes,) if isinstance(meshes, Mesh) else tuple(meshes)
        rows = sum(len(mesh) for mesh in group)
        return cls(group, torch.arange(rows), rows)

    @classmethod
    def together(cls, meshes: Mesh | Sequence[Mesh]) -> Scene:
        """All meshes in one picture, hiding each other."""
        group = (meshes,) if isinstance(meshes, Mesh) else tuple(meshes)
        return cls(group, torch.zeros(sum(len(mesh) for mesh in group), dtype=torch.int64), 1)

    def apart(self) -> Scene:
        """The same meshes, every row in a picture of its own: what each person covers, hidden or not."""
        return Scene(self.meshes, torch.arange(len(self.picture)), len(self.picture))

    @cached_property
    def row_slices(self) -> list[slice]:
        """For each mesh the range of its rows among all rows."""
        ends = torch.tensor([len(mesh) for mesh in self.meshes]).cumsum(0).tolist()
        return [slice(end - len(mesh), end) for mesh, end in zip(self.meshes, ends, strict=True)]

    @cached_property
    def face_starts(self) -> list[int]:
        """For each mesh the packed number of its first face; then the number of all faces."""
        counts = [len(mesh) * len(mesh.faces) for mesh in self.meshes]
        return [0, *torch.tensor(counts).cumsum(0).tolist()]

    @cached_property
    def faces(self) -> Int[Tensor, "M 3"]:
        """Packed faces: int32 rows of the packed vertices."""
        packed, start = [], 0
        for mesh in self.meshes:
            rows, count = mesh.vertices.shape[:2]
            offset = torch.arange(start, start + rows * count, count or 1, dtype=torch.int32)[:rows]
            faces = mesh.faces.to(torch.int32)
            packed.append((faces + offset.to(faces.device)[:, None, None]).reshape(-1, 3))
            start += rows * count
        return _joined(packed, torch.zeros(0, 3, dtype=torch.int32))

    @cached_property
    def face_picture(self) -> Int[Tensor, " M"]:
        """int32: the picture of each packed face."""
        parts = [
            self.picture[rows].to(mesh.faces.device, torch.int32)[:, None].expand(-1, len(mesh.faces)).reshape(-1)
            for mesh, rows in zip(self.meshes, self.row_slices, strict=True)
        ]
        return _joined(parts, torch.zeros(0, dtype=torch.int32))

    @cached_property
    def vertices(self) -> Float[Tensor, "N 3"]:
        """Packed vertices, world frame."""
        return self.packed([mesh.vertices for mesh in self.meshes])

    def packed(self, values: Sequence[Float[Tensor, "B V C"]]) -> Float[Tensor, "N C"]:
        """Values of each mesh's vertices, in packed order."""
        parts = [value.reshape(-1, value.shape[-1]) for value in values]
        return _joined(parts, torch.zeros(0, 3))

    def cameras(self, camera: Camera) -> Camera:
        """The camera of each picture: `camera` itself, or its only row for all of them.

        Raises UsageError when neither fits, or when dtype or device differ from the meshes'.
        """
        if len(camera) not in (1, self.pictures):
            raise UsageError(
                f"{self.pictures} pictures are drawn with {len(camera)} cameras: give one camera, or one a picture"
            )
        if self.meshes:
            vertices = self.meshes[0].vertices
            if camera.K.dtype != vertices.dtype or camera.K.device != vertices.device:
                raise UsageError(
                    f"meshes are {vertices.dtype} on {vertices.device}, the camera {camera.K.dtype} on "
                    f"{camera.K.device}: bring one to the other with .to()"
                )
        return camera if len(camera) == self.pictures else camera[[0] * self.pictures]

    def project(self, camera: Camera) -> Float[Tensor, "N 3"]:
        """Packed vertices as (u, v, z): pixels, and metres along the camera's axis.

        Vertices behind a perspective camera keep their negative z, with the u and v of the line through the
        camera centre: z (u, v, 1) is then linear in the vertex, which is what the rasterisers compute with.
        """
        camera = self.cameras(camera)
        K, R, t = camera.K, camera.R, camera.t[..., None]
        if camera.orthographic:
            linear = torch.cat([K[:, :2, :2] @ R[:, :2], R[:, 2:]], 1)
            offset = torch.cat([K[:, :2, :2] @ t[:, :2] + K[:, :2, 2:], t[:, 2:]], 1)
        else:
            linear, offset = K @ R, K @ t
        parts = []
        for mesh, rows in zip(self.meshes, self.row_slices, strict=True):
            pick = self.picture[rows]
            A, b = linear, offset
            if len(pick) != self.pictures or not torch.equal(pick, torch.arange(self.pictures)):
                A, b = linear[pick.to(K.device)], offset[pick.to(K.device)]
            p = torch.baddbmm(b.transpose(1, 2), mesh.vertices, A.transpose(1, 2))
            if not camera.orthographic:
                z = p[..., 2:]
                z = torch.where(z.abs() < SMALLEST_DEPTH, SMALLEST_DEPTH, z)
                p = torch.cat([p[..., :2] / z, z], -1)
            parts.append(p)
        return self.packed(parts)


def _joined(parts: list[Tensor], nothing: Tensor) -> Tensor:
    """Without a copy where there is but one part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else nothing


def _check_indices(indices: Int[Tensor, "F 3"], count: int, who: str, what: str, name: str) -> None:
    if indices.numel():
        low, high = (int(v) for v in indices.aminmax())
        if low < 0 or high >= count:
            raise UsageError(
                f"{who} has {count} {what}, but its {name} {low if low < 0 else high}: indices must be 0..{count - 1}"
            )


def _check(mesh: Mesh, index: int, first: Mesh) -> None:
    vertices, faces = mesh.vertices, mesh.faces
    if vertices.dtype != first.vertices.dtype or vertices.device != first.vertices.device:
        raise UsageError(
            f"mesh {index} is {vertices.dtype} on {vertices.device}, mesh 0 {first.vertices.dtype} on "
            f"{first.vertices.device}: bring them to one dtype and device with .to()"
        )
    if faces.device != vertices.device:
        raise UsageError(f"mesh {index} has faces on {faces.device} and vertices on {vertices.device}: use one device")
    _check_indices(faces, vertices.shape[1], f"mesh {index}", "vertices", "faces name vertex")
    # A sum is finite exactly when all its terms are (short of overflow), and costs one pass.
    if not torch.isfinite(vertices.detach().sum()) and not torch.isfinite(vertices).all():
        bad = (~torch.isfinite(vertices)).nonzero()[0].tolist()
        raise UsageError(f"mesh {index} has a NaN or infinite vertex: row {bad[0]}, vertex {bad[1]}")
    if mesh.texture is not None:
        if mesh.uv is None or mesh.uv_faces is None:
            raise UsageError(f"mesh {index} has a texture but no UV coordinates: give uv and uv_faces, or colors")
        _check_indices(mesh.uv_faces, len(mesh.uv), f"mesh {index}", "UV coordinates", "uv_faces name coordinate")
        if len(mesh.texture) != len(mesh):
            raise UsageError(f"mesh {index} has {len(mesh)} rows and {len(mesh.texture)} textures: give one a row")
    if mesh.uv_faces is not None and len(mesh.uv_faces) != len(faces):
        raise UsageError(f"mesh {index} has {len(faces)} faces and {len(mesh.uv_faces)} uv_faces: they must correspond")
    if mesh.colors is not None and mesh.colors.shape[:2] != vertices.shape[:2]:
        raise UsageError(
            f"mesh {index} has vertices {tuple(vertices.shape[:2])} and colors {tuple(mesh.colors.shape[:2])}: "
            f"give one color a vertex"
        )
