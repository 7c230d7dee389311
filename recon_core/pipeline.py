"""A photo, start to end: detections, observation, the method, the fitter, one camera frame. docs/run.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveFloat

from recon_core.assets import assets
from recon_core.config import RUN, Configuration
from recon_core.errors import NoPersonError, PluginError, ReconError, UsageError, nearest
from recon_core.evidence_files import keypoint_format
from recon_core.export.save import exporter
from recon_core.fitting import FitStage, Fitted, choose_priors
from recon_core.geometry.cameras import default_focal
from recon_core.images import Photo, load_image
from recon_core.interfaces import BodyModel, Detector, Method, Settings
from recon_core.observe import check_box, choose_by_box, detect_in_box, observe, with_guide
from recon_core.plugins import registry
from recon_core.reconstruction import Reconstruction, generated_images, people_from_bodies, scene_objects
from recon_core.structures import Camera, Detection, Observation, Prediction

Options = Mapping[str, Mapping[str, Any]]
"""Settings by section, as `Configuration.settings` takes them one section at a time."""


class RunSettings(Settings):
    """Settings of a run: section [run] of a settings file, and the options of `recon run`.

    method, detector, body, fitter, renderer: registered names; None is the method's own choice. fit: whether to fit
    at all. views: whether the photos are views of one person (`recon_core.views`). priors: for the fitter; registered
    priors, or methods that bring one; None is the fitter's own choice.
    keypoints: a file of joints, read in place of a detector. box: x, y, w, h in pixels, the subject in every photo.
    focal_px: focal length in pixels, in place of what the photo says. device: "auto", "cpu", "cuda", ...
    formats: files to write besides the usual ones.
    """

    method: str = "prohmr"
    detector: str | None = None
    body: str | None = None
    fit: bool = True
    views: bool = False
    fitter: str | None = None
    priors: tuple[str, ...] | None = None
    keypoints: str | None = None
    box: tuple[float, float, PositiveFloat, PositiveFloat] | None = None
    focal_px: PositiveFloat | None = None
    renderer: str = "warp"
    device: str = "auto"
    formats: tuple[str, ...] = ()


def run(
    photos: str | Path | Iterable[str | Path], method: str = "prohmr", **settings: Any
) -> Reconstruction | list[Reconstruction]:
    """Reconstruct what a photo, or each of several, shows.

    photos: a file (a Reconstruction is returned) or several (a list is). settings: those of `RunSettings`, those of
    the method (`samples=25`), and for other parts a mapping by the part's name (`smplify={"iterations": 20}`).
    `views=True` joins several photos of one person in one body.

        result = recon_core.run("photo.jpg", method="prohmr", samples=25)
        person = result.people[0]
        person.joints3d["smpl24"]["left_wrist"]     # metres, camera frame: x right, y down, z forward
        person.joints2d["coco17"]["nose"]           # pixels of the upright photo
        person.vertices, result.body_model.faces    # (V, 3), (F, 3)
        person.body, person.samples                 # BodyParameters; Samples, or None
        result.save("out/photo")

    Prints nothing. Raises UsageError for an unknown name or setting, InputError for a file that cannot be used,
    NoPersonError where the detector finds nobody, and other ReconErrors that say what to do.
    """
    pipeline = Pipeline(options=_sections(method, settings))
    if pipeline.settings.views:
        from recon_core.views import reconstruct_views

        several = [photos] if isinstance(photos, str | Path) else photos
        return reconstruct_views(pipeline, [Path(photo) for photo in several])
    if isinstance(photos, str | Path):
        return pipeline(photos)
    return [pipeline(photo) for photo in photos]


class Pipeline:
    """Everything a run needs, loaded once: call it with a photo, or call its three steps in different threads.

    Each step may be used by one thread at a time. Raises, when made, UsageError for unknown names and settings, and
    PluginError or AssetError for parts that do not load.
    """

    def __init__(
        self,
        configuration: Configuration | None = None,
        options: Options | None = None,
        method_options: Mapping[str, Any] | None = None,
    ) -> None:
        """options: settings that go before the configuration's, by section; method_options: of the method."""
        self._configuration = configuration or Configuration()
        self._options = dict(options or {})
        self._used: dict[str, dict[str, Any]] = {}
        self._packages: set[str] = {"recon-core"}
        self.settings: RunSettings = self._configuration.settings(RUN, RunSettings, **self._options.get(RUN, {}))
        self.device = _device(self.settings.device)
        registry().entry("renderer", self.settings.renderer)
        method = self._class("method", self.settings.method)
        for name in method_options or {}:
            if name not in method.Config.model_fields:
                raise UsageError(f"--{name.replace('_', '-')}: method '{self.settings.method}' has no setting '{name}'")
        self._options[self.settings.method] = {**self._options.get(self.settings.method, {}), **(method_options or {})}
        for name in self.settings.formats:
            exporter(name)
        fitter = self._fitter_name(method)
        self.body_model = self._body(method)
        self.method = self._method(self.settings.method, method)
        self.fit_stage = self._fit_stage(fitter) if fitter else None
        self.detector = self._detector()
        self._guide = self._observe_guide()
        self._configuration.check(self._used)
        self.used_settings = {RUN: self.settings.model_dump(mode="json")} | self._used

    def __call__(self, path: str | Path) -> Reconstruction:
        """One photo, start to end."""
        photo, digest = self.read(path)
        return self.reconstruct(photo, digest, self.detect(photo))

    # -- the steps

    def read(self, path: str | Path) -> tuple[Photo, str]:
        """The photo, and the sha256 of its file. Raises InputError."""
        photo = load_image(path)
        return photo, hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def detect(self, photo: Photo) -> list[Detection]:
        """The subjects. Raises NoPersonError when there is none, InputError for a box outside the photo."""
        box = self.settings.box
        if box is not None:
            check_box(box, photo)
            if self.detector is None:
                return [Detection(box, 1.0)]
            if self.settings.keypoints is not None:
                return [choose_by_box(self.detector.detect_photo(photo), photo, box)]
            return [detect_in_box(self.detector, photo, box)]
        assert self.detector is not None
        found = self.detector.detect_photo(photo)
        if not found:
            raise NoPersonError(f"{photo.path}: no person found in the picture; if there is one, try --box x,y,w,h")
        return found

    def reconstruct(self, photo: Photo, digest: str, detections: Sequence[Detection]) -> Reconstruction:
        """What the method makes of the detections of one photo.

        Raises PluginError naming the method when it fails or breaks its contract, EvidenceError when nobody can be
        fitted.
        """
        observation = self.observe(photo, detections)
        prediction, fitted = self.infer(observation, str(photo.path))
        return self.result(photo, digest, detections, observation, prediction, fitted)

    def observe(self, photo: Photo, detections: Sequence[Detection]) -> Observation:
        """What the method is given of a photo's subjects, on the run's device."""
        camera = Camera.perspective(self._focal(photo), photo.size)
        return with_guide(self._observe(photo, camera, detections), self._guide)

    def infer(self, observation: Observation, where: str) -> tuple[Prediction, Fitted | None]:
        """What the method makes of an observation, and the bodies after the fit. where: the photo, for messages."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            # Chance without a seed of its own falls alike for every photo, in whichever order they come.
            torch.manual_seed(0)
            prediction = self._predict(observation, where)
            return prediction, self._fit(observation, prediction)

    def result(
        self,
        photo: Photo,
        digest: str,
        detections: Sequence[Detection],
        observation: Observation,
        prediction: Prediction,
        fitted: Fitted | None,
        views: Sequence[tuple[str, str]] = (),
    ) -> Reconstruction:
        """The reconstruction of one photo from the rows that show it. views: see `Reconstruction`."""
        camera = Camera.perspective(self._focal(photo), photo.size)
        boxes, scores = [d.box for d in detections], [float(d.score) for d in detections]
        people = []
        if fitted is not None:
            assert self.body_model is not None
            people = people_from_bodies(
                self.body_model,
                fitted.body,
                camera.to(self.device),
                boxes,
                scores,
                observation.keypoints,
                prediction.samples,
                fitted.reports,
            )
        return Reconstruction(
            path=photo.path,
            digest=digest,
            photo=photo.pixels,
            method=self.settings.method,
            camera=camera,
            people=people,
            objects=scene_objects(prediction, boxes, scores, camera),
            images=generated_images(prediction, boxes, scores),
            versions=self.versions,
            settings=self.used_settings,
            body_model=self.body_model if people else None,
            views=views,
        )

    def _observe_guide(self) -> Observation | None:
        """The first subject of the method's second photo, where it has one. `--box` is of the first photo only."""
        if self.method.guide is None or self.detector is None:
            return None
        photo, _ = self.read(self.method.guide)
        if found := self.detector.detect_photo(photo):
            return self._observe(photo, Camera.perspective(self._focal(photo), photo.size), found[:1])
        raise NoPersonError(f"{photo.path}: no person found in the picture")

    def _observe(self, photo: Photo, camera: Camera, detections: Sequence[Detection]) -> Observation:
        return observe(
            photo,
            camera,
            detections,
            needed=self.method.inputs,
            optional={"keypoints"},
            crop_size=self.method.crop_size,
            crop_margin=self.method.crop_margin,
        ).to(self.device)

    def _predict(self, observation: Observation, where: str) -> Prediction:
        name = self.settings.method
        registry().call("recon_before_predict", method=name, observation=observation)
        prediction = predict(self.method, name, observation, where)
        registry().call("recon_after_predict", method=name, observation=observation, prediction=prediction)
        return prediction

    def _fit(self, observation: Observation, prediction: Prediction) -> Fitted | None:
        """Bodies after the fit, or as predicted; None when the method gives none."""
        if prediction.body is None or self.body_model is None:
            return None
        if self.fit_stage is None:
            return Fitted(prediction.body, [None] * len(prediction.body))
        return self.fit_stage(observation, prediction, self.body_model)

    def _focal(self, photo: Photo) -> float:
        return self.settings.focal_px or photo.focal_px or default_focal(photo.size)

    # -- parts

    def _class(self, kind: str, name: str) -> Any:
        found = registry().load(kind, name)
        self._packages.add(registry().entry(kind, name).package)
        return found

    def _config(self, name: str, model: type[Settings]) -> Settings:
        config = self._configuration.settings(name, model, **self._options.get(name, {}))
        self._used[name] = config.model_dump(mode="json")
        return config

    def _part(self, kind: str, name: str, **options: Any) -> Any:
        """A detector or fitter by its name, with its settings."""
        found = self._class(kind, name)
        config = self._configuration.settings(name, found.Config, **(dict(self._options.get(name, {})) | options))
        self._used[name] = config.model_dump(mode="json")
        return found(config)

    def _method(self, name: str, found: type[Method]) -> Method:
        method = found.from_assets(self._config(name, found.Config), assets(), self.body_model)
        return method.to(self.device).eval()

    def _method_named(self, name: str) -> Method:
        """The run's method, or another one whose prior is borrowed."""
        if name == self.settings.method:
            return self.method
        return self._method(name, self._class("method", name))

    def _fit_stage(self, name: str) -> FitStage:
        fitter = self._part("fitter", name)
        priors, lender = choose_priors(
            self.settings.priors,
            type(fitter),
            running=self.method,
            load_prior=lambda prior: self._class("prior", prior)().to(self.device),
            load_method=self._method_named,
        )
        return FitStage(fitter, priors, lender, required=self.settings.fitter is not None)

    def _fitter_name(self, method: type[Method]) -> str | None:
        if not self.settings.fit:
            if self.settings.views:
                raise UsageError("--views: the fit joins views; drop --no-fit")
            if self.settings.fitter or self.settings.priors:
                raise UsageError("--no-fit leaves out the fit: drop it, or --fitter and --prior")
            return None
        if self.settings.fitter and "body" not in method.outputs:
            raise UsageError(f"--fitter {self.settings.fitter}: method '{self.settings.method}' gives no body to fit")
        name = self.settings.fitter or method.default_fitter
        if self.settings.views and name is None:
            raise UsageError(
                f"--views: the fit joins views; method '{self.settings.method}' has none, so name one with --fitter"
            )
        if self.settings.priors and name is None:
            raise UsageError(f"--prior: method '{self.settings.method}' has no fit; name one with --fitter")
        if name is not None:
            registry().entry("fitter", name)
        return name

    def _body(self, method: type[Method]) -> BodyModel | None:
        needed = method.body_for(self._config(self.settings.method, method.Config))
        name = self.settings.body or needed or ("free" if "body" in method.outputs else None)
        return None if name is None else self._class("body", name)().to(self.device)

    def _detector(self) -> Detector | None:
        """None when the box is given and nothing else is needed."""
        if self.settings.keypoints is not None:
            name = self.settings.detector or keypoint_format(Path(self.settings.keypoints))
            return self._part("detector", name, path=self.settings.keypoints)
        needs = {"mask", "keypoints"} & self.method.inputs
        if self.settings.box is not None and not needs and self.fit_stage is None and self.settings.detector is None:
            return None
        return self._part("detector", self.settings.detector or self.method.default_detector)

    @cached_property
    def versions(self) -> dict[str, str]:
        """Of the packages whose parts are used, and of torch."""
        found = {}
        for package in sorted(self._packages | {"torch"}):
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[package] = "unknown"
        return found


def predict(method: Method, name: str, observation: Observation, where: str) -> Prediction:
    """`method.predict`, held to the interface. Raises PluginError naming method and photo (`where`)."""
    package = registry().entry("method", name).package
    try:
        with torch.no_grad():
            prediction = method.predict(observation)
    except ReconError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        raise PluginError(
            f"{where}: method '{name}' of {package} failed: {type(error).__name__}: {reason}"
        ) from error
    for field in sorted(method.outputs):
        value = getattr(prediction, field)
        if value is None or len(value) != len(observation):
            found = "none" if value is None else str(len(value))
            raise PluginError(
                f"{where}: method '{name}' of {package} should give {len(observation)} rows of '{field}', "
                f"one a subject, and gave {found}"
            )
    return prediction


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["not available"])[0]
        raise UsageError(f"--device {name}: cannot be used ({reason})") from error
    return device


def _sections(method: str, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Keyword settings of `run`, by section."""
    sections: dict[str, dict[str, Any]] = {RUN: {"method": method}, method: {}}
    parts = {entry.name for entry in registry().entries()}
    own = set(registry().load("method", method).Config.model_fields)
    for name, value in settings.items():
        if name in RunSettings.model_fields:
            sections[RUN][name] = value
        elif name in own:
            sections[method][name] = value
        elif isinstance(value, Mapping) and name.replace("_", "-") in parts:
            sections.setdefault(name.replace("_", "-"), {}).update(value)
        else:
            raise UsageError(f"unknown setting '{name}'{nearest(name, {*RunSettings.model_fields, *own})}")
    return sections
