"""The command line's frame: errors are one line and an exit code, and the listing verbs say what there is."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time

import click
import pytest

from recon_core.errors import InputError, NoPersonError, ReconError, UsageError

# The package's attribute `main` is the function of that module, not the module.
frame = importlib.import_module("recon_core.cli.main")


@pytest.fixture
def recon(capsys):
    """recon("methods", "--json") -> (exit code, stdout, stderr), in this process."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = frame.main(arguments)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def raising(monkeypatch):
    """Make the verb `methods` raise."""

    def install(error: BaseException) -> None:
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setattr("recon_core.cli.methods.command", command)

    return install


def test_every_verb_exists_as_it_is_announced(recon):
    code, out, _ = recon("--help")
    assert code == 0
    for verb in ("methods", "plugins", "doctor"):
        assert frame.VERBS[verb] in out
    for verb in frame.cli.list_commands(click.Context(frame.cli)):
        command = importlib.import_module(f"recon_core.cli.{verb}").command
        assert isinstance(command, click.Command), verb
        code, out, _ = recon(verb, "--help")
        assert code == 0
        assert "--debug" in out, verb
        assert "--plugin" in out, verb


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("metods",), "unknown command 'metods'; did you mean 'methods'?"),
        (("methods", "--licens", "x"), "No such option '--licens'"),
        (("methods", "--licence", "gpl"), "Invalid value for '--licence'"),
        (("methods", "prohmrr"), "unknown method 'prohmrr'; did you mean 'prohmr'?"),
        (("methods", "--plugin", "prohmr"), "--plugin prohmr: write it as name=package"),
        (("methods", "--plugin", "prohmr=other"), "--plugin prohmr=other: 'prohmr' is brought by recon-prohmr"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(recon, arguments, message):
    code, out, err = recon(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"recon: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ReconError("it\nbroke"), 1),
        (InputError("it broke"), 1),
        (UsageError("it broke"), 2),
        (NoPersonError("it broke"), 3),
    ],
)
def test_errors_on_purpose_are_one_line(recon, raising, error, code):
    raising(error)
    assert recon("methods") == (code, "", "recon: error: it broke\n")


def test_debug_shows_the_traceback_before_or_after_the_verb(recon, raising):
    for arguments in (("--debug", "methods"), ("methods", "--debug")):
        raising(InputError("it broke"))
        code, _, err = recon(*arguments)
        assert code == 1
        assert err.startswith("Traceback")
        assert err.endswith("recon: error: it broke\n")


def test_an_unexpected_error_is_one_line_and_its_traceback_is_kept(recon, raising, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    raising(ZeroDivisionError("oh no"))
    code, _, err = recon("methods")
    (log,) = tmp_path.iterdir()
    assert code == 1
    assert err == f"recon: error: unexpected ZeroDivisionError: oh no; the traceback is in {log}\n"
    assert "Traceback" in log.read_text()


def test_an_unexpected_error_where_nothing_can_be_written(recon, raising, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    raising(ZeroDivisionError("oh no"))
    code, _, err = recon("methods")
    assert code == 1
    assert err == "recon: error: unexpected ZeroDivisionError: oh no; --debug shows the traceback\n"


def test_an_interrupt_is_130(recon, raising):
    raising(KeyboardInterrupt())
    code, _, err = recon("methods")
    assert code == 130
    assert err.strip() == "recon: error: interrupted"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")
def test_ctrl_c_ends_a_process_with_130():
    program = (
        "import sys, time, click, recon_core.cli.methods as m\n"
        "@click.command()\n"
        "def command():\n    print('ready', flush=True); time.sleep(60)\n"
        "m.command = command\n"
        "from recon_core.cli import main; sys.exit(main(['methods']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.skipif(os.name != "posix", reason="uses a shell pipe")
def test_a_closed_pipe_is_quiet():
    done = subprocess.run(
        f"'{sys.executable}' -m recon_core.cli methods --json | head -c 1", shell=True, capture_output=True, check=False
    )
    assert (done.stdout, done.stderr) == (b"[", b"")


def test_methods_lists_installed_and_planned(recon):
    _, out, _ = recon("methods", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["prohmr"]["installed"]
    assert rows["prohmr"]["package"] == "recon-prohmr"
    assert rows["prohmr"]["paper"]["venue"] == "ICCV"
    assert rows["spice"]["status"] == "planned"
    assert rows["spice"]["install"] == "not available yet"
    _, table, _ = recon("methods")
    assert [line.split()[0] for line in table.splitlines()[1:] if line[0] != " "] == sorted(rows)
    assert "spice" in table
    assert "pip install" not in table


def test_methods_filters_by_licence(recon):
    _, out, _ = recon("methods", "--json", "--licence", "permissive")
    rows = json.loads(out)
    assert "prohmr" in {row["name"] for row in rows}
    assert "spice" not in {row["name"] for row in rows}
    assert all(row["permissive"] and row["code_licence"] == "Apache-2.0" for row in rows)


def test_methods_shows_one(recon):
    code, out, _ = recon("methods", "prohmr")
    assert code == 0
    assert "Probabilistic Modeling for Human Mesh Recovery" in out
    assert "59.8 mm" in out
    assert "thesis, table 11" in out


def test_plugins_lists_and_explains(recon):
    _, out, _ = recon("plugins", "--json", "--explain")
    content = json.loads(out)
    assert {row["package"] for row in content["plugins"]} >= {"recon-std", "recon-prohmr", "recon-spin"}
    (why,) = [row for row in content["names"] if (row["kind"], row["name"]) == ("method", "prohmr")]
    assert (why["from"], why["why"]) == ("recon-prohmr", "the only one")
    _, out, _ = recon("plugins", "--explain")
    assert "recon_prohmr.method:ProHMR" in out


def test_doctor_reports_every_area(recon):
    code, out, _ = recon("doctor", "--json")
    assert code == 0
    checks = json.loads(out)
    assert {check["area"] for check in checks} >= {"version", "device", "plugin", "renderer", "body", "method", "file"}
    assert {check["state"] for check in checks} <= {"ok", "missing", "broken"}
    states = {(check["area"], check["name"]): check for check in checks}
    assert states["version", "torch"]["state"] == "ok"
    assert states["plugin", "recon-std"]["state"] == "ok"
    assert states["body", "free"]["state"] == "ok"
    assert states["method", "spice"]["advice"] == "not available yet"


def test_doctor_tells_of_a_broken_plugin_and_of_missing_files(recon, installed, tmp_path, monkeypatch):
    from recon_core.assets import assets
    from recon_core.plugins import registry

    monkeypatch.syspath_prepend(installed("broken-pkg", {"broken_pkg.py": "1 / 0"}, "broken_pkg"))
    monkeypatch.setenv("RECON_ASSETS_DIR", str(tmp_path / "assets"))
    try:
        registry.cache_clear()
        assets.cache_clear()
        code, out, _ = recon("doctor", "--json")
    finally:
        registry.cache_clear()
        assets.cache_clear()
    assert code == 0
    checks = {(check["area"], check["name"]): check for check in json.loads(out)}
    broken = checks["plugin", "broken-pkg"]
    assert broken["state"] == "broken"
    assert "ZeroDivisionError: division by zero" in broken["detail"]
    missing = checks["file", "blazepose-detection"]
    assert missing["state"] == "missing"
    assert "recon assets fetch blazepose-detection" in missing["advice"]
    assert checks["body", "free"]["state"] == "ok"
