"""The paper's ablation (table 4) at an equal, small budget: the full method and three that lack one part each.

    python benchmarks/bench_casl_ablation.py [--data FOLDER] [--output runs/casl-ablation] [--steps 282] [--seeds 3]

Each run is a `recon train` of `--steps` steps of 16 photos; the settings of `COMMON` differ from the defaults so that
the prototype moves within so few epochs. Runs and what was measured of them stay in `--output`: a second call goes on
where the first stopped. `--measure-again` only measures what is trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from recon_casl.evaluation import evaluate
from recon_casl.method import CASL, CASLConfig
from recon_core.assets import assets
from recon_core.frechet import picture_features

VARIANTS: Mapping[str, Mapping[str, bool]] = {
    "full": {},
    "no integration module": {"integration": False},
    "no prototype loop": {"prototype_loop": False},
    "no encoder loop": {"encoder_loop": False},
}
COMMON = {"prototype_warm_up": 2, "prototype_rate": 0.3}
BATCH = 16


def folder_of(output: Path, variant: str, seed: int) -> Path:
    return output / f"{variant.replace(' ', '-')}-{seed}"


def train(variant: str, seed: int, data: Path, steps: int, output: Path) -> None:
    """One run, or the rest of it, in `output`."""
    given = {"casl": {**COMMON, **VARIANTS[variant]}, "masks": {"crop_size": 64}}
    given["run"] = {"log_every": 47, "pictures_every": 0, "workers": 0, "checkpoint_every": 47}
    settings = [f"{part}.{k}={json.dumps(v)}" for part, values in given.items() for k, v in values.items()]
    call = [sys.executable, "-m", "recon_core.cli", "train", "--method", "casl", "--data", f"masks:{data}"]
    call += ["--output", str(output), "--steps", str(steps), "--batch-size", str(BATCH), "--seed", str(seed)]
    call += [word for setting in settings for word in ("--set", setting)]
    call += ["--resume"] if any(output.glob("checkpoints/step-*")) else []
    subprocess.run(call, check=True)


def measure(variant: str, data: Path, run: Path) -> dict[str, float]:
    config = CASLConfig(weights=str(run / "weights.safetensors"), **COMMON, **VARIANTS[variant])
    found = evaluate(CASL.from_assets(config, assets()), data, "val")
    shares = {name: float(found.values[name].mean()) for name in ("mask_iou", "ssim")}
    return {**shares, **found.distances(picture_features())}


def table(output: Path, seeds: int) -> str:
    """Mean and standard deviation over the seeds that are measured, in percent where the metric is a share."""
    lines = []
    for variant in VARIANTS:
        files = [folder_of(output, variant, seed) / "measured.json" for seed in range(seeds)]
        rows = [json.loads(file.read_text()) for file in files if file.exists()]
        cells = []
        for name in rows[0] if rows else ():
            values = [row[name] for row in rows]
            scale = 100 if name in ("mask_iou", "ssim") else 1
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{name} {scale * statistics.mean(values):6.1f} +- {scale * spread:4.1f}")
        lines.append(f"{variant:22} {len(rows)} seeds  " + "  ".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/ccp"))
    parser.add_argument("--output", type=Path, default=Path("runs/casl-ablation"))
    parser.add_argument("--steps", type=int, default=282, help="of 16 photos; 47 are an epoch of ccp")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--measure-again", action="store_true", help="train none, measure all that are trained")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        raise SystemExit(f"{arguments.data}: no such folder; name one with --data")
    for seed in range(arguments.seeds):  # seeds first, so that a part of the runs compares all variants
        for variant in VARIANTS:
            run = folder_of(arguments.output, variant, seed)
            if not (arguments.measure_again or (run / "weights.safetensors").exists()):
                train(variant, seed, arguments.data, arguments.steps, run)
            if not (run / "weights.safetensors").exists():
                continue
            if arguments.measure_again or not (run / "measured.json").exists():
                (run / "measured.json").write_text(json.dumps(measure(variant, arguments.data, run)))
    print(table(arguments.output, arguments.seeds))


if __name__ == "__main__":
    main()
