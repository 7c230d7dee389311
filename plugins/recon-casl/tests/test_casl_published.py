"""Published checkpoints of CASL: recognised, checked, imported with their prototype and options, and run.

Where the parity kit is at hand, the files are the authors' networks with weights made by a formula, and what the
imported networks give is held to what the originals gave. Elsewhere the weights are random numbers.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from safetensors import safe_open

from recon_casl.convert import BirdsImporter, CASLImporter
from recon_casl.method import CASLConfig
from recon_casl.published.method import PublishedCASL
from recon_casl.published.network import PublishedEncoders
from recon_casl.template import template
from recon_core.assets import Assets
from recon_core.catalogue import catalogue
from recon_core.errors import AssetError, InputError, UsageError
from recon_core.geometry.primitives import icosphere
from recon_core.structures import Camera, Observation
from recon_core.testing.parity import Parity, parity_folder

KIT = (parity_folder() / "magicmirror.keys.json").is_file()
OPTIONS = "azi_scope: 360\nbg: true\ndist_range: 2~6\nelev_range: -25~25\nimageSize: {width}\nratio: {ratio}\n"
SETTINGS = {"magicmirror": ("published", 64, 2), "magicmirror_cub": ("published-cub", 128, 1)}


def prototype():
    """In the kit's order of vertices, with the texture map of recon's own."""
    if not KIT:
        vertices, faces = icosphere(3)
        return template(vertices * torch.tensor([0.45, 0.9, 0.225]), faces)
    with np.load(parity_folder() / "magicmirror.template.npz") as file:
        return template(torch.from_numpy(file["verts"]).float(), torch.from_numpy(file["faces"]).long())


def write_obj(path, mesh):
    lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in mesh.vertices.tolist()]
    lines += [f"vt {u!r} {v!r}" for u, v in mesh.uv.tolist()]
    corners = torch.stack([mesh.faces, mesh.uv_faces], 2) + 1
    lines += ["f " + " ".join(f"{v}/{t}" for v, t in face) for face in corners.tolist()]
    path.write_text("\n".join(lines))


def state_of(name):
    if KIT:
        return Parity(parity_folder(), name).state_dict()
    torch.manual_seed(0)
    state = PublishedEncoders(attended=name.endswith("cub")).state_dict()
    return dict(state) | {"texture_enc.decoder.bifpn3.up4.0.conv.weight": torch.zeros(64, 64, 3, 3)}


def checkpoint(folder, name):
    """The three files, laid out as published; the path of the first."""
    _, width, ratio = SETTINGS[name]
    (folder / "ckpts").mkdir(parents=True)
    torch.save({"epoch": 600, "netE": state_of(name)}, folder / "ckpts" / "best_ckpt.pth")
    write_obj(folder / "ckpts" / "best_mesh.obj", prototype())
    (folder / "opts.yaml").write_text(OPTIONS.format(width=width, ratio=ratio))
    return folder / "ckpts" / "best_ckpt.pth"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("pedestrians"), "magicmirror")


@pytest.fixture(scope="module")
def store(published, tmp_path_factory):
    assets = Assets(catalogue().assets, tmp_path_factory.mktemp("assets"))
    (line,) = assets.add(published)
    assert line.startswith("casl-published: CASL (3D Magic Mirror), 56.")
    assert "casl.weights=published" in line
    assert "left out" not in line
    return assets


@torch.no_grad()
def held_to_the_kit(name, store):
    kit, (weights, width, ratio) = Parity(parity_folder(), name), SETTINGS[name]
    model = PublishedCASL.from_assets(CASLConfig(weights=weights), store).model
    (photos,) = kit.inputs().values()
    assert photos.shape[2:] == model.size == (width * ratio, width)
    found = model.encoders(photos, model.vertices, model.laplacian)
    outputs = {"azimuths": found.azimuth, "elevations": found.elevation, "distances": found.distance}
    outputs |= {"biases": found.offset, "delta_vertices": found.offsets, "lights": found.light, "bg": found.background}
    outputs |= {"vertices": model.vertices + found.offsets, "texture_flow": found.flow, "textures": found.texture}
    assert outputs.keys() == kit.facts["golden"]["outputs"].keys()
    for output, value in outputs.items():
        kit.check(output, value)


@pytest.mark.skipif(not KIT, reason=f"no parity kit in {parity_folder()} (RECON_PARITY_DIR)")
def test_the_imported_network_gives_the_originals_numbers(store):
    held_to_the_kit("magicmirror", store)


@pytest.mark.skipif(not KIT, reason=f"no parity kit in {parity_folder()} (RECON_PARITY_DIR)")
def test_the_birds_network_gives_the_originals_numbers(tmp_path):
    store = Assets(catalogue().assets, tmp_path / "assets")
    (line,) = store.add(checkpoint(tmp_path, "magicmirror_cub"), "casl-cub")
    assert line.startswith("casl-cub-published: ")
    held_to_the_kit("magicmirror_cub", store)


def test_a_photos_middle_is_read_and_the_mesh_has_the_published_map(store):
    """What lies beside the middle of a square crop is nothing to a network of narrow photos."""
    method = PublishedCASL.from_assets(CASLConfig(weights="published"), store)
    image = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    image[1] = image[0]
    image[1, :, :, :60] = 0
    mask = torch.zeros(2, 1, 256, 256)
    mask[:, :, 20:230, 90:160] = 1
    affine = torch.eye(3)[:2].expand(2, 2, 3)
    camera = Camera.perspective(300.0, (256, 256), batch=2)
    found = method.predict(Observation(camera, image=image, mask=mask, to_crop=affine))
    assert found.mesh.texture.shape == (2, 3, 256, 64)
    torch.testing.assert_close(found.mesh.texture[:, :, :128], found.mesh.texture[:, :, 128:].flip(2))
    torch.testing.assert_close(found.mesh.uv, prototype().uv)
    torch.testing.assert_close(found.mesh.vertices[0], found.mesh.vertices[1])
    assert (found.extra["distance"] >= 2).all()
    assert (found.extra["elevation_degrees"].abs() <= 25).all()


def test_own_settings_are_refused(store):
    with pytest.raises(UsageError, match="casl.refine is for recon's own networks"):
        PublishedCASL.from_assets(CASLConfig(weights="published", refine=5), store)
    with pytest.raises(AssetError, match="'casl-cub-published' is not here: get best_ckpt.pth from https://"):
        PublishedCASL.from_assets(CASLConfig(weights="published-cub"), store)


def moved(published, folder):
    """The three files elsewhere, the large one not copied."""
    (folder / "ckpts").mkdir()
    os.link(published, folder / "ckpts" / "best_ckpt.pth")
    shutil.copy(published.with_name("best_mesh.obj"), folder / "ckpts")
    shutil.copy(published.parents[1] / "opts.yaml", folder)
    return folder / "ckpts" / "best_ckpt.pth"


MESH, OPTS = "ckpts/best_mesh.obj", "opts.yaml"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (MESH, None, r"best_mesh\.obj: cannot be read .*needs the prototype that was published with it"),
        (
            MESH,
            lambda text: text[: len(text) // 2],
            r"best_mesh\.obj: not the prototype .*it has no faces; is it cut off",
        ),
        (
            MESH,
            lambda text: text.partition("\n")[2],
            r"best_mesh\.obj: .*it has 641 vertices, the checkpoint is for 642",
        ),
        (MESH, lambda text: text.rpartition("\n")[0], r"best_mesh\.obj: .*it has 1279 faces, a closed surface .* 1280"),
        (MESH, lambda text: text.replace("/", "//"), r"best_mesh\.obj: .*no triangle with texture coordinates"),
        (OPTS, None, r"opts\.yaml: missing; the checkpoint needs the options"),
        (OPTS, lambda text: text.replace("ratio: 2\n", ""), r"opts\.yaml: has no option ratio"),
        (OPTS, lambda text: text.replace("360", "180"), r"opts\.yaml: .*azi_scope 180 are not known"),
        (OPTS, lambda text: text.replace("2~6", "6~2"), r"opts\.yaml: .*not of the form 2~6"),
    ],
)
def test_files_beside_the_checkpoint_that_are_missing_or_wrong(published, tmp_path, file, change, message):
    path, spoiled = moved(published, tmp_path), tmp_path / file
    text = spoiled.read_text()
    spoiled.unlink()
    if change:
        spoiled.write_text(change(text))
    with pytest.raises(AssetError, match=message):
        CASLImporter().beside(path)


def test_a_checkpoint_that_is_cut_lacks_entries_or_is_another(published, tmp_path):
    path = moved(published, tmp_path)
    (tmp_path / OPTS).unlink()
    with pytest.raises(AssetError, match="opts.yaml: missing"):
        CASLImporter().add(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    data, cut = published.read_bytes(), tmp_path / "cut.pth"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(AssetError, match=r"cut.pth: truncated or damaged.*get the file again"):
        CASLImporter().matches(cut)
    few = {name: torch.zeros(1) for name in CASLImporter.marks}
    torch.save({"netE": few}, tmp_path / "few.pth")
    assert not BirdsImporter().matches(tmp_path / "few.pth")
    with pytest.raises(AssetError, match=r"few.pth: no checkpoint of CASL .*: \d+ of its \d+ entries are missing"):
        CASLImporter().add(tmp_path / "few.pth", tmp_path / "store")
    torch.save({"netE": {"somebody.else": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="other.pth: is no file of casl"):
        Assets(catalogue().assets, tmp_path / "store").add(tmp_path / "other.pth", "casl")


def test_a_wrong_shape_is_named(tmp_path):
    """One number stands for each entry's, spread out: the file is small, its shapes are whole."""
    with torch.device("meta"):
        state = CASLImporter().module().state_dict()
    whole = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}
    torch.save({"netE": whole | {"shape_enc.linear3.weight": torch.zeros(6, 6)}}, tmp_path / "shape.pth")
    with pytest.raises(
        AssetError, match=r"shape.pth: .*: shape_enc.linear3.weight has shape \(6, 6\), expected \(1926"
    ):
        CASLImporter().add(tmp_path / "shape.pth", tmp_path / "store")


def test_averaged_weights_of_several_devices_are_read_where_there_are_no_others(tmp_path):
    names = {f"module.{name}": torch.zeros(1) for name in CASLImporter.marks}
    torch.save({"epoch": 3, "swa_modelE": names | {"n_averaged": torch.tensor(7)}}, tmp_path / "swa.pth")
    assert CASLImporter().matches(tmp_path / "swa.pth")


def test_the_catalogue_says_what_the_importers_say():
    for importer in (CASLImporter, BirdsImporter):
        asset = catalogue().assets[importer.asset]
        assert (asset.licence, asset.source.page) == (importer.licence, importer.origin)


def test_from_the_published_file_to_a_mesh_on_the_command_line(published, tmp_path):
    photo = np.full((160, 120, 3), 90, np.uint8)
    photo[20:140, 40:80] = (160, 60, 40)
    inside = np.zeros((160, 120), np.uint8)
    inside[20:140, 40:80] = 255
    iio.imwrite(tmp_path / "photo.png", photo)
    iio.imwrite(tmp_path / "mask.png", inside)

    def recon(*arguments):
        environment = os.environ | {"RECON_ASSETS_DIR": str(tmp_path / "assets"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "recon_core.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    run = ("run", "--method", "casl", "--set", "casl.weights=published", "--mask", "mask.png", "photo.png")
    added = recon("assets", "add", "casl", published)
    assert added.returncode == 0, added.stderr
    with safe_open(tmp_path / "assets" / "casl-published.safetensors", "pt") as file:
        assert json.loads(file.metadata()["options"])["height"] == 128
    done = recon(*run)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "photo" / "result.json").read_text())
    assert record["settings"]["casl"]["weights"] == "published"
    assert Path(tmp_path / "out" / "photo" / "scene.glb").read_bytes()[:4] == b"glTF"
