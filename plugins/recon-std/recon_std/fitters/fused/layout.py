"""What the kernels read and write: types and structures. No postponed annotations here: Warp reads them as objects."""

from functools import cache
from types import SimpleNamespace

import torch
import warp as wp

from recon_std.fitters.fused import SHAPES
from recon_std.renderers.warp.start import start

LANES = 96
"""Numbers of a row: room for the columns of a step, and one more that the solver needs, in whole vectors of any CPU."""


@cache
def types(dtype: torch.dtype) -> SimpleNamespace:
    """Scalars, vectors and the structures that the kernels read, for torch's `dtype` (float32 or float64).

    row: all columns of a step at once; few: a part of a row, or a number a beta. A tensor of rows is also handed over
    as one of scalars, where single numbers are wanted: the names of these end in _at.
    """
    start()
    real = wp.float32 if dtype == torch.float32 else wp.float64
    vec2, vec3, mat33 = wp.types.vector(2, real), wp.types.vector(3, real), wp.types.matrix((3, 3), real)
    row, few = wp.types.vector(LANES, real), wp.types.vector(SHAPES, real)

    @wp.struct
    class Points:
        """The evidence's points on the body, as pairs of a point and a joint that moves it, by point, then joint.

        first: (K + 1,) each point's first pair, which is with the root. joint: (pairs,). above: (pairs,) the pair of
        the same point with the joint's parent. reach: (25,) and reached: (pairs,) the points that move with each joint,
        and where each joint's begin. parent: (24,) of the joints. offsets: (1 + S, blocks) the o_kq of all pairs, one
        after the other, of the mean shape, then what each beta adds; by_beta: (pairs, 3) the latter, with all betas of
        a number together. mass: (K,) the m_k. pelvis: (1 + S,) of J_0. betas: S. place: the first of the place's six
        columns of a step; 0 while the body is held, and the place the only unknown.
        """

        first: wp.array(dtype=int)
        joint: wp.array(dtype=int)
        above: wp.array(dtype=int)
        parent: wp.array(dtype=int)
        reach: wp.array(dtype=int)
        reached: wp.array(dtype=int)
        offsets: wp.array2d(dtype=row)
        by_beta: wp.array2d(dtype=few)
        mass: wp.array(dtype=real)
        pelvis: wp.array(dtype=vec3)
        betas: int
        place: int

    @wp.struct
    class Seen:
        """What the pictures show, a row a person. limit: 1 / outlier^2, 0 for plain squares."""

        target: wp.array2d(dtype=vec2)
        confidence: wp.array2d(dtype=real)
        intrinsics: wp.array2d(dtype=vec2)
        R: wp.array(dtype=mat33)
        t: wp.array(dtype=vec3)
        limit: real

    @wp.struct
    class Priors:
        """Weights (0 where a prior is not there) and numbers of the priors, and the anchor. peak: the highest."""

        gmm: real
        peak: real
        peaks: wp.array(dtype=real)
        means: wp.array(dtype=row)
        precisions: wp.array2d(dtype=row)
        limits: real
        lower: wp.array(dtype=real)
        upper: wp.array(dtype=real)
        hinge: wp.array(dtype=real)
        sign: wp.array(dtype=real)
        tightness: real
        shape: real
        anchor: real
        anchored: wp.array2d(dtype=real)

    @wp.struct
    class Work:
        """Room for one person's numbers, which the people of one launch on a CPU use in turn; the first dimension is
        the slot. tried: the angles and betas at which the energy was last taken; the rest is as of then (likeliest: the
        mixture's component), but for what `linearize` writes: jacobian, data, gradient, diagonal, component."""

        tried: wp.array(dtype=row)
        tried_at: wp.array2d(dtype=real)
        rotations: wp.array2d(dtype=mat33)
        charts: wp.array2d(dtype=mat33)
        offsets: wp.array2d(dtype=row)
        offsets_at: wp.array2d(dtype=vec3)
        levers: wp.array2d(dtype=vec3)
        residuals: wp.array2d(dtype=vec2)
        pixels: wp.array2d(dtype=vec2)
        depths: wp.array2d(dtype=real)
        weights: wp.array2d(dtype=real)
        pull: wp.array(dtype=row)
        likeliest: wp.array(dtype=int)
        jacobian: wp.array2d(dtype=row)
        jacobian_at: wp.array3d(dtype=real)
        data: wp.array2d(dtype=row)
        data_at: wp.array3d(dtype=real)
        gradient: wp.array(dtype=row)
        gradient_at: wp.array2d(dtype=real)
        diagonal: wp.array2d(dtype=real)
        component: wp.array(dtype=int)
        factor: wp.array2d(dtype=row)
        factor_at: wp.array3d(dtype=real)
        factor_few: wp.array3d(dtype=few)
        step: wp.array(dtype=row)
        step_at: wp.array2d(dtype=real)
        step_few: wp.array2d(dtype=few)

    return SimpleNamespace(
        real=real, vec2=vec2, vec3=vec3, mat33=mat33, row=row, few=few, Points=Points, Seen=Seen, Priors=Priors,
        Work=Work,
    )  # fmt: skip
