"""The keypoint encoder and its view: exact under rotation of the camera, indifferent to what is missing."""

import math

import pytest
import torch

from recon_core.errors import EvidenceError
from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_core.skeletons import skeleton
from recon_core.structures import Camera, Keypoints, Observation
from recon_std.encoders.keypoints import JOINTS, KeypointEncoder, joint_rows, keypoint_view, look_at


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return KeypointEncoder(16, 32, 2).eval()


def camera(count: int, focal: float = 800.0) -> Camera:
    return Camera.perspective(focal, (1000, 800), batch=count)


def seen(count: int = 3, name: str = "blazepose33") -> Observation:
    points = 400 + 100 * torch.randn(count, len(skeleton(name)), 2, generator=torch.Generator().manual_seed(1))
    return Observation(camera(count), keypoints=Keypoints(points, torch.ones(points.shape[:2]), name))


@pytest.mark.parametrize("name", ["blazepose33", "coco17", "openpose25", "lsp14"])
def test_every_detector_fills_enough(name, encoder):
    rows, columns = joint_rows(name)
    assert [JOINTS[r] for r in rows] == [skeleton(name).joints[c] for c in columns]
    assert len(rows) >= 13
    assert encoder(seen(2, name)).global_.shape == (2, 16)


def test_look_at_turns_the_direction_onto_the_axis():
    towards = torch.randn(5, 2, dtype=torch.float64)
    R = look_at(towards)
    d = torch.nn.functional.normalize(torch.nn.functional.pad(towards, (0, 1), value=1.0), dim=-1)
    turned = (R @ d[..., None])[..., 0]
    torch.testing.assert_close(turned, torch.tensor([0, 0, 1.0]).double().expand(5, 3), atol=1e-12, rtol=0)
    torch.testing.assert_close(R @ R.mT, torch.eye(3).double().expand(5, 3, 3))
    assert (torch.linalg.det(R) > 0).all()


def test_view_does_not_change_when_the_camera_turns():
    """What a camera turned about its own centre sees of the same people has the same view."""
    generator = torch.Generator().manual_seed(2)
    body = torch.randn(4, 33, 3, generator=generator, dtype=torch.float64) * 0.4 + torch.tensor([0, 0, 4.0])
    tilt = torch.randn(4, 3, generator=generator, dtype=torch.float64) * torch.tensor([0.15, 0.15, 0])
    turn = axis_angle_to_matrix(tilt)
    views = []
    for points, focal in ((body, 700.0), (body @ turn.mT, 1900.0)):
        lens = camera(4, focal).to(torch.float64)
        keypoints = Keypoints(lens.project(points), torch.ones(4, 33, dtype=torch.float64), "blazepose33")
        views.append(keypoint_view(lens, keypoints))
    # The view's axis is the mean of the joints on the picture plane, which moves a little with the plane.
    torch.testing.assert_close(views[0].extent, views[1].extent, rtol=0.02, atol=0)
    around = views[1].rotation @ turn @ views[0].rotation.mT
    assert (torch.acos((around.diagonal(dim1=1, dim2=2).sum(1) - 1).clamp(-2, 2) / 2) < math.radians(5)).all()


def test_missing_joints_hold_nothing(encoder):
    observation = seen()
    confidence = observation.keypoints.confidence.clone()
    confidence[:, 11:20] = 0
    outputs = []
    for rubbish in (0.0, 1e9, math.nan, math.inf):
        points = observation.keypoints.points.clone()
        points[:, 11:20] = rubbish
        outputs.append(encoder(Observation(observation.camera, keypoints=Keypoints(points, confidence, "blazepose33"))))
    for other in outputs[1:]:
        torch.testing.assert_close(other.global_, outputs[0].global_, rtol=0, atol=0)
    assert torch.isfinite(outputs[0].global_).all()


def test_rows_are_independent(encoder):
    observation = seen(5)
    whole = encoder(observation).global_
    for row in range(5):
        torch.testing.assert_close(encoder(observation[row]).global_[0], whole[row], rtol=1e-4, atol=1e-5)
    assert encoder(observation[:0]).global_.shape == (0, 16)


def test_one_wild_joint_stays_bounded(encoder):
    observation = seen(1)
    points, confidence = observation.keypoints.points.clone(), torch.ones(1, 33)
    points[0, 15], confidence[0, 15] = 1e7, 1e-4
    wild = encoder(Observation(observation.camera, keypoints=Keypoints(points, confidence, "blazepose33")))
    assert torch.isfinite(wild.global_).all()


@pytest.mark.parametrize("case", ["too few", "one spot", "none"])
def test_too_little_evidence_is_an_error(case, encoder):
    observation = seen()
    points, confidence = observation.keypoints.points.clone(), observation.keypoints.confidence.clone()
    if case == "one spot":
        points[1] = 300.0
    else:
        confidence[1, 3 if case == "too few" else 0 :] = 0
    with pytest.raises(EvidenceError, match="subject 1"):
        encoder(Observation(observation.camera, keypoints=Keypoints(points, confidence, "blazepose33")))


def test_without_keypoints_is_an_error(encoder):
    with pytest.raises(EvidenceError, match="keypoints"):
        encoder(Observation(camera(1)))
