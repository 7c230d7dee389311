"""`recon fit`: a body explains joints, a mesh or a scan."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recon_core.cli.common import json_option, print_json, settings_options
from recon_core.errors import EvidenceError, InputError, UsageError

if TYPE_CHECKING:
    from recon_core.config import Configuration
    from recon_core.images import Photo
    from recon_core.interfaces import BodyModel, Fitter, Method, Prior
    from recon_core.structures import BodyParameters, Camera, FitResult, Observation

_BLANK = (640, 480)
"""Size of the picture that stands for evidence in space, which has none."""


class _SizeType(click.ParamType):
    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        try:
            width, height = (int(v) for v in str(value).lower().split("x"))
        except ValueError:
            width, height = 0, 0
        if not (0 < width < 1 << 16 and 0 < height < 1 << 16):
            raise UsageError(f"--size {value}: write it as width x height in pixels, for example --size 640x480")
        return width, height


@click.command()
@click.argument("file", metavar="[FILE]", required=False)
@click.option("-o", "--output", default="out", show_default=True, metavar="FOLDER", help="The result is put in here.")
@click.option("--fitter", default="smplify", show_default=True, metavar="NAME", help="How to fit.")
@click.option("--method", metavar="NAME", help="A method that reads FILE, in place of a fitter: acap-vae.")
@click.option("--register", metavar="FILE", help="A mesh of other connectivity to register the method's mesh to.")
@click.option("--landmarks", metavar="FILE", help="json: pairs of the method's vertex, and vertex or place in FILE.")
@click.option("--prior", "priors", metavar="NAME", multiple=True, help="Prior; several.  [default: the fitter's]")
@click.option("--body", default="free", show_default=True, metavar="NAME", help="Body model.")
@click.option("--photo", metavar="FILE", help="The photo that joints in pixels belong to.")
@click.option("--size", type=_SizeType(), help="Its size instead, where there is no photo at hand.")
@click.option("--focal-px", type=float, metavar="F", help="Focal length in pixels.  [default: EXIF, or the diagonal]")
@click.option("--as", "kind", type=click.Choice(["mesh", "scan"]), help="What a .ply or .obj is.  [default: by count]")
@click.option("--overwrite", is_flag=True, help="Replace a result that is there already.")
@settings_options
@json_option
def command(
    file: str | None,
    output: str,
    fitter: str,
    method: str | None,
    register: str | None,
    landmarks: str | None,
    priors: tuple[str, ...],
    body: str,
    photo: str | None,
    size: tuple[int, int] | None,
    focal_px: float | None,
    kind: str | None,
    overwrite: bool,
    configuration: Configuration,
    as_json: bool,
) -> None:
    """Fit a body to joints, a mesh or a scan.

    FILE is a json of joints in pixels (OpenPose or COCO; give --photo or --size too), an .npz of joints in space
    (points, confidence, skeleton; metres, camera frame) or of joints in pixels of several views (docs/fitting.md), or a
    .ply or .obj in metres, y up: with the vertices of the body itself it is fitted vertex by vertex, else as a scan.
    docs/fitting.md has the settings (--set smplify.NAME=..).

    The result is in out/FILE: result.json, result.npz, scene.glb, person_0.ply and .obj, and with a photo also
    overlay.png and report.html.

    With --method the mesh is the method's own (object_0.ply). FILE may then be in centimetres or millimetres, and
    --register FILE stands in its place for a mesh that the method's is to be registered to. docs/acap-uses.md.
    """
    if file is not None and register is not None:
        raise UsageError(f"--register {register}: stands in the place of FILE; leave {file} out")
    if not (named := file or register or landmarks):
        raise UsageError("give a FILE to fit to, or --register FILE, or for markers alone --landmarks FILE")
    path = Path(named)
    if focal_px is not None and not 0 < focal_px < 1e9:
        raise UsageError(f"--focal-px {focal_px:g}: give the focal length in pixels, a number above 0")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if method is not None:
        if priors:
            raise UsageError(f"--prior: method '{method}' has its own; leave it out")
        from recon_core.cli.fit_method import fit_by_method, observe_markers, observe_surface, report

        picture, unit = _picture(path, photo, size), "metres"
        camera = _camera(picture, focal_px)
        if named == landmarks:
            observation = observe_markers(path, camera)
        elif path.suffix.lower() in (".ply", ".obj"):
            observation, unit = observe_surface(path, camera, "mesh" if register else kind, landmarks)
        else:
            observation = _observe_joints(path, picture, camera, photo is None and size is None)
        folder = Path(output) / path.stem
        fits = fit_by_method(method, path, observation, picture, photo is not None, folder, overwrite, configuration)
        if as_json:
            print_json({"folder": str(folder), "unit": unit, "fits": fits})
        else:
            report(folder, fits, unit)
        return
    if register is not None or landmarks is not None:
        raise UsageError("--register and --landmarks are for methods with a mesh of their own: add --method acap-vae")
    from recon_core.fitting import choose_priors
    from recon_core.plugins import registry

    body_model = registry().create("body", body)
    part = registry().load("fitter", fitter)
    picture = _picture(path, photo, size)
    observation = _observe(path, picture, focal_px, kind, body_model, photo is None and size is None)
    if observation.subject is not None and (size is not None or focal_px is not None):
        raise UsageError(f"--size, --focal-px: {path} has the size and K of its views; leave them out")
    provided = frozenset() if observation.keypoints is None else frozenset({"keypoints"})
    chosen, lender = choose_priors(
        priors or None, part, None, lambda name: registry().create("prior", name), _lender, provided
    )
    configuration.check({fitter})
    prediction = None if lender is None else lender.predict(observation)
    settings = configuration.settings(fitter, part.Config)
    if prediction is None and "start" in part.Config.model_fields and "start" not in settings.model_fields_set:
        settings = settings.model_copy(update={"start": "mean"})
    made: Fitter = part(settings)
    initial = _mean_body(observation, body_model, chosen) if prediction is None else prediction.body
    assert initial is not None
    context = None if prediction is None else prediction.context
    try:
        found = made.fit(observation, initial, body_model, chosen, context)
    except EvidenceError as error:
        raise EvidenceError(f"{path}: {error}") from error
    if observation.subject is not None:
        picture, found, observation = _in_first_view(path, picture, photo is not None, found, observation)
    folder = Path(output) / path.stem
    used = {"fit": {"body": body, "priors": list(chosen)}, fitter: settings.model_dump(mode="json")}
    rows = _save(folder, path, picture, found, observation, body_model, fitter, used, photo is not None, overwrite)
    if as_json:
        print_json({"folder": str(folder), "fits": rows})
        return
    for i, row in enumerate(rows):
        error = "" if row["reprojection_px"] is None else f", {row['reprojection_px']:.1f} px"
        click.echo(f"{folder}: person {i}: {row['reason']} after {row['iterations']} iterations{error}")


def _picture(path: Path, photo: str | None, size: tuple[int, int] | None) -> Photo:
    """The photo, or a grey one of its size."""
    import numpy as np

    from recon_core.images import Photo, load_image

    if photo is not None:
        if size is not None:
            raise UsageError("--size: the photo has its own size; leave one of --photo and --size out")
        return load_image(photo)
    width, height = size or _BLANK
    return Photo(np.full((height, width, 3), 128, np.uint8), path, None, (width, height))


def _observe(
    path: Path, picture: Photo, focal_px: float | None, kind: str | None, body: BodyModel, unsized: bool
) -> Observation:
    """What the file shows, in the camera frame."""
    from recon_core.evidence_files import read_surface
    from recon_core.rendering.shading import vertex_normals
    from recon_core.structures import Mesh, Observation

    camera = _camera(picture, focal_px)
    if kind is not None and path.suffix.lower() not in (".ply", ".obj"):
        raise UsageError(f"--as {kind}: {path} is neither .ply nor .obj")
    if path.suffix.lower() not in (".ply", ".obj"):
        return _observe_joints(path, picture, camera, unsized)
    vertices, faces = read_surface(path)
    count = len(body(_unposed(body, 1)).vertices[0])
    if kind == "mesh" or (kind is None and len(vertices) == count):
        return Observation(camera, mesh=Mesh(vertices[None], body.faces))
    normals = vertex_normals(vertices, faces)[None] if len(faces) else None
    return Observation(camera, scan=vertices[None], scan_normals=normals)


def _camera(picture: Photo, focal_px: float | None) -> Camera:
    from recon_core.geometry.cameras import default_focal
    from recon_core.structures import Camera

    return Camera.perspective(focal_px or picture.focal_px or default_focal(picture.size), picture.size)


def _observe_joints(path: Path, picture: Photo, camera: Camera, unsized: bool) -> Observation:
    """Joints of a .json (pixels) or .npz (space)."""
    import torch

    from recon_core.evidence_files import read_joints
    from recon_core.evidence_views import holds_views, read_views
    from recon_core.observe import observe
    from recon_core.structures import Observation

    if path.suffix.lower() == ".npz" and holds_views(path):
        return read_views(path)
    if path.suffix.lower() == ".npz":
        joints = read_joints(path)
        return Observation(camera[torch.zeros(len(joints), dtype=torch.int64)], keypoints3d=joints)
    if path.suffix.lower() != ".json":
        raise InputError(f"{path}: not a file that can be fitted; give .json, .npz, .ply or .obj")
    if unsized:
        raise UsageError(f"{path}: joints in pixels need their picture: give --photo FILE or --size WIDTHxHEIGHT")
    detections = _detector(path).detect_photo(picture)
    if not detections:
        raise EvidenceError(f"{path}: nobody in it has a joint of confidence above 0")
    return observe(picture, camera, detections, needed={"keypoints"})


def _in_first_view(
    path: Path, picture: Photo, with_photo: bool, found: FitResult, observation: Observation
) -> tuple[Photo, FitResult, Observation]:
    """Of several views the first, in whose camera frame the bodies are. A photo is that view's; else it is grey."""
    people = len(observation.subject.unique()) if observation.subject is not None else 0
    first = observation[:people]
    if not with_photo:
        picture = _picture(path, None, first.camera.size)
    elif picture.size != first.camera.size:
        raise UsageError(f"--photo: has {picture.size} pixels, the views of {path} {first.camera.size}")
    return picture, dataclasses.replace(found, body=found.body[:people]), first


def _detector(path: Path) -> Any:
    from recon_core.evidence_files import keypoint_format
    from recon_core.plugins import registry

    reader = registry().load("detector", keypoint_format(path))
    return reader(reader.Config(path=str(path)))


def _lender(name: str) -> Method:
    """A method that brings a prior, with its trained weights."""
    from recon_core.assets import assets
    from recon_core.plugins import registry

    found = registry().load("method", name)
    body = registry().create("body", found.body or "free")
    return found.from_assets(found.Config(), assets(), body).eval()


def _unposed(body: BodyModel, count: int) -> BodyParameters:
    """The mean shape in the rest pose, upright, facing the camera, 5 m before it."""
    import torch

    from recon_core.structures import BodyParameters

    pose = torch.eye(3).repeat(count, 24, 1, 1)
    pose[:, 0] = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    return BodyParameters(pose, torch.zeros(count, body.shape_count), torch.tensor([0.0, 0.0, 5.0]).repeat(count, 1))


def _mean_body(observation: Observation, body: BodyModel, priors: Mapping[str, Prior]) -> BodyParameters:
    """`_unposed`, in the pose that the first prior over poses holds most likely, where the joints say it stands."""
    from recon_core.geometry.cameras import estimate_translation
    from recon_core.geometry.rotations import axis_angle_to_matrix

    start = _unposed(body, len(observation))
    if prior := next((p for p in priors.values() if p.over == "body-pose"), None):
        start.pose[:, 1:] = axis_angle_to_matrix(prior.mode().unflatten(-1, (23, 3)))
    if (joints := observation.keypoints) is None:
        return start
    own = body.keypoints(dataclasses.replace(start, translation=start.translation * 0), joints.skeleton)
    place = estimate_translation(own, joints.points, joints.confidence, observation.camera.K)
    before = place[:, 2:] > 0.1
    return dataclasses.replace(start, translation=place.where(before, start.translation))


def _save(
    folder: Path,
    path: Path,
    picture: Photo,
    found: FitResult,
    observation: Observation,
    body: BodyModel,
    fitter: str,
    settings: Mapping[str, Any],
    with_photo: bool,
    overwrite: bool,
) -> list[dict[str, Any]]:
    """Write the result; the report of each fit."""
    from recon_core.cli.fit_method import save_fit
    from recon_core.reconstruction import Reconstruction, people_from_bodies

    rows = [found.report.row(i) for i in range(len(found.body))]
    boxes = [(0.0, 0.0, float(picture.size[0]), float(picture.size[1]))] * len(rows)
    if observation.box is not None:
        boxes = [(float(b[0]), float(b[1]), float(b[2]), float(b[3])) for b in observation.box]
    camera = observation.camera[0]
    people = people_from_bodies(body, found.body, camera, boxes, [1.0] * len(rows), observation.keypoints, fits=rows)
    source = picture.path if with_photo else path
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    result = Reconstruction(source, digest, picture.pixels, fitter, camera, people, settings=settings, body_model=body)
    save_fit(result, with_photo, folder, overwrite)
    return rows
