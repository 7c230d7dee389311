"""The kernels of the hard pass. No postponed annotations here: Warp reads them as objects."""

from functools import cache
from types import SimpleNamespace

import torch
import warp as wp

from recon_std.renderers.warp.functions import functions


@cache
def hard_kernels(dtype: torch.dtype) -> SimpleNamespace:
    """The kernels for screen coordinates of this dtype: `scatter`, `resolve`, `backward`.

    A vertex on the screen is (u, v, z). With w = z for a perspective camera and 1 for an orthographic one, the
    point q_i = w_i (u_i - x, v_i - y) is linear in the vertex, and the perspective-correct barycentrics of the
    pixel (x, y) are b_0 = q_1 x q_2 / (q_0 x q_1 + q_1 x q_2 + q_2 x q_0) and so on (2D homogeneous
    rasterisation, Olano and Greer, 1997). That holds for vertices behind the camera as well, so clipping at
    the near plane is a comparison at each pixel.
    """
    shared = functions(dtype)
    real, vec2, vec3 = shared.real, shared.vec2, shared.vec3
    cross, order, pixel_range = shared.cross, shared.order, shared.pixel_range
    vec4 = wp.types.vector(4, real)
    module = wp.get_module(f"recon_std.renderers.warp.hard_{real.__name__}")
    # Without fused multiply-adds the edge function of an edge is exactly the negative of that of its reverse, so
    # that no pixel falls between two faces.
    module.options["fuse_fp"] = False
    module.options["enable_backward"] = False

    @wp.func
    def offset(p: vec3, x: real, y: real, orthographic: int) -> vec2:
        d = vec2(p[0] - x, p[1] - y)
        if orthographic == 0:
            d = d * p[2]
        return d

    @wp.func
    def grow(box: vec4, u: real, v: real) -> vec4:
        return vec4(wp.min(box[0], u), wp.min(box[1], v), wp.max(box[2], u), wp.max(box[3], v))

    @wp.func
    def clipped(box: vec4, a: vec3, b: vec3, near: real) -> vec4:
        # Adds the part of the edge from a to b that lies before the near plane.
        out = box
        if a[2] >= near:
            out = grow(out, a[0], a[1])
        if (a[2] >= near) != (b[2] >= near):
            s = (near - a[2]) / (b[2] - a[2])
            u = a[0] * a[2] + s * (b[0] * b[2] - a[0] * a[2])
            v = a[1] * a[2] + s * (b[1] * b[2] - a[1] * a[2])
            out = grow(out, u / near, v / near)
        return out

    @wp.kernel(module=module)
    def scatter(
        screen: wp.array(dtype=vec3),
        faces: wp.array(dtype=wp.vec3i),
        picture: wp.array(dtype=wp.int32),
        first_face: int,
        first_row: int,
        end_row: int,
        orthographic: int,
        near: real,
        keys: wp.array3d(dtype=wp.int64),
    ):
        face = wp.tid() + first_face
        corners = faces[face]
        p0 = screen[corners[0]]
        p1 = screen[corners[1]]
        p2 = screen[corners[2]]
        low_u = wp.min(p0[0], wp.min(p1[0], p2[0]))
        high_u = wp.max(p0[0], wp.max(p1[0], p2[0]))
        low_v = wp.min(p0[1], wp.min(p1[1], p2[1]))
        high_v = wp.max(p0[1], wp.max(p1[1], p2[1]))
        if orthographic == 0 and wp.min(p0[2], wp.min(p1[2], p2[2])) < near:
            if wp.max(p0[2], wp.max(p1[2], p2[2])) < near:
                return
            box = vec4(real(1.0e30), real(1.0e30), real(-1.0e30), real(-1.0e30))
            box = clipped(box, p0, p1, near)
            box = clipped(box, p1, p2, near)
            box = clipped(box, p2, p0, near)
            low_u = box[0]
            low_v = box[1]
            high_u = box[2]
            high_v = box[3]
        xs = pixel_range(low_u, high_u, keys.shape[2])
        ys = pixel_range(low_v, high_v, end_row)
        if xs[0] > xs[1]:
            return
        b = picture[face]
        for row in range(wp.max(ys[0], first_row), ys[1] + 1):
            y = real(row) + real(0.5)
            for column in range(xs[0], xs[1] + 1):
                x = real(column) + real(0.5)
                q0 = offset(p0, x, y, orthographic)
                q1 = offset(p1, x, y, orthographic)
                q2 = offset(p2, x, y, orthographic)
                e0 = cross(q1, q2)
                e1 = cross(q2, q0)
                e2 = cross(q0, q1)
                total = e0 + e1 + e2
                inside = e0 >= real(0.0) and e1 >= real(0.0) and e2 >= real(0.0)
                inside = inside or (e0 <= real(0.0) and e1 <= real(0.0) and e2 <= real(0.0))
                if inside and total != real(0.0):
                    z = (e0 * p0[2] + e1 * p1[2] + e2 * p2[2]) / total
                    if orthographic == 1 or z >= near:
                        wp.atomic_min(keys, b, row, column, order(z, face))

    @wp.kernel(module=module)
    def resolve(
        screen: wp.array(dtype=vec3),
        faces: wp.array(dtype=wp.vec3i),
        keys: wp.array(dtype=wp.int64),
        first_pixel: int,
        width: int,
        height: int,
        orthographic: int,
        face: wp.array(dtype=wp.int64),
        barycentrics: wp.array(dtype=vec3),
        depth: wp.array(dtype=real),
    ):
        pixel = wp.tid() + first_pixel
        key = keys[pixel]
        if key == wp.int64(0x7FFFFFFFFFFFFFFF):
            face[pixel] = wp.int64(-1)
            barycentrics[pixel] = vec3()
            depth[pixel] = real(0.0)
            return
        seen = key & wp.int64(0xFFFFFFFF)
        face[pixel] = seen
        x = real(pixel % width) + real(0.5)
        y = real((pixel // width) % height) + real(0.5)
        corners = faces[wp.int32(seen)]
        p0 = screen[corners[0]]
        p1 = screen[corners[1]]
        p2 = screen[corners[2]]
        q0 = offset(p0, x, y, orthographic)
        q1 = offset(p1, x, y, orthographic)
        q2 = offset(p2, x, y, orthographic)
        e = vec3(cross(q1, q2), cross(q2, q0), cross(q0, q1))
        b = e / (e[0] + e[1] + e[2])
        barycentrics[pixel] = b
        depth[pixel] = b[0] * p0[2] + b[1] * p1[2] + b[2] * p2[2]

    @wp.kernel(module=module)
    def backward(
        screen: wp.array(dtype=vec3),
        faces: wp.array(dtype=wp.vec3i),
        face: wp.array(dtype=wp.int64),
        first_pixel: int,
        width: int,
        height: int,
        orthographic: int,
        thinnest: real,
        grad_barycentrics: wp.array(dtype=vec3),
        grad_depth: wp.array(dtype=real),
        grad_screen: wp.array(dtype=vec3),
    ):
        pixel = wp.tid() + first_pixel
        seen = wp.int32(face[pixel])
        if seen < 0:
            return
        x = real(pixel % width) + real(0.5)
        y = real((pixel // width) % height) + real(0.5)
        corners = faces[seen]
        p0 = screen[corners[0]]
        p1 = screen[corners[1]]
        p2 = screen[corners[2]]
        q0 = offset(p0, x, y, orthographic)
        q1 = offset(p1, x, y, orthographic)
        q2 = offset(p2, x, y, orthographic)
        e = vec3(cross(q1, q2), cross(q2, q0), cross(q0, q1))
        total = e[0] + e[1] + e[2]
        # Barycentrics of a face thinner than rounding lets tell are in [0, 1], but their gradients mean nothing.
        w = real(1.0)
        if orthographic == 0:
            w = wp.max(wp.abs(p0[2]), wp.max(wp.abs(p1[2]), wp.abs(p2[2])))
        side = w * wp.max(wp.length(q1 - q0), wp.max(wp.length(q2 - q1), wp.length(q0 - q2)))
        if wp.abs(total) <= thinnest * side:
            return
        scale = real(1.0) / total
        b = e * scale
        gz = grad_depth[pixel]
        gb = grad_barycentrics[pixel] + gz * vec3(p0[2], p1[2], p2[2])
        mean = wp.dot(gb, b)
        ge = (gb - vec3(mean, mean, mean)) * scale
        # e_0 = q_1 x q_2 and its rotations: each q appears in two of them.
        g0 = ge[2] * vec2(q1[1], -q1[0]) - ge[1] * vec2(q2[1], -q2[0])
        g1 = ge[0] * vec2(q2[1], -q2[0]) - ge[2] * vec2(q0[1], -q0[0])
        g2 = ge[1] * vec2(q0[1], -q0[0]) - ge[0] * vec2(q1[1], -q1[0])
        if orthographic == 1:
            wp.atomic_add(grad_screen, corners[0], vec3(g0[0], g0[1], gz * b[0]))
            wp.atomic_add(grad_screen, corners[1], vec3(g1[0], g1[1], gz * b[1]))
            wp.atomic_add(grad_screen, corners[2], vec3(g2[0], g2[1], gz * b[2]))
        else:
            w0 = g0[0] * (p0[0] - x) + g0[1] * (p0[1] - y) + gz * b[0]
            w1 = g1[0] * (p1[0] - x) + g1[1] * (p1[1] - y) + gz * b[1]
            w2 = g2[0] * (p2[0] - x) + g2[1] * (p2[1] - y) + gz * b[2]
            wp.atomic_add(grad_screen, corners[0], vec3(g0[0] * p0[2], g0[1] * p0[2], w0))
            wp.atomic_add(grad_screen, corners[1], vec3(g1[0] * p1[2], g1[1] * p1[2], w1))
            wp.atomic_add(grad_screen, corners[2], vec3(g2[0] * p2[2], g2[1] * p2[2], w2))

    return SimpleNamespace(scatter=scatter, resolve=resolve, backward=backward, real=real, vec3=vec3)
