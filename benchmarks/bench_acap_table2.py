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

from recon_acap.data import load_people, neutral_meshes, posed_meshes
from recon_acap.evaluation import Disentanglement, disentanglement, mean_vertex_distance
from recon_acap.fitting import LatentFitSettings, fit_meshes
from recon_acap.fitting.embedded import EmbeddedBodies
from recon_acap.network import BodyEmbedding, Template, load_embedding
from recon_std.bodies import load_body

PAPER = {"hierarchical": (4.67, 2.75), "baseline": (4.99, 3.19), "meshvae": (5.26, 3.13)}
"""Table 2: mm on 160 neutral and 160 posed meshes."""

LIMIT = 2.0
"""Degrees and percent that the other code's change may make."""


def template_of(embedding: BodyEmbedding) -> Template:
    nothing = torch.zeros(0, len(embedding.reference), dtype=torch.bool)
    return Template(embedding.reference, embedding.faces, embedding.part, nothing, embedding.source)


@torch.no_grad()
def encoded_mm(embedding: BodyEmbedding, vertices: torch.Tensor) -> float:
    latent = embedding.encode(embedding.codec.extract(vertices))
    return 1000 * float(mean_vertex_distance(embedding.vertices(latent.shape, latent.pose), vertices).mean())


def fitted_mm(embedding: BodyEmbedding, vertices: torch.Tensor) -> float:
    found = fit_meshes(EmbeddedBodies(embedding), vertices.double(), embedding.faces, LatentFitSettings(iterations=10))
    return 1000 * float((found.vertices - vertices).norm(dim=-1).mean())


@torch.no_grad()
def exchanged(embedding: BodyEmbedding, posed: torch.Tensor) -> torch.Tensor:
    """(N, 4, V, 3) bodies of the codes of each group's first and last mesh: shape a and b, each in poses p and q."""
    latent = embedding.encode(embedding.codec.extract(posed))
    shape = torch.stack([latent.shape[0::4], latent.shape[0::4], latent.shape[3::4], latent.shape[3::4]], 1)
    pose = torch.stack([latent.pose[0::4], latent.pose[3::4], latent.pose[0::4], latent.pose[3::4]], 1)
    return embedding.vertices(shape.flatten(0, 1), pose.flatten(0, 1)).unflatten(0, (-1, 4))


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
    print("The free body as a skinned body of 10 + 72 numbers made these meshes: it fits them exactly.")

    groups = posed.unflatten(0, (-1, 4))
    print("\nShape and pose apart             part rotations, degrees   bone lengths, %")
    print(f"{'':<24}{'mean':>10}{'median':>8}{'< 2':>8}{'mean':>10}{'median':>8}{'< 2':>8}")
    decoded = exchanged(ours, posed)
    print(apart("codes of ours", disentanglement(ours.codec, ours.part, decoded)))
    print(apart("the true bodies", disentanglement(ours.codec, ours.part, groups)))
    print(apart("ours beyond the true", disentanglement(ours.codec, ours.part, decoded, groups)))


if __name__ == "__main__":
    main()
