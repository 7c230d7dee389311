"""Skin, hair and clothes painted over a body's UV map, a different person each draw.

Garments are cut by planes and patterned by functions of a texel's place on the rest body, so that they fit any
body in SMPL format that has UV coordinates, and meet at its UV seams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from recon_core.errors import UsageError
from recon_core.interfaces import Renderer
from recon_core.rendering import Scene, interpolate
from recon_core.skeletons import SMPL24
from recon_core.structures import Camera, Mesh
from recon_std.bodies.smpl import SMPLBody
from recon_std.synthetic.random import Source, rand, randint, randn

SKIN = ((0.97, 0.84, 0.75), (0.86, 0.66, 0.52), (0.68, 0.47, 0.34), (0.45, 0.29, 0.20), (0.26, 0.17, 0.13))
"""Skin tones from light to dark; a person's lies between two neighbours."""
HAIR = ((0.05, 0.04, 0.04), (0.22, 0.14, 0.09), (0.45, 0.30, 0.17), (0.75, 0.60, 0.36), (0.55, 0.55, 0.56))


@dataclass(frozen=True)
class TexelMap:
    """Where on the rest body each texel of a T x T texture lies.

    position: (T T, 3), metres, y up, pelvis near the origin. part: (T T,) smpl24 joint of the nearest vertex.
    Texels outside the UV charts take the nearest chart texel's values, so that bilinear lookups never read a gap.
    """

    size: int
    position: Float[Tensor, "N 3"]
    part: Int[Tensor, " N"]


def texel_map(body: SMPLBody, renderer: Renderer, size: int) -> TexelMap:
    """The map of a body with UV coordinates. Raises UsageError for a body that has none."""
    if not len(body.uv_faces):
        raise UsageError(f"body {body.name} has no UV coordinates to paint on")
    corners = body.faces.reshape(-1)
    texel = body.uv_faces.reshape(-1)
    rest = body.template.new_zeros(len(body.uv), 3)
    rest[texel] = body.template[corners]
    part = torch.zeros(len(body.uv), dtype=torch.int64)
    part[texel] = body.parts[corners]
    flat = torch.stack([body.uv[:, 0], 1 - body.uv[:, 1], torch.ones(len(body.uv))], -1) * body.uv.new_tensor(
        [size, size, 1.0]
    )
    K = torch.eye(3)[None]
    camera = Camera(K, torch.eye(3)[None], torch.zeros(1, 3), (size, size), orthographic=True)
    # Charts may be wound either way round: both sides of each face are drawn.
    faces = torch.cat([body.uv_faces, body.uv_faces.flip(1)])
    scene = Scene.separate(Mesh(flat[None], faces))
    visible = renderer.rasterize(scene, camera).visible
    position = torch.zeros(size * size, 3)
    position[visible.index] = interpolate(visible, scene.faces, rest)
    best = visible.barycentrics.argmax(1, keepdim=True)
    labels = torch.zeros(size * size, dtype=torch.int64)
    labels[visible.index] = part[scene.faces.long()[visible.face].gather(1, best)[:, 0]]
    empty = np.ones(size * size, bool)
    empty[visible.index.numpy()] = False
    rows, columns = distance_transform_edt(empty.reshape(size, size), return_distances=False, return_indices=True)
    nearest = torch.from_numpy((rows * size + columns).reshape(-1))
    return TexelMap(size, position[nearest], labels[nearest])


class Wardrobe:
    """Draws textures (B, 3, T, T), RGB in [0, 1], for a body."""

    def __init__(self, body: SMPLBody, renderer: Renderer, size: int = 128) -> None:
        texels = texel_map(body, renderer, size)
        self.size = size
        self.position = texels.position
        joints = dict(zip(SMPL24.joints, body.joint_template, strict=True))
        self.heights = {
            "ankle": float(joints["left_ankle"][1]),
            "knee": float(joints["left_knee"][1]),
            "hip": float(joints["left_hip"][1]),
            "waist": float(joints["spine1"][1]),
            "neck": float(joints["neck"][1]),
        }
        self.shoulder, self.wrist = float(joints["left_shoulder"][0]), float(joints["left_wrist"][0])
        self.head = joints["head"]
        self.top = float(body.template[:, 1].max())

        def of(*names: str) -> Bool[Tensor, " N"]:
            rows = [
                i
                for i, joint in enumerate(SMPL24.joints)
                if joint.removeprefix("left_").removeprefix("right_") in names
            ]
            return torch.isin(texels.part, torch.tensor(rows))

        self.is_head = of("head")
        self.is_arm = of("shoulder", "elbow", "wrist", "hand")
        self.is_hand = of("hand") | (of("wrist") & (self.position[:, 0].abs() > self.wrist + 0.03))
        self.is_foot = of("foot", "ankle")
        self.is_neck = of("neck")

    def dress(self, count: int, generator: Source) -> Float[Tensor, "B 3 T T"]:
        """Textures of `count` people."""
        draw = _Draw(count, generator)
        x, y, z = self.position.unbind(-1)
        h = self.heights
        skin = draw.palette(SKIN)
        texture = self._patterned(draw, skin, skin * 0.93, draw.choice((0.0, 0.0, 1.0)))

        # Trousers, shorts or a skirt's length of cloth over the legs; some end above the knee.
        hem = torch.where(
            draw.chance(0.3), draw.uniform(h["knee"], h["hip"] - 0.12), draw.uniform(h["ankle"], h["ankle"] + 0.15)
        )
        waist = draw.uniform(h["hip"] + 0.08, h["waist"] + 0.08)
        lower = (y < waist) & (y > hem) & ~self.is_arm & ~self.is_foot
        texture = self._wear(draw, texture, lower)

        # Shirts: some leave the waist free, some sleeves end at the shoulder, neckline round or to a point.
        bottom = torch.where(draw.chance(0.6), waist - draw.uniform(0, 0.12), waist + draw.uniform(-0.02, 0.1))
        reach = torch.where(
            draw.chance(0.45), draw.uniform(self.shoulder, self.wrist), draw.uniform(self.wrist - 0.06, self.wrist)
        )
        neckline = h["neck"] + draw.uniform(-0.1, 0.01) + draw.uniform(-0.2, 0.9) * x.abs().clamp(max=0.12)
        upper = (y > bottom) & (x.abs() < reach) & ((y < neckline) | self.is_arm) & ~self.is_head & ~self.is_hand
        texture = self._wear(draw, texture, upper & ~self.is_neck)

        shod = draw.chance(0.9)
        boot = draw.uniform(h["ankle"] + 0.05, h["knee"] - 0.1)
        ankle = torch.where(draw.chance(0.25), boot, draw.uniform(h["ankle"] - 0.02, h["ankle"] + 0.04))
        texture = self._wear(draw, texture, shod & (y < ankle) & ~self.is_arm)

        # Hair: above a plane that rises from the nape to the forehead.
        above = self.head + torch.tensor([0.0, 0.06, 0.02])
        line = above[1] + draw.uniform(-0.02, 0.04) + draw.uniform(0.5, 1.1) * (z - above[2])
        hair = draw.palette(HAIR)
        haired = draw.chance(0.93) & (self.is_head | self.is_neck) & (y > line)
        texture = torch.where(haired[:, None], self._patterned(draw, hair, hair * 0.7, draw.choice((1.0,))), texture)
        return texture.unflatten(-1, (self.size, self.size)).clamp(0, 1)

    def _wear(self, draw: _Draw, texture: Float[Tensor, "B 3 N"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B 3 N"]:
        first, second = draw.colour(), draw.colour()
        cloth = self._patterned(draw, first, second, draw.choice((0.0, 0.3, 1.0)))
        return torch.where(mask[:, None], cloth, texture)

    def _patterned(
        self, draw: _Draw, first: Float[Tensor, "B 3"], second: Float[Tensor, "B 3"], strength: Float[Tensor, "B 1"]
    ) -> Float[Tensor, "B 3 N"]:
        """Between two colours by a wave over the rest body: stripes, checks or blotches, as its direction falls."""
        direction = randn(draw.generator, draw.count, 3)
        along_axis = torch.eye(3)[randint(draw.generator, 2, draw.count)]
        direction = torch.where(draw.chance(0.6), along_axis, torch.nn.functional.normalize(direction, dim=-1))
        period = draw.uniform(0.03, 0.25)
        wave = torch.sin(direction @ self.position.T * (2 * torch.pi / period) + draw.uniform(0, 6.28))
        other = torch.sin(direction.roll(1, -1) @ self.position.T * (2 * torch.pi / period))
        wave = torch.where(draw.chance(0.4), wave * other, wave)
        sharpness = torch.where(draw.chance(0.5), 20.0, 1.5)
        mix = torch.sigmoid(wave * sharpness) * strength
        return first[..., None] + mix[:, None] * (second - first)[..., None]


class _Draw:
    """Random numbers for `count` people, (count, 1) each so that they broadcast over texels."""

    def __init__(self, count: int, generator: Source) -> None:
        self.count, self.generator = count, generator

    def uniform(self, low: float, high: float) -> Float[Tensor, "B 1"]:
        return low + (high - low) * rand(self.generator, self.count, 1)

    def chance(self, share: float) -> Bool[Tensor, "B 1"]:
        return rand(self.generator, self.count, 1) < share

    def choice(self, values: tuple[float, ...]) -> Float[Tensor, "B 1"]:
        index = randint(self.generator, len(values), self.count, 1)
        return torch.tensor(values)[index]

    def palette(self, colours: tuple[tuple[float, ...], ...]) -> Float[Tensor, "B 3"]:
        """A colour between two neighbours of a list."""
        place = self.uniform(0, len(colours) - 1.001)
        low = place.long()[:, 0]
        table = torch.tensor(colours)
        return torch.lerp(table[low], table[low + 1], place - low[:, None])

    def colour(self) -> Float[Tensor, "B 3"]:
        """Any cloth colour: grey towards a random hue, dark and pale ones included."""
        hue = rand(self.generator, self.count, 3)
        grey = self.uniform(0.05, 0.95)
        return torch.lerp(grey.expand(-1, 3), hue, self.uniform(0, 0.9))
