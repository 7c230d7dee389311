"""Files of torch.save are read as torch reads them, and run nothing."""

from __future__ import annotations

import collections
import os
import pathlib
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from recon_core.errors import AssetError
from recon_core.torch_files import StoredTensor, is_torch_file, open_torch_file

BOTH = pytest.mark.parametrize("zipped", [True, False])


def save(content: object, path: Path, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@BOTH
def test_tensors_of_every_kind_come_back(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": base,
        "view": base[1:3, ::2].T,
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 5),
        "flags": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    tensors |= {str(kind): base.to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16, torch.int32)}
    with open_torch_file(save({"state": tensors, "epoch": 3}, tmp_path / "a.pt", zipped)) as content:
        assert content["epoch"] == 3
        for name, wanted in tensors.items():
            stored = content["state"][name]
            assert (stored.shape, stored.dtype) == (tuple(wanted.shape), wanted.dtype)
            torch.testing.assert_close(stored.load(), wanted.detach(), atol=0, rtol=0)


@BOTH
def test_a_modules_state_dict_and_what_trainers_leave_beside_it(tmp_path: Path, zipped: bool) -> None:
    module = torch.nn.BatchNorm1d(3)
    beside = {
        "counts": collections.defaultdict(list, {"a": [1]}),
        "folder": pathlib.PurePosixPath("/tmp"),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "size": torch.Size([2]),
    }
    with open_torch_file(save({"model": module.state_dict(), **beside}, tmp_path / "a.pt", zipped)) as content:
        assert {name: value.shape for name, value in content["model"].items()} == {
            name: tuple(value.shape) for name, value in module.state_dict().items()
        }
        assert content["counts"] == {"a": [1]}


@BOTH
def test_a_file_is_known_by_its_first_bytes_or_its_name(tmp_path: Path, zipped: bool) -> None:
    assert is_torch_file(save({}, tmp_path / "no_suffix", zipped))
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("a.npy", b"")
    assert not is_torch_file(tmp_path / "other.pkl")
    assert not is_torch_file(tmp_path / "other.npz")
    assert is_torch_file(tmp_path / "gone.ckpt")


@BOTH
def test_every_truncation_is_named(tmp_path: Path, zipped: bool) -> None:
    data = save({"model": {"w": torch.ones(300)}}, tmp_path / "a.pt", zipped).read_bytes()
    cut = tmp_path / "cut.pt"
    for length in range(0, len(data) - 1, 37):
        cut.write_bytes(data[:length])
        with pytest.raises(AssetError, match=r"cut.pt: truncated or damaged"), open_torch_file(cut) as content:
            content["model"]["w"].load()


def test_a_changed_number_in_a_zip_is_noticed(tmp_path: Path) -> None:
    path = save({"w": torch.full((50,), 2.0)}, tmp_path / "a.pt", zipped=True)
    number = torch.full((50,), 2.0).numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(number, b"\1" + number[1:]))
    with pytest.raises(AssetError, match="a.pt: truncated or damaged"), open_torch_file(path) as content:
        content["w"].load()


class _Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@BOTH
@pytest.mark.parametrize("function", [os.system, eval, getattr, torch.load, torch.hub.load])
def test_a_file_that_calls_something_is_refused_unrun(tmp_path: Path, zipped: bool, function: object) -> None:
    path = save({"model": _Calls(function, "touch " + str(tmp_path / "ran"))}, tmp_path / "evil.pt", zipped)
    with pytest.raises(AssetError, match=r"evil.pt: refused: it asks for"), open_torch_file(path):
        pass
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("shape", "stride", "offset"), [((3, 3), (3, 1), 0), ((4,), (1,), 1), ((2,), (-1,), 1), ((1 << 40,), (0,), 0)]
)
def test_tensors_that_reach_beyond_their_numbers_are_refused(
    tmp_path: Path, shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    class Reaching(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if value == "numbers" else None

    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("a/data.pkl", "w") as file:
            rebuild = _Calls(torch._utils._rebuild_tensor_v2, "numbers", offset, shape, stride, False, None)
            Reaching(file, protocol=2).dump({"w": rebuild})
        archive.writestr("a/data/0", bytes(16))
    with pytest.raises(AssetError, match="reaches beyond its storage"), open_torch_file(path):
        pass


@BOTH
def test_what_holds_no_dictionary_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = save([torch.ones(2)], tmp_path / "a.pt", zipped)
    with pytest.raises(AssetError, match="a.pt: holds a list, not a dictionary"), open_torch_file(path):
        pass
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    with pytest.raises(AssetError, match="TorchScript"), open_torch_file(path):
        pass
    with pytest.raises(AssetError, match=r"gone.pt: no such file"), open_torch_file(tmp_path / "gone.pt"):
        pass


def test_a_file_may_not_make_stored_tensors_itself(tmp_path: Path) -> None:
    path = save({"w": _Calls(StoredTensor, 1, 2, 3, 4)}, tmp_path / "a.pt", zipped=True)
    with (
        pytest.raises(AssetError, match="refused: it asks for recon_core.torch_files.StoredTensor"),
        open_torch_file(path),
    ):
        pass
