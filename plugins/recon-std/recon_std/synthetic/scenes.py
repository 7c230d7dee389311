"""Rendered people with every annotation: image, masks, parts, depth, joints, parameters; seeded and batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon_core.interfaces import Renderer, Settings
from recon_core.rendering import Fragments, Scene, directional_light, shade
from recon_core.structures import Batched, BodyParameters, Camera, Mesh
from recon_std.bodies.smpl import SMPLBody
from recon_std.synthetic.backgrounds import random_backgrounds
from recon_std.synthetic.clothing import Wardrobe
from recon_std.synthetic.keypoints import KeypointSampler, framing_camera
from recon_std.synthetic.random import RowGenerators, Source, rand, randint, randn

Backgrounds = Callable[[int, tuple[int, int], Source], Tensor]

PICTURES_AT_ONCE = 4
"""Pictures are drawn so many at a time: what is computed of more leaves the processor's cache, and with 32 the system
takes longer to hand out the memory than the rest together."""


class SceneConfig(Settings):
    """How pictures are drawn from people."""

    size: int = 256
    """Side of the square picture in pixels."""
    people: int = 1
    """People a picture, the further ones partly hidden by the nearer."""
    margin: tuple[float, float] = (1.05, 1.5)
    """Side of the picture over the longer side of the first person's box, uniform."""
    shift: float = 0.08
    """Largest offset of the box's centre from the picture's, in picture sides, either way."""
    cut: float = 0.15
    """Share of pictures that zoom in on a part of the person, so that some joints fall outside."""
    grain: float = 0.03
    """Largest standard deviation of pixel noise."""
    texture: int = 128
    """Side of the clothing textures in texels."""


@dataclass(frozen=True)
class RenderedPeople(Batched):
    """B pictures of R people.

    image: (B, 3, H, W) in [0, 1]. mask: (B, 1, H, W) float, anyone. instance: (B, H, W) int64, row of the person
    seen, -1 for none. part: (B, H, W) int64, smpl24 part seen plus 1, 0 for none. depth: (B, H, W) metres, 0 for
    none. camera: of the pictures, (B,). body: (R,) in the camera frame. picture: (R,) the picture each person is
    in. joints: (R, J, 3) metres, joints2d: (R, J, 2) pixels, by skeleton. visible: (R, 24) smpl24 joints that are
    in the picture and not behind another person. textures: (R, 3, T, T).
    """

    image: Float[Tensor, "B 3 H W"]
    mask: Float[Tensor, "B 1 H W"]
    instance: Int[Tensor, "B H W"]
    part: Int[Tensor, "B H W"]
    depth: Float[Tensor, "B H W"]
    camera: Camera
    body: BodyParameters
    picture: Int[Tensor, " R"]
    visible: Bool[Tensor, "R 24"]
    textures: Float[Tensor, "R 3 T T"]
    joints: dict[str, Tensor] = field(default_factory=dict)
    joints2d: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Draw(Batched):
    """What is random about B pictures of R people, before anything is rendered.

    margin: (B,) picture's side over the longer side of the first person's box. offset: (B, 2) of the box's
    centre from the picture's, in longer sides. softness: (B,) how far each pixel mixes with its neighbour. grain: (B,)
    standard deviation of the noise; noise_shift: (B, 2) pixels, where it is taken from the sampler's field.
    """

    body: BodyParameters
    textures: Float[Tensor, "R 3 T T"]
    light: Float[Tensor, "B 9 3"]
    background: Float[Tensor, "B 3 H W"]
    margin: Float[Tensor, " B"]
    offset: Float[Tensor, "B 2"]
    softness: Float[Tensor, " B"]
    grain: Float[Tensor, " B"]
    noise_shift: Int[Tensor, "B 2"]

    @classmethod
    def joined(cls, draws: Sequence[Draw]) -> Draw:
        """One draw of all the pictures of several."""
        values: dict[str, Any] = {}
        for name in (f.name for f in fields(cls)):
            parts = [getattr(draw, name) for draw in draws]
            values[name] = BodyParameters.joined(parts) if name == "body" else torch.cat(parts)
        return cls(**values)


class SceneSampler:
    """Draws `RenderedPeople`.

    people: where poses, shapes and viewpoints come from. backgrounds: (count, (w, h), generator) -> pictures;
    random ones by default, or a `BackgroundPhotos`.
    """

    skeletons = ("smpl24", "coco17", "lsp14")

    def __init__(
        self,
        people: KeypointSampler,
        renderer: Renderer,
        config: SceneConfig | None = None,
        backgrounds: Backgrounds = random_backgrounds,
    ) -> None:
        body = people.body
        assert isinstance(body, SMPLBody)
        self.body, self.people, self.renderer, self.backgrounds = body, people, renderer, backgrounds
        self.config = config or SceneConfig()
        self.wardrobe = Wardrobe(body, renderer, self.config.texture)
        size = self.config.size
        self.noise = torch.randn(3, size, size, generator=torch.Generator().manual_seed(0))

    def batches(self, count: int, seed: int = 0) -> Iterator[RenderedPeople]:
        """Endless batches of `count` pictures, the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.sample(count, generator)

    def sample(self, count: int, generator: torch.Generator) -> RenderedPeople:
        """`count` pictures, all from one generator."""
        return self.render(self.draw(count, generator))

    def sample_each(self, generators: Sequence[torch.Generator]) -> RenderedPeople:
        """A picture from each generator, which does not depend on the others beside it."""
        groups = [generators[i : i + PICTURES_AT_ONCE] for i in range(0, len(generators), PICTURES_AT_ONCE)]
        return self.render(Draw.joined([self.draw(len(group), RowGenerators(group)) for group in groups]))

    @torch.no_grad()
    def draw(self, count: int, generator: Source) -> Draw:
        """Everything random about `count` pictures."""
        c = self.config

        def uniform(low: float, high: float) -> Float[Tensor, " B"]:
            return low + (high - low) * rand(generator, count)

        body = self.people.bodies(count * c.people, generator)
        if c.people > 1:
            body = self._gathered(body, generator)
        zoomed = uniform(0, 1) < c.cut
        margin = torch.where(zoomed, uniform(0.5, 0.9), uniform(*c.margin))
        reach = torch.where(zoomed, 0.25, c.shift * margin)
        return Draw(
            body=body,
            textures=self.wardrobe.dress(len(body), generator),
            light=self._light(count, generator),
            background=self.backgrounds(count, (c.size, c.size), generator),
            margin=margin,
            offset=reach[:, None] * (2 * rand(generator, count, 2) - 1),
            softness=uniform(0, 0.5),
            grain=uniform(0, c.grain),
            noise_shift=randint(generator, c.size, count, 2),
        )

    @torch.no_grad()
    def render(self, draw: Draw) -> RenderedPeople:
        """The pictures of a draw."""
        people, count = self.config.people, len(draw.margin)
        picture = torch.arange(count).repeat_interleave(people)
        vertices = self.body(draw.body).vertices
        camera = self._camera(vertices[::people], draw)
        seen = [
            self._pictures(vertices, camera, draw, slice(first, min(first + PICTURES_AT_ONCE, count)))
            for first in range(0, count, PICTURES_AT_ONCE)
        ]
        image, instance, part, depth = (torch.cat(values) for values in zip(*seen, strict=True))
        joints = {name: self.body.keypoints(draw.body, name) for name in self.skeletons}
        own = camera[picture]
        joints2d = {name: own.project(points) for name, points in joints.items()}
        return RenderedPeople(
            image=image,
            mask=(instance >= 0).to(image)[:, None],
            instance=instance,
            part=part,
            depth=depth,
            camera=camera,
            body=draw.body,
            picture=picture,
            visible=self._visible(joints2d["smpl24"], instance, picture),
            textures=draw.textures,
            joints=joints,
            joints2d=joints2d,
        )

    def _pictures(
        self, vertices: Float[Tensor, "R V 3"], camera: Camera, draw: Draw, rows: slice
    ) -> tuple[Float[Tensor, "b 3 H W"], Int[Tensor, "b H W"], Int[Tensor, "b H W"], Float[Tensor, "b H W"]]:
        """Image, person seen, part seen and depth of some of a draw's pictures."""
        people = self.config.people
        first, last = rows.start * people, rows.stop * people
        mesh = Mesh(vertices[first:last], self.body.faces, self.body.uv, self.body.uv_faces, draw.textures[first:last])
        count = rows.stop - rows.start
        scene = Scene((mesh,), torch.arange(count).repeat_interleave(people), count)
        fragments = self.renderer.rasterize(scene, camera[rows])
        shown = shade(scene, fragments, draw.light[rows], draw.background[rows])
        instance, part = self._labels(fragments, first)
        return self._photographed(shown.image, draw, rows), instance, part, fragments.depth

    def _labels(self, fragments: Fragments, first: int) -> tuple[Int[Tensor, "B H W"], Int[Tensor, "B H W"]]:
        """Person seen, counted from `first`, and part seen at each pixel that shows somebody."""
        shown = fragments.visible
        faces = len(self.body.faces)
        corner = shown.barycentrics.argmax(-1, keepdim=True)
        vertex = self.body.faces[shown.face % faces].gather(-1, corner)[..., 0]
        instance = torch.full(shown.size, -1)
        part = torch.zeros(shown.size, dtype=torch.int64)
        instance.view(-1)[shown.index] = shown.face // faces + first
        part.view(-1)[shown.index] = self.body.parts[vertex] + 1
        return instance, part

    def _gathered(self, body: BodyParameters, generator: Source) -> BodyParameters:
        """Bring each picture's further people near to its first one, so that they overlap in the picture."""
        groups = body.translation.unflatten(0, (-1, self.config.people))
        first = groups[:, :1]
        beside = rand(generator, len(body), 3).reshape(*groups.shape[:2], 3) - 0.5
        beside = beside * torch.tensor([1.6, 0.1, 2.0]) + torch.tensor([0.0, 0.0, 0.3])
        # Nobody nearer to the camera than half of the first person's depth.
        moved = first + beside * torch.tensor([1.0, 1.0, 0.5])
        moved = torch.cat([moved[..., :2], moved[..., 2:].clamp_min(0.5 * first[..., 2:])], -1)
        moved[:, 0] = groups[:, 0]
        return BodyParameters(body.pose, body.betas, moved.flatten(0, 1))

    def _camera(self, vertices: Float[Tensor, "B V 3"], draw: Draw) -> Camera:
        """A camera at the origin whose square picture frames these bodies as drawn."""
        return framing_camera(vertices, self.config.size, draw.margin, draw.offset)

    def _light(self, count: int, generator: Source) -> Float[Tensor, "B 9 3"]:
        """A lamp anywhere above (y down: negative) or beside the camera, of random strength and tint."""
        direction = randn(generator, count, 3) - torch.tensor([0.0, 0.7, 0.7])
        diffuse = 0.2 + 0.8 * rand(generator, count, 1, 1)
        ambient = 0.25 + 0.6 * rand(generator, count, 1, 1)
        lamp = directional_light(direction, ambient=0.0, diffuse=1.0) * diffuse
        sky = directional_light(direction, ambient=1.0, diffuse=0.0) * ambient
        tint = 1 + 0.15 * randn(generator, count, 1, 3)
        return (lamp + sky) * tint

    def _photographed(self, image: Float[Tensor, "b 3 H W"], draw: Draw, rows: slice) -> Float[Tensor, "b 3 H W"]:
        """Softened edges and pixel noise, as a lens and a sensor give."""
        share = draw.softness[rows].reshape(-1, 1, 1, 1)
        image = torch.cat([image[..., :1], torch.lerp(image[..., 1:], image[..., :-1], share)], -1)
        image = torch.cat([image[..., :1, :], torch.lerp(image[..., 1:, :], image[..., :-1, :], share)], -2)
        # One field of noise, rolled anew for each picture: drawing 200,000 normal numbers costs more than rendering.
        noise = torch.stack([self.noise.roll((dy, dx), (-2, -1)) for dy, dx in draw.noise_shift[rows].tolist()])
        return image.addcmul_(noise, draw.grain[rows].reshape(-1, 1, 1, 1)).clamp_(0, 1)

    def _visible(
        self, points: Float[Tensor, "R J 2"], instance: Int[Tensor, "B H W"], picture: Int[Tensor, " R"]
    ) -> Bool[Tensor, "R J"]:
        """Joints inside the picture at pixels that show the joint's own person, or nobody."""
        size = self.config.size
        inside = ((points >= 0) & (points < size)).all(-1)
        x, y = points.clamp(0, size - 1).long().unbind(-1)
        seen = instance[picture[:, None], y, x]
        return inside & ((seen == torch.arange(len(points))[:, None]) | (seen < 0))
