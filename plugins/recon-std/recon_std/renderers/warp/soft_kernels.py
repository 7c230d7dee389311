"""The kernels of probabilistic coverage. No postponed annotations here: Warp reads them as objects."""

from functools import cache
from types import SimpleNamespace

import torch
import warp as wp

from recon_std.renderers.warp.functions import functions


@cache
def soft_kernels(dtype: torch.dtype) -> SimpleNamespace:
    """The kernels for screen coordinates of this dtype.

    A face covers the pixel at p with probability D = sigmoid(x), x = s d^2 / sigma, where d is the distance of
    p to the outline of the projected face and s is 1 inside and -1 outside (Liu et al., ICCV 2019, equation 1).
    The pixel stays empty with probability prod (1 - D), whose logarithm is -sum softplus(x): sums are what the
    kernels keep, since they neither underflow nor need a division in the backward pass. "scale" is 1 / sigma
    in 1 / pixels^2, "reach" the distance in pixels beyond which a face counts for nothing.
    """
    shared = functions(dtype)
    real, vec2, vec3 = shared.real, shared.vec2, shared.vec3
    cross, order, pixel_range = shared.cross, shared.order, shared.pixel_range
    module = wp.get_module(f"recon_std.renderers.warp.soft_{real.__name__}")
    module.options["enable_backward"] = False

    @wp.struct
    class Near:
        """The point of a triangle's outline nearest to a pixel: on `edge`, at `s` along it, `away` from the pixel."""

        edge: int
        s: real
        away: vec2
        square: real

    @wp.func
    def flat(p: vec3) -> vec2:
        return vec2(p[0], p[1])

    @wp.func
    def along(a: vec2, b: vec2) -> real:
        # Position on the segment from a to b that is nearest to the origin.
        d = b - a
        length = wp.dot(d, d)
        if length <= real(0.0):
            return real(0.0)
        return wp.clamp(-wp.dot(a, d) / length, real(0.0), real(1.0))

    @wp.func
    def nearest(a: vec2, b: vec2, c: vec2) -> Near:
        # Corners relative to the pixel. square: squared distance, positive inside.
        out = Near()
        s = along(a, b)
        away = a + s * (b - a)
        best = wp.dot(away, away)
        out.edge = 0
        out.s = s
        out.away = away
        s = along(b, c)
        away = b + s * (c - b)
        d = wp.dot(away, away)
        if d < best:
            best = d
            out.edge = 1
            out.s = s
            out.away = away
        s = along(c, a)
        away = c + s * (a - c)
        d = wp.dot(away, away)
        if d < best:
            best = d
            out.edge = 2
            out.s = s
            out.away = away
        e0 = cross(b, c)
        e1 = cross(c, a)
        e2 = cross(a, b)
        inside = e0 > real(0.0) and e1 > real(0.0) and e2 > real(0.0)
        inside = inside or (e0 < real(0.0) and e1 < real(0.0) and e2 < real(0.0))
        out.square = -best
        if inside:
            out.square = best
        return out

    @wp.func
    def softplus(x: real) -> real:
        return wp.max(x, real(0.0)) + wp.log(real(1.0) + wp.exp(-wp.abs(x)))

    @wp.func
    def sigmoid(x: real) -> real:
        e = wp.exp(-wp.abs(x))
        if x >= real(0.0):
            return real(1.0) / (real(1.0) + e)
        return e / (real(1.0) + e)

    @wp.func
    def box(
        p0: vec3, p1: vec3, p2: vec3, reach: real, least_area: real, near: real, height: int, width: int
    ) -> wp.vec4i:
        # Columns and rows within reach of the face; none for one that is edge-on or crosses the near plane.
        area = cross(flat(p1) - flat(p0), flat(p2) - flat(p0))
        if not (wp.abs(area) > least_area) or wp.min(p0[2], wp.min(p1[2], p2[2])) < near:
            return wp.vec4i(0, -1, 0, -1)
        low = wp.min(flat(p0), wp.min(flat(p1), flat(p2)))
        high = wp.max(flat(p0), wp.max(flat(p1), flat(p2)))
        xs = pixel_range(low[0] - reach, high[0] + reach, width)
        ys = pixel_range(low[1] - reach, high[1] + reach, height)
        return wp.vec4i(xs[0], xs[1], ys[0], ys[1])

    @wp.func
    def centre(row: int, column: int) -> vec2:
        return vec2(real(column) + real(0.5), real(row) + real(0.5))

    @wp.func
    def corner_gradient(n: Near, g: real, corner: int) -> vec2:
        # Of g times the squared distance: the nearest point moves with its edge's ends in proportion.
        share = real(0.0)
        if corner == n.edge:
            share = real(1.0) - n.s
        elif corner == (n.edge + 1) % 3:
            share = n.s
        return (real(2.0) * g * share) * n.away

    @wp.func
    def depth(p0: vec3, p1: vec3, p2: vec3, p: vec2, orthographic: int) -> real:
        # Of the face at p, or at a point of its outline when p lies outside.
        a = flat(p0) - p
        b = flat(p1) - p
        c = flat(p2) - p
        w = vec3(cross(b, c), cross(c, a), cross(a, b))
        w = w / (w[0] + w[1] + w[2])
        if orthographic == 0:
            w = vec3(w[0] * p1[2] * p2[2], w[1] * p2[2] * p0[2], w[2] * p0[2] * p1[2])
            w = w / wp.max(w[0] + w[1] + w[2], real(1.0e-8))
        w = vec3(wp.max(w[0], real(0.0)), wp.max(w[1], real(0.0)), wp.max(w[2], real(0.0)))
        w = w / wp.max(w[0] + w[1] + w[2], real(1.0e-5))
        return w[0] * p0[2] + w[1] * p1[2] + w[2] * p2[2]

    @wp.kernel(module=module)
    def sum_forward(
        screen: wp.array(dtype=vec3),
        faces: wp.array(dtype=wp.vec3i),
        picture: wp.array(dtype=wp.int32),
        first_face: int,
        reach: real,
        least_area: real,
        near: real,
        scale: real,
        total: wp.array3d(dtype=real),
    ):
        face = wp.tid() + first_face
        p0 = screen[faces[face][0]]
        p1 = screen[faces[face][1]]
        p2 = screen[faces[face][2]]
        limits = box(p0, p1, p2, reach, least_area, near, total.shape[1], total.shape[2])
        b = picture[face]
        for row in range(limits[2], limits[3] + 1):
            for column in range(limits[0], limits[1] + 1):
                p = centre(row, column)
                n = nearest(flat(p0) - p, flat(p1) - p, flat(p2) - p)
                if n.square > -reach * reach:
                    wp.atomic_add(total, b, row, column, softplus(n.square * scale))

    @wp.kernel(module=module)
    def sum_backward(
        screen: wp.array(dtype=vec3),
        faces: wp.array(dtype=wp.vec3i),
        picture: wp.array(dtype=wp.int32),
        first_face: int,
        reach: real,
        least_area: real,
        near: real,
        scale: real,
        grad_total: wp.array3d(dtype=real),
        grad_screen: wp.array(dtype=vec3),
    ):
        face = wp.tid() + first_face
        corners = faces[face]
        p0 = screen[corners[0]]
        p1 = screen[corners[1]]
        p2 = screen[corners[2]]
        limits = box(p0, p1, p2, reach, least_area, near, grad_total.shape[1], grad_total.shape[2])
        b = picture[face]
        g0 = vec2()
        g1 = vec2()
        g2 = vec2()
        for row in range(limits[2], limits[3] + 1):
            for column in range(limits[0], limits[1] + 1):
                g = grad_total[b, row, column]
                if g != real(0.0):
                    p = centre(row, column)
                    n = nearest(flat(p0) - p, flat(p1) - p, flat(p2) - p)
                    if n.square > -reach * reach:
                        g = g * sigmoid(n.square * scale) * scale * wp.sign(n.square)
                        g0 += corner_gradient(n, g, 0)
                        g1 += corner_gradient(n, g, 1)
                        g2 += corner_gradient(n, g, 2)
        if limits[0] <= limits[1] and limits[2] <= limits[3]:
            wp.atomic_add(grad_screen, corners[0], vec3(g0[0], g0[1], real(0.0)))
            wp.atomic_add(grad_screen, corners[1], vec3(g1[0], g1[1], real(0.0)))
            wp.atomic_add(grad_screen, corners[2], vec3(g2[0], g2[1], real(0.0)))

    @wp.kernel(module=module)
    def count(
        screen: wp.array(dtype=vec3),
        faces: wp.array(dtype=wp.vec3i),
        picture: wp.array(dtype=wp.int32),
        first_face: int,
        reach: real,
        least_area: real,
        near: real,
        by_face: int,
        counts: wp.array(dtype=wp.int32),
        height: int,
        width: int,
    ):
        # How many pixels each face reaches (by_face), or how many faces reach each pixel.
        face = wp.tid() + first_face
        p0 = screen[faces[face][0]]
        p1 = screen[faces[face][1]]
        p2 = screen[faces[face][2]]
        limits = box(p0, p1, p2, reach, least_area, near, height, width)
        found = wp.int32(0)
        for row in range(limits[2], limits[3] + 1):
            for column in range(limits[0], limits[1] + 1):
                p = centre(row, column)
                n = nearest(flat(p0) - p, flat(p1) - p, flat(p2) - p)
                if n.square > -reach * reach:
                    found += 1
                    if by_face == 0:
                        wp.atomic_add(counts, (picture[face] * height + row) * width + column, 1)
        if by_face == 1:
            counts[face] = found

    @wp.kernel(module=module)
    def list_pixels(
        screen: wp.array(dtype=vec3),
        faces: wp.array(dtype=wp.vec3i),
        picture: wp.array(dtype=wp.int32),
        first_face: int,
        reach: real,
        least_area: real,
        near: real,
        starts: wp.array(dtype=wp.int64),
        height: int,
        width: int,
        entry_face: wp.array(dtype=wp.int64),
        entry_pixel: wp.array(dtype=wp.int64),
        square: wp.array(dtype=real),
    ):
        # The pixels that each face reaches, face after face.
        face = wp.tid() + first_face
        p0 = screen[faces[face][0]]
        p1 = screen[faces[face][1]]
        p2 = screen[faces[face][2]]
        limits = box(p0, p1, p2, reach, least_area, near, height, width)
        at = wp.int32(starts[face])
        for row in range(limits[2], limits[3] + 1):
            for column in range(limits[0], limits[1] + 1):
                p = centre(row, column)
                n = nearest(flat(p0) - p, flat(p1) - p, flat(p2) - p)
                if n.square > -reach * reach:
                    entry_face[at] = wp.int64(face)
                    entry_pixel[at] = wp.int64((picture[face] * height + row) * width + column)
                    square[at] = n.square
                    at += 1

    @wp.kernel(module=module)
    def list_faces(
        screen: wp.array(dtype=vec3),
        faces: wp.array(dtype=wp.vec3i),
        picture: wp.array(dtype=wp.int32),
        first_face: int,
        reach: real,
        least_area: real,
        near: real,
        orthographic: int,
        height: int,
        width: int,
        cursor: wp.array(dtype=wp.int64),
        entries: wp.array(dtype=wp.int64),
    ):
        # The faces that reach each pixel, pixel after pixel, in any order within one: depth bits, face number.
        face = wp.tid() + first_face
        p0 = screen[faces[face][0]]
        p1 = screen[faces[face][1]]
        p2 = screen[faces[face][2]]
        limits = box(p0, p1, p2, reach, least_area, near, height, width)
        for row in range(limits[2], limits[3] + 1):
            for column in range(limits[0], limits[1] + 1):
                p = centre(row, column)
                n = nearest(flat(p0) - p, flat(p1) - p, flat(p2) - p)
                if n.square > -reach * reach:
                    pixel = (picture[face] * height + row) * width + column
                    at = wp.atomic_add(cursor, pixel, wp.int64(1))
                    entries[wp.int32(at)] = order(depth(p0, p1, p2, p, orthographic), face)

    @wp.kernel(module=module)
    def select(
        screen: wp.array(dtype=vec3),
        faces: wp.array(dtype=wp.vec3i),
        first_pixel: int,
        scale: real,
        keep: int,
        height: int,
        width: int,
        starts: wp.array(dtype=wp.int64),
        counts: wp.array(dtype=wp.int32),
        entries: wp.array(dtype=wp.int64),
        total: wp.array(dtype=real),
    ):
        # Brings the `keep` nearest faces of a pixel to the front of its list and sums over them.
        pixel = wp.tid() + first_pixel
        first = wp.int32(starts[pixel])
        found = counts[pixel]
        p = centre((pixel // width) % height, pixel % width)
        sum = real(0.0)
        for i in range(wp.min(found, keep)):
            best = i
            for j in range(i + 1, found):
                if entries[first + j] < entries[first + best]:
                    best = j
            chosen = entries[first + best]
            entries[first + best] = entries[first + i]
            entries[first + i] = chosen
            corners = faces[wp.int32(chosen & wp.int64(0x7FFFFFFF))]
            n = nearest(flat(screen[corners[0]]) - p, flat(screen[corners[1]]) - p, flat(screen[corners[2]]) - p)
            sum += softplus(n.square * scale)
        total[pixel] = sum

    @wp.kernel(module=module)
    def select_backward(
        screen: wp.array(dtype=vec3),
        faces: wp.array(dtype=wp.vec3i),
        first_pixel: int,
        scale: real,
        keep: int,
        height: int,
        width: int,
        starts: wp.array(dtype=wp.int64),
        counts: wp.array(dtype=wp.int32),
        entries: wp.array(dtype=wp.int64),
        grad_total: wp.array(dtype=real),
        grad_screen: wp.array(dtype=vec3),
    ):
        pixel = wp.tid() + first_pixel
        first = wp.int32(starts[pixel])
        g = grad_total[pixel]
        if g == real(0.0):
            return
        p = centre((pixel // width) % height, pixel % width)
        for i in range(wp.min(counts[pixel], keep)):
            corners = faces[wp.int32(entries[first + i] & wp.int64(0x7FFFFFFF))]
            n = nearest(flat(screen[corners[0]]) - p, flat(screen[corners[1]]) - p, flat(screen[corners[2]]) - p)
            d = g * sigmoid(n.square * scale) * scale * wp.sign(n.square)
            for corner in range(3):
                part = corner_gradient(n, d, corner)
                wp.atomic_add(grad_screen, corners[corner], vec3(part[0], part[1], real(0.0)))

    @wp.kernel(module=module)
    def list_backward(
        screen: wp.array(dtype=vec3),
        faces: wp.array(dtype=wp.vec3i),
        height: int,
        width: int,
        entry_face: wp.array(dtype=wp.int64),
        entry_pixel: wp.array(dtype=wp.int64),
        grad_square: wp.array(dtype=real),
        grad_screen: wp.array(dtype=vec3),
    ):
        entry = wp.tid()
        pixel = wp.int32(entry_pixel[entry])
        p = centre((pixel // width) % height, pixel % width)
        corners = faces[wp.int32(entry_face[entry])]
        n = nearest(flat(screen[corners[0]]) - p, flat(screen[corners[1]]) - p, flat(screen[corners[2]]) - p)
        d = grad_square[entry] * wp.sign(n.square)
        for corner in range(3):
            part = corner_gradient(n, d, corner)
            wp.atomic_add(grad_screen, corners[corner], vec3(part[0], part[1], real(0.0)))

    return SimpleNamespace(
        count=count,
        list_backward=list_backward,
        list_faces=list_faces,
        list_pixels=list_pixels,
        select=select,
        select_backward=select_backward,
        sum_backward=sum_backward,
        sum_forward=sum_forward,
        real=real,
        vec3=vec3,
    )
