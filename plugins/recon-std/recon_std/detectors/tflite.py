"""Running a .tflite file on ai-edge-litert (XNNPACK), from any thread and after pickling."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recon_core.errors import AssetError


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function, without overflow."""
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


class TFLiteModel:
    """A model with one float32 input and float32 outputs, loaded on first use.

    One interpreter serves all threads of a process, one call at a time. A copy sent to another process makes
    its own.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.path = path
        self.threads = threads
        self._interpreter: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "threads": self.threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, inputs: np.ndarray) -> list[np.ndarray]:
        """One sample without batch dimension in; all outputs, in the model's order, without it."""
        with self._lock:
            if self._interpreter is None:
                self._interpreter = self._load()
            interpreter = self._interpreter
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], inputs[None])
            interpreter.invoke()
            return [interpreter.get_tensor(output["index"])[0] for output in interpreter.get_output_details()]

    def _load(self) -> Any:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise AssetError(f"{self.path}: needs ai-edge-litert ({error}): pip install ai-edge-litert") from None
        try:
            with _without_greeting():
                interpreter = Interpreter(str(self.path), num_threads=self.threads)
                interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise AssetError(f"{self.path}: cannot be run ({str(error).splitlines()[0]})") from None
        return interpreter


@contextlib.contextmanager
def _without_greeting() -> Iterator[None]:
    """Keep the runtime's "INFO: Created TensorFlow Lite XNNPACK delegate" off stderr: it has no setting for that.

    The runtime writes to the file descriptor, so that is what is turned aside, for the milliseconds of loading.
    Whatever else was written meanwhile is passed on.
    """
    try:
        kept = os.dup(2)
    except OSError:  # no stderr, nothing to keep clean
        yield
        return
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            aside.seek(0)
            for line in aside:
                if not line.startswith(b"INFO: Created TensorFlow Lite"):
                    os.write(2, line)
