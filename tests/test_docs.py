"""The documentation does what it says: every command and every Python block in README.md and docs/ is run, here or by
the test that a comment before it names, or says in a comment why it is not.

    <!-- run: tests/test_x.py::test_y -->     the test that runs the block below
    <!-- not run: why -->                     the block below
    <!-- page not run: why -->                every block of the page
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
import skimage.data
from PIL import Image

from recon_core.cli import main
from recon_core.cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLUGIN_PAGE = ROOT / "docs/plugins.md"

_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>(?:not )?run): (?P<why>[^>]+?) -->\n\n?)?"
    r"(?:^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<fenced>.*?)^```$"
    r"|(?P<indented>(?:^    [^\n]*\n(?:[ \t]*\n(?=    ))*)+))",
    re.M | re.S,
)
_PAGE_MARK = re.compile(r"<!-- page not run: .+? -->")
_COMMAND = re.compile(r"(recon|pip|pytest|make|python3?|torchrun|mkdocs|\.venv/bin/\S+) ")


@dataclass(frozen=True)
class Block:
    """One block of code of a page. mark: "run" or "not run", and why; title: the file that it is."""

    page: Path
    text: str
    language: str
    title: str
    mark: str
    why: str

    @property
    def commands(self) -> list[str]:
        """Lines that begin with a program's name, without their comments; a backslash carries a line on."""
        if self.language not in ("", "bash", "sh", "console"):
            return []
        lines = (line.strip() for line in self.text.replace("\\\n", " ").splitlines())
        return [re.sub(r"\s{2,}#.*", "", line) for line in lines if _COMMAND.match(line)]

    @property
    def code(self) -> bool:
        return self.language == "python"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    whole = "not run" if _PAGE_MARK.search(text) else ""
    for found in _BLOCK.finditer(text):
        content = found["fenced"] if found["fenced"] is not None else found["indented"]
        block = Block(
            page, content, found["language"] or "", found["title"] or "", found["mark"] or whole, found["why"] or ""
        )
        if block.commands or block.code:
            yield block


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photo.jpg and folders of photos, as the pages have them."""
    folder = tmp_path_factory.mktemp("docs")
    photo = Image.fromarray(skimage.data.astronaut())
    photo.save(folder / "photo.jpg")
    for place in ("photos/one.jpg", "holiday/beach.jpg", "more/hill.png"):
        (folder / place).parent.mkdir()
        photo.resize((256, 256)).save(folder / place)
    return folder


@pytest.fixture(scope="module")
def ran() -> set[str]:
    """What was run already: a command that stands on several pages is run once."""
    return set()


RUN_HERE = [page for page in PAGES if page != PLUGIN_PAGE and any(not b.mark for b in blocks(page))]


@pytest.mark.parametrize("page", RUN_HERE, ids=name)
def test_the_blocks_of_a_page_run(page, folder, ran, tmp_path, monkeypatch, capsys):
    (tmp_path / "photo.jpg").symlink_to(folder / "photo.jpg")
    for block in blocks(page):
        if block.code and not block.mark:
            monkeypatch.chdir(tmp_path)
            exec(compile(block.text, name(page), "exec"), {"__name__": "docs"})
        monkeypatch.chdir(folder)
        for command in block.commands if not block.mark else ():
            program, *arguments = shlex.split(command)
            assert program == "recon", f"{name(page)}: mark `{command}` as run by a test, or as not run"
            if command not in ran:
                assert main(arguments) == 0, f"{name(page)}: {command}: {capsys.readouterr().err}"
                ran.add(command)


def test_the_plugin_page_works_as_it_is_written(newcomer):
    Image.fromarray(skimage.data.astronaut()).save(newcomer.folder / "photo.jpg")
    commands = []
    for block in blocks(PLUGIN_PAGE):
        assert not block.mark
        if block.title:
            file = newcomer.folder / block.title
            assert file.is_file(), f"{block.title} is no file of the package"
            file.write_text(block.text)
        for command in block.commands:
            done = newcomer(*shlex.split(command))
            assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr}"
            commands.append(command)
    result = newcomer.folder / "out/photo/result.json"
    assert '"arms": 0.9' in result.read_text()
    told = [b for b in blocks(ROOT / "README.md") if "test_the_plugin_page" in b.why]
    assert told
    assert all(set(b.commands) <= set(commands) for b in told)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_marks_of_a_page_name_tests_that_are_there(page):
    for block in blocks(page):
        if block.mark == "run":
            path, _, function = block.why.partition("::")
            tests = {n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, ast.FunctionDef)}
            assert function in tests, f"{name(page)}: {block.why}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_call_of_recon_has_the_options_that_recon_has(page):
    """Run or not: `recon` understands it."""
    for block in blocks(page):
        for command in block.commands:
            if command.startswith("recon ") and "..." not in command:
                try:
                    understood(shlex.split(command)[1:])
                except (click.ClickException, Exception) as error:
                    raise AssertionError(f"{name(page)}: {command}: {error}") from error


def understood(arguments: list[str]) -> None:
    """Parse a call as recon does, without running it. Raises what recon would say."""
    context = cli.make_context("recon", list(arguments), obj={"debug": False})
    group: click.Command = cli
    rest = [*context._protected_args, *context.args]
    while isinstance(group, click.Group) and rest:
        verb, group, rest = group.resolve_command(context, rest)
        context = group.make_context(verb, rest, parent=context)
        rest = [*getattr(context, "_protected_args", []), *context.args]


def test_pictures_of_the_pages_are_there_and_small():
    for page in PAGES:
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            picture = page.parent / target
            assert picture.is_file(), f"{name(page)}: {target}"
            assert picture.stat().st_size < 200_000, target
            assert np.asarray(Image.open(picture)).std() > 10, target


def test_a_block_that_is_neither_run_nor_marked_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Text.\n\n    recon run a.jpg   # one\n\n    [table]\n\n<!-- not run: why -->\n\n    make it now\n\n"
        "```python\nx = 1\n```\n"
    )
    found = [(b.commands, b.code, b.mark, b.why) for b in blocks(page)]
    assert found == [
        (["recon run a.jpg"], False, "", ""),
        (["make it now"], False, "not run", "why"),
        ([], True, "", ""),
    ]
