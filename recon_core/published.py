"""Published checkpoints: the authors' files, made into weights of recon's own networks.

A plugin whose network is the published one registers an importer, a subclass of `PublishedImporter` that says how
the authors' names map onto its module. `recon assets add FILE` then recognises the file, checks every shape, and
keeps the weights as safetensors with their origin and licence in the metadata.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recon_core.assets import load_safetensors, sha256_of, written
from recon_core.errors import AssetError, UsageError
from recon_core.interfaces import BodyModel
from recon_core.torch_files import StoredTensor, is_torch_file, open_torch_file

SMPL = "smpl-neutral"
"""The body on which the published networks were trained: their betas are its own."""

_COUNTER = "num_batches_tracked"
_NAMED = 5
"""How many entries an error names."""


class PublishedImporter(ABC):
    """An importer (`register.importer`) of one network's published file.

    title: the network, for messages. origin: the page of its code. licence: of its weights, as far as known.
    asset: the name under which `Assets.find` has the result, and of its file. use: the options of `recon run` that
    use it. weights_at: the file's entry that holds the state dict. marks: names that together only this network has.
    idle: names that the file holds and the module needs not (body model buffers and the like). constants: integer
    entries that must hold these numbers, where the file has them. shapes: of published entries that are shaped
    otherwise than the module's. settings: what the plugin's own loader reads in the file's metadata.
    """

    title: ClassVar[str]
    origin: ClassVar[str]
    licence: ClassVar[str]
    asset: ClassVar[str]
    use: ClassVar[str]
    weights_at: ClassVar[str]
    marks: ClassVar[frozenset[str]]
    idle: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    constants: ClassVar[Mapping[str, Sequence[int]]] = {}
    shapes: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    settings: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def module(self) -> nn.Module:
        """The network, whose parameters and buffers the file fills. Made on the meta device: no numbers needed."""

    @abstractmethod
    def published_name(self, name: str) -> str:
        """What the published file calls the module's entry `name`."""

    def beside(self, path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
        """Tensors and settings that the authors give in files beside `path`, to be kept with the weights.

        Raises AssetError for one that is missing or wrong.
        """
        return {}, {}

    def matches(self, path: Path) -> bool:
        """Whether the file is this network's, by the names in it.

        Raises AssetError for a file of `torch.save` that is damaged or unsafe: there is nothing to recognise.
        """
        if not is_torch_file(path):
            return False
        with open_torch_file(path) as content:
            return self.marks <= self._entries(content).keys()

    def add(self, path: Path, folder: Path) -> str:
        """Check the file and keep its weights in `folder`; a line for the user.

        Raises AssetError naming the file, and what is missing, misshapen or not finite in it. Entries that are not
        known are left out, and named in the line.
        """
        wanted = self._wanted()
        with open_torch_file(path) as content:
            entries = self._entries(content)
            self._check(path, entries, wanted)
            tensors = {own: self._value(path, name, entries.get(name), value) for own, (name, value) in wanted.items()}
            known = {name for name, _ in wanted.values()} | self.constants.keys()
            extra = [name for name in entries if name not in known and not self.idle.fullmatch(name)]
        more, settings = self.beside(path)
        tensors |= more
        place = folder / f"{self.asset}.safetensors"
        from safetensors.torch import save

        about = {
            **self.settings,
            **settings,
            "title": self.title,
            "origin": self.origin,
            "licence": self.licence,
            "source": path.name,
            "source_sha256": sha256_of(path),
        }
        with written(place) as target:
            target.write(save(tensors, about))
        millions = sum(value.numel() for value in tensors.values() if value.is_floating_point()) / 1e6
        left_out = f"; left out, not known: {_listed(extra)}" if extra else ""
        return f"{self.asset}: {self.title}, {millions:.1f} M numbers; {self.licence}; use {self.use}{left_out}"

    def _entries(self, content: Mapping[str, Any]) -> dict[str, StoredTensor]:
        """The state dict: at its entry, or the file itself; without the prefix of DataParallel."""
        state = content.get(self.weights_at, content)
        if not isinstance(state, Mapping):
            return {}
        return {name.removeprefix("module."): v for name, v in state.items() if isinstance(v, StoredTensor)}

    def _wanted(self) -> dict[str, tuple[str, Tensor]]:
        """The module's entries: published name, and a tensor without numbers of the module's shape and dtype."""
        with torch.device("meta"):
            state = self.module().state_dict()
        return {name: (self.published_name(name), value) for name, value in state.items()}

    def _check(self, path: Path, entries: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[str, Tensor]]) -> None:
        needed = [name for name, _ in wanted.values() if not name.endswith(_COUNTER)]
        if missing := [name for name in needed if name not in entries]:
            raise AssetError(
                f"{path}: no checkpoint of {self.title}: {len(missing)} of its {len(needed)} entries are missing "
                f"({_listed(missing)})"
            )
        for name, value in wanted.values():
            shape = self.shapes.get(name, tuple(value.shape))
            if name in entries and entries[name].shape != shape:
                raise AssetError(
                    f"{path}: no checkpoint of {self.title}: {name} has shape {entries[name].shape}, expected {shape}"
                )
        for name, numbers in self.constants.items():
            if name in entries and entries[name].load().flatten().tolist() != list(numbers):
                raise AssetError(f"{path}: a variant of {self.title} that is not known: {name} holds other numbers")

    @staticmethod
    def _value(path: Path, name: str, stored: StoredTensor | None, like: Tensor) -> Tensor:
        if stored is None:  # only counters of batches may be missing: old files have none
            return torch.zeros(like.shape, dtype=like.dtype)
        value = stored.load()
        if value.is_floating_point() != like.is_floating_point():
            raise AssetError(f"{path}: {name} holds {value.dtype}, expected {like.dtype}")
        if not torch.isfinite(value).all():
            raise AssetError(f"{path}: damaged: {name} holds NaN or infinity; get the file again")
        return value.to(like.dtype).reshape(like.shape).contiguous()


def load_published(module: nn.Module, path: Path) -> nn.Module:
    """Fill `module` from a file that `PublishedImporter.add` wrote; in evaluation mode. Raises AssetError."""
    try:
        module.load_state_dict(load_safetensors(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise AssetError(f"{path}: of another version ({reason}); `recon assets add` the checkpoint again") from error
    return module.eval()


def check_smpl(body_model: BodyModel | None, title: str) -> None:
    """Raises UsageError for a body on which a network trained on SMPL would give meaningless shapes."""
    if body_model is not None and not body_model.name.startswith("smpl-"):
        raise UsageError(
            f"the published weights of {title} give shapes of SMPL, which body '{body_model.name}' does not have: "
            f"leave out --body, or use --body {SMPL}"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


__all__ = ["SMPL", "PublishedImporter", "check_smpl", "load_published"]
