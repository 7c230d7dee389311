"""Joints found in the crop, joints read without a picture, and photos that a detector labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from recon_core.assets import assets
from recon_core.errors import TrainingError
from recon_core.skeletons import LSP14
from recon_core.structures import BodyParameters, Camera, LossValue
from recon_spin.label_photos import label
from recon_spin.lifting import MARGIN, NOISE, SHIFT, people_in_crops
from recon_spin.method import SPIN, SPINConfig
from recon_spin.pooling import JointPooling, map_error
from recon_spin.regressor import IterativeRegressor
from recon_std.bodies import load_body
from recon_std.encoders.images import EfficientNetLite0
from recon_std.readers.lsp_ext import LSPExtendedDataset
from recon_std.synthetic.detection import GaussianErrors
from recon_std.synthetic.keypoints import KeypointSampler, PeopleConfig


@pytest.fixture(scope="module")
def sampler() -> KeypointSampler:
    poses = 0.2 * torch.randn(64, 24, 3, generator=torch.Generator().manual_seed(0))
    return KeypointSampler(load_body("free"), poses, torch.ones(64), GaussianErrors(), PeopleConfig())


def _method() -> SPIN:
    torch.manual_seed(0)
    return SPIN(SPINConfig(pooling="joints", crop_size=64, pretrained=False, dropout=0.0), load_body("free")).eval()


def test_a_joint_is_at_the_mean_of_its_map():
    torch.manual_seed(0)
    pooling = JointPooling(EfficientNetLite0()).double().eval()
    found = pooling(torch.randn(2, 112, 6, 5).double(), torch.randn(2, 1280, 3, 2).double())
    share = found.log_maps.exp()
    torch.testing.assert_close(share.sum((2, 3)), torch.ones(2, 14).double())
    x, y = (torch.arange(5) + 0.5) / 5, (torch.arange(6) + 0.5) / 6
    mean = torch.stack([(share.sum(2) * x).sum(-1), (share.sum(3) * y).sum(-1)], -1)
    torch.testing.assert_close(found.points, mean)
    # All of a map in one place: the joint is at the middle of that place.
    with torch.no_grad():
        pooling.heat.weight.zero_()
        pooling.heat.bias.zero_()
    even = pooling(torch.randn(1, 112, 6, 5).double(), torch.randn(1, 1280, 3, 2).double())
    torch.testing.assert_close(even.points, torch.full((1, 14, 2), 0.5).double())


def test_the_error_of_maps_is_least_at_the_label_and_has_a_right_gradient():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, 3, 2, generator=generator).double()
    confidence = torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]]).double()
    heat = torch.randn(2, 3, 4 * 5, generator=generator).double().requires_grad_()

    def error(values: torch.Tensor) -> torch.Tensor:
        return map_error(values.log_softmax(-1).unflatten(2, (4, 5)), points, confidence)

    torch.autograd.gradcheck(error, heat)
    optimizer = torch.optim.LBFGS([heat], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-14)
    optimizer.step(lambda: (optimizer.zero_grad(), (total := error(heat).sum()).backward(), total)[-1])
    share = heat.detach().softmax(-1).unflatten(2, (4, 5))
    x, y = (torch.arange(5) + 0.5) / 5, (torch.arange(4) + 0.5) / 4
    mean = torch.stack([(share.sum(2) * x).sum(-1), (share.sum(3) * y).sum(-1)], -1)
    inner = (confidence > 0) & ((points > 0.125) & (points < 0.875)).all(-1)
    assert inner.sum() >= 3
    torch.testing.assert_close(mean[inner], points[inner], atol=1e-3, rtol=0)


def test_a_joint_outside_the_crop_or_unknown_does_not_count():
    log_maps = torch.randn(1, 2, 4, 4).flatten(2).log_softmax(-1).unflatten(2, (4, 4))
    inside = torch.tensor([[0.3, 0.6]])
    alone = map_error(log_maps[:, :1], inside[None], torch.ones(1, 1))
    for other in ([1.2, 0.5], [torch.nan, torch.nan]):
        points = torch.stack([inside, torch.tensor([other])], 1)
        seen = torch.tensor([[1.0, float(other[0] == 1.2)]])
        torch.testing.assert_close(map_error(log_maps, points, seen), alone)
    nobody = map_error(log_maps, torch.full((1, 2, 2), 2.0), torch.ones(1, 2))
    assert nobody.item() == 0


def test_the_regressor_corrects_its_estimate_from_features_and_estimate():
    """As in HMR section 3.2: each correction reads the features and the estimate together."""
    torch.manual_seed(0)
    network = IterativeRegressor(8, width=16).double().eval()
    for head in (network.decpose, network.decshape, network.deccam):
        torch.nn.init.normal_(head.weight, std=0.1)
    features = torch.randn(3, 8).double()
    pose, betas, camera = (x.expand(3, -1) for x in (network.init_pose, network.init_shape, network.init_cam))
    for _ in range(3):
        x = network.fc2(network.fc1(torch.cat([features, pose, betas, camera], 1)))
        pose, betas, camera = pose + network.decpose(x), betas + network.decshape(x), camera + network.deccam(x)
    found = network(features)
    for name, wanted in (("pose_6d", pose), ("betas", betas), ("camera", camera)):
        torch.testing.assert_close(getattr(found, name), wanted)
    some = features * (torch.arange(8) >= 5)
    torch.testing.assert_close(network(features[:, 5:], columns=slice(5, None)).pose_6d, network(some).pose_6d)


def test_joints_alone_are_read_as_those_of_a_picture_of_which_nothing_else_is_known():
    method = _method()
    assert method.joints is not None
    points = torch.rand(4, 14, 2)
    lift = method.joints.lift(points)
    nothing = torch.zeros(4, method.regressor.fc1.in_features - 157 - lift.shape[1])
    whole = method.regressor(torch.cat([nothing, lift], 1))
    torch.testing.assert_close(method.regress_joints(points).pose_6d, whole.pose_6d)


def test_drawn_people_are_in_their_crops_and_their_joints_where_the_camera_sees_them(sampler):
    batch = people_in_crops(sampler, 400, 160, torch.Generator().manual_seed(3))
    body = BodyParameters(batch["pose"], batch["betas"], batch["translation"])
    eye = torch.eye(3).expand(400, 3, 3)
    camera = Camera(batch["K"], eye, torch.zeros(400, 3), (160, 160))
    points = camera.project(sampler.body.keypoints(body, "lsp14"))
    torch.testing.assert_close(points, batch["keypoints2d"], atol=1e-2, rtol=0)
    span = (points.amax(1) - points.amin(1)).amax(1)
    assert ((160 / span > 0.99 * MARGIN[0]) & (160 / span < 1.01 * MARGIN[1])).all()
    middle = (points.amin(1) + points.amax(1)) / 2 / 160 - 0.5
    assert 0.5 * SHIFT / MARGIN[1] < middle.abs().max() < 1.01 * SHIFT / MARGIN[0]
    noise = (batch["points"] - points / 160).std((1, 2))
    assert noise.min() < 2 * NOISE[0]
    assert 0.6 * NOISE[1] < noise.max() < 1.5 * NOISE[1]
    again = people_in_crops(sampler, 400, 160, torch.Generator().manual_seed(3))
    assert torch.equal(again["points"], batch["points"])


def test_a_network_learns_to_read_joints(sampler):
    method = _method()
    assert method.joints is not None
    learned = [*method.joints.places.parameters(), *method.regressor.parameters()]
    optimizer = torch.optim.AdamW(learned, 1e-3)

    def loss(seed: int) -> LossValue:
        batch = people_in_crops(sampler, 64, 64, torch.Generator().manual_seed(seed))
        return method.supervised(method.regress_joints(batch["points"]), batch, 64)

    before = loss(99).terms["keypoints3d"].mean().item()
    for step in range(40):
        optimizer.zero_grad()
        loss(step).per_sample.mean().backward()
        optimizer.step()
    assert loss(99).terms["keypoints3d"].mean().item() < 0.8 * before


def test_photos_are_labelled_by_the_detector_and_those_without_a_person_left_out(tmp_path: Path):
    data = pytest.importorskip("skimage.data", reason="scikit-image, whose astronaut is the photo, is not installed")
    for name in ("blazepose-detection", "blazepose-landmarks"):
        if assets().status_of(name).state != "present":
            pytest.skip(f"asset {name} is not here: {assets().how_to_get(name)}")
    photos, out = tmp_path / "photos", tmp_path / "labels"
    photos.mkdir()
    Image.fromarray(data.astronaut()).save(photos / "a.png")
    Image.new("RGB", (64, 64)).save(photos / "b.png")
    items = [{"id": name, "image": f"{name}.png", "split": "train"} for name in ("a", "b")]
    (photos / "index.json").write_text(json.dumps({"items": items}))
    assert label(photos, out, fewest=3) == 1
    (subject,) = LSPExtendedDataset(out, LSPExtendedDataset.Config(split="train", crop_size=64))
    seen = subject["keypoints2d_confidence"]
    assert not seen[LSP14.index("head_top")]
    assert seen[LSP14.index("left_shoulder")]
    assert ((subject["keypoints2d"][seen > 0] > 0) & (subject["keypoints2d"][seen > 0] < 64)).all()


def test_an_index_that_cannot_be_labelled_is_one_line(tmp_path: Path):
    with pytest.raises(TrainingError, match=r"index\.json: not an index of photos.*No such file"):
        label(tmp_path, tmp_path / "out")
    (tmp_path / "index.json").write_text('{"items": [{"id": "a", "split": "train"}]}')
    with pytest.raises(TrainingError, match="an item has no image"):
        label(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
