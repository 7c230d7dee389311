"""Tables 13 and 14 of the thesis on held-out bodies: fits with a conditional prior, and several views of one person.

    python benchmarks/bench_multiview.py [--data ../shared/data] [--people 100] [--rendered 30]

"simulated": held-out motion capture before random cameras, its 2D joints disturbed by 2 % of the box. "rendered": the
same kind of people, clothed, drawn before random backgrounds, their joints found by the detector of `recon run`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from recon_core.assets import assets
from recon_core.interfaces import BodyModel, Prior
from recon_core.metrics import mpjpe, pa_mpjpe
from recon_core.plugins import registry
from recon_core.rendering import directional_light
from recon_core.structures import BodyParameters, Camera, Keypoints, Mesh, Observation, Prediction
from recon_prohmr.evaluation import TEST_PEOPLE, people_of, views_of
from recon_prohmr.fitter import LatentFitter, LatentFitterConfig, rotation_average
from recon_prohmr.method import ProHMR, ProHMRConfig
from recon_std.bodies import load_body
from recon_std.bodies.smpl import SMPLBody
from recon_std.detectors.blazepose import BlazePoseDetector
from recon_std.fitters.smplify import SmplifyFitter
from recon_std.readers.mocap import MocapDataset
from recon_std.synthetic.backgrounds import random_backgrounds
from recon_std.synthetic.clothing import Wardrobe
from recon_std.synthetic.detection import GaussianErrors
from recon_std.synthetic.keypoints import KeypointSampler

Recipe = TypeVar("Recipe", bound=Callable[..., BodyParameters])

HERE = Path(__file__).resolve().parent
MOST = 4
"""Views of each person; comparisons of fewer take the first ones."""
HIPS = (2, 3)
SIDE, FOCAL = 512, 614.0
"""Of rendered pictures, pixels."""
AT_ONCE = 25
"""People are fitted so many at a time."""

TABLE_13 = {"regression": ("59.8", "41.2", "41.2"), "+ smplify, gmm": ("66.5", "54.6", "43.3"),
            "+ conditional prior": ("55.1", "39.3", "34.8")}  # fmt: skip
TABLE_14 = {"single view": ("65.1 43.7", "176.0 91.9"), "rotation averaging": ("64.8 35.2", "174.4 85.1"),
            "fusion (4.12)": ("62.2 34.5", "171.3 83.9")}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
    """The shipped method, the free body, and smplify's priors."""

    body: SMPLBody
    method: ProHMR
    priors: dict[str, Prior]

    @classmethod
    def load(cls) -> Setting:
        body = load_body("free")
        method = ProHMR.from_assets(ProHMRConfig(), assets(), body)
        assert isinstance(method, ProHMR)
        return cls(body, method, {name: registry().create("prior", name) for name in SmplifyFitter.default_priors})

    def errors(self, found: BodyParameters, truth: BodyParameters) -> tuple[Tensor, Tensor]:
        """MPJPE, aligned at the hips, and PA-MPJPE over lsp14 in millimetres, of each row."""
        own, wanted = (self.body.keypoints(b, "lsp14") for b in (found, truth))
        return mpjpe(own, wanted, HIPS), pa_mpjpe(own, wanted)

    def latent(self, seen: Observation, prediction: Prediction, **settings: object) -> BodyParameters:
        fitter, prior = LatentFitter(LatentFitterConfig(**settings)), {"prohmr": self.method.prior()}
        assert prediction.body is not None
        return fitter.fit(seen, prediction.body, self.body, prior, prediction.context).body

    def smplify(self, seen: Observation, prediction: Prediction) -> BodyParameters:
        assert prediction.body is not None
        return SmplifyFitter().fit(seen, prediction.body, self.body, self.priors).body


def rendered_views(
    setting: Setting, poses: Tensor, people: int, seed: int = 7
) -> tuple[Observation, BodyParameters, int]:
    """`MOST` pictures of each clothed person with the joints that the detector finds; the truth; and how many people
    were tried. People whom the detector misses in a picture are left out, whole."""
    config = TEST_PEOPLE.model_copy(update={"height": (0.55, 0.8), "focal": (0.8, 1.3)})
    sampler = KeypointSampler(setting.body, poses, torch.ones(len(poses)), GaussianErrors(), config)
    generator, detector = torch.Generator().manual_seed(seed), BlazePoseDetector()
    renderer = registry().create("renderer", "warp")
    wardrobe = Wardrobe(setting.body, renderer, 128)
    camera = Camera.perspective(FOCAL, (SIDE, SIDE), batch=MOST)
    kept: list[Keypoints] = []
    truths: list[BodyParameters] = []
    tried = 0
    while len(truths) < people:
        tried += 1
        truth = _in_the_middle(setting.body, sampler.views(1, MOST, generator))
        texture = wardrobe.dress(1, generator).expand(MOST, -1, -1, -1)
        light = directional_light(torch.randn(1, 3, generator=generator) - torch.tensor([0.0, 0.7, 0.7]))
        mesh = Mesh(setting.body(truth).vertices, setting.body.faces, setting.body.uv, setting.body.uv_faces, texture)
        behind = random_backgrounds(MOST, (SIDE, SIDE), generator)
        with torch.no_grad():
            image = renderer.render(mesh, camera, light.expand(MOST, -1, -1), behind, antialias=True).image
        pictures = (image.permute(0, 2, 3, 1).clamp(0, 1) * 255).byte().numpy()
        found = [detector.detect(np.ascontiguousarray(picture)) for picture in pictures]
        joints = [detections[0].keypoints for detections in found if detections]
        if len(joints) == MOST:
            kept += [k for k in joints if k is not None]
            truths.append(truth)
    points, confidence = torch.cat([k.points for k in kept]), torch.cat([k.confidence for k in kept])
    cameras = Camera.perspective(FOCAL, (SIDE, SIDE), batch=len(points))
    subject = torch.arange(people).repeat_interleave(MOST)
    seen = Observation(cameras, keypoints=Keypoints(points, confidence, kept[0].skeleton), subject=subject)
    return seen, BodyParameters.joined(truths), tried


def detector_errors(setting: Setting, seen: Observation, truth: BodyParameters) -> Tensor:
    """Distance of each detected joint from the body's, over the longer side of the detected joints' box."""
    assert seen.keypoints is not None
    points = seen.keypoints.points
    side = (points.amax(1) - points.amin(1)).amax(-1)
    true = seen.camera.project(setting.body.keypoints(truth, seen.keypoints.skeleton))
    return (points - true).norm(dim=-1) / side[:, None]


def _in_the_middle(body: BodyModel, bodies: BodyParameters) -> BodyParameters:
    """The bodies four metres ahead, where the whole of them is in the picture."""
    rest = body.rest_joints(bodies.betas)[:, 0]
    return dataclasses.replace(bodies, translation=torch.tensor([0.0, 0.0, 4.0]) - rest)


def first_views(seen: Observation, truth: BodyParameters, views: int) -> Iterator[tuple[Observation, BodyParameters]]:
    """The first `views` of the `MOST` of each person, `AT_ONCE` people at a time."""
    rows = torch.arange(len(truth)).unflatten(0, (-1, MOST))[:, :views]
    for some in rows.split(AT_ONCE):
        yield seen[some.flatten()], truth[some.flatten()]


def averaged(body: BodyParameters, views: int) -> BodyParameters:
    """Each view's own orientation, and the views' rotation average and mean shape for the rest."""
    rest = rotation_average(body.pose.unflatten(0, (-1, views))[:, :, 1:]).repeat_interleave(views, 0)
    betas = body.betas.unflatten(0, (-1, views)).mean(1).repeat_interleave(views, 0)
    return BodyParameters(torch.cat([body.pose[:, :1], rest], 1), betas, body.translation)


def table_14(setting: Setting, data: dict[str, tuple[Observation, BodyParameters]], rows: str) -> None:
    """Single view, rotation averaging and fusion, of predictions and of fits to the joints."""
    alone = lambda seen: dataclasses.replace(seen, subject=None)  # noqa: E731
    recipes: dict[str, Callable[[Observation, Prediction, int], BodyParameters]] = {
        "single view": lambda seen, p, v: _body(p),
        "rotation averaging": lambda seen, p, v: averaged(_body(p), v),
        "fusion (4.12)": lambda seen, p, v: setting.latent(seen, p, evidence=False),
        "single view, fit (4.11)": lambda seen, p, v: setting.latent(alone(seen), p),
        "the fits' rotation average": lambda seen, p, v: averaged(setting.latent(alone(seen), p), v),
        "fusion with joints (4.11, 4.12)": lambda seen, p, v: setting.latent(seen, p),
        "smplify, gmm, of all views": lambda seen, p, v: setting.smplify(seen, p),
    }
    print("\nTable 14: MPJPE and PA-MPJPE over lsp14 in mm, mean over 2, 3 or 4 views")
    heads = [f"{kind}, {views}" for kind in data for views in range(2, MOST + 1)]
    print(f"{'':32}" + "".join(f"{head:>18}" for head in heads) + "   thesis: H36M, Mannequin")
    for name, recipe in _chosen(recipes, rows):
        cells = []
        for seen, truth in data.values():
            for views in range(2, MOST + 1):
                both = [
                    setting.errors(recipe(some, setting.method.predict(some), views), wanted)
                    for some, wanted in first_views(seen, truth, views)
                ]
                cells.append(" ".join(f"{float(torch.cat(values).mean()):.1f}" for values in zip(*both, strict=True)))
        print(
            f"{name:32}" + "".join(f"{cell:>18}" for cell in cells) + f"   {', '.join(TABLE_14.get(name, ()))}",
            flush=True,
        )


def table_13(setting: Setting, data: dict[str, tuple[Observation, BodyParameters]], rows: str) -> None:
    """Regression, and fits from it: with smplify's generic priors, with the prior conditional on what was seen."""
    recipes: dict[str, Callable[[Observation, Prediction], BodyParameters]] = {
        "regression": lambda seen, p: _body(p),
        "+ smplify, gmm": setting.smplify,
        "+ conditional prior": setting.latent,
        "+ conditional prior, adapt 1.5": lambda seen, p: setting.latent(seen, p, adapt=1.5),
    }
    print("\nTable 13: PA-MPJPE over lsp14 in mm, one view")
    print(f"{'':32}" + "".join(f"{head:>18}" for head in data) + "   thesis: 3DPW, H36M (OP), H36M (GT)")
    for name, recipe in _chosen(recipes, rows):
        cells = []
        for seen, truth in data.values():
            some = dataclasses.replace(seen, subject=None)
            parts = [slice(first, first + 4 * AT_ONCE) for first in range(0, len(truth), 4 * AT_ONCE)]
            errors = [
                setting.errors(recipe(some[part], setting.method.predict(some[part])), truth[part])[1] for part in parts
            ]
            cells.append(f"{float(torch.cat(errors).mean()):.1f}")
        print(
            f"{name:32}"
            + "".join(f"{cell:>18}" for cell in cells)
            + f"   {', '.join(TABLE_13.get(name, ()))}".rstrip(),
            flush=True,
        )


def _chosen(recipes: dict[str, Recipe], rows: str) -> list[tuple[str, Recipe]]:
    return [(name, recipe) for name, recipe in recipes.items() if rows in name]


def _body(prediction: Prediction) -> BodyParameters:
    assert prediction.body is not None
    return prediction.body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--people", type=int, default=100, help="simulated")
    parser.add_argument("--rendered", type=int, default=30, help="people drawn, four pictures each")
    parser.add_argument("--rows", default="", help="only those whose name has this in it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting.load()
    poses = MocapDataset(options.data / "mocap", MocapDataset.Config(split="val")).poses
    seen, truth, tried = rendered_views(setting, poses, options.rendered)
    off = 100 * detector_errors(setting, seen, truth)
    print(f"Validation part of the motion capture: {options.people} people simulated; {options.rendered} drawn, whom")
    print(f"the detector found in all {MOST} views, of {tried} tried; it errs by {off.median():.1f} % of the box")
    print(f"in the median, {off.mean():.1f} % in the mean")
    exact = people_of(setting.body, poses, options.people, noise=0.0)
    noisy = people_of(setting.body, poses, options.people)
    table_13(setting, {"rendered": (seen, truth), "simulated, 2 %": noisy, "simulated, exact": exact}, options.rows)
    table_14(
        setting,
        {"simulated": views_of(setting.body, poses, options.people, MOST), "rendered": (seen, truth)},
        options.rows,
    )


if __name__ == "__main__":
    main()
