"""Trained parameters of the priors (README.md is their model card), and the one way they are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from recon_core.assets import load_safetensors
from recon_core.errors import AssetError

SHIPPED = Path(__file__).parent


def load_weights(path: str | Path, names: Iterable[str] = ()) -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises AssetError when it cannot be read or lacks one of `names`."""
    tensors = load_safetensors(path)
    missing = sorted(set(names) - tensors.keys())
    if missing:
        raise AssetError(f"{path}: lacks the tensor '{missing[0]}'; it holds something other than this prior")
    return tensors
