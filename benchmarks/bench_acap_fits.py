"""Latent fits of the ACAP embedding beside the skinned body's fitter, on held-out bodies, in one process.

    python benchmarks/bench_acap_fits.py [--people 4] [--weights FILE] [--mocap FOLDER] [--part NAME ...]

optimizers  corresponded meshes (eq. 15): Gauss-Newton and Adam, mean vertex distance and time
scans       4,000 points, 2 mm noise, 20 % missing in one piece: point-to-mesh distance (tables 3 to 5) and its
            cumulative curve. Ours is given 32 landmarks, the skinned body (smplify) its 24 joints in their place
markers     39 vertices of the mesh alone: point-to-mesh distance
joints      17 joints in a picture, 2 px noise (table 6): joint error after Procrustes alignment

Shapes are drawn as for training from another stream, poses are the validation clips'. The bodies measured against are
the free body at full resolution; the embedding's mesh is coarser, which counts against it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recon_acap.data import PeopleConfig, make_people
from recon_acap.fitting import LatentFitSettings, fit_joints, fit_markers, fit_meshes, fit_scans
from recon_acap.fitting.embedded import EmbeddedBodies
from recon_acap.fitting.nearest import nearest_on_mesh
from recon_acap.network import load_embedding
from recon_core.cli.fit import _unposed
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.geometry.topology import face_normals
from recon_core.metrics import pa_mpjpe
from recon_core.plugins import registry
from recon_core.structures import BodyParameters, Camera, Keypoints, Landmarks, Observation
from recon_std.bodies import load_body
from recon_std.fitters.smplify import SmplifyFitter, SmplifySettings

FLIP = torch.tensor([1.0, -1.0, -1.0])
CURVE = (2, 5, 10, 20)
PARTS = ("optimizers", "scans", "markers", "joints")


class Bench:
    """Held-out people upright before a camera, and both models."""

    def __init__(self, count: int, weights: Path | None, mocap: Path) -> None:
        self.bodies = EmbeddedBodies(load_embedding(weights))
        self.embedding = self.bodies.embedding
        self.skinned = load_body("free")
        people = make_people(PeopleConfig(meshes=4, held_out=4 * -(-count // 2), seed=7), mocap)["test"]
        # Of each group the first person in the first pose and the second in the second.
        own = torch.arange(len(people)).unflatten(0, (-1, 4))[:, [0, 3]].flatten()[:count]
        pose = axis_angle_to_matrix(people.pose[own])
        pose[:, 0] = torch.diag(FLIP)
        self.truth = BodyParameters(pose, people.betas[own], torch.tensor([0.0, 0.0, 5.0]).repeat(count, 1))
        self.full = self.skinned(self.truth).vertices
        self.own = self.full[:, self.embedding.source]
        self.generator = torch.Generator().manual_seed(0)

    def spread(self, count: int) -> Tensor:
        """Vertices of the embedding's mesh far from each other (farthest point sampling)."""
        chosen = [0]
        distance = torch.full((len(self.embedding.reference),), torch.inf)
        for _ in range(count - 1):
            latest = self.embedding.reference[chosen[-1]]
            distance = torch.minimum(distance, (self.embedding.reference - latest).norm(dim=1))
            chosen.append(int(distance.argmax()))
        return torch.tensor(chosen)

    def scan(self, points: int = 4000) -> tuple[Tensor, Tensor]:
        """Points and normals; the fifth of them nearest to a random one is missing."""
        faces = self.skinned.faces
        area = face_normals(self.full[:1], faces, unit=False)[0].norm(dim=-1)
        face = torch.multinomial(area, points * 5 // 4, replacement=True, generator=self.generator)
        weight = torch.distributions.Dirichlet(torch.ones(3)).sample((len(face),))
        at = (self.full[:, faces[face]] * weight[None, ..., None]).sum(2)
        normals = face_normals(self.full, faces)[:, face]
        middle = torch.randint(len(face), (len(at),), generator=self.generator)
        away = (at - at[torch.arange(len(at)), middle][:, None]).norm(dim=-1)
        kept = away.argsort(1, descending=True)[:, :points, None].expand(-1, -1, 3).sort(1).values
        noise = 0.002 * torch.randn(len(at), points, 3, generator=self.generator)
        return at.gather(1, kept) + noise, normals.gather(1, kept)

    def skinned_fit(self, observation: Observation) -> Tensor:
        fitter = SmplifyFitter(SmplifySettings(start="mean"))
        priors = {name: registry().create("prior", name) for name in fitter.default_priors}
        start = _unposed(self.skinned, len(observation))
        start.pose[:, 1:] = axis_angle_to_matrix(priors["gmm"].mode().unflatten(-1, (23, 3)))
        return self.skinned(fitter.fit(observation, start, self.skinned, priors).body).vertices

    def camera(self) -> Camera:
        return Camera.perspective(800.0, (640, 480), batch=len(self.full))


def point_to_mesh(points: Tensor, vertices: Tensor, faces: Tensor) -> np.ndarray:
    """Millimetres from all points of all rows to the meshes."""
    rows = zip(points.double().numpy(), vertices.double().numpy(), strict=True)
    return np.concatenate([nearest_on_mesh(p, v, faces.numpy(), exact=True).distance for p, v in rows]) * 1000


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def line(name: str, distance: np.ndarray, seconds: float) -> None:
    curve = "  ".join(f"<{limit} mm {100 * (distance < limit).mean():4.1f} %" for limit in CURVE)
    print(f"  {name:22} mean {distance.mean():6.2f}  std {distance.std():6.2f} mm   {curve}   {seconds:6.1f} CPU s")


def optimizers(bench: Bench) -> None:
    for name, iterations in (("gauss-newton", 30), ("gauss-newton", 60), ("adam", 200), ("adam", 1000)):
        settings = LatentFitSettings(optimizer=name, iterations=iterations, adam_iterations=iterations)
        found, seconds = timed(lambda s=settings: fit_meshes(bench.bodies, bench.own, settings=s).vertices)
        error = (found - bench.own).norm(dim=-1).mean(1) * 1000
        print(
            f"  {name:13} {iterations:5} steps: {error.mean():6.2f} mm (worst {error.max():6.2f}), {seconds:6.1f} CPU s"
        )


def scans(bench: Bench) -> None:
    points, normals = bench.scan()
    rows = bench.spread(32)
    marks = Landmarks(rows, bench.own[:, rows])
    ours, seconds = timed(lambda: fit_scans(bench.bodies, points, normals, marks).vertices)
    line("embedding", point_to_mesh(points, ours, bench.embedding.faces), seconds)
    joints = bench.skinned.keypoints(bench.truth, "smpl24")
    known = Keypoints(joints, torch.ones(joints.shape[:2]), "smpl24")
    seen = Observation(bench.camera(), scan=points, scan_normals=normals, keypoints3d=known)
    theirs, seconds = timed(lambda: bench.skinned_fit(seen))
    line("skinned (smplify)", point_to_mesh(points, theirs, bench.skinned.faces), seconds)
    line("truth, embedding mesh", point_to_mesh(points, bench.own, bench.embedding.faces), 0.0)


def markers(bench: Bench) -> None:
    rows = bench.spread(39)
    ours, seconds = timed(lambda: fit_markers(bench.bodies, Landmarks(rows, bench.own[:, rows])).vertices)
    line("embedding, 39 markers", point_to_mesh(bench.full, ours, bench.embedding.faces), seconds)


def joints(bench: Bench) -> None:
    camera, skeleton = bench.camera(), "coco17"
    target = bench.skinned.regress(bench.full, skeleton)
    pixels = camera.project(target)
    pixels = pixels + 2 * torch.randn(pixels.shape, generator=bench.generator)
    seen = torch.ones(pixels.shape[:2])
    regressor = bench.bodies.regressor(skeleton)
    ours, seconds = timed(lambda: fit_joints(bench.bodies, regressor, pixels, seen, camera).vertices)
    observation = Observation(camera, keypoints=Keypoints(pixels, seen, skeleton))
    theirs, their_seconds = timed(lambda: bench.skinned_fit(observation))
    for name, found, spent in (
        ("embedding", (regressor @ ours).float(), seconds),
        ("skinned (smplify)", bench.skinned.regress(theirs, skeleton), their_seconds),
    ):
        error = pa_mpjpe(found, target)
        print(f"  {name:22} mean {error.mean():6.1f}  median {error.median():6.1f} mm   {spent:6.1f} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--mocap", type=Path, default=Path("../shared/data/mocap"))
    parser.add_argument("--part", choices=PARTS, nargs="*", default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bench = Bench(options.people, options.weights, options.mocap)
    print(f"{options.people} held-out bodies")
    for part in options.part:
        print(part, flush=True)
        {"optimizers": optimizers, "scans": scans, "markers": markers, "joints": joints}[part](bench)


if __name__ == "__main__":
    main()
