"""Small files of every kind, each with what it shows or holds, computed from the samples it was made of."""

import importlib.util
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageCms
import skimage.data
import soundfile
import tifffile
from codec_fixtures import sound

HEIGHT, WIDTH = 64, 96


@dataclass
class PictureFile:
    """Args:
    suffix, data: the file.
    colours: (height, width, 3) in 0..1, straight, upright, in sRGB or the colours of the profile.
    alpha: (height, width) in 0..1, or None.
    tolerance: levels of 8 bits by which readers may differ, for conversions of colours.
    """

    suffix: str
    data: bytes
    colours: np.ndarray
    alpha: np.ndarray | None = None
    tolerance: float = 0.51
    profile: bool = False
    pages: int = 1

    @property
    def on_white(self) -> np.ndarray:
        """(height, width, 3) in 0..255: what a viewer shows on a white page."""
        if self.alpha is None:
            return 255 * self.colours
        return 255 * (self.colours * self.alpha[..., None] + 1 - self.alpha[..., None])


@dataclass
class AudioFile:
    """Args:
    suffix, data: the file.
    clip: (channels, length) floats.
    rate: in Hz.
    tolerance: of samples; None where the format is lossy and only the length and the level count.
    """

    suffix: str
    data: bytes
    clip: np.ndarray
    rate: int = 44100
    tolerance: float | None = 2e-4


def photo() -> np.ndarray:
    """(64, 96, 3) uint8, smooth, with no two edges alike."""
    image = PIL.Image.fromarray(skimage.data.astronaut()[0:384, 30 : 606 - 64])
    return np.asarray(image.resize((WIDTH, HEIGHT), PIL.Image.Resampling.BOX))


def deep_photo() -> np.ndarray:
    """The same with 16 bits, whose low bytes are not the high ones."""
    return (photo().astype(np.uint16) << 8) + np.arange(HEIGHT * WIDTH * 3, dtype=np.uint16).reshape(
        HEIGHT, WIDTH, 3
    ) % 256


def alpha_plane() -> np.ndarray:
    """(64, 96) uint8 from transparent on the left to opaque."""
    return np.broadcast_to(np.clip(np.arange(WIDTH) * 4 - 40, 0, 255).astype(np.uint8), (HEIGHT, WIDTH)).copy()


def luma(colours: np.ndarray) -> np.ndarray:
    return colours @ np.array([0.299, 0.587, 0.114])


def gray_photo() -> np.ndarray:
    return np.rint(luma(photo().astype(float))).astype(np.uint8)


def deep_gray() -> np.ndarray:
    return (gray_photo().astype(np.uint16) << 8) + np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(
        HEIGHT, WIDTH
    ) % 256


def as_colours(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


def pillow(pixels, suffix: str, mode: str | None = None, **options) -> bytes:
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, PIL.Image.registered_extensions()[suffix], **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **{"metadata": None, **options})
    return file.getvalue()


def png16(bands: np.ndarray) -> bytes:
    """By hand: (H, W, bands) uint16 without filters."""
    height, width, count = bands.shape
    rows = bands.astype(">u2").tobytes()
    line = width * count * 2
    raw = b"".join(b"\0" + rows[i * line : (i + 1) * line] for i in range(height))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[count]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    parts = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What is stored so that the orientation (EXIF 2.3, table 6) makes `pixels` of it."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels.swapaxes(0, 1)[::-1],
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels.swapaxes(0, 1)[:, ::-1],
    }[orientation]


def oriented(orientation: int) -> PictureFile:
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    stored = np.ascontiguousarray(turned(photo(), orientation))
    return PictureFile(".png", pillow(stored, ".png", exif=exif), photo() / 255)


def oriented_tiff(orientation: int, pixels: np.ndarray) -> PictureFile:
    stored = np.ascontiguousarray(turned(pixels, orientation))
    tag = [(274, 3, 1, orientation, True)]
    data = tiff(stored, photometric="rgb", extratags=tag)
    return PictureFile(".tif", data, pixels / np.iinfo(pixels.dtype).max)


def palette(transparent: bool) -> PictureFile:
    image = PIL.Image.fromarray(photo()).quantize(64)
    colours = np.array(image.getpalette()[: 3 * 64]).reshape(-1, 3)[np.asarray(image)] / 255
    if not transparent:
        return PictureFile(".png", pillow(image, ".png"), colours)
    levels = bytes([0, 100] + [255] * 62)
    alpha = np.frombuffer(levels, np.uint8)[np.asarray(image)] / 255
    return PictureFile(".png", pillow(image, ".png", transparency=levels), colours, alpha)


def palette_tiff() -> PictureFile:
    image = PIL.Image.fromarray(photo()).quantize(256)
    table = np.zeros((256, 3), np.uint16)
    table[:] = np.array(image.getpalette()).reshape(256, 3) * 257
    data = tiff(np.asarray(image), photometric="palette", colormap=table.T)
    return PictureFile(".tif", data, table[np.asarray(image)] / 65535)


def cmyk(suffix: str) -> PictureFile:
    """Without a profile: (1 - C)(1 - K), as Pillow, browsers and the PostScript reference manual have it."""
    ink = np.dstack([255 - photo(), np.full((HEIGHT, WIDTH), 40, np.uint8)])
    share = 1 - ink / 255
    image = PIL.Image.fromarray(ink, "CMYK")
    options = {"quality": 100} if suffix == ".jpg" else {}
    tolerance = 2.5 if suffix == ".jpg" else 1.01
    return PictureFile(suffix, pillow(image, suffix, **options), share[..., :3] * share[..., 3:], tolerance=tolerance)


def wide_gamut() -> PictureFile:
    profile = wide_profile()
    return PictureFile(".png", pillow(photo(), ".png", icc_profile=profile), photo() / 255, profile=True)


def wide_profile() -> bytes:
    """An RGB profile that is not sRGB: linear light with sRGB's primaries swapped, made by hand (ICC.1:2010)."""

    def s15(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + s15(*values)

    text = b"Wide test"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(1.8 * 256)) + b"\0\0"
    tags = {
        b"desc": description,
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.7977, 0.2880, 0.0),  # ProPhoto's primaries
        b"gXYZ": xyz(0.1352, 0.7119, 0.0),
        b"bXYZ": xyz(0.0313, 0.0001, 0.8249),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
        b"cprt": b"text\0\0\0\0none\0",
    }
    position, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", position + len(body), len(content))
        body += content
    size = position + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12)
    header += b"acsp" + bytes(28) + s15(0.9642, 1.0, 0.8249) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + body


def in_srgb(colours: np.ndarray) -> np.ndarray:
    """Colours of `wide_profile` as sRGB, in 0..1: its formulas by hand, with Bradford's matrix from D50 to sRGB."""
    linear = colours**1.8
    to_xyz = np.array([[0.7977, 0.1352, 0.0313], [0.2880, 0.7119, 0.0001], [0.0, 0.0, 0.8249]])
    to_srgb = np.array(
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    )
    light = np.clip(linear @ to_xyz.T @ to_srgb.T, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def animation() -> PictureFile:
    frames = [PIL.Image.fromarray(photo()), PIL.Image.fromarray(255 - photo())]
    data = pillow(frames[0], ".webp", save_all=True, append_images=frames[1:], lossless=True)
    return PictureFile(".webp", data, photo() / 255, pages=2)


def pages() -> PictureFile:
    frames = [PIL.Image.fromarray(photo()), PIL.Image.fromarray(255 - photo())]
    return PictureFile(
        ".tif", pillow(frames[0], ".tif", save_all=True, append_images=frames[1:]), photo() / 255, pages=2
    )


def _rgba8() -> np.ndarray:
    return np.dstack([photo(), alpha_plane()])


def _deep_alpha() -> np.ndarray:
    return alpha_plane().astype(np.uint16) * 257


def _premultiplied(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    top = np.iinfo(colours.dtype).max
    return np.rint(colours.astype(float) * alpha[..., None] / top).astype(colours.dtype)


def premultiplied(colours: np.ndarray, alpha: np.ndarray) -> PictureFile:
    top = np.iinfo(colours.dtype).max
    stored = _premultiplied(colours, alpha)
    data = tiff(np.dstack([stored, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    opacity = alpha / top
    straight = np.clip(stored / top / np.maximum(opacity, 1e-9)[..., None], 0, 1)
    return PictureFile(".tif", data, straight, opacity, tolerance=1.01)


def unassociated(colours: np.ndarray, alpha: np.ndarray) -> PictureFile:
    top = np.iinfo(colours.dtype).max
    data = tiff(np.dstack([colours, alpha]), photometric="rgb", extrasamples=["unassalpha"])
    return PictureFile(".tif", data, colours / top, alpha / top)


def extra_band(colours: np.ndarray) -> PictureFile:
    infrared = np.ascontiguousarray(colours[::-1, :, 0])
    infrared[:8] = 0
    data = tiff(np.dstack([colours, infrared]), photometric="rgb", extrasamples=["unspecified"])
    return PictureFile(".tif", data, colours / np.iinfo(colours.dtype).max)


def lzw(colours: np.ndarray) -> PictureFile:
    return PictureFile(".tif", tiff(colours, photometric="rgb", compression="lzw", predictor=True), colours / 65535)


def white_is_zero(gray: np.ndarray) -> PictureFile:
    top = np.iinfo(gray.dtype).max
    return PictureFile(".tif", tiff(top - gray, photometric="miniswhite"), as_colours(gray / top))


def bilevel() -> PictureFile:
    bits = gray_photo() > 100
    return PictureFile(".png", pillow(PIL.Image.fromarray(bits), ".png"), as_colours(bits.astype(float)))


PICTURES: dict[str, Callable[[], PictureFile]] = {
    "L": lambda: PictureFile(".png", pillow(gray_photo(), ".png"), as_colours(gray_photo() / 255)),
    "LA": lambda: PictureFile(
        ".png",
        pillow(PIL.Image.fromarray(np.dstack([gray_photo(), alpha_plane()]), "LA"), ".png"),
        as_colours(gray_photo() / 255),
        alpha_plane() / 255,
    ),
    "P": lambda: palette(False),
    "PA": lambda: palette(True),
    "RGB": lambda: PictureFile(".png", pillow(photo(), ".png"), photo() / 255),
    "RGBA": lambda: PictureFile(".png", pillow(_rgba8(), ".png"), photo() / 255, alpha_plane() / 255),
    "CMYK TIFF": lambda: cmyk(".tif"),
    "CMYK JPEG": lambda: cmyk(".jpg"),
    "1-bit": bilevel,
    "I;16": lambda: PictureFile(".png", pillow(deep_gray(), ".png"), as_colours(deep_gray() / 65535)),
    "I;16 TIFF": lambda: PictureFile(".tif", tiff(deep_gray()), as_colours(deep_gray() / 65535)),
    "16-bit RGB": lambda: PictureFile(".png", png16(deep_photo()), deep_photo() / 65535),
    "16-bit RGBA": lambda: PictureFile(
        ".png", png16(np.dstack([deep_photo(), _deep_alpha()])), deep_photo() / 65535, alpha_plane() / 255
    ),
    "16-bit LA": lambda: PictureFile(
        ".png", png16(np.dstack([deep_gray(), _deep_alpha()])), as_colours(deep_gray() / 65535), alpha_plane() / 255
    ),
    "16-bit RGB TIFF": lambda: PictureFile(".tif", tiff(deep_photo(), photometric="rgb"), deep_photo() / 65535),
    "float TIFF": lambda: PictureFile(
        ".tif", tiff((gray_photo() / 255).astype(np.float32)), as_colours(gray_photo() / 255)
    ),
    "white is zero": lambda: white_is_zero(gray_photo()),
    "16-bit white is zero": lambda: white_is_zero(deep_gray()),
    "premultiplied": lambda: premultiplied(photo(), alpha_plane()),
    "16-bit premultiplied": lambda: premultiplied(deep_photo(), _deep_alpha()),
    "unassociated": lambda: unassociated(photo(), alpha_plane()),
    "16-bit unassociated": lambda: unassociated(deep_photo(), _deep_alpha()),
    "extra band": lambda: extra_band(photo()),
    "16-bit extra band": lambda: extra_band(deep_photo()),
    "palette TIFF": palette_tiff,
    "planar": lambda: PictureFile(
        ".tif",
        tiff(np.ascontiguousarray(photo().transpose(2, 0, 1)), photometric="rgb", planarconfig="separate"),
        photo() / 255,
    ),
    "16-bit planar": lambda: PictureFile(
        ".tif",
        tiff(np.ascontiguousarray(deep_photo().transpose(2, 0, 1)), photometric="rgb", planarconfig="separate"),
        deep_photo() / 65535,
    ),
    "tiled": lambda: PictureFile(".tif", tiff(photo(), photometric="rgb", tile=(32, 32)), photo() / 255),
    "16-bit tiled": lambda: PictureFile(
        ".tif", tiff(deep_photo(), photometric="rgb", tile=(32, 32), compression="zlib"), deep_photo() / 65535
    ),
    "LZW": lambda: PictureFile(".tif", pillow(photo(), ".tif", compression="tiff_lzw"), photo() / 255),
    **({"16-bit LZW": lambda: lzw(deep_photo())} if importlib.util.find_spec("imagecodecs") else {}),
    **{f"orientation {i}": (lambda i=i: oriented(i)) for i in range(1, 9)},
    "TIFF orientation 6": lambda: oriented_tiff(6, photo()),
    "16-bit TIFF orientation 5": lambda: oriented_tiff(5, deep_photo()),
    "wide gamut": wide_gamut,
    "animation": animation,
    "pages": pages,
}


def sound_file(subtype: str, suffix: str = ".wav", channels: int = 2, tolerance: float | None = 2e-4) -> AudioFile:
    clip = sound(0.5, channels)
    return AudioFile(suffix, encoded(clip, suffix, subtype), clip, tolerance=tolerance)


def encoded(clip: np.ndarray, suffix: str = ".wav", subtype: str | None = None, rate: int = 44100, **options) -> bytes:
    file = io.BytesIO()
    form = {".ogg": "OGG", ".opus": "OGG", ".aif": "AIFF"}.get(suffix, suffix[1:].upper())
    soundfile.write(file, clip.T, rate, subtype, format=form, **options)
    return file.getvalue()


def flac_of_unknown_length() -> AudioFile:
    clip = sound(0.5)
    data = bytearray(encoded(clip, ".flac", "PCM_16"))
    position = 4 + 4 + 13  # of STREAMINFO: the low four bits of this byte and four bytes more count the samples
    data[position] &= 0xF0
    data[position + 1 : position + 5] = bytes(4)
    return AudioFile(".flac", bytes(data), clip)


def chained_ogg() -> AudioFile:
    first, second = sound(0.5, seed=1), sound(0.5, seed=2)
    data = encoded(first, ".ogg", "VORBIS") + encoded(second, ".ogg", "VORBIS")
    return AudioFile(".ogg", data, np.concatenate([first, second], 1), tolerance=None)


def joined_mp3() -> AudioFile:
    first, second = sound(1.0, seed=1), sound(1.0, seed=2)
    data = encoded(first, ".mp3", "MPEG_LAYER_III") + encoded(second, ".mp3", "MPEG_LAYER_III")
    return AudioFile(".mp3", data, np.concatenate([first, second], 1), tolerance=None)


def mp3_without_header() -> AudioFile:
    """Variable rate, and a quiet start, from which a reader that counts bytes concludes wrongly."""
    noise = np.random.default_rng(0).standard_normal((2, 88200)).astype(np.float32)
    clip = np.concatenate([1e-4 * noise, 0.2 * noise, 0 * noise], 1)
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.2}
    data = encoded(clip, ".mp3", "MPEG_LAYER_III", **options)
    assert data[36:40] in (b"Xing", b"Info")
    second = data.index(data[:2], 40)
    return AudioFile(".mp3", data[second:], clip, tolerance=None)


def unfinished_wav(size: int) -> AudioFile:
    clip = sound(0.5)
    data = bytearray(encoded(clip, ".wav", "PCM_16"))
    struct.pack_into("<I", data, 4, size)
    struct.pack_into("<I", data, data.index(b"data") + 4, size)
    return AudioFile(".wav", bytes(data), clip)


SOUNDS: dict[str, Callable[[], AudioFile]] = {
    "mono": lambda: sound_file("PCM_16", channels=1),
    "stereo": lambda: sound_file("PCM_16"),
    "six channels": lambda: sound_file("PCM_16", channels=6),
    "8-bit": lambda: sound_file("PCM_U8", tolerance=0.01),
    "24-bit": lambda: sound_file("PCM_24"),
    "32-bit": lambda: sound_file("PCM_32"),
    "float": lambda: sound_file("FLOAT"),
    "double": lambda: sound_file("DOUBLE"),
    "FLAC": lambda: sound_file("PCM_24", ".flac"),
    "FLAC of unknown length": flac_of_unknown_length,
    "chained Ogg": chained_ogg,
    "MP3": lambda: sound_file("MPEG_LAYER_III", ".mp3", tolerance=None),
    "joined MP3": joined_mp3,
    "MP3 without a header": mp3_without_header,
    "WAV size 0": lambda: unfinished_wav(0),
    "WAV size 0xFFFFFFFF": lambda: unfinished_wav(0xFFFFFFFF),
    "GSM": lambda: AudioFile(
        ".wav", encoded(sound(0.5, 1, 8000), ".wav", "GSM610", 8000), sound(0.5, 1, 8000), 8000, None
    ),
}
