"""How accurate `prohmr-lift` is with the shipped weights: its mode and its samples; table 16 of the thesis beside.

    python benchmarks/bench_lift.py [--data ../shared/data] [--people 1000]

Held-out motion capture before random cameras, its 2D joints disturbed by 2 % of the box.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from recon_core.assets import assets
from recon_prohmr.evaluation import people_of
from recon_prohmr.lift import WEIGHTS
from recon_prohmr.lift_train import lifting_errors
from recon_prohmr.skeletons import SkeletonNetwork
from recon_prohmr.weights import load_network
from recon_std.bodies import load_body
from recon_std.encoders.keypoints import keypoint_view
from recon_std.readers.mocap import MocapDataset

HERE = Path(__file__).resolve().parent
THEIRS = {"mode": (62.9, 47.6), "best of 4096": (42.4, 32.9)}
"""Table 16: Human3.6M, Hourglass detections."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--people", type=int, default=1000)
    parser.add_argument("--fewer", type=int, default=200, help="people for 4096 samples")
    options = parser.parse_args()
    torch.set_num_threads(1)
    body = load_body("free")
    network = load_network(assets().find(WEIGHTS), SkeletonNetwork)
    poses = MocapDataset(options.data / "mocap", MocapDataset.Config(split="val")).poses
    seen, truth = people_of(body, poses, options.people)
    assert seen.keypoints is not None
    view = keypoint_view(seen.camera, seen.keypoints)
    rows = lifting_errors(network, body, view, truth, (1, 5, 25, 100))
    many = lifting_errors(network, body, view[: options.fewer], truth[: options.fewer], (4096,))
    print(f"{options.people} people ({options.fewer} for 4096 samples); 17 joints of h36m17, mm")
    print(f"{'':22}{'MPJPE':>8}{'PA-MPJPE':>10}   thesis, table 16: MPJPE, PA-MPJPE")
    for name, (plain, aligned) in (rows | {"best of 4096": many["best of 4096"]}).items():
        theirs = "{:.1f}, {:.1f}".format(*THEIRS[name]) if name in THEIRS else ""
        print(f"{name:22}{float(plain.mean()):8.1f}{float(aligned.mean()):10.1f}   {theirs}".rstrip())


if __name__ == "__main__":
    main()
