"""Whether cameras learned from masks alone stand where they stood: objects of ETH-80, whose view angles are known.

    python benchmarks/bench_casl_views.py [--data FOLDER] [--output runs/casl-views] [--category car ...] [--steps 300]

Each category is trained by `recon train` on its eight training objects, 41 views each; the angles are not used. The
start is an ellipsoid of a category's rough proportions, one end higher than the other, so that there is a forward.
Then the cameras found are compared with the true ones, on the held-out object and on all nine. Measured: for azimuths
the length of the mean of exp(i (found - true)), which is 1 for equality up to one turn and near 0 for unrelated or
constant ones (no mean direction is subtracted: the true ones are uniform); the same of twice the angle ("as an axis"),
which does not tell front from back, because the outline from behind is nearly the mirror image of that from the front;
for elevations Pearson's correlation; and the median angle between viewing directions after the one turn about the
vertical that fits the azimuths of all photos best. "start" is before any training: what the rough proportions alone
tell of outlines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from recon_casl.evaluation import evaluate
from recon_casl.hypotheses import grid, likelier
from recon_casl.method import CASL, CASLConfig
from recon_casl.view import View
from recon_core.assets import assets
from recon_core.geometry.primitives import icosphere
from recon_std.readers.masks import MaskedPhotosDataset

HALF_EXTENT = {"car": (0.9, 0.3, 0.4), "horse": (0.9, 0.7, 0.25), "cow": (0.9, 0.6, 0.3)}
"""Half the size of the start along x (its length), y (up) and z: what one knows of such things. A side that is as high
as it is wide could be a top, and which it is no mask tells."""
RISE = 0.4
"""How much higher than the middle the +x end is, as a share, and how much lower the other."""
SETTINGS = {
    "prototype_loop": False,
    "elevations": [0, 89],
    "hypotheses": [12, 4],
    "width": 16,
    "learning_rate": 2e-3,
}
"""Without the prototype loop: it moves the start to one that explains the masks from fewer views."""


def write_start(category: str, file: Path) -> None:
    vertices, faces = icosphere(3)
    higher = torch.where(vertices[:, 1] > 0, 1 + RISE * vertices[:, 0], 1.0)
    vertices = vertices * torch.tensor(HALF_EXTENT[category])
    vertices[:, 1] *= higher
    lines = [f"v {x} {y} {z}" for x, y, z in vertices.tolist()]
    file.write_text("\n".join([*lines, *(f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces.tolist())]) + "\n")


def train(category: str, data: Path, steps: int, output: Path, template: Path) -> None:
    given = {"casl": {**SETTINGS, "template": str(template)}, "masks": {"crop_size": 64, "only": f"{category}/*"}}
    given["run"] = {"log_every": 20, "pictures_every": 100, "workers": 0, "checkpoint_every": 100}
    settings = [f"{part}.{k}={json.dumps(v)}" for part, values in given.items() for k, v in values.items()]
    call = [sys.executable, "-m", "recon_core.cli", "train", "--method", "casl", "--data", f"masks:{data}"]
    call += ["--output", str(output), "--steps", str(steps), "--batch-size", "16"]
    call += [word for setting in settings for word in ("--set", setting)]
    subprocess.run(call + (["--resume"] if any(output.glob("checkpoints/step-*")) else []), check=True)


def direction(azimuth: Float[Tensor, " N"], elevation: Float[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """Where cameras stand as seen from the thing; degrees in, as `recon_casl.view` counts them."""
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    return torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], 1)


def turned_by(azimuths: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """The circular mean of angles in radians."""
    return torch.atan2(azimuths.sin().mean(), azimuths.cos().mean())


def azimuths_apart(found: Float[Tensor, "N 3"], true: Float[Tensor, "N 3"]) -> Float[Tensor, " M"]:
    """Found less true, radians, of the photos that were not taken straight from above."""
    found, true = found[true[:, 1] < 0.99], true[true[:, 1] < 0.99]
    return torch.atan2(found[:, 0], found[:, 2]) - torch.atan2(true[:, 0], true[:, 2])


def compare(found: Float[Tensor, "N 3"], true: Float[Tensor, "N 3"], turn: Float[Tensor, ""]) -> dict[str, float]:
    """turn: radians about the vertical from the true directions to those found."""
    apart = azimuths_apart(found, true)
    resultant = lambda angle: float(torch.stack([angle.cos(), angle.sin()]).mean(1).norm())  # noqa: E731
    x, y, z = true.unbind(1)
    turned = torch.stack([turn.cos() * x + turn.sin() * z, y, turn.cos() * z - turn.sin() * x], 1)
    elevations = torch.stack([found[:, 1].asin(), true[:, 1].clamp(-1, 1).asin()])
    return {
        "azimuth": resultant(apart),
        "azimuth as an axis": resultant(2 * apart),
        "elevation": float(torch.corrcoef(elevations)[0, 1]),
        "median angle": float(torch.rad2deg((found * turned).sum(1).clamp(-1, 1).acos()).median()),
    }


@torch.no_grad()
def cameras(
    method: CASL, data: Path, split: str, category: str
) -> tuple[list[str], dict[str, tuple[Float[Tensor, "N 3"], float]]]:
    """Names of the photos; where the cameras found stand, and how far their azimuths spread (0: one for all, 1: all
    around): as the encoder reads them, and as the method gives them, after a look at the outlines."""
    settings = MaskedPhotosDataset.Config(
        split=split, only=f"{category}/*", crop_size=method.config.side, augment=False
    )  # type: ignore[arg-type]
    dataset = MaskedPhotosDataset(data, settings)
    cut = torch.stack([torch.cat([item["image"] * item["mask"], item["mask"]]) for item in dataset])
    tried = grid(*method.config.hypotheses, method.config.elevations)
    ways: dict[str, list[View]] = {"encoder": [], "with outlines": []}
    for part in cut.split(32):
        view = method.model.encode(part).view
        ways["encoder"].append(view)
        ways["with outlines"].append(likelier(method.model, method.renderer, view, part[:, 3:], tried))
    found = {}
    for way, views in ways.items():
        azimuth, elevation = (torch.cat([getattr(v, name) for v in views]) for name in ("azimuth_degrees", "elevation"))
        spread = 1 - torch.cat([v.azimuth for v in views]).mean(0).norm()
        found[way] = (direction(azimuth, torch.rad2deg(elevation)), float(spread))
    return dataset.ids, found


def measure(category: str, data: Path, run: Path, template: Path) -> dict[str, dict[str, float]]:
    config = CASLConfig(weights=str(run / "weights.safetensors"), template=str(template), **SETTINGS)
    method = CASL.from_assets(config, assets())
    index = {item["image"]: item for item in json.loads((data / "index.json").read_text())["items"]}

    def true(ids: list[str]) -> Float[Tensor, "N 3"]:
        items = [index[f"images/{name}.jpg"] for name in ids]
        return direction(*(torch.tensor([float(i[k]) for i in items]) for k in ("azimuth_deg", "elevation_deg")))

    results = {}
    for stage, learner in (("start", CASL(config).eval()), ("trained", method)):
        seen = {split: cameras(learner, data, split, category) for split in ("val", "all")}
        for way in ("encoder", "with outlines"):
            ids, found = seen["all"]
            turn = turned_by(azimuths_apart(found[way][0], true(ids)))
            for split, (ids, found) in seen.items():
                directions, spread = found[way]
                row = {**compare(directions, true(ids), turn), "spread of azimuths": spread}
                results[f"{stage}, {way}, {split}"] = row
    drawn = evaluate(method, data, "val", f"{category}/*").values
    results["trained, with outlines, val"]["mask_iou"] = float(drawn["mask_iou"].mean())
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/eth80"))
    parser.add_argument("--output", type=Path, default=Path("runs/casl-views"))
    parser.add_argument("--category", nargs="+", default=["car", "horse"], choices=sorted(HALF_EXTENT))
    parser.add_argument("--steps", type=int, default=300, help="of 16 photos; 20 are an epoch of a category")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        raise SystemExit(f"{arguments.data}: no such folder; name one with --data")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for category in arguments.category:
        run, template = arguments.output / category, arguments.output / f"{category}.obj"
        write_start(category, template)
        if not (run / "weights.safetensors").exists():
            train(category, arguments.data, arguments.steps, run, template)
        results = measure(category, arguments.data, run, template)
        (run / "measured.json").write_text(json.dumps(results))
        for split, row in results.items():
            print(f"{category:6} {split:27}" + "".join(f"  {name} {value:.2f}" for name, value in row.items()))


if __name__ == "__main__":
    main()
