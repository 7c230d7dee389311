"""A result folder, which appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from recon_core.errors import InputError, OutputError, UsageError, nearest
from recon_core.reconstruction import Reconstruction

if TYPE_CHECKING:
    from recon_core.interfaces import Renderer

RESULT = "result.json"
"""The file whose presence marks a finished result."""

_PARTIAL = ".recon-partial-"
"""Prefix of folders under construction. One that is left over (power cut, kill) may be deleted."""

Exporter = Callable[[Reconstruction, Path], list[Path]]
"""What an exporter is: writes its files for a reconstruction into a folder, returns their paths."""


def save(
    reconstruction: Reconstruction,
    folder: Path,
    formats: Iterable[str] = (),
    renderer: str = "warp",
    overwrite: bool = False,
) -> list[Path]:
    """See `Reconstruction.save`."""
    from recon_core.plugins import registry

    exporters = [exporter(name) for name in formats]
    with new_folder(folder, overwrite) as partial:
        write_files(reconstruction, partial, renderer)
        for export in exporters:
            export(reconstruction, partial)
        registry().call("recon_export", reconstruction=reconstruction, folder=partial)
        names = sorted(path.relative_to(partial) for path in partial.rglob("*") if path.is_file())
    return [folder / name for name in names]


def write_files(reconstruction: Reconstruction, folder: Path, renderer: str) -> None:
    """The files that every result has."""
    from recon_core.export.glb import write_glb
    from recon_core.export.json_npz import image_name, write_json, write_npz
    from recon_core.export.pictures import overlay
    from recon_core.export.report import write_report

    for i, picture in enumerate(reconstruction.images):
        name = image_name(i, len(reconstruction.images))
        Image.fromarray(picture.pixels).save(folder / name, compress_level=1)
    write_npz(reconstruction, folder / "result.npz")
    drawn = None
    if meshes := reconstruction.meshes():
        write_glb(reconstruction, folder / "scene.glb")
        drawn = overlay(
            reconstruction.photo,
            list(meshes.values()),
            reconstruction.camera,
            renderer_named(renderer),
        )
        # Level 1 is 5 times as fast as the default and the file a tenth larger.
        Image.fromarray(drawn).save(folder / "overlay.png", compress_level=1)
    write_report(reconstruction, drawn, folder / "report.html")
    write_json(reconstruction, folder / RESULT)


def exporter(name: str) -> Exporter:
    """The writer of one `--format`. Raises UsageError naming the nearest one."""
    from recon_core.plugins import registry

    registered = registry().names("exporter")
    if name not in registered:
        raise UsageError(f"--format: unknown format '{name}'{nearest(name, registered)}")
    return registry().load("exporter", name)


@cache
def renderer_named(name: str) -> Renderer:
    """The process's renderer of that name: its start (compiled kernels) is paid once."""
    from recon_core.plugins import registry

    return registry().create("renderer", name)


def run_renderer(reconstruction: Reconstruction) -> Renderer:
    """The renderer that the run was set to, for exporters that draw; "warp" where the settings name none."""
    return renderer_named(reconstruction.settings.get("run", {}).get("renderer", "warp"))


@contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which is moved to `folder` when the block ends well and removed when it does not.

    Raises InputError when `folder` is there already: with `overwrite` it is replaced if it holds a result, so that
    no other folder of the user is ever deleted. An OSError in the block becomes an OutputError that names the folder.
    """
    _refuse_existing(folder, overwrite)
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder.parent))
        partial.chmod(0o777 & ~_umask())
        yield partial
        _refuse_existing(folder, overwrite)
        _move(partial, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def unwritable(folder: Path, error: OSError) -> OutputError:
    """The line for an output folder that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if full else (error.strerror or str(error))
    advice = "make room" if full else "choose another folder with -o"
    return OutputError(f"{folder}: cannot be written ({reason}); {advice}. Nothing of this result was kept")


def is_result(folder: Path) -> bool:
    """Whether `folder` holds a finished result."""
    return (folder / RESULT).is_file()


def _refuse_existing(folder: Path, overwrite: bool) -> None:
    if not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
        return
    if not is_result(folder):
        raise InputError(f"{folder}: is there already and is no result of recon; choose another folder with -o")
    if not overwrite:
        raise InputError(f"{folder}: holds a result already; --overwrite replaces it")


def _move(partial: Path, folder: Path) -> None:
    """Put the finished folder in its place; what was there is removed only after that."""
    old = None
    if folder.is_dir() and any(folder.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder.parent))
        os.replace(folder, old)
    try:
        os.replace(partial, folder)
    except OSError:
        if old is not None:
            os.replace(old, folder)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
