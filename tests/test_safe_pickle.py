"""The unpickler builds arrays and runs nothing."""

from __future__ import annotations

import os
import pickle
import pickletools
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from recon_core.errors import AssetError
from recon_core.safe_pickle import load_arrays

PROTOCOLS = (0, 2, 4, 5)


def write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class Calls:
    """Pickles to a call of `function(*arguments)`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_numbers_and_text_come_back(tmp_path: Path, protocol: int) -> None:
    content = {
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "integers": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "big_endian": np.arange(4, dtype=">f4"),
        "empty": np.zeros((0, 3)),
        "scalar": np.float64(2.5),
        "text": "lrotmin",
        "nested": [1, {"a": (2.0, None)}],
    }
    read = load_arrays(write(tmp_path / "a.pkl", content, protocol))
    for name in ("fortran", "integers", "big_endian", "empty"):
        np.testing.assert_array_equal(read[name], content[name])
        assert read[name].dtype == content[name].dtype
    assert read["scalar"] == 2.5
    assert read["text"] == "lrotmin"
    assert read["nested"] == [1, {"a": (2.0, None)}]


@pytest.mark.parametrize("layout", ["csc_matrix", "csr_matrix", "coo_matrix", "csc_array", "coo_array"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sparse_matrices_come_back_dense(tmp_path: Path, layout: str, protocol: int) -> None:
    dense = np.random.default_rng(0).random((5, 7)) * (np.random.default_rng(1).random((5, 7)) < 0.3)
    path = write(tmp_path / "s.pkl", {"J_regressor": getattr(scipy.sparse, layout)(dense)}, protocol)
    np.testing.assert_array_equal(load_arrays(path)["J_regressor"], dense)


@pytest.fixture
def chumpy(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Modules named as chumpy's, with classes that pickle as chumpy's do. Gone again when the file is read."""
    package, ch, reordering = (types.ModuleType(n) for n in ("chumpy", "chumpy.ch", "chumpy.reordering"))
    ch.Ch = type("Ch", (), {"__module__": "chumpy.ch"})
    reordering.Select = type("Select", (ch.Ch,), {"__module__": "chumpy.reordering"})
    for module in (package, ch, reordering):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    package.ch, package.reordering = ch, reordering
    return package


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_chumpy_objects_become_their_arrays_without_chumpy(
    tmp_path: Path, chumpy: types.ModuleType, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    plain, picked = chumpy.ch.Ch(), chumpy.reordering.Select()
    plain.__dict__ |= {"x": np.arange(6.0).reshape(2, 3), "_dirty_vars": set(), "_cached": None}
    picked.__dict__ |= {"a": plain, "idxs": np.array([5, 0]), "preferred_shape": (1, 2)}
    path = write(tmp_path / "c.pkl", {"v_template": plain, "shapedirs": picked}, protocol)
    for name in ("chumpy", "chumpy.ch", "chumpy.reordering"):
        monkeypatch.delitem(sys.modules, name)
    read = load_arrays(path)
    np.testing.assert_array_equal(read["v_template"], np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(read["shapedirs"], [[5.0, 0.0]])


def test_computed_chumpy_objects_are_named(tmp_path: Path, chumpy: types.ModuleType) -> None:
    path = write(tmp_path / "c.pkl", {"v_template": chumpy.ch.Ch()})
    with pytest.raises(AssetError, match="chumpy object that is computed"):
        load_arrays(path)


def test_python_2_pickles(tmp_path: Path) -> None:
    # What Python 2.7 writes for {'w': numpy.array([1., 2.])} with protocol 2: text for keys and for the bytes.
    data = np.array([1.0, 2.0]).tobytes()
    program = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10"
        + data
        + b"tbs."
    )
    pickletools.dis(program, out=open(os.devnull, "w"))  # noqa: SIM115 - raises if the program is malformed
    path = tmp_path / "two.pkl"
    path.write_bytes(program)
    np.testing.assert_array_equal(load_arrays(path)["w"], [1.0, 2.0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda mark: Calls(os.system, f"touch {mark}"), r"(posix|nt)\.system"),
        (lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"), r"(builtins|__builtin__)\.eval"),
        (lambda mark: {"v": [np.zeros(2), Calls(os.mkdir, str(mark))]}, r"posix\.mkdir"),
        (lambda mark: Calls(getattr, 1, "real"), r"(builtins|__builtin__)\.getattr"),
        (lambda mark: Calls(np.save, str(mark), np.zeros(1)), r"numpy.*\.save"),
        (lambda mark: Calls(scipy.sparse.save_npz, str(mark), np.zeros(1)), r"scipy.*save_npz"),
    ],
)
def test_calls_are_refused_and_never_made(tmp_path: Path, protocol: int, call: object, named: str) -> None:
    mark = tmp_path / "mark"
    path = write(tmp_path / "evil.pkl", {"v_template": np.zeros(3), "x": call(mark)}, protocol)
    with pytest.raises(AssetError, match=named) as error:
        load_arrays(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("mark*"))


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch MARK'\ntR.",
        b"(S'touch MARK'\nios\nsystem\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0atouch MARK\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x0dobject.__init\x93.",
        b"\x80\x04\x8c\x06chumpy\x8c\x0cch.os.system\x93\x8c\x0atouch MARK\x85R.",
        # Builds state onto the stand-ins themselves: their dictionaries, and their attributes.
        b"\x80\x04\x8c\x07_codecs\x8c\x06encode\x93}\x8c\x01aK\x01sb.",
        b"\x80\x04\x8c\x07_codecs\x8c\x06encode\x93N}\x8c\x0c__defaults__K\x01\x85s\x86b.",
        b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93N}\x8c\x0c__setstate__K\x01s\x86b.",
        b"\x80\x04\x8c\x08builtins\x8c\x06object\x93N}\x8c\x07__new__K\x01s\x86b.",
        b"\x80\x04\x8c\x05numpy\x8c\x0fdtype.mro.x.y.z\x93)R.",
    ],
)
def test_handwritten_programs_are_refused(tmp_path: Path, program: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "evil.pkl"
    path.write_bytes(program.replace(b"MARK", b"mark"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssetError):
        load_arrays(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_no_part_of_a_file_crashes_when_it_is_cut(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps({"a": np.arange(50.0), "s": scipy.sparse.csc_matrix(np.eye(4))}, protocol=protocol)
    path = tmp_path / "cut.pkl"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(AssetError, match=r"cut\.pkl"):
            load_arrays(path)


def test_flipped_bytes_give_an_asset_error_or_other_numbers(tmp_path: Path) -> None:
    whole = pickle.dumps({"a": np.arange(5.0), "s": scipy.sparse.csc_matrix(np.eye(4))}, protocol=2)
    rng = np.random.default_rng(0)
    path = tmp_path / "flip.pkl"
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            assert isinstance(load_arrays(path), dict)
        except AssetError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("content", [[1, 2], None, "text", np.zeros(3)])
def test_other_content_than_a_dictionary_is_named(tmp_path: Path, content: object) -> None:
    with pytest.raises(AssetError, match=r"holds a \w+, not a dictionary"):
        load_arrays(write(tmp_path / "x.pkl", content))


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="no such file"):
        load_arrays(tmp_path / "none.pkl")
    (tmp_path / "text.pkl").write_text("hello")
    with pytest.raises(AssetError, match="damaged, or no pickle"):
        load_arrays(tmp_path / "text.pkl")
    with pytest.raises(AssetError, match="cannot be read"):
        load_arrays(tmp_path)


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    matrix = scipy.sparse.csc_matrix((10, 3))
    matrix._shape = (1 << 30, 1 << 30)
    with pytest.raises(AssetError, match="too large"):
        load_arrays(write(tmp_path / "big.pkl", {"J_regressor": matrix}))
