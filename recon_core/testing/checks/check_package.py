"""Packages: what they register, how light that is, and under which licence."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

from recon_core.catalogue import catalogue
from recon_core.config import Assignment, Configuration
from recon_core.errors import UsageError
from recon_core.interfaces import Settings
from recon_core.plugins import KINDS, Entry, Plugin, registry
from recon_core.testing.plugin import of

HEAVY = ("torch", "numpy", "scipy", "PIL", "pydantic", "warp", "skimage", "trimesh")
"""Listing what there is may not wait for these."""

CONFIGURED = ("method", "detector", "fitter", "dataset")


def test_it_registers_without_heavy_imports(plugin: Plugin) -> None:
    assert plugin.error is None, plugin.error
    module = plugin.target.partition(":")[0]
    program = (
        f"import sys, importlib; importlib.import_module({module!r}); print(*(m for m in {HEAVY} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{module} cannot be imported by itself: {done.stderr}"
    heavy = done.stdout.split()
    assert not heavy, f"importing {module} imports {', '.join(heavy)}: register strings, and import where they are used"


def test_it_tells_its_licence(plugin: Plugin) -> None:
    told = metadata.metadata(plugin.package)
    fields = [value for name in ("License-Expression", "License") for value in told.get_all(name) or []]
    classifiers = [c for c in told.get_all("Classifier") or [] if c.startswith("License ::")]
    assert fields or classifiers, (
        f'{plugin.package} tells no licence: set license = "..." in [project] of its pyproject.toml'
    )
    for kind, name, part in catalogue().parts():
        if part.package == plugin.package and part.status == "available":
            assert part.code_licence or kind == "body", f"registry.toml: {kind} '{name}' tells no code_licence"
            for asset in part.assets:
                assert catalogue().assets[asset].licence, f"registry.toml: asset '{asset}' of '{name}' tells no licence"
            if part.assets and kind == "method":
                assert part.weights_licence, f"registry.toml: method '{name}' has weights and tells no weights_licence"


@of(*KINDS)
def test_what_it_names_is_there_and_fulfils_its_interface(entry: Entry) -> None:
    assert callable(registry().load(entry.kind, entry.name))
    assert entry.summary, f"{entry.kind} '{entry.name}' has no summary, which `recon {entry.kind}s` would show"


@of(*CONFIGURED)
def test_its_settings_survive_a_round_trip_and_refuse_unknown_names(entry: Entry) -> None:
    model = registry().load(entry.kind, entry.name).Config
    assert issubclass(model, Settings), f"Config of {entry.kind} '{entry.name}' is no recon_core.interfaces.Settings"
    needed = [name for name, field in model.model_fields.items() if field.is_required()]
    if needed and entry.kind == "detector":
        pytest.skip(f"needs {', '.join(needed)}, which the command line gives it")
    assert not needed, f"Config of {entry.kind} '{entry.name}' has no default for {', '.join(needed)}"
    config = model()
    assert model.model_validate_json(config.model_dump_json()) == config, "Config() does not survive JSON"
    read = Configuration({entry.name: config.model_dump(mode="json", exclude_none=True)}).settings(entry.name, model)
    assert read == config, "Config() does not survive a settings file"
    with pytest.raises(UsageError, match="unknown setting 'no_such_setting'"):
        Configuration(assignments=[Assignment.parse(f"{entry.name}.no_such_setting=1")]).settings(entry.name, model)
