"""What goes into a training corpus: images and music found inside archives, and the rules by which they are chosen.

Used by `research.corpora.prepare`.
"""

import io
import re
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps

MIN_SIDE = 320  # pixels, after halving
MAX_FLAT = 0.9  # share of neighbouring pixels that are exactly equal: drawings have more, photographs far less
MIN_KBPS, MIN_SECONDS, SAMPLING_RATE = 110, 10.0, 44100
MIN_HIGH_DB = -75.0  # power above 18 kHz over the total; encoders that cut it off leave less than -90 dB
MIN_SIDE_DB = -45.0  # power of left minus right over that of their sum; less is mono in two channels
Image.MAX_IMAGE_PIXELS = None  # wallpapers are larger than Pillow's guard, and come from a signed archive


def webp_streams(data: bytes) -> Iterator[bytes]:
    """Every complete WebP file inside a blob, such as a Qt resource file, found by its RIFF header."""
    position = 0
    while (start := data.find(b"RIFF", position)) >= 0:
        size = int.from_bytes(data[start + 4 : start + 8], "little") + 8
        if data[start + 8 : start + 12] == b"WEBP" and start + size <= len(data):
            yield data[start : start + size]
            position = start + size
        else:
            position = start + 4


def largest_jpeg(data: bytes) -> bytes | None:
    """The JPEG file with the most pixels inside a blob, from its start marker to its end marker; None without one."""
    best, pixels = None, 0
    for match in re.finditer(rb"\xff\xd8\xff", data):
        try:
            with Image.open(io.BytesIO(data[match.start() :]), formats=["JPEG"]) as image:
                area = image.width * image.height
        except OSError:
            continue
        end = _end_of_jpeg(data, match.start()) if area > pixels else None
        if end is not None:
            best, pixels = data[match.start() : end], area
    return best


def _end_of_jpeg(data: bytes, start: int) -> int | None:
    """Walks the segments, because the end marker also occurs inside thumbnails. None if the file is cut off."""
    position = start + 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xD9:
            return position + 2
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:  # entropy-coded data: up to the next marker that is neither stuffing nor a restart
            following = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]").search(data, position)
            if following is None:
                return None
            position = following.start()
    return position + 2 if data[position : position + 2] == b"\xff\xd9" else None


def accept_image(data: bytes, halve: bool, min_side: int = MIN_SIDE) -> tuple[dict, bytes, str]:
    """Looks at an image file: (facts for the manifest, bytes to store, suffix to store them under, "" as it came).

    Files pass byte for byte; halved ones are stored as lossless PNG. ValueError says why an image is not taken.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened) if halve else opened.copy()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"not a readable image: {error}") from None
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise ValueError("has transparent parts")
    image = image.convert("RGB")
    suffix = ""
    if halve:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data, suffix = buffer.getvalue(), ".png"
    if min(image.size) < min_side:
        raise ValueError(f"too small: {image.width} x {image.height}, at least {min_side} is wanted")
    if max(image.size) > 4 * min(image.size):
        raise ValueError(f"a strip: {image.width} x {image.height}")
    flat = flatness(image)
    if flat > MAX_FLAT:
        raise ValueError(f"looks drawn: {flat:.0%} of its neighbouring pixels are equal")
    return {"width": image.width, "height": image.height, "halved": halve, "flat": round(flat, 3)}, data, suffix


def flatness(image: Image.Image) -> float:
    """Share of horizontally neighbouring pixels of an RGB image that are exactly equal, 0 to 1."""
    pixels = np.asarray(image)
    return float((pixels[:, 1:] == pixels[:, :-1]).all(-1).mean())


def fingerprint(image: Image.Image) -> np.ndarray:
    """256 bits that hardly change under scaling and compression: the signs of the differences in a 17x16 thumbnail."""
    thumbnail = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    return (thumbnail[:, 1:] > thumbnail[:, :-1]).ravel()


def looks_like(bits: np.ndarray, others: Sequence[np.ndarray], tolerance: int = 20) -> bool:
    """True if another fingerprint differs in at most `tolerance` of the 256 bits (unrelated pictures: about 128)."""
    return bool(len(others)) and int((np.stack(others) != bits).sum(1).min()) <= tolerance


def accept_audio(data: bytes, strict: bool = True) -> dict:
    """Looks at an audio file and gives the facts for the manifest. ValueError says why it is not taken.

    Wanted are at least 10 s of true stereo at 44.1 kHz and 110 kbit/s that still have content above 18 kHz; if not
    `strict`, the rate and the bandwidth do not matter.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, channels, seconds = file.samplerate, file.channels, file.frames / file.samplerate
            if channels != 2 or rate != SAMPLING_RATE:
                raise ValueError(f"{channels} channels at {rate} Hz, wanted are 2 at {SAMPLING_RATE}")
            kbps = len(data) * 8 / 1000 / max(seconds, 1e-3)
            if seconds < MIN_SECONDS:
                raise ValueError(f"too short: {seconds:.1f} s")
            if strict and kbps < MIN_KBPS:
                raise ValueError(f"strongly compressed: {kbps:.0f} kbit/s")
            high, side = measure_excerpts(file)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"not a readable audio file: {error}") from None
    if strict and high < MIN_HIGH_DB:
        raise ValueError(f"nothing above 18 kHz: {high:.0f} dB")
    if side < MIN_SIDE_DB:
        raise ValueError(f"both channels are the same: {side:.0f} dB")
    facts = {"seconds": seconds, "kbps": kbps, "high_db": high, "side_db": side}
    return {"sampling_rate": rate, "channels": channels} | {name: round(value, 2) for name, value in facts.items()}


def measure_excerpts(file, count: int = 12, window: int = 4096) -> tuple[float, float]:
    """Power above 18 kHz over all, and of left minus right over their sum, in dB, from 2 s excerpts."""
    length = min(2 * file.samplerate, file.frames)
    high = total = middle = side = 1e-12
    taper = np.hanning(window).astype(np.float32)
    upper = np.fft.rfftfreq(window, 1 / file.samplerate) > 18000
    for i in range(count):
        file.seek(int((file.frames - length) * (i + 0.5) / count))
        left, right = file.read(length, dtype="float32", always_2d=True).T[:2]
        middle += float(np.square(left + right).sum())
        side += float(np.square(left - right).sum())
        for channel in (left, right):
            frames = np.lib.stride_tricks.sliding_window_view(channel, window)[:: window // 2]
            power = np.square(np.abs(np.fft.rfft(frames * taper, axis=1))).sum(0)
            high += float(power[upper].sum())
            total += float(power.sum())
    return 10 * np.log10(high / total), 10 * np.log10(side / middle)
