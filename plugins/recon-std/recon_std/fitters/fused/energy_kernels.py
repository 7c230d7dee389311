"""The energy of one person, its gradient and its curvature, as Warp functions.

The formulas are those of `kinematics`, `evidence`, `gmm` and `joint_limits`. No postponed annotations here: Warp reads
them as objects.
"""

from functools import cache
from types import SimpleNamespace

import torch
import warp as wp

from recon_std.fitters.evidence import NEAR
from recon_std.fitters.fused.layout import types
from recon_std.fitters.kinematics import JOINTS
from recon_std.fitters.variables import ANGLES


@cache
def functions(dtype: torch.dtype) -> SimpleNamespace:
    """`turned` of a vector; `put_levers`, `evaluate` and `linearize` of one person."""
    t = types(dtype)
    real, vec2, vec3, mat33, row, few = t.real, t.vec2, t.vec3, t.mat33, t.row, t.few
    Points, Seen, Priors, Work = t.Points, t.Seen, t.Priors, t.Work
    zero, half, one, two = (wp.constant(real(x)) for x in (0.0, 0.5, 1.0, 2.0))
    near = wp.constant(real(NEAR))
    # Below it the series of the third coefficient is exact to rounding (`kinematics.rodrigues`).
    small = wp.constant(real(1e-2 if dtype == torch.float32 else 1e-4))
    joints, angles = wp.constant(JOINTS), wp.constant(ANGLES)

    @wp.func
    def turned(v: vec3):
        # The exponential map and its left Jacobian (`kinematics.turned`).
        squared = wp.dot(v, v)
        x = wp.sqrt(wp.max(squared, real(1.0e-30)))
        a = wp.sin(x) / x
        h = wp.sin(half * x) / (half * x)
        b = half * h * h
        c = (one - a) / wp.max(squared, small)
        if squared < small:
            c = real(1.0 / 6.0) + squared * (real(-1.0 / 120.0) + squared * real(1.0 / 5040.0))
        eye = wp.identity(n=3, dtype=real)
        cross = wp.skew(v)
        square = wp.outer(v, v) - squared * eye
        return eye + a * cross + b * square, eye + b * cross + c * square

    @wp.func
    def limit(p: Priors, i: int, value: real):
        # Energy, slope and curvature of one angle's hinge and range (`joint_limits`).
        beyond = value - wp.clamp(value, p.lower[i], p.upper[i])
        energy = half * p.tightness * beyond * beyond
        slope = p.tightness * beyond
        curvature = real(0.0)
        if beyond != zero:
            curvature = p.tightness
        if p.hinge[i] > zero:
            hinge = p.hinge[i] * wp.exp(two * p.sign[i] * value)
            energy += hinge
            slope += two * p.sign[i] * hinge
            curvature += two * two * hinge
        return energy, slope, curvature

    @wp.func
    def mixture(p: Priors, w: Work, s: int) -> real:
        # Energy of the likeliest component, which `likeliest` names, and its gradient `pull` (`gmm.quadratic`).
        best = real(0.0)
        for c in range(p.peaks.shape[0]):
            away = w.tried[s] - p.means[c]
            pull = row()
            for i in range(angles):
                pull += away[i] * p.precisions[c, i]
            likely = p.peaks[c] - half * wp.dot(away, pull)
            if c == 0 or likely > best:
                best = likely
                w.likeliest[s] = c
                w.pull[s] = pull
        return p.peak - best

    @wp.func
    def prior_energy(b: Points, p: Priors, w: Work, n: int, s: int) -> real:
        energy = real(0.0)
        if p.gmm > zero:
            energy += p.gmm * mixture(p, w, s)
        for i in range(angles):
            value = w.tried_at[s, i]
            if p.limits > zero:
                own, _slope, _curvature = limit(p, i, value)
                energy += p.limits * own
            if p.anchor > zero:
                off = value - p.anchored[n, i]
                energy += half * p.anchor * off * off
        for i in range(angles, angles + b.betas):
            energy += half * p.shape * w.tried_at[s, i] * w.tried_at[s, i]
        return energy

    @wp.func
    def put_levers(b: Points, w: Work, s: int):
        # Rotations and charts down the tree, then the levers of every pair (`kinematics.pose`, `levers`).
        w.rotations[s, 0] = wp.identity(n=3, dtype=real)
        for j in range(1, joints):
            i = 3 * j - 3
            local, jacobian = turned(vec3(w.tried_at[s, i], w.tried_at[s, i + 1], w.tried_at[s, i + 2]))
            above = w.rotations[s, b.parent[j]]
            w.rotations[s, j] = above * local
            w.charts[s, j] = above * jacobian
        for block in range(b.offsets.shape[1]):
            offset = b.offsets[0, block]
            for i in range(b.betas):
                offset += w.tried_at[s, angles + i] * b.offsets[1 + i, block]
            w.offsets[s, block] = offset
        pairs = b.joint.shape[0]
        for pair in range(pairs):
            w.levers[s, pair] = w.rotations[s, b.joint[pair]] * w.offsets_at[s, pair]
        # A joint comes after its parent: from the end, what hangs on a pair is complete when its turn comes.
        for i in range(pairs):
            pair = pairs - 1 - i
            if b.joint[pair] > 0:
                w.levers[s, b.above[pair]] += w.levers[s, pair]

    @wp.func
    def evaluate(b: Points, e: Seen, p: Priors, w: Work, n: int, s: int, root: mat33, translation: vec3) -> real:
        # The energy of person n at the angles and betas in `tried`, whose levers are there; infinite with a joint
        # behind the camera.
        pelvis = b.pelvis[0] + translation
        for i in range(b.betas):
            pelvis += w.tried_at[s, angles + i] * b.pelvis[1 + i]
        energy = prior_energy(b, p, w, n, s)
        behind = wp.bool(False)
        for k in range(b.mass.shape[0]):
            confidence = e.confidence[n, k]
            x = e.R[n] * (root * w.levers[s, b.first[k]] + b.mass[k] * pelvis) + e.t[n]
            if x[2] < near and confidence > zero:
                behind = True
            depth = wp.max(x[2], near)
            ray = vec2(x[0] / depth, x[1] / depth)
            pixel = vec2(wp.dot(e.intrinsics[n, 0], ray), wp.dot(e.intrinsics[n, 1], ray))
            residual = pixel - e.target[n, k]
            squared = wp.dot(residual, residual)
            shrink = one / (e.limit * squared + one)
            energy += half * confidence * shrink * squared
            w.residuals[s, k] = residual
            w.pixels[s, k] = pixel
            w.depths[s, k] = depth
            w.weights[s, k] = confidence * shrink * shrink
        if behind:
            energy = real(wp.inf)
        return energy

    @wp.func
    def put_body_columns(b: Points, w: Work, s: int, k: int, r: int, by_world: vec3, slope: vec3):
        # What residual r of point k, of that slope in the world's and in the body's frame, does with angles and betas.
        by_betas = few()
        for pair in range(b.first[k], b.first[k + 1]):
            j = b.joint[pair]
            here = slope * w.rotations[s, j]
            by_betas += here[0] * b.by_beta[pair, 0] + here[1] * b.by_beta[pair, 1] + here[2] * b.by_beta[pair, 2]
            if j > 0:
                torque = wp.cross(w.levers[s, pair], slope) * w.charts[s, j]
                for c in range(3):
                    w.jacobian_at[s, r, 3 * j - 3 + c] = torque[c]
        for i in range(b.betas):
            w.jacobian_at[s, r, angles + i] = by_betas[i] + b.mass[k] * wp.dot(by_world, b.pelvis[1 + i])

    @wp.func
    def put_data(b: Points, w: Work, s: int, j: int, i: int):
        # Three rows of the evidence's curvature, from column i on: of points that move with joint j.
        x, y, z = row(), row(), row()
        for at in range(b.reach[j], b.reach[j + 1]):
            k = b.reached[at]
            for d in range(2):
                r = 2 * k + d
                slopes = w.jacobian[s, r]
                weight = w.weights[s, k]
                x += (weight * w.jacobian_at[s, r, i]) * slopes
                y += (weight * w.jacobian_at[s, r, i + 1]) * slopes
                z += (weight * w.jacobian_at[s, r, i + 2]) * slopes
        w.data[s, i] = x
        w.data[s, i + 1] = y
        w.data[s, i + 2] = z

    @wp.func
    def add_priors(b: Points, p: Priors, w: Work, n: int, s: int):
        # To the gradient; of the curvature the diagonal alone: the precision of `component` is left to the solver.
        if p.gmm > zero:
            w.component[s] = w.likeliest[s]
            w.gradient[s] += p.gmm * w.pull[s]
        for i in range(angles):
            value = w.tried_at[s, i]
            w.diagonal[s, i] = p.anchor
            if p.limits > zero:
                _energy, pull, curvature = limit(p, i, value)
                w.gradient_at[s, i] += p.limits * pull
                w.diagonal[s, i] += p.limits * curvature
            if p.anchor > zero:
                w.gradient_at[s, i] += p.anchor * (value - p.anchored[n, i])
        for i in range(angles, angles + b.betas):
            w.gradient_at[s, i] += p.shape * w.tried_at[s, i]
            w.diagonal[s, i] = p.shape
        for i in range(b.place, b.place + 6):
            w.diagonal[s, i] = zero

    @wp.func
    def linearize(b: Points, e: Seen, p: Priors, w: Work, n: int, s: int, root: mat33):
        # The gradient, the evidence's curvature `data` and the priors' `diagonal`, as `objective.linearize`, at what
        # was last evaluated.
        points = b.mass.shape[0]
        gradient = row()
        for k in range(points):
            for d in range(2):
                focal = e.intrinsics[n, d]
                by_camera = vec3(focal[0], focal[1], -w.pixels[s, k][d]) / w.depths[s, k]
                by_world = by_camera * e.R[n]
                slope = by_world * root
                r = 2 * k + d
                if b.place > 0:
                    put_body_columns(b, w, s, k, r, by_world, slope)
                torque = wp.cross(w.levers[s, b.first[k]], slope)
                for c in range(3):
                    w.jacobian_at[s, r, b.place + c] = torque[c]
                    w.jacobian_at[s, r, b.place + 3 + c] = b.mass[k] * by_world[c]
                gradient += (w.weights[s, k] * w.residuals[s, k][d]) * w.jacobian[s, r]
        i = wp.int32(0)
        if b.place > 0:
            for j in range(1, joints):
                put_data(b, w, s, j, i)
                i += 3
        while i < b.place + 6:
            put_data(b, w, s, 0, i)
            i += 3
        w.gradient[s] = gradient
        add_priors(b, p, w, n, s)

    return SimpleNamespace(turned=turned, put_levers=put_levers, evaluate=evaluate, linearize=linearize)
