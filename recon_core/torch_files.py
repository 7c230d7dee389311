"""Reads files of `torch.save` without running anything they name; both formats, zip and the older one.

Like `recon_core.safe_pickle`, on which it stands: names in the file get inert stand-ins, and a name that no file of
weights has a use for is refused. `torch.load(weights_only=True)` would refuse the published files as well, in which
training frameworks left objects of their own beside the weights; those are dropped here, unseen.

A tensor's numbers are read when they are asked for, so that a file is recognised from its names and shapes at once
and the optimiser's state, often two thirds of it, is never read.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from recon_core.errors import AssetError
from recon_core.safe_pickle import MAX_ELEMENTS, ArrayUnpickler, Foreign, Function, Inert, plain

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_SUFFIXES = (".pt", ".pth", ".ckpt")
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_FRAMEWORKS = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities|torchmetrics|yacs|omegaconf|argparse|pathlib"
    r"|enum|datetime|typing)(\.\w+)*"
)
"""Modules whose objects trainers leave beside the weights; they are read as nothing."""
_TYPES = {
    (module, name) for module in ("builtins", "__builtin__") for name in ("list", "dict", "tuple", "int", "float")
}
"""Types that a file names without making one, as the factory of a defaultdict."""


class _Dropped(Inert):
    """An object of a training framework: takes whatever the file puts into it and keeps none."""

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


class _Dict(dict[Any, Any]):
    """collections.OrderedDict and its kin, whose attributes (`_metadata` of state dicts) are dropped."""

    def __init__(self, *arguments: Any) -> None:
        # defaultdict is made of a factory, which is not kept; the others of pairs, in old protocols.
        super().__init__(arguments[0] if arguments and isinstance(arguments[0], list | tuple | dict) else ())

    def __setstate__(self, state: Any) -> None: ...


@dataclass
class _Storage:
    """A run of numbers in the file. read: its bytes."""

    dtype: torch.dtype
    count: int
    read: Callable[[], bytes]


class _StorageType(Inert):
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class StoredTensor(Foreign):
    """A tensor in an open file: its shape and dtype are known, `load` reads the numbers."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self._storage, self._offset, self._stride = storage, offset, stride
        self.shape = shape

    @property
    def dtype(self) -> torch.dtype:
        return self._storage.dtype

    def load(self) -> Tensor:
        """The tensor, on the CPU. Raises ValueError where the file holds fewer numbers than it says."""
        if math.prod(self.shape) == 0:
            return torch.zeros(self.shape, dtype=self.dtype)
        data = self._storage.read()
        if len(data) != self._storage.count * self.dtype.itemsize:
            raise ValueError(f"a tensor of shape {self.shape} lacks numbers")
        flat = torch.frombuffer(bytearray(data), dtype=self.dtype)
        return torch.as_strided(flat, self.shape, self._stride, self._offset).clone()


@Function
def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    shape, stride = tuple(shape), tuple(stride)
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or len(shape) != len(stride) or not all(type(n) is int for n in numbers):
        raise pickle.UnpicklingError("a tensor that is made of no storage")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    count = math.prod(shape)
    if min(numbers) < 0 or count > MAX_ELEMENTS or (count and last >= storage.count):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} reaches beyond its storage")
    return StoredTensor(storage, offset, shape, stride)


@Function
def _parameter(value: Any, *_: Any) -> Any:
    """torch._utils._rebuild_parameter."""
    return value


@Function
def _dropped(*_: Any) -> _Dropped:
    return _Dropped()


_TORCH_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch", "Size"): Function(lambda values=(): tuple(values)),
    ("torch", "device"): _dropped,
    ("collections", "OrderedDict"): _Dict,
    ("collections", "defaultdict"): _Dict,
    ("collections", "Counter"): _Dict,
}


class _Unpickler(ArrayUnpickler):
    def __init__(self, file: Any, storage: Callable[[str, torch.dtype, int], _Storage]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TORCH_NAMES:
            return _TORCH_NAMES[module, name]
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return _Dropped()
        if (_FRAMEWORKS.fullmatch(module) and name.isidentifier()) or (module, name) in _TYPES:
            return _Dropped
        return super().find_class(module, name)

    def persistent_load(self, reference: Any) -> _Storage:
        kind, what, key, _, count, *rest = reference
        if kind != "storage" or not isinstance(what, _StorageType) or type(count) is not int or count < 0 or any(rest):
            raise pickle.UnpicklingError("it refers to something other than a run of numbers")
        return self._storage(str(key), what.dtype, count)


def is_torch_file(path: Path) -> bool:
    """Whether a file is, or by its name should be, one of `torch.save`."""
    if path.suffix in _SUFFIXES:
        return True
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _main_record(archive) is not None
        with path.open("rb") as file:
            # Protocol 2, then the magic number, as the older format always begins.
            return file.read(14) == pickle.dumps(_LEGACY_MAGIC, protocol=2)[:14]
    except (OSError, zipfile.BadZipFile):
        return False


@contextmanager
def open_torch_file(path: Path) -> Iterator[dict[str, Any]]:
    """The dictionary in a file of `torch.save`: tensors as `StoredTensor`, which can be loaded while it is open.

    Raises AssetError, from `StoredTensor.load` in the block too, when the file is missing, truncated or none of
    `torch.save`, when it holds something else than a dictionary, and when it asks for any name that weights have no
    use for, naming it.
    """
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    yield _dictionary(_read_zip(archive))
            else:
                file.seek(0)
                yield _dictionary(_read_legacy(file))
    except AssetError as error:
        raise error if str(path) in str(error) else AssetError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise AssetError(f"{path}: no such file") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> AssetError:
    reason = ascii(str(error) or type(error).__name__)[1:-1][:120]
    return AssetError(f"{path}: truncated or damaged, or no file of torch.save ({reason}); get the file again")


def _dictionary(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise AssetError(f"holds a {type(content).__name__.strip('_')}, not a dictionary of weights")
    return {str(key): plain(value) for key, value in content.items() if not isinstance(key, type | Inert)}


def _loaded(unpickler: pickle.Unpickler) -> Any:
    try:
        return unpickler.load()
    except (AssetError, OSError):
        raise
    except Exception as error:  # a broken pickle raises almost anything
        raise ValueError(str(error) or type(error).__name__) from error


def _main_record(archive: zipfile.ZipFile) -> str | None:
    return next((n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")), None)


def _read_zip(archive: zipfile.ZipFile) -> Any:
    """Records `name/data.pkl`, the pickle, and `name/data/KEY`, one a storage."""
    main = _main_record(archive)
    if main is None:
        raise AssetError("a zip archive, but none of torch.save")
    folder = main.removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.namelist():
        raise AssetError("a TorchScript program, not a file of weights; ask for the state dict")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise AssetError("written on a big-endian machine, which is not read; save it again on another")

    def storage(key: str, dtype: torch.dtype, count: int) -> _Storage:
        try:
            info = archive.getinfo(f"{folder}data/{key}")
        except KeyError:
            raise ValueError(f"record {key} is missing") from None
        if info.file_size != count * dtype.itemsize:
            raise ValueError(f"record {key} has {info.file_size} bytes")
        return _Storage(dtype, count, lambda: archive.read(info))

    with archive.open(main) as file:
        return _loaded(_Unpickler(file, storage))


def _read_legacy(file: BinaryIO) -> Any:
    """Pickles one after the other (magic number, version, system, content, keys), then each storage's numbers."""
    stored: dict[str, _Storage] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> _Storage:
        found = stored.setdefault(key, _Storage(dtype, count, lambda: b""))
        if (found.dtype, found.count) != (dtype, count):
            raise ValueError(f"storage {key} is described in two ways")
        return found

    def following() -> Any:
        return _loaded(_Unpickler(file, storage))

    if following() != _LEGACY_MAGIC:
        raise ValueError("it does not begin as one")
    following()
    system = following()
    if not (isinstance(system, dict) and system.get("little_endian", True)):
        raise AssetError("written on a big-endian machine, which is not read; save it again on another")
    content, keys = following(), following()
    place = file.tell()
    end = file.seek(0, 2)
    for key in keys if isinstance(keys, list) else ():
        found = stored.get(str(key))
        if found is None:
            raise ValueError(f"storage {key} belongs to no tensor")
        file.seek(place)
        count = int.from_bytes(file.read(8), "little")
        size = count * found.dtype.itemsize
        if count != found.count or place + 8 + size > end:
            raise ValueError(f"storage {key} is cut off")
        found.read = _reader(file, place + 8, size)
        place += 8 + size
    return content


def _reader(file: BinaryIO, place: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        file.seek(place)
        return file.read(size)

    return read
