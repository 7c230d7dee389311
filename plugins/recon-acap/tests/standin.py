"""A small generator with the interface of the embedding: a tapering post that grows, bends and twists."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_acap.fitting.generator import forward_jacobian
from recon_core.geometry.rotations import axis_angle_to_matrix


class Post:
    """1.7 m tall, y up, with a nose towards +z. shape: girth and height; pose: bends about x and z and a twist, at a
    lower and an upper joint."""

    shape_count, pose_count = 2, 6

    def __init__(self, rings: int = 18, spokes: int = 12) -> None:
        height = torch.linspace(0, 1.7, rings, dtype=torch.float64)
        angle = torch.arange(spokes, dtype=torch.float64) * (2 * math.pi / spokes)
        radius = 0.1 + 0.12 * (1 - height / 1.7)
        circle = torch.stack([angle.cos() * 0.8, torch.zeros_like(angle), angle.sin() * (1 + 0.6 * angle.sin())], -1)
        side = radius[:, None, None] * circle + height[:, None, None] * torch.tensor([0.0, 1.0, 0.0]).double()
        caps = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.7, 0.0]], dtype=torch.float64)
        self.rest = torch.cat([side.flatten(0, 1), caps])
        i = torch.arange(rings - 1)[:, None] * spokes
        a, b = i + torch.arange(spokes), i + (torch.arange(spokes) + 1) % spokes
        quads = [torch.stack([a, a + spokes, b], -1), torch.stack([b, a + spokes, b + spokes], -1)]
        spoke = torch.arange(spokes)
        end, last = (spoke + 1) % spokes, (rings - 1) * spokes
        low = torch.stack([torch.full_like(spoke, rings * spokes), spoke, end], -1)
        high = torch.stack([torch.full_like(spoke, rings * spokes + 1), last + end, last + spoke], -1)
        self.faces = torch.cat([quads[0].flatten(0, 1), quads[1].flatten(0, 1), low, high])

    def vertices(self, shape: Tensor, pose: Tensor) -> Tensor:
        q = self.rest.to(shape)
        grown = torch.stack([1 + 0.1 * shape[:, :1], 1 + 0.05 * shape[:, 1:], 1 + 0.1 * shape[:, :1]], -1) * q
        for k, joint in enumerate((0.6, 1.2)):
            above = torch.sigmoid((q[:, 1] - joint) / 0.05)[None, :, None]
            turn = axis_angle_to_matrix(0.4 * pose[:, 3 * k : 3 * k + 3])[:, None]
            pivot = shape.new_tensor([0.0, joint, 0.0])
            bent = (turn @ (grown - pivot)[..., None])[..., 0] + pivot
            grown = above * bent + (1 - above) * grown
        return grown

    def linearized(self, shape: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        return forward_jacobian(self.vertices, shape, pose)

    def encoded(self, vertices: Tensor) -> None:
        return None

    def bends(self, shape: Tensor, pose: Tensor) -> Tensor:
        return 0.4 * pose[:, [0, 3]]
