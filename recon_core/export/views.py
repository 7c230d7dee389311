"""Pictures of a result beside its overlay: from the side and above, normals, depth, lines, and uncertainty."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from recon_core.export.pictures import (
    depth_map,
    normal_map,
    overlay,
    scalar_colors,
    side_view,
    top_view,
    wireframe,
)
from recon_core.export.save import run_renderer
from recon_core.interfaces import Renderer
from recon_core.reconstruction import Reconstruction, vertex_spread_mm

VIEW_SIZE = (768, 768)
"""Of the side and top views, pixels; the others have the photo's size."""


def write_views(reconstruction: Reconstruction, folder: Path) -> list[Path]:
    """side.png, top.png, normals.png, depth.png, wireframe.png, and uncertainty.png where there are samples to tell
    it; nothing for a result without meshes."""
    meshes, camera = list(reconstruction.meshes().values()), reconstruction.camera
    if not meshes:
        return []
    renderer = run_renderer(reconstruction)
    pictures = {
        "side": side_view(meshes, renderer, VIEW_SIZE),
        "top": top_view(meshes, renderer, VIEW_SIZE),
        "normals": normal_map(meshes, camera, renderer),
        "depth": depth_map(meshes, camera, renderer),
        "wireframe": wireframe(reconstruction.photo, meshes, camera, renderer),
    }
    if (shown := uncertainty(reconstruction, renderer)) is not None:
        pictures["uncertainty"] = shown
    written = []
    for name, pixels in pictures.items():
        path = folder / f"{name}.png"
        Image.fromarray(pixels).save(path, compress_level=1)
        written.append(path)
    return written


def uncertainty(reconstruction: Reconstruction, renderer: Renderer) -> UInt8[np.ndarray, "G W 3"] | None:
    """The people over the photo, each vertex coloured by its spread over the samples (`vertex_spread_mm`); below it
    their common scale in millimetres. None without anybody who has two samples."""
    body_model = reconstruction.body_model
    if body_model is None:
        return None
    spread = {}
    with torch.no_grad():
        for i, person in enumerate(reconstruction.people):
            if person.samples is not None and person.samples.count > 1:
                spread[f"person_{i}"] = vertex_spread_mm(body_model, person.samples).cpu()
    if not spread:
        return None
    high = max(float(values.max()) for values in spread.values())
    meshes = reconstruction.meshes()
    colored = [
        dataclasses.replace(meshes[name], colors=scalar_colors(values, 0.0, high)) for name, values in spread.items()
    ]
    drawn = overlay(reconstruction.photo, colored, reconstruction.camera, renderer)
    return _with_scale(drawn, high)


def _with_scale(picture: UInt8[np.ndarray, "H W 3"], high: float) -> UInt8[np.ndarray, "G W 3"]:
    """The picture over a strip with a bar of `scalar_colors` from 0 to `high` millimetres."""
    height, width = picture.shape[:2]
    text = min(max(10, min(width, height) // 32), max(1, width // 4))
    bar, pad = min(12 * text, width - text), text // 2
    ramp = (scalar_colors(torch.linspace(0, 1, bar)[None], 0.0, 1.0)[0] * 255).round().to(torch.uint8).numpy()
    strip = np.full((2 * text + 2 * pad, width, 3), 255, np.uint8)
    strip[pad : pad + text, pad : pad + bar] = ramp
    image = Image.fromarray(np.concatenate([picture, strip]))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(text)
    below = height + pad + text
    draw.text((pad, below), "0", fill=(0, 0, 0), font=font)
    draw.text((pad + bar, below), f"± {high:.0f} mm", fill=(0, 0, 0), font=font, anchor="ra")
    return np.asarray(image)
