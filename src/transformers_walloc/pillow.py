"""Pictures in .walloc files through Pillow, and so through everything that reads pictures with it.

```python
import PIL.Image
import transformers_walloc.pillow  # registers

image = PIL.Image.open("photo.walloc")  # size and mode at once; the codec is loaded for the pixels
image.save("copy.walloc", codec="walloc/rgb-4x", bpp=1.0)
```
"""

import functools
import io
from typing import Any

import PIL.Image
import PIL.ImageFile

from .codec.bitstream import MAGIC, unpack
from .codec.varints import WallocFormatError
from .media.file_codec import FileCodec, codec_of

EXTENSION = ".walloc"
OPTIONS = ("codec", "step", "bpp", "psnr", "refine")


class WallocImageFile(PIL.ImageFile.ImageFile):
    """A picture of which the header is read; Pillow makes it when it opens a .walloc file."""

    format = "WALLOC"
    format_description = "WaLLoC"

    def _open(self) -> None:
        self._data: bytes | None = self.fp.read()  # type: ignore[union-attr]
        try:
            header, _ = unpack(self._data)
        except WallocFormatError as error:
            raise OSError(f"cannot read the .walloc file: {error}") from error
        if header.kind != "image" or header.raster or header.num_channels not in (1, 3):
            raise SyntaxError(f"the .walloc file holds {header.kind} that is no picture of Pillow's")
        self._size = (header.sizes[1], header.sizes[0])
        gray = header.num_channels == 1 or "gray" in header.sample_format
        deep = "16-bit" in header.sample_format
        alpha = header.read_side_data().alpha is not None
        mode = "L" if gray else "RGB"
        self._mode = "I;16" if gray and deep and not alpha else f"{mode}A" if alpha else mode
        self.info["codec"] = header.codec

    def load(self) -> Any:
        """Decode the pixels, when they are first needed."""
        if self._data is not None:
            header, _ = unpack(self._data)
            decoded = PIL.Image.open(io.BytesIO(_codec(codec_of(header)).decompress(self._data, "picture.png", header)))
            decoded.load()
            self.im, self._mode, self._data = decoded.im, decoded.mode, None
            self.info.update(decoded.info)
        return PIL.Image.Image.load(self)


def _save(image: PIL.Image.Image, file: Any, filename: str | bytes) -> None:
    options = {name: image.encoderinfo[name] for name in OPTIONS if name in image.encoderinfo}
    codec = options.pop("codec", "gray-16x" if image.mode in ("1", "L", "LA", "I;16") else "rgb-16x")
    form = "TIFF" if image.mode in ("CMYK", "YCbCr", "LAB") else "PNG"
    buffer = io.BytesIO()
    image.save(buffer, form, **{k: v for k, v in image.info.items() if k == "icc_profile"})
    file.write(_codec(codec).compress(f"picture.{form.lower()}", buffer.getvalue(), "image", **options))


def decode_webdataset(key: str, data: bytes) -> PIL.Image.Image | None:
    """For `webdataset.WebDataset(...).decode(decode_webdataset)`: pictures of the samples' .walloc files."""
    if not key.endswith(EXTENSION):
        return None
    image = PIL.Image.open(io.BytesIO(data))
    image.load()
    return image


@functools.lru_cache(maxsize=4)
def _codec(name: str) -> FileCodec:
    return FileCodec.from_pretrained(name)


PIL.Image.register_open(WallocImageFile.format, WallocImageFile, lambda prefix: prefix.startswith(MAGIC))
PIL.Image.register_save(WallocImageFile.format, _save)
PIL.Image.register_extension(WallocImageFile.format, EXTENSION)
PIL.Image.register_mime(WallocImageFile.format, "image/x-walloc")
