"""What the embedding is for besides fitting: pose transfer, interpolation, new people (section 8.2).

    python -m recon_acap.uses --output DIR

draws each of them (docs/acap-uses.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from recon_acap.network import BodyEmbedding, load_embedding
from recon_core.structures import Camera, Mesh

GENTLE = 0.8
"""Deviation of pose codes drawn for a picture: the outermost of N(0, I) are poses no motion capture had."""


def pose_transfer(
    embedding: BodyEmbedding, shape: Float[Tensor, "B S"], pose: Float[Tensor, "B P"]
) -> Float[Tensor, "B V 3"]:
    """Bodies with the shape codes of some meshes and the pose codes of others (fig. 13), metres."""
    return embedding.vertices(shape, pose)


def interpolate(
    embedding: BodyEmbedding,
    start: tuple[Float[Tensor, "B S"], Float[Tensor, "B P"]],
    end: tuple[Float[Tensor, "B S"], Float[Tensor, "B P"]],
    at: Float[Tensor, " N"],
) -> Float[Tensor, "B N V 3"]:
    """Bodies on the straight line between two pairs of codes (shape, pose) (fig. 15): `at` 0 is the start, 1 the end,
    values outside extrapolate. Metres."""
    between = [a[:, None] + at[None, :, None] * (b - a)[:, None] for a, b in zip(start, end, strict=True)]
    vertices = embedding.vertices(*(codes.flatten(0, 1) for codes in between))
    return vertices.unflatten(0, (-1, len(at)))


def interpolate_bilinear(
    embedding: BodyEmbedding,
    start: tuple[Float[Tensor, "B S"], Float[Tensor, "B P"]],
    end: tuple[Float[Tensor, "B S"], Float[Tensor, "B P"]],
    shape_at: Float[Tensor, " M"],
    pose_at: Float[Tensor, " N"],
) -> Float[Tensor, "B M N V 3"]:
    """Bodies whose shape goes from one to the other along M and whose pose along N (fig. 14), metres."""
    (shape_a, pose_a), (shape_b, pose_b) = start, end
    rows, columns, batch = len(shape_at), len(pose_at), len(shape_a)
    shape = shape_a[:, None] + shape_at[None, :, None] * (shape_b - shape_a)[:, None]
    pose = pose_a[:, None] + pose_at[None, :, None] * (pose_b - pose_a)[:, None]
    shape = shape[:, :, None].expand(-1, -1, columns, -1).flatten(0, 2)
    pose = pose[:, None].expand(-1, rows, -1, -1).flatten(0, 2)
    return embedding.vertices(shape, pose).unflatten(0, (batch, rows, columns))


def sample_people(
    embedding: BodyEmbedding,
    count: int,
    generator: torch.Generator | None = None,
    shape_scale: float = 1.0,
    pose_scale: float = 1.0,
) -> tuple[Float[Tensor, "N S"], Float[Tensor, "N P"]]:
    """Codes of new people (fig. 16, 17), from N(0, scale^2 I); pose_scale 0 is neutral poses."""
    like = embedding.reference
    draw = lambda width: torch.randn(count, width, generator=generator).to(like)  # noqa: E731
    return shape_scale * draw(embedding.config.shape_dims), pose_scale * draw(embedding.config.pose_dims)


def picture(
    vertices: Float[Tensor, "N V 3"], embedding: BodyEmbedding, columns: int, tile: tuple[int, int] = (150, 230)
) -> UInt8[np.ndarray, "H W 3"]:
    """Bodies from the front in rows of `columns`, all to one scale, on tiles of `tile` pixels."""
    from recon_core.export.pictures import overlay
    from recon_core.plugins import registry

    span = vertices.amax(1) - vertices.amin(1)
    metre = 0.95 * min(tile[0] / float(span[:, 0].max()), tile[1] / float(span[:, 1].max()))
    number = torch.arange(len(vertices), device=vertices.device)
    middle = torch.stack([number % columns + 0.5, number // columns + 0.5, torch.zeros_like(number)], -1)
    centred = (vertices - (vertices.amax(1) + vertices.amin(1))[:, None] / 2) * vertices.new_tensor([1.0, -1.0, -1.0])
    placed = centred + (middle * middle.new_tensor([*tile, 0.0]) / metre)[:, None]
    size = (columns * tile[0], -(-len(vertices) // columns) * tile[1])
    K = torch.diag(torch.tensor([metre, metre, 1.0]))[None]
    camera = Camera(K, torch.eye(3)[None], torch.tensor([[0.0, 0.0, 10.0]]), size, orthographic=True)
    paper = np.full((size[1], size[0], 3), 255, np.uint8)
    mesh = Mesh(placed.float().cpu(), embedding.faces.cpu())
    return overlay(paper, mesh, camera, registry().create("renderer", "warp"), [(0.62, 0.68, 0.82)])


def draw_all(embedding: BodyEmbedding, folder: Path, seed: int = 0) -> list[Path]:
    """The pictures of docs/acap-uses.md, of people drawn by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shape, pose = sample_people(embedding, 8, generator, pose_scale=GENTLE)
    ends = (shape[:1], pose[:1]), (shape[1:2], pose[1:2])
    at = torch.linspace(0, 1, 7)
    line = interpolate(embedding, *ends, at)[0]
    straight = line[:1] + at[:, None, None] * (line[-1:] - line[:1])
    transfer = [
        pose_transfer(embedding, s, p) for s, p in ((shape[:4], pose[:4]), (shape[4:], pose[4:]), (shape[:4], pose[4:]))
    ]
    grid = interpolate_bilinear(embedding, *ends, torch.linspace(-0.25, 1.25, 4), torch.linspace(-0.25, 1.25, 7))[0]
    neutral = embedding.vertices(*sample_people(embedding, 16, generator, pose_scale=0.0))
    people = embedding.vertices(*sample_people(embedding, 32, generator, pose_scale=GENTLE))
    drawn = {
        "pose_transfer": (torch.stack(transfer, 1).flatten(0, 1), 6),
        "interpolation": (torch.cat([line, straight]), 7),
        "bilinear": (grid.flatten(0, 1), 7),
        "neutral_people": (neutral, 8),
        "people": (people, 8),
    }
    paths = []
    for name, (bodies, columns) in drawn.items():
        paths.append(folder / f"{name}.png")
        Image.fromarray(picture(bodies, embedding, columns)).save(paths[-1])
    return paths


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the pictures to")
    parser.add_argument("--weights", type=Path, help="an embedding; the shipped one by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for path in draw_all(load_embedding(options.weights), options.output, options.seed):
        print(path)


if __name__ == "__main__":
    main()
