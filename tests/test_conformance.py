"""`pytest --recon-plugin`: every plugin of recon passes, and each check fails the plugin that is bad in its way."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import nn

from recon_core.plugins import GROUP
from recon_core.structures import Camera, Mesh, Observation, Prediction

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
BAD_METHODS = (Path(__file__).parent / "bad_plugins/bad_methods.py").read_text()

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


# The same for the other parts: what is registered, as which kind, and what it is told.
BAD_PARTS = (Path(__file__).parent / "bad_plugins/bad_parts.py").read_text()

PART_FAULTS = {
    ("body", "mixing_body"): ("test_a_body_is_posed_row_by_row", "one body by itself: vertices differs"),
    ("body", "stiff_body"): ("test_gradients_reach_pose_shape_and_place", "no gradient reaches betas"),
    ("body", "crooked_body"): ("test_its_keypoints_are_those_of_its_mesh", "keypoints(smpl24):  differs by up to 0.1"),
    ("prior", "SummingPrior"): ("test_a_prior_gives_one_density_a_row", "log_prob is [1], not one number a row"),
    ("prior", "FicklePrior"): ("test_samples_and_mode_of_a_prior_are_values_of_it", "sample(5) a second time"),
    ("loss", "SummingLoss"): ("test_a_loss_gives_one_number_a_sample", "per_sample has 1 rows"),
    ("loss", "StuckLoss"): ("test_it_can_be_sent_to_another_process", "it cannot be pickled"),
    ("fitter", "BoastfulFitter"): ("test_a_fitter_reports_on_every_subject_and_makes_none_worse", "the energy rose"),
    ("fitter", "RestlessFitter"): ("test_a_fit_is_the_same_alone_and_again", "a second time: translation differs"),
    ("fitter", "ObliviousFitter"): ("test_a_fitter_says_in_one_line_that_there_is_nothing_to_fit_to", "should raise"),
    ("renderer", "OpaqueRenderer"): ("test_a_renderer_sees_a_ball", "does not require grad"),
    ("encoder", "MixingEncoder"): ("test_an_encoder_gives_features_row_by_row", "one subject by itself"),
    ("detector", "GhostDetector"): ("test_a_detector_finds_nobody_in_an_empty_picture", "Detection"),
    ("dataset", "ObscureDataset"): ("test_a_data_set_is_read_or_says_what_it_needs", "KeyError"),
}


@pytest.fixture(scope="module")
def bad_site(tmp_path_factory) -> Path:
    """Packages of bad methods and bad parts, one that imports torch, one without a licence, and one that is broken."""
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
    calls = [f'    register.{kind}("{name.lower()}", "bad_parts:{name}", summary="bad")' for kind, name in PART_FAULTS]
    install("parts-pkg", {"parts_pkg.py": head + "\n".join(calls), "bad_parts.py": BAD_PARTS})
    install("heavy-pkg", {"heavy_pkg.py": "import torch\n" + head + "    pass\n"})
    install("unlicensed-pkg", {"unlicensed_pkg.py": head + "    pass\n"}, licence="")
    install("broken-pkg", {"broken_pkg.py": "1 / 0\n"})
    return site


def failures_of(found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """By part: what each check that it fails says."""
    failed: dict[str, dict[str, str]] = {}
    for name, parts in found.items():
        for part, said in parts.items():
            failed.setdefault(part, {}).update({} if said in ("passed", "skipped") else {name: said})
    return failed


def test_each_bad_package_and_method_fails_its_check(check, bad_site):
    found = check("bad_pkg", "heavy-pkg", "unlicensed_pkg", "broken_pkg", path=[bad_site])
    failures = failures_of(found)
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


def test_each_bad_part_fails_its_check(check, bad_site):
    found = check("parts_pkg", path=[bad_site])
    failures = failures_of(found)
    for (kind, name), (check_name, message) in PART_FAULTS.items():
        failed = failures[f"{kind} {name.lower()}"]
        assert message in failed.get(check_name, ""), (name, failed)
    common = {"test_what_it_names_is_there_and_fulfils_its_interface", "test_it_tells_its_licence"}
    common |= {"test_it_registers_without_heavy_imports"}
    common |= {"test_its_settings_survive_a_round_trip_and_refuse_unknown_names"}
    assert found.keys() - common == {check_name for check_name, _ in PART_FAULTS.values()}


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


class Follows(nn.Module):
    """A method whose numbers stay on its device. stray: but for its faces, as a constant of a module would."""

    def __init__(self, stray: bool) -> None:
        super().__init__()
        self.stray, self.layer = stray, nn.Linear(4, 9)

    def predict(self, observation: Observation) -> Prediction:
        assert observation.box is not None
        corners = self.layer(observation.box).unflatten(1, (3, 3))
        faces = torch.tensor([[0, 1, 2]], device="cpu" if self.stray else corners.device)
        return Prediction(mesh=Mesh(corners, faces))


@pytest.mark.parametrize("stray", [False, True])
def test_what_a_method_leaves_on_the_cpu_is_named(monkeypatch, stray):
    """The GPU's check with torch's meta device in place of a GPU: it holds no numbers, but tensors live on it."""
    from recon_core.testing.checks import check_methods as checks

    seen = Observation(Camera.perspective(100.0, (64, 64), batch=2), box=torch.rand(2, 4))
    monkeypatch.setattr(checks, "built", lambda name: Follows(stray))
    monkeypatch.setattr(checks, "seen", lambda name: seen)
    if stray:
        with pytest.raises(AssertionError, match="on meta, predict gives mesh.faces on the CPU"):
            checks.predicted_on("meta", "follows")
    else:
        assert checks.predicted_on("meta", "follows").mesh.vertices.device.type == "meta"
