"""A picture of a person or an object in, a 3D reconstruction out.

    import recon_core
    result = recon_core.run("photo.jpg", method="prohmr")
    result.people[0].joints3d["smpl24"]["left_wrist"]
    result.save("out/photo")

The public names below are imported on first use, so that `import recon_core` stays light and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recon_core.errors import ReconError as ReconError
    from recon_core.hookspecs import hookimpl as hookimpl
    from recon_core.pipeline import run as run
    from recon_core.plugins import registry as registry
    from recon_core.reconstruction import Reconstruction as Reconstruction
    from recon_core.structures import BodyParameters as BodyParameters
    from recon_core.structures import Camera as Camera
    from recon_core.structures import Keypoints as Keypoints
    from recon_core.structures import Mesh as Mesh
    from recon_core.structures import Observation as Observation
    from recon_core.structures import Prediction as Prediction

_HOMES = {
    "BodyParameters": "recon_core.structures",
    "Camera": "recon_core.structures",
    "Keypoints": "recon_core.structures",
    "Mesh": "recon_core.structures",
    "Observation": "recon_core.structures",
    "Prediction": "recon_core.structures",
    "ReconError": "recon_core.errors",
    "Reconstruction": "recon_core.reconstruction",
    "hookimpl": "recon_core.hookspecs",
    "registry": "recon_core.plugins",
    "run": "recon_core.pipeline",
}

__all__ = [*_HOMES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recon_core' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
