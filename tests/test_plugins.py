"""Discovery, with packages that importlib.metadata really finds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from recon_core.errors import PluginError, UsageError
from recon_core.interfaces import Prior
from recon_core.plugins import GROUP, KINDS, Registrar, Registry

REGISTERS = """
from recon_core import hookimpl

@hookimpl
def recon_register(register):
    {body}
"""


def registers(*calls: str) -> str:
    return REGISTERS.format(body="\n    ".join(calls))


@pytest.fixture
def load(installed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Registry]]:
    """load({"a-pkg": source, ...}) -> a registry over exactly these packages, each of one module."""
    before = set(sys.modules)

    def build(packages: dict[str, str], more: dict[str, str] | None = None, **arguments: object) -> Registry:
        for package, source in packages.items():
            module = package.replace("-", "_")
            site = installed(package, {f"{module}.py": source, **(more or {})}, module)
        monkeypatch.syspath_prepend(site)
        found = [e for e in metadata.entry_points(group=GROUP) if e.name in packages]
        assert len(found) == len(packages)
        return Registry(found, **arguments)  # type: ignore[arg-type]

    yield build
    for name in set(sys.modules) - before:
        if name.endswith("_pkg") or name == "parts":
            del sys.modules[name]


GOOD = registers('register.prior("flat", "parts:Flat", summary="flat", inputs=("x",))')
PARTS = """
from recon_core.interfaces import Prior

class Flat(Prior):
    dims = 3
    def log_prob(self, values, context=None): return values.sum(-1) * 0
    def sample(self, count, context=None, generator=None): raise AssertionError
    def mode(self, context=None): raise AssertionError

class Half(Prior):
    dims = 3
    def mode(self, context=None): raise AssertionError

class Stranger: ...

number = 3
raise_later = None
"""


def test_a_registered_name_resolves_to_its_class_on_first_use(load):
    registry = load({"good-pkg": GOOD}, {"parts.py": PARTS})
    assert registry.names("prior") == ["flat"]
    entry = registry.entry("prior", "flat")
    assert (entry.package, entry.summary, dict(entry.facts)) == ("good-pkg", "flat", {"inputs": ("x",)})
    assert "parts" not in sys.modules
    assert issubclass(registry.load("prior", "flat"), Prior)
    assert registry.create("prior", "flat").dims == 3


def test_an_unknown_name_suggests_the_nearest(load):
    registry = load({"good-pkg": GOOD}, {"parts.py": PARTS})
    with pytest.raises(UsageError, match="unknown prior 'flatt'; did you mean 'flat'"):
        registry.load("prior", "flatt")
    with pytest.raises(UsageError, match="unknown kind of part 'priors'; did you mean 'prior'"):
        registry.names("priors")


BROKEN = {
    "raises at import": ("1 / 0", "ZeroDivisionError: division by zero"),
    "exits at import": ("import sys\nsys.exit(4)", "SystemExit: 4"),
    "has a syntax error": ("def (", "SyntaxError"),
    "imports what is missing": ("import no_such_module_here", "No module named 'no_such_module_here'"),
    "raises in recon_register": (registers("raise KeyError('oops')"), "KeyError: 'oops'"),
    "raises after registering": (registers('register.prior("late", "m:C")', "1 / 0"), "ZeroDivisionError"),
    "registers a number as name": (registers('register.prior(7, "m:C")'), "prior name 7"),
    "registers a bad name": (registers('register.prior("Bad Name", "m:C")'), "lower-case words"),
    "registers a class": (registers('register.prior("x", int)'), "not of the form 'package.module:Attribute'"),
    "registers a path": (registers('register.prior("x", "m.C")'), "not of the form 'package.module:Attribute'"),
    "registers a summary of no text": (registers('register.prior("x", "m:C", 3)'), "summary 3 is not text"),
    "registers twice": (registers('register.prior("x", "m:C")', 'register.prior("x", "m:D")'), "registered twice"),
    "registers an unknown kind": (registers('register.priors("x", "m:C")'), "no attribute 'priors'"),
    "implements no hook": ("x = 1", "implements no hook"),
    "misspells the hook": (
        REGISTERS.format(body="pass").replace("recon_register", "recon_registr"),
        "unknown hook 'recon_registr'; did you mean 'recon_register'",
    ),
    "misspells an argument": (REGISTERS.format(body="pass").replace("(register)", "(registrar)"), "registrar"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_keeps_its_error_and_harms_no_other(load, fault):
    source, message = BROKEN[fault]
    registry = load({"broken-pkg": source, "good-pkg": GOOD}, {"parts.py": PARTS})
    broken, good = registry.plugins
    assert message in broken.error
    assert "broken-pkg" in broken.error
    assert "\n" not in broken.error
    assert not broken.entries
    assert good.error is None
    assert [e.name for e in registry.entries()] == ["flat"]
    assert registry.create("prior", "flat").dims == 3
    assert registry.call("recon_before_predict", method="m", observation=None) == []


def test_strict_mode_raises_the_first_error(load):
    with pytest.raises(PluginError, match="broken-pkg.*division by zero"):
        load({"broken-pkg": "1 / 0", "good-pkg": GOOD}, {"parts.py": PARTS}, strict=True)


def test_an_unknown_name_mentions_plugins_that_did_not_load(load):
    registry = load({"broken-pkg": "1 / 0"})
    with pytest.raises(UsageError, match=r"unknown prior 'flat'.*not loaded: broken-pkg"):
        registry.entry("prior", "flat")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:X", "No module named 'no_such_module'"),
        ("parts:Missing", "has no attribute 'Missing'"),
        ("parts:number", "neither a class nor a function"),
        ("parts:Stranger", "not a subclass of recon_core.interfaces.Prior"),
        ("parts:Half", "does not implement log_prob, sample"),
    ],
)
def test_a_bad_target_is_named_when_it_is_used(load, target, message):
    registry = load({"good-pkg": registers(f'register.prior("bad", "{target}")')}, {"parts.py": PARTS})
    with pytest.raises(PluginError) as error:
        registry.load("prior", "bad")
    assert message in str(error.value)
    assert f"plugin good-pkg: prior 'bad' ({target})" in str(error.value)


def test_a_name_claimed_twice_is_an_error_naming_both_until_somebody_chooses(load):
    packages = {name: registers('register.prior("flat", "parts:Flat")') for name in ("one-pkg", "two-pkg")}
    registry = load(packages, {"parts.py": PARTS})
    with pytest.raises(PluginError, match="prior 'flat' is registered by one-pkg and two-pkg"):
        registry.load("prior", "flat")
    assert registry.winner("prior", "flat") is None
    with pytest.raises(UsageError, match="'flat' is brought by one-pkg and two-pkg"):
        registry.prefer("flat", "three-pkg")
    with pytest.raises(UsageError, match="unknown name 'flatt'; did you mean 'flat'"):
        registry.prefer("flatt", "two-pkg")
    registry.prefer("flat", "Two_Pkg")
    assert registry.entry("prior", "flat").package == "two-pkg"
    assert registry.create("prior", "flat").dims == 3
    assert registry.why("prior", "flat") == "--plugin flat=two-pkg"


def test_the_catalogue_settles_a_claimed_name_and_the_user_overrules_it(load):
    packages = {name: registers('register.method("m", "parts:M")') for name in ("one-pkg", "two-pkg")}
    registry = load(packages, owners={("method", "m"): "two-pkg"})
    assert registry.entry("method", "m").package == "two-pkg"
    assert registry.why("method", "m") == "registry.toml"
    registry.prefer("m", "one-pkg")
    assert registry.entry("method", "m").package == "one-pkg"


def test_a_hook_that_raises_is_named(load):
    source = "from recon_core import hookimpl\n@hookimpl\ndef recon_after_predict(method):\n    1 / 0\n"
    registry = load({"hook-pkg": source})
    with pytest.raises(PluginError, match="plugin hook-pkg.*recon_after_predict failed: ZeroDivisionError"):
        registry.call("recon_after_predict", method="m", observation=None, prediction=None)


def test_the_registrar_has_one_method_a_kind():
    register = Registrar("p")
    for kind in KINDS:
        getattr(register, kind)("x", "m:C")
    assert [entry.kind for entry in register.entries] == list(KINDS)


def test_every_installed_part_resolves():
    """Registry, entry points and code hold together: what this checkout registers can be imported and is concrete."""
    from recon_core.plugins import registry

    own = registry()
    assert not [plugin.error for plugin in own.plugins if plugin.error]
    for entry in own.entries():
        own.load(entry.kind, entry.name)
