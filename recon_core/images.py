"""Reading photos: every common file becomes upright 8-bit RGB, or one clear line about why it cannot.

Files are untrusted. Only decoders that run inside this process are allowed (Pillow's EPS reader, for one,
starts Ghostscript), and the size in a file's header is checked before anything is decoded.
"""

from __future__ import annotations

import errno
import glob
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from recon_core.errors import InputError

MAX_PIXELS = 100_000_000
"""Largest picture read, in pixels: four times the 24 megapixels of a large camera, 300 MB decoded."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)
"""Endings that a folder is searched for, in any case. A file named by itself may end in anything."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_DIAGONAL_35MM = math.hypot(36.0, 24.0)
_MM_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # EXIF FocalPlaneResolutionUnit


@dataclass(frozen=True)
class Photo:
    """A photo as read: upright 8-bit RGB.

    pixels: (H, W, 3) uint8. path: the file. focal_px: focal length in pixels of this picture if its EXIF
    tells, else None. size: (width, height) in pixels.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    path: Path
    focal_px: float | None
    size: tuple[int, int]


def load_image(path: str | Path) -> Photo:
    """Read a photo of any common kind.

    The EXIF orientation is applied. 16-bit grey is scaled by 1/257; floating point and 32-bit values are
    taken as 0 to 1, 0 to 255 or 0 to 65535, the first that holds them. Transparent pictures are laid on
    white. Of an animation the first frame is taken.

    Raises InputError for a file that is missing, a folder, empty, damaged, no picture, or over MAX_PIXELS.
    """
    path = Path(path)
    _check_readable(path)
    Image.init()  # idempotent; `formats` may name only loaded readers
    with warnings.catch_warnings():
        # MAX_PIXELS is checked below, and metadata that Pillow grumbles about is no matter for the pixels.
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=_FORMATS) as image:
                _check_size(path, image.size)
                tags = _exif(image)
                pixels = _upright(_rgb(image), tags.get("orientation"))
        except InputError:
            raise
        except UnidentifiedImageError:
            raise InputError(f"{path}: {_not_an_image(path)}") from None
        except Image.DecompressionBombError:
            raise InputError(
                f"{path}: over {MAX_PIXELS / 1e6:.0f} megapixels; give a smaller picture"
            ) from None
        except (
            Exception
        ) as error:  # decoders raise nearly anything (struct, zlib, Syntax, ...) on damaged files
            raise InputError(
                f"{path}: damaged or truncated picture ({_one_line(error)}); save it again"
            ) from error
    height, width = pixels.shape[:2]
    return Photo(pixels, path, _focal_px(tags, width, height), (width, height))


def find_images(
    inputs: Iterable[str | Path] | str | Path, on_error: Callable[[InputError], None] | None = None
) -> list[Path]:
    """The picture files meant by files, folders and glob patterns, each once, in the order given.

    Of a folder: the files directly inside with a name ending in SUFFIXES, sorted; hidden ones are left out.
    A pattern may hold `*`, `?`, `[...]` and `**`, and matches files with such an ending. A file named by
    itself is returned as it is: `load_image` says what is wrong with it.

    Raises InputError for a missing file, a folder without pictures and a pattern without match. With
    `on_error` the error is passed to it instead, and the other inputs are still looked at.
    """
    found: dict[Path, Path] = {}
    for item in [inputs] if isinstance(inputs, str | Path) else inputs:
        try:
            for path in _expand(item):
                found.setdefault(path.absolute(), path)
        except InputError as error:
            if on_error is None:
                raise
            on_error(error)
    return list(found.values())


def _expand(item: str | Path) -> list[Path]:
    path = Path(item)
    try:
        if path.is_dir():
            pictures = sorted(p for p in path.iterdir() if _is_picture(p))
            if not pictures:
                raise InputError(f"{path}: no pictures in this folder (looked for {_suffix_list()})")
            return pictures
        if path.exists():  # before globbing: photo[1].jpg is a usual name
            return [path]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if glob.has_magic(str(item)):
        matches = sorted(Path(p) for p in glob.glob(str(item), recursive=True))
        pictures = [p for p in matches if _is_picture(p)]
        if not pictures:
            raise InputError(f"{item}: no picture matches this pattern")
        return pictures
    raise InputError(f"{path}: no such file")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _suffix_list() -> str:
    return ", ".join(s[1:] for s in (".jpg", ".png", ".webp", ".tif", ".bmp", ".gif")) + " and the like"


def _check_readable(path: Path) -> None:
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, not a picture")
        if not path.is_file():
            raise InputError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path}: the file is empty")
    except OSError as error:
        reason = "permission denied" if error.errno == errno.EACCES else (error.strerror or str(error))
        raise InputError(f"{path}: cannot be read ({reason})") from None


def _check_size(path: Path, size: tuple[int, int]) -> None:
    pixels = size[0] * size[1]
    if pixels == 0:
        raise InputError(f"{path}: a picture without pixels ({size[0]}x{size[1]})")
    if pixels > MAX_PIXELS:
        raise InputError(
            f"{path}: {size[0]}x{size[1]} is over {MAX_PIXELS / 1e6:.0f} megapixels; give a smaller picture"
        )


def _not_an_image(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(32)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "HEIC pictures cannot be read; convert it to JPEG or PNG"
    return f"not a picture that can be read (known: {_suffix_list()})"


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    """The first frame as 8-bit RGB."""
    image.seek(0)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = np.nan_to_num(np.asarray(image).astype(np.float32))
        if image.mode.startswith("I;"):
            top = 65535.0
        else:
            top = next((t for t in (1.0, 255.0) if values.max() <= t), 65535.0)
        grey = np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.array(Image.alpha_composite(white, rgba).convert("RGB"))
    return np.array(image.convert("RGB"))


def _upright(pixels: np.ndarray, orientation: Any) -> np.ndarray:
    """Undo the EXIF orientation (1 to 8; anything else means upright)."""
    turned = {
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda p: np.rot90(p),
    }.get(orientation)
    return pixels if turned is None else np.ascontiguousarray(turned(pixels))


def _exif(image: Image.Image) -> dict[str, Any]:
    """The few EXIF entries used here; none when the block is absent or damaged."""
    try:
        exif = image.getexif()
        camera: Mapping[int, Any] = exif.get_ifd(0x8769)
        return {
            "orientation": exif.get(0x0112),
            "focal_mm": camera.get(0x920A),
            "focal_35mm": camera.get(0xA405),
            "plane_resolution": camera.get(0xA20E),
            "plane_unit": camera.get(0xA210, 2),
            "pixel_width": camera.get(0xA002),
            "stored_width": image.size[0],
        }
    except Exception:  # a damaged EXIF block makes no photo unreadable
        return {}


def _focal_px(tags: Mapping[str, Any], width: int, height: int) -> float | None:
    """Focal length in pixels from EXIF, or None.

    FocalLengthIn35mmFilm is an equivalent over the diagonal (CIPA DCG-001). Failing that, FocalLength with
    the pixel pitch of the sensor, corrected for a picture that was resized after it was taken.
    """
    diagonal = math.hypot(width, height)
    equivalent = _positive(tags.get("focal_35mm"))
    if equivalent:
        focal = equivalent * diagonal / _DIAGONAL_35MM
    else:
        focal_mm, resolution = _positive(tags.get("focal_mm")), _positive(tags.get("plane_resolution"))
        unit = _MM_PER_UNIT.get(tags.get("plane_unit"))  # type: ignore[arg-type]
        if not (focal_mm and resolution and unit):
            return None
        taken_width = _positive(tags.get("pixel_width")) or tags["stored_width"]
        focal = focal_mm * resolution / unit * tags["stored_width"] / taken_width
    # A fisheye is about 0.3 diagonals and a long telephoto lens 15; anything else is a wrong tag.
    return focal if 0.2 * diagonal <= focal <= 30 * diagonal else None


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None
