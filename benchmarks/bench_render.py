"""Rendering: the warp renderer against pytorch3d, in one process, with the agreement of results.

    python benchmarks/bench_render.py [--device cuda] [--rounds 5] [--only hard,soft,area,fit,overlay,start,pictures]
        [--out out/bench-render]

Targets on a CPU. Body of 27,420 faces, 256x256, batch 4: hard pass at least 1000 times pytorch3d, 600 times with the
backward pass; the same face at 99.99 % of pixels, depth within 1e-5 m, gradients within 1e-3. Sphere of 1280 faces,
128x128, batch 8: hard pass at least 80 times, soft silhouette of 20 faces a pixel, forward and backward, at least
100 times with alpha within 1e-4. Gradient of the silhouette's area within 10 % of central differences at no more than
twice the cost of a hard pass. A sphere fitted to silhouettes of a body from 8 views: IoU 0.95. A 6000x4000 overlay:
under 1.5 s. Each figure is the median of its rounds; a round runs pytorch3d once and warp several times in turn.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import render_pictures
import torch
from torch import Tensor

from recon_core.export.pictures import overlay
from recon_core.geometry.primitives import icosphere
from recon_core.plugins import registry
from recon_core.rendering import Scene, SoftSettings, vertex_normals
from recon_core.structures import Camera, Mesh

WARP = registry().create("renderer", "warp")
REPEATS = 7
"""Runs of warp for each run of pytorch3d."""


class Table:
    """Rows of a task's times and what else there is to say."""

    def __init__(self) -> None:
        print(f"{'task':<56}{'warp':>11}{'pytorch3d':>12}{'ratio':>9}  target  agreement")

    def row(self, task: str, ours: float, theirs: float | None, target: str, note: str) -> None:
        peer = f"{theirs * 1000:>9.1f} ms{theirs / ours:>8.0f}x" if theirs else f"{'-':>12}{'-':>9}"
        print(f"{task:<56}{ours * 1000:>8.2f} ms{peer}  {target:<7} {note}", flush=True)


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds: on one CPU thread those that the process computed, since beside other programs the wall clock would
    count theirs, and more of them in long runs than in short ones."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    clock = time.process_time if _cpu_clock(device) else time.perf_counter
    start = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def _cpu_clock(device: torch.device) -> bool:
    return device.type == "cpu" and torch.get_num_threads() == 1


def compare(
    ours: Callable[[], object], theirs: Callable[[], object] | None, rounds: int, device: torch.device
) -> tuple[float, float | None]:
    """Median seconds of each, run in turn. The first run of each is not counted."""
    mine: list[float] = []
    peers: list[float] = []
    timed(ours, device)
    for _ in range(rounds):
        if theirs is not None:
            peers.append(timed(theirs, device))
        mine += [timed(ours, device) for _ in range(REPEATS)]
    return statistics.median(mine), statistics.median(peers) if peers else None


def peer_available() -> bool:
    try:
        import pytorch3d.renderer  # noqa: F401
    except Exception as error:
        print(f"pytorch3d does not work here: {error}")
        return False
    return True


def peer_pass(
    mesh: Mesh, camera: Camera, keep: int = 1, blur: float = 0.0
) -> Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """pytorch3d's own rasterize_meshes on the same pictures: faces, depths, barycentrics, distances."""
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    width, height = camera.size
    middle = mesh.vertices.new_tensor([width / 2, height / 2])

    def run() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        screen = Scene.separate(mesh).project(camera).reshape(len(mesh), -1, 3)
        ndc = torch.cat([(middle - screen[..., :2]) * (2 / min(width, height)), screen[..., 2:]], -1)
        return rasterize_meshes(
            Meshes(ndc, mesh.faces.expand(len(mesh), -1, -1)),
            image_size=(height, width),
            blur_radius=blur,
            faces_per_pixel=keep,
            perspective_correct=True,
            clip_barycentric_coords=keep > 1,
        )

    return run


def gradient(outputs: list[Tensor], vertices: Tensor, weights: list[Tensor]) -> Tensor:
    return torch.autograd.grad(outputs, vertices, weights)[0]


def hard(
    table: Table, name: str, mesh: Mesh, camera: Camera, targets: tuple[str, str], rounds: int, peer: bool
) -> None:
    """Rows for the forward pass, and for it and the gradients of depth and barycentrics."""
    device = mesh.vertices.device
    vertices = mesh.vertices.requires_grad_()
    ours = WARP.rasterize(mesh, camera)
    generator = torch.Generator(device).manual_seed(0)
    draw = lambda like: torch.randn(like.shape, generator=generator, device=device)  # noqa: E731
    seen = ours.face >= 0
    gz, gb = draw(ours.depth) * seen, draw(ours.barycentrics) * seen[..., None]
    note, theirs, theirs_both = "", None, None
    if peer:
        theirs = peer_pass(mesh, camera)
        face, depth, weights, _ = theirs()
        same = (face[..., 0] == ours.face) & seen
        equal = (face[..., 0] == ours.face).float().mean().item()
        off = (depth[..., 0] - ours.depth)[same].abs().max().item()
        gz, gb = gz * same, gb * same[..., None]
        one = gradient([ours.depth, ours.barycentrics], vertices, [gz, gb])
        two = gradient([depth[..., 0], weights[..., 0, :]], vertices, [gz, gb])
        apart = ((one - two).norm() / two.norm()).item()
        note = f"faces equal {equal:.4%}, depth within {off:.1e} m"
        gradients = f"gradients within {apart:.1e}"

        def theirs_both() -> None:
            _, depth, weights, _ = theirs()
            gradient([depth[..., 0], weights[..., 0, :]], vertices, [gz, gb])
    else:
        gradients = ""

    def both() -> None:
        fragments = WARP.rasterize(mesh, camera)
        gradient([fragments.depth, fragments.barycentrics], vertices, [gz, gb])

    with torch.no_grad():
        table.row(
            f"{name}, forward", *compare(lambda: WARP.rasterize(mesh, camera), theirs, rounds, device), targets[0], note
        )
    table.row(f"{name}, forward + backward", *compare(both, theirs_both, rounds, device), targets[1], gradients)


def soft(table: Table, mesh: Mesh, camera: Camera, rounds: int, peer: bool) -> None:
    """Rows for the soft silhouette: 20 faces a pixel, and all of them."""
    device = mesh.vertices.device
    vertices = mesh.vertices.requires_grad_()
    weight = torch.randn(len(mesh), *camera.size[::-1], device=device)
    twenty, every = SoftSettings(faces_per_pixel=20), SoftSettings()

    def run(settings: SoftSettings) -> Tensor:
        alpha = WARP.soft_silhouette(mesh, camera, settings)[:, 0]
        gradient([alpha], vertices, [weight])
        return alpha

    note, theirs = "", None
    if peer:
        from pytorch3d.renderer.blending import BlendParams, sigmoid_alpha_blend
        from pytorch3d.renderer.mesh.rasterizer import Fragments

        rasterize = peer_pass(mesh, camera, 20, twenty.reach**2)

        def theirs() -> Tensor:
            fragments = Fragments(*rasterize())
            colors = torch.ones(*fragments.zbuf.shape, 3, device=device)
            alpha = sigmoid_alpha_blend(colors, fragments, BlendParams(sigma=twenty.sigma))[..., 3]
            gradient([alpha], vertices, [weight])
            return alpha

        off = (run(twenty) - theirs()).abs().max().item()
        note = f"alpha within {off:.1e}"
    size = f"sphere {len(mesh.faces)} faces, {camera.size[0]}x{camera.size[1]}, batch {len(mesh)}"
    ours, peers = compare(lambda: run(twenty), theirs, rounds, device)
    table.row(f"{size}, soft K=20, fwd + bwd", ours, peers, "100x", note)
    fused = compare(lambda: run(every), None, rounds, device)[0]
    table.row(f"{size}, soft all faces, fwd + bwd", fused, peers, "", "(pytorch3d: 20 faces a pixel)")


def area(body: Mesh, rounds: int) -> None:
    """Gradient of the silhouette's area against central differences of the area counted on a fine grid."""
    device = body.vertices.device
    print("\nsilhouette area: gradient against central differences of the area on a grid of 4096 pixels")
    print(f"{'size':>6}{'error':>9}   by motion{'':<52}{'cost over a hard pass, fwd':>28}{'fwd + bwd':>11}")

    def counted(vertices: Tensor, size: int) -> Tensor:
        fine = 4096 // size
        camera = Camera.perspective(size * 1.5 * fine, (size * fine, size * fine)).to(device)
        return WARP.rasterize(Mesh(vertices, body.faces), camera).mask.double().sum() / fine**2

    for size in (128, 256, 512):
        errors: dict[str, list[tuple[float, float]]] = {}
        for turn in range(3):
            vertices = render_pictures.turned(body.vertices[:1], 0.4 + turn)
            for name, motion in motions(vertices, body.faces).items():
                step = 2e-3 * motion / motion.norm(dim=-1).mean()
                expected = (counted(vertices + step, size) - counted(vertices - step, size)).item() / 2
                moving = vertices.clone().requires_grad_()
                alpha = WARP.silhouette(
                    Mesh(moving, body.faces), Camera.perspective(size * 1.5, (size, size)).to(device)
                )
                (slope,) = torch.autograd.grad(alpha.sum(), moving)
                errors.setdefault(name, []).append(((slope * step).sum().item(), expected))
        relative = {name: _relative(pairs) for name, pairs in errors.items()}
        overall = _relative([pair for pairs in errors.values() for pair in pairs])
        mesh = Mesh(body.vertices.requires_grad_(), body.faces)
        camera = Camera.perspective(size * 1.5, (size, size), batch=len(body)).to(device)
        cost = [_cost(mesh, camera, backward, rounds) for backward in (False, True)]
        listed = ", ".join(f"{name} {error:.1%}" for name, error in relative.items())
        print(f"{size:>6}{overall:>9.1%}   {listed:<61}{cost[0]:>27.2f}x{cost[1]:>10.2f}x", flush=True)


def motions(vertices: Tensor, faces: Tensor) -> dict[str, Tensor]:
    """Ways a body moves that change its area: velocities of the vertices."""
    centred = vertices - vertices.mean(1, keepdim=True)
    axis = lambda i: torch.eye(3, device=vertices.device)[i]  # noqa: E731
    return {
        "fatter": vertex_normals(vertices[0], faces)[None],
        "larger": centred,
        "wider": centred * axis(0),
        "closer": -axis(2).expand_as(vertices),
    }


def _relative(pairs: list[tuple[float, float]]) -> float:
    ours, expected = (np.array(v) for v in zip(*pairs, strict=True))
    return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))


def _cost(mesh: Mesh, camera: Camera, backward: bool, rounds: int) -> float:
    device, shape = mesh.vertices.device, (len(mesh), *camera.size[::-1])
    weight, weights = torch.randn(shape, device=device), torch.randn(*shape, 3, device=device)

    def hard() -> None:
        fragments = WARP.rasterize(mesh, camera)
        if backward:
            gradient([fragments.depth, fragments.barycentrics], mesh.vertices, [weight, weights])

    def smooth() -> None:
        alpha = WARP.silhouette(mesh, camera)
        if backward:
            gradient([alpha[:, 0]], mesh.vertices, [weight])

    with torch.set_grad_enabled(backward):
        ours, base = compare(smooth, hard, rounds, device)
    return ours / base if base else math.nan


def large_overlay(body: Mesh, rounds: int, out: Path) -> None:
    device = body.vertices.device
    photo = np.full((4000, 6000, 3), 90, np.uint8)
    camera = Camera.perspective(6000.0, (6000, 4000)).to(device)
    single = Mesh(body.vertices[:1].detach(), body.faces)
    first = timed(lambda: overlay(photo, single, camera, WARP), device)
    median = statistics.median(timed(lambda: overlay(photo, single, camera, WARP), device) for _ in range(rounds))
    drawn = overlay(photo, single, camera, WARP)
    share = (drawn != photo).any(-1).mean()
    print(
        f"\noverlay of {len(body.faces)} faces on 6000x4000: {median:.2f} s (first {first:.2f} s), {share:.0%} covered"
    )
    render_pictures.save(out / "overlay_24mp_part.png", drawn[500:1100, 2600:3400])


START = """
import time
import torch
from recon_core.geometry.primitives import icosphere
from recon_core.structures import Camera, Mesh
imported = time.perf_counter()
from recon_std.renderers.warp import WarpRenderer
vertices, faces = icosphere(3)
mesh = Mesh((vertices + torch.tensor([0, 0, 3.0]))[None].to(DEVICE), faces.to(DEVICE))
camera = Camera.perspective(100.0, (96, 96)).to(DEVICE)
begun = time.perf_counter()
WarpRenderer().rasterize(mesh, camera)
drawn = time.perf_counter()
WarpRenderer().soft_silhouette(mesh, camera)
print(begun - imported, drawn - begun, time.perf_counter() - drawn)
"""


def start(device: torch.device) -> None:
    """Seconds from `import torch` to the first picture, with kernels to compile and with kernels kept."""
    print("\nstart: import of warp, first hard pass, first soft silhouette")
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm", "warm"):
            program = START.replace("DEVICE", repr(str(device)))
            environment = os.environ | {"WARP_CACHE_PATH": cache}
            done = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
            )
            print(f"  {name}: " + " + ".join(f"{float(v):.2f} s" for v in done.stdout.split()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Rendering speed and agreement.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="hard,soft,area,fit,overlay,start,pictures")
    parser.add_argument("--out", type=Path, default=Path("out/bench-render"))
    options = parser.parse_args()
    device, rounds, tasks = torch.device(options.device), options.rounds, options.only.split(",")
    options.out.mkdir(parents=True, exist_ok=True)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.processor() or 'CPU'}"
    print(
        f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, "
        f"seconds of {'the process' if _cpu_clock(device) else 'the wall clock'}"
    )
    body = render_pictures.standing_body(4).to(device)
    vertices, faces = icosphere(3)
    ball = Mesh((vertices * 0.8 + torch.tensor([0, 0, 3.0])).expand(8, -1, -1).clone().to(device), faces.to(device))
    small = Camera.perspective(160.0, (128, 128), batch=8).to(device)
    peer = peer_available()
    if {"hard", "soft"} & set(tasks):
        table = Table()
        if "hard" in tasks:
            camera = Camera.perspective(380.0, (256, 256), batch=4).to(device)
            name = f"body {len(body.faces)} faces, 256x256, batch 4"
            hard(table, name, body, camera, ("1000x", "600x"), rounds, peer)
            hard(table, "sphere 1280 faces, 128x128, batch 8", ball, small, ("80x", ""), rounds, peer)
        if "soft" in tasks:
            soft(table, ball, small, rounds, peer)
    if "area" in tasks:
        area(body, rounds)
    if "fit" in tasks:
        render_pictures.fit_sphere(WARP, body, options.out)
    if "overlay" in tasks:
        large_overlay(body, rounds, options.out)
    if "start" in tasks:
        start(device)
    if "pictures" in tasks:
        render_pictures.gallery(WARP, body, options.out)


if __name__ == "__main__":
    main()
