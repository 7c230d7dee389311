"""An objective as the kernels read it."""

from __future__ import annotations

from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.nn.functional import pad

from recon_std.fitters.evidence import Joints2D
from recon_std.fitters.fused import SHAPES
from recon_std.fitters.fused.layout import LANES, types
from recon_std.fitters.kinematics import JOINTS, PARENT, SUBTREES, PointBasis
from recon_std.fitters.objective import Objective
from recon_std.fitters.variables import ANGLES
from recon_std.priors.gmm import GaussianMixturePrior
from recon_std.priors.joint_limits import JointLimitsPrior


def structures(objective: Objective, like: Tensor, slots: int) -> list[Any]:
    """Points, Seen, Priors and Work of `energy_kernels.types`, in the dtype and on the device of `like`."""
    (e,) = objective.evidence
    assert isinstance(e, Joints2D)
    t = types(like.dtype)
    points = _points(t, e.basis, held=objective.held is not None)
    return [points, _seen(t, e), _priors(t, objective, like), _work(t, slots, e.basis, like)]


def _filled(structure: Any, dtypes: dict[str, Any], **values: Any) -> Any:
    """A structure with its fields set; tensors become arrays, of vectors where `dtypes` names one."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            value = wp.from_torch(value.contiguous(), dtype=dtypes.get(name))
        setattr(structure, name, value)
    return structure


def _points(t: Any, basis: PointBasis, held: bool) -> Any:
    S = basis.offsets.shape[-1] - 1
    parent = PARENT.to(basis.offsets.device)
    own = (basis.offsets != 0).any(-1).any(1)
    # A point moves with a joint that has an offset to it, and with all above that; with the root in any case.
    moves = (SUBTREES.to(basis.offsets) @ own.to(basis.offsets) > 0).T
    moves[:, 0] = True
    point, joint = moves.nonzero().unbind(1)
    number = (moves.flatten().cumsum(0) - 1).view_as(moves)
    offsets = basis.offsets[joint, :, point]
    in_lanes = pad(offsets.permute(2, 0, 1).flatten(1), (0, -3 * len(joint) % LANES)).unflatten(1, (-1, LANES))
    return _filled(
        t.Points(),
        {"offsets": t.row, "by_beta": t.few, "pelvis": t.vec3},
        first=pad(moves.sum(1).cumsum(0), (1, 0)).int(),
        joint=joint.int(),
        above=number[point, parent[joint]].int(),
        reach=pad(moves.sum(0).cumsum(0), (1, 0)).int(),
        reached=moves.T.nonzero()[:, 1].int(),
        parent=parent.int(),
        offsets=in_lanes,
        by_beta=pad(offsets[..., 1:], (0, SHAPES - S)),
        mass=basis.mass,
        pelvis=basis.root.T,
        betas=S,
        place=0 if held else ANGLES + S,
    )


def _seen(t: Any, e: Joints2D) -> Any:
    return _filled(
        t.Seen(),
        {"target": t.vec2, "intrinsics": t.vec2, "R": t.mat33, "t": t.vec3},
        target=e.target[:, 0].mT,
        confidence=e.confidence[:, 0],
        intrinsics=e.intrinsics[:, 0],
        R=e.R[:, 0],
        t=e.t[:, 0],
        limit=0.0 if e.outlier is None else e.outlier**-2,
    )


def _priors(t: Any, objective: Objective, like: Tensor) -> Any:
    values: dict[str, Any] = {"gmm": 0.0, "limits": 0.0, "shape": 0.0, "anchor": 0.0}
    for term in objective.priors:
        prior, weight = term.prior, term.weight
        if isinstance(prior, GaussianMixturePrior):
            values |= {"gmm": weight, "peak": float(prior.log_peaks.max()), "peaks": prior.log_peaks}
            values |= {name: pad(getattr(prior, name), (0, LANES - ANGLES)) for name in ("means", "precisions")}
        elif isinstance(prior, JointLimitsPrior):
            hinge, sign = prior.hinges
            values |= {"limits": weight, "lower": prior.lower, "upper": prior.upper, "hinge": hinge, "sign": sign}
            values["tightness"] = prior.sigma**-2
        else:
            values["shape"] = weight
    if objective.anchor is not None:
        values |= {"anchor": objective.anchor[0], "anchored": objective.anchor[1].flatten(1)}
    values = {name: value.to(like) if isinstance(value, Tensor) else value for name, value in values.items()}
    return _filled(t.Priors(), {"means": t.row, "precisions": t.row}, **values)


def _work(t: Any, slots: int, basis: PointBasis, like: Tensor) -> Any:
    K, pairs = len(basis), JOINTS * len(basis)
    columns = ANGLES + like.shape[1] + 6
    shapes = {
        "tried": (LANES,),
        "rotations": (JOINTS, 3, 3),
        "charts": (JOINTS, 3, 3),
        "offsets": (-(-3 * pairs // LANES), LANES),
        "levers": (pairs, 3),
        "residuals": (K, 2),
        "pixels": (K, 2),
        "depths": (K,),
        "weights": (K,),
        "pull": (LANES,),
        "jacobian": (2 * K, LANES),
        # Written three rows at a time.
        "data": (columns + 2, LANES),
        "gradient": (LANES,),
        "diagonal": (columns,),
        "factor": (columns, LANES),
        "step": (LANES,),
    }
    room = {name: like.new_zeros(slots, *shape) for name, shape in shapes.items()}
    rows = ("tried", "offsets", "jacobian", "data", "gradient", "factor", "step")
    values = room | {f"{name}_at": room[name] for name in rows}
    values["offsets_at"] = room["offsets"].view(slots, -1, 3)
    values |= {f"{name}_few": room[name].unflatten(-1, (-1, SHAPES)) for name in ("factor", "step")}
    values |= {name: torch.zeros(slots, dtype=torch.int32, device=like.device) for name in ("likeliest", "component")}
    kinds = {
        t.row: (*rows, "pull"),
        t.few: ("factor_few", "step_few"),
        t.vec2: ("residuals", "pixels"),
        t.vec3: ("levers", "offsets_at"),
        t.mat33: ("rotations", "charts"),
    }
    return _filled(t.Work(), {name: kind for kind, names in kinds.items() for name in names}, **values)
