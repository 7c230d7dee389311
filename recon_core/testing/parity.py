"""Parity kits: outputs of the papers' own networks, with weights and inputs made by a formula.

A kit is a folder of `METHOD.keys.json` (names, shapes and conventions of the published file) and `METHOD.golden.npz`
(what the original network returns). RECON_PARITY_DIR names one; in a checkout with the data beside it, that is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FLOW = {"log_scale", "shift", "lower_entries", "upper_entries", "unconstrained_upper_diag"}


def parity_folder() -> Path:
    """The kit's folder, there or not."""
    beside = Path(__file__).parents[3] / "shared" / "parity" / "a"
    return Path(os.environ.get("RECON_PARITY_DIR") or beside)


def noise(name: str, shape: tuple[int, ...], prefix: str = "") -> np.ndarray:
    """Standard normal numbers that follow from the name alone, float32."""
    seed = int.from_bytes(hashlib.sha256((prefix + name).encode()).digest()[:8], "little")
    return np.asarray(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)).astype(np.float32)


def formula(name: str, shape: tuple[int, ...], prefix: str = "", gain: float = 1.0) -> np.ndarray:
    """The weights of a published entry, by the kit's table of rules (first match), float32."""
    x = noise(name, shape, prefix).astype(np.float64)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        y = np.clip(np.exp(0.1 * x), 0.5, 2.0)
    elif leaf == "running_mean" or leaf in _FLOW:
        y = 0.05 * x
    elif leaf.startswith("init_"):
        y = 0.5 * x
    elif leaf in ("ps_scale", "vs_scale"):
        y = 0.1 * x + np.array([1.0, -1.0]).reshape(2, *[1] * (x.ndim - 1))
    elif leaf == "ws":
        y = x
    elif leaf == "weight" and x.ndim == 1:
        y = 1 + 0.1 * x
    elif leaf in ("bias", "b"):
        y = 0.05 * x + (shape == (1,))
    elif x.ndim >= 2:
        y = x * math.sqrt(1 / math.prod(shape[1:]))
    else:
        y = 0.05 * x
    return np.asarray(y * gain).astype(np.float32)


@dataclass(frozen=True)
class Parity:
    """What the kit in `folder` has of one network."""

    folder: Path
    method: str

    @cached_property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / f"{self.method}.keys.json").read_text())

    @cached_property
    def golden(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{self.method}.golden.npz") as file:
            return dict(file)

    def state_dict(self) -> dict[str, Tensor]:
        """The published state dict. Raises ValueError when it is not what the golden outputs were made with."""
        digest, state = hashlib.sha256(), {}
        for entry in self.facts["keys"]:
            name, seed, shape = entry["name"], entry.get("seed_name", entry["name"]), tuple(entry["shape"])
            dtype = getattr(torch, entry["dtype"])
            if entry["fill"] in ("zero", "true"):
                state[name] = torch.full(shape, entry["fill"] == "true", dtype=dtype)
            elif entry["fill"] == "structural":
                if "value" in entry:
                    state[name] = torch.tensor(entry["value"], dtype=dtype).reshape(shape)
            else:
                values = formula(seed, shape, self.facts["prefix"], entry.get("gain", 1.0))
                digest.update(seed.encode() + b"\0" + values.astype("<f4").tobytes())
                state[name] = torch.from_numpy(values)
        if digest.hexdigest() != self.facts["golden"]["weights_sha256"]:
            raise ValueError(f"{self.folder}: {self.method}: the rebuilt weights have another sha256")
        return state

    def inputs(self) -> dict[str, Tensor]:
        """The named inputs, by the last part of their names."""
        prefix = self.facts["prefix"]
        made = {
            i["name"]: noise(i["name"], tuple(i["shape"]), prefix).astype(np.float64) * i["scale"]
            for i in self.facts["golden"]["inputs"]
        }
        return {name.rsplit("/", 1)[-1]: torch.from_numpy(x.astype(np.float32)) for name, x in made.items()}

    def check(self, output: str, value: Tensor) -> None:
        """Hold `value` to the golden output at the kit's tolerance. Raises AssertionError."""
        found = value.detach().numpy()
        if output in self.golden:
            wanted = self.golden[output]
            assert found.shape == wanted.shape, f"{output}: shape {found.shape}, expected {wanted.shape}"
        else:
            wanted = self.golden[f"{output}@flat"]
            assert tuple(self.golden[f"{output}@shape"]) == found.shape, output
            found = found.reshape(-1)[np.arange(len(wanted)) * found.size // len(wanted)]
        tolerance = self.facts["golden"]["outputs"][output]["suggested_atol"]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=tolerance, err_msg=output)
