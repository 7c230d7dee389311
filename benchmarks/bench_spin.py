"""How accurate the shipped SPIN is, and what the fits in its training loop bring; the thesis' figures beside ours.

    python benchmarks/bench_spin.py [--data ../shared/data] [--runs FOLDER]

The comparison of static fits with fits in the loop is read from the logs of its trainings, which lie beside the
weights (or from --runs, a folder with the two logs of `python -m recon_spin.train` in a folder "seed-N" for each seed,
static.jsonl and in-loop.jsonl); the shipped weights are measured anew. Needs the motion capture and the sport photos of
the data folder; with --street, what label_photos wrote of ccp, its validation photos are measured too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import recon_spin.weights
from recon_core.assets import assets
from recon_core.images import load_image
from recon_core.plugins import registry
from recon_core.structures import BodyParameters
from recon_spin.evaluation import errors_2d, errors_3d, photographed_people, rendered_people
from recon_spin.method import SPIN, SPINConfig, in_crop
from recon_spin.supervision import observed, standing
from recon_std.bodies import load_body
from recon_std.fitters.smplify import SmplifyFitter, SmplifySettings
from recon_std.readers.lsp_ext import LSPExtendedDataset

HERE = Path(__file__).resolve().parent
LOGS = Path(recon_spin.weights.__file__).parent / "training"
MODES = {"static fits": "static", "in the loop": "in-loop"}
ROWS = {
    "rendered_pa_mpjpe": ("rendered people, PA-MPJPE, mm", 1),
    "rendered_mpjpe": ("rendered people, MPJPE, mm", 1),
    "photos_pck": ("photos, PCK@0.2 of the torso, %", 100),
    "photos_reprojection": ("photos, joints' error, % of the crop", 100),
    "street_pck": ("street photos, PCK@0.2 of the torso, %", 100),
    "street_reprojection": ("street photos, joints' error, % of the crop", 100),
    "fits_mean_px": ("fits to photos: reprojection, photo pixels, mean", 1),
    "fits_median_px": ("fits to photos: the same, median", 1),
    "fits_improved": ("fits to photos: better than at first, %", 100),
    "rendered_fits_mean_px": ("fits to rendered: reprojection, crop pixels", 1),
    "rendered_fits_improved": ("fits to rendered: better than at first, %", 100),
    "rendered_fits_pa_mpjpe": ("fits to rendered: from the truth, PA-MPJPE, mm", 1),
}
THESIS = """thesis, table 7 (3DPW; ResNet-50, other data): reconstruction error 66.3 mm static, 59.2 mm in the loop
thesis, table 8 (LSP test, silhouettes): accuracy 91.07 % static, 91.83 % in the loop; parts 88.48 %, 89.41 %
thesis, figure 20: shows fits that improve while the network trains, and gives no numbers"""


def logs_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of both trainings of a run, as far as both have come."""
    logs = {name: [json.loads(line) for line in (folder / f"{mode}.jsonl").open()] for name, mode in MODES.items()}
    end = min(log[-1]["step"] for log in logs.values())
    return {name: [line for line in log if line["step"] <= end] for name, log in logs.items()}


def comparison(folders: Sequence[Path]) -> None:
    """Of each row the mean over the runs at the start and at the end, and the difference of each run."""
    runs = [logs_of(folder) for folder in folders]
    steps = [next(iter(run.values()))[-1]["step"] for run in runs]
    shared = [max(a["step"] for a, b in zip(*run.values(), strict=True) if a == b) for run in runs]
    print(f"Static fits against fits in the loop: {len(runs)} seeds; {shared} steps together, to {steps} each; means")
    print(f"{'':48}{'start':>9}" + "".join(f"{name:>14}" for name in MODES) + "   difference: mean, of each seed")
    for key, (title, scale) in ROWS.items():
        ends = torch.tensor([[run[name][-1][key] * scale for name in MODES] for run in runs])
        start = sum(run["static fits"][0][key] * scale for run in runs) / len(runs)
        print(f"{title:48}{start:9.2f}" + "".join(f"{v:14.2f}" for v in ends.mean(0).tolist()), end="")
        each = (ends[:, 1] - ends[:, 0]).tolist()
        print(f"{sum(each) / len(each):+13.2f}  (" + ", ".join(f"{v:+.2f}" for v in each) + ")")
    minutes = [sum(run[name][-1]["seconds"] for run in runs) / 60 / len(runs) for name in MODES]
    print(f"{'minutes of a shared core':57}" + "".join(f"{v:14.1f}" for v in minutes))
    print(f"\n{'by step,':8}{'fits in the loop':>37}{'PA-MPJPE, rendered':>28}{'PCK@0.2, photos':>24}")
    print(f"{'seed 0':8}{'photos, px':>11}{'rendered, px':>13}{'truth, mm':>13}" + f"{'static':>17}{'in loop':>11}" * 2)
    for static, loop in zip(*runs[0].values(), strict=True):
        fits = loop["fits_mean_px"], loop["rendered_fits_mean_px"], loop["rendered_fits_pa_mpjpe"]
        found = [log[key] * ROWS[key][1] for key in ("rendered_pa_mpjpe", "photos_pck") for log in (static, loop)]
        print(f"{loop['step']:<8}{fits[0]:11.2f}{fits[1]:13.2f}{fits[2]:13.1f}", end="")
        print("{:17.1f}{:11.1f}{:17.1f}{:11.1f}".format(*found))
    print(THESIS)


@torch.no_grad()
def regressed(method: SPIN, batch: dict[str, Any]) -> BodyParameters:
    found = [
        in_crop(method.regress(image), K, method.crop_size)
        for image, K in zip(batch["image"].split(64), batch["K"].split(64), strict=True)
    ]
    return BodyParameters.joined(found)


def with_detected_boxes(photos: LSPExtendedDataset) -> None:
    """Crop the photos of a data set by the detector's boxes; one in which it finds nobody, by its joints."""
    detector = registry().create("detector", "blazepose")
    for item in photos.items:
        people = detector.detect(load_image(photos.folder / item["image"]).pixels)
        if people:
            item["box"] = people[0].box


def shipped(method: SPIN, data: Path, people: int, street: Path | None) -> None:
    """The weights as they are, and where a fit to the joints leads from them and from a standing body."""
    body, size = method.body_model, method.crop_size
    assert body is not None
    rendered = rendered_people(body, data / "mocap", people, size)
    folders = {"photos": data / "lsp_ext"} | ({"street": street} if street else {})
    sets = {}
    for title, folder in folders.items():
        held_out = LSPExtendedDataset(folder, LSPExtendedDataset.Config(split="val", crop_size=size))
        with_detected_boxes(held_out)
        sets[title] = photographed_people(held_out)
    truth = BodyParameters(rendered["pose"], rendered["betas"], rendered["translation"])
    priors = {name: registry().create("prior", name) for name in SmplifyFitter.default_priors}

    def fitted(batch: dict[str, Any], initial: BodyParameters, start: str) -> BodyParameters:
        fitter = SmplifyFitter(SmplifySettings(start=start))
        return fitter.fit(observed(batch, size), initial, body, priors).body

    ways: dict[str, Callable[[dict[str, Any]], BodyParameters]] = {
        "spin": lambda batch: regressed(method, batch),
        "spin, then fitted (smplify)": lambda batch: fitted(batch, regressed(method, batch), "prediction"),
        "fitted from a standing body": lambda batch: fitted(batch, standing(body, len(batch["K"])), "mean"),
    }
    counts = ", ".join(f"{len(batch['K'])} {name}" for name, batch in sets.items())
    print(f"\nThe shipped weights on {people} rendered people of held-out capture, and held-out photos: {counts}, in")
    print(
        "the boxes of the detector, as `recon run` crops them. Fits are to the true 2D joints of the rendered, and to"
    )
    print("the labels of the photos (street: the detector's), which measure them too")
    titles = ["PA-MPJPE, mm", "MPJPE, mm", "2D, % crop", *(f"{name}, {t}" for name in sets for t in ("PCK", "2D"))]
    print(f"{'':34}" + "".join(f"{title:>14}" for title in titles))
    for name, way in ways.items():
        found = way(rendered)
        columns = [*errors_3d(body, found, truth).values()]
        columns.append(100 * errors_2d(body, found, rendered, size)["reprojection"])
        columns += [100 * v for batch in sets.values() for v in errors_2d(body, way(batch), batch, size).values()]
        print(f"{name:34}" + "".join(f"{float(values.mean()):14.2f}" for values in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--runs", type=Path, default=LOGS, help="folder with a folder of logs for each seed")
    parser.add_argument("--street", type=Path, help="the --out of recon_spin.label_photos")
    options = parser.parse_args()
    torch.set_num_threads(1)
    comparison(sorted(folder for folder in options.runs.glob("seed-*")))
    method = SPIN.from_assets(SPINConfig(), assets(), load_body("free"))
    shipped(method, options.data, options.people, options.street)


if __name__ == "__main__":
    main()
