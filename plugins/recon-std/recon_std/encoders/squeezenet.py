"""SqueezeNet 1.1 with its ImageNet weights: small features of pictures as people judge them, for losses and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from recon_core.assets import assets, load_safetensors
from recon_core.errors import AssetError
from recon_std.encoders.images import ImageEncoder

WEIGHTS = "squeezenet"
"""The asset; weights/README.md beside it is its card."""


class SqueezeNet(ImageEncoder):
    """SqueezeNet 1.1 (Iandola et al., 2016) without its classifier, weights included.

    Fills Features.spatial (B, 512, h / 16, w / 16) and global_, its spatial mean. Made to be trained no further: it
    is in evaluation mode and its parameters ask for no gradient; pictures get theirs. Raises AssetError for a
    damaged weights file.
    """

    channels = 512

    def __init__(self) -> None:
        # As in Caffe: values to 255 without ImageNet's mean. Blue came first there; the shipped weights are turned.
        super().__init__(mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255,) * 3)
        from torchvision.models import squeezenet1_1

        self.features = squeezenet1_1(weights=None).features
        self.load_state_dict(load_safetensors(assets().find(WEIGHTS)))
        self.eval().requires_grad_(False)

    def spatial(self, image: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 512 h16 w16"]:
        return self.features(image)


def from_ndf(arrays: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict, from the content of `squeezenet_weights.pkl` of the package ndf: layer to [kernel, bias], kernels
    (height, width, in, out) for blue, green, red. Raises AssetError for a layer that is missing."""
    layers = {"0": "conv1"}
    for place, number in zip((3, 4, 6, 7, 9, 10, 11, 12), range(2, 10), strict=True):
        for part in ("squeeze", "expand1x1", "expand3x3"):
            layers[f"{place}.{part}"] = f"fire{number}/{'squeeze1x1' if part == 'squeeze' else part}"
    state = {}
    for own, theirs in layers.items():
        if theirs not in arrays:
            raise AssetError(f"ndf's SqueezeNet: layer {theirs} is missing")
        kernel, bias = (torch.as_tensor(a, dtype=torch.float32) for a in arrays[theirs])
        state[f"features.{own}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        state[f"features.{own}.bias"] = bias.contiguous()
    state["features.0.weight"] = state["features.0.weight"].flip(1).contiguous()
    return state


def main() -> None:
    """Write the shipped file anew from ndf's."""
    import argparse

    from safetensors.torch import save_file

    from recon_core.safe_pickle import load_arrays

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pickle", type=Path, help="ndf/example_models/weights/squeezenet_weights.pkl of ndf 0.1.4")
    save_file(
        from_ndf(load_arrays(parser.parse_args().pickle)), Path(__file__).parent / "weights" / "squeezenet.safetensors"
    )


if __name__ == "__main__":
    main()
