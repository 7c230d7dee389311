"""Published collections of registered bodies, as meshes of one connectivity: FAUST, SCAPE, SPRING, Dynamic FAUST.

None of them comes with recon; each is had from its authors under their own terms. Vertices are as in the files: their
unit, their axes. `AcapCodec(first.vertices[0], first.faces)` makes features of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recon_core.errors import InputError
from recon_core.evidence_files import read_surface

FAUST_POSES = 10
"""Registrations of each of FAUST's people: tr_reg_000 to tr_reg_009 are the first person's."""

_FILE_FRAME = torch.tensor([1.0, -1.0, -1.0])
"""`read_surface` turns files into the camera frame; this turns them back."""


@dataclass(frozen=True)
class Registrations:
    """N meshes of one connectivity. person: whose each is; name: of the file, or sequence and frame."""

    vertices: Float[Tensor, "N V 3"]
    faces: Int[Tensor, "F 3"]
    person: tuple[str, ...]
    name: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.name)


def read_faust(folder: Path) -> Registrations:
    """FAUST's training registrations (Bogo et al., CVPR 2014): training/registrations/tr_reg_000.ply to 099, ten people
    in ten poses. folder: MPI-FAUST, or one of the folders in it. Raises InputError as `read_folder` does."""
    inside = [folder / "training" / "registrations", folder / "registrations", folder]
    found = next((place for place in inside if any(place.glob("tr_reg_*.ply"))), None)
    if found is None:
        raise InputError(f"{folder}: no tr_reg_*.ply in it; give the folder MPI-FAUST as it was unpacked")
    return read_folder(found, r"tr_reg_(\d{3})\.ply", lambda number: f"person {int(number) // FAUST_POSES}")


def read_scape(folder: Path) -> Registrations:
    """SCAPE's 71 registrations of one person (Anguelov et al., 2005): mesh000.ply to mesh071.ply. Raises InputError as
    `read_folder` does."""
    return read_folder(folder, r"mesh(\d{3})\.(?:ply|obj)", lambda _: "scape")


def read_spring(folder: Path) -> Registrations:
    """SPRING, many people in a neutral pose in SCAPE's connectivity (Yang et al., 2014): SPRING0001.obj and so on, in
    one folder or in one for each sex. Raises InputError as `read_folder` does."""
    return read_folder(folder, r"(SPRING\d+)\.(?:obj|ply)", lambda number: number)


def read_folder(folder: Path, pattern: str, person: Callable[[str], str] = str) -> Registrations:
    """The meshes in and below `folder` whose names match, by name. person: makes whose it is of the pattern's group.

    Raises InputError when there is none, naming a file that is not readable, not finite, or of another connectivity
    than the first.
    """
    files = sorted(p for p in folder.rglob("*") if re.fullmatch(pattern, p.name))
    if not files:
        raise InputError(f"{folder}: holds no file named like {pattern}; give the folder as it was unpacked")
    meshes: list[Tensor] = []
    people: list[str] = []
    faces: Tensor | None = None
    for file in files:
        vertices, triangles = read_surface(file)
        faces = triangles if faces is None else faces
        same_count = not meshes or len(vertices) == len(meshes[0])
        if not same_count or triangles.shape != faces.shape or bool((triangles != faces).any()):
            raise InputError(
                f"{file}: {len(vertices)} vertices and {len(triangles)} faces, {files[0].name} has "
                f"{len(meshes[0])} and {len(faces)}, or others; registrations are of one connectivity"
            )
        if not torch.isfinite(vertices).all():
            raise InputError(f"{file}: has vertices that are not finite; leave it out")
        meshes.append(vertices * _FILE_FRAME)
        match = re.fullmatch(pattern, file.name)
        assert match is not None
        people.append(person(match[1]))
    assert faces is not None
    return Registrations(torch.stack(meshes), faces, tuple(people), tuple(f.stem for f in files))


def read_dfaust(file: Path, sequences: Sequence[str] | None = None, every: int = 1) -> Registrations:
    """Dynamic FAUST (Bogo et al., CVPR 2017), registrations_m.hdf5 or registrations_f.hdf5: `faces` (F, 3) and a (V, 3,
    frames) array for each person and sequence, 50002_chicken_wings and so on.

    sequences: names of arrays, all by default; every: each how many frames one is read. Needs h5py (`pip install
    recon-acap[dfaust]`). Raises InputError naming the file and what it lacks.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f"{file}: hdf5 files need h5py; pip install h5py, or recon-acap[dfaust]") from None
    try:
        with h5py.File(file, "r") as held:
            if "faces" not in held:
                raise InputError(f"{file}: has no faces; give registrations_m.hdf5 or registrations_f.hdf5")
            known = sorted(name for name in held if name != "faces")
            chosen = known if sequences is None else list(sequences)
            if missing := [name for name in chosen if name not in known]:
                raise InputError(f"{file}: has no sequence {missing[0]}; it has {', '.join(known[:5])} and so on")
            faces = np.asarray(held["faces"], np.int64)
            frames = {name: np.asarray(held[name][:, :, ::every], np.float32) for name in chosen}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file}: not a readable hdf5 file ({error})") from None
    for name, array in frames.items():
        if array.ndim != 3 or array.shape[1] != 3 or array.shape[0] <= faces.max() or not np.isfinite(array).all():
            raise InputError(f"{file}: {name} is no finite (vertices, 3, frames) array of its faces: {array.shape}")
    if not frames:
        raise InputError(f"{file}: holds no sequence")
    vertices = torch.from_numpy(np.concatenate([a.transpose(2, 0, 1) for a in frames.values()]))
    rows = [(name, every * k) for name, array in frames.items() for k in range(array.shape[2])]
    person = tuple(name.partition("_")[0] for name, _ in rows)
    return Registrations(vertices, torch.from_numpy(faces), person, tuple(f"{name}_{k}" for name, k in rows))
