"""How accurate the shipped ProHMR is: its mode, its samples, its fit; the thesis' figures beside ours.

    python benchmarks/bench_prohmr.py [--data ../shared/data] [--people 1000] [--weights FILE]

Needs the motion capture and the sport photos of the data folder (their READMEs say what they are).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from recon_core.assets import assets
from recon_core.geometry.cameras import default_focal
from recon_core.interfaces import BodyModel
from recon_core.metrics import mpjpe, pa_mpjpe, pck
from recon_core.structures import BodyParameters, Camera, Keypoints, Observation
from recon_prohmr.evaluation import people_of, quantised_errors, sample_errors
from recon_prohmr.fitter import LatentFitter
from recon_prohmr.method import WEIGHTS, ProHMR, ProHMRConfig
from recon_prohmr.network import ProHMRNetwork
from recon_prohmr.weights import load_network
from recon_std.bodies import load_body
from recon_std.detectors.blazepose import BlazePoseDetector
from recon_std.encoders.keypoints import keypoint_view
from recon_std.readers.mocap import MocapDataset

HERE = Path(__file__).resolve().parent
LIMBS = tuple(range(12))
"""The joints of lsp14 that blazepose33 has too: all but neck and head_top."""
HIPS = (2, 3)

DIFFERENCES = """What differs from the thesis: it reads photos (3DPW, Human3.6M; table 16: Human3.6M's 2D joints), with
SMPL bodies of real people; here 2D joints of held-out motion capture, projected by random cameras with an error of 2 %
of the box, and the free body with random shapes. "n for 4096" is its protocol: n of 4096 samples, by k-means."""


def load(weights: Path | None) -> tuple[ProHMR, BodyModel]:
    body = load_body("free")
    network = load_network(weights or assets().find(WEIGHTS), ProHMRNetwork)
    method = ProHMR(ProHMRConfig(), body, network.config)
    method.network = network
    return method.eval(), body


def fitted(method: ProHMR, body: BodyModel, seen: Observation) -> tuple[BodyParameters, BodyParameters, float]:
    """The mode, the fit, and milliseconds a person of both, one person at a time."""
    fitter, prior = LatentFitter(), method.prior()
    modes, fits, times = [], [], []
    for row in range(len(seen)):
        start = time.perf_counter()
        one = seen[row]
        prediction = method.predict(one)
        assert prediction.body is not None
        result = fitter.fit(one, prediction.body, body, {"prohmr": prior}, prediction.context)
        times.append(time.perf_counter() - start)
        modes.append(prediction.body)
        fits.append(result.body)
    return joined(modes), joined(fits), 1000 * float(np.median(times))


def joined(bodies: list[BodyParameters]) -> BodyParameters:
    parts = (torch.cat([getattr(b, name) for b in bodies]) for name in ("pose", "betas", "translation"))
    return BodyParameters(*parts)


def motion_capture(method: ProHMR, body: BodyModel, data: Path, people: int, fewer: int) -> None:
    poses = MocapDataset(data / "mocap", MocapDataset.Config(split="val")).poses
    seen, truth = people_of(body, poses, people)
    assert seen.keypoints is not None
    view = keypoint_view(seen.camera, seen.keypoints)
    errors = sample_errors(method.network, body, view, truth, (1, 5, 10, 25, 100))
    many = sample_errors(method.network, body, view[:fewer], truth[:fewer], (4096,))
    quantised = quantised_errors(method, seen[:fewer], truth[:fewer], (5, 10, 25))
    rows = [(name, float(value.mean()), float(errors["mode"].mean())) for name, value in errors.items()]
    rows += [(f"{n} for 4096 ({fewer})", float(v.mean()), float(many["mode"].mean())) for n, v in quantised.items()]
    rows.append((f"best of 4096 ({fewer})", float(many["best of 4096"].mean()), float(many["mode"].mean())))
    print(f"\nMotion capture, validation part: {people} people ({fewer} for 4096 samples)")
    print("PA-MPJPE over lsp14 in mm, and as a share of the mode's")
    theirs = {"mode": (59.8, 41.2), rows[-1][0]: (40.8, 29.9)}
    for count, figures in {5: (56.5, 39.4), 10: (54.6, 38.3), 25: (52.4, 36.8)}.items():
        theirs[f"{count} for 4096 ({fewer})"] = figures
    print(f"{'':22}{'ours':>6}{'share':>7}   thesis, tables 11, 12: 3DPW, Human3.6M")
    for name, value, mode in rows:
        beside = [f"{v:.1f} ({v / m:.2f})" for v, m in zip(theirs.get(name, ()), theirs["mode"], strict=False)]
        print(f"{name:22}{value:6.1f}{value / mode:7.2f}   {', '.join(beside)}".rstrip())
    print(f"{'':38}table 16, 2D joints to 3D, Human3.6M: mode 47.6 (1.00), best of 4096 32.9 (0.69)")

    seen, truth = seen[:fewer], truth[:fewer]
    assert seen.keypoints is not None
    modes, fits, milliseconds = fitted(method, body, seen)
    joints = body.keypoints(truth, "lsp14")
    print(f"\nFit to the same 2D joints, {fewer} people: {milliseconds:.0f} ms a person, mode and fit, one at a time")
    print(
        f"{'':6}{'PA-MPJPE':>10}{'MPJPE':>8}{'absolute':>10}{'2D, % of box':>14}   table 13: 3DPW, H36M (OP), (GT)"
    )
    paper = {"mode": "59.8, 41.2, 41.2", "fit": "55.1, 39.3, 34.8"}
    side = seen.box[:, 2:].amax(-1) if seen.box is not None else torch.ones(fewer)
    for name, found in (("mode", modes), ("fit", fits)):
        own = body.keypoints(found, "lsp14")
        flat = seen.camera.project(body.keypoints(found, seen.keypoints.skeleton))
        off = 100 * (flat - seen.keypoints.points).norm(dim=-1).mean(1) / side
        row = (pa_mpjpe(own, joints), mpjpe(own, joints, HIPS), mpjpe(own, joints), off)
        print("{:6}{:10.1f}{:8.1f}{:10.0f}{:14.2f}   {}".format(name, *(float(v.mean()) for v in row), paper[name]))
    print("\n" + DIFFERENCES)


def photos(method: ProHMR, body: BodyModel, data: Path) -> None:
    """The body's joints against hand-made labels, beside the detector's own."""
    folder = data / "lsp_ext"
    items = [i for i in json.loads((folder / "index.json").read_text())["items"] if i["split"] == "val"]
    detector = BlazePoseDetector()
    rates: list[list[float]] = []
    for item in items:
        picture = np.asarray(Image.open(folder / item["image"]).convert("RGB"))
        found = detector.detect(picture)
        if not found or found[0].keypoints is None:
            continue
        size = (picture.shape[1], picture.shape[0])
        camera = Camera.perspective(default_focal(size), size)
        seen = Observation(camera, box=torch.tensor([found[0].box]), keypoints=found[0].keypoints)
        modes, fits, _ = fitted(method, body, seen)
        label = torch.tensor(item["joints"])[None]
        truth = Keypoints(label[..., :2], label[..., 2], "lsp14")
        projected = [camera.project(body.keypoints(b, "lsp14")) for b in (modes, fits)]
        shown = [found[0].keypoints.converted("lsp14")] + [Keypoints(p, torch.ones(1, 14), "lsp14") for p in projected]
        rates.append([float(pck(s, truth)[:, list(LIMBS)].nanmean()) for s in shown])
    detected, mode, fit = (100 * float(v) for v in np.mean(rates, 0))
    print(f"\nSport photos (lsp_ext, validation part): {len(rates)} of {len(items)} with a person found")
    print(f"PCK@0.2 of the torso, 12 joints: detector {detected:.1f}, mode {mode:.1f}, fit {fit:.1f}")
    print(f"the fitted body keeps {100 * fit / detected:.1f} % of the detector's (asked: 97 %)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--people", type=int, default=1000)
    parser.add_argument("--fewer", type=int, default=200, help="people of the slower parts")
    parser.add_argument("--weights", type=Path, help="other weights than the shipped ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    method, body = load(options.weights)
    motion_capture(method, body, options.data, options.people, options.fewer)
    photos(method, body, options.data)


if __name__ == "__main__":
    main()
