"""Codecs by specification, as they are named on the command line and in results.

A spec is `NAME` or `NAME@option,option=value`:

    rgb-16x, walloc/rgb-16x, runs/model   a WaLLoC model: bundled name, Hub id or folder
    rgb-16x@linear                        its closed-form linear decoder (KLT) in place of the trained one
    rgb-16x@step=2  rgb-16x@channels=8    coarser codes; only the first 8 latent channels
    rgb-16x@refine=10                     codes searched for with ten gradients, not those of the linear encoder
    jpeg@quality=50                       jpeg, webp, avif, jxl (images); opus, vorbis, mp3 (audio, 0 is best)
    webp@like=rgb-16x                     the smallest file that is no smaller than that of rgb-16x for the same signal
    resize@factor=4                       downscaling, stored as lossless WebP, and bicubic upscaling
    original-16x, sd3-vae, cheng2020      neural codecs with their true architecture
"""

from pathlib import Path

from .codecs import Codec, WallocCodec
from .neural import NEURAL, NeuralCodec
from .rivals import FORMATS, AudioFormat, ImageFormat, Resizing, SameSize


def make_codec(spec: str, kind: str, sampling_rate: int = 44100, speed_only: bool = False) -> Codec:
    """The codec that a spec names (see above).

    Args:
        kind: of the signals, "image" or "audio".
        sampling_rate: of the audio to be coded, in Hz.
        speed_only: give the neural codecs of others random weights, to time them where the Hub is out of reach.

    Raises:
        ValueError: an unknown option or format, or a model for another kind of signal.
        CodecUnavailableError: something that it needs is not installed.
    """
    name, options = parse_spec(spec)
    image = kind == "image"
    if name in FORMATS[kind]:
        _check_options(spec, options, ("quality", "like"))
        settings = [float(options["quality"])] if "quality" in options else []
        form = ImageFormat(name, *settings) if image else AudioFormat(name, sampling_rate, *settings)
        if "like" in options:
            return SameSize(form, make_codec(options["like"], kind, sampling_rate))
        if not settings:
            raise ValueError(f"{spec!r} needs a quality, for example {form.name}")
        return form
    if name == "resize" and image:
        _check_options(spec, options, ("factor",))
        return Resizing(int(options.get("factor", 4)))
    if name in NEURAL[kind]:
        _check_options(spec, options, ())
        return NeuralCodec(name, kind, sampling_rate, speed_only)
    _check_options(spec, options, ("linear", "step", "channels", "refine"))
    channels = int(options["channels"]) if "channels" in options else None
    linear, step, refine = "linear" in options, float(options.get("step", 1)), int(options.get("refine", 0))
    codec = WallocCodec(name, kind, sampling_rate, linear, step, channels, refine)
    codec.name = spec
    return codec


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Name and options. `like` may hold a spec with options of its own, and comes last."""
    name, _, tail = spec.partition("@")
    if tail.startswith("like="):
        return name, {"like": tail.removeprefix("like=")}
    return name, dict((part.partition("=")[::2]) for part in tail.split(",") if part)


def shown_spec(spec: str) -> str:
    """A spec without the folders of this machine."""
    name, options = parse_spec(spec)
    if "like" in options:
        return f"{name}@like={shown_spec(options['like'])}"
    tail = spec.partition("@")[1:]
    return (Path(name).name if Path(name).exists() else name.removeprefix("walloc/")) + "".join(tail)


def _check_options(spec: str, options: dict[str, str], valid: tuple[str, ...]) -> None:
    if unknown := set(options) - set(valid):
        expected = f"valid: {', '.join(valid)}" if valid else "it has none"
        raise ValueError(f"unknown option {', '.join(sorted(unknown))} in {spec!r}; {expected}")
