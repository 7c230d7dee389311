"""People made on the fly for networks that read joints: reproducible, before the camera, disturbed as asked."""

import pytest
import torch

from recon_core.geometry.rotations import axis_angle_to_matrix
from recon_std.bodies import load_body
from recon_std.encoders.keypoints import JOINTS
from recon_std.synthetic.detection import DetectorErrors, GaussianErrors
from recon_std.synthetic.keypoints import KeypointSampler, PeopleConfig, _raise_collars


@pytest.fixture(scope="module")
def body():
    return load_body("free")


def sampler(body, errors=None, **config) -> KeypointSampler:
    poses = torch.randn(40, 24, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    return KeypointSampler(body, poses, torch.ones(40), errors or DetectorErrors(), PeopleConfig(**config))


def draw(made: KeypointSampler, count: int = 400, seed: int = 1):
    return made.sample(count, torch.Generator().manual_seed(seed))


def test_the_seed_decides(body):
    made = sampler(body)
    first, again, other = draw(made), draw(made), draw(made, seed=2)
    torch.testing.assert_close(first.view.points, again.view.points, rtol=0, atol=0)
    assert not torch.allclose(first.body.pose, other.body.pose)


def test_people_stand_before_the_camera(body):
    people = draw(sampler(body))
    joints = body.joints(people.body)
    assert (joints[:, 0, 2] > 1).all()
    assert torch.isfinite(people.view.points).all()
    eye = torch.eye(3).expand(400, 24, 3, 3)
    torch.testing.assert_close(people.body.pose @ people.body.pose.mT, eye, atol=1e-4, rtol=0)


def test_most_people_are_upright(body):
    people = draw(sampler(body, any_orientation=0))
    joints = body.joints(people.body)
    up = joints[:, 15] - joints[:, 0]
    assert ((up[:, 1] < 0).float().mean()) > 0.97


def test_perfect_detector_sees_the_truth(body):
    people = draw(sampler(body, GaussianErrors(deviation=0.0), skeletons={"blazepose33": 1.0}))
    known = people.known[0]
    assert int(known.sum()) == len(JOINTS) - 2
    joints = body.keypoints(people.body, "blazepose33")[:, 0]
    nose = joints[:, :2] / joints[:, 2:]
    torch.testing.assert_close(people.rays[:, JOINTS.index("nose")], nose, atol=1e-5, rtol=1e-4)
    # The view's points, back in the picture, are the true rays.
    view = people.view
    rays = torch.nn.functional.pad(view.points * view.extent[:, None, None], (0, 1), value=1.0) @ view.rotation
    torch.testing.assert_close((rays[..., :2] / rays[..., 2:])[:, known], people.rays[:, known], atol=1e-4, rtol=1e-3)


def test_gaussian_errors_have_the_deviation_asked_for():
    errors = GaussianErrors(deviation=0.02)
    rays, box = torch.zeros(500, len(JOINTS), 2), torch.full((500,), 0.5)
    known = torch.ones(500, len(JOINTS), dtype=torch.bool)
    seen, confidence = errors.disturb(
        rays, known, box, torch.ones(500, 2), known[:, 0], torch.Generator().manual_seed(0)
    )
    assert seen.std().item() == pytest.approx(0.01, rel=0.02)
    assert (confidence == 1).all()


def test_errors_grow_as_confidence_falls():
    count, joints = 4000, len(JOINTS)
    known = torch.ones(count, joints, dtype=torch.bool)
    errors = DetectorErrors(certain=0, exchanged=0, even=0)
    rays = torch.zeros(count, joints, 2)
    seen, confidence = errors.disturb(
        rays, known, torch.ones(count), torch.ones(count, 2), known[:, 0], torch.Generator().manual_seed(0)
    )
    size = seen.norm(dim=-1)
    bins = [size[(confidence > low) & (confidence <= low + 0.2)].median().item() for low in (0.8, 0.5, 0.2)]
    assert bins[0] < bins[1] < bins[2]
    assert 0.005 < bins[0] < 0.04


def test_joints_outside_the_picture_are_mostly_missing_from_other_detectors():
    count, joints = 1000, len(JOINTS)
    known = torch.ones(count, joints, dtype=torch.bool)
    rays = torch.zeros(count, joints, 2)
    rays[:, 10:] = 2.0
    shares = []
    for guesses in (False, True):
        _, confidence = DetectorErrors().disturb(
            rays, known, torch.ones(count), torch.ones(count, 2), torch.full((count,), guesses),
            torch.Generator().manual_seed(0),
        )  # fmt: skip
        shares.append((confidence[:, 10:] == 0).float().mean().item())
        assert ((confidence > 0).sum(1) >= 6).all()
    assert shares[0] > 0.6
    assert shares[1] < 0.1


def test_raised_collars_keep_the_upper_arm():
    generator = torch.Generator().manual_seed(0)
    pose = axis_angle_to_matrix(torch.randn(200, 24, 3, generator=generator))
    raised = _raise_collars(pose, 1.0, generator)
    for collar, shoulder in ((13, 16), (14, 17)):
        torch.testing.assert_close(
            raised[:, collar] @ raised[:, shoulder], pose[:, collar] @ pose[:, shoulder], atol=1e-5, rtol=0
        )
        assert not torch.allclose(raised[:, collar], pose[:, collar], atol=1e-2)
    torch.testing.assert_close(_raise_collars(pose, 0.0, generator), pose, atol=1e-5, rtol=0)


def test_empty_and_single(body):
    assert len(draw(sampler(body), 1).box) == 1
