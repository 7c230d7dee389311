"""Training meshes: the free body in wide shapes and poses of motion capture, with its neutral counterparts.

    python -m recon_acap.data --output DIR [--mocap DIR] [--meshes 5000] [--seed 0]

A mesh follows from shape coefficients and a pose, so these are what is stored (people.npz); `posed_meshes` and
`neutral_meshes` make the vertices. The same seed gives the same file. People come in groups of two who take the same
two poses, so that each mesh has one of the same person and one of the same pose beside it.
"""

from __future__ import annotations

import argparse
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon_acap.network import Template
from recon_core.errors import ReconError, TrainingError, UsageError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.geometry.topology import edges
from recon_core.interfaces import Settings
from recon_core.structures import BodyParameters
from recon_std.bodies import load_body
from recon_std.bodies.decimate import decimate
from recon_std.bodies.parts import ANATOMICAL_PARTS
from recon_std.bodies.smpl import SMPLBody
from recon_std.readers.mocap import MocapDataset, mirrored

NEARBY = 0.12
"""Metres from a vertex within which a neighbouring part may move it (equation 9)."""

IMPORTANCE = {"head": 0.3, "left_hand": 0.3, "right_hand": 0.3, "left_foot": 0.3, "right_foot": 0.3}
"""Factors on the simplification error where the full body has most of its vertices."""

GROUP = 4
"""Meshes a group: two people, each in the same two poses."""


class PeopleConfig(Settings):
    """How people are drawn. meshes: posed meshes for training, a multiple of four; held_out: for the tests."""

    meshes: int = 5000
    held_out: int = 160
    seed: int = 0
    wide: float = 0.4
    """Share of people whose shape coefficients are drawn from a distribution `wide_scale` times as wide."""
    wide_scale: float = 1.8
    even_frames: float = 0.5
    """Share of frames drawn evenly; the rest are drawn by action (MocapDataset.sampling_weights)."""


@dataclass(frozen=True)
class People:
    """N posed people. betas: (N, S). pose: (N, 24, 3) axis-angle, radians, the root upright (zero).

    Rows 4g to 4g+3 are a group: person a in poses p and q, then person b in p and q.
    """

    betas: Float[Tensor, "N S"]
    pose: Float[Tensor, "N 24 3"]

    def __len__(self) -> int:
        return len(self.betas)


def make_people(config: PeopleConfig, mocap: Path) -> dict[str, People]:
    """Training people ("train") and held-out ones ("test": other shapes, poses of the validation clips).

    Raises UsageError when a count is not a positive multiple of four, TrainingError when `mocap` has no poses.
    """
    generator = torch.Generator().manual_seed(config.seed)
    people = {}
    for split, frames, count in (("train", "train", config.meshes), ("test", "val", config.held_out)):
        if count <= 0 or count % GROUP:
            raise UsageError(f"--meshes {count}: give a positive multiple of {GROUP} (people come in groups)")
        data = MocapDataset(mocap, MocapDataset.Config(split=frames))
        chance = config.even_frames / len(data) + (1 - config.even_frames) * data.sampling_weights
        rows = torch.multinomial(chance, count // 2, replacement=True, generator=generator)
        flip = torch.rand(len(rows), generator=generator) < 0.5
        pose = torch.where(flip[:, None, None], mirrored(data.poses[rows]), data.poses[rows])
        pose[:, 0] = 0
        scale = torch.where(torch.rand(count // 2, generator=generator) < config.wide, config.wide_scale, 1.0)
        betas = scale[:, None] * torch.randn(count // 2, load_body("free").shape_count, generator=generator)
        groups = torch.arange(count // GROUP)[:, None]
        people[split] = People(
            betas[(2 * groups + torch.tensor([0, 0, 1, 1])).flatten()],
            pose[(2 * groups + torch.tensor([0, 1, 0, 1])).flatten()],
        )
    return people


def save_people(people: dict[str, People], folder: Path) -> Path:
    """Write people.npz into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "people.npz"
    arrays = {f"{split}_{name}": getattr(p, name).numpy() for split, p in people.items() for name in ("betas", "pose")}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def load_people(folder: Path) -> dict[str, People]:
    """Read what `save_people` wrote. Raises TrainingError naming the file."""
    path = folder / "people.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return {
                split: People(torch.from_numpy(file[f"{split}_betas"]), torch.from_numpy(file[f"{split}_pose"]))
                for split in ("train", "test")
            }
    except FileNotFoundError:
        raise TrainingError(
            f"{path}: no such file; make it with: python -m recon_acap.data --output {folder}"
        ) from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{path}: not people of recon-acap ({error}); make it again") from None


def make_template(body: SMPLBody, vertices: int | None = None) -> Template:
    """The reference: the mean body in the T-pose, its skin without the eyeballs, simplified to about `vertices`.

    None keeps all. Its vertices are some of the body's (`Template.source`).
    """
    points, faces = body.template.double().numpy(), body.faces.numpy()
    skin = _largest_piece(faces, len(points))[faces[:, 0]]
    if vertices is None:
        chosen = faces[skin]
    else:
        importance = np.ones(len(points))
        for part, factor in IMPORTANCE.items():
            importance[body.anatomy.numpy() == ANATOMICAL_PARTS.index(part)] = factor
        assert body.mirror is not None
        uv, uv_faces = body.uv.double().numpy(), body.uv_faces.numpy()
        _, chosen, _ = decimate(points, faces[skin], uv, uv_faces[skin], body.mirror.numpy(), importance, vertices)
    source, new_faces = np.unique(chosen, return_inverse=True)
    rows = torch.from_numpy(source)
    kept = torch.from_numpy(new_faces.reshape(-1, 3))
    parts = body.anatomy[rows]
    reference = body.template[rows]
    return Template(reference, kept, parts, nearby_parts(reference, kept, parts, len(ANATOMICAL_PARTS)), rows)


def nearby_parts(
    points: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], part: Int[Tensor, " V"], count: int, within: float = NEARBY
) -> Bool[Tensor, "K V"]:
    """(count, V) which parts may move which vertices: its own, and adjoining ones with a vertex `within` metres."""
    pairs = part[edges(faces).vertices]
    adjoins = torch.eye(count, dtype=torch.bool)
    adjoins[pairs[:, 0], pairs[:, 1]] = adjoins[pairs[:, 1], pairs[:, 0]] = True
    distance = torch.stack(
        [
            torch.cdist(points, points[part == k]).amin(1)
            if bool((part == k).any())
            else points.new_full((len(points),), torch.inf)
            for k in range(count)
        ]
    )
    return (distance <= within) & adjoins[:, part]


def _largest_piece(faces: np.ndarray, vertices: int) -> np.ndarray:
    """(V,) whether a vertex belongs to the largest connected piece."""
    ends = (faces.ravel(), np.roll(faces, 1, 1).ravel())
    graph = scipy.sparse.coo_matrix((np.ones(faces.size), ends), (vertices, vertices))
    _, piece = scipy.sparse.csgraph.connected_components(graph, directed=False)
    return piece == np.bincount(piece).argmax()


@torch.no_grad()
def posed_meshes(
    body: SMPLBody, template: Template, betas: Float[Tensor, "B S"], pose: Float[Tensor, "B 24 3"]
) -> Float[Tensor, "B V 3"]:
    """Template vertices of people, metres, root at the origin and upright."""
    posed = body(BodyParameters(axis_angle_to_matrix(pose), betas, betas.new_zeros(len(betas), 3))).vertices
    return posed[:, template.source]


def neutral_meshes(body: SMPLBody, template: Template, betas: Float[Tensor, "B S"]) -> Float[Tensor, "B V 3"]:
    """Their neutral counterparts: the shaped bodies in the T-pose."""
    return body.rest_vertices(betas)[:, template.source]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write people.npz to")
    parser.add_argument(
        "--mocap", type=Path, default=Path("../shared/data/mocap"), help="poses_train.npz, poses_val.npz"
    )
    parser.add_argument("--meshes", type=int, default=PeopleConfig.model_fields["meshes"].default)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        people = make_people(PeopleConfig(meshes=options.meshes, seed=options.seed), options.mocap)
    except ReconError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    path, known, held_out = save_people(people, options.output), people["train"], people["test"]
    print(f"{path}: {len(known)} posed meshes of {len(known) // 2} people, {len(held_out)} held out")


if __name__ == "__main__":
    main()
