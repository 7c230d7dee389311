"""`recon --help` and `recon methods` answer at once: they import no torch and take little more than their libraries."""

from __future__ import annotations

import statistics
import time

import pytest

HEAVY = ("torch", "numpy", "scipy", "PIL", "warp", "lightning", "skimage", "jaxtyping", "safetensors", "trimesh")


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["plugins", "--explain"], ["run", "--help"]])
def test_listing_imports_nothing_heavy(run_python, arguments):
    program = (
        "import sys; from recon_core.cli import main; code = main(sys.argv[1:]); "
        f"print('loaded', *(m for m in {HEAVY} if m in sys.modules)); sys.exit(code)"
    )
    done = run_python("-c", program, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded"


@pytest.mark.parametrize(
    "module", ["recon_core", "recon_core.plugins", "recon_core.catalogue", "recon_core.config", "recon_core.hookspecs"]
)
def test_the_discovery_half_of_the_core_imports_no_torch(run_python, module):
    done = run_python("-c", f"import sys, {module}; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_public_names_load_on_first_use(run_python):
    program = (
        "import sys, recon_core\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(recon_core.__all__) <= set(dir(recon_core))\n"
        "assert recon_core.Camera.__module__ == 'recon_core.structures'\n"
        "for name in recon_core.__all__: getattr(recon_core, name)\n"
        "try: recon_core.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: raise SystemExit('no error')\n"
    )
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr


def test_start_up_takes_little_more_than_its_libraries(run_python, run_recon):
    """The target is 3 times the bare import (benchmarks/bench_startup.py measures it); here twice that fails."""

    def seconds(run) -> float:
        start = time.perf_counter()
        assert run().returncode == 0
        return time.perf_counter() - start

    pairs = [
        (
            seconds(lambda: run_python("-c", "import click, pluggy, pydantic")),
            seconds(lambda: run_recon("--help")),
            seconds(lambda: run_recon("methods")),
        )
        for _ in range(3)
    ]
    bare, help_, methods = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert help_ < 6 * bare
    assert methods < 6 * bare
