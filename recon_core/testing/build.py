"""Parts by their registered names, as `recon run` makes them."""

from __future__ import annotations

from typing import Any

from recon_core.assets import assets
from recon_core.errors import AssetError
from recon_core.interfaces import BodyModel, Fitter, Method
from recon_core.plugins import registry


def body_model_of(method: type[Method]) -> BodyModel | None:
    """The body model that a run gives a method: the one it names, the free body, or none."""
    name = method.body or ("free" if "body" in method.outputs else None)
    return None if name is None else registry().create("body", name)


def build_method(name: str, **settings: Any) -> Method:
    """The method of that name in evaluation mode, with settings of its Config.

    One whose weight files are not here is built without them, with the numbers it begins a training with: what is
    checked of a method holds for any weights. Raises UsageError and PluginError as discovery does.
    """
    found = registry().load("method", name)
    config, body = found.Config(**settings), body_model_of(found)
    try:
        method = found.from_assets(config, assets(), body)
    except AssetError:
        method = found(config, body)
    return method.eval()


def build_fitter(name: str, **settings: Any) -> Fitter:
    """The fitter of that name, with settings of its Config."""
    found = registry().load("fitter", name)
    return found(found.Config(**settings))
