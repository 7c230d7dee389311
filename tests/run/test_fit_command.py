"""`recon fit` on real files: joints in pixels and in space, meshes, scans; what is written, what is refused and how."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from recon_core.cli.fit import _unposed
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.plugins import registry
from recon_core.structures import BodyParameters, Camera

SIZE, FOCAL = (320, 240), 400.0
Y_UP = np.array([1.0, -1.0, -1.0])
# One start and one direction: the people here stand upright and face the camera.
QUICK = ("--set", "smplify.starts=1", "--set", "smplify.headings=1", "--focal-px", FOCAL)
SPACE_FILES = {"result.json", "result.npz", "scene.glb", "person_0.ply", "person_0.obj"}
DATA = Path(os.environ.get("RECON_DATA_DIR", "/work/shared/data"))


@pytest.fixture(scope="module")
def body() -> Any:
    return registry().create("body", "free")


@pytest.fixture(scope="module")
def truth(body: Any) -> BodyParameters:
    """Someone with bent arms, a little turned, 4 m before the camera."""
    stand = _unposed(body, 1)
    turn = torch.zeros(24, 3)
    turn[0, 1], turn[16, 2], turn[17, 2], turn[18, 1] = 0.3, -1.0, 1.1, -0.8
    pose = stand.pose @ axis_angle_to_matrix(turn)
    betas = torch.randn(1, 10, generator=torch.Generator().manual_seed(0))
    return BodyParameters(pose, betas, torch.tensor([[0.1, 0.3, 4.0]]))


@pytest.fixture(scope="module")
def pixels(body: Any, truth: BodyParameters) -> Callable[[str], np.ndarray]:
    """The person's joints of a skeleton: x, y, 1."""

    def of(skeleton: str) -> np.ndarray:
        points = Camera.perspective(FOCAL, SIZE).project(body.keypoints(truth, skeleton))[0]
        return torch.cat([points, torch.ones(len(points), 1)], 1).numpy().astype(float)

    return of


@pytest.fixture(scope="module")
def surface(body: Any, truth: BodyParameters) -> tuple[np.ndarray, np.ndarray]:
    """Vertices, y up, and faces."""
    return body(truth).vertices[0].numpy() * Y_UP, body.faces.numpy()


def openpose(path: Path, *people: np.ndarray) -> Path:
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": person.flatten().tolist()} for person in people]}))
    return path


def coco(path: Path, photo: str, person: np.ndarray) -> Path:
    rows = person.copy()
    rows[:, 2] = 2
    annotation = {"image_id": 1, "category_id": 1, "keypoints": rows.flatten().tolist(), "num_keypoints": 17}
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": photo}], "annotations": [annotation]}))
    return path


def obj(path: Path, vertices: np.ndarray, faces: np.ndarray) -> Path:
    lines = [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in vertices] + [f"f {a} {b} {c}" for a, b, c in faces + 1]
    path.write_text("\n".join(lines) + "\n")
    return path


def ply(path: Path, vertices: np.ndarray, faces: np.ndarray) -> Path:
    """Little-endian binary, as most programs write it."""
    head = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\nproperty float x\nproperty float y\n"
        f"property float z\nelement face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    rows = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    rows["count"], rows["corners"] = 3, faces
    path.write_bytes(head.encode() + vertices.astype("<f4").tobytes() + rows.tobytes())
    return path


def ascii_ply(path: Path, vertices: np.ndarray, faces: np.ndarray) -> Path:
    head = path.with_suffix(".head")
    header = ply(head, vertices, faces).read_bytes().partition(b"end_header\n")
    head.unlink()
    rows = [" ".join(f"{x:.5f}" for x in v) for v in vertices] + [f"3 {a} {b} {c}" for a, b, c in faces]
    text = (header[0] + header[1]).decode().replace("binary_little_endian", "ascii")
    path.write_text(text + "\n".join(rows) + "\n")
    return path


def read_obj(path: Path) -> np.ndarray:
    return np.array([line.split()[1:4] for line in path.read_text().splitlines() if line.startswith("v ")], float)


def fit_of(folder: Path, person: int = 0) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())["people"][person]["fit"]


@pytest.mark.parametrize("layout", ["openpose", "coco"])
def test_joints_and_their_photo(
    recon: Callable[..., Any], tmp_path: Path, pixels: Callable[[str], np.ndarray], layout: str
) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((SIZE[1], SIZE[0], 3), 200, np.uint8)).save(photo)
    file = tmp_path / "joints.json"
    if layout == "openpose":
        openpose(file, pixels("openpose25"))
    else:
        coco(file, "photo.png", pixels("coco17"))
    ran = recon("fit", file, "--photo", photo, "-o", tmp_path / "out", *QUICK)
    assert (ran.code, ran.err) == (0, "")
    folder = tmp_path / "out/joints"
    assert ran.out.startswith(f"{folder}: person 0: converged after ")
    assert {path.name for path in folder.iterdir()} == SPACE_FILES | {"overlay.png", "report.html"}
    fit = fit_of(folder)
    assert fit["reprojection_px"] < 2
    assert set(fit["terms"]) == {"keypoints", "gmm", "joint-limits", "shape"}
    assert fit["energy"] == pytest.approx(sum(fit["terms"].values()), rel=1e-4)
    # The body is painted where the joints are, and nowhere far from them.
    painted = (np.asarray(Image.open(folder / "overlay.png").convert("RGB"), int) - 200).__abs__().max(-1) > 30
    inside = pixels("coco17")[[5, 6, 11, 12], :2].mean(0).astype(int)
    assert painted[inside[1], inside[0]]
    assert not painted[:, : int(pixels("coco17")[:, 0].min()) - 40].any()


def test_the_size_in_place_of_the_photo_and_several_people(
    recon: Callable[..., Any], tmp_path: Path, pixels: Callable[[str], np.ndarray]
) -> None:
    person = pixels("openpose25")
    file = openpose(tmp_path / "two.json", person, person * [0.7, 0.7, 1] + [60, 30, 0])
    ran = recon("fit", file, "--size", "320x240", "-o", tmp_path / "out", *QUICK, "--json")
    assert ran.code == 0
    folder = tmp_path / "out/two"
    assert {path.name for path in folder.iterdir()} == SPACE_FILES | {"person_1.ply", "person_1.obj"}
    shown = json.loads(ran.out)
    assert shown["folder"] == str(folder)
    assert [fit["reason"] for fit in shown["fits"]] == ["converged", "converged"]
    record = json.loads((folder / "result.json").read_text())
    assert record["image_size"] == [320, 240]
    assert record["settings"]["smplify"]["start"] == "mean"
    near, far = (np.array(p["translation"])[2] for p in record["people"])
    assert far == pytest.approx(near / 0.7, rel=0.1)


def test_joints_in_space(recon: Callable[..., Any], tmp_path: Path, body: Any, truth: BodyParameters) -> None:
    points = body.keypoints(truth, "coco17").numpy()
    np.savez(tmp_path / "joints.npz", points=points, confidence=np.ones((1, 17)), skeleton="coco17")
    ran = recon("fit", tmp_path / "joints.npz", "-o", tmp_path / "out", *QUICK[:4])
    assert ran.code == 0
    folder = tmp_path / "out/joints"
    assert {path.name for path in folder.iterdir()} == SPACE_FILES
    assert fit_of(folder)["reprojection_px"] is None
    found = np.load(folder / "result.npz")["joints3d_coco17"]
    assert np.linalg.norm(found[0] - points[0], axis=-1).mean() < 0.03


@pytest.mark.parametrize("write", [obj, ply, ascii_ply])
def test_a_mesh_with_the_bodys_vertices(
    recon: Callable[..., Any], tmp_path: Path, surface: tuple[np.ndarray, np.ndarray], write: Callable[..., Path]
) -> None:
    file = write(tmp_path / f"mesh.{write.__name__[-3:]}", *surface)
    ran = recon("fit", file, "-o", tmp_path / "out", *QUICK[:4])
    assert ran.code == 0
    assert "mesh" in fit_of(tmp_path / "out/mesh")["terms"]
    written = read_obj(tmp_path / "out/mesh/person_0.obj")
    assert np.linalg.norm(written - surface[0], axis=-1).mean() < 0.008


@pytest.mark.parametrize("write", [obj, ply])
def test_a_scan(
    recon: Callable[..., Any], tmp_path: Path, surface: tuple[np.ndarray, np.ndarray], write: Callable[..., Path]
) -> None:
    vertices, faces = surface
    kept = np.sort(np.random.default_rng(0).permutation(len(faces))[: len(faces) // 2])
    used, corners = np.unique(faces[kept], return_inverse=True)
    file = write(tmp_path / f"scan.{write.__name__}", vertices[used], corners.reshape(-1, 3))
    ran = recon("fit", file, "-o", tmp_path / "out", *QUICK[:4], "--set", "smplify.sampling.body=2000")
    assert ran.code == 0
    assert "scan" in fit_of(tmp_path / "out/scan")["terms"]
    gap = torch.cdist(torch.from_numpy(vertices[used]).float(), torch.from_numpy(read_obj(
        tmp_path / "out/scan/person_0.obj")).float()).amin(1)  # fmt: skip
    assert gap.mean() < 0.02


def test_a_registered_loss_joins_the_energy(
    recon: Callable[..., Any], tmp_path: Path, body: Any, truth: BodyParameters
) -> None:
    np.savez(tmp_path / "joints.npz", points=body.keypoints(truth, "coco17").numpy(), skeleton="coco17")
    options = ("-o", tmp_path / "out", *QUICK[:4])
    loss = ("--set", "smplify.losses.keypoints3d={weight = 10, penalty = 'l2'}", "--set", "smplify.losses.vertices=1")
    ran = recon("fit", tmp_path / "joints.npz", *options, *loss)
    assert "loss 'vertices' compares with 'vertices', which the evidence does not hold" in ran.line
    assert recon("fit", tmp_path / "joints.npz", *options, *loss[:2]).code == 0
    fit = fit_of(tmp_path / "out/joints")
    assert fit["terms"]["loss.keypoints3d"] > 0
    assert fit["energy"] == pytest.approx(sum(fit["terms"].values()), rel=1e-4)
    ran = recon("fit", tmp_path / "joints.npz", *options, "--set", "smplify.losses.iou=1")
    assert "smplify.losses.iou: smplify steps by residuals, which this loss does not give" in ran.line


def test_adam(recon: Callable[..., Any], tmp_path: Path, pixels: Callable[[str], np.ndarray]) -> None:
    file = openpose(tmp_path / "people.json", pixels("openpose25"))
    settings = ("--set", "adam.skinned=false", "--set", "adam.steps=20", "--set", "adam.camera_steps=10")
    ran = recon("fit", file, "--size", "320x240", "-o", tmp_path / "out", "--fitter", "adam", *settings)
    assert ran.code == 0
    fit = fit_of(tmp_path / "out/people")
    assert fit["energy"] < fit["initial_energy"]
    assert (fit["reason"], fit["iterations"]) == ("iteration limit", 20)


def test_a_methods_prior_leaves_the_shape_its_own(
    recon: Callable[..., Any], tmp_path: Path, pixels: Callable[[str], np.ndarray]
) -> None:
    pytest.importorskip("recon_prohmr", reason="the plugin that brings the prior is not installed")
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((SIZE[1], SIZE[0], 3), 200, np.uint8)).save(photo)
    file = openpose(tmp_path / "people.json", pixels("openpose25"))
    ran = recon("fit", file, "--photo", photo, "--prior", "prohmr", "--focal-px", FOCAL, "-o", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    record = json.loads((tmp_path / "out/people/result.json").read_text())
    assert record["settings"]["fit"]["priors"] == ["prohmr", "shape"]
    assert set(record["people"][0]["fit"]["terms"]) == {"keypoints", "prohmr", "shape", "anchor"}
    assert np.abs(record["people"][0]["betas"]).max() < 3
    assert record["people"][0]["fit"]["reprojection_px"] < 8


def test_a_named_prior_replaces_those_over_the_same_part(
    recon: Callable[..., Any], tmp_path: Path, pixels: Callable[[str], np.ndarray]
) -> None:
    file = openpose(tmp_path / "people.json", pixels("openpose25"))
    size = ("--size", "320x240", *QUICK)
    assert recon("fit", file, *size, "-o", tmp_path / "pose", "--prior", "gmm").code == 0
    assert set(fit_of(tmp_path / "pose/people")["terms"]) == {"keypoints", "gmm", "shape"}
    assert recon("fit", file, *size, "-o", tmp_path / "shape", "--prior", "shape").code == 0
    assert set(fit_of(tmp_path / "shape/people")["terms"]) == {"keypoints", "gmm", "joint-limits", "shape"}


def test_a_sport_photo_and_its_labels(recon: Callable[..., Any], tmp_path: Path) -> None:
    folder = DATA / "lsp_ext"
    if not (folder / "index.json").is_file():
        pytest.skip(f"no labelled photos in {folder}")
    from recon_core.structures import Keypoints

    items = json.loads((folder / "index.json").read_text())["items"]
    item = next(i for i in items if i["id"] == "im06905")
    joints = torch.tensor(item["joints"], dtype=torch.float32)[None]
    labels = Keypoints(joints[..., :2], torch.ones(1, 14), "lsp14").converted("openpose25")
    rows = torch.cat([labels.points, labels.confidence[..., None]], -1)[0].numpy().astype(float)
    file = openpose(tmp_path / "jump.json", rows)
    ran = recon("fit", file, "--photo", folder / "images/im06905.jpg", "-o", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    assert fit_of(tmp_path / "out/jump")["reprojection_px"] < 7


EMPTY_PLY = (
    "ply\nformat ascii 1.0\nelement vertex 0\n" + "".join(f"property float {a}\n" for a in "xyz") + "end_header\n"
)
UNSEEN = json.dumps({"people": [{"pose_keypoints_2d": [0.0] * 75}]})
THREE = json.dumps({"people": [{"pose_keypoints_2d": [50.0, 60.0, 1.0] * 3 + [0.0] * 66}]})
SIZED = ("--size", "320x240")


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("people.json", "{}", (), "give --photo FILE or --size WIDTHxHEIGHT"),
        ("people.json", "{", SIZED, "people.json: not a JSON file (line 1"),
        ("people.json", '{"persons": []}', SIZED, "people.json: not in COCO's layout"),
        ("people.json", UNSEEN, SIZED, "nobody in it has a joint of confidence above 0"),
        ("people.json", THREE, SIZED, "only 3 joints seen, a body needs at least 4"),
        ("people.json", THREE, ("--size", "320"), "--size 320: write it as width x height"),
        ("people.json", THREE, ("--photo", "gone.jpg"), "gone.jpg: no such file"),
        ("people.json", THREE, (*SIZED, "--prior", "gnm"), "--prior: unknown prior 'gnm'; did you mean 'gmm'?"),
        ("people.json", THREE, (*SIZED, "--fitter", "adams"), "unknown fitter 'adams'; did you mean 'adam'?"),
        ("people.json", THREE, (*SIZED, "--body", "fre"), "unknown body 'fre'; did you mean 'free'?"),
        ("people.json", THREE, (*SIZED, "--as", "scan"), "--as scan: "),
        ("people.json", THREE, (*SIZED, "--focal-px", "-3"), "--focal-px -3: give the focal length in pixels"),
        ("people.json", THREE, (*SIZED, "--set", "smplify.anker=1"), "unknown setting 'anker'; did you mean 'anchor'?"),
        ("joints.npz", "no zip", (), "joints.npz: not an .npz file of plain arrays"),
        ("mesh.ply", "ply\nformat ascii 1.0\nelement vertex 3\n", (), "mesh.ply: not a readable .ply file"),
        ("mesh.ply", EMPTY_PLY, (), "scan: it has no points"),
        ("mesh.ply", EMPTY_PLY, ("--as", "mesh"), "mesh has 0 vertices, body free has"),
        ("mesh.obj", "v 0 0 0\nv 0 0 1\nf 1 2 3\n", (), "a face names a vertex that is not there"),
        ("mesh.obj", "v 0 0 zero\n", (), "mesh.obj: not a readable .obj file"),
        ("mesh.stl", "solid", (), "give .json, .npz, .ply or .obj"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_named_in_one_line(
    recon: Callable[..., Any], tmp_path: Path, name: str, content: str, options: tuple[str, ...], message: str
) -> None:
    (tmp_path / name).write_text(content)
    ran = recon("fit", tmp_path / name, "-o", tmp_path / "out", *options)
    assert ran.code in (1, 2)
    assert message in ran.line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"skeleton": "coco17"}, "has no array 'points'"),
        ({"points": np.zeros((17, 3)), "skeleton": "coco"}, "unknown skeleton 'coco'"),
        ({"points": np.zeros((16, 3)), "skeleton": "coco17"}, "skeleton coco17 needs points (people, 17, 3)"),
        ({"points": np.full((17, 3), np.nan), "skeleton": "coco17"}, "nose is not a number"),
        ({"points": np.zeros((17, 3)), "confidence": np.zeros(17), "skeleton": "coco17"}, "no joint has a confidence"),
        ({"points": np.array([object()]), "skeleton": "coco17"}, "not an .npz file of plain arrays"),
    ],
)
def test_bad_joints_in_space(recon: Callable[..., Any], tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "joints.npz", **arrays)
    ran = recon("fit", tmp_path / "joints.npz", "-o", tmp_path / "out")
    assert ran.code == 1
    assert message in ran.line
    assert not (tmp_path / "out").exists()


def test_a_prior_read_from_joints_needs_them(
    recon: Callable[..., Any], tmp_path: Path, surface: tuple[np.ndarray, np.ndarray]
) -> None:
    pytest.importorskip("recon_prohmr", reason="the plugin that brings the prior is not installed")
    ran = recon("fit", obj(tmp_path / "mesh.obj", *surface), "--prior", "prohmr", "-o", tmp_path / "out")
    assert ran.code == 2
    assert "--prior prohmr: its context is read from the keypoints, which this run does not provide" in ran.line


def test_a_result_is_not_written_over_unless_asked(
    recon: Callable[..., Any], tmp_path: Path, pixels: Callable[[str], np.ndarray]
) -> None:
    file = openpose(tmp_path / "people.json", pixels("openpose25"))
    options = (*SIZED, "-o", tmp_path / "out", *QUICK)
    assert recon("fit", file, *options).code == 0
    before = (tmp_path / "out/people/result.json").stat().st_mtime_ns
    assert "--overwrite" in recon("fit", file, *options).line
    assert (tmp_path / "out/people/result.json").stat().st_mtime_ns == before
    assert recon("fit", file, *options, "--overwrite").code == 0
    assert (tmp_path / "out/people/result.json").stat().st_mtime_ns > before
