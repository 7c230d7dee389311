"""The shipped weights, and how they are written and read. README.md here is their model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recon_core.errors import AssetError
from recon_core.training.checkpoints import weights_of

if TYPE_CHECKING:
    from recon_spin.method import SPIN, SPINConfig

NETWORK = ("trunk", "pooling", "crop_size", "iterations")
"""Settings that weights depend on. They are in the metadata of the files that `save_method` writes."""


def save_method(method: SPIN, path: Path) -> None:
    """Weights as float16 (whole numbers as they are), without the body model's."""
    half = {
        name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for name, value in weights_of(method).items()
    }
    save_file(half, path, {"spin": json.dumps(method.config.model_dump(include=set(NETWORK)))})


def for_weights(path: Path, config: SPINConfig) -> SPINConfig:
    """The configuration with the network that the file was written for; unchanged for a file that does not say.

    Raises AssetError for a file that cannot be read, and where a setting that was chosen contradicts the file.
    """
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get("spin")
        network: dict[str, Any] = json.loads(said) if said else {}
        for name in config.model_fields_set & network.keys():
            if getattr(config, name) != network[name]:
                raise AssetError(
                    f"{path}: its network has {name} {network[name]}; leave out --set spin.{name}, or name other "
                    "weights with --set spin.weights=FILE"
                )
        return type(config).model_validate(config.model_dump(exclude_unset=True) | network)
    except (OSError, SafetensorError, ValueError) as error:
        raise AssetError(f"{path}: not weights of spin ({str(error).splitlines()[0]})") from error
