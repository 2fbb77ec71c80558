"""`inspect`: what a codec makes of one file, as pictures."""

import os
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ..codec.bitstream import unpack
from ..loading import make_processor
from ..media.audio import read_audio
from ..media.kinds import kind_of
from ..media.messages import MediaError
from ..media.paths import read_bytes
from ..media.pictures import read_pixels
from .compare import formats_at_size, resized_to_as_many
from .metrics import bits_per_pixel, psnr, to_images

MAX_SECONDS = 30.0  # of audio that is drawn


@torch.inference_mode()
def inspect(path: str | os.PathLike, model, output_dir: str | os.PathLike) -> list[Path]:
    """Draw the pictures of one file and one codec.

    Args:
        path: an image, an audio file (its first 30 seconds are used), or a .walloc file of this codec.
        model: a `WallocImageModel` or `WallocAudioModel`.
        output_dir: where the pictures go; made if it does not exist.

    Returns:
        Paths of what was written: `reconstruction` (beside an image it resized to as many numbers, and JPEG and
        WebP files of the same size), `channels`, `histograms`, `atlas`, as PNG and, without pixels, as SVG too.

    Raises:
        ValueError: the file is of another kind than the codec, or cannot be read.
        ImportError: matplotlib is not installed.
    """
    from . import plots

    path = os.fspath(path)
    data = read_bytes(path)
    kind = kind_of(path, data)
    expected = model.config.kind
    if kind == "walloc":
        kind = unpack(data)[0].kind
        blob, original = data, None
    elif kind == expected:
        original = _image(path, data, model) if kind == "image" else _clip(path, data, model)
        inputs = original[1]
        inputs[model.main_input_name] = inputs[model.main_input_name].to(model.device)
        blob = model.compress(**inputs)[0]
    if kind != expected:
        raise MediaError(f"{path} is {kind}, the codec is for {expected}; choose another model")

    output, written = Path(output_dir), []
    header = unpack(blob)[0]
    codes = model.decompress_codes(blob)[0].numpy()
    if kind == "image":
        decoded = to_images(model.decompress(blob)[0])
        images = {_caption("WaLLoC", None if original is None else original[0], decoded, blob): decoded}
        if original is not None:
            images = {"original": original[0], **images}
            for name, _, small, pixels in resized_to_as_many(original[0], model.config.dimensionality_reduction):
                images[_caption(name, original[0], pixels, small)] = pixels
            for name, _, rival, pixels in formats_at_size(original[0], len(blob), ("jpeg", "webp")):
                images[_caption(name, original[0], pixels, rival)] = pixels
        written += plots.save(plots.reconstructions(images), output / "reconstruction", ["png"])
        written += plots.save(plots.channel_maps(codes), output / "channels", ["png"])
    else:
        clip = model.decompress(blob)[0].cpu().numpy()
        rate = header.sampling_rate or model.config.sampling_rate
        clips = {f"WaLLoC, {8 * len(blob) * rate / header.sizes[0] / 1000:.0f} kbit/s": clip}
        if original is not None:
            clips = {"original": original[0], **clips, "difference": clip - original[0]}
        seconds = header.sizes[0] / rate
        written += plots.save(plots.waveforms(clips, rate), output / "reconstruction", ["png"])
        written += plots.save(plots.channel_maps(codes, seconds), output / "channels", ["png"])
    written += plots.save(plots.latent_histograms(codes), output / "histograms")
    written += plots.save(plots.latent_atlas(model), output / "atlas", ["png"] if kind == "image" else ["png", "svg"])
    return written


def _image(path: str, data: bytes, model) -> tuple[np.ndarray, dict]:
    image = PIL.Image.fromarray(read_pixels(path, data, model.config.num_channels))
    inputs = make_processor(model.config)(image, return_tensors="pt")
    height, width = inputs["original_sizes"][0].tolist()
    return to_images(inputs["pixel_values"][0, :, :height, :width]), dict(inputs)


def _clip(path: str, data: bytes, model) -> tuple[np.ndarray, dict]:
    extractor = make_processor(model.config)
    clip, rate = read_audio(path, data)
    inputs = extractor(clip[:, : round(MAX_SECONDS * rate)], sampling_rate=rate, return_tensors="pt")
    levels = {name: inputs[name] for name in ("padding_mask", "gain", "offset")}
    return extractor.post_process(inputs["input_values"], **levels)[0], dict(inputs)


def _caption(name: str, original: np.ndarray | None, decoded: np.ndarray, blob: bytes) -> str:
    rate = f"{name}, {bits_per_pixel(decoded.shape[0], decoded.shape[1], len(blob)):.2f} bpp"
    return rate if original is None else f"{rate}, {psnr(original, decoded):.2f} dB"
