"""The shipped weights, and how they are read and written. README.md here is their model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recon_core.errors import AssetError
from recon_prohmr.network import ProHMRNetwork
from recon_prohmr.skeletons import SkeletonNetwork

Network = TypeVar("Network", ProHMRNetwork, SkeletonNetwork)


def save_network(network: ProHMRNetwork | SkeletonNetwork, path: Path) -> None:
    """Weights as float16, with the sizes of the network in the file's metadata.

    Entries that float16 cannot hold to one part in a thousand make no difference here (docs/methods/prohmr.md).
    """
    half = {name: value.half().contiguous().cpu() for name, value in network.state_dict().items()}
    save_file(half, path, {"network": network.config.model_dump_json()})


def load_network(path: Path, kind: type[Network]) -> Network:
    """The network of that kind in evaluation mode, float32. Raises AssetError naming a file that is no such file."""
    try:
        with safe_open(path, "pt") as file:
            config: Any = kind.Config.model_validate_json((file.metadata() or {}).get("network", ""))
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        network = kind(config)
        network.load_state_dict(tensors)
    except (OSError, SafetensorError, ValidationError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise AssetError(f"{path}: not weights of {kind.__name__} ({reason}); reinstall recon-prohmr") from error
    return network.eval()
