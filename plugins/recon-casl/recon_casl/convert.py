"""CASL's published checkpoints as weights of `recon_casl.published`.

A checkpoint is three files: `best_ckpt.pth`, the prototype `best_mesh.obj` beside it, in whose vertex order the shape
encoder's last layer is, and the options `opts.yaml` there or one folder up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recon_casl.published.files import read_options, read_prototype
from recon_casl.published.network import PublishedEncoders
from recon_core.published import PublishedImporter
from recon_core.torch_files import StoredTensor

_COMMON = frozenset({"shape_enc.linear3.weight", "texture_enc.decoder.up6.0.conv.weight"})


class CASLImporter(PublishedImporter):
    """`recon assets add casl best_ckpt.pth`: the pedestrians, and the people of ATR."""

    title = "CASL (3D Magic Mirror)"
    origin = "https://github.com/layumi/3D-Magic-Mirror"
    licence = "other: published as MIT and for academic research only"
    asset = "casl-published"
    use = "--method casl --set casl.weights=published"
    weights_at = "netE"
    marks = _COMMON | {"camera_enc.encoder1.layer3.0.conv.weight"}
    # bifpn3.up4: a layer of the last pyramid whose output nothing reads. n_averaged: of averaged weights.
    idle = re.compile(r"texture_enc\.decoder\.bifpn3\.up4\..*|n_averaged")

    def module(self) -> nn.Module:
        return PublishedEncoders()

    def published_name(self, name: str) -> str:
        return name

    def beside(self, path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
        prototype = read_prototype(path.parent / "best_mesh.obj", PublishedEncoders.vertices)
        options = json.dumps(read_options(path))
        return {f"prototype.{name}": value for name, value in prototype.items()}, {"options": options}

    def _entries(self, content: Mapping[str, Any]) -> dict[str, StoredTensor]:
        """Weights averaged over the end of the training stand under a name of their own where there are no others."""
        return super()._entries(content.get("swa_modelE", content) if "netE" not in content else content)


class BirdsImporter(CASLImporter):
    """`recon assets add casl-cub best_ckpt.pth`: the same with an HRNet for the camera."""

    title = "CASL (3D Magic Mirror) for birds"
    asset = "casl-cub-published"
    use = "--method casl --set casl.weights=published-cub"
    marks = _COMMON | {"camera_enc.encoder1.model.conv1.weight"}

    def module(self) -> nn.Module:
        return PublishedEncoders(attended=True)
