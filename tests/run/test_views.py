"""`recon run --views`: several photos of one person, one body for all of them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from recon_core.errors import EvidenceError, UsageError
from recon_core.export.json_npz import ResultRecord
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.metrics import pa_mpjpe
from recon_core.rendering import directional_light
from recon_core.structures import BodyParameters, Camera, FitResult, Mesh

DrawPhoto = Callable[..., Path]
TOY = ("--method", "toy-body", "--views")
NOBODY = (0, 0, 0, 0)
SIZE, FOCAL = (320, 420), 520.0


def record(folder: Path) -> ResultRecord:
    return ResultRecord.model_validate_json((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], torch.Tensor]:
    """Three photos of one clothed body, walking with an arm raised, from ahead, from its side and half from behind;
    and its lsp14 joints, metres."""
    from recon_std.bodies import load_body
    from recon_std.renderers.warp import WarpRenderer
    from recon_std.synthetic.clothing import Wardrobe

    folder = tmp_path_factory.mktemp("views")
    body, renderer = load_body("free"), WarpRenderer()
    turns = torch.zeros(3, 24, 3)
    for joint, turn in {1: (-0.5, 0, 0), 2: (0.4, 0, 0), 5: (0.5, 0, 0), 16: (0, 0.3, -1.2), 17: (0, 0, 0.5)}.items():
        turns[:, joint] = torch.tensor(turn)
    turns[:, 19] = torch.tensor([0.0, 0.9, 0.0])
    pose = axis_angle_to_matrix(turns)
    upright, yaw = torch.zeros(3, 3), torch.zeros(3, 3)
    upright[:, 0], yaw[:, 1] = torch.pi + 0.1, torch.tensor([0.3, 1.6, -2.4])
    pose[:, 0] = axis_angle_to_matrix(upright) @ axis_angle_to_matrix(yaw)
    betas = torch.zeros(3, body.shape_count)
    place = torch.tensor([[0.0, 0.0, 3.2]]).expand(3, 3) - body.rest_joints(betas)[:, 0]
    truth = BodyParameters(pose, betas, place)
    texture = Wardrobe(body, renderer, 128).dress(1, torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    light = directional_light(torch.tensor([[0.3, -0.6, -0.7]]).expand(3, 3), ambient=0.5, diffuse=0.6)
    mesh = Mesh(body(truth).vertices, body.faces, body.uv, body.uv_faces, texture)
    drawn = renderer.render(mesh, Camera.perspective(FOCAL, SIZE, batch=3), light, 0.8, antialias=True).image
    paths = [folder / f"{name}.png" for name in ("ahead", "side", "behind")]
    for path, picture in zip(paths, drawn, strict=True):
        Image.fromarray((picture.permute(1, 2, 0).clamp(0, 1) * 255).byte().numpy()).save(path)
    return paths, body.keypoints(truth, "lsp14")


def test_three_views_of_a_rendered_person(
    rendered: tuple[list[Path], torch.Tensor], recon: Callable[..., Any], tmp_path: Path
) -> None:
    paths, truth = rendered
    command = ("run", "--method", "prohmr", "--views", *paths, "--focal-px", FOCAL, "-o", tmp_path / "out")
    ran = recon(*command)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("3 done (")
    folders = [tmp_path / "out" / path.stem for path in paths]
    records = [record(folder) for folder in folders]
    people = [r.people[0] for r in records]
    assert all(len(r.people) == 1 for r in records)
    assert all([view.image for view in r.views] == [path.name for path in paths] for r in records)
    # One body, seen from three sides.
    assert people[0].pose[1:] == people[1].pose[1:] == people[2].pose[1:]
    assert people[0].betas == people[1].betas == people[2].betas
    roots = axis_angle_to_matrix(torch.tensor([person.pose[0] for person in people]))
    between = roots[:1].mT @ roots[1:]
    angles = torch.rad2deg(torch.arccos((between.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2))
    # What the cameras differ by: 1.3 radians, and 2.7.
    torch.testing.assert_close(angles, torch.rad2deg(torch.tensor([1.3, 2.7])), atol=15, rtol=0)
    joints = torch.tensor([list(person.joints3d["lsp14"].values()) for person in people])
    together = pa_mpjpe(joints, truth)
    assert together.max() < 60
    for folder, person in zip(folders, people, strict=True):
        assert person.fit is not None
        assert person.fit.reprojection_px < 8
        photo = np.asarray(Image.open(folder.parent.parent.joinpath(paths[0].parent, f"{folder.name}.png")))
        overlay = np.asarray(Image.open(folder / "overlay.png").convert("RGB"))
        changed = np.abs(overlay.astype(int) - photo).max(2) > 25
        clothed = np.abs(photo.astype(int) - 204).max(2) > 25
        assert (changed & clothed).sum() > 0.75 * clothed.sum()

    # Finished views are left alone; where one is missing all are made again, alike.
    ran = recon(*command)
    assert ran.out.startswith("0 done, 3 skipped")
    (folders[1] / "result.json").unlink()
    for left in folders[1].iterdir():
        left.unlink()
    ran = recon(*command)
    assert (ran.code, ran.out[:6]) == (0, "3 done")
    assert record(folders[1]).people == records[1].people
    ran = recon("run", "--method", "prohmr", "--views", *paths[:2], "-o", tmp_path / "out")
    assert ran.code == 1
    assert "ahead: holds a result of other photos; choose another folder with -o, or --overwrite" in ran.line


def test_what_cannot_be_joined_is_said_in_one_line(photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    good, two = photo("a.png"), photo("two.png", (20, 20, 30, 80), (90, 20, 30, 80))
    nobody, broken = photo("nobody.png", NOBODY), tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    out = ("-o", tmp_path / "out")
    for inputs, code, line in (
        ([good], 2, "--views: joins two photos or more of one person, and .*a.png is one"),
        ([good, nobody], 3, "nobody.png: no person found"),
        ([good, two], 1, "two.png: 2 people found, and --views needs one alone; crop the photo to the person"),
        ([good, broken], 1, "broken.jpg: not a picture"),
        ([good, tmp_path / "none.jpg"], 1, "none.jpg: no such file"),
    ):
        ran = recon("run", *TOY, *inputs, *out)
        assert ran.code == code
        assert re.search(line, ran.line)
    other = photo("b.png", (60, 20, 30, 70))
    assert "drop --no-fit" in recon("run", *TOY, good, other, *out, "--no-fit").line
    assert (
        "method 'toy-mesh' has none, so name one with"
        in recon("run", "--method", "toy-mesh", *TOY[2:], good, other).line
    )
    assert not (tmp_path / "out").exists()


def test_too_few_joints_name_their_photo(photo: DrawPhoto, recon: Callable[..., Any], tmp_path: Path) -> None:
    files = [photo("a.png"), photo("b.png")]
    joints = [[60.0, 20 + 3 * j, 2] for j in range(17)]
    poor = [[60.0, 20.0, 2 if j < 2 else 0] for j in range(17)]
    rows = [{"image_id": i, "keypoints": [n for joint in j for n in joint]} for i, j in enumerate((joints, poor))]
    content = {
        "images": [{"id": i, "file_name": path.name} for i, path in enumerate(files)],
        "annotations": rows,
    }
    (tmp_path / "joints.json").write_text(json.dumps(content))
    ran = recon("run", "--views", *files, "--keypoints", tmp_path / "joints.json", "-o", tmp_path / "out")
    assert ran.code == EvidenceError.exit_code
    assert "b.png: " in ran.line
    assert "usable joints" in ran.line


def test_from_python(photo: DrawPhoto, toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import recon_core

    files = [photo("a.png"), photo("b.png", (60, 20, 30, 70))]
    first, second = recon_core.run(files, method="toy-body", views=True)
    assert [name for name, _ in first.views] == ["a.png", "b.png"]
    torch.testing.assert_close(first.people[0].body.betas, second.people[0].body.betas, atol=0, rtol=0)
    with pytest.raises(UsageError, match="joins two photos or more"):
        recon_core.run(files[0], method="toy-body", views=True)
    fit = toy.ToyFitter.fit

    def alone(*given: Any) -> FitResult:
        result = fit(*given)
        apart = torch.arange(len(result.body.betas))[:, None] * 0.1
        return dataclasses.replace(result, body=dataclasses.replace(result.body, betas=result.body.betas + apart))

    monkeypatch.setattr(toy.ToyFitter, "fit", alone)
    with pytest.raises(UsageError, match="the fitter 'toy-fit' fits each photo by itself"):
        recon_core.run(files, method="toy-body", views=True)
