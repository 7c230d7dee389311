"""From a photo to a Reconstruction: boxes, crops, the method's contract, the fit, and the settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import recon_core
from recon_core.config import Configuration
from recon_core.crops import crop_masks, crop_photo
from recon_core.errors import (
    EvidenceError,
    InputError,
    NoPersonError,
    PluginError,
    ReconError,
    UsageError,
)
from recon_core.geometry.cameras import crop_affine, transform_points
from recon_core.images import Photo, load_image
from recon_core.interfaces import Settings
from recon_core.observe import intersection_over_union, observe
from recon_core.pipeline import Pipeline
from recon_core.structures import Camera, Detection, Keypoints

DrawPhoto = Callable[..., Path]
TWO = ((20, 20, 30, 80), (100, 10, 40, 100))


def waves(width: int, height: int) -> np.ndarray:
    """A smooth picture of which the value at any place is known, 0..1."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return 0.5 + 0.2 * np.sin(x / 23) + 0.2 * np.cos(y / 31)


# -- crops


@pytest.mark.parametrize("box", [(60, 40, 100, 150), (200, 100, 400, 380), (-50, -30, 300, 200), (500, 350, 300, 300)])
def test_a_crop_shows_the_photo_where_its_affine_says(box: tuple[float, ...]) -> None:
    picture = waves(640, 480)
    photo = np.repeat((picture * 255 + 0.5).astype(np.uint8)[..., None], 3, 2)
    affine = crop_affine(torch.tensor([box], dtype=torch.float32), 64, 1.2)
    crop = crop_photo(photo, affine, 64)[0, 0].numpy()
    grid = torch.stack(torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="xy"), -1).reshape(
        1, -1, 2
    )
    inverse = torch.linalg.inv(torch.cat([affine, torch.tensor([[[0, 0, 1.0]]])], 1))[:, :2]
    x, y = transform_points(inverse, grid)[0].T.reshape(2, 64, 64).numpy()
    expected = 0.5 + 0.2 * np.sin(x / 23) + 0.2 * np.cos(y / 31)
    step = 1.5 * max(1.0, 1 / affine[0, 0, 0].item())
    inside = (x > step) & (x < 640 - step) & (y > step) & (y < 480 - step)
    outside = (x < -step) | (x > 640 + step) | (y < -step) | (y > 480 + step)
    assert inside.mean() > 0.15
    np.testing.assert_allclose(crop[inside], expected[inside], atol=0.012)
    assert not crop[outside].any()


def test_a_strong_reduction_averages_fine_patterns() -> None:
    checker = (np.indices((800, 800)).sum(0) % 2 * 255).astype(np.uint8)
    crop = crop_photo(np.repeat(checker[..., None], 3, 2), crop_affine(torch.tensor([[0.0, 0, 800, 800]]), 50), 50)
    assert crop.std() < 0.01
    assert crop.mean().item() == pytest.approx(0.5, abs=0.01)


def test_masks_are_cropped_like_photos() -> None:
    mask = torch.zeros(100, 200)
    mask[20:80, 50:150] = 1
    affine = crop_affine(torch.tensor([[50.0, 20, 100, 60]]), 40, 1.0)
    crop = crop_masks([mask], affine, 40)
    assert crop.shape == (1, 1, 40, 40)
    assert crop[0, 0, 9:31, 1:39].min() == 1
    assert crop[0, 0, :7].max() == 0


# -- observations


def test_overlap_of_boxes() -> None:
    assert intersection_over_union((0, 0, 2, 2), (1, 0, 2, 2)) == pytest.approx(1 / 3)
    assert intersection_over_union((0, 0, 1, 1), (5, 5, 1, 1)) == 0


def detection(points: torch.Tensor, confidence: torch.Tensor) -> Detection:
    return Detection((0, 0, 10, 10), 1.0, Keypoints(points, confidence, "coco17"))


def test_missing_joints_never_bring_nan_and_present_ones_must_be_numbers(photo: DrawPhoto) -> None:
    picture = load_image(photo("a.png"))
    points, confidence = torch.rand(1, 17, 2), torch.ones(1, 17)
    points[0, 3], confidence[0, 3] = torch.nan, 0
    camera = Camera.perspective(100.0, picture.size)
    seen = observe(picture, camera, [detection(points, confidence)], {"keypoints"})
    assert torch.isfinite(seen.keypoints.points).all()
    confidence = torch.ones(1, 17)
    with pytest.raises(InputError, match=r"a\.png.*not finite"):
        observe(picture, camera, [detection(points, confidence)], {"keypoints"})


def test_a_method_that_reads_joints_says_so_when_there_are_none(photo: DrawPhoto) -> None:
    picture = load_image(photo("a.png"))
    with pytest.raises(UsageError, match="reads the keypoints"):
        observe(picture, Camera.perspective(100.0, picture.size), [Detection((0, 0, 9, 9), 1.0)], {"keypoints"})


# -- a run


def test_run_returns_everyone_in_one_camera_frame(photo: DrawPhoto, capfd: pytest.CaptureFixture[str]) -> None:
    result = recon_core.run(photo("a.png", *TWO), method="toy-body")
    assert capfd.readouterr() == ("", "")
    assert [person.box for person in result.people] == [tuple(map(float, box)) for box in TWO]
    assert result.camera.K[0, 0, 0].item() == pytest.approx(200)  # the diagonal of 160 x 120
    for person in result.people:
        # The fit put the body on the joints: half a torso of tolerance for a T-pose on a standing person.
        x, y, w, h = person.box
        mid = np.asarray(person.joints2d["smpl24"]["pelvis"])
        assert np.abs(mid - [x + w / 2, y + h * 0.5]).max() < 0.15 * h
        assert person.fit["reason"] == "converged"
        assert person.keypoints.skeleton == "coco17"
        K = result.camera.K[0].numpy()
        pixels = person.joints3d["h36m17"].points @ K.T
        np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], person.joints2d["h36m17"].points, atol=1e-3)
        vertices = result.body_model(person.body).vertices[0]
        np.testing.assert_allclose(vertices, person.vertices, atol=1e-6)
    assert result.versions["toy-recon"] == "1.0"


def test_several_photos_come_back_as_a_list(photo: DrawPhoto) -> None:
    results = recon_core.run([photo("a.png"), photo("b.png", *TWO)], method="toy-body")
    assert [len(result.people) for result in results] == [1, 2]


def test_samples_are_drawn_alike_whatever_was_run_before(photo: DrawPhoto) -> None:
    pipeline = Pipeline(options={"run": {"method": "toy-body"}}, method_options={"samples": 5})
    state = torch.random.get_rng_state()
    first = pipeline(photo("a.png"))
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's own numbers are left alone
    pipeline(photo("b.png", *TWO))
    again = pipeline(photo("a.png"))
    assert first.people[0].samples.count == 5
    assert torch.equal(first.people[0].samples.betas, again.people[0].samples.betas)
    assert first.people[0].joint_std_mm.shape == (24,)


def test_without_samples_there_is_no_spread(photo: DrawPhoto) -> None:
    person = recon_core.run(photo("a.png"), method="toy-body").people[0]
    assert person.samples is None
    assert person.joint_std_mm is None


def test_without_a_fit_the_prediction_stays(photo: DrawPhoto) -> None:
    person = recon_core.run(photo("a.png"), method="toy-body", fit=False).people[0]
    assert person.fit is None
    assert person.body.translation[0].tolist() == [0, 0, 5]


def test_focal_length_from_the_user_before_exif_before_the_diagonal(photo: DrawPhoto) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50  # FocalLengthIn35mmFilm
    path = photo("a.jpg", exif=exif)
    told = recon_core.run(path, method="toy-body").camera.K[0, 0, 0].item()
    assert told == pytest.approx(50 * 200 / np.hypot(36, 24), rel=1e-5)
    assert recon_core.run(path, method="toy-body", focal_px=321.0).camera.K[0, 0, 0].item() == 321


def test_a_mesh_without_a_body_and_an_image_go_the_same_way(photo: DrawPhoto, tmp_path: Path) -> None:
    path = photo("a.png", *TWO)
    result = recon_core.run(path, method="toy-mesh")
    assert result.people == []
    assert [item.box for item in result.objects] == [tuple(map(float, box)) for box in TWO]
    assert result.objects[0].extra["light"].shape == (9,)
    files = {file.name for file in result.save(tmp_path / "mesh")}
    assert files == {"result.json", "result.npz", "scene.glb", "overlay.png", "report.html"}
    overlay = load_image(tmp_path / "mesh" / "overlay.png").pixels
    changed = (overlay != result.photo).any(-1)
    assert changed[20:100, 20:50].mean() > 0.95  # the quad covers the box it was made for
    assert not changed[:, 60:90].any()

    result = recon_core.run(path, method="toy-image")
    np.testing.assert_allclose(result.images[0].pixels[24, 24], 255 - np.array([220, 30, 30]), atol=1)
    files = {file.name for file in result.save(tmp_path / "image")}
    assert files == {"result.json", "result.npz", "image_0.png", "image_1.png", "report.html"}


def test_settings_of_every_part_reach_it_and_the_result(photo: DrawPhoto) -> None:
    result = recon_core.run(photo("a.png"), method="toy-body", samples=2, toy_fit={"steps": 7})
    assert result.people[0].fit["iterations"] == 7
    assert result.settings["toy-body"]["samples"] == 2
    assert result.settings["toy-fit"] == {"steps": 7}
    assert result.settings["run"]["method"] == "toy-body"


# -- hooks and priors


def test_hooks_are_called_around_the_prediction_and_the_export(
    photo: DrawPhoto, toy: ModuleType, tmp_path: Path
) -> None:
    toy.CALLS.clear()
    recon_core.run(photo("a.png", *TWO), method="toy-body").save(tmp_path / "out")
    assert toy.CALLS == [
        "before toy-body 2",
        "after toy-body",
        "fit with flat, context (2, 2)",
        "export toy-body",
    ]


def test_priors_are_the_fitters_or_those_asked_for(photo: DrawPhoto, toy: ModuleType) -> None:
    def calls(**settings: object) -> str:
        toy.CALLS.clear()
        recon_core.run(photo("a.png"), **settings)
        (fit,) = [call for call in toy.CALLS if call.startswith("fit")]
        return fit

    # gmm is over the pose: the fitter's own prior over the shape stays.
    assert calls(method="toy-body", priors=["gmm"]) == "fit with gmm, flat, context (1, 2)"
    assert calls(method="toy-body", priors=["shape"]) == "fit with shape, context (1, 2)"
    # A prior lent by a method comes with that method's context.
    assert calls(method="toy-body", priors=["toy-body", "flat"]) == "fit with toy-body, flat, context (1, 2)"


def test_people_who_cannot_be_fitted_keep_their_prediction(
    photo: DrawPhoto, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = toy.ToyFitter.fit

    def demanding(self, observation, *arguments):
        if (observation.box[:, 0] < 50).any():
            raise EvidenceError("too few joints")
        return fit(self, observation, *arguments)

    monkeypatch.setattr(toy.ToyFitter, "fit", demanding)
    left, right = recon_core.run(photo("a.png", *TWO), method="toy-body").people
    assert left.fit is None
    assert left.body.translation[0].tolist() == [0, 0, 5]
    assert right.fit["converged"]
    with pytest.raises(EvidenceError, match="too few joints"):
        recon_core.run(photo("b.png", TWO[0]), method="toy-body")


# -- boxes


def test_a_box_chooses_and_bounds_the_person(photo: DrawPhoto) -> None:
    path = photo("a.png", *TWO)
    result = recon_core.run(path, method="toy-body", box=(95, 5, 50, 110))
    (person,) = result.people
    assert person.box == (95, 5, 50, 110)
    points = person.keypoints.points[0]
    assert points[:, 0].min() > 100
    assert points[:, 0].max() < 140
    with pytest.raises(NoPersonError, match="no person found in --box 60,0,20,50"):
        recon_core.run(path, method="toy-body", box=(60, 0, 20, 50))
    with pytest.raises(InputError, match="outside the picture of 160x120"):
        recon_core.run(path, method="toy-body", box=(160, 10, 20, 20))


def test_a_box_alone_is_enough_for_a_method_that_reads_pixels(photo: DrawPhoto) -> None:
    pipeline = Pipeline(options={"run": {"method": "toy-image", "box": (10, 10, 50, 50)}})
    assert pipeline.detector is None
    assert pipeline(photo("a.png")).images[0].box == (10, 10, 50, 50)


def test_masks_found_in_a_box_lie_where_they_were_seen(photo: DrawPhoto) -> None:
    pipeline = Pipeline(options={"run": {"method": "toy-mesh", "box": TWO[1]}})
    (found,) = pipeline.detect(load_image(photo("a.png", *TWO)))
    assert found.mask.shape == (120, 160)
    assert found.mask[10:110, 100:140].mean() == 1
    assert found.mask.sum() == 40 * 100


# -- what goes wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "toy-bdy"}, "unknown method 'toy-bdy'; did you mean 'toy-body'?"),
        ({"method": "toy-body", "sampels": 3}, "unknown setting 'sampels'; did you mean 'samples'?"),
        ({"method": "toy-body", "focal": 3}, "unknown setting 'focal'; did you mean 'focal_px'?"),
        ({"method": "toy-body", "focal_px": -3}, "focal_px"),
        ({"method": "toy-body", "detector": "rod"}, "unknown detector 'rod'; did you mean 'red'?"),
        ({"method": "toy-body", "renderer": "wrap"}, "unknown renderer 'wrap'; did you mean 'warp'?"),
        ({"method": "toy-body", "fitter": "toyfit"}, "unknown fitter 'toyfit'; did you mean 'toy-fit'?"),
        ({"method": "toy-body", "priors": ["flt"]}, "unknown prior 'flt'; did you mean 'flat'?"),
        ({"method": "toy-body", "priors": ["toy-mesh"]}, "method 'toy-mesh' brings no prior"),
        ({"method": "toy-body", "body": "fre"}, "unknown body 'fre'; did you mean 'free'?"),
        ({"method": "toy-body", "formats": ["obi"]}, "unknown format 'obi'; did you mean 'obj'?"),
        ({"method": "toy-body", "device": "tpu9"}, "--device tpu9"),
        ({"method": "toy-body", "fit": False, "fitter": "toy-fit"}, "--no-fit"),
        ({"method": "toy-mesh", "fitter": "toy-fit"}, "gives no body to fit"),
        ({"method": "toy-mesh", "priors": ["flat"]}, "has no fit"),
        ({"method": "toy-body", "toy_fit": {"stops": 3}}, "unknown setting 'stops'; did you mean 'steps'?"),
    ],
)
def test_wrong_settings_are_named_before_any_photo_is_read(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        recon_core.run("no such photo.jpg", **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        ("raise", PluginError, "method 'toy-body' of toy-recon failed: ValueError: the toy broke"),
        ("rows", PluginError, "should give 1 rows of 'body', one a subject, and gave 0"),
        ("nan", ReconError, "translation that is not finite"),
    ],
)
def test_a_method_that_breaks_its_contract_is_named(
    photo: DrawPhoto, fail: str, error: type[ReconError], message: str
) -> None:
    with pytest.raises(error) as caught:
        recon_core.run(photo("a.png"), method="toy-body", fail=fail, fit=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_of_a_part_that_is_not_in_the_run_is_refused() -> None:
    with pytest.raises(UsageError, match="this run has no blazepose"):
        Pipeline(Configuration.read(None, ["run.method=toy-body", "blazepose.threads=2"]))


def test_a_detector_without_settings_of_its_own_needs_no_constructor(toy: ModuleType) -> None:
    assert isinstance(toy.RedDetector().config, Settings)


def test_detections_from_a_file_go_by_the_photo_not_its_pixels(photo: DrawPhoto, toy: ModuleType) -> None:
    """What readers of keypoint files override."""

    class ByName(toy.RedDetector):
        def detect_photo(self, picture: Photo) -> list[Detection]:
            return [Detection((1, 2, 3, float(len(picture.path.stem))), 1.0)]

    pipeline = Pipeline(options={"run": {"method": "toy-image"}})
    pipeline.detector = ByName()
    picture = load_image(photo("abcd.png"))
    assert pipeline.detect(dataclasses.replace(picture))[0].box[3] == 4
