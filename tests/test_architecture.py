"""Rules of the house that no type checker sees: what may import what, what must be declared, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from recon_core import hookspecs

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = [ROOT, *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))]
# The import name of a distribution, where it is not the distribution's own name with underscores.
IMPORTED_AS = {"pillow": "PIL", "easypytorch3d": "pytorch3d", "warp-lang": "warp", "scikit-image": "skimage"}
PAPERS = {"recon_prohmr", "recon_spin", "recon_acap", "recon_casl"}


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def package_of(folder: Path) -> Path:
    return folder / project(folder)["name"].replace("-", "_")


def sources(folder: Path) -> Iterator[Path]:
    return (path for path in package_of(folder).rglob("*.py") if "tests" not in path.parts)


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def required(folder: Path, extras: bool = True) -> set[str]:
    """Names of the distributions that a pyproject.toml asks for."""
    content = project(folder)
    optional = content.get("optional-dependencies", {}).values() if extras else ()
    lines = [*content["dependencies"], *(line for extra in optional for line in extra)]
    return {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower() for line in lines}


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda folder: folder.name)
def test_every_import_is_declared(folder):
    # What the core itself requires is part of its public types: tensors, arrays, settings.
    modules = {
        IMPORTED_AS.get(name, name.replace("-", "_")) for name in required(folder) | required(ROOT, extras=False)
    }
    known = modules | set(sys.stdlib_module_names) | {package_of(folder).name}
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(folder)
        for name in imports(path)
        if name.partition(".")[0] not in known
    }
    assert not missing


@pytest.mark.parametrize("folder", DISTRIBUTIONS[1:], ids=lambda folder: folder.name)
def test_plugins_import_neither_other_papers_nor_private_names_of_others(folder):
    own = package_of(folder).name
    wrong = set()
    for path in sources(folder):
        for name in imports(path):
            top, *rest = name.split(".")
            if top in PAPERS - {own} or (top != own and top.startswith("recon_") and any(n[0] == "_" for n in rest)):
                wrong.add(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong


@pytest.mark.parametrize("folder", DISTRIBUTIONS[1:], ids=lambda folder: folder.name)
def test_a_plugin_is_a_complete_distribution(folder):
    content = project(folder)
    (target,) = content["entry-points"]["recon.plugins"].values()
    assert (folder / Path(*target.split("."))).with_suffix(".py").is_file()
    assert (folder / "README.md").read_text().startswith(f"# {content['name']}\n")
    assert content["name"] == folder.name
    assert content["license"] == "Apache-2.0"
    assert content["version"] == project(ROOT)["version"]
    assert "recon-core>=0.1,<0.2" in content["dependencies"]


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda folder: folder.name)
def test_a_wheel_holds_the_package_and_its_data_and_nothing_else(folder, tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", tmp_path, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = package_of(folder)
    tracked = subprocess.run(["git", "ls-files", package], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    expected = {Path(name).relative_to(folder.relative_to(ROOT)).as_posix() for name in tracked.split()}
    expected = {name for name in expected if (folder / name).exists()}
    if folder == ROOT:
        expected.add("recon_core/registry.toml")
    assert packed >= expected
    assert {name.split("/")[0] for name in packed} == {package.name}


def test_make_installs_every_distribution_at_the_tested_versions():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    installed = {line.split()[1].partition("[")[0] for line in lines if line.startswith("-e ")}
    assert installed == {".", *(f"./plugins/{folder.name}" for folder in DISTRIBUTIONS[1:])}
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in constraints if "==" in line}
    for folder in DISTRIBUTIONS:
        free = {name for name in required(folder) if not name.startswith("recon-")} - pinned
        assert not free, f"{folder.name}: not in constraints.txt"


def test_every_hook_is_documented_and_called():
    text = "".join(path.read_text() for path in sources(ROOT))
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("recon_")}
    assert "recon_register" in hooks
    for name, hook in hooks.items():
        assert hook.__doc__, name
        called = 'subset_hook_caller("recon_register"' if name == "recon_register" else f'.call("{name}"'
        assert called in text, name


def test_no_file_is_over_400_lines():
    long = {
        f"{path.relative_to(ROOT)}: {count}"
        for folder in DISTRIBUTIONS
        for path in sources(folder)
        if (count := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_nothing_is_left_open():
    mark = re.compile("raise Not" + "ImplementedError|TO" + "DO|FIX" + "ME|XX" + "X")
    found = {str(path.relative_to(ROOT)) for f in DISTRIBUTIONS for path in sources(f) if mark.search(path.read_text())}
    assert not found


def test_ci_runs_the_tests_of_the_readme():
    assert "make test" in (ROOT / ".ci/run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_every_page_of_the_documentation_is_in_its_navigation():
    class Loader(yaml.SafeLoader):
        """mkdocs.yml names Python objects by tag; none is built here."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    navigation = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]

    def pages(entry) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(value)

    docs = ROOT / "docs"
    assert set(pages(navigation)) == {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
