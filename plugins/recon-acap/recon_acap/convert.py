"""The released decoders of the paper (github.com/Juyong/DHNN_BodyRepresentation) as embeddings of recon.

    python -m recon_acap.convert RepWs.pth --scales acap_scales.npy --part-scales part_scales.txt
        --mask skinning_mask.npy --template template.obj --output dhnn.safetensors

The files are the user's: recon ships none of them, and their data are for non-commercial use. What the released network
has: no encoder; a neutral body without the pose branch; bounds that may lie in the checkpoint, and then count.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recon_acap.network import BodyEmbedding, EmbeddingConfig, Template, save_embedding
from recon_core.errors import AssetError, ReconError
from recon_core.torch_files import StoredTensor, open_torch_file

_BRANCHES = {"s": "shape", "p": "pose"}
_PATHS = {"C": "coarse", "D": "difference"}


def released_names() -> dict[str, str]:
    """The released state dict's names, and those of `Decoder` that they become."""
    names = {"ps_scale": "part_bounds", "vs_scale": "bounds", "skin.ws": "skinning.logits"}
    names |= {"skin.vb_index": "skinning.part", "skin.vv_index": "skinning.vertex"}
    for letter, path in _PATHS.items():
        for kind in ("weight", "bias"):
            names[f"T{letter.lower()}.{kind}"] = f"{path}.output.{kind}"
            for short, branch in _BRANCHES.items():
                names |= {f"{letter}{short}.{i}.{kind}": f"{path}.{branch}.{i}.{kind}" for i in (0, 2)}
    return names


def convert(state: Mapping[str, Tensor], mask: np.ndarray, reference: np.ndarray, faces: np.ndarray) -> BodyEmbedding:
    """The embedding of a released state dict (names of `released_names`), float32, in evaluation mode.

    mask: (K, V) parts that may move a vertex. reference: (V, 3) template. faces: (F, 3). `ps_scale` (2, K*9) and
    `vs_scale` (2, V*9) have the largest values first. The skinning's index lists may be missing: the mask gives them.
    Raises AssetError that names missing and unknown entries, a wrong shape, or index lists that are not the mask's.
    """
    parts, vertices = mask.shape
    if reference.shape != (vertices, 3):
        raise AssetError(
            f"the template has {len(reference)} vertices, the skinning mask {vertices}; take both of one model"
        )
    near = torch.from_numpy(np.asarray(mask) != 0)
    template = Template(
        torch.from_numpy(np.asarray(reference, np.float32)),
        torch.from_numpy(np.asarray(faces, np.int64)),
        near.int().argmax(0),
        near,
        torch.full((vertices,), -1),
    )
    config = EmbeddingConfig(vertices=vertices, parts=parts, neutral="shape-branch")
    embedding = BodyEmbedding(config, template, with_encoder=False)
    own = embedding.decoder.state_dict()
    names = released_names()
    if unknown := sorted(set(state) - names.keys()):
        raise AssetError(f"unknown entries {', '.join(unknown)}: not the decoder of the paper's code")
    optional = {"skin.vb_index", "skin.vv_index"}
    if missing := sorted(names.keys() - optional - set(state)):
        raise AssetError(f"missing entries {', '.join(missing)}: give the whole checkpoint, and the bounds' files")
    for name, value in state.items():
        if value.shape != own[names[name]].shape:
            expected = tuple(own[names[name]].shape)
            raise AssetError(
                f"{name} has shape {tuple(value.shape)}, expected {expected} for {vertices} vertices, {parts} parts"
            )
        if name in optional and not torch.equal(value.long(), own[names[name]]):
            raise AssetError(f"{name} is not the list of the skinning mask's entries; take both of one model")
    own |= {names[name]: value for name, value in state.items() if name not in optional}
    embedding.decoder.load_state_dict(own)
    return embedding.eval()


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without running anything that it names. Raises AssetError naming the file."""
    with open_torch_file(path) as content:
        return {name: value.load() for name, value in content.items() if isinstance(value, StoredTensor)}


def read_numbers(path: Path) -> np.ndarray:
    """An array of a .npy file, or of a text file of numbers. Raises AssetError naming the file."""
    try:
        return np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path)
    except (OSError, ValueError) as error:
        raise AssetError(f"{path}: cannot be read as numbers ({error}); get the file again") from None


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and triangles (F, 3) of an .obj file. Raises AssetError naming the file."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
        vertices = np.array([row[1:4] for row in rows if row[:1] == ["v"]], float)
        faces = (
            np.array([[corner.partition("/")[0] for corner in row[1:]] for row in rows if row[:1] == ["f"]], int) - 1
        )
    except (OSError, ValueError) as error:
        raise AssetError(f"{path}: cannot be read as a triangle mesh ({error})") from None
    if (
        vertices.ndim != 2
        or faces.ndim != 2
        or faces.shape[1] != 3
        or not (0 <= faces.min() <= faces.max() < len(vertices))
    ):
        raise AssetError(f"{path}: not a mesh of triangles over its own vertices")
    return vertices, faces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="RepWs.pth")
    parser.add_argument("--scales", type=Path, required=True, help="acap_scales.npy: (2, V*9), largest values first")
    parser.add_argument("--part-scales", type=Path, required=True, help="part_scales.txt or .npy: (2, K*9)")
    parser.add_argument("--mask", type=Path, required=True, help="skinning_mask.npy: (K, V)")
    parser.add_argument("--template", type=Path, required=True, help="template.obj")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file for load_embedding")
    options = parser.parse_args()
    try:
        files = {"vs_scale": options.scales, "ps_scale": options.part_scales}
        bounds = {name: torch.from_numpy(read_numbers(path).astype(np.float32)) for name, path in files.items()}
        state = bounds | read_checkpoint(options.checkpoint)
        embedding = convert(state, read_numbers(options.mask), *read_obj(options.template))
    except ReconError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    save_embedding(embedding, options.output, torch.float32)
    print(f"{options.output}: {embedding.config.vertices} vertices, {embedding.config.parts} parts, no encoder")


if __name__ == "__main__":
    main()
