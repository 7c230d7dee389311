"""Kernels that choose turns of rotations, one after the other in each mesh: a thread a mesh.

No postponed annotations here: Warp reads them as objects.
"""

import math
from functools import cache
from types import SimpleNamespace

import torch
import warp as wp

from recon_std.renderers.warp.start import start

BUCKETS = 256
"""Links are sorted by the difference of their ends this finely."""

CALM = 1.0
"""Radians between two axis-angle vectors up to which none of them would be nearer after another turn."""

SWEEPS = 30
"""Most sweeps over the links of a mesh; they end as soon as nothing is gained."""


@cache
def turning_kernels(dtype: torch.dtype) -> SimpleNamespace:
    """The kernels over tensors of this dtype (float32 or float64), as `consistency` calls them."""
    start()
    real = wp.float32 if dtype == torch.float32 else wp.float64
    vec3 = wp.types.vector(3, real)
    turn, one, half = (wp.constant(wp.float64(x)) for x in (2 * math.pi, 1.0, 0.5))
    levels, calm = wp.constant(wp.float64(float(BUCKETS))), wp.constant(real(CALM**2))
    module = wp.get_module(f"recon_acap.features.turning_{real.__name__}")
    module.options["enable_backward"] = False

    @wp.func
    def apart(first: wp.float64, second: wp.float64, cosine: wp.float64, limit: wp.float64) -> bool:
        # Whether a turn at one of two ends would bring it nearer to the other.
        far = wp.abs(first) + wp.abs(second) > limit
        return far and wp.max(wp.abs(cosine * second - first), wp.abs(cosine * first - second)) > limit

    @wp.kernel(module=module)
    def strained(
        phase: wp.array(dtype=real, ndim=2),
        axis: wp.array(dtype=vec3, ndim=2),
        links: wp.array(dtype=wp.vec2i),
        limit: wp.float64,
        out: wp.array(dtype=wp.bool, ndim=2),
    ):
        link, mesh = wp.tid()
        a, b = links[link][0], links[link][1]
        first, second = wp.float64(phase[a, mesh]), wp.float64(phase[b, mesh])
        if wp.abs(first) + wp.abs(second) > limit:
            cosine = wp.float64(wp.dot(axis[a, mesh], axis[b, mesh]))
            out[link, mesh] = apart(first, second, cosine, limit)

    @wp.kernel(module=module)
    def along_tree(
        phase: wp.array(dtype=real, ndim=2),
        axis: wp.array(dtype=vec3, ndim=2),
        order: wp.array(dtype=wp.int32),
        up: wp.array(dtype=wp.int32),
    ):
        mesh = wp.tid()
        for place in range(order.shape[0]):
            v, u = order[place], up[place]
            if u != v:
                if wp.length_sq(axis[v, mesh]) == real(0.0):
                    axis[v, mesh] = axis[u, mesh]
                along = wp.float64(wp.dot(axis[v, mesh], axis[u, mesh])) * wp.float64(phase[u, mesh])
                own = wp.float64(phase[v, mesh])
                phase[v, mesh] = real(own + turn * wp.rint((along - own) / turn))

    # Turns m of the vertices joined so far follow from those of their root: m_v = sign m_root + step.

    @wp.func
    def found(
        parent: wp.array(dtype=wp.int32, ndim=2),
        sign: wp.array(dtype=wp.int32, ndim=2),
        step: wp.array(dtype=wp.int32, ndim=2),
        mesh: int,
        vertex: int,
    ):
        v = int(vertex)
        s = wp.int32(1)
        t = wp.int32(0)
        while parent[mesh, v] != v:
            u = parent[mesh, v]
            # The path is halved on the way.
            step[mesh, v] += sign[mesh, v] * step[mesh, u]
            sign[mesh, v] *= sign[mesh, u]
            parent[mesh, v] = parent[mesh, u]
            t += s * step[mesh, v]
            s *= sign[mesh, v]
            v = parent[mesh, v]
        return v, s, t

    @wp.func
    def bucket_of(first: wp.float64, second: wp.float64, cosine: wp.float64) -> int:
        # By the angle between two rotations.
        a, b = half * first, half * second
        same = wp.abs(wp.cos(a) * wp.cos(b) + wp.sin(a) * wp.sin(b) * cosine)
        return wp.min(int(wp.sqrt(wp.max(one - same, wp.float64(0.0))) * levels), BUCKETS - 1)

    @wp.func
    def opposed(a: vec3, b: vec3) -> int:
        s = wp.int32(1)
        if wp.dot(a, b) < real(0.0):
            s = wp.int32(-1)
        return s

    @wp.kernel(module=module)
    def parts(
        axis: wp.array(dtype=vec3, ndim=2),
        order: wp.array(dtype=wp.int32),
        up: wp.array(dtype=wp.int32),
        parent: wp.array(dtype=wp.int32, ndim=2),
        sign: wp.array(dtype=wp.int32, ndim=2),
        step: wp.array(dtype=wp.int32, ndim=2),
        size: wp.array(dtype=wp.int32, ndim=2),
        phase: wp.array(dtype=real, ndim=2),
    ):
        mesh = wp.tid()
        # What calm links of the tree join stays together.
        for place in range(order.shape[0]):
            v, u = order[place], up[place]
            parent[mesh, v] = v
            sign[mesh, v] = 1
            size[mesh, v] = 1
            if u != v:
                here = phase[v, mesh] * axis[v, mesh]
                if wp.length_sq(here - phase[u, mesh] * axis[u, mesh]) < calm:
                    root = parent[mesh, u]
                    parent[mesh, v] = root
                    sign[mesh, v] = sign[mesh, u] * opposed(axis[v, mesh], axis[u, mesh])
                    size[mesh, root] += 1

    @wp.kernel(module=module)
    def joined(
        axis: wp.array(dtype=vec3, ndim=2),
        links: wp.array(dtype=wp.vec2i),
        bucket: wp.array(dtype=wp.int32, ndim=2),
        ends: wp.array(dtype=wp.int32, ndim=2),
        sorted: wp.array(dtype=wp.int32, ndim=2),
        parent: wp.array(dtype=wp.int32, ndim=2),
        sign: wp.array(dtype=wp.int32, ndim=2),
        step: wp.array(dtype=wp.int32, ndim=2),
        size: wp.array(dtype=wp.int32, ndim=2),
        phase: wp.array(dtype=real, ndim=2),
    ):
        mesh = wp.tid()
        # Between the parts Kruskal's minimum spanning tree, over the other links in order of their buckets.
        for row in range(links.shape[0]):
            a, b = links[row][0], links[row][1]
            bucket[mesh, row] = -1
            if parent[mesh, a] != parent[mesh, b]:
                cosine = wp.float64(wp.dot(axis[a, mesh], axis[b, mesh]))
                found_in = bucket_of(wp.float64(phase[a, mesh]), wp.float64(phase[b, mesh]), cosine)
                bucket[mesh, row] = found_in
                ends[mesh, found_in + 1] += 1
        for k in range(BUCKETS):
            ends[mesh, k + 1] += ends[mesh, k]
        count = ends[mesh, BUCKETS]
        for number in range(links.shape[0]):
            level = bucket[mesh, number]
            if level >= 0:
                sorted[mesh, ends[mesh, level]] = number
                ends[mesh, level] += 1
        for place in range(count):
            link = links[sorted[mesh, place]]
            root_a, sign_a, step_a = found(parent, sign, step, mesh, link[0])
            root_b, sign_b, step_b = found(parent, sign, step, mesh, link[1])
            if root_a != root_b:
                # m_a = s m_b + t, by which the root of a follows that of b.
                s = opposed(axis[link[0], mesh], axis[link[1], mesh])
                near = wp.float64(s) * wp.float64(phase[link[1], mesh])
                t = int(wp.rint((near - wp.float64(phase[link[0], mesh])) / turn))
                sense = sign_a * s * sign_b
                shift = sign_a * (s * step_b + t - step_a)
                if size[mesh, root_a] > size[mesh, root_b]:
                    parent[mesh, root_b] = root_a
                    sign[mesh, root_b] = sense
                    step[mesh, root_b] = -sense * shift
                    size[mesh, root_a] += size[mesh, root_b]
                else:
                    parent[mesh, root_a] = root_b
                    sign[mesh, root_a] = sense
                    step[mesh, root_a] = shift
                    size[mesh, root_b] += size[mesh, root_a]

    @wp.kernel(module=module)
    def turned(
        order: wp.array(dtype=wp.int32),
        up: wp.array(dtype=wp.int32),
        parent: wp.array(dtype=wp.int32, ndim=2),
        sign: wp.array(dtype=wp.int32, ndim=2),
        step: wp.array(dtype=wp.int32, ndim=2),
        size: wp.array(dtype=wp.int32, ndim=2),
        phase: wp.array(dtype=real, ndim=2),
    ):
        mesh = wp.tid()
        # `size` now holds the turns of the parts' roots, such that the connectivity's own roots have none.
        for place in range(order.shape[0]):
            v = order[place]
            top, way, turns = found(parent, sign, step, mesh, v)
            if up[place] == v:
                size[mesh, top] = -way * turns
            phase[v, mesh] += real(turn * wp.float64(way * size[mesh, top] + turns))

    @wp.kernel(module=module)
    def settle(
        axis: wp.array(dtype=vec3, ndim=2),
        links: wp.array(dtype=wp.vec2i),
        ring_ends: wp.array(dtype=wp.int32),
        ring: wp.array(dtype=wp.int32),
        limit: wp.float64,
        phase: wp.array(dtype=real, ndim=2),
    ):
        mesh = wp.tid()
        moving = wp.int32(1)
        for _ in range(SWEEPS):
            if moving == 0:
                break
            moving = wp.int32(0)
            for k in range(links.shape[0]):
                link = links[k]
                cosine = wp.float64(wp.dot(axis[link[0], mesh], axis[link[1], mesh]))
                for end in range(2):
                    if apart(wp.float64(phase[link[0], mesh]), wp.float64(phase[link[1], mesh]), cosine, limit):
                        v = link[end]
                        first = wp.int32(0)
                        if v > 0:
                            first = ring_ends[v - 1]
                        # The sum over a vertex's links is least at `best`, and grows with the squared distance from it.
                        total = wp.float64(0.0)
                        for j in range(first, ring_ends[v]):
                            u = ring[j]
                            total += wp.float64(wp.dot(axis[v, mesh], axis[u, mesh])) * wp.float64(phase[u, mesh])
                        best = total / wp.float64(ring_ends[v] - first)
                        own = wp.float64(phase[v, mesh])
                        wanted = own + turn * wp.rint((best - own) / turn)
                        if wp.abs(own - best) - wp.abs(wanted - best) > wp.float64(1e-6):
                            phase[v, mesh] = real(wanted)
                            moving = wp.int32(1)

    return SimpleNamespace(
        strained=strained, along_tree=along_tree, parts=parts, joined=joined, turned=turned, settle=settle
    )
