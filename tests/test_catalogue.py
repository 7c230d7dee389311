"""registry.toml is well formed, and says what entry points and code say."""

from __future__ import annotations

import hashlib
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from recon_core.catalogue import Catalogue, InPackage, catalogue, read_catalogue
from recon_core.errors import ReconError
from recon_core.plugins import registry

ROOT = Path(__file__).parents[1]
PAPERS = {"prohmr", "spin", "cmr", "multiperson", "acap-vae", "casl", "semantic-uv", "spice"}


def test_the_shipped_file_has_the_types_it_declares():
    tables = tomllib.loads((ROOT / "registry.toml").read_text())
    assert TypeAdapter(Catalogue).validate_python(tables) == catalogue()


def test_every_paper_is_listed_with_its_figures():
    methods = catalogue().methods
    assert set(methods) >= PAPERS
    for name in PAPERS:
        assert methods[name].reported, name
        assert all("table" in figure.source for figure in methods[name].reported), name


def test_what_is_available_is_registered_and_the_rest_is_not():
    known = registry()
    for kind, name, record in catalogue().parts():
        packages = [entry.package for entry in known.candidates(kind, name)]
        assert packages == ([record.package] if record.status == "available" else []), f"{kind} {name}"
        if record.status == "available":
            assert record.code_licence == metadata.metadata(record.package)["License-Expression"], name
            # The install line is for a checkout; it names the folder that holds the package.
            folder = ROOT / record.install.split()[2]
            assert tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"] == record.package
        else:
            assert not record.install
            assert not record.code_licence


def test_every_installed_method_body_and_detector_of_recon_is_listed():
    listed = catalogue().owners()
    for kind in ("method", "body", "detector"):
        for name in registry().names(kind):
            if registry().entry(kind, name).package.startswith("recon-"):
                assert (kind, name) in listed, f"{kind} '{name}' is missing from registry.toml"


def test_methods_say_what_their_code_says():
    for name, record in catalogue().methods.items():
        if record.status == "available":
            method = registry().load("method", name)
            assert set(record.inputs) == set(method.inputs), name
            assert set(record.outputs) == set(method.outputs), name
    for name, record in catalogue().detectors.items():
        assert set(record.gives) == set(registry().load("detector", name).gives), name


def test_assets_are_listed_can_be_verified_and_are_what_ships():
    listed = catalogue()
    needed = {asset for _, _, part in listed.parts() for asset in part.assets}
    assert needed <= set(listed.assets)
    for name, asset in listed.assets.items():
        if asset.source.via != "user":
            assert len(asset.sha256) == 64, name
            assert asset.size > 0, name
        if isinstance(asset.source, InPackage):
            data = (resources.files(asset.source.package) / asset.source.path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (asset.size, asset.sha256), name


def test_weights_name_their_data_and_the_licence_of_the_method_follows():
    listed = catalogue()
    for name, method in listed.methods.items():
        for asset in (listed.assets[a] for a in method.assets):
            if asset.kind == "weights":
                assert asset.data, name
                assert method.weights_licence == asset.licence, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[methods.x]\ntitle = 1", r"\[methods.x\]: 'paper'"),
        ("[bodies.x]\ntitle = 'x'\npackage = 'p'\ncolour = 'red'", r"\[bodies.x\].*colour"),
        ("[assets.x]\nkind = 'body'\nsummary = ''\nlicence = ''\nsource.via = 'ftp'", r"\[assets.x\]: 'ftp'"),
        ("[method.x]\ntitle = 'x'", r"\[method.x\]: 'method'"),
        ("[", "not valid TOML"),
    ],
)
def test_a_wrong_catalogue_names_the_entry(tmp_path, text, message):
    file = tmp_path / "registry.toml"
    file.write_text(text)
    with pytest.raises(ReconError, match=rf"registry.toml: .*{message}|registry.toml: {message}"):
        read_catalogue(file)


def test_a_missing_catalogue_is_named(tmp_path):
    with pytest.raises(ReconError, match=r"none.toml: cannot be read \(No such file or directory\)"):
        read_catalogue(tmp_path / "none.toml")
