"""Measures of reconstruction and disentanglement, on bodies for which they are known."""

import math

import pytest
import torch

from recon_acap.data import make_template, neutral_meshes, posed_meshes
from recon_acap.evaluation import bone_lengths, disentanglement, mean_vertex_distance, part_rotations
from recon_acap.features import AcapCodec
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.skeletons import SMPL24
from recon_std.bodies import load_body


@pytest.fixture(scope="module")
def body():
    return load_body("free", torch.float64)


@pytest.fixture(scope="module")
def template(body):
    return make_template(body, 1150)


@pytest.fixture(scope="module")
def codec(template):
    return AcapCodec(template.reference, template.faces)


def test_a_moved_mesh_is_at_no_distance_and_a_larger_one_is_at_its_growth():
    points = torch.randn(2, 50, 3, dtype=torch.float64)
    turn = axis_angle_to_matrix(torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64))
    assert float(mean_vertex_distance(points @ turn.T + 3, points).max()) < 1e-9
    centred = points - points.mean(1, keepdim=True)
    grown = mean_vertex_distance(1.01 * points, points)
    assert torch.allclose(grown, 0.01 * centred.norm(dim=-1).mean(-1))


def test_parts_turn_as_the_joints_do(body, template, codec):
    pose = torch.zeros(1, 24, 3, dtype=torch.float64)
    pose[0, SMPL24.index("left_shoulder")] = torch.tensor([0.2, -0.3, 0.6])
    vertices = posed_meshes(body, template, torch.zeros(1, body.shape_count, dtype=torch.float64), pose)
    turns = part_rotations(codec, vertices, template.part)[0]
    given = axis_angle_to_matrix(pose[0, SMPL24.index("left_shoulder")])
    forearm, right = turns[6], turns[7]
    assert torch.allclose(forearm, given, atol=0.02)
    assert torch.allclose(right, torch.eye(3, dtype=torch.float64), atol=1e-6)


def test_bones_of_a_larger_body_are_longer_in_proportion(template):
    lengths = bone_lengths(template.reference[None], template.faces, template.part)
    assert lengths.shape == (1, 8)
    assert torch.allclose(lengths[:, :4], lengths[:, 4:], atol=2e-3), "left as right"
    assert bool(((lengths > 0.2) & (lengths < 0.55)).all())
    larger = bone_lengths(1.1 * template.reference[None], template.faces, template.part)
    assert torch.allclose(larger, 1.1 * lengths)


def test_disentanglement_of_the_same_shape_and_the_same_pose_is_perfect(body, template, codec):
    one = neutral_meshes(body, template, torch.zeros(1, body.shape_count, dtype=torch.float64))
    perfect = disentanglement(codec, template.part, one[:, None].expand(1, 4, -1, -1))
    assert float(perfect.turned.max()) < 1e-4
    assert float(perfect.stretched.max()) == 0
    grown = torch.stack([one, 1.05 * one, one, 1.05 * one], 1)
    assert torch.allclose(disentanglement(codec, template.part, grown).stretched, torch.tensor(0.05).double())
    turn = axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.radians(7)], dtype=torch.float64))
    turned = torch.stack([one, one, one @ turn.T, one @ turn.T], 1)
    assert torch.allclose(disentanglement(codec, template.part, turned).turned, torch.tensor(7.0).double())
    beyond = disentanglement(codec, template.part, turned, turned)
    assert float(beyond.turned.max()) < 1e-4
    assert float(disentanglement(codec, template.part, turned, grown).stretched.max()) == pytest.approx(1 - 1 / 1.05)
