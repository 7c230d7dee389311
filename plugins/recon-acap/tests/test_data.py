"""People for training: groups, seeds, meshes; with motion capture made up here."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from recon_acap.data import (
    PeopleConfig,
    load_people,
    main,
    make_people,
    make_template,
    nearby_parts,
    neutral_meshes,
    posed_meshes,
    save_people,
)
from recon_core.errors import TrainingError, UsageError
from recon_core.geometry.primitives import icosphere
from recon_core.skeletons import SMPL24
from recon_std.bodies import load_body


@pytest.fixture(scope="module")
def mocap(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mocap")
    random = np.random.default_rng(0)
    for split, frames in (("train", 60), ("val", 20)):
        np.savez(
            folder / f"poses_{split}.npz",
            poses=(0.3 * random.standard_normal((frames, 24, 3))).astype(np.float16),
            clip=np.arange(frames, dtype=np.int16) // 10,
            frame=np.arange(frames, dtype=np.int16),
            flags=np.zeros(frames, np.uint8),
            clip_names=np.array([f"cmu_0{i}_01" for i in range(frames // 10)]),
            source=np.zeros(frames // 10, np.int8),
            source_names=np.array(["cmu"]),
            clip_knee_p3=np.full(frames // 10, 4, np.float16),
            joint_names=np.array(SMPL24.joints),
        )
    return folder


def test_people_come_in_groups_of_two_in_the_same_two_poses(mocap):
    people = make_people(PeopleConfig(meshes=40, held_out=8), mocap)["train"]
    betas, pose = people.betas.view(10, 2, 2, -1), people.pose.view(10, 2, 2, -1)
    assert torch.equal(betas[:, :, 0], betas[:, :, 1])
    assert torch.equal(pose[:, 0], pose[:, 1])
    assert len(people.betas.unique(dim=0)) == 20
    assert not people.pose[:, 0].any(), "the root is upright"


def test_the_seed_decides_and_held_out_people_are_others(mocap, tmp_path):
    config = PeopleConfig(meshes=40, held_out=8)
    one, again = make_people(config, mocap), make_people(config, mocap)
    other = make_people(PeopleConfig(meshes=40, held_out=8, seed=1), mocap)
    assert torch.equal(one["train"].betas, again["train"].betas)
    assert torch.equal(one["test"].pose, again["test"].pose)
    assert not torch.equal(one["train"].betas, other["train"].betas)
    assert not torch.isin(one["test"].betas, one["train"].betas).any()
    save_people(one, tmp_path)
    assert torch.equal(load_people(tmp_path)["test"].pose, one["test"].pose)


def test_wide_shapes_are_wide(mocap):
    betas = make_people(PeopleConfig(meshes=4000, held_out=4), mocap)["train"].betas
    assert 1.3 < float(betas.std()) < 1.45, "0.6 of variance 1, 0.4 of variance 1.8^2"


@pytest.mark.parametrize("meshes", [0, -4, 6])
def test_counts_that_make_no_groups_are_refused(mocap, meshes):
    with pytest.raises(UsageError, match=f"--meshes {meshes}: give a positive multiple of 4"):
        make_people(PeopleConfig(meshes=meshes), mocap)


def test_a_file_that_is_no_people_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"people\.npz: no such file"):
        load_people(tmp_path)
    (tmp_path / "people.npz").write_bytes(b"PK but no archive")
    with pytest.raises(TrainingError, match=r"people\.npz: not people"):
        load_people(tmp_path)


def test_the_command(mocap, tmp_path, monkeypatch, capsys):
    command = [sys.executable, "-m", "recon_acap.data", "--output", str(tmp_path / "a"), "--mocap", str(mocap)]
    done = subprocess.run([*command, "--meshes", "24"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "24 posed meshes of 12 people, 160 held out" in done.stdout
    monkeypatch.setattr(sys, "argv", [*command[2:], "--meshes", "3"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.startswith("error: --meshes 3")


def test_meshes_are_the_bodys_skin_posed_and_neutral():
    body = load_body("free")
    template = make_template(body, 1150)
    betas = torch.randn(2, body.shape_count)
    neutral = neutral_meshes(body, template, betas)
    assert torch.allclose(posed_meshes(body, template, betas, torch.zeros(2, 24, 3)), neutral, atol=1e-5)
    assert torch.equal(template.reference, body.template[template.source])
    full = make_template(body)
    assert len(full.reference) == 6910, "all but the eyeballs"


def test_nearby_parts_adjoin_and_are_near():
    points, faces = icosphere(3)
    height = points[:, 1]
    part = (height > -0.3).long() + (height > 0.3).long()
    mask = nearby_parts(points, faces, part, 4, within=0.4)
    assert bool(mask[part, torch.arange(len(part))].all())
    assert not mask[3].any(), "no vertex has this part"
    assert not mask[2, height < -0.3].any(), "beyond the part between"
    assert bool(mask[0, (height > -0.3) & (height < -0.15)].all())
    assert not mask[0, height > 0.3].any()
