"""Start-up: `recon --help` and `recon methods` against the bare import of their libraries.

    python benchmarks/bench_startup.py [--rounds 15]

Target: at most 3 times. Each round runs the three commands one after the other; medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import click, pluggy, pydantic": ["-c", "import click, pluggy, pydantic"],
    "recon --help": ["-m", "recon_core.cli", "--help"],
    "recon methods": ["-m", "recon_core.cli", "methods"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Start-up time of recon.")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    bare = medians["import click, pluggy, pydantic"]
    print(f"{'command':<34}{'median':>10}{'ratio':>8}")
    for name, median in medians.items():
        print(f"{name:<34}{median * 1000:>7.0f} ms{median / bare:>8.2f}")


if __name__ == "__main__":
    main()
