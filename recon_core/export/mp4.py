"""turntable.mp4: the turntable as H.264 video, which PyAV encodes (extra `video`)."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from recon_core.errors import UsageError
from recon_core.export.turntable import SECONDS, turntable_of
from recon_core.reconstruction import Reconstruction

try:
    import av
except ImportError as error:
    raise UsageError(
        "a video needs PyAV: pip install 'recon-core[video]', or take --format gif in place of mp4"
    ) from error

FRAMES_A_SECOND = 30
_QUALITY = "18"
"""x264's constant rate factor: 0 is lossless, 18 looks so."""


def write_mp4(reconstruction: Reconstruction, folder: Path) -> list[Path]:
    """turntable.mp4, one turn; nothing for a result without meshes."""
    path = folder / "turntable.mp4"
    frames = turntable_of(reconstruction, round(SECONDS * FRAMES_A_SECOND))
    first = next(frames, None)
    if first is None:
        return []
    with av.open(str(path), "w", options={"movflags": "faststart"}) as video:
        stream = video.add_stream("libx264", rate=Fraction(FRAMES_A_SECOND), options={"crf": _QUALITY})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"  # what browsers play
        for frame in (first, *frames):
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode())
    return [path]
