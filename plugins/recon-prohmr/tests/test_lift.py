"""`prohmr-lift`: the network and its training on little, the published file from `recon assets add` to a result."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recon_core.assets import assets
from recon_core.errors import EvidenceError, InputError
from recon_core.export.json_npz import ResultRecord
from recon_core.metrics import mpjpe, pa_mpjpe
from recon_core.skeletons import skeleton
from recon_core.structures import Camera, Keypoints, Observation
from recon_core.testing.parity import Parity, parity_folder
from recon_prohmr.evaluation import people_of
from recon_prohmr.lift import Lift, LiftConfig, PublishedLift, _all_joints, _rows
from recon_prohmr.lifting import JOINTS_IN, JOINTS_OUT
from recon_prohmr.skeletons import SkeletonNetwork, SkeletonNetworkConfig, SkeletonWeights, lifting_objective
from recon_std.bodies import load_body

KIT = pytest.mark.skipif(
    not (parity_folder() / "proskeleton.keys.json").is_file(), reason=f"no parity kit in {parity_folder()}"
)
SMALL = SkeletonNetworkConfig(context=16, encoder_width=32, encoder_blocks=1, flow_width=32)


@pytest.fixture(scope="module")
def body():
    return load_body("free")


@pytest.fixture(scope="module")
def people(body):
    """Eight upright people with slightly bent limbs, seen with an error of 1 % of the box."""
    poses = torch.randn(8, 24, 3, generator=torch.Generator().manual_seed(0)) * 0.15
    poses[:, 16, 2], poses[:, 17, 2] = -1.2, 1.2
    poses[:, 0] = 0
    return people_of(body, poses, 8, noise=0.01)


def small(samples: int = 0) -> Lift:
    torch.manual_seed(0)
    return Lift(LiftConfig(samples=samples), network=SMALL).eval()


def test_the_shipped_weights_find_the_skeleton(body, people):
    seen, truth = people
    found = Lift.from_assets(LiftConfig(samples=300), assets()).predict(seen)
    joints = body.keypoints(truth, "h36m17")
    assert found.keypoints3d.skeleton == "h36m17"
    points = found.keypoints3d.points
    assert mpjpe(points, joints, 0).mean() < 110
    assert pa_mpjpe(points, joints).mean() < 80
    # Placed by the joints' pixels, in the picture's own camera.
    off = (seen.camera.project(points) - seen.camera.project(joints)).norm(dim=-1).mean(1)
    assert (off < 0.05 * seen.box[:, 2:].amax(1)).all()
    assert ((points - joints)[:, 0].norm(dim=1) < 0.15 * joints[:, 0, 2]).all()
    # The truth is among what the samples say: their best is better than the mode.
    samples = found.extra["samples"]
    assert samples.shape == (8, 300, 17, 3)
    best = pa_mpjpe(samples.flatten(0, 1), joints.repeat_interleave(300, 0)).unflatten(0, (8, 300)).amin(1)
    assert best.mean() < pa_mpjpe(points, joints).mean()
    torch.testing.assert_close(samples[:, :, 0], points[:, None, 0].expand(-1, 300, -1))


def test_rows_and_seeds(people):
    seen, _ = people
    method = small(samples=3)
    many, one = method.predict(seen), method.predict(seen[5])
    torch.testing.assert_close(one.keypoints3d.points, many.keypoints3d.points[5:6], atol=1e-4, rtol=0)
    torch.testing.assert_close(one.extra["samples"], many.extra["samples"][5:6], atol=1e-4, rtol=0)
    none = method.predict(seen[:0])
    assert none.keypoints3d.points.shape == (0, 17, 3)
    assert none.extra["joint_std_mm"].shape == (0, 17)
    method.config = LiftConfig(samples=3, seed=1)
    assert not torch.allclose(method.predict(seen).extra["samples"], many.extra["samples"])


def test_objective_is_the_thesis_and_learns(body):
    """Section 4.6.3: 0.001 L_nll + 1.0 L_mode,3D; every parameter has a part in it."""
    from recon_std.synthetic.detection import DetectorErrors
    from recon_std.synthetic.keypoints import KeypointSampler

    assert (SkeletonWeights().nll, SkeletonWeights().mode_3d) == (0.001, 1.0)
    torch.manual_seed(0)
    network = SkeletonNetwork(SMALL)
    sampler = KeypointSampler(body, torch.randn(50, 24, 3) * 0.2, torch.ones(50), DetectorErrors())
    crowd = sampler.sample(64, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    totals = []
    for _ in range(15):
        loss = lifting_objective(network, body, crowd, SkeletonWeights(), torch.Generator().manual_seed(1))
        whole = 0.001 * loss.terms["nll"] + 1.0 * loss.terms["mode_3d"]
        torch.testing.assert_close(loss.per_sample, whole)
        optimizer.zero_grad()
        loss.per_sample.mean().backward()
        optimizer.step()
        totals.append(float(loss.per_sample.detach().mean()))
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert totals[-1] < 0.8 * totals[0]


def _coco(truth, body) -> tuple[Keypoints, list[float]]:
    """The first person's coco17 joints, and as OpenPose writes them."""
    camera = Camera.perspective(1000.0, (1000, 1000))
    points = camera.project(body.keypoints(truth[0], "coco17"))
    keypoints = Keypoints(points, torch.ones_like(points[..., 0]), "coco17")
    return keypoints, torch.cat([points[0], torch.ones(17, 1)], 1).flatten().tolist()


@KIT
def test_from_a_published_file_to_a_skeleton_on_the_command_line(
    body, people, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way with the parity kit's weights, held to its golden joints: the statistics are such that the joints
    of the file become the kit's input."""
    from recon_core.cli.main import main

    kit = Parity(parity_folder(), "proskeleton")
    keypoints, numbers = _coco(people[1], body)
    pixels = _all_joints(keypoints)[0, _rows(JOINTS_IN)].numpy()
    statistics, joints = tmp_path / "statistics.npz", tmp_path / "joints.json"
    np.savez(statistics, mean=pixels - 100 * kit.inputs()["kp2d"][0].numpy(), std=np.full((17, 2), 100.0))
    joints.write_text(json.dumps({"people": [{"pose_keypoints_2d": numbers}]}))
    Image.fromarray(np.full((1000, 1000, 3), 128, np.uint8)).save(tmp_path / "photo.png")
    torch.save({"state_dict": kit.state_dict()}, tmp_path / "lift.ckpt")
    run = ["run", "--method", "prohmr-lift", str(tmp_path / "photo.png"), "-o", str(tmp_path / "out")]
    run += ["--keypoints", str(joints), "--focal-px", "1000", "--set", "prohmr-lift.weights=published"]
    with_statistics = [*run, "--set", f"prohmr-lift.statistics={statistics}"]
    monkeypatch.setenv("RECON_ASSETS_DIR", str(tmp_path / "assets"))
    assets.cache_clear()
    try:
        assert main(with_statistics) == 1
        line = capsys.readouterr().err.strip()
        assert re.search("prohmr-lift-published.*recon assets add", line)
        assert len(line.splitlines()) == 1
        assert main(["assets", "add", "prohmr-lift", str(tmp_path / "lift.ckpt")]) == 0
        assert "use --method prohmr-lift" in capsys.readouterr().out
        assert main(run) == 2
        assert "--set prohmr-lift.statistics=FILE.npz" in capsys.readouterr().err
        assert main([*with_statistics, "--samples", "4"]) == 0
    finally:
        assets.cache_clear()
    folder = tmp_path / "out" / "photo"
    (found,) = ResultRecord.model_validate_json((folder / "result.json").read_text()).objects
    points = np.array(list(found.joints3d["h36m17"].values()))
    golden = kit.golden["mode/joints3d"][0, 0]
    np.testing.assert_allclose((points - points[0])[_rows(JOINTS_OUT)], golden, atol=1e-3)
    names = {path.name for path in folder.iterdir()}
    assert names == {"result.json", "result.npz", "scene.glb", "overlay.png", "report.html"}
    with np.load(folder / "result.npz") as arrays:
        assert arrays["object_0_extra_samples"].shape == (4, 17, 3)
        np.testing.assert_allclose(arrays["object_0_joints3d_h36m17"], points, atol=1e-5)
    assert "joints, h36m17" in (folder / "report.html").read_text()


def test_joints_that_a_detector_has_not(body, people):
    """Spine and top of the head from the others, near the body's own; a missing joint is named."""
    _, truth = people
    camera = Camera.perspective(1000.0, (1000, 1000), batch=len(truth))
    blaze = camera.project(body.keypoints(truth, "blazepose33"))
    keypoints = Keypoints(blaze, torch.ones_like(blaze[..., 0]), "blazepose33")
    found, wanted = _all_joints(keypoints), camera.project(body.keypoints(truth, "h36m17"))
    height = (wanted.amax(1) - wanted.amin(1)).amax(1)
    assert ((found - wanted).norm(dim=-1).mean(1) < 0.04 * height).all()
    confidence = keypoints.confidence.clone()
    confidence[3, skeleton("blazepose33").index("left_ear")] = 0
    with pytest.raises(EvidenceError, match="subject 3: head_top was not seen.*the shipped weights do not"):
        _all_joints(dataclasses.replace(keypoints, confidence=confidence))


@pytest.mark.parametrize("damage", ["missing", "text", "shape", "negative"])
def test_statistics_that_cannot_be_used(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "statistics.npz"
    if damage == "text":
        path.write_text("no arrays")
    elif damage != "missing":
        shape = (16, 2) if damage == "shape" else (17, 2)
        np.savez(path, mean=np.zeros(shape), std=np.full(shape, -1.0 if damage == "negative" else 1.0))
    with pytest.raises(InputError, match=r"statistics\.npz: .*mean and std"):
        PublishedLift(LiftConfig(weights="published", statistics=path))


def test_too_few_joints(people):
    seen, _ = people
    with pytest.raises(EvidenceError, match="reads 2D joints"):
        small().predict(Observation(seen.camera))
    confidence = seen.keypoints.confidence.clone()
    confidence[2, 3:] = 0
    poor = dataclasses.replace(seen, keypoints=dataclasses.replace(seen.keypoints, confidence=confidence))
    with pytest.raises(EvidenceError, match="subject 2"):
        small().predict(poor)
