"""Every common kind of picture is read; everything else is one clear line."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon_core.errors import InputError
from recon_core.images import MAX_PIXELS, find_images, load_image


@pytest.fixture
def picture() -> np.ndarray:
    """6 rows, 8 columns, every pixel another colour."""
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def test_a_photo_is_upright_rgb_with_its_size(tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    photo = load_image(str(tmp_path / "a.png"))
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.flags.c_contiguous
    assert photo.pixels.flags.writeable
    np.testing.assert_array_equal(photo.pixels, picture)
    assert (photo.size, photo.path, photo.focal_px) == ((8, 6), tmp_path / "a.png", None)


@pytest.mark.parametrize("extension", ["png", "tif", "bmp", "ppm", "webp", "jp2", "avif", "gif", "jpg"])
def test_every_common_format(tmp_path: Path, picture: np.ndarray, extension: str) -> None:
    smooth = np.asarray(Image.fromarray(picture).resize((64, 48), Image.Resampling.BICUBIC))
    path = tmp_path / f"a.{extension}"
    Image.fromarray(smooth).save(path, **({"lossless": True} if extension == "webp" else {}))
    found = load_image(path).pixels
    exact = extension in ("png", "tif", "bmp", "ppm", "webp", "jp2")
    assert np.abs(found.astype(int) - smooth).mean() <= (0 if exact else 12)


@pytest.mark.parametrize(
    ("mode", "extension"),
    [("L", "png"), ("1", "png"), ("1", "tif"), ("LA", "png"), ("P", "gif"), ("PA", "tif"), ("RGBA", "png")]
    + [
        ("CMYK", "jpg"),
        ("CMYK", "tif"),
        ("YCbCr", "tif"),
        ("I;16", "png"),
        ("I;16", "tif"),
        ("F", "tif"),
        ("I", "tif"),
    ],
)
def test_every_mode_keeps_the_picture(tmp_path: Path, picture: np.ndarray, mode: str, extension: str) -> None:
    smooth = Image.fromarray(picture).resize((64, 48), Image.Resampling.BICUBIC)
    grey = np.asarray(smooth.convert("L"))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image = smooth.convert(mode)
    path = tmp_path / f"a.{extension}"
    image.save(path)
    found = load_image(path).pixels
    assert found.shape == (48, 64, 3)
    if mode in ("L", "LA", "I;16", "F", "I"):
        np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, 2))
    else:
        expected = np.asarray(smooth.convert(mode).convert("RGB")).astype(int)
        assert np.abs(found.astype(int) - expected).mean() < 6


def test_16_bit_colour(tmp_path: Path) -> None:
    """Pillow cannot write it, so the file is put together here: 2 x 1 pixels, red and half green."""
    rows = b"\0" + struct.pack(">6H", 65535, 0, 0, 0, 32896, 0)
    path = tmp_path / "deep.png"
    path.write_bytes(_png(2, 1, depth=16, colour=2, rows=rows))
    np.testing.assert_array_equal(load_image(path).pixels, [[[255, 0, 0], [0, 128, 0]]])


def test_transparent_pictures_are_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 128, 255
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(load_image(tmp_path / "rgba.png").pixels[0, :, 0], [255, 127, 0])
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.gif", transparency=0)
    np.testing.assert_array_equal(load_image(tmp_path / "palette.gif").pixels, [[[255] * 3, [40, 50, 60]]])
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    np.testing.assert_array_equal(load_image(tmp_path / "key.png").pixels, [[[255] * 3, [4, 5, 6]]])


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (200, 0, 0)), Image.new("RGB", (4, 4), (0, 200, 0))]
    for extension in ("gif", "webp", "png"):
        path = tmp_path / f"a.{extension}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert load_image(path).pixels[0, 0].argmax() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, picture: np.ndarray, orientation: int) -> None:
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, 1),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    photo = load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.pixels, picture)
    assert photo.size == (8, 6)


def _with_exif(path: Path, size: tuple[int, int], camera: dict[int, object], orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769).update(camera)
    Image.new("RGB", size).save(path, exif=exif)
    return path


def test_focal_length_from_exif(tmp_path: Path) -> None:
    """50 mm on a 36 x 24 mm frame 1,500 pixels wide is 50 / 36 * 1500 pixels, whichever entries tell it."""
    expected = 50 / 36 * 1500
    by_equivalent = _with_exif(tmp_path / "a.jpg", (1500, 1000), {0xA405: 50})
    assert load_image(by_equivalent).focal_px == pytest.approx(expected)
    # 3,000 pixels over 36 mm when taken, stored in pixels per cm; made half as large later.
    sensor = {0x920A: 50.0, 0xA20E: 3000 / 3.6, 0xA210: 3, 0xA002: 3000}
    assert load_image(_with_exif(tmp_path / "b.jpg", (1500, 1000), sensor)).focal_px == pytest.approx(
        expected, rel=1e-3
    )
    turned = load_image(_with_exif(tmp_path / "c.jpg", (1500, 1000), {**sensor}, orientation=6))
    assert turned.size == (1000, 1500)
    assert turned.focal_px == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "camera", [{}, {0xA405: 0}, {0xA405: 1}, {0x920A: 50.0}, {0x920A: 50.0, 0xA20E: 0.0, 0xA210: 3}]
)
def test_focal_length_that_is_missing_or_nonsense(tmp_path: Path, camera: dict[int, object]) -> None:
    assert load_image(_with_exif(tmp_path / "a.jpg", (150, 100), camera)).focal_px is None


def test_damaged_exif_harms_no_photo(tmp_path: Path, picture: np.ndarray) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(picture).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert load_image(path).size == (8, 6)


def test_24_megapixels_and_one_pixel(tmp_path: Path) -> None:
    Image.new("L", (6000, 4000), 7).save(tmp_path / "large.png")
    assert load_image(tmp_path / "large.png").pixels.shape == (4000, 6000, 3)
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "small.png")
    np.testing.assert_array_equal(load_image(tmp_path / "small.png").pixels, [[[1, 2, 3]]])


def _png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG file of any header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _bad_files(folder: Path) -> dict[str, Path]:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.jpg")
    Image.fromarray(noise).save(folder / "whole.png")
    files = {
        "no such file": folder / "missing.jpg",
        "is a folder": folder / "folder.jpg",
        "the file is empty": folder / "empty.jpg",
        "damaged or truncated": folder / "half.jpg",
        "truncated": folder / "half.png",
        "not a picture": folder / "text.jpg",
        "HEIC": folder / "phone.heic",
        "over 100 megapixels": folder / "bomb.png",
        "megapixels": folder / "large.png",
    }
    (folder / "folder.jpg").mkdir()
    (folder / "empty.jpg").touch()
    (folder / "half.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:1500])
    (folder / "half.png").write_bytes((folder / "whole.png").read_bytes()[:3000])
    (folder / "text.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    (folder / "bomb.png").write_bytes(_png(60_000, 60_000))
    (folder / "large.png").write_bytes(_png(12_000, 8_400))
    return files


@pytest.mark.parametrize("kind", range(9))
def test_what_cannot_be_read_is_one_line_naming_the_file(tmp_path: Path, kind: int) -> None:
    expected, path = list(_bad_files(tmp_path).items())[kind]
    with pytest.raises(InputError) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damage_anywhere_in_a_file_is_an_input_error_or_a_picture(tmp_path: Path) -> None:
    """Files with bytes changed at random raise nothing but InputError."""
    generator = np.random.default_rng(2)
    gradient = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)[..., None].repeat(3, 2)
    for extension in ("jpg", "png", "gif", "tif", "bmp", "webp", "jp2"):
        path = tmp_path / f"a.{extension}"
        Image.fromarray(gradient).save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(30):
            damaged = whole.copy()
            damaged[generator.integers(0, len(whole), 5)] = generator.integers(0, 256, 5)
            path.write_bytes(damaged[: generator.integers(len(whole) // 2, len(whole) + 1)].tobytes())
            with contextlib.suppress(InputError):
                assert load_image(path).pixels.shape[2] == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match="not a regular file"):
        load_image(tmp_path / "pipe.jpg")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "c[1].jpg", ".hidden.jpg", "sub/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "none").mkdir()
    return tmp_path


def test_files_folders_and_patterns(album: Path) -> None:
    names = lambda *inputs: [p.relative_to(album).as_posix() for p in find_images(inputs)]  # noqa: E731
    assert names(album) == ["a.png", "b.JPG", "c[1].jpg"]
    assert names(f"{album}/*.png") == ["a.png"]
    assert names(f"{album}/**/*.webp") == ["sub/d.webp"]
    assert names(f"{album}/c[1].jpg") == ["c[1].jpg"]
    assert names(album / "b.JPG", album) == ["b.JPG", "a.png", "c[1].jpg"]
    assert names(album / "notes.txt") == ["notes.txt"]
    assert find_images(album / "a.png") == [album / "a.png"]


@pytest.mark.parametrize(
    ("name", "expected"), [("none", "no pictures"), ("*.tif", "no picture matches"), ("x.jpg", "no such file")]
)
def test_inputs_without_pictures(album: Path, name: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        find_images([album / name])
    errors: list[InputError] = []
    assert find_images([album / name, album / "a.png"], on_error=errors.append) == [album / "a.png"]
    assert len(errors) == 1
    assert str(album / name) in str(errors[0])


def test_reading_photos_imports_no_torch() -> None:
    code = "import sys, recon_core.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_limit_leaves_room_for_large_cameras() -> None:
    assert MAX_PIXELS >= 4 * 24_000_000
