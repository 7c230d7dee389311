"""ProHMR's published files, for people and skeletons: imported and held to the original networks' outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recon_core.assets import Assets
from recon_core.catalogue import catalogue
from recon_core.errors import AssetError, InputError, UsageError
from recon_core.geometry.cameras import crop_affine, weak_perspective_to_translation
from recon_core.structures import Camera, Observation
from recon_core.testing.parity import Parity, parity_folder
from recon_prohmr.convert import LiftImporter, ProHMRImporter
from recon_prohmr.lifting import load_lift
from recon_prohmr.method import ProHMR, ProHMRConfig
from recon_prohmr.network import pose_from_6d
from recon_prohmr.published import PublishedProHMR
from recon_std.bodies import load_body

pytestmark = pytest.mark.skipif(
    not (parity_folder() / "prohmr.keys.json").is_file(), reason=f"no parity kit in {parity_folder()}"
)


@pytest.fixture(scope="module")
def people() -> Parity:
    return Parity(parity_folder(), "prohmr")


@pytest.fixture(scope="module")
def skeletons() -> Parity:
    return Parity(parity_folder(), "proskeleton")


@pytest.fixture(scope="module")
def store(people: Parity, skeletons: Parity, tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """Both files as Lightning wrote them, added by what is in them."""
    folder = tmp_path_factory.mktemp("prohmr")
    assets = Assets(catalogue().assets, folder / "assets")
    beside = {"epoch": 9, "global_step": 1, "pytorch-lightning_version": "1.4.0", "lr_schedulers": [], "callbacks": {}}
    body = {"smpl.v_template": torch.zeros(4, 3)}
    torch.save({**beside, "state_dict": people.state_dict() | body}, folder / "checkpoint.pt")
    torch.save({**beside, "state_dict": skeletons.state_dict()}, folder / "lift.ckpt")
    (line,) = assets.add(folder / "checkpoint.pt")
    assert line.startswith("prohmr-published: ProHMR")
    assert "left out" not in line
    (line,) = assets.add(folder / "lift.ckpt")
    assert line.startswith("prohmr-lift-published: ")
    assert "left out" not in line
    with pytest.raises(
        InputError, match=r"lift.ckpt: is a file of prohmr-lift, not of prohmr; `recon assets add prohm"
    ):
        assets.add(folder / "lift.ckpt", "prohmr")
    return assets


@torch.no_grad()
def test_prohmr_gives_the_originals_numbers(people: Parity, store: Assets) -> None:
    method = ProHMR.from_assets(ProHMRConfig(weights="published"), store)
    network, given = method.network, people.inputs()
    context = network.encode_normalized(given["0"])
    people.check("features", context)
    zero = torch.zeros_like(given["z"])
    for name, z in (("mode", zero), ("z", given["z"])):
        values = network.flow.decode(z, context)
        pose = pose_from_6d(values)
        people.check(f"{name}/pose6d", values)
        people.check(f"{name}/global_orient", pose[:, :, :1])
        people.check(f"{name}/body_pose", pose[:, :, 1:])
        people.check(f"{name}/log_prob", network.flow.latent_log_prob(z, context))
    torch.testing.assert_close(network.flow.mode(context), network.flow.decode(zero, context)[:, 0])
    betas, camera = network.head(context)
    people.check("betas", betas[:, None])
    people.check("camera", camera[:, None])
    people.check("mode/camera_translation", weak_perspective_to_translation(camera, 5000.0, 224.0)[:, None])
    latent = network.flow.encode(given["pose6d"], context)
    people.check("given/z", latent)
    people.check("given/log_prob", network.flow.latent_log_prob(latent, context))
    people.check("discriminator", network.discriminator(given["disc_pose"], given["disc_betas"]))


@torch.no_grad()
def test_lifting_gives_the_originals_numbers(skeletons: Parity, store: Assets) -> None:
    network, given = load_lift(store), skeletons.inputs()
    context = network.encode(given["kp2d"])
    skeletons.check("features", context)
    for name, z in (("mode", torch.zeros_like(given["z"])), ("z", given["z"])):
        skeletons.check(f"{name}/joints3d", network.decode(z, context))
        skeletons.check(f"{name}/log_prob", network.flow.latent_log_prob(z, context))
    skeletons.check("given/log_prob", network.log_prob(given["kp3d"], context))
    skeletons.check("given/z", network.flow.encode(given["kp3d"].flatten(2), context))


@torch.no_grad()
def test_the_method_stands_the_crops_body_in_the_full_picture(people: Parity, store: Assets) -> None:
    """A crop that is the whole picture has the published camera; its samples keep the mode's shape and place."""
    method = ProHMR.from_assets(ProHMRConfig(weights="published", samples=2), store)
    network, normal = method.network, people.inputs()["0"]
    image = normal * network.backbone.std + network.backbone.mean
    identity = torch.eye(2, 3).expand(2, 2, 3)
    camera = Camera.perspective(5000.0, (224, 224), batch=2)
    found = method.predict(Observation(camera, image=image, to_crop=identity))
    assert found.body is not None
    assert found.samples is not None
    people.check("mode/global_orient", found.body.pose[:, None, :1])
    people.check("mode/camera_translation", found.body.translation[:, None])
    assert found.samples.pose.shape == (2, 2, 24, 3, 3)
    prior = method.prior()
    density = prior.log_prob(network.flow.mode(network.encode(image)), found.context)
    people.check("mode/log_prob", density[:, None])


def test_the_crop_is_the_published_one(people: Parity) -> None:
    with np.load(people.folder / "geometry.golden.npz") as golden:
        where, wanted = golden["prohmr_crop/center_size"], golden["prohmr_crop/affine"]
    center, side = torch.from_numpy(where).split([2, 1], 1)
    found = crop_affine(torch.cat([center - side / 2, side, side], 1), PublishedProHMR.crop_size)
    torch.testing.assert_close(found.double(), torch.from_numpy(wanted).double(), atol=1e-3, rtol=1e-5)


def test_another_body_is_refused(store: Assets) -> None:
    with pytest.raises(UsageError, match="body 'free' does not have.*--body smpl-neutral"):
        ProHMR.from_assets(ProHMRConfig(weights="published"), store, load_body("free"))


def test_other_halves_in_the_couplings_are_refused(skeletons: Parity, tmp_path: Path) -> None:
    state: dict[str, Tensor] = skeletons.state_dict()
    name = "flow.flow._transform._transforms.2.identity_features"
    torch.save({"state_dict": state | {name: state[name].flip(0)}}, tmp_path / "lift.ckpt")
    with pytest.raises(AssetError, match=r"lift.ckpt: a variant of ProHMR's lifting flow.*identity_features"):
        LiftImporter().add(tmp_path / "lift.ckpt", tmp_path)


@pytest.mark.parametrize("importer", [ProHMRImporter, LiftImporter])
def test_the_catalogue_says_what_the_importer_says(importer: type[ProHMRImporter | LiftImporter]) -> None:
    asset = catalogue().assets[importer.asset]
    assert (asset.licence, asset.source.page) == (importer.licence, importer.origin)
