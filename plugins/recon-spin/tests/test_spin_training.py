"""SPIN's training: frames of the dictionary, fits that supervise, and runs of the real loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recon_core.assets import assets
from recon_core.datasets import Mixture, Source
from recon_core.errors import AssetError
from recon_core.geometry.cameras import transform_points
from recon_core.interfaces import Dataset
from recon_core.skeletons import LSP14
from recon_core.structures import BodyParameters
from recon_core.training import TrainingSettings, train
from recon_spin import supervision
from recon_spin.best_fits import BestFits, Fits
from recon_spin.method import SPIN, SPINConfig
from recon_spin.samples import Parts, batch_of, with_features, without_truth
from recon_spin.settings import TrainConfig
from recon_spin.train import Training, new_method
from recon_std.bodies import load_body
from recon_std.readers.augmentation import Augmentation, AugmentationSettings
from recon_std.renderers.warp import WarpRenderer
from recon_std.synthetic.detection import GaussianErrors
from recon_std.synthetic.keypoints import KeypointSampler, PeopleConfig
from recon_std.synthetic.scenes import SceneConfig, SceneSampler

SIDE = 64


class Pictures(Dataset):
    """Rendered people given as photos with 2D joints only, with augmentation; `bodies` holds what they really are."""

    def __init__(self, with_truth: bool = False) -> None:
        super().__init__()
        body = load_body("free")
        poses = 0.2 * torch.randn(64, 24, 3, generator=torch.Generator().manual_seed(0))
        poses[:, 0] = 0
        people = KeypointSampler(body, poses, torch.ones(64), GaussianErrors(), PeopleConfig(any_orientation=0.0))
        scenes = SceneSampler(people, WarpRenderer(), SceneConfig(size=SIDE, cut=0.0, texture=32))
        self.scenes = scenes.sample(8, torch.Generator().manual_seed(1))
        self.with_truth = with_truth

    def __len__(self) -> int:
        return len(self.scenes.picture)

    def __getitem__(self, index: int) -> dict:
        return self._varied(index, Augmentation())

    def draw(self, index: int, generator: np.random.Generator) -> dict:
        return self._varied(index, Augmentation.draw(AugmentationSettings(rotation=20.0), generator))

    def _varied(self, index: int, varied: Augmentation) -> dict:
        s = self.scenes
        affine = varied.crop((0.0, 0.0, SIDE, SIDE), SIDE, 1.0)
        joints = transform_points(affine[None], s.joints2d["lsp14"][index][None])[0]
        K = s.camera.K[index]
        mirror = list(LSP14.mirror)
        subject = {
            "id": f"{index}",
            "image": s.image[index],
            "K": varied.intrinsics(float(K[0, 0]), (float(K[0, 2]), float(K[1, 2])), affine),
            "to_crop": affine,
            "keypoints2d": joints[mirror] if varied.flipped else joints,
            "keypoints2d_confidence": torch.ones(14),
            "roll": varied.roll,
            "flipped": float(varied.flipped),
        }
        if self.with_truth:
            body = s.body[index]
            subject |= {"pose": body.pose[0], "betas": body.betas[0], "translation": body.translation[0]}
        return subject


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures()


def _method(**settings) -> SPIN:
    torch.manual_seed(0)
    return SPIN(SPINConfig(pretrained=False, dropout=0.0, **settings), load_body("free"))


def _batch(pictures: Dataset, size: int = 8, step: int = 0) -> dict:
    return Mixture([Source("photos", pictures)], size).batch(step)


def test_dictionary_keeps_the_better_fit_of_each_picture():
    best = BestFits()
    fit = lambda *errors: Fits(  # noqa: E731
        torch.rand(len(errors), 24, 3, 3), torch.rand(len(errors), 10), torch.rand(len(errors), 3), torch.tensor(errors)
    )
    assert best.get(["a"]).error.isinf().all()
    assert best.offer(["a", "b"], fit(3.0, 1.0)).all()
    later = fit(2.0, 2.0)
    assert best.offer(["a", "b"], later).tolist() == [True, False]
    torch.testing.assert_close(best.get(["b", "a", "c"]).error, torch.tensor([1.0, 2.0, torch.inf]))
    torch.testing.assert_close(best.get(["a"]).pose[0], later.pose[0])
    copy = BestFits()
    copy.restore(best.state())
    torch.testing.assert_close(copy.get(["b", "a"]).betas, best.get(["b", "a"]).betas)


def test_fits_survive_the_way_to_the_photo_and_back_and_explain_every_augmentation(pictures):
    """The true body, taken into the frame of an augmented crop, projects onto the crop's own joints."""
    s, body = pictures.scenes, load_body("free")
    batch = _batch(pictures)
    rows = torch.tensor([int(i) for i in batch["id"]])
    true = s.body[rows]
    fits = Fits(true.pose, true.betas, true.translation + body.rest_joints(true.betas)[:, 0], torch.zeros(8))
    parts = supervision._fit_fields(batch)
    assert batch["flipped"].unique().numel() == 2
    crop = supervision._to_crop(fits, parts)
    back = supervision._to_photo(crop, parts)
    for name in ("pose", "betas", "root"):
        torch.testing.assert_close(getattr(back, name), getattr(fits, name), atol=1e-5, rtol=1e-5)
    placed = BodyParameters(crop.pose, crop.betas, crop.root - body.rest_joints(crop.betas)[:, 0])
    projected = supervision.crop_camera(batch["K"], SIDE).project(body.keypoints(placed, "lsp14"))
    # The free body is symmetric but for millimetres, which is what a mirror image leaves.
    torch.testing.assert_close(projected, batch["keypoints2d"], atol=0.5, rtol=0)


def test_truth_supervises_where_it_is_given_and_fits_elsewhere(pictures):
    method = _method()
    mixture = Mixture([Source("photos", pictures), Source("rendered", Pictures(with_truth=True))], 8)
    batch = mixture.batch(0)
    assert 0 < batch["has_pose"].sum() < 8
    target = method.supervisor.target(batch, _regressed(method, batch), SIDE)
    given = batch["has_pose"] > 0
    torch.testing.assert_close(target.body.pose[given], batch["pose"][given])
    assert (target.weight[given] == 1).all()
    assert len(method.supervisor.best) == len(
        {i for i, s in zip(batch["id"], batch["source"], strict=True) if s == "photos"}
    )


def test_a_sample_with_too_few_joints_has_no_fit_and_teaches_its_joints_alone(pictures):
    method, batch = _method(), _batch(pictures)
    batch["keypoints2d_confidence"][0, 3:] = 0
    target = method.supervisor.target(batch, _regressed(method, batch), SIDE)
    assert f"photos/{batch['id'][0]}" not in method.supervisor.best.state()["keys"]
    assert target.weight[0] == 0
    assert torch.isfinite(target.error).all()
    assert torch.isfinite(method.training_step(batch, 0).per_sample).all()


def _regressed(method: SPIN, batch: dict) -> BodyParameters:
    out = method.regress(batch["image"])
    return BodyParameters(out.pose, out.betas, torch.tensor([0.0, 0.0, 3.0]).expand(len(out.betas), 3))


def test_populated_fits_explain_the_joints_and_the_loop_only_improves_them(pictures):
    method = _method()
    method.before_training(Mixture([Source("photos", pictures)], 8))
    before = method.supervisor.best.get([f"photos/{i}" for i in range(8)]).error.clone()
    assert before.median() < 0.05 * SIDE
    method.training_step(_batch(pictures), 0)
    after = method.supervisor.best.get([f"photos/{i}" for i in range(8)]).error
    assert (after <= before).all()
    static = _method(in_loop=False)
    static.restore_training_state(method.training_state())
    static.training_step(_batch(pictures, step=1), 1)
    torch.testing.assert_close(static.supervisor.best.get([f"photos/{i}" for i in range(8)]).error, after)


def test_rejected_fits_teach_the_joints_only(pictures):
    method = _method(reject=1e-6)
    loss = method.training_step(_batch(pictures), 0)
    assert loss.terms["accepted"].sum() == 0
    assert loss.terms["body.pose"].abs().max() == 0
    assert loss.terms["keypoints3d"].abs().max() == 0
    assert loss.terms["keypoints2d"].min() > 0


def test_training_lowers_the_loss_and_a_resumed_run_ends_the_same(pictures, tmp_path):
    def run(folder: str, steps: int, resume: bool = False):
        settings = TrainingSettings(steps=steps, batch_size=4, workers=0, progress=False, accelerator="cpu")
        method = _method(learning_rate=1e-3)
        return train(method, [Source("photos", pictures)], tmp_path / folder, settings, "spin", resume=resume)

    whole = run("whole", 6)
    run("parts", 3)
    last = run("parts", 6, resume=True)
    assert last.loss == whole.loss
    reread = SPIN.from_assets(SPINConfig(weights=str(tmp_path / "whole" / "weights.safetensors")), None)  # type: ignore[arg-type]
    assert not reread.training


def test_missing_or_foreign_weights_are_one_line(tmp_path):
    with pytest.raises(AssetError, match="No such file"):
        SPIN.from_assets(SPINConfig(weights=str(tmp_path / "y.safetensors")), None)  # type: ignore[arg-type]
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(AssetError, match="not weights of spin") as error:
        SPIN.from_assets(SPINConfig(weights=str(tmp_path / "x.safetensors")), None)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_copied_training_goes_on_as_the_first_and_the_loop_is_all_that_differs(pictures):
    if assets().status_of("efficientnet-lite0").state != "present":
        pytest.skip(f"asset efficientnet-lite0 is not here: {assets().how_to_get('efficientnet-lite0')}")
    network = SPINConfig(crop_size=SIDE, pooling="joints", dropout=0.1, fit_iterations=10)
    config = TrainConfig(steps=3, shared_steps=1, batch=4, report_every=10, spin=network)
    method = new_method(config, in_loop=False)
    first = Parts(method, config.frozen_blocks).eval()
    samples = with_features(first, _batch(pictures))
    method.supervisor.populate(Mixture([Source("photos", pictures)], 8))
    tests = {"rendered": with_features(first, _batch(Pictures(with_truth=True))), "photos": samples}
    one = Training(config, method)
    assert [line["step"] for line in one.run(config.shared_steps, samples, tests)] == [0, 1]
    same, loop = (one.copied(in_loop) for in_loop in (False, True))
    ends = [training.run(config.steps, samples, tests)[-1] for training in (one, same, loop)]
    for line in ends:
        assert line.pop("seconds") > 0
    assert ends[0] == ends[1]
    assert ends[2]["fits_mean_px"] < ends[1]["fits_mean_px"]
    assert ends[2]["fits_improved"] > ends[1]["fits_improved"] == 0
    epoch = [batch_of(samples, step, config)["id"] for step in (0, 1)]
    assert sorted(epoch[0] + epoch[1]) == sorted(samples["id"])


def test_without_truth_rendered_people_are_as_photos_and_their_fits_are_measured():
    method = _method(first_starts=1)
    samples = _batch(Pictures(with_truth=True))
    kept, truth = without_truth(samples)
    assert not {"pose", "betas", "translation", "has_pose"} & set(kept)
    method.supervisor.fill(kept, torch.nonzero(kept["has_truth"]).squeeze(1), SIDE)
    assert sorted(truth.keys) == sorted(method.supervisor.best.state()["keys"])
    # What supervises is a fit, in every row, and as far from the joints as the dictionary says.
    target = method.supervisor.target(kept, _regressed(method, samples), SIDE)
    points = supervision.crop_camera(kept["K"], SIDE).project(method.supervisor.body.keypoints(target.body, "lsp14"))
    seen = kept["keypoints2d_confidence"]
    error = ((points - kept["keypoints2d"]).norm(dim=-1) * seen).sum(1) / seen.sum(1)
    torch.testing.assert_close(error, target.error, atol=0.3, rtol=0)
    assert not torch.isclose(target.body.betas, samples["betas"]).all(1).any()
    assert (target.weight == 1).all()
