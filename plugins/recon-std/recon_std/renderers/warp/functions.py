"""What the hard and the soft kernels share. No postponed annotations here: Warp reads them as objects."""

from functools import cache
from types import SimpleNamespace

import torch
import warp as wp

from recon_std.renderers.warp.start import start


@cache
def functions(dtype: torch.dtype) -> SimpleNamespace:
    """Scalar and vector types for torch's `dtype` (float32 or float64), and functions over them."""
    start()
    real = wp.float32 if dtype == torch.float32 else wp.float64
    vec2 = wp.types.vector(2, real)
    vec3 = wp.types.vector(3, real)

    @wp.func
    def cross(a: vec2, b: vec2) -> real:
        return a[0] * b[1] - a[1] * b[0]

    @wp.func
    def pixel_range(low: real, high: real, size: int) -> wp.vec2i:
        # Pixels whose centres lie in [low, high]; clamped as reals, since far-off points overflow integers.
        edge = real(size) + real(1.0)
        first = wp.ceil(wp.clamp(low, real(-1.0), edge) - real(0.5))
        last = wp.floor(wp.clamp(high, real(-1.0), edge) - real(0.5))
        return wp.vec2i(wp.max(int(first), 0), wp.min(int(last), size - 1))

    @wp.func
    def order(z: real, face: int) -> wp.int64:
        # Sorts by depth, then by face number: signed integers order like the floats whose bits they share once
        # those of negative floats are flipped.
        bits = wp.cast(wp.float32(z), wp.int32)
        if bits < 0:
            bits = bits ^ 0x7FFFFFFF
        return (wp.int64(bits) << wp.int64(32)) | wp.int64(face)

    return SimpleNamespace(real=real, vec2=vec2, vec3=vec3, cross=cross, order=order, pixel_range=pixel_range)
