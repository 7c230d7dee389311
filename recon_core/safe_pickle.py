"""Reads pickles of arrays without running anything they name.

A pickle is a program: it may call whatever it can import. This reader imports nothing. Every name in the file
either stands in a short table here, and gets an inert stand-in that only keeps what it is given, or the file
is refused with the name it asked for. Arrays are rebuilt from their bytes after the load, sparse matrices
densified, and chumpy objects (in which SMPL files wrap their arrays) replaced by the array they hold.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from recon_core.errors import AssetError

MAX_ELEMENTS = 1 << 28
"""Largest array that is rebuilt (2 GB of doubles); the largest of any body file is far below."""


class Inert:
    """Takes any state and does nothing with it. A file may make one without calling `__init__`."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(Inert):
    """numpy.ndarray: its state is (version, shape, dtype, Fortran order, bytes or list of objects)."""


class _Dtype(Inert):
    """numpy.dtype: made of its code ("f8"); its state holds the byte order second."""


class _Scalar(Inert):
    """A numpy scalar: made of its dtype and bytes."""


class _Sparse(Inert):
    """A scipy.sparse matrix in compressed rows, columns, or coordinates."""

    layout: ClassVar[str]


class _CompressedColumns(_Sparse):
    layout = "csc"


class _CompressedRows(_Sparse):
    layout = "csr"


class _Coordinates(_Sparse):
    layout = "coo"


class _Chumpy(Inert):
    """A chumpy object: its state is a dict of attributes; `x` is the array of a plain one."""


class _ChumpySelect(_Chumpy):
    """chumpy.reordering.Select: elements `idxs` of the flattened `a`, in shape `preferred_shape`."""


class _Object(Inert):
    """`object`, which pickles name as a base class."""


class Foreign(Inert):
    """What the reader of another format rebuilds by itself: `plain` leaves it as it is."""


class Function:
    """A function that a file may call but, unlike a plain one, not set attributes of."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


@Function
def _new_array(*_: Any) -> _Array:
    """numpy's _reconstruct(ndarray, (0,), b"b"): an empty array that gets its state later."""
    return _Array()


@Function
def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """numpy's _frombuffer, by which protocol 5 writes arrays."""
    made = _Array()
    made.state = (1, shape, dtype, order == "F", data)
    return made


@Function
def _no_bytes(*arguments: Any) -> bytes:
    """How old protocols write b""."""
    if arguments:
        raise pickle.UnpicklingError("it makes bytes of something")
    return b""


@Function
def _new_instance(kind: Any, *_: Any) -> Any:
    """copyreg's _reconstructor(kind, object, None)."""
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        raise pickle.UnpicklingError("it makes an object of no known kind")
    return kind()


@Function
def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes into old protocols: text to be encoded as latin1."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("it encodes something other than bytes")
    return text.encode("latin1")


_NUMPY = re.compile(r"numpy\.(core|_core)\.multiarray|numpy\.(core|_core)\.numeric|numpy")
_SCIPY = re.compile(r"scipy\.sparse(\._?(csc|csr|coo|matrix|base))?")
_NUMPY_NAMES = {
    "_reconstruct": _new_array,
    "_frombuffer": _array_of_buffer,
    "ndarray": _Array,
    "dtype": _Dtype,
    "scalar": _Scalar,
}
_SPARSE_NAMES = {
    f"{layout.layout}_{form}": layout
    for layout in (_CompressedColumns, _CompressedRows, _Coordinates)
    for form in ("matrix", "array")
}
_PLAIN_NAMES: dict[tuple[str, str], Any] = {
    ("copy_reg", "_reconstructor"): _new_instance,
    ("copyreg", "_reconstructor"): _new_instance,
    ("_codecs", "encode"): _encode,
}
for _module in ("builtins", "__builtin__"):
    _PLAIN_NAMES |= {(_module, "object"): _Object, (_module, "bytes"): _no_bytes, (_module, "set"): Inert}


class ArrayUnpickler(pickle.Unpickler):
    """Looks up names in the tables above, and refuses any other with an AssetError."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN_NAMES:
            return _PLAIN_NAMES[module, name]
        if _NUMPY.fullmatch(module) and name in _NUMPY_NAMES:
            return _NUMPY_NAMES[name]
        if _SCIPY.fullmatch(module) and name in _SPARSE_NAMES:
            return _SPARSE_NAMES[name]
        if module.partition(".")[0] == "chumpy" and name.isidentifier():
            return _ChumpySelect if name == "Select" else _Chumpy
        named = re.sub(r"[^\w.]", "?", f"{module}.{name}")[:80]
        raise AssetError(
            f"refused: it asks for {named}, and a file of arrays has no use for it; do not load it elsewhere"
        )


def load_arrays(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle of Python 2 or 3, holding numpy arrays, numbers, text, lists and dicts.

    Sparse matrices come as dense arrays, chumpy objects as the arrays they hold. Nothing that the file names is
    imported or called. Raises AssetError when the file is missing, truncated or no pickle, when it holds
    something else than a dictionary, and when it asks for any other global, naming it.
    """
    try:
        with path.open("rb") as file:
            # latin1: Python 2 kept bytes in text, which this reads one to one.
            content = ArrayUnpickler(file, encoding="latin1").load()
        if not isinstance(content, dict):
            raise AssetError(f"holds a {type(content).__name__}, not a dictionary of arrays")
        return {_text(key): plain(value) for key, value in content.items()}
    except AssetError as error:
        raise AssetError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise AssetError(f"{path}: no such file") from None
    except OSError as error:
        raise AssetError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a broken pickle raises almost anything
        reason = ascii(str(error) or type(error).__name__)[1:-1][:120]
        raise AssetError(f"{path}: damaged, or no pickle of arrays ({reason}); get the file again") from None


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


def plain(value: Any, depth: int = 0) -> Any:
    """What the stand-ins stood for, as arrays and builtin values."""
    if depth > 50:
        raise ValueError("nested too deeply")
    if isinstance(value, Foreign):
        return value
    if isinstance(value, _Array):
        return _array(value, depth)
    if isinstance(value, _Scalar):
        kind, data = value.arguments
        return np.frombuffer(_bytes(data), _dtype(kind), 1)[0]
    if isinstance(value, _Sparse):
        return _dense(value, depth)
    if isinstance(value, _Chumpy):
        return _chumpy_array(value, depth)
    if isinstance(value, dict):
        return {_text(k): plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v, depth + 1) for v in value)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    return None  # a set, a class or a stray stand-in: nothing a file of arrays is read for


def _bytes(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def _dtype(stand_in: Any) -> np.dtype:
    if not isinstance(stand_in, _Dtype) or not stand_in.arguments:
        raise ValueError("array without a dtype")
    code = _text(stand_in.arguments[0])
    if not re.fullmatch(r"[biufcSUO]\d{0,4}", code):
        raise ValueError(f"array of unknown dtype {code[:40]!r}")
    state = stand_in.state
    order = _text(state[1]) if isinstance(state, tuple) and len(state) > 1 else "|"
    return np.dtype(code).newbyteorder("<" if order == "<" else ">" if order == ">" else "=")


def _array(value: _Array, depth: int) -> np.ndarray | list[Any]:
    _, shape, kind, fortran, data = value.state
    shape = tuple(int(n) for n in shape)
    dtype = _dtype(kind)
    count = _checked_size(shape)
    if dtype.hasobject:
        return [plain(v, depth + 1) for v in data]
    raw = _bytes(data)
    if len(raw) != count * dtype.itemsize:
        raise ValueError(f"array of shape {shape} with {len(raw)} bytes")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C").copy()


def _checked_size(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        if n < 0:
            raise ValueError(f"array of shape {shape}")
        count *= n
    if count > MAX_ELEMENTS or len(shape) > 8:
        raise ValueError(f"array of shape {shape} is too large")
    return count


def _dense(value: _Sparse, depth: int) -> np.ndarray:
    state = {key.lstrip("_"): plain(v, depth + 1) for key, v in value.state.items()}
    rows, columns = (int(n) for n in state["shape"])
    _checked_size((rows, columns))
    data = np.asarray(state["data"])
    dense = np.zeros((rows, columns), data.dtype)
    if value.layout == "coo":
        place = state["coords"] if "coords" in state else (state["row"], state["col"])
        np.add.at(dense, tuple(np.asarray(p, np.int64) for p in place), data)
        return dense
    pointer, index = np.asarray(state["indptr"], np.int64), np.asarray(state["indices"], np.int64)
    along = np.repeat(np.arange(len(pointer) - 1), np.diff(pointer))
    np.add.at(dense, (along, index) if value.layout == "csr" else (index, along), data)
    return dense


def _chumpy_array(value: _Chumpy, depth: int) -> Any:
    state = value.state if isinstance(value.state, dict) else {}
    if isinstance(value, _ChumpySelect):
        source = np.asarray(plain(state["a"], depth + 1))
        index = np.asarray(plain(state["idxs"], depth + 1), np.int64)
        return source.ravel()[index].reshape([int(n) for n in plain(state["preferred_shape"], depth + 1)])
    if "x" in state:
        return plain(state["x"], depth + 1)
    raise AssetError("holds a chumpy object that is computed from others; save it as plain arrays first")
