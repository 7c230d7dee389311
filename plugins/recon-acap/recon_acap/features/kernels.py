"""The inner loops of the features as Warp kernels: a thread a vertex on a GPU, one after the other on a CPU.

Arithmetic is in float64 whatever the tensors' type. No postponed annotations here: Warp reads them as objects.
"""

from functools import cache
from types import SimpleNamespace

import torch
import warp as wp

from recon_std.renderers.warp.start import start

DEGENERATE = 1e-4
"""(s1 + s2) (s2 + s3) (s3 + s1) of a matrix of norm 1 and singular values s: `split` leaves it to an SVD below this."""

ROOT_STEPS = 40
"""Most Newton steps to the largest root; near rotations 3 or 4 are taken."""


@cache
def kernels(dtype: torch.dtype) -> SimpleNamespace:
    """The kernels over tensors of this dtype (float32 or float64), as `fused` calls them."""
    start()
    real = wp.float32 if dtype == torch.float32 else wp.float64
    # Sine of half the angle of a rotation that counts as none: its axis is rounding error.
    one, two, half = (wp.constant(wp.float64(x)) for x in (1.0, 2.0, 0.5))
    none = wp.constant(wp.float64(2e-6 if dtype == torch.float32 else 1e-8))
    vec3, mat33, vec6 = wp.types.vector(3, real), wp.types.matrix((3, 3), real), wp.types.vector(6, real)
    vec9 = wp.types.vector(9, real)
    module = wp.get_module(f"recon_acap.features.{real.__name__}")
    module.options["enable_backward"] = False

    @wp.func
    def cofactors(A: wp.mat33d) -> wp.mat33d:
        x = wp.vec3d(A[0, 0], A[0, 1], A[0, 2])
        y = wp.vec3d(A[1, 0], A[1, 1], A[1, 2])
        z = wp.vec3d(A[2, 0], A[2, 1], A[2, 2])
        return wp.matrix_from_rows(wp.cross(y, z), wp.cross(z, x), wp.cross(x, y))

    @wp.func
    def quaternion(R: wp.mat33d) -> wp.vec4d:
        # (w, x, y, z) with w >= 0, from its largest component (Shepperd 1978).
        t = R[0, 0] + R[1, 1] + R[2, 2]
        q = wp.vec4d(one + t, R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1])
        if t < wp.float64(0.0):
            if R[0, 0] >= R[1, 1] and R[0, 0] >= R[2, 2]:
                q = wp.vec4d(q[1], one + two * R[0, 0] - t, R[0, 1] + R[1, 0], R[0, 2] + R[2, 0])
            elif R[1, 1] >= R[2, 2]:
                q = wp.vec4d(q[2], R[0, 1] + R[1, 0], one + two * R[1, 1] - t, R[1, 2] + R[2, 1])
            else:
                q = wp.vec4d(q[3], R[0, 2] + R[2, 0], R[1, 2] + R[2, 1], one + two * R[2, 2] - t)
            if q[0] < wp.float64(0.0):
                q = -q
        return q / wp.length(q)

    @wp.kernel(module=module)
    def affine(
        vertices: wp.array(dtype=vec3, ndim=2),
        ring_ends: wp.array(dtype=wp.int32),
        ring: wp.array(dtype=wp.int32),
        response: wp.array(dtype=wp.vec3d),
        fan_ends: wp.array(dtype=wp.int32),
        fan: wp.array(dtype=wp.vec2i),
        normal_response: wp.array(dtype=wp.vec3d),
        out: wp.array(dtype=mat33, ndim=2),
    ):
        mesh, i = wp.tid()
        p = wp.vec3d(vertices[mesh, i])
        T = wp.mat33d()
        first = wp.int32(0)
        face = wp.int32(0)
        if i > 0:
            first = ring_ends[i - 1]
            face = fan_ends[i - 1]
        for k in range(first, ring_ends[i]):
            T += wp.outer(p - wp.vec3d(vertices[mesh, ring[k]]), response[k])
        n = wp.vec3d()
        for k in range(face, fan_ends[i]):
            ends = fan[k]
            n += wp.cross(wp.vec3d(vertices[mesh, ends[0]]) - p, wp.vec3d(vertices[mesh, ends[1]]) - p)
        out[mesh, i] = mat33(T + wp.outer(wp.normalize(n), normal_response[i]))

    @wp.kernel(module=module)
    def split(
        T: wp.array(dtype=mat33),
        rotation: wp.array(dtype=mat33),
        stretch: wp.array(dtype=vec6),
        angle: wp.array(dtype=real),
        axis: wp.array(dtype=vec3),
    ):
        # With I1 = s1 + s2 + s3 the largest root of the characteristic polynomial of Horn's 4 x 4 matrix,
        # R = ((I1^2 - I2) A - A A^T A + I1 cof A) / (I1 I2 - I3): in each singular direction this is 1.
        i = wp.tid()
        given = wp.mat33d(T[i])
        size = wp.sqrt(wp.ddot(given, given))
        A = given * (one / wp.max(size, wp.float64(1e-200)))
        cofactor = cofactors(A)
        det = A[0, 0] * cofactor[0, 0] + A[0, 1] * cofactor[0, 1] + A[0, 2] * cofactor[0, 2]
        constant = one - wp.float64(4.0) * wp.ddot(cofactor, cofactor)
        root = wp.sqrt(wp.float64(3.0))  # not below the root, so that the steps come down to it
        for _ in range(ROOT_STEPS):
            square = root * root
            value = (square - two) * square - wp.float64(8.0) * det * root + constant
            slope = wp.float64(4.0) * root * (square - wp.float64(1.0)) - wp.float64(8.0) * det
            if slope <= wp.float64(1e-7):
                break
            step = value / slope
            root -= step
            if step < wp.float64(1e-13):
                break
        second = half * (root * root - wp.float64(1.0))
        volume = root * second - det
        if volume < wp.float64(DEGENERATE):
            angle[i] = real(-1.0)
            return
        R = ((root * root - second) * A - A * (wp.transpose(A) * A) + root * cofactor) * (one / volume)
        rotation[i] = mat33(R)
        S = wp.transpose(R) * given
        stretch[i] = vec6(
            real(S[0, 0]), real(half * (S[0, 1] + S[1, 0])), real(half * (S[0, 2] + S[2, 0])),
            real(S[1, 1]), real(half * (S[1, 2] + S[2, 1])), real(S[2, 2]),
        )  # fmt: skip
        q = quaternion(R)
        about = wp.vec3d(q[1], q[2], q[3])
        sine = wp.length(about)
        angle[i] = real(two * wp.atan2(sine, q[0]))
        if sine >= none:
            axis[i] = vec3(about / sine)
        else:
            axis[i] = vec3()

    @wp.func
    def affine_of(feature: vec9) -> wp.mat33d:
        # T = R(r) S(s), R by Rodrigues' formula.
        r = wp.vec3d(wp.float64(feature[0]), wp.float64(feature[1]), wp.float64(feature[2]))
        squared = wp.dot(r, r)
        first = one - squared / wp.float64(6.0)
        second = half - squared / wp.float64(24.0)
        if squared > wp.float64(1e-6):
            angle = wp.sqrt(squared)
            first = wp.sin(angle) / angle
            second = (one - wp.cos(angle)) / squared
        W = wp.skew(r)
        xx, xy, xz = wp.float64(feature[3]), wp.float64(feature[4]), wp.float64(feature[5])
        yy, yz, zz = wp.float64(feature[6]), wp.float64(feature[7]), wp.float64(feature[8])
        S = wp.mat33d(xx, xy, xz, xy, yy, yz, xz, yz, zz)
        WS = W * S
        return S + first * WS + second * (W * WS)

    @wp.kernel(module=module)
    def to_affine(features: wp.array(dtype=vec9, ndim=2), out: wp.array(dtype=mat33, ndim=2)):
        mesh, i = wp.tid()
        out[mesh, i] = mat33(affine_of(features[mesh, i]))

    @wp.kernel(module=module)
    def sums(
        T: wp.array(dtype=mat33, ndim=2),
        ends: wp.array(dtype=wp.int32),
        ring: wp.array(dtype=wp.int32),
        edge: wp.array(dtype=wp.vec3d),
        out: wp.array(dtype=wp.vec3d, ndim=2),
    ):
        mesh, i = wp.tid()
        first = wp.int32(0)
        if i > 0:
            first = ends[i - 1]
        own = wp.vec3d()
        total = wp.vec3d()
        for k in range(first, ends[i]):
            own += edge[k]
            total += wp.mat33d(T[mesh, ring[k]]) * edge[k]
        out[i, mesh] = total + wp.mat33d(T[mesh, i]) * own

    return SimpleNamespace(affine=affine, split=split, to_affine=to_affine, sums=sums)
