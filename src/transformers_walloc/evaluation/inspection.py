"""`inspect`: what a codec makes of one file, as pictures, and one page that holds them all."""

import base64
import html
import os
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ..atomic import write_atomically
from ..codec.bitstream import unpack
from ..codec.identity import called, codec_name
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
def inspect(path: str | os.PathLike, model, output_dir: str | os.PathLike) -> "Inspection":
    """Draw the pictures of one file and one codec.

    Args:
        path: an image, an audio file (its first 30 seconds are used), or a .walloc file of this codec.
        model: a `WallocImageModel` or `WallocAudioModel`.
        output_dir: where the pictures go; made if it does not exist.

    Returns:
        Paths of what was written: `reconstruction.png` (beside an image it resized to as many numbers, and JPEG and
        WebP files of the same size), `channels.png`, `histograms.png`, `atlas.png`, and `index.html`, a page that
        holds them all and can be sent as it is. A notebook shows it.

    Raises:
        ValueError: the file is of another kind than the codec, or cannot be read.
        ImportError: matplotlib is not installed.
    """
    from . import plots

    path = os.fspath(path)
    data = read_bytes(path)
    kind = kind_of(path, data)
    expected = model.config.kind
    if expected == "volume" or (expected == "image" and model.config.num_channels not in (1, 3)):
        what = "volumes" if expected == "volume" else f"images of {model.config.num_channels} bands"
        raise MediaError(f"{path}: the codec is for {what}; inspect draws pictures and audio")
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
    written += plots.save(plots.latent_histograms(codes), output / "histograms", ["png"])
    written += plots.save(plots.latent_atlas(model), output / "atlas", ["png"])
    title = f"{os.path.basename(path)} by {called(codec_name(model.config.name_or_path))}: {len(blob):,} bytes"
    return Inspection([*written, _write_page(output / "index.html", title, written)])


class Inspection(list[Path]):
    """Paths of pictures, and of the page that holds them, the last; a notebook shows the page."""

    def _repr_html_(self) -> str:
        return self[-1].read_text(encoding="utf-8")


_LEGENDS = {
    "reconstruction": "What comes back, beside the original; details, or spectrograms, below.",
    "channels": "The codes, channel by channel: red is above zero, blue below.",
    "histograms": "How often each code occurs, on a logarithmic scale, and the bits that a code of the channel takes.",
    "atlas": "What each channel stands for: one code of it, decoded.",
}


def _write_page(path: Path, title: str, pictures: list[Path]) -> Path:
    figures = [
        f'<figure><figcaption>{_LEGENDS[picture.stem]}</figcaption><img alt="{picture.stem}" style="max-width: 100%" '
        f'src="data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"></figure>'
        for picture in pictures
    ]
    head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><h1>{html.escape(title)}</h1>'
    style = "<style>body { font-family: sans-serif } h1 { font-size: 1.3em } figure { margin: 1em 0 }</style>"
    write_atomically(path, "\n".join([head, style, *figures]) + "\n")
    return path


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
