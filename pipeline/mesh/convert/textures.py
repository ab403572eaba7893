"""Finds, checks and combines the images of a scene: embedded, or beside the file and never outside its folder."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from pipeline.mesh.convert.places import file_beside
from pipeline.mesh.convert.scene import SceneImage

_MOST_BYTES = 1 << 28
_MOST_PIXELS = 16384 * 16384
# Image files of other formats become PNG. Only these decoders of Pillow see foreign bytes.
_FORMATS = ("PNG", "JPEG", "WEBP", "TGA", "BMP", "TIFF", "DDS", "GIF")


def image_bytes(image: SceneImage, folder: Path, stem: str) -> tuple[bytes, str] | str:
    """(bytes of a PNG or JPEG, its media type), or in words why there is none."""
    data = image.data
    if not data:
        path = file_beside(image.files, folder, stem)
        shown = next((name.replace("\\", "/").rsplit("/", 1)[-1] for name in image.files), image.name)[:60]
        if path is None:
            return f"the texture {shown!r}, which is neither in the file nor in its folder"
        try:
            if path.stat().st_size > _MOST_BYTES:
                return f"the texture {shown!r}, which is larger than {_MOST_BYTES >> 20} MiB"
            data = path.read_bytes()
        except OSError as error:
            return f"the texture {shown!r}, which cannot be read ({error.strerror or error})"
    shown = image.name[:60] or next(iter(image.files), "")[-60:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
                if opened.width * opened.height > _MOST_PIXELS:
                    return f"the texture {shown!r}, which has too many pixels"
                if opened.format in ("PNG", "JPEG"):
                    media = f"image/{opened.format.lower()}"
                    opened.load()
                    return data, media
                return _png(opened.convert("RGBA" if "A" in opened.getbands() else "RGB")), "image/png"
    except Exception:
        # Pillow's decoders raise nearly anything for damaged files.
        return f"the texture {shown!r}, which is damaged or of a format that cannot be read"


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _channel(data: bytes, channel: str) -> Image.Image:
    """One channel of an image as greys: r, g, b or a; "" means its brightness."""
    with _opened(data) as image:
        if channel in ("r", "g", "b", "a"):
            bands = image.convert("RGBA").split()
            return bands["rgba".index(channel)]
        return image.convert("L")


def metallic_roughness(metallic: tuple[bytes, str] | None, roughness: tuple[bytes, str] | None) -> bytes:
    """A PNG with roughness in green and metallic in blue, as glTF has it, from (image, channel) each; 255 for None."""
    channels = {name: _channel(*part) for name, part in (("b", metallic), ("g", roughness)) if part is not None}
    size = max((image.size for image in channels.values()), key=lambda size: size[0] * size[1])
    full = Image.new("L", size, 255)
    bands = [channels[name].resize(size) if name in channels else full for name in ("g", "b")]
    return _png(Image.merge("RGB", [full, *bands]))


def with_opacity(colour: bytes | None, opacity: bytes, channel: str) -> bytes:
    """A PNG with the colours of one image (white for None) and the opacity of another."""
    alpha = _channel(opacity, channel)
    if colour is None:
        image = Image.new("RGB", alpha.size, (255, 255, 255))
    else:
        with _opened(colour) as opened:
            image = opened.convert("RGB")
    image.putalpha(alpha.resize(image.size))
    return _png(image)


def has_alpha(data: bytes) -> bool:
    """Tells whether an image has pixels that are not opaque."""
    with _opened(data) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            return False
        low, _ = image.convert("RGBA").getchannel("A").getextrema()
        return bool(isinstance(low, int | float) and low < 255)
