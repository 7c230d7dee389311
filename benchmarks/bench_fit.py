"""Fitting: smplify against the published routine (Adam), side by side in one process, on one energy.

    python benchmarks/bench_fit.py [--part speed|poses|anchor|steps] [--people 64] [--threads 2] [--mocap FOLDER]

speed   64 fits from one start; clean joints, 2 px noise, 8 % outliers of 80 px. Time, energy, accuracy.
poses   validation poses from the mean pose, 2D joints with noise of 2 % of the box: accuracy and success rate.
anchor  training poses from a disturbed truth, as a network's prediction would be: what the anchor's weight does.
steps   training poses: steps until the energy is within 1e-4 of its end, by damping and second-order term.

Bodies are recorded poses (motion capture) of random shape, 4 to 8 m before a camera of 640 x 480 pixels and focal
length 800; 25 OpenPose joints. Every start is the prior's most likely pose, turned and placed by the camera stage.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recon_core.errors import ReconError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.interfaces import Fitter, Prior
from recon_core.metrics import mpjpe, pa_mpjpe
from recon_core.plugins import registry
from recon_core.structures import BodyParameters, Camera, FitResult, Keypoints, Observation
from recon_std.bodies import load_body
from recon_std.fitters import levenberg_marquardt
from recon_std.fitters.adam import AdamFitter, AdamSettings
from recon_std.fitters.objective import Quadratic
from recon_std.fitters.placement import place
from recon_std.fitters.problem import Problem
from recon_std.fitters.smplify import SmplifyFitter, SmplifySettings

SKELETON, FOCAL, SIZE = "openpose25", 800.0, (640, 480)
ONE_START = SmplifySettings(start="mean", headings=1, starts=1)
SCENES = {"clean": {}, "2 px noise": {"pixels": 2.0}, "8 % outliers of 80 px": {"outliers": 0.08}}


class Bench:
    """The body, the priors, and people made from recorded poses."""

    def __init__(self, mocap: Path) -> None:
        self.mocap = mocap
        self.body = load_body("free")
        self.priors: dict[str, Prior] = {
            name: registry().create("prior", name) for name in SmplifyFitter.default_priors
        }

    def people(
        self, count: int, split: str, seed: int, fraction: float = 0.0, pixels: float = 0.0, outliers: float = 0.0
    ) -> tuple[Observation, BodyParameters]:
        """Clips are drawn evenly, then a frame of each. fraction: noise by the box's longer side; pixels: in pixels."""
        file = np.load(self.mocap / f"poses_{split}.npz")
        chance, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        clips = chance.integers(0, file["clip"].max() + 1, count)
        frames = [chance.choice(np.flatnonzero(file["clip"] == clip)) for clip in clips]
        pose = axis_angle_to_matrix(torch.from_numpy(file["poses"][frames].astype(np.float32)))
        pose[:, 0] = torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ pose[:, 0]
        depth = 4 + 4 * torch.rand(count, generator=g)
        place_ = torch.stack([torch.zeros(count), torch.zeros(count), depth], -1)
        truth = BodyParameters(pose, torch.randn(count, 10, generator=g), place_)
        middle = self.body.keypoints(truth, SKELETON).mean(1)
        truth = dataclasses.replace(truth, translation=place_ - middle * torch.tensor([1.0, 1.0, 0.0]))
        camera = Camera.perspective(FOCAL, SIZE, batch=count)
        points = camera.project(self.body.keypoints(truth, SKELETON))
        low, high = points.amin(1), points.amax(1)
        box = torch.cat([low, high - low], 1)
        spread = pixels + fraction * (high - low).amax(1)[:, None, None]
        points = points + spread * torch.randn(points.shape, generator=g)
        wild = torch.rand(count, points.shape[1], generator=g) < outliers
        angle = 2 * torch.pi * torch.rand(count, points.shape[1], generator=g)
        points = points + 80 * wild[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
        return Observation(camera, box, keypoints=Keypoints(points, torch.ones(points.shape[:2]), SKELETON)), truth

    def mean_pose(self, count: int) -> BodyParameters:
        """The prior's most likely pose, upright, facing the camera."""
        pose = torch.eye(3).repeat(count, 24, 1, 1)
        pose[:, 0] = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
        pose[:, 1:] = axis_angle_to_matrix(self.priors["gmm"].mode().unflatten(-1, (23, 3)))
        return BodyParameters(pose, torch.zeros(count, 10), torch.tensor([0.0, 0.0, 5.0]).repeat(count, 1))

    @torch.no_grad()
    def start(self, seen: Observation) -> BodyParameters:
        """The mean pose, turned and placed by the camera stage from eight headings: where every fitter begins."""
        problem = Problem.build(ONE_START, seen, self.mean_pose(len(seen)), self.body, self.priors, None)
        return problem.views.body(place(problem.objective.evidence, problem.start, 15, 8))

    def errors(self, found: BodyParameters, truth: BodyParameters) -> tuple[Tensor, Tensor]:
        """MPJPE about the pelvis and PA-MPJPE of the 24 joints, millimetres."""
        joints, true = self.body.joints(found), self.body.joints(truth)
        return mpjpe(joints, true, root=0), pa_mpjpe(joints, true)


clock = time.perf_counter
"""What times are taken by; `--cpu-time` replaces it."""


def timed(fitter: Fitter, bench: Bench, seen: Observation, start: BodyParameters, repeats: int = 1) -> tuple:
    """The result and the median milliseconds a fit."""
    seconds, found = [], None
    for _ in range(repeats):
        began = clock()
        found = fitter.fit(seen, start, bench.body, bench.priors)
        seconds.append(clock() - began)
    return found, 1e3 * statistics.median(seconds) / len(seen)


def speed(bench: Bench, people: int, batches: int) -> None:
    """Issue 4, item 1. Adam through the mesh is timed on the first batch, and is the yardstick of energy there; on
    the others it is Adam on joints alone, whose energies are the same to rounding."""
    fitters: dict[str, Fitter] = {
        "adam, published": AdamFitter(),
        "adam, joints alone": AdamFitter(AdamSettings(skinned=False)),
        "smplify": SmplifyFitter(ONE_START),
    }
    seen, _ = bench.people(people, "val", 99)
    fitters["smplify"].fit(seen, bench.start(seen), bench.body, bench.priors)
    for name, options in SCENES.items():
        rows: dict[str, list[FitResult]] = {key: [] for key in fitters}
        milliseconds: dict[str, list[float]] = {key: [] for key in fitters}
        truths = []
        for batch in range(batches):
            seen, truth = bench.people(people, "val", batch, **options)
            start = bench.start(seen)
            truths.append(truth)
            # Before and after the others: what other work leaves of the machine changes meanwhile.
            before = timed(fitters["smplify"], bench, seen, start, 3)[1]
            for key, fitter in fitters.items():
                if key == "adam, published" and batch:
                    continue
                result, each = timed(fitter, bench, seen, start, 3 if key == "smplify" else 1)
                rows[key].append(result)
                milliseconds[key].append((before + each) / 2 if key == "smplify" else each)
        print(f"\n{name}: {batches} x {people} people")
        print(f"{'':20s} ms a fit  smplify is  energy  MPJPE  PA-MPJPE  at or below adam's energy")
        for key, results in rows.items():
            each = statistics.median(milliseconds[key])
            energy = torch.cat([r.report.energy for r in results])
            error = [bench.errors(r.body, t) for r, t in zip(results, truths, strict=False)]
            absolute, aligned = (torch.cat(e).mean() for e in zip(*error, strict=True))
            other = torch.cat([r.report.energy for r in rows["adam, joints alone"]])[: len(energy)]
            below = f"{(energy <= other).float().mean():7.1%}" if key == "smplify" else ""
            # Batch by batch: what other work takes of the machine changes from minute to minute.
            times = statistics.median(a / b for a, b in zip(milliseconds[key], milliseconds["smplify"], strict=False))
            ratio = f"{times:6.1f} x" if key != "smplify" else f"{'':8s}"
            print(
                f"{key:20s} {each:8.2f}  {ratio}  {energy.mean():9.1f} {absolute:6.1f} {aligned:9.1f}  {below}"
                + (f"  (first {people} people)" if len(results) < batches else "")
            )


def _method_prior(bench: Bench, seen: Observation, name: str) -> tuple[Prior, Tensor | None, BodyParameters] | None:
    """A method's conditional prior, its context for these people, and its prediction; None where not installed."""
    try:
        method_class = registry().load("method", name)
        from recon_core.assets import assets

        method = method_class.from_assets(method_class.Config(), assets(), bench.body).eval()
    except ReconError as error:
        print(f"({name} left out: {error})")
        return None
    with torch.no_grad():
        prediction = method.predict(seen)
    return method.prior(), prediction.context, prediction.body


def poses(bench: Bench, people: int) -> None:
    """Issue 4, item 2."""
    seen, truth = bench.people(people, "val", 7, fraction=0.02)
    start, mean = bench.start(seen), bench.mean_pose(people)
    found: dict[str, tuple[BodyParameters, float | None]] = {}

    def add(name: str, fitter: Fitter, initial: BodyParameters) -> None:
        result, each = timed(fitter, bench, seen, initial)
        found[name] = result.body, each

    found["the start itself"] = start, None
    add("adam, joints alone", AdamFitter(AdamSettings(skinned=False)), start)
    add("smplify, one start", SmplifyFitter(ONE_START), start)
    for starts in (9, 17, 33):
        add(f"smplify, {starts} starts", SmplifyFitter(SmplifySettings(start="mean", starts=starts)), mean)
    if (lent := _method_prior(bench, seen, "prohmr")) is not None:
        prior, context, predicted = lent
        found["prohmr's mode"] = predicted, None
        conditional = {"prohmr": prior, "shape": bench.priors["shape"]}
        for name, priors, given in (
            ("smplify, prohmr's prior", conditional, context),
            ("smplify, gmm, from mode", bench.priors, None),
        ):
            for anchor in (0.0, 10.0):
                began = time.perf_counter()
                fitter = SmplifyFitter(SmplifySettings(anchor=anchor))
                result = fitter.fit(seen, predicted, bench.body, priors, given)
                each = 1e3 * (time.perf_counter() - began) / people
                found[f"{name}, anchor {anchor:.0f}"] = result.body, each
    print(f"\n{people} validation poses, joints with noise of 2 % of the box")
    print(f"{'':34s} MPJPE  PA-MPJPE  under 100 mm  ms a fit")
    for name, (body, each) in found.items():
        absolute, aligned = bench.errors(body, truth)
        cost = "" if each is None else f"{each:8.2f}"
        print(
            f"{name:34s} {absolute.mean():5.1f}  {aligned.mean():8.1f}  {(aligned < 100).float().mean():11.1%}  {cost}"
        )


def anchor(bench: Bench, people: int) -> None:
    """A prediction's stand-in: the truth turned by normal angles, its shape unknown, its depth 5 % off."""
    weights = (0.0, 1.0, 5.0, 10.0, 20.0, 50.0)
    print("\nPA-MPJPE by the anchor's weight (1/rad^2); training poses, noise of 2 % of the box")
    print(f"{'start off by':14s} {'start':>7s}" + "".join(f"{w:8.0f}" for w in weights))
    for off in (0.1, 0.2, 0.35):
        seen, truth = bench.people(people, "train", 11, fraction=0.02)
        g = torch.Generator().manual_seed(3)
        turn = axis_angle_to_matrix(off * torch.randn(people, 24, 3, generator=g))
        depth = 1 + 0.05 * torch.randn(people, 1, generator=g)
        start = BodyParameters(truth.pose @ turn, torch.zeros(people, 10), truth.translation * depth)
        row = [bench.errors(start, truth)[1].mean()]
        for weight in weights:
            found = SmplifyFitter(SmplifySettings(anchor=weight)).fit(seen, start, bench.body, bench.priors)
            row.append(bench.errors(found.body, truth)[1].mean())
        print(f"{off:8.2f} rad   " + "".join(f"{value:8.1f}" for value in row))


def _marquardt_step(model: Quadratic, lam: Tensor) -> tuple[Tensor, Tensor]:
    """The step damped by the curvature's diagonal, as Marquardt has it."""
    whole = model.data + model.prior
    diagonal = whole.diagonal(dim1=-2, dim2=-1).clamp_min(1e-6)
    return _STEP(Quadratic(model.gradient, whole, torch.zeros_like(whole), diagonal), lam)


_STEP = levenberg_marquardt._step


@contextmanager
def _variant(step, settled: float) -> Iterator[None]:
    kept = levenberg_marquardt._step, levenberg_marquardt.SETTLED
    levenberg_marquardt._step, levenberg_marquardt.SETTLED = step, settled
    try:
        yield
    finally:
        levenberg_marquardt._step, levenberg_marquardt.SETTLED = kept


@torch.no_grad()
def steps(bench: Bench, people: int) -> None:
    """Rows that end in another minimum than most variants' are counted against the variant's own end."""
    seen, _ = bench.people(people, "train", 5, fraction=0.02)
    problem = Problem.build(ONE_START, seen, bench.start(seen), bench.body, bench.priors, None)
    variants = {
        "Marquardt's diagonal": (_marquardt_step, -1.0),
        "priors' curvature": (_STEP, -1.0),
        "with second order, once settled": (_STEP, levenberg_marquardt.SETTLED),
        "with second order, always": (_STEP, float("inf")),
    }
    print("\nshare of fits within 1e-4 of their final energy, by steps")
    counts = (4, 6, 8, 10, 12, 16, 20, 25)
    print(f"{'':34s}" + "".join(f"{c:6d}" for c in counts))
    for name, (step, settled) in variants.items():
        with _variant(step, settled):
            second_order = settled > 0

            def run(count: int) -> Tensor:
                return levenberg_marquardt.minimise(
                    problem.objective,
                    problem.start,
                    count,
                    0.0,
                    second_order,  # noqa: B023
                ).energy

            end = run(100)
            shares = [((run(c) - end) <= 1e-4 * end).float().mean() for c in counts]
        print(f"{name:34s}" + "".join(f"{share:6.0%}" for share in shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["speed", "poses", "anchor", "steps"], action="append")
    parser.add_argument("--people", type=int, default=64, help="fits side by side (speed)")
    parser.add_argument("--batches", type=int, default=4, help="batches of them a scene (speed)")
    parser.add_argument("--poses", type=int, default=512, help="people of the other parts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor time, where the machine has other work (--threads 1)"
    )
    parser.add_argument("--mocap", type=Path, default=Path(__file__).resolve().parents[2] / "shared/data/mocap")
    options = parser.parse_args()
    if not (options.mocap / "poses_val.npz").is_file():
        raise SystemExit(f"no recorded poses in {options.mocap}: give their folder with --mocap")
    torch.set_num_threads(options.threads)
    if options.cpu_time:
        global clock
        clock = time.process_time
    bench = Bench(options.mocap)
    for part in options.part or ["speed", "poses", "anchor", "steps"]:
        if part == "speed":
            speed(bench, options.people, options.batches)
        else:
            {"poses": poses, "anchor": anchor, "steps": steps}[part](bench, options.poses)


if __name__ == "__main__":
    main()
