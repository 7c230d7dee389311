"""Warp, started quietly, and its kernels' launches over torch tensors."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
import warp as wp

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
    """Initialise Warp without its banner."""
    with contextlib.nullcontext() if torch.cuda.is_available() else _native_stderr_closed():
        wp.init()


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
    if device.type == "cuda":
        with wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(device)), sync_enter=False):
            for dim, values in zip(dims, inputs, strict=True):
                wp.launch(kernel, dim, list(values), device=f"cuda:{device.index or 0}")
        return
    if len(dims) == 1:
        wp.launch(kernel, dims[0], list(inputs[0]), device="cpu")
        return
    run = lambda dim, values: wp.launch(kernel, dim, list(values), device="cpu")  # noqa: E731
    list(_threads(torch.get_num_threads()).map(run, dims, inputs))
