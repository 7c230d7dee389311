"""Table 2 of the body embedding's paper on held-out people, and how well shape and pose are kept apart.

    python benchmarks/bench_acap_table2.py --data DIR [--runs DIR] [--fit 20]

--data: what `python -m recon_acap.data` wrote. --runs: what `recon_acap.train --compare` wrote, for the baseline and
meshVAE beside ours; without it the shipped weights alone. --fit: how many posed and neutral meshes the codes are also
fitted to (equation 15), which takes seconds a mesh.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.func import jacfwd, vmap

from recon_acap.data import People, load_people, neutral_meshes, posed_meshes
from recon_acap.evaluation import BONES, JOINTS, Disentanglement, disentanglement, mean_vertex_distance
from recon_acap.fitting import LatentFitSettings, fit_meshes
from recon_acap.fitting.embedded import EmbeddedBodies
from recon_acap.network import BodyEmbedding, Template, load_embedding
from recon_core.geometry.rotations import axis_angle_to_matrix, geodesic_distance
from recon_core.skeletons import SMPL24
from recon_std.bodies import load_body
from recon_std.bodies.smpl import SMPLBody

PAPER = {"hierarchical": (4.67, 2.75), "baseline": (4.99, 3.19), "meshvae": (5.26, 3.13)}
"""Table 2: mm on 160 neutral and 160 posed meshes."""

STEPS = 15
"""Of the fits of the skinned body."""

LIMIT = 2.0
"""Degrees and percent that the other code's change may make."""


def template_of(embedding: BodyEmbedding) -> Template:
    nothing = torch.zeros(0, len(embedding.reference), dtype=torch.bool)
    return Template(embedding.reference, embedding.faces, embedding.part, nothing, embedding.source)


@torch.no_grad()
def encoded_mm(embedding: BodyEmbedding, vertices: Tensor) -> float:
    latent = embedding.encode(embedding.codec.extract(vertices))
    return 1000 * float(mean_vertex_distance(embedding.vertices(latent.shape, latent.pose), vertices).mean())


def fitted_mm(embedding: BodyEmbedding, vertices: Tensor) -> float:
    found = fit_meshes(EmbeddedBodies(embedding), vertices.double(), embedding.faces, LatentFitSettings(iterations=10))
    return 1000 * float((found.vertices - vertices).norm(dim=-1).mean())


@torch.no_grad()
def exchanged(embedding: BodyEmbedding, posed: Tensor) -> Tensor:
    """(N, 4, V, 3) bodies of the codes of each group's first and last mesh: shape a and b, each in poses p and q."""
    latent = embedding.encode(embedding.codec.extract(posed))
    shape = torch.stack([latent.shape[0::4], latent.shape[0::4], latent.shape[3::4], latent.shape[3::4]], 1)
    pose = torch.stack([latent.pose[0::4], latent.pose[3::4], latent.pose[0::4], latent.pose[3::4]], 1)
    return embedding.vertices(shape.flatten(0, 1), pose.flatten(0, 1)).unflatten(0, (-1, 4))


class LinearSkinnedBody:
    """A skinned body of as many numbers as the embedding has: 50 principal components of the training people's neutral
    meshes, of which the joints follow linearly, and 72 angles of the free body's 24 joints, with its skinning weights.
    """

    def __init__(self, body: SMPLBody, template: Template, people: People, shape_dims: int) -> None:
        neutral = neutral_meshes(body, template, people.betas[::2]).double().flatten(1)
        self.mean = neutral.mean(0)
        self.directions = torch.linalg.svd(neutral - self.mean, full_matrices=False).Vh[:shape_dims]
        codes = (neutral - self.mean) @ self.directions.T
        known = torch.cat([codes, torch.ones(len(codes), 1)], 1)
        joints = body.rest_joints(people.betas[::2]).double().flatten(1)
        self.joints = torch.linalg.lstsq(known, joints, driver="gelsd").solution
        self.weights = body.weights[template.source].double()
        self.parents = body.parents

    def skeleton(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of one body (shape, 72 axis-angle numbers, 3 of its place): its joints at rest, and the rotations and places
        of these in its pose."""
        code, angles, place = numbers.split([len(numbers) - 75, 72, 3])
        joint = (torch.cat([code, code.new_ones(1)]) @ self.joints).view(24, 3)
        local = axis_angle_to_matrix(angles.view(24, 3))
        turn, at = [local[0]], [joint[0] + place]
        for k, parent in list(enumerate(self.parents))[1:]:
            turn.append(turn[parent] @ local[k])
            at.append(at[parent] + turn[parent] @ (joint[k] - joint[parent]))
        return joint, torch.stack(turn), torch.stack(at)

    def vertices(self, numbers: Tensor) -> Tensor:
        """Of one body."""
        rest = (self.mean + numbers[:-75] @ self.directions).view(-1, 3)
        joint, R, at = self.skeleton(numbers)
        t = at - (R @ joint[..., None])[..., 0]
        blended = (self.weights @ R.flatten(1)).view(-1, 3, 3)
        return (blended @ rest[..., None])[..., 0] + self.weights @ t

    def fit(self, vertices: Tensor, steps: int = STEPS) -> tuple[Tensor, Tensor]:
        """Levenberg-Marquardt from the mean T-pose: the numbers, and each mesh's mean distance in millimetres."""
        found = [self._fit(rows.double(), steps) for rows in vertices.split(4)]
        return torch.cat([numbers for numbers, _ in found]), torch.cat([mm for _, mm in found])

    def _fit(self, target: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        numbers = target.new_zeros(len(target), len(self.directions) + 75)
        damping = target.new_full((len(target),), 1e-3)
        gap = vmap(self.vertices)(numbers) - target
        for _ in range(steps):
            J = vmap(jacfwd(self.vertices))(numbers).flatten(1, 2)
            H, g = J.mT @ J, (J.mT @ gap.flatten(1)[..., None])[..., 0]
            H.diagonal(dim1=1, dim2=2).add_(1e-6 + damping[:, None] * H.diagonal(dim1=1, dim2=2))
            tried = numbers - torch.linalg.solve(H, g)
            new = vmap(self.vertices)(tried) - target
            better = new.square().sum((1, 2)) < gap.square().sum((1, 2))
            numbers = torch.where(better[:, None], tried, numbers)
            gap = torch.where(better[:, None, None], new, gap)
            damping = torch.where(better, damping / 4, damping * 8)
        return numbers, 1000 * gap.norm(dim=-1).mean(1)

    def apart(self, groups: Tensor) -> Disentanglement:
        """`evaluation.disentanglement` of (N, 4, V, 3) meshes by the skeletons fitted to them, in which bodies of one
        pose turn alike, and of one shape have the same bones, whatever the other."""
        numbers, _ = self.fit(groups.flatten(0, 1))
        joint, turn, _ = vmap(self.skeleton)(numbers)
        moving = turn[:, [SMPL24.index(name) for name in JOINTS]].unflatten(0, (-1, 4))
        ends = [[SMPL24.index(bone[i]) for bone in BONES] for i in (0, 1)]
        length = (joint[:, ends[0]] - joint[:, ends[1]]).norm(dim=-1).unflatten(0, (-1, 4))
        turned = torch.rad2deg(geodesic_distance(moving[:, :2], moving[:, 2:]))
        return Disentanglement(turned, (length[:, 1::2] / length[:, ::2] - 1).abs())


def apart(name: str, measured: Disentanglement) -> str:
    text = f"{name:<24}"
    for value in (measured.turned.flatten(), 100 * measured.stretched.flatten()):
        kept = (value < LIMIT).double().mean()
        text += f"{float(value.mean()):>10.2f}{float(value.median()):>8.2f}{float(kept):>8.0%}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--fit", type=int, default=20)
    parser.add_argument("--skeletons", type=int, default=8, help="groups of four meshes that skeletons are fitted to")
    options = parser.parse_args()
    people, body = load_people(options.data)["test"], load_body("free")
    ours = load_embedding()
    template = template_of(ours)
    posed = posed_meshes(body, template, people.betas, people.pose)
    neutral = neutral_meshes(body, template, people.betas[::2])

    print(
        f"Held-out people: {len(neutral)} neutral and {len(posed)} posed meshes of {len(template.reference)} vertices"
    )
    print("mean Euclidean distance, mm        encoder            fitted (eq. 15)    paper, table 2")
    print(f"{'':<24}{'steps':>6}  neutral   posed    neutral   posed    neutral   posed")
    for variant, (paper_neutral, paper_posed) in PAPER.items():
        run = options.runs / variant if options.runs else None
        if run is None and variant != "hierarchical":
            continue
        embedding = load_embedding(run / "acap-vae.safetensors") if run else ours
        steps = str(json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"]) if run else ""
        line = f"{variant:<24}{steps:>6}{encoded_mm(embedding, neutral):>9.2f}{encoded_mm(embedding, posed):>8.2f}"
        if options.fit:
            line += "".join(f"{fitted_mm(embedding, meshes[: options.fit]):>9.2f}" for meshes in (neutral, posed))
        else:
            line += " " * 18
        print(f"{line}{paper_neutral:>11.2f}{paper_posed:>8.2f}", flush=True)
    skinned = LinearSkinnedBody(body, template, load_people(options.data)["train"], ours.config.shape_dims)
    line = f"{'skinned, linear shape':<24}{'':>6}{'':>17}"
    if options.fit:
        line += "".join(f"{float(skinned.fit(m[: options.fit])[1].mean()):>9.2f}" for m in (neutral, posed))
    print(line)

    groups = posed.unflatten(0, (-1, 4))
    print("\nShape and pose apart             part rotations, degrees   bone lengths, %")
    print(f"{'':<24}{'mean':>10}{'median':>8}{'< 2':>8}{'mean':>10}{'median':>8}{'< 2':>8}")
    decoded = exchanged(ours, posed)
    print(apart("codes of ours", disentanglement(ours.codec, ours.part, decoded)))
    print(apart("the true bodies", disentanglement(ours.codec, ours.part, groups)))
    print(apart("ours beyond the true", disentanglement(ours.codec, ours.part, decoded, groups)))
    if options.skeletons:
        print(apart("ours, fitted skeletons", skinned.apart(decoded[: options.skeletons])))


if __name__ == "__main__":
    main()
