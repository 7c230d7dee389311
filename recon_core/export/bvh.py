"""One .bvh file a person: the skeleton of its shape and its pose as the only frame, y up, metres.

BVH joints carry Euler angles in degrees. The channels here are Zrotation Xrotation Yrotation, applied in that
order from the left: R = Rz Rx Ry. The root also has its position.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from recon_core.export.rig import Y_UP, Rig, rigs
from recon_core.reconstruction import Reconstruction

_END_LENGTH = 0.05  # metres; a leaf joint needs an "End Site" to be drawn as a bone
_FRAME_TIME = 1 / 30


def write_bvh(reconstruction: Reconstruction, folder: Path) -> list[Path]:
    """person_0.bvh, ...: none for subjects without a skeleton."""
    if reconstruction.body_model is None:
        return []
    written = []
    for i, rig in enumerate(rigs(reconstruction.body_model, list(reconstruction.people))):
        path = folder / f"person_{i}.bvh"
        path.write_text(bvh(rig))
        written.append(path)
    return written


def bvh(rig: Rig) -> str:
    """The text of the file."""
    rotations = rig.rotations.copy()
    rotations[0] = Y_UP[:, None] * rotations[0]
    position = rig.offsets()[0] * Y_UP
    order: list[int] = []
    lines = ["HIERARCHY", *_joint(rig, 0, 0, order), "MOTION", "Frames: 1", f"Frame Time: {_FRAME_TIME:.6f}"]
    angles = np.degrees(euler_zxy(rotations[order]))
    lines.append(" ".join(f"{value:.6f}" for value in (*position, *angles.ravel())))
    return "\n".join(lines) + "\n"


def euler_zxy(rotations: Float[np.ndarray, "B 3 3"]) -> Float[np.ndarray, "B 3"]:
    """Angles (z, x, y) in radians with R = Rz(z) Rx(x) Ry(y).

    Where x is +-90 degrees, z and y turn about the same axis: then z is arbitrary, and y is taken of what is left
    of R without z, so that their product is R to rounding everywhere.
    """
    R = rotations
    z = np.arctan2(-R[:, 0, 1], R[:, 1, 1])
    cosine, sine = np.cos(z), np.sin(z)
    first_row = cosine[:, None] * R[:, 0] + sine[:, None] * R[:, 1]  # of Rz^T R = Rx Ry: cos y, 0, sin y
    x = np.arctan2(R[:, 2, 1], cosine * R[:, 1, 1] - sine * R[:, 0, 1])
    y = np.arctan2(first_row[:, 2], first_row[:, 0])
    return np.stack([z, x, y], -1)


def _joint(rig: Rig, j: int, depth: int, order: list[int]) -> list[str]:
    """Lines of joint j and everything below it; `order` collects the joints as their channels appear."""
    order.append(j)
    pad = "  " * depth
    offset = rig.joints[j] - rig.joints[rig.parents[j]] if j else np.zeros(3)
    position = "6 Xposition Yposition Zposition" if j == 0 else "3"
    lines = [
        f"{pad}{'ROOT' if j == 0 else 'JOINT'} {rig.names[j]}",
        f"{pad}{{",
        f"{pad}  OFFSET {_numbers(offset)}",
        f"{pad}  CHANNELS {position} Zrotation Xrotation Yrotation",
    ]
    children = [c for c, parent in enumerate(rig.parents) if parent == j]
    for child in children:
        lines += _joint(rig, child, depth + 1, order)
    if not children:
        direction = offset / max(float(np.linalg.norm(offset)), 1e-9) * _END_LENGTH
        lines += [f"{pad}  End Site", f"{pad}  {{", f"{pad}    OFFSET {_numbers(direction)}", f"{pad}  }}"]
    return [*lines, f"{pad}}}"]


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.6f}" for value in values)
