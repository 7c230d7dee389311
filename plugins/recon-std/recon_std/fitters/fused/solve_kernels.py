"""Levenberg-Marquardt over one person after the other, as one Warp kernel: `levenberg_marquardt.minimise`, fused.

No postponed annotations here: Warp reads them as objects.
"""

from functools import cache
from types import SimpleNamespace

import torch
import warp as wp

from recon_std.fitters.fused import SHAPES
from recon_std.fitters.fused.energy_kernels import functions
from recon_std.fitters.fused.layout import types
from recon_std.fitters.levenberg_marquardt import FIRST, LARGEST, SMALLEST
from recon_std.fitters.variables import ANGLES


@cache
def kernels(dtype: torch.dtype) -> SimpleNamespace:
    """`minimise`, for tensors of this dtype."""
    t, f = types(dtype), functions(dtype)
    real, vec3, mat33, row, few = t.real, t.vec3, t.mat33, t.row, t.few
    Points, Seen, Priors, Work = t.Points, t.Seen, t.Priors, t.Work
    turned, put_levers, evaluate, linearize = f.turned, f.put_levers, f.evaluate, f.linearize
    zero, half, one, two = (wp.constant(real(x)) for x in (0.0, 0.5, 1.0, 2.0))
    first_lam, smallest, largest = (wp.constant(real(x)) for x in (FIRST, SMALLEST, LARGEST))
    angles, shapes = wp.constant(ANGLES), wp.constant(SHAPES)
    module = wp.get_module(f"recon_std.fitters.fused_{real.__name__}")
    module.options["enable_backward"] = False
    # Warp's default thresholds for inlining take twice as long to compile, and run no faster here.
    module.options["cpu_compiler_flags"] = "-march=native"

    @wp.func
    def floor_of(w: Work, s: int, i: int) -> real:
        return real(1.0e-2) * w.data_at[s, i, i] + real(1.0e-6)

    @wp.func
    def factorized(p: Priors, w: Work, s: int, columns: int, lam: real) -> bool:
        # Rows of the upper Cholesky factor of the damped curvature. The gradient is carried along as one more column,
        # which so becomes the solution of the factor's transpose. False: not positive definite.
        for i in range(columns):
            line = w.data[s, i]
            if i < angles and p.gmm > zero:
                line += ((one + lam) * p.gmm) * p.precisions[w.component[s], i]
            w.factor[s, i] = line
            w.factor_at[s, i, i] += (one + lam) * w.diagonal[s, i] + lam * floor_of(w, s, i)
            w.factor_at[s, i, columns] = w.gradient_at[s, i]
            line = w.factor[s, i]
            for k in range(i):
                line -= w.factor_at[s, k, i] * w.factor[s, k]
            w.factor[s, i] = line
            pivot = w.factor_at[s, i, i]
            if not (pivot > zero):
                return False
            w.factor[s, i] = line * (one / wp.sqrt(pivot))
        return True

    @wp.func
    def put_step(w: Work, s: int, columns: int):
        # Back substitution, from the last unknown to the first.
        w.step[s] = row()
        parts = (columns + shapes - 1) // shapes
        for back in range(columns):
            i = columns - 1 - back
            behind = few()
            for part in range(i // shapes, parts):
                behind += wp.cw_mul(w.factor_few[s, i, part], w.step_few[s, part])
            total = w.factor_at[s, i, columns]
            for c in range(shapes):
                total -= behind[c]
            w.step_at[s, i] = total / w.factor_at[s, i, i]
        w.step[s] = -w.step[s]

    @wp.func
    def promise(p: Priors, w: Work, s: int, columns: int, lam: real) -> real:
        # How far the model falls along the step.
        bent = row()
        if p.gmm > zero:
            for i in range(angles):
                bent += (p.gmm * w.step_at[s, i]) * p.precisions[w.component[s], i]
        stretch = wp.dot(bent, w.step[s])
        for i in range(columns):
            stretch += (w.diagonal[s, i] + floor_of(w, s, i)) * w.step_at[s, i] * w.step_at[s, i]
        return half * (lam * stretch - wp.dot(w.gradient[s], w.step[s]))

    @wp.kernel(module=module)
    def minimise(
        body: Points,
        seen: Seen,
        priors: Priors,
        work: Work,
        first: int,
        stride: int,
        iterations: int,
        tolerance: real,
        numbers: wp.array(dtype=row),
        roots: wp.array(dtype=mat33),
        translations: wp.array(dtype=vec3),
        energies: wp.array(dtype=real),
        counts: wp.array(dtype=wp.int64),
        converged: wp.array(dtype=wp.bool),
    ):
        n = first + wp.tid() * stride
        s = n % work.tried.shape[0]
        place = body.place
        columns = place + 6
        x = numbers[n]
        root = roots[n]
        translation = translations[n]
        work.tried[s] = x
        put_levers(body, work, s)
        energy = evaluate(body, seen, priors, work, n, s, root, translation)
        lam = first_lam
        count = wp.int32(0)
        done = wp.bool(False)
        better = wp.bool(True)
        while count < iterations and not done:
            if better:
                linearize(body, seen, priors, work, n, s, root)
            promised = real(wp.inf)
            work.step[s] = row()
            if factorized(priors, work, s, columns, lam):
                put_step(work, s, columns)
                promised = promise(priors, work, s, columns, lam)
            turn = vec3(work.step_at[s, place], work.step_at[s, place + 1], work.step_at[s, place + 2])
            shift = vec3(work.step_at[s, place + 3], work.step_at[s, place + 4], work.step_at[s, place + 5])
            rotation, _jacobian = turned(turn)
            new_root, new_translation = root * rotation, translation + shift
            if place > 0:
                work.tried[s] = x + work.step[s]
                put_levers(body, work, s)
            new_energy = evaluate(body, seen, priors, work, n, s, new_root, new_translation)
            fall = energy - new_energy
            better = fall > zero
            # The larger one, or the one that is a number.
            most = promised
            if fall > promised or promised != promised:
                most = fall
            done = most <= tolerance * wp.abs(energy)
            if better:
                x = work.tried[s]
                root = new_root
                translation = new_translation
                energy = new_energy
                off = two * fall / promised - one
                lam *= wp.clamp(one - off * off * off, real(0.1), two)
            else:
                lam *= real(8.0)
            done = done or lam >= largest
            lam = wp.clamp(lam, smallest, largest)
            count += 1
        numbers[n] = x
        roots[n] = root
        translations[n] = translation
        energies[n] = energy
        counts[n] = wp.int64(count)
        converged[n] = done

    return SimpleNamespace(minimise=minimise)
