"""For those who write plugins: `pytest --recon-plugin my_pkg`, and made-up people for tests of one's own.

The pytest plugin is `recon_core.testing.plugin`, the checks are in `recon_core.testing.checks`. The public names
below are imported on first use, since pytest loads this package in every run, for whatever project.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recon_core.testing.build import build_fitter as build_fitter
    from recon_core.testing.build import build_method as build_method
    from recon_core.testing.synthetic import People as People
    from recon_core.testing.synthetic import synthetic_observation as synthetic_observation
    from recon_core.testing.synthetic import synthetic_people as synthetic_people
    from recon_core.testing.synthetic import training_batch as training_batch

_HOMES = {
    "People": "recon_core.testing.synthetic",
    "build_fitter": "recon_core.testing.build",
    "build_method": "recon_core.testing.build",
    "synthetic_observation": "recon_core.testing.synthetic",
    "synthetic_people": "recon_core.testing.synthetic",
    "training_batch": "recon_core.testing.synthetic",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recon_core.testing' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
