"""Discovery: which installed packages bring which parts, and how a part is had by its name.

Packages declare entry points in the group `recon.plugins`. Each is loaded by itself: one that cannot be
imported, or whose `recon_register` raises, keeps its error (`recon plugins` shows it) and harms no other;
RECON_STRICT_PLUGINS=1 raises instead. A plugin registers targets as strings, which are imported on first use.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from types import MappingProxyType
from typing import Any

import pluggy

from recon_core import hookspecs
from recon_core.errors import PluginError, ReconError, UsageError, nearest, unknown

GROUP = "recon.plugins"

KINDS: dict[str, str | None] = {
    "method": "Method",
    "body": "BodyModel",
    "renderer": "Renderer",
    "encoder": "Encoder",
    "prior": "Prior",
    "loss": "Loss",
    "fitter": "Fitter",
    "detector": "Detector",
    "dataset": "Dataset",
    "exporter": None,
    "importer": None,
}
"""The kinds of part, each with the class of `recon_core.interfaces` that it implements, if there is one."""

_NAME = re.compile(r"[a-z0-9]+([-_.][a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Entry:
    """One registered part. target: "package.module:Attribute". package: the distribution that brings it."""

    kind: str
    name: str
    target: str
    package: str
    summary: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Plugin:
    """One entry point: `package` and `version` of its distribution, what it registered, or why it did not."""

    name: str
    package: str
    version: str
    target: str
    entries: list[Entry] = field(default_factory=list)
    error: str | None = None
    details: str | None = None
    """The traceback behind `error`, where there is one."""


class Registrar:
    """What `recon_register` receives: one method a kind, all of the same signature."""

    def __init__(self, package: str, taken: Iterable[tuple[str, str]] = ()) -> None:
        """taken: (kind, name) pairs that other entry points of the same package registered."""
        self._package = package
        self._taken = set(taken)
        self.entries: list[Entry] = []

    def _add(self, kind: str, name: str, target: str, summary: str, facts: Mapping[str, Any]) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PluginError(f"{kind} name {name!r}: names are lower-case words joined by '-', '_' or '.'")
        if not isinstance(target, str) or not _TARGET.fullmatch(target):
            raise PluginError(f"{kind} '{name}': target {target!r} is not of the form 'package.module:Attribute'")
        if not isinstance(summary, str):
            raise PluginError(f"{kind} '{name}': summary {summary!r} is not text")
        if (kind, name) in self._taken:
            raise PluginError(f"{kind} '{name}' is registered twice by {self._package}")
        self._taken.add((kind, name))
        self.entries.append(Entry(kind, name, target, self._package, summary, MappingProxyType(dict(facts))))

    def method(self, name: str, target: str, summary: str = "", **facts: Any) -> None:
        self._add("method", name, target, summary, facts)

    def body(self, name: str, target: str, summary: str = "", **facts: Any) -> None:
        self._add("body", name, target, summary, facts)

    def renderer(self, name: str, target: str, summary: str = "", **facts: Any) -> None:
        self._add("renderer", name, target, summary, facts)

    def encoder(self, name: str, target: str, summary: str = "", **facts: Any) -> None:
        self._add("encoder", name, target, summary, facts)

    def prior(self, name: str, target: str, summary: str = "", **facts: Any) -> None:
        self._add("prior", name, target, summary, facts)

    def loss(self, name: str, target: str, summary: str = "", **facts: Any) -> None:
        self._add("loss", name, target, summary, facts)

    def fitter(self, name: str, target: str, summary: str = "", **facts: Any) -> None:
        self._add("fitter", name, target, summary, facts)

    def detector(self, name: str, target: str, summary: str = "", **facts: Any) -> None:
        self._add("detector", name, target, summary, facts)

    def dataset(self, name: str, target: str, summary: str = "", **facts: Any) -> None:
        self._add("dataset", name, target, summary, facts)

    def exporter(self, name: str, target: str, summary: str = "", **facts: Any) -> None:
        self._add("exporter", name, target, summary, facts)

    def importer(self, name: str, target: str, summary: str = "", **facts: Any) -> None:
        self._add("importer", name, target, summary, facts)


class Registry:
    """All parts of all plugins. `registry()` gives the process's own, over the installed entry points."""

    def __init__(
        self,
        entry_points: Iterable[metadata.EntryPoint],
        owners: Mapping[tuple[str, str], str] = MappingProxyType({}),
        strict: bool = False,
    ) -> None:
        """owners: (kind, name) -> the distribution that wins where several register that name."""
        self._manager = pluggy.PluginManager("recon")
        self._manager.add_hookspecs(hookspecs)
        self._owners = dict(owners)
        self._chosen: dict[str, str] = {}
        self._loaded: dict[tuple[str, str], Any] = {}
        self.plugins: list[Plugin] = []
        self._entries: dict[tuple[str, str], list[Entry]] = {}
        for entry_point in sorted(entry_points, key=lambda e: (_package(e), e.name)):
            self._add_plugin(entry_point, strict)

    # -- discovery

    def _add_plugin(self, entry_point: metadata.EntryPoint, strict: bool) -> None:
        version = entry_point.dist.version if entry_point.dist else ""
        plugin = Plugin(entry_point.name, _package(entry_point), version, entry_point.value)
        key = f"{plugin.package}:{plugin.name}"
        self.plugins.append(plugin)
        try:
            module = entry_point.load()
            self._manager.register(module, name=key)
            plugin.entries = self._registered(key, plugin.package)
        except (Exception, SystemExit) as error:
            # SystemExit: a module that calls sys.exit() on import must not end the program that looked at it.
            plugin.error = f"plugin {plugin.package} ({plugin.target}): {_one_line(error)}"
            plugin.details = "".join(traceback.format_exception(error))
            if self._manager.has_plugin(key):
                self._manager.unregister(name=key)
            if strict:
                raise PluginError(plugin.error) from error
        for entry in plugin.entries:
            self._entries.setdefault((entry.kind, entry.name), []).append(entry)

    def _registered(self, key: str, package: str) -> list[Entry]:
        plugin = self._manager.get_plugin(key)
        callers = self._manager.get_hookcallers(plugin) or []
        if not callers:
            raise PluginError("implements no hook: mark a function recon_register(register) with @hookimpl")
        known = [name for name in vars(hookspecs) if name.startswith("recon_")]
        for caller in callers:
            if not caller.has_spec():
                raise PluginError(f"implements an unknown hook '{caller.name}'{nearest(caller.name, known)}")
        taken = {pair for pair, entries in self._entries.items() if any(e.package == package for e in entries)}
        register = Registrar(package, taken)
        others = [p for _, p in self._manager.list_name_plugin() if p is not None and p is not plugin]
        self._manager.subset_hook_caller("recon_register", remove_plugins=others)(register=register)
        return register.entries

    # -- choice

    def prefer(self, name: str, package: str) -> None:
        """Let `package` provide every part called `name` that it brings (`--plugin name=package`)."""
        packages = {e.package for (_, n), entries in self._entries.items() if n == name for e in entries}
        if not packages:
            raise unknown("name", name, {n for _, n in self._entries})
        if _normal(package) not in packages:
            raise UsageError(f"--plugin {name}={package}: '{name}' is brought by {' and '.join(sorted(packages))}")
        self._chosen[name] = _normal(package)
        self._loaded = {key: value for key, value in self._loaded.items() if key[1] != name}

    def candidates(self, kind: str, name: str) -> tuple[Entry, ...]:
        """Every registration of that name, the winner first when there is one."""
        found = self._entries.get((_kind(kind), name), [])
        winner = self.winner(kind, name)
        return tuple(sorted(found, key=lambda e: (e.package != winner, e.package)))

    def winner(self, kind: str, name: str) -> str | None:
        """The package that provides `name`, None where several claim it and nothing says which one wins."""
        return self._choice(kind, name)[0]

    def why(self, kind: str, name: str) -> str:
        """Why `winner` is who it is."""
        return self._choice(kind, name)[1]

    def _choice(self, kind: str, name: str) -> tuple[str | None, str]:
        packages = [entry.package for entry in self._entries.get((_kind(kind), name), [])]
        if len(packages) == 1:
            return packages[0], "the only one"
        if (chosen := self._chosen.get(name)) in packages:
            return chosen, f"--plugin {name}={chosen}"
        if (owner := self._owners.get((kind, name))) in packages:
            return owner, "registry.toml"
        return None, "conflict"

    def conflict(self, kind: str, name: str) -> str | None:
        """Why `name` cannot be used: several plugins register it and nothing says which one wins."""
        found = self.candidates(kind, name)
        if not found or self.winner(kind, name):
            return None
        packages = " and ".join(entry.package for entry in found)
        return f"{kind} '{name}' is registered by {packages}: choose with --plugin {name}={found[0].package}"

    # -- use

    def names(self, kind: str) -> list[str]:
        """Registered names of one kind, sorted."""
        return sorted(name for k, name in self._entries if k == _kind(kind))

    def entries(self) -> list[Entry]:
        """The winning (or, in a conflict, the first) registration of every name, by kind and name."""
        return [self.candidates(kind, name)[0] for kind in KINDS for name in self.names(kind)]

    def entry(self, kind: str, name: str) -> Entry:
        """The registration of that name.

        Raises UsageError for an unknown name (the nearest one is suggested, or how to install a method of the
        catalogue) and PluginError when several plugins claim it.
        """
        found = self.candidates(kind, name)
        if not found:
            raise self._unknown(kind, name)
        if message := self.conflict(kind, name):
            raise PluginError(message)
        return found[0]

    def load(self, kind: str, name: str) -> Any:
        """Import what was registered: a class or a factory. Raises PluginError naming plugin and target."""
        entry = self.entry(kind, name)
        if (kind, name) not in self._loaded:
            self._loaded[kind, name] = _resolve(entry)
        return self._loaded[kind, name]

    def create(self, kind: str, name: str, **arguments: Any) -> Any:
        """`load(kind, name)(**arguments)`."""
        return self.load(kind, name)(**arguments)

    def call(self, hook: str, **arguments: Any) -> list[Any]:
        """Call a hook of all plugins. A PluginError names the one that raises; ReconErrors pass."""
        caller = getattr(self._manager.hook, hook)
        try:
            return caller(**arguments)
        except ReconError:
            raise
        except Exception as error:
            modules = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
            guilty = [i.plugin_name for i in caller.get_hookimpls() if i.function.__module__ in modules]
            raise PluginError(f"plugin {', '.join(guilty)}: {hook} failed: {_one_line(error)}") from error

    def _unknown(self, kind: str, name: str) -> ReconError:
        broken = [p.package for p in self.plugins if p.error]
        if kind == "method":
            from recon_core.catalogue import catalogue

            if listed := catalogue().methods.get(name):
                if listed.package in broken:
                    return PluginError(f"method '{name}': its package {listed.package} is broken: see `recon plugins`")
                return UsageError(f"method '{name}' is not installed: {listed.how_to_get}")
        error = unknown(kind, name, self.names(kind))
        hint = f" (not loaded: {', '.join(broken)}; see `recon plugins`)" if broken else ""
        return UsageError(f"{error}{hint}")


@cache
def registry() -> Registry:
    """The registry over all installed packages, built once in a process."""
    from recon_core.catalogue import catalogue

    strict = os.environ.get("RECON_STRICT_PLUGINS", "") not in ("", "0")
    return Registry(metadata.entry_points(group=GROUP), catalogue().owners(), strict)


def _resolve(entry: Entry) -> Callable[..., Any]:
    where = f"plugin {entry.package}: {entry.kind} '{entry.name}' ({entry.target})"
    module, _, path = entry.target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{where} cannot be imported: {_one_line(error)}") from error
    if not callable(found):
        raise PluginError(f"{where} is neither a class nor a function")
    interface = KINDS[entry.kind]
    if interface and inspect.isclass(found):
        from recon_core import interfaces

        base = getattr(interfaces, interface)
        if not issubclass(found, base):
            raise PluginError(f"{where} is not a subclass of recon_core.interfaces.{interface}")
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise PluginError(f"{where} does not implement {', '.join(missing)}")
    return found


def _kind(kind: str) -> str:
    if kind not in KINDS:
        raise unknown("kind of part", kind, KINDS)
    return kind


def _package(entry_point: metadata.EntryPoint) -> str:
    return _normal(entry_point.dist.name) if entry_point.dist else entry_point.value.partition(".")[0]


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ReconError) else f"{type(error).__name__}: {text}".rstrip(": ")
