"""The public API is what tests/public_api.txt says: names and signatures of the modules that docs/api.md lists.

`python tests/test_public_api.py` writes the file anew after a change that is meant.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pluggy

ROOT = Path(__file__).parents[1]
SNAPSHOT = Path(__file__).with_name("public_api.txt")

MODULES = (
    "recon_core",
    "recon_core.assets",
    "recon_core.datasets",
    "recon_core.errors",
    "recon_core.geometry.alignment",
    "recon_core.geometry.cameras",
    "recon_core.geometry.primitives",
    "recon_core.geometry.rotations",
    "recon_core.geometry.topology",
    "recon_core.hookspecs",
    "recon_core.interfaces",
    "recon_core.plugins",
    "recon_core.rendering",
    "recon_core.skeletons",
    "recon_core.structures",
    "recon_core.testing",
    "recon_core.training",
)


def public_names(module: Any) -> list[str]:
    """`__all__`, or what the module itself defines without a leading underscore."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    own = lambda value: getattr(value, "__module__", None) == module.__name__  # noqa: E731
    return sorted(
        n for n, value in vars(module).items() if n[0] != "_" and (own(value) or (n.isupper() and n != "TYPE_CHECKING"))
    )


def signature(value: Any) -> str:
    """Names, order and defaults of the arguments; types in shapes and text are left to the type checker."""
    parameters = inspect.signature(value).parameters.values()
    shown = [p.replace(annotation=p.empty, default=_default(p.default)) for p in parameters]
    return str(inspect.Signature(shown))


class _Default:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _default(value: Any) -> Any:
    if value is inspect.Parameter.empty:
        return value
    # Addresses and long tables differ from run to run.
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return _Default(text if len(text) < 60 else "...")


def described(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"class {name}({bases})"
        if dataclasses.is_dataclass(value):
            yield from (f"    {f.name}: {f.type}" for f in dataclasses.fields(value) if f.name[0] != "_")
        else:
            yield from (f"    {n}: {t}" for n, t in vars(value).get("__annotations__", {}).items() if n[0] != "_")
        for attribute, member in sorted(vars(value).items()):
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if inspect.isfunction(function) and (attribute[0] != "_" or _written(value, attribute)):
                yield f"    {attribute}{signature(function)}"
            elif isinstance(member, property) and attribute[0] != "_":
                yield f"    {attribute} (property)"
    elif inspect.isfunction(value) or hasattr(value, "__wrapped__"):
        yield f"{name}{signature(value)}"
    elif isinstance(value, pluggy.HookspecMarker | pluggy.HookimplMarker):
        yield f"{name} (decorator)"
    else:
        yield f"{name}: {type(value).__name__}"


def _written(owner: type, attribute: str) -> bool:
    """__init__, __len__ and __getitem__ that the class itself wrote; those of a dataclass follow from its fields."""
    made = dataclasses.is_dataclass(owner) and attribute == "__init__"
    return attribute in {"__init__", "__len__", "__getitem__", "__call__"} and not made


def public_api() -> str:
    lines = []
    for path in MODULES:
        module = importlib.import_module(path)
        lines += ["", f"# {path}"]
        for name in public_names(module):
            value = getattr(module, name)
            home = getattr(value, "__module__", path)
            if home != path and home in MODULES:
                lines.append(f"{name} = {home}.{name}")
            else:
                lines += described(name, value)
    return "\n".join(lines[1:]) + "\n"


def test_the_public_api_is_what_the_snapshot_says():
    found, expected = public_api().splitlines(), SNAPSHOT.read_text().splitlines()
    gone, new = (sorted(set(a) - set(b)) for a, b in ((expected, found), (found, expected)))
    advice = "if it is meant: python tests/test_public_api.py, and docs/api.md on deprecation"
    assert found == expected, f"gone or changed: {gone}; new: {new}; {advice}"


def test_the_page_lists_the_modules():
    rows = [line for line in (ROOT / "docs/api.md").read_text().splitlines() if line.startswith("| `recon_core")]
    listed = set()
    for row in rows:
        names = re.findall(r"`([\w.]+)`", row.split("|")[1])
        parent = names[0].rpartition(".")[0]
        listed |= {parent + name if name[0] == "." else name for name in names}
    assert listed == set(MODULES)


def test_a_changed_signature_is_seen():
    def first(a, b=1): ...

    def second(a, b=2): ...

    assert list(described("f", first)) == ["f(a, b=1)"]
    assert list(described("f", second)) != list(described("f", first))


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api())
