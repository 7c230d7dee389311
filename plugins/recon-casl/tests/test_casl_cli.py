"""CASL by its commands: trained on a few blobs, used on photos, and what it says to bad input."""

import importlib
import json

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recon_core.geometry.primitives import icosphere

frame = importlib.import_module("recon_core.cli.main")
SMALL = ["--set", "casl.width=8", "--set", "casl.texture_size=16", "--set", "casl.refine=2"]


@pytest.fixture
def recon(capsys):
    """recon("run", ...) -> (exit code, what stderr says), in this process."""

    def call(*arguments):
        code = frame.main([str(a) for a in arguments])
        return code, capsys.readouterr().err.strip()

    return call


@pytest.fixture(scope="module")
def trained(blobs, tmp_path_factory):
    """Settings that name the weights of a short training."""
    out = tmp_path_factory.mktemp("casl") / "run"
    call = ["train", "--method", "casl", "--data", f"masks:{blobs}", "--output", str(out), *SMALL]
    call += ["--steps", "6", "--batch-size", "4", "--workers", "0", "--set", "masks.crop_size=64"]
    call += ["--set", "run.log_every=2", "--set", "run.pictures_every=4", "--set", "casl.hypotheses=[4,1]"]
    assert frame.main(call) == 0
    assert (out / "pictures").is_dir()
    assert "camera/view" in (out / "log.csv").read_text().splitlines()[0]
    return [*SMALL, "--set", f"casl.weights={out / 'weights.safetensors'}"]


@pytest.fixture(scope="module")
def varied(trained, tmp_path_factory):
    """Settings that name weights whose output layers are not at rest, so that two photos differ clearly."""
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    generator = torch.Generator().manual_seed(0)
    weights = load_file(trained[-1].partition("weights=")[2])
    save_file({k: v + 0.05 * torch.randn(v.shape, generator=generator) for k, v in weights.items()}, file)
    return [*SMALL, "--set", f"casl.weights={file}"]


def result(folder):
    arrays = np.load(folder / "result.npz")
    return arrays, json.loads((folder / "result.json").read_text())["objects"]


def photo(blobs, name):
    return blobs / "images" / f"{name}.png"


# -- use


def test_a_photo_and_its_mask_become_a_textured_mesh(recon, trained, blobs, tmp_path):
    call = ["run", "--method", "casl", *trained, "--mask", blobs / "masks", "-o", tmp_path, photo(blobs, 0)]
    assert recon(*call)[0] == 0
    assert (tmp_path / "0" / "scene.glb").read_bytes()[:4] == b"glTF"
    _, (found,) = result(tmp_path / "0")
    camera = {"distance", "azimuth_degrees", "elevation_degrees", "offset"}
    assert set(found["extra"]) == {"light", "mask_iou_before", "mask_iou"} | camera
    inside = iio.imread(blobs / "masks" / "0.png") > 127
    rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
    x, y, w, h = found["box"]
    assert (x, y, x + w, y + h) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@pytest.mark.parametrize("taken", ["texture", "shape"])
def test_clothing_is_exchanged(recon, varied, blobs, tmp_path, taken):
    """The mesh has what was asked for of the other photo, and the rest of its own."""
    call = ["run", "--method", "casl", *varied, "--mask", blobs / "masks"]
    assert recon(*call, "-o", tmp_path / "alone", photo(blobs, 0), photo(blobs, 1))[0] == 0
    assert recon(*call, f"--{taken}-from", photo(blobs, 1), "-o", tmp_path / "both", photo(blobs, 0))[0] == 0
    own, other, mixed = (read_mesh(tmp_path / name) for name in ("alone/0", "alone/1", "both/0"))
    for name in ("shape", "texture"):
        expected = other if name == taken else own
        np.testing.assert_allclose(mixed[name], expected[name], atol=1e-4, err_msg=name)
        assert not np.allclose(own[name], other[name], atol=1e-3)


def read_mesh(folder):
    """Distances between some vertices, which do not depend on the place, and the texture."""
    arrays, _ = result(folder)
    vertices = torch.from_numpy(arrays["object_0_vertices"])
    return {"shape": torch.pdist(vertices[:60].double()).numpy(), "texture": arrays["object_0_texture"]}


def test_refining_agrees_better_with_the_mask(recon, trained, blobs, tmp_path):
    call = ["run", "--method", "casl", *trained, "--mask", blobs / "masks", "--refine", "12", "-o", tmp_path]
    assert recon(*call, photo(blobs, 2))[0] == 0
    (found,) = result(tmp_path / "2")[1]
    assert found["extra"]["mask_iou"] > found["extra"]["mask_iou_before"] + 0.02


# -- bad input


def picture(path, values):
    path.parent.mkdir(exist_ok=True)
    iio.imwrite(path, np.broadcast_to(np.asarray(values, np.uint8)[..., None], (*np.shape(values), 3)))
    return path


SQUARE = np.pad(np.full((40, 30), 255), 20)
BAD = {
    "another size": (SQUARE, SQUARE[:-1], r"mask.png: the mask has 70x79 pixels, its photo 70x80"),
    "empty": (SQUARE, SQUARE * 0, r"mask.png: the mask is empty"),
    "full": (SQUARE, SQUARE * 0 + 255, r"mask.png: the mask is full"),
    "black": (SQUARE * 0, SQUARE, "photo is black within the mask"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_mask_that_shows_nothing_is_one_line(recon, trained, tmp_path, fault):
    values, mask, message = BAD[fault]
    given, of = picture(tmp_path / "photo.png", values), picture(tmp_path / "mask.png", mask)
    code, said = recon("run", "--method", "casl", *trained, "--mask", of, "-o", tmp_path / "out", given)
    assert (code, len(said.splitlines())) == (1, 1)
    assert message in said
    assert not (tmp_path / "out").exists()


def test_without_a_mask_nobody_is_found_in_a_black_photo(recon, trained, tmp_path):
    black = picture(tmp_path / "black.png", SQUARE * 0)
    code, said = recon("run", "--method", "casl", *trained, "-o", tmp_path / "out", black)
    assert code == 3
    assert "black.png: no person found" in said


def test_a_detector_without_masks_is_named(recon, trained, blobs, tmp_path):
    joints = tmp_path / "joints.json"
    triples = np.concatenate([np.random.default_rng(0).uniform(20, 60, (25, 2)), np.ones((25, 1))], 1)
    joints.write_text(json.dumps({"people": [{"pose_keypoints_2d": triples.flatten().tolist()}]}))
    call = ["run", "--method", "casl", *trained, "--keypoints", joints, "-o", tmp_path / "out"]
    code, said = recon(*call, photo(blobs, 0))
    assert code == 2
    assert "reads the mask of each subject" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--texture-from", "nowhere.jpg", "--mask", "masks"], "nowhere.jpg: no such file"),
        (["--texture-from", "a.jpg", "--shape-from", "b.jpg"], "texture_from and shape_from: one of them"),
        (["--texture-from", "a.jpg", "--mask", "masks/0.png"], "is the mask of one photo"),
        (["--mask", "masks", "--box", "1,2,3,4"], "drop it, or --box"),
        (["--mask", "nowhere.png"], "nowhere.png: no such file"),
        (["--refine", "-1"], "--refine"),
    ],
)
def test_options_that_do_not_fit_are_one_line(recon, trained, blobs, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(blobs)
    code, said = recon("run", "--method", "casl", *trained, *options, "-o", tmp_path / "out", "images/0.png")
    assert code in (1, 2)
    assert message in said.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_method_that_exchanges_nothing_says_so(recon, blobs, tmp_path):
    code, said = recon("run", "--method", "prohmr", "--texture-from", "a.jpg", "-o", tmp_path / "o", photo(blobs, 0))
    assert (code, said) == (2, "recon: error: --texture-from: method 'prohmr' has no setting 'texture_from'")


def test_the_mask_of_the_other_photo_is_looked_for(recon, trained, blobs, tmp_path):
    other = picture(tmp_path / "other.png", SQUARE)
    call = ["run", "--method", "casl", *trained, "--mask", blobs / "masks", "--texture-from", other]
    code, said = recon(*call, "-o", tmp_path / "out", photo(blobs, 0))
    assert code == 1
    assert said.endswith(f"has no mask other.png for {other}")


@pytest.mark.parametrize("count", [0, 1])
def test_a_training_needs_two_pairs(recon, tmp_path, count):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for name in range(count):
            picture(tmp_path / kind / f"{name}.png", SQUARE)
    code, said = recon("train", "--method", "casl", "--data", f"masks:{tmp_path}", "--output", tmp_path / "run")
    assert code == 1
    assert f"{count} pairs of images/NAME.jpg and masks/NAME.png" in said.splitlines()[-1]


def test_crops_of_another_size_than_the_encoders_are_refused(recon, blobs, tmp_path):
    code, said = recon("train", "--method", "casl", "--data", f"masks:{blobs}", "--output", tmp_path / "run", *SMALL)
    assert code == 1
    assert "casl reads pictures of 64 pixels a side, the data give 256" in said.splitlines()[-1]


def test_an_open_template_is_named(recon, blobs, tmp_path):
    vertices, faces = icosphere(1)
    file = tmp_path / "open.obj"
    text = [f"v {x} {y} {z}" for x, y, z in vertices.tolist()] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces[1:]]
    file.write_text("\n".join(text))
    call = ["train", "--method", "casl", "--data", f"masks:{blobs}", "--output", tmp_path / "run", *SMALL]
    code, said = recon(*call, "--set", f"casl.template={file}", "--set", "masks.crop_size=64")
    assert code == 2
    assert f"casl.template {file}: 3 edges are not shared by exactly two faces" in said


def test_training_takes_any_closed_template(recon, blobs, tmp_path):
    vertices, faces = icosphere(2)
    file = tmp_path / "closed.obj"
    text = [f"v {2 * x} {y} {z + 5}" for x, y, z in vertices.tolist()]
    file.write_text("\n".join(text + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces]))
    call = ["train", "--method", "casl", "--data", f"masks:{blobs}", "--output", tmp_path / "run", *SMALL]
    call += ["--set", f"casl.template={file}", "--set", "masks.crop_size=64", "--steps", "1", "--workers", "0"]
    assert recon(*call, "--batch-size", "4")[0] == 0
    call = ["run", "--method", "casl", "--set", f"casl.weights={tmp_path / 'run' / 'weights.safetensors'}", *SMALL]
    call += ["--set", f"casl.template={file}", "--mask", blobs / "masks", "-o", tmp_path / "out"]
    assert recon(*call, photo(blobs, 0))[0] == 0
    assert len(result(tmp_path / "out" / "0")[0]["object_0_vertices"]) == len(vertices)
