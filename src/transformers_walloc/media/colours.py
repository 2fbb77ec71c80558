"""Colour profiles of pictures: kept where a file can have one, otherwise their colours become sRGB."""

import io

import PIL.Image
import PIL.ImageCms

from ..codec.side_data import MAX_PROFILE
from .messages import warn


def to_srgb(path: str, image: PIL.Image.Image) -> PIL.Image.Image:
    """Colours of phones and cameras are often not sRGB, which decoded images are: their files have no profile."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = PIL.ImageCms.getProfileDescription(source).strip()
        if "sRGB" in name:
            return image
        srgb = PIL.ImageCms.createProfile("sRGB")
        colours = image.convert("RGB") if image.mode == "RGBA" else image
        converted = PIL.ImageCms.profileToProfile(colours, source, srgb, outputMode="RGB")
    except (OSError, PIL.ImageCms.PyCMSError):
        converted = None
    if converted is None:
        warn(path, "its colour profile is damaged and not used")
        return image
    warn(path, f"colours are converted from {name or 'its colour profile'} to sRGB")
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    return converted


def colours_and_profile(path: str, image: PIL.Image.Image, gray: bool) -> tuple[PIL.Image.Image, bytes]:
    """An image whose colours are red, green and blue, or gray, and the profile that says which."""
    if gray or image.mode in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA"):
        return image, profile_of(path, image, gray)
    return to_srgb(path, image), b""


def profile_of(path: str, image: PIL.Image.Image, gray: bool) -> bytes:
    """The ICC profile of an image; empty for sRGB, and for what is none."""
    profile = image.info.get("icc_profile") or b""
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
        warn(path, "its colour profile is damaged and not used")
        return b""
    if len(profile) > MAX_PROFILE:
        warn(path, f"its colour profile of {len(profile)} bytes is not kept")
        return b""
    return profile
