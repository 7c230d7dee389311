"""Finding a body by name or path."""

from __future__ import annotations

from pathlib import Path

from recon_core.errors import unknown
from recon_std.bodies.data import load_body_file
from recon_std.bodies.smpl import SMPLBody

SHIPPED = Path(__file__).parent / "data"


def load_body(name: str | Path = "free") -> SMPLBody:
    """The body of that name ("free"), or of a body file. float32 on the CPU."""
    path = Path(name)
    if path.suffix == ".npz":
        return SMPLBody(load_body_file(path))
    shipped = {p.stem: p for p in SHIPPED.glob("*.npz")}
    if str(name) not in shipped:
        raise unknown("body", str(name), shipped)
    return SMPLBody(load_body_file(shipped[str(name)]))
