"""Small picture and video files of every kind that people bring, made in a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 46, 30


def ramp(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """[H, W, 3] in 0..1: red grows to the right, green downwards, blue is one half; no side like another."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.stack([x, y, np.full_like(x, 0.5)], axis=-1)


def rgb() -> Image.Image:
    return Image.fromarray((ramp() * 255).round().astype(np.uint8))


def rgba() -> Image.Image:
    """Opaque on the left; on the right fully transparent over magenta, which no viewer shows."""
    picture = rgb().convert("RGBA")
    picture.paste((255, 0, 255, 0), (WIDTH // 2, 0, WIDTH, HEIGHT))
    return picture


def grey16() -> Image.Image:
    return Image.fromarray((ramp()[..., 0] * 65535).round().astype(np.uint16))


def _turned(orientation: int) -> Callable[[Path], None]:
    """A JPEG that is stored otherwise than it is shown, as cameras do."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }[orientation]

    def save(path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        rgb().transpose(back).save(path, quality=100, subsampling=0, exif=exif)

    return save


def _palette(path: Path) -> None:
    picture = Image.new("P", (WIDTH, HEIGHT), 1)
    picture.putpalette([255, 0, 255, 0, 128, 0])
    picture.paste(0, (WIDTH // 2, 0, WIDTH, HEIGHT))
    picture.save(path, transparency=0)


def _wide_rgb(path: Path) -> None:
    """A PNG of 16 bits a colour, which Pillow cannot write."""
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb48be"
        values = (ramp() * 65535).round().astype(np.uint16)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="rgb48le").reformat(format="rgb48be")))
        container.mux(stream.encode())


PICTURES: dict[str, Callable[[Path], None]] = {
    "rgb.png": lambda path: rgb().save(path),
    "rgb16.png": _wide_rgb,
    "grey.png": lambda path: rgb().convert("L").save(path),
    "grey16.png": lambda path: grey16().save(path),
    "grey16.tiff": lambda path: grey16().save(path),
    "black-and-white.png": lambda path: rgb().convert("1").save(path),
    "rgba.png": lambda path: rgba().save(path),
    "grey-alpha.png": lambda path: rgba().convert("LA").save(path),
    "palette.png": _palette,
    "rgba.webp": lambda path: rgba().save(path, lossless=True, exact=True),
    "plain.jpg": lambda path: rgb().save(path, quality=100, subsampling=0),
    "mirrored.jpg": _turned(2),
    "upside-down.jpg": _turned(3),
    "clockwise.jpg": _turned(6),
    "anticlockwise.jpg": _turned(8),
    "rgb.bmp": lambda path: rgb().save(path),
}


def write_video(
    path: Path,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (64, 48),
    times: Sequence[float] = tuple(i / 16 for i in range(8)),
    *,
    turned: int = 0,
    colours: Callable[[int], np.ndarray] | None = None,
) -> Path:
    """Frames shown at these times in s, brighter from one to the next (blue grows by 25). turned: degrees
    clockwise that a player turns them by; only in MP4 and MOV. colours: number to [H, W, 3 or 4] of uint8.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        ticks = 16 if path.suffix == ".avi" else 1000  # an AVI's ticks are its frames
        stream.codec_context.time_base = Fraction(1, ticks)
        if codec == "libx264":
            stream.options = {"crf": "1", "bf": "0"}
        for number, time in enumerate(times):
            if colours is None:
                picture = (ramp(*size) * 255).astype(np.uint8)
                picture[..., 2] = 25 * number % 256
            else:
                picture = colours(number)
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[-1] == 4 else "rgb24")
            frame.pts, frame.time_base = round(time * ticks), Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if turned:
        _turn(path, turned)
    return path


def _turn(path: Path, degrees: int) -> None:
    """Set the matrix of the track's header, as telephones do."""
    one = 1 << 16
    a, b, c, d = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # version, times, track, duration, reserved, layer, volume
    for place, value in ((0, a), (1, b), (3, c), (4, d)):
        data[start + 4 * place : start + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
