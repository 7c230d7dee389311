"""The loop over processes: killed, spread over two, stopped from outside, and through the command line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recon_core.training import train

TINY = Path(__file__).parent / "tiny.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def wait_for(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def logged_steps(output: Path) -> int:
    log = output / "log.csv"
    return max(0, len(log.read_text().splitlines()) - 1) * 3 if log.exists() else 0


def without_times(output: Path) -> list[list[str]]:
    return [line.split(",")[:-2] for line in (output / "log.csv").read_text().splitlines()]


def test_a_killed_run_ends_with_the_same_loss_to_the_last_bit(tiny, tmp_path):
    train(tiny.made(pause=0.02), tiny.sources(), tmp_path / "whole", tiny.settings(), "tiny")
    cut = tmp_path / "cut"
    process = subprocess.Popen([sys.executable, TINY, "tiny", cut, "begin", "0.02", "1"], env=ENVIRONMENT)
    at = random.Random().randrange(3, 21)
    wait_for(lambda: logged_steps(cut) >= at, process)
    time.sleep(random.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "weights.safetensors").exists()
    train(tiny.made(pause=0.02), tiny.sources(), cut, tiny.settings(), "tiny", resume=True)
    assert without_times(cut) == without_times(tmp_path / "whole"), f"killed after step {at}"
    files = [folder / "weights.safetensors" for folder in (cut, tmp_path / "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", ["averaged", "game"])
def test_two_processes_move_the_weights_as_one_does(tiny, tmp_path, name):
    """Plain gradient descent: the weights after 24 steps differ by what the gradients do. One case is started by
    Fabric, the other by torchrun."""
    train(tiny.made(name, optimizer="sgd"), tiny.sources()[:1], tmp_path / "one", tiny.settings(), name)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    start = start if name == "game" else [sys.executable]
    command = [*start, str(TINY), name, str(tmp_path / "two"), "begin", "0", "2"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / run / "weights.safetensors") for run in ("one", "two"))
    before = tiny.made(name, optimizer="sgd").state_dict()
    for key, value in one.items():
        assert (value - two[key]).abs().max() < 1e-6, key
        assert (value - before[key]).abs().max() > 1e-4, key


@pytest.fixture
def site(installed) -> Path:
    return installed("recon-tiny", {"tiny.py": TINY.read_text()}, "tiny")


def test_the_command_trains_stops_at_sigterm_and_resumes(site, run_recon, tmp_path):
    output = tmp_path / "run"
    arguments = ["train", "--method", "tiny", "--data", "numbers@1", "--output", str(output), "--accelerator", "cpu"]
    arguments += ["--steps", "24", "--batch-size", "8", "--workers", "1", "--set", "run.log_every=3"]
    arguments += ["--set", "numbers.count=32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "recon_core.cli", *arguments, "--set", "tiny.pause=0.1"],
        env=ENVIRONMENT | {"PYTHONPATH": str(site)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: logged_steps(output) >= 3, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "stopped by SIGTERM at step" in said
    done = run_recon(*arguments, "--set", "tiny.pause=0.1", "--resume", path=[site])
    assert done.returncode == 0, done.stderr
    assert (output / "weights.safetensors").exists()
    assert logged_steps(output) == 24


WRONG = [
    (["--method", "tinny", "--data", "numbers"], 2, "did you mean 'tiny'"),
    (["--method", "tiny", "--data", "numbers@0"], 2, "the weight must be above 0"),
    (["--method", "tiny", "--data", "numbers", "--set", "run.step=3"], 2, "did you mean 'steps'"),
    (["--method", "tiny", "--data", "numbers", "--precision", "8"], 2, "precision"),
    (["--method", "tiny", "--data", "numbers", "--resume", "--weights", "w.safetensors"], 2, "drop one of them"),
    (["--method", "tiny", "--data", "numbers", "--weights", "none.safetensors"], 1, "none.safetensors: no such file"),
    (["--method", "tiny", "--data", "mocap:nowhere"], 1, "nowhere: no such folder"),
    (["--method", "tiny", "--data", "mocap"], 2, "--data mocap:FOLDER"),
]
CALLS = """
import json, sys
from recon_core.cli.main import main
for arguments in json.loads(sys.argv[1]):
    print(main(arguments), file=sys.stderr)
"""


def test_wrong_calls_are_told_in_one_line(site, run_python, tmp_path):
    output = ["--output", str(tmp_path / "run")]
    done = run_python("-c", CALLS, json.dumps([["train", *call, *output] for call, _, _ in WRONG]), path=[site])
    told = done.stderr.strip().splitlines()
    assert len(told) == 2 * len(WRONG), done.stderr
    for (_, code, message), line, returned in zip(WRONG, told[0::2], told[1::2], strict=True):
        assert message in line
        assert int(returned) == code, line
    assert not (tmp_path / "run").exists()
