"""Settings: where they come from, which one wins, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, Field, model_validator

from recon_core.config import Assignment, Configuration
from recon_core.errors import UsageError
from recon_core.interfaces import Settings


class Fit(Settings):
    weight: float = 1.0
    stages: list[int] = [1]


class Example(Settings):
    samples: int = Field(0, ge=0)
    name: str = "x"
    scale: float | None = 2.0
    fast: bool = False
    folder: Path = Path()
    fit: Fit = Fit()


def settings(*assignments: str, model: type[BaseModel] = Example, file: Path | None = None, **options: object):
    return Configuration.read(file, assignments).settings("prohmr", model, **options)


def test_assignments_are_typed():
    read = settings(
        "prohmr.samples=25", "prohmr.name=25", "prohmr.scale=none", "prohmr.fast=true", "prohmr.fit.weight=0.5",
        "prohmr.fit.stages=[3, 4]", "prohmr.folder=a/b.txt",
    )  # fmt: skip
    assert read == Example(
        samples=25, name="25", scale=None, fast=True, folder=Path("a/b.txt"), fit=Fit(weight=0.5, stages=[3, 4])
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("25", 25), ("-1e-3", -0.001), ("true", True), ("cuda:0", "cuda:0"), ('"a b"', "a b"), ("None", None), ("", "")],
)
def test_values_read_as_toml_or_text(text, value):
    assert Assignment.parse(f"a.b={text}").value == value


def test_a_value_cannot_bring_further_keys():
    assert Assignment.parse("a.b=1\nc=2").value == "1\nc=2"


def test_option_beats_assignment_beats_file_beats_default(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("[prohmr]\nsamples = 1\nscale = 1.0\nname = 'file'\n")
    read = settings("prohmr.samples=2", "prohmr.scale=3", file=file, samples=7, fast=None)
    assert read == Example(samples=7, scale=3.0, name="file")


def test_the_last_of_two_assignments_wins_and_the_file_is_left_alone(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("[prohmr.fit]\nweight = 3.0\n")
    configuration = Configuration.read(file, ["prohmr.fit.weight=4", "prohmr.fit.weight=5"])
    assert configuration.settings("prohmr", Example).fit.weight == 5
    assert configuration.tables["prohmr"]["fit"]["weight"] == 3.0


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("prohmr.samplse=25", "--set prohmr.samplse=25: unknown setting 'samplse'; did you mean 'samples'?"),
        ("prohmr.fit.wieght=2", "--set prohmr.fit.wieght=2: unknown setting 'fit.wieght'; did you mean 'weight'?"),
        ("prohmr.samples=many", "--set prohmr.samples=many: samples: input should be a valid integer"),
        ("prohmr.samples=-1", "--set prohmr.samples=-1: samples: input should be greater than or equal to 0"),
        ("prohmr.samples.x=1", "--set prohmr.samples.x=1: samples: input should be a valid integer"),
        ("samples=25", "--set samples=25: write it as section.key=value"),
        ("prohmr.samples", "--set prohmr.samples: write it as section.key=value"),
        ("prohmr.=2", "--set prohmr.=2: write it as section.key=value"),
    ],
)
def test_a_wrong_assignment_is_named(assignment, message):
    with pytest.raises(UsageError) as error:
        settings(assignment)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_value_where_a_group_is_expected_is_named():
    with pytest.raises(UsageError, match=r"--set prohmr.fit.weight=2: 'fit' is a value, not a group"):
        settings("prohmr.fit=1", "prohmr.fit.weight=2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[prohmr]\nsamplse = 1", r"--config .*s.toml \[prohmr\]: unknown setting 'samplse'; did you mean 'samples'"),
        ("[prohmr]\nsamples = 'x'", r"--config .*s.toml \[prohmr\]: samples: input should be a valid integer"),
        ("samples = 1", "'samples' stands in no section"),
        ("[prohmr", "not valid TOML"),
        ("\x00", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        settings(file=file)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_an_unreadable_file_is_named(tmp_path, name):
    with pytest.raises(UsageError, match="--config .*: cannot be read"):
        Configuration.read(tmp_path / name)


def test_a_file_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "s.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not valid TOML"):
        Configuration.read(file)


def test_sections_that_nothing_reads_are_refused(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("[spin]\niterations = 3\n")
    # A file may serve several methods: spin is registered, though this run has none of it.
    Configuration.read(file, ["run.device=cpu"]).check(["prohmr"])
    with pytest.raises(UsageError, match="--set spin.iterations=3: this run has no spin; it has prohmr, run"):
        Configuration.read(None, ["spin.iterations=3"]).check(["prohmr"])
    with pytest.raises(UsageError, match="unknown section 'prohmrr'; did you mean 'prohmr'"):
        Configuration.read(None, ["prohmrr.samples=3"]).check(["prohmr"])
    file.write_text("[spinn]\niterations = 3\n")
    with pytest.raises(UsageError, match=r"s.toml: unknown section \[spinn\]; did you mean 'spin'"):
        Configuration.read(file).check(["prohmr"])


def test_an_error_of_the_whole_section_is_told():
    class Pair(Settings):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _ordered(self):
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    with pytest.raises(UsageError, match="^settings of prohmr: low is above high$"):
        settings("prohmr.low=3", model=Pair)
