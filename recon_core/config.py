"""Settings: one section for the run and one for each part, by its registered name.

They come, each overriding the one before, from the part's own defaults, a TOML file with a table a section
(`--config settings.toml`), single assignments (`--set prohmr.samples=25`), and dedicated options
(`--samples 25`). Unknown names are refused and the nearest one is suggested.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from recon_core.errors import UsageError, nearest, unknown

RUN = "run"
"""The section of the run itself; all others bear the name of a part."""

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Assignment:
    """One `--set section.key=text`. path: the keys below the section."""

    section: str
    path: tuple[str, ...]
    text: str

    @classmethod
    def parse(cls, argument: str) -> Assignment:
        """Raises UsageError when it is not of the form section.key=value."""
        keys, equals, text = argument.partition("=")
        section, *path = keys.strip().split(".")
        if not (equals and section and path and all(path)):
            raise UsageError(f"--set {argument}: write it as section.key=value, for example prohmr.samples=25")
        return cls(section, tuple(path), text.strip())

    @property
    def value(self) -> Any:
        """`text` as TOML reads it (25, 0.5, true, [1, 2], "quoted"); `none` is None, the rest stays text."""
        if self.text.lower() == "none":
            return None
        try:
            table = tomllib.loads(f"value = {self.text}")
        except tomllib.TOMLDecodeError:
            return self.text
        return table["value"] if len(table) == 1 else self.text

    def __str__(self) -> str:
        return f"--set {'.'.join((self.section, *self.path))}={self.text}"


@dataclass(frozen=True)
class Configuration:
    """What the user asked for, before any part has said which settings it has."""

    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    assignments: Sequence[Assignment] = ()
    origin: str = ""
    """The file that `tables` came from."""

    @classmethod
    def read(cls, path: str | Path | None = None, assignments: Iterable[str] = ()) -> Configuration:
        """Read `--config` and parse each `--set`. Raises UsageError for what is of the wrong form."""
        parsed = [Assignment.parse(argument) for argument in assignments]
        if path is None:
            return cls(assignments=parsed)
        try:
            tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"--config {path}: not valid TOML: {error}") from error
        for section, table in tables.items():
            if not isinstance(table, dict):
                raise UsageError(f"--config {path}: '{section}' stands in no section; put it below [{RUN}]")
        return cls(tables, parsed, str(path))

    def settings(self, section: str, model: type[Model], **options: Any) -> Model:
        """The validated settings of one section.

        options: what dedicated options say; None stands for an option that was not given. Raises UsageError
        naming the file or assignment at fault, and the nearest setting for an unknown one.
        """
        values = _copy(self.tables.get(section, {}))
        assigned = [a for a in self.assignments if a.section == section]
        for assignment in assigned:
            _assign(values, assignment, assignment.value)
        values |= {name: value for name, value in options.items() if value is not None}
        try:
            return model.model_validate(values)
        except ValidationError as error:
            # `--set run.name=25` means the text "25" where the setting is a text.
            texts = [a for a in assigned if ("string_type", a.path) in _kinds(error)]
            if not texts:
                raise self._complaint(section, model, error) from error
            for assignment in texts:
                _assign(values, assignment, assignment.text)
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise self._complaint(section, model, error) from error

    def check(self, used: Iterable[str]) -> None:
        """Refuse sections that nothing reads. used: the names of the parts of this run.

        A file may hold sections of any registered part, for other runs; an assignment that would change
        nothing is an error. Raises UsageError.
        """
        from recon_core.plugins import registry

        used = {RUN, *used}
        known = used | {entry.name for entry in registry().entries()}
        for section in self.tables:
            if section not in known:
                raise UsageError(f"--config {self.origin}: unknown section [{section}]{nearest(section, known)}")
        for assignment in self.assignments:
            if assignment.section not in known:
                raise UsageError(f"{assignment}: {unknown('section', assignment.section, known)}")
            if assignment.section not in used:
                raise UsageError(
                    f"{assignment}: this run has no {assignment.section}; it has {', '.join(sorted(used))}"
                )

    def _complaint(self, section: str, model: type[BaseModel], error: ValidationError) -> UsageError:
        first = error.errors()[0]
        path = tuple(str(part) for part in first["loc"])
        blamed = [a for a in self.assignments if a.section == section and _overlap(a.path, path)]
        if blamed:
            where = str(blamed[-1])
        elif _holds(self.tables.get(section, {}), path):
            where = f"--config {self.origin} [{section}]"
        else:
            where = f"settings of {section}"
        name = ".".join(path)
        if first["type"] == "extra_forbidden":
            return UsageError(f"{where}: unknown setting '{name}'{nearest(path[-1], _fields(model, path[:-1]))}")
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        return UsageError(f"{where}: {name}: {message}" if name else f"{where}: {message}")


def _overlap(a: Sequence[str], b: Sequence[str]) -> bool:
    """One path leads to, or through, the other. An error of the whole section (no path) has no one to blame."""
    return bool(b) and all(x == y for x, y in zip(a, b, strict=False))


def _kinds(error: ValidationError) -> set[tuple[str, tuple[str, ...]]]:
    return {(e["type"], tuple(str(part) for part in e["loc"])) for e in error.errors()}


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in table.items()}


def _assign(values: dict[str, Any], assignment: Assignment, value: Any) -> None:
    for key in assignment.path[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{assignment}: '{key}' is a value, not a group of settings")
        values = inner
    values[assignment.path[-1]] = value


def _holds(table: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(table, Mapping) or key not in table:
            return False
        table = table[key]
    return bool(path)


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the settings in the group at `path`."""
    for key in path:
        inner = model.model_fields[key].annotation if key in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
