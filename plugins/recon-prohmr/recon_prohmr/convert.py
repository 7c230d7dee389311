"""ProHMR's published checkpoints, for people and for skeletons, as weights of this package's networks.

Steps of the flow have the published order, so their numbers agree; couplings, blocks and layers have the published
names. The flow's 6D layout is "columns", with the global orientation first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import nn

from recon_core.published import PublishedImporter
from recon_prohmr.lifting import LiftNetwork
from recon_prohmr.network import POSE_DIMS
from recon_prohmr.published import PublishedNetwork

_STEPS = "flow.flow._transform._transforms"


class _FlowImporter(PublishedImporter):
    """What both networks share: the flow's names, and buffers of the authors' modules that change no result."""

    origin = "https://github.com/nkolot/ProHMR"
    licence = "other: published with code under BSD-3-Clause; trained on data for non-commercial research"
    weights_at = "state_dict"
    # initialized: set by the training that made the file. smpl: the body model, which is not part of the weights.
    idle = re.compile(r"(.*\.)?(dummy_buffer|initialized)|smpl\..*")

    def published_name(self, name: str) -> str:
        return name.replace("flow.transforms", _STEPS) if name.startswith("flow.") else name


def _halves(dims: int, blocks: int = 4) -> dict[str, Sequence[int]]:
    """The index lists of the couplings: what is kept, and what is moved, which starts with the odd positions."""
    lists: dict[str, Sequence[int]] = {}
    for k in range(blocks):
        lists[f"{_STEPS}.{3 * k + 2}.identity_features"] = range(k % 2, dims, 2)
        lists[f"{_STEPS}.{3 * k + 2}.transform_features"] = range((k + 1) % 2, dims, 2)
    return lists


class ProHMRImporter(_FlowImporter):
    """`recon assets add prohmr checkpoint.pt`."""

    title = "ProHMR"
    asset = "prohmr-published"
    use = "--method prohmr --set prohmr.weights=published"
    marks = frozenset({"backbone.conv1.weight", "flow.fc_head.layers.0.weight", f"{_STEPS}.0.log_scale"})
    constants: ClassVar[Mapping[str, Sequence[int]]] = _halves(POSE_DIMS)
    shapes: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "flow.fc_head.init_cam": (1, 1, 3),
        "flow.fc_head.init_betas": (1, 1, 10),
    }

    def module(self) -> nn.Module:
        return PublishedNetwork()

    def published_name(self, name: str) -> str:
        return f"flow.fc_{name}" if name.startswith("head.") else super().published_name(name)


class LiftImporter(_FlowImporter):
    """`recon assets add prohmr-lift checkpoint.pt`."""

    title = "ProHMR's lifting flow"
    asset = "prohmr-lift-published"
    use = "--method prohmr-lift --set prohmr-lift.weights=published --set prohmr-lift.statistics=FILE.npz"
    marks = frozenset({"backbone.fc_layers.0.fc_block.0.weight", f"{_STEPS}.0.log_scale"})
    constants: ClassVar[Mapping[str, Sequence[int]]] = _halves(LiftNetwork.dims)

    def module(self) -> nn.Module:
        return LiftNetwork()
