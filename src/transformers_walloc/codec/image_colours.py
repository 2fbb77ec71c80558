"""What colours of pictures mean: profiles, gray, and 8 or 16 bits of a sample."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts to gray
Note = Callable[[str], None]


def to_srgb(image: PIL.Image.Image, note: Note) -> PIL.Image.Image:
    """Colours of phones and cameras are often not sRGB, which decoded images are: their files have no profile."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("L", "RGB", "RGBA", "CMYK"):
        return image
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = PIL.ImageCms.getProfileDescription(source).strip()
        if "sRGB" in name:
            return image
        srgb = PIL.ImageCms.createProfile("sRGB")
        colours = image.convert("RGB") if image.mode == "RGBA" else image
        converted: Any = PIL.ImageCms.profileToProfile(colours, source, srgb, outputMode="RGB")
    except (OSError, PIL.ImageCms.PyCMSError, ValueError, ImportError):
        note("its colour profile is damaged and not used")
        return image
    note(f"colours are converted from {name or 'its colour profile'} to sRGB")
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    gray_or_colours: PIL.Image.Image = converted.convert("L") if image.mode == "L" else converted
    return gray_or_colours


def profile_of(profile: bytes | None, gray: bool, note: Note) -> bytes:
    """An ICC profile that fits the pixels; empty for sRGB, and for what is none."""
    if not profile:
        return b""
    try:
        opened = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space, name = opened.profile.xcolor_space.strip(), PIL.ImageCms.getProfileDescription(opened).strip()
    except (OSError, PIL.ImageCms.PyCMSError):
        space, name = "", ""
    if "sRGB" in name:
        return b""
    if space != ("GRAY" if gray else "RGB"):
        note("its colour profile is damaged and not used")
        return b""
    return profile


def as_type(samples: np.ndarray, dtype: type) -> np.ndarray:
    """uint8 or uint16 over their full range as the other."""
    if samples.dtype == dtype:
        return samples
    if dtype is np.uint16:
        return samples.astype(np.uint16) * 257
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def to_gray(colours: np.ndarray) -> np.ndarray:
    """(height, width, 3) -> (height, width) by ITU-R BT.601, as Pillow converts."""
    gray: np.ndarray = np.rint(colours @ np.array(LUMA)).astype(colours.dtype)
    return gray
