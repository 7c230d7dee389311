"""The pytest plugin: `pytest --recon-plugin my_pkg` runs every check of `recon_core.testing.checks` on a plugin.

It is loaded in every pytest run of an environment that has recon-core, so it imports nothing until it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from recon_core.plugins import Plugin

Check = TypeVar("Check", bound=Callable[..., None])

CHECKS = Path(__file__).parent / "checks"


def of(*kinds: str) -> Callable[[Check], Check]:
    """Marks a check of the parts of these kinds; it takes each as `entry`."""

    def mark(check: Check) -> Check:
        check.recon_kinds = kinds  # type: ignore[attr-defined]
        return check

    return mark


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("recon").addoption(
        "--recon-plugin",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="Check an installed plugin of recon, by its package. May be repeated. Without files or folders, "
        "nothing else is run.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    names = config.getoption("--recon-plugin")
    if not names:
        return
    from recon_core.errors import ReconError

    try:
        config.stash[_PLUGINS] = [_find(name) for name in names]
    except ReconError as error:
        raise pytest.UsageError(str(error)) from error
    asked_for = config.args_source is pytest.Config.ArgsSource.ARGS
    config.args[:] = [*(config.args if asked_for else ()), *map(str, sorted(CHECKS.glob("check_*.py")))]


_PLUGINS = pytest.StashKey[list["Plugin"]]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if CHECKS not in Path(metafunc.definition.path).parents:
        return
    plugins = metafunc.config.stash.get(_PLUGINS, [])
    if "plugin" in metafunc.fixturenames:
        metafunc.parametrize("plugin", plugins, ids=[p.package for p in plugins])
    elif "entry" in metafunc.fixturenames:
        kinds: Any = getattr(metafunc.function, "recon_kinds", ())
        entries = [e for p in plugins for e in p.entries if e.kind in kinds]
        metafunc.parametrize("entry", entries, ids=[f"{e.kind} {e.name}" for e in entries])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A check of a kind of part that no plugin brings says nothing.
    if config.getoption("--recon-plugin"):
        items[:] = [item for item in items if not _unfilled(item)]


def _unfilled(item: pytest.Item) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return CHECKS in item.path.parents and any(not hasattr(v, "package") for v in parameters.values())


def _find(name: str) -> Plugin:
    """The installed plugin of this distribution or import package. Raises UsageError naming the nearest."""
    from recon_core.errors import UsageError, nearest
    from recon_core.plugins import registry

    plugins = registry().plugins
    for plugin in plugins:
        if name.replace("_", "-").lower() == plugin.package or name == plugin.target.partition(".")[0]:
            return plugin
    known = [p.package for p in plugins]
    raise UsageError(f"--recon-plugin {name}: no such plugin is installed{nearest(name, known)} (pip install -e it)")
