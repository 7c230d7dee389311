"""SPIN's published checkpoint as weights of this package's network.

The published names are those of one module that holds trunk and regressor; sizes, 6D layout ("rows") and the lack of
activations in the regressor are alike. The mean parameters that the regressor starts from are in the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from recon_core.published import PublishedImporter
from recon_spin.method import SPIN, SPINConfig

NETWORK = SPINConfig(trunk="resnet50")


class SPINImporter(PublishedImporter):
    """`recon assets add spin model_checkpoint.pt`."""

    title = "SPIN"
    origin = "https://github.com/nkolot/SPIN"
    licence = "other: published with code under BSD-3-Clause; trained on data for non-commercial research"
    asset = "spin-published"
    use = "--method spin --set spin.weights=published"
    weights_at = "model"
    marks = frozenset({"conv1.weight", "decpose.weight", "decshape.weight", "deccam.weight", "init_pose"})
    settings: ClassVar[Mapping[str, str]] = {
        "spin": json.dumps(NETWORK.model_dump(include={"trunk", "pooling", "crop_size", "iterations"}))
    }

    def module(self) -> nn.Module:
        return SPIN(NETWORK)

    def published_name(self, name: str) -> str:
        return name.removeprefix("trunk.").removeprefix("regressor.")
