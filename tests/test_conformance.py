"""`pytest --recon-plugin`: every plugin of recon passes, and each check fails the plugin that is bad in its way."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

import pytest

from recon_core.plugins import GROUP

BUILT_IN = sorted(
    {e.dist.name for e in metadata.entry_points(group=GROUP) if e.dist and e.dist.name.startswith("recon-")}
)


@pytest.fixture
def check(run_python, tmp_path):
    """check("my_pkg", path=[...]) -> {check: {part: "passed", "skipped", or what it said when it failed}}."""

    def run(*packages: str, path: list[Path] = ()) -> dict[str, dict[str, str]]:
        report = tmp_path / "report.xml"
        chosen = [word for name in packages for word in ("--recon-plugin", name)]
        options = ["-q", "--no-header", "-p", "no:cacheprovider", "-c", "/dev/null", f"--junitxml={report}"]
        done = run_python("-m", "pytest", *options, *chosen, path=path)
        assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr
        found: dict[str, dict[str, str]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            name, part = re.fullmatch(r"(\w+)\[(.+)\]", case.get("name")).groups()
            outcome = next(iter(case), None)
            said = "passed" if outcome is None else outcome.get("message", "")
            found.setdefault(name, {})[part] = "skipped" if outcome is not None and outcome.tag == "skipped" else said
        return found

    return run


@pytest.mark.parametrize("package", BUILT_IN)
def test_a_built_in_plugin_passes(check, package):
    found = check(package)
    failed = {f"{name} {part}: {said}" for name, parts in found.items() for part, said in parts.items()
              if said not in ("passed", "skipped")}  # fmt: skip
    assert not failed
    assert "passed" in found["test_it_registers_without_heavy_imports"].values()


# One method a fault, each otherwise good: `Good` is what they have in common.
BAD_METHODS = """
import random

import torch
from torch import nn

from recon_core.errors import EvidenceError
from recon_core.interfaces import Method, Settings
from recon_core.structures import BodyParameters, LossValue, Mesh, Observation, Prediction

FACES = torch.tensor([[0, 1, 2]])


class Good(Method):
    Config = Settings
    inputs = frozenset({"image"})
    outputs = frozenset({"mesh"})
    crop_size = 16

    def __init__(self, config, body_model=None):
        super().__init__(config, body_model)
        self.layer = nn.Linear(3, 9)

    def corners(self, observation):
        if observation.image is None:
            raise EvidenceError("reads the image: the observation has no crop")
        return self.layer(observation.image.mean((2, 3))).sigmoid().reshape(-1, 3, 3) + 1

    def predict(self, observation):
        return Prediction(mesh=Mesh(self.corners(observation), FACES))

    def training_step(self, batch, step):
        color = self.layer(batch["image"].mean((2, 3)))
        return LossValue((color**2).sum(1))


class ReadsMore(Good):
    def predict(self, observation):
        corners = self.corners(observation) + observation.mask.mean((1, 2, 3))[:, None, None]
        return Prediction(mesh=Mesh(corners, FACES))


class UnknownInput(Good):
    inputs = frozenset({"image", "smell"})


class ForgetsOutput(Good):
    outputs = frozenset({"mesh", "image"})


class NotFinite(Good):
    def corners(self, observation):
        return super().corners(observation) / 0


class MixesRows(Good):
    def corners(self, observation):
        corners = super().corners(observation)
        return corners - corners.mean(0, keepdim=True) * 0.1 if len(corners) else corners


class NeedsSomebody(Good):
    def corners(self, observation):
        corners = super().corners(observation)
        return corners + 0 * corners[0]


class NoGradient(Good):
    def __init__(self, config, body_model=None):
        super().__init__(config, body_model)
        self.forgotten = nn.Linear(2, 2)


class KeepsAside(Good):
    def __init__(self, config, body_model=None):
        super().__init__(config, body_model)
        self.aside = [torch.randn(9)]

    def corners(self, observation):
        return super().corners(observation) + self.aside[0].sigmoid().reshape(3, 3)


class Rolls(Good):
    def predict(self, observation):
        return Prediction(mesh=Mesh(self.corners(observation) + random.random(), FACES))


class RollsInTraining(Good):
    def training_step(self, batch, step):
        loss = super().training_step(batch, step)
        return LossValue(loss.per_sample * (1 + random.random()))


class CannotTravel(Good):
    def __init__(self, config, body_model=None):
        super().__init__(config, body_model)
        self.activation = lambda x: x


class Obscure(Good):
    def corners(self, observation):
        return self.layer(observation.image.mean((2, 3))).sigmoid().reshape(-1, 3, 3) + 1


class Talkative(Good):
    def corners(self, observation):
        if observation.image is None:
            raise EvidenceError("no crop\\nsee above")
        return super().corners(observation)


class Lax(Good):
    class Config(Settings):
        model_config = {"extra": "ignore"}


class Demanding(Good):
    class Config(Settings):
        needed: int


class NotAMethod:
    pass
"""

FAULTS = {
    "ReadsMore": ("test_it_declares_what_it_reads_and_gives", "shown only what `inputs` declares, predict fails"),
    "UnknownInput": ("test_it_declares_what_it_reads_and_gives", "inputs has smell; known: image, mask"),
    "ForgetsOutput": ("test_it_predicts_on_the_synthetic_batch", "outputs declares ['image', 'mesh'], predict filled"),
    "NotFinite": ("test_it_predicts_on_the_synthetic_batch", "predict: mesh.vertices is not finite"),
    "MixesRows": ("test_a_batch_of_one_is_a_row_of_a_batch_of_many", "subject 0 by itself: mesh.vertices differs"),
    "NeedsSomebody": ("test_an_empty_batch_gives_an_empty_prediction", "index 0 is out of bounds"),
    "NoGradient": ("test_gradients_reach_every_trainable_parameter", "no gradient reaches forgotten.weight, forgotten"),
    "KeepsAside": ("test_saved_and_loaded_it_predicts_the_same", "saved, and loaded into another: mesh.vertices"),
    "Rolls": ("test_it_does_the_same_again_under_the_same_seed", "under the same seed: mesh.vertices differs"),
    "RollsInTraining": ("test_a_training_step_does_the_same_again_under_the_same_seed", "differs under one seed"),
    "CannotTravel": ("test_it_can_be_sent_to_another_process", "it cannot be pickled"),
    "Obscure": ("test_what_it_cannot_do_without_it_says_in_one_line", "without image: AttributeError"),
    "Talkative": ("test_what_it_cannot_do_without_it_says_in_one_line", "say it in one line"),
    "Lax": ("test_its_settings_survive_a_round_trip_and_refuse_unknown_names", "DID NOT RAISE"),
    "Demanding": ("test_its_settings_survive_a_round_trip_and_refuse_unknown_names", "has no default for needed"),
    "NotAMethod": ("test_what_it_names_is_there_and_fulfils_its_interface", "is not a subclass of"),
}
# A fault may show in further checks; these are those that a bad method fails besides its own.
ALSO = {
    # What is not declared is missing wherever only the declared is shown.
    "ReadsMore": "any",
    "NotAMethod": "any",
    "Demanding": "any",
    # Without an image, it still asks for the smell.
    "UnknownInput": {"test_what_it_cannot_do_without_it_says_in_one_line"},
    "ForgetsOutput": {"test_an_empty_batch_gives_an_empty_prediction"},
    "Rolls": "any",
    "NotFinite": set(),
}


@pytest.fixture(scope="module")
def bad_site(tmp_path_factory) -> Path:
    """Three packages: one of bad methods, one that imports torch, one without a licence."""
    site = tmp_path_factory.mktemp("bad")

    def install(package: str, files: dict[str, str], licence: str = "License-Expression: MIT\n") -> None:
        module = package.replace("-", "_")
        for name, text in files.items():
            (site / name).write_text(text)
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {package}\nVersion: 1.0\n{licence}")
        (info / "entry_points.txt").write_text(f"[recon.plugins]\n{module} = {module}\n")

    head = "from recon_core import hookimpl\n@hookimpl\ndef recon_register(register):\n"
    lines = [
        f'    register.method("{name.lower()}", "bad_methods:{name}", summary="bad")' for name in ["Good", *FAULTS]
    ]
    install("bad-pkg", {"bad_pkg.py": head + "\n".join(lines), "bad_methods.py": BAD_METHODS})
    install("heavy-pkg", {"heavy_pkg.py": "import torch\n" + head + "    pass\n"})
    install("unlicensed-pkg", {"unlicensed_pkg.py": head + "    pass\n"}, licence="")
    install("broken-pkg", {"broken_pkg.py": "1 / 0\n"})
    return site


def test_each_bad_plugin_fails_its_check(check, bad_site):
    found = check("bad_pkg", "heavy-pkg", "unlicensed_pkg", "broken_pkg", path=[bad_site])
    failures = {
        part: {
            name: parts[part] for name, parts in found.items() if parts.get(part, "passed") not in ("passed", "skipped")
        }
        for part in {p for parts in found.values() for p in parts}
    }
    assert failures["method good"] == {}
    for name, (check_name, message) in FAULTS.items():
        failed = failures[f"method {name.lower()}"]
        assert message in failed.get(check_name, ""), (name, failed)
        also = ALSO.get(name, set())
        assert also == "any" or failed.keys() - {check_name} <= also, (name, failed)
    assert "importing heavy_pkg imports torch" in failures["heavy-pkg"]["test_it_registers_without_heavy_imports"]
    assert "unlicensed-pkg tells no licence" in failures["unlicensed-pkg"]["test_it_tells_its_licence"]
    assert "ZeroDivisionError" in failures["broken-pkg"]["test_it_registers_without_heavy_imports"]
    # Every check of methods has a plugin that fails it, but for the one that needs a GPU.
    unproven = {name for name, parts in found.items() if "method good" in parts} - {c for c, _ in FAULTS.values()}
    assert unproven == {"test_cpu_and_gpu_agree"}


def test_an_unknown_plugin_is_refused_in_one_line(run_python):
    done = run_python("-m", "pytest", "--recon-plugin", "recon_stdd", "-c", "/dev/null")
    assert done.returncode == 4
    assert "ERROR: --recon-plugin recon_stdd: no such plugin is installed; did you mean 'recon-std'?" in done.stderr


def test_without_the_option_nothing_of_recon_is_imported(run_python, tmp_path):
    (tmp_path / "test_nothing.py").write_text(
        "import sys\ndef test(): assert not {'torch', 'recon_core.plugins'} & set(sys.modules)\n"
    )
    done = run_python("-m", "pytest", "-q", "-p", "no:jaxtyping", "-c", "/dev/null", str(tmp_path))
    assert done.returncode == 0, done.stdout
