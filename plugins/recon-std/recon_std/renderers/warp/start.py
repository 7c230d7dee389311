"""Warp, started quietly, and its kernels' launches over torch tensors."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
import warp as wp
from jaxtyping import Int
from torch import Tensor

from recon_core.errors import PluginError

ROWS_A_THREAD = 256
"""A picture with at least this many rows a thread is shared among CPU threads by rows."""

wp.config.log_level = wp.LOG_ERROR


@contextlib.contextmanager
def _native_stderr_closed() -> Iterator[None]:
    # Without a driver Warp's library prints a warning straight to file descriptor 2.
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


@cache
def start() -> None:
    """Initialise Warp without its banner. Raises PluginError when it does not work here."""
    try:
        with contextlib.nullcontext() if torch.cuda.is_available() else _native_stderr_closed():
            wp.init()
    except Exception as error:
        raise _broken(error) from error


@cache
def _compiled(module: wp.Module, device: str) -> None:
    """Compile a module's kernels or take them from Warp's cache."""
    try:
        wp.load_module(module, device=device)
    except Exception as error:
        raise _broken(error) from error


def _broken(error: Exception) -> PluginError:
    return PluginError(
        f"Warp does not work here ({type(error).__name__}: {' '.join(str(error).split())}): use renderer 'pytorch3d', "
        f"or set WARP_CACHE_PATH to a folder that can be written to"
    )


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="recon-warp")


def launch(
    kernel: wp.Kernel, dims: Sequence[int | tuple[int, ...]], inputs: Sequence[Sequence[Any]], device: torch.device
) -> None:
    """Launch a kernel once for each of `dims` with its `inputs`.

    On a CPU a launch runs on one core; several launches run side by side on torch's number of threads, and must
    not write to the same memory. On a GPU they follow each other on torch's current stream.
    """
    where = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
    _compiled(kernel.module, where)
    if device.type == "cuda":
        with wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(device)), sync_enter=False):
            for dim, values in zip(dims, inputs, strict=True):
                wp.launch(kernel, dim, list(values), device=where)
        return
    if len(dims) == 1:
        wp.launch(kernel, dims[0], list(inputs[0]), device="cpu")
        return
    run = lambda dim, values: wp.launch(kernel, dim, list(values), device="cpu")  # noqa: E731
    list(_threads(torch.get_num_threads()).map(run, dims, inputs))


def pixel_jobs(pixels: int, device: torch.device, unit: int = 1) -> list[tuple[int, int]]:
    """(first pixel, number of pixels) of each launch; on a CPU one a thread, in multiples of `unit`."""
    threads = 1 if device.type == "cuda" or pixels < 2**15 else torch.get_num_threads()
    units = pixels // max(unit, 1)
    step = -(-units // threads) * unit
    return [(first, min(step, pixels - first)) for first in range(0, pixels, step or 1)]


def face_jobs(
    picture: Int[Tensor, " M"], size: tuple[int, int, int], device: torch.device, bands: bool = True
) -> list[tuple[int, int, int, int]]:
    """(first face, number of faces, first row, end row) of each launch.

    On a CPU threads take whole pictures where faces come sorted by picture, else with `bands` bands of rows.
    """
    faces, (pictures, height, _) = len(picture), size
    threads = 1 if device.type == "cuda" else torch.get_num_threads()
    if threads > 1 and pictures >= threads and bool((picture[1:] >= picture[:-1]).all()):
        first = torch.arange(0, threads + 1) * pictures // threads
        cuts = torch.searchsorted(picture, first.to(picture)).tolist()
        return [(a, b - a, 0, height) for a, b in itertools.pairwise(cuts) if b > a]
    parts = min(threads, height // ROWS_A_THREAD) or 1 if bands else 1
    rows = [height * i // parts for i in range(parts + 1)]
    return [(0, faces, a, b) for a, b in itertools.pairwise(rows)]
