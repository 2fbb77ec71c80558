"""Images by what names them: paths, URLs, base64, bytes, rows of `datasets`."""

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import PIL.Image
from transformers.utils import logging

from .image_colours import to_srgb
from .image_decoding import Picture, decode_picture, is_deep, open_image, picture_of, upright
from .size_limits import MAX_ENCODED_PIXELS

logger = logging.get_logger(__name__)


def open_source(source: str | Path | bytes | Mapping[str, Any]) -> PIL.Image.Image | Picture:
    """An image as Pillow has it, or where it has no mode for all bits of a file, a picture.

    Args:
        source: a path, an `http(s)` URL, base64, the bytes of a file, or a dict of `bytes` and `path`.

    Raises:
        ValueError: no image that can be read, or more than `MAX_ENCODED_PIXELS`; the message names it.
        TypeError: a dict of other things.
    """
    name, data = _read(source)
    notes = _Notes(name)
    try:
        try:
            image = open_image(data, MAX_ENCODED_PIXELS, notes)
        except ValueError:
            if not data.startswith((b"II", b"MM")):  # of TIFF there are kinds that Pillow does not know
                raise
            return decode_picture(data, MAX_ENCODED_PIXELS, notes)
        if is_deep(image, data):
            return picture_of(image, data, notes)
        return to_srgb(upright(image, notes), notes) if image.mode in ("L", "RGB", "RGBA") else image
    except ValueError as error:
        hint = ": open it with PIL.Image and pass that if there is enough memory" if "limit" in str(error) else ""
        raise ValueError(f"cannot read {name!r} as an image: {error}{hint}") from error


class _Notes(str):
    """What is lost of the file of this name goes to transformers' log."""

    def __call__(self, text: str) -> None:
        logger.warning(f"{self}: {text}")


def _read(source: str | Path | bytes | Mapping[str, Any]) -> tuple[str, bytes]:
    """A name for messages, and the bytes of a file."""
    if isinstance(source, bytes):
        return "bytes", source
    if isinstance(source, Mapping):
        name, data = source.get("path"), source.get("bytes")
        if data is None and name is None:
            raise TypeError(f"a dict of {', '.join(map(str, source))} is no image; valid: bytes and path")
        return (str(name or "bytes"), data) if data is not None else _read(str(name))
    name = str(source)
    if name.startswith(("http://", "https://")):
        with urlopen(Request(name, headers={"User-Agent": "transformers-walloc"}), timeout=60) as response:
            return name, response.read()
    if os.path.isfile(name):
        return name, Path(name).read_bytes()
    encoded = name.split(",", 1)[1] if name.startswith("data:image/") and "," in name else name
    name = name if len(name) < 80 else name[:77] + "..."
    try:
        return name, base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name!r} is no image: neither a file, nor an http(s) URL, nor base64") from error
