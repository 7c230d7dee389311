"""How accurate the shipped SPIN is, and what the fits in its training loop bring; the thesis' figures beside ours.

    python benchmarks/bench_spin.py [--data ../shared/data] [--runs FOLDER]

The comparison of static fits with fits in the loop is read from the logs of the two trainings, which lie beside the
weights (or from --runs, the --out of `python -m recon_spin.train`); the shipped weights are measured anew. Needs the
motion capture and the sport photos of the data folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import recon_spin.weights
from recon_core.assets import assets
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


def log_of(folder: Path, mode: str) -> list[dict[str, Any]]:
    """Lines of a training's log, whether from its own folder or from beside the weights."""
    file = folder / f"{mode}.jsonl"
    return [json.loads(line) for line in (file if file.is_file() else folder / mode / "log.jsonl").open()]


def comparison(folder: Path) -> None:
    """Both trainings at their start, after a report or two, and at their end."""
    logs = {name: log_of(folder, mode) for name, mode in MODES.items()}
    step = min(log[-1]["step"] for log in logs.values())
    first, *_ = next(iter(logs.values()))
    shared = max(a["step"] for a, b in zip(*logs.values(), strict=False) if a == b)
    last = {name: next(line for line in log if line["step"] == step) for name, log in logs.items()}
    print(f"Static fits against fits in the loop: same seed; {shared} steps together, then {step - shared} each")
    print(f"{'':48}{'start':>9}" + "".join(f"{name:>14}" for name in logs) + f"{'difference':>13}")
    for key, (title, scale) in ROWS.items():
        ends = [line[key] * scale for line in last.values()]
        print(
            f"{title:48}{first[key] * scale:9.2f}" + "".join(f"{v:14.2f}" for v in ends) + f"{ends[1] - ends[0]:+13.2f}"
        )
    print(f"{'minutes of a shared core':57}" + "".join(f"{line['seconds'] / 60:14.1f}" for line in last.values()))
    print(f"\n{'by step':8}{'fits in the loop':>37}{'PA-MPJPE, rendered':>28}{'PCK@0.2, photos':>24}")
    print(f"{'':8}{'photos, px':>11}{'rendered, px':>13}{'truth, mm':>13}" + f"{'static':>17}{'in loop':>11}" * 2)
    for static, loop in zip(*logs.values(), strict=False):
        if static["step"] == loop["step"] <= step:
            fits = loop["fits_mean_px"], loop["rendered_fits_mean_px"], loop["rendered_fits_pa_mpjpe"]
            found = [log[key] * ROWS[key][1] for key in ("rendered_pa_mpjpe", "photos_pck") for log in (static, loop)]
            print(f"{loop['step']:<8}{fits[0]:11.2f}{fits[1]:13.2f}{fits[2]:13.1f}", end="")
            print("{:17.1f}{:11.1f}{:17.1f}{:11.1f}".format(*found))
    print(THESIS)


@torch.no_grad()
def regressed(method: SPIN, batch: dict[str, Any]) -> BodyParameters:
    bodies = [method.regress(part) for part in batch["image"].split(64)]
    parts = [torch.cat([getattr(b, name) for b in bodies]) for name in ("pose", "betas", "camera", "pose_6d")]
    return in_crop(type(bodies[0])(*parts), batch["K"], method.crop_size)


def printed(title: str, values: dict[str, Tensor]) -> None:
    scale = {"pck": 100, "reprojection": 100}
    print(f"{title:34}" + "".join(f"{float(v.mean()) * scale.get(k, 1):14.2f}" for k, v in values.items()))


def shipped(method: SPIN, data: Path, people: int) -> None:
    """The weights as they are, and where a fit to the joints leads from them and from a standing body."""
    body, size = method.body_model, method.crop_size
    assert body is not None
    rendered = rendered_people(body, data / "mocap", people, size)
    photos = photographed_people(
        LSPExtendedDataset(data / "lsp_ext", LSPExtendedDataset.Config(split="val", crop_size=size))
    )
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
    print(
        f"\nThe shipped weights on {people} rendered people of held-out capture and {len(photos['K'])} held-out photos;"
    )
    print("fits are to the true 2D joints of the rendered, and to the labels of the photos, which measure them too")
    print(
        f"{'':34}"
        + "".join(f"{t:>14}" for t in ("PA-MPJPE, mm", "MPJPE, mm", "2D, % crop", "PCK, photos", "2D, % crop"))
    )
    for name, way in ways.items():
        on_rendered, on_photos = way(rendered), way(photos)
        flat = errors_2d(body, on_rendered, rendered, size)["reprojection"]
        values = errors_3d(body, on_rendered, truth) | {"reprojection": flat}
        printed(name, values | {f"photos {k}": 100 * v for k, v in errors_2d(body, on_photos, photos, size).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--runs", type=Path, default=LOGS, help="folder of the two trainings' logs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    comparison(options.runs)
    shipped(SPIN.from_assets(SPINConfig(), assets(), load_body("free")).eval(), options.data, options.people)


if __name__ == "__main__":
    main()
