"""The files beside a published checkpoint: its prototype and its options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recon_core.errors import AssetError


def read_prototype(path: Path, vertices: int) -> dict[str, Tensor]:
    """vertices (V, 3), y up, z to the front; faces (F, 3); uv (T, 2), v up; uv_faces (F, 3), of an .obj file.

    Raises AssetError naming the file: one that is missing or damaged, has another number of vertices, a face that is no
    triangle or has no texture coordinates, or is not closed.
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        points, uv = (
            [[float(w) for w in words[1:n]] for words in lines if words[:1] == [kind]]
            for kind, n in (("v", 4), ("vt", 3))
        )
        corners = [[corner.split("/") for corner in words[1:]] for words in lines if words[:1] == ["f"]]
        if not corners:
            raise ValueError("it has no faces; is it cut off?")
        if any(len(face) != 3 or any(len(corner) < 2 or not corner[1] for corner in face) for face in corners):
            raise ValueError("a face is no triangle with texture coordinates")
        faces, uv_faces = (torch.tensor([[int(corner[k]) for corner in face] for face in corners]) - 1 for k in (0, 1))
        made = {"vertices": torch.tensor(points), "faces": faces, "uv": torch.tensor(uv), "uv_faces": uv_faces}
        if made["vertices"].shape != (vertices, 3):
            raise ValueError(f"it has {len(points)} vertices, the checkpoint is for {vertices}")
        for of, into in ((faces, points), (uv_faces, uv)):
            if not 0 <= int(of.min()) <= int(of.max()) < len(into):
                raise ValueError("a face names a vertex that is not there")
        if len(faces) != 2 * vertices - 4:
            raise ValueError(f"it has {len(faces)} faces, a closed surface of so many vertices {2 * vertices - 4}")
    except OSError as error:
        raise AssetError(
            f"{path}: cannot be read ({error.strerror}); the checkpoint needs the prototype that was published with it"
        ) from None
    except (ValueError, IndexError, RuntimeError) as error:
        raise AssetError(f"{path}: not the prototype of a CASL checkpoint ({error})") from None
    return made


def read_options(checkpoint: Path) -> dict[str, Any]:
    """height and width of the pictures read, distance and elevation (degrees) from and to, from the `opts.yaml` beside
    the checkpoint or one folder up.

    Raises AssetError naming the file when it is missing, lacks an option, or tells of a network that recon has not.
    """
    places = [folder / "opts.yaml" for folder in (checkpoint.parent, checkpoint.parent.parent)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise AssetError(f"{places[0]}: missing; the checkpoint needs the options that were published with it")
    try:
        found = dict(re.findall(r"^(\w+):[ \t]*(.*?)[ \t]*$", path.read_text(encoding="utf-8"), re.MULTILINE))
        value = {
            name: found[name].strip("'\"") for name in ("ratio", "imageSize", "azi_scope", "elev_range", "dist_range")
        }
        width, ratio = int(value["imageSize"]), int(value["ratio"])
        distance, elevation = ([float(v) for v in value[name].split("~")] for name in ("dist_range", "elev_range"))
        if width not in (64, 128) or ratio not in (1, 2) or float(value["azi_scope"]) != 360:
            raise ValueError(f"imageSize {width}, ratio {ratio}, azi_scope {value['azi_scope']} are not known")
        if not (len(distance) == len(elevation) == 2 and 0 < distance[0] < distance[1] and elevation[0] < elevation[1]):
            raise ValueError("dist_range and elev_range are not of the form 2~6")
    except KeyError as error:
        raise AssetError(f"{path}: has no option {error.args[0]}; is it the checkpoint's?") from None
    except (OSError, ValueError) as error:
        raise AssetError(f"{path}: not options of a CASL checkpoint ({error})") from None
    return {"height": width * ratio, "width": width, "distance": distance, "elevation": elevation}
