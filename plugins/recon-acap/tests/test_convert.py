"""The released decoder: the parity kit's weights and outputs, and files that are not the released ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recon_acap.convert import convert, main, read_obj
from recon_acap.network import load_embedding, scaling
from recon_core.errors import AssetError
from recon_core.geometry.primitives import icosphere

KIT = Path(__file__).parents[4] / "shared" / "parity"
pytestmark = pytest.mark.skipif(not (KIT / "a").is_dir(), reason="needs the parity kit in ../shared/parity")


@pytest.fixture(scope="module")
def kit():
    sys.path.insert(0, str(KIT))
    import weights

    sys.path.remove(str(KIT))
    spec = json.loads((KIT / "a" / "dhnn.keys.json").read_text())
    golden = dict(np.load(KIT / "a" / "dhnn.golden.npz"))
    state, used = {}, []
    for entry in spec["keys"]:
        if entry["fill"] == "structural":
            state[entry["name"]] = torch.from_numpy(golden[f"aux/{entry['name'].partition('.')[2]}"].astype(np.int64))
            continue
        array = weights.fill(entry["name"], entry["shape"], spec["prefix"], entry.get("gain", 1.0))
        used.append((entry["name"], array))
        state[entry["name"]] = torch.from_numpy(array)
    assert weights.digest(used) == spec["golden"]["weights_sha256"]
    inputs = [
        torch.from_numpy(weights.named_input(i["name"], i["shape"], i["scale"], spec["prefix"]))
        for i in spec["golden"]["inputs"]
    ]
    return spec, golden, state, inputs


@pytest.fixture(scope="module")
def sphere():
    """A template of the kit's 200 vertices: faces that use the first 162 would not do, so a fan over a ring."""
    angle = np.linspace(0, 2 * np.pi, 199, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle), 0.2 * np.cos(3 * angle)], 1)
    faces = np.stack([np.arange(199), np.roll(np.arange(199), -1), np.full(199, 199)], 1)
    return np.concatenate([ring, [[0, 0, 1.0]]]), faces


def assert_reproduces(kit, embedding):
    spec, golden, _, (shape, pose) = kit
    decoder = embedding.decoder
    with torch.no_grad():
        posed, neutral = decoder(shape, pose), decoder(shape, None)
        outputs = {
            "part_features": posed.parts,
            "features": posed.features,
            "part_features_neutral": neutral.parts,
            "features_neutral": neutral.features,
            "features_unscaled": embedding.decode(shape, pose),
        }
        parts = embedding.decode_parts(shape, pose)
    for name, value in outputs.items():
        tolerance = spec["golden"]["outputs"][name]["suggested_atol"]
        np.testing.assert_allclose(value.flatten(1).numpy(), golden[name], rtol=1e-5, atol=tolerance, err_msg=name)
    assert torch.allclose(parts, scaling(decoder.part_bounds).unscale(posed.parts))


def test_decoder_and_learnable_skinning_reproduce_the_released_network(kit, sphere):
    embedding = convert(kit[2], kit[1]["aux/skinning_mask"], *sphere)
    assert_reproduces(kit, embedding)
    assert torch.equal(embedding.decoder.skinning.vertex, kit[2]["skin.vv_index"])


@pytest.mark.parametrize("zip_format", [True, False])
def test_the_command_converts_the_released_files(kit, sphere, tmp_path, zip_format, monkeypatch, capsys):
    _, golden, state, _ = kit
    state = dict(state)
    np.save(tmp_path / "acap_scales.npy", state.pop("vs_scale").numpy())
    np.savetxt(tmp_path / "part_scales.txt", state.pop("ps_scale").numpy())
    np.save(tmp_path / "skinning_mask.npy", golden["aux/skinning_mask"])
    vertices, faces = sphere
    lines = [f"v {x} {y} {z}" for x, y, z in vertices] + [f"f {a}/1 {b}/1 {c}/1" for a, b, c in faces + 1]
    (tmp_path / "template.obj").write_text("\n".join(lines))
    torch.save(state, tmp_path / "RepWs.pth", _use_new_zipfile_serialization=zip_format)
    names = {"scales": "acap_scales.npy", "part-scales": "part_scales.txt", "mask": "skinning_mask.npy"}
    options = [x for k, v in (names | {"template": "template.obj"}).items() for x in (f"--{k}", str(tmp_path / v))]
    out = tmp_path / "dhnn.safetensors"
    arguments = [str(tmp_path / "RepWs.pth"), *options, "--output", str(out)]
    if zip_format:
        command = [sys.executable, "-m", "recon_acap.convert", *arguments]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        monkeypatch.setattr(sys, "argv", ["convert", *arguments])
        main()
        said = capsys.readouterr().out
    assert "200 vertices, 16 parts" in said
    assert_reproduces(kit, load_embedding(out))


def test_missing_unknown_and_misshapen_entries_are_named(kit, sphere):
    _, golden, state, _ = kit
    mask = golden["aux/skinning_mask"]
    without = {name: value for name, value in state.items() if name not in ("Td.bias", "Cs.2.weight")}
    with pytest.raises(AssetError, match=r"missing entries Cs\.2\.weight, Td\.bias"):
        convert(without, mask, *sphere)
    with pytest.raises(AssetError, match="unknown entries encoder.weight"):
        convert(state | {"encoder.weight": torch.zeros(1)}, mask, *sphere)
    with pytest.raises(AssetError, match=r"Tc\.bias has shape \(143,\), expected \(144,\)"):
        convert(state | {"Tc.bias": torch.zeros(143)}, mask, *sphere)
    with pytest.raises(AssetError, match="not the list of the skinning mask's entries"):
        convert(state | {"skin.vb_index": state["skin.vb_index"].flip(0)}, mask, *sphere)
    with pytest.raises(AssetError, match="42 vertices, the skinning mask 200"):
        convert(state, mask, icosphere(1)[0].numpy(), icosphere(1)[1].numpy())


def test_index_lists_may_be_missing(kit, sphere):
    state = {name: value for name, value in kit[2].items() if not name.endswith("_index")}
    assert_reproduces(kit, convert(state, kit[1]["aux/skinning_mask"], *sphere))


@pytest.mark.parametrize("text", ["", "v 0 0 0\nf 1 2 3\n", "v 0 0\n", "v a b c\nf 1 1 1\n"])
def test_a_template_that_is_no_mesh_is_named(tmp_path, text):
    (tmp_path / "template.obj").write_text(text)
    with pytest.raises(AssetError, match=r"template\.obj"):
        read_obj(tmp_path / "template.obj")
