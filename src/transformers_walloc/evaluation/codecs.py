"""Codecs under one interface for `evaluate_codec.py`: ours, conventional ones, and the neural ones of the paper.

A codec is named by a spec, `NAME` or `NAME@option,option=value`:

    rgb-16x, walloc/rgb-16x, runs/model   a WaLLoC model: bundled name, Hub id or folder
    rgb-16x@linear                        its closed-form linear decoder (KLT) in place of the trained one
    rgb-16x@step=2  rgb-16x@channels=8    coarser codes; only the first 8 latent channels
    jpeg@quality=50                       jpeg, webp, avif, jxl (images); opus, vorbis, mp3 (audio, 0 is best)
    webp@like=rgb-16x                     the smallest file that is no smaller than that of rgb-16x for the same signal
    resize@factor=4                       downscaling, stored as lossless WebP, and bicubic upscaling
    original-16x, sd3-vae, cheng2020      neural codecs with their true architecture
"""

import contextlib
import dataclasses
import hashlib
import io
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image

from transformers_walloc import WallocAudioModel, WallocImageModel
from transformers_walloc.codec.bitstream import tables_id
from transformers_walloc.codec.entropy_coding import decode_codes, encode_codes
from transformers_walloc.evaluation.stand_ins import stand_ins

IMAGE_FORMATS = {"jpeg": "JPEG", "webp": "WEBP", "avif": "AVIF", "jxl": "JXL"}
AUDIO_FORMATS = {"opus": ("OGG", "OPUS"), "vorbis": ("OGG", "VORBIS"), "mp3": ("MP3", "MPEG_LAYER_III")}
NEURAL = {
    "image": ("original-4x", "original-16x", "cheng2020", "sd3-vae"),
    "audio": ("original-5x", "original-20x", "encodec", "dac", "mimi", "stable-audio"),
}
ORIGINAL = {  # latent_dim and Ne, Nd of the published configurations
    "original-4x": dict(channels=3, J=3, Ne=384, Nd=768, latent_dim=48, latent_bits=8, lightweight_encode=True),
    "original-16x": dict(channels=3, J=3, Ne=384, Nd=768, latent_dim=12, latent_bits=8, lightweight_encode=True),
    "original-5x": dict(channels=2, J=8, Ne=768, Nd=768, latent_dim=108, latent_bits=8, lightweight_encode=True),
    "original-20x": dict(channels=2, J=8, Ne=768, Nd=768, latent_dim=27, latent_bits=8, lightweight_encode=True),
}


class CodecUnavailableError(RuntimeError):
    """A codec needs a package or weights that this machine does not have; the message says which."""


class Clock:
    """Seconds of named stages, in the order of their first use.

    Args:
        cpu_time: count the processor's seconds, summed over threads, instead of those on the wall; on a busy machine
            they are what can be compared.
    """

    def __init__(self, cpu_time: bool = False):
        self.now = time.process_time if cpu_time else time.perf_counter
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start


@dataclasses.dataclass
class Codec:
    """A signal is a uint8 image (height, width, 3) or a float32 waveform (channels, length) in [-1, 1].

    `write` and `read` go through a finished file. `run` passes a batch of signals through the stages of the codec and
    books their times; where a stage is one call for both (conventional formats), there is only `encode` and `decode`.
    """

    name: str
    dimensionality_reduction: float
    write: Callable[[np.ndarray], bytes] | None
    read: Callable[[bytes, np.ndarray], np.ndarray] | None
    run: Callable[[list[np.ndarray], Clock, bool], None]
    identity: str = ""  # what results depend on beside the name: the weights
    file_identity: str = ""  # the same for the files: encoder and entropy coder
    note: str = ""
    parameters: int | None = None
    latent_channels: int = 0

    @property
    def speed_only(self) -> bool:
        return self.write is None


def make_codec(spec: str, kind: str, sampling_rate: int = 44100, speed_only: bool = False) -> Codec:
    """The codec that a spec names (see above).

    Args:
        sampling_rate: of the audio to be coded, in Hz.
        speed_only: give the neural codecs of others random weights, to time them where the Hub is out of reach.

    Raises:
        ValueError: an unknown option or format, or a model for another kind of signal.
        CodecUnavailableError: something that it needs is not installed.
    """
    name, options = parse_spec(spec)
    formats = IMAGE_FORMATS if kind == "image" else AUDIO_FORMATS
    if name in formats:
        _check_options(spec, options, ("quality", "like"))
        make = _image_format if kind == "image" else _audio_format
        if "like" in options:
            model = make_codec(options["like"], kind, sampling_rate)
            write = _matched(lambda quality: make(spec, name, quality, sampling_rate), model, kind)
            codec = make(spec, name, 0.5 if kind == "audio" else 50, sampling_rate)
            return dataclasses.replace(codec, write=write, identity=model.file_identity)
        if "quality" not in options:
            raise ValueError(f"{spec!r} needs a quality, for example {name}@quality={50 if kind == 'image' else 0.5}")
        return make(spec, name, float(options["quality"]), sampling_rate)
    if name == "resize" and kind == "image":
        _check_options(spec, options, ("factor",))
        return _resize_codec(spec, int(options.get("factor", 4)))
    if name in NEURAL[kind]:
        return _neural(spec, name, kind, sampling_rate, speed_only)
    return _walloc(spec, name, options, kind, sampling_rate)


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    name, _, tail = spec.partition("@")
    # `like` may hold a spec with options of its own, and comes last.
    if tail.startswith("like="):
        return name, {"like": tail.removeprefix("like=")}
    return name, dict((part.partition("=")[::2]) for part in tail.split(",") if part)


def _check_options(spec: str, options: dict, valid: tuple[str, ...]):
    if unknown := set(options) - set(valid):
        raise ValueError(f"unknown option {', '.join(sorted(unknown))} in {spec!r}; valid: {', '.join(valid)}")


# Ours.


def load_walloc(name: str, kind: str):
    """Model and processor by bundled name, Hub id or folder."""
    from transformers_walloc import bundled
    from transformers_walloc.codec.feature_extraction_walloc import WallocAudioFeatureExtractor
    from transformers_walloc.codec.image_processing_walloc import WallocImageProcessor

    model_class = WallocImageModel if kind == "image" else WallocAudioModel
    try:
        if name in bundled.BUNDLED_NAMES:
            name = str(bundled.bundled_path(name))
        model = model_class.from_pretrained(name, dtype=torch.float32).eval()
    except OSError as error:
        raise CodecUnavailableError(str(error).splitlines()[0]) from error
    config = model.config
    # From the configuration, so that checkpoints in the making, without a preprocessor's file, can be measured too.
    if kind == "image":
        return model, WallocImageProcessor(num_channels=config.num_channels, patch_size=config.patch_size)
    return model, WallocAudioFeatureExtractor(config.num_channels, config.sampling_rate, hop_length=config.patch_size)


@torch.no_grad()
def linear_codec(model):
    """The same encoder with a linear decoder: the best one in closed form.

    A restoration decoder has it. Of a residual one it is what remains of `fit_klt` in the encoder: the projection's
    rows are orthogonal with one common scale, so the synthesis is its transpose, shrunk by the Wiener factors that the
    variances of the latents (kept in the decoder) and the step of rounding give.
    """
    from transformers_walloc.codec.bottleneck import companding_scale, latent_limit
    from transformers_walloc.codec.decoders import LinearDecoder

    config = model.config
    if config.decoder_type == "linear":
        return model
    linear = LinearDecoder(config)
    if config.decoder_type == "restoration":
        linear.load_state_dict({"linear." + k: v for k, v in model.decoder.linear.state_dict().items()})
        model.decoder = linear
        return model
    if config.decoder_type != "residual":
        raise ValueError(f"decoder_type is {config.decoder_type!r}; valid: residual, restoration, linear")
    projection = model.encoder.projection
    weight, bias = projection.weight.flatten(1).double(), projection.bias.double()
    scale = float(weight.norm(dim=1).mean())
    slope = 2 * latent_limit(config.latent_bits) / (companding_scale(config.latent_bits) * (2 * np.pi) ** 0.5)
    step = 1 / (slope * scale)
    variances = (model.decoder.latent_std.double() / scale) ** 2
    wiener = variances / (variances + step**2 / 12)
    inverse = torch.linalg.pinv(weight)
    linear.linear.weight.copy_((inverse * wiener).reshape(linear.linear.weight.shape))
    linear.linear.bias.copy_(-inverse @ bias)
    model.decoder = linear
    return model


def _walloc(spec: str, name: str, options: dict, kind: str, sampling_rate: int) -> Codec:
    _check_options(spec, options, ("linear", "step", "channels"))
    model, processor = load_walloc(name, kind)
    if "linear" in options:
        model = linear_codec(model)
    settings: dict = {}
    if "step" in options:
        settings["step"] = float(options["step"])
    if "channels" in options:
        settings["num_channels"] = int(options["channels"])
    image, step = kind == "image", settings.get("step", 1.0)

    def prepare(signals: list[np.ndarray]):
        if image:
            return processor([Image.fromarray(signal) for signal in signals], return_tensors="pt")
        return processor(list(signals), sampling_rate=sampling_rate, return_tensors="pt")

    def read(blob: bytes, like: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            signal = model.decompress([blob])[0]
        return np.asarray(processor.post_process([signal])[0]) if image else signal.numpy()

    def write(signal: np.ndarray) -> bytes:
        with torch.inference_mode():
            return model.compress(**prepare([signal]), **settings)[0]

    @torch.inference_mode()
    def run(signals: list[np.ndarray], clock: Clock, decode: bool) -> None:
        with clock.stage("prepare"):
            inputs = prepare(signals)
        with clock.stage("encode"):
            codes = model.quantize(model.encode(inputs[model.main_input_name]).latents, step)
        if not decode:
            return
        tables = model.get_entropy_tables()
        with clock.stage("entropy_encode"):
            payloads = [encode_codes(item, tables) for item in codes.numpy()]
        with clock.stage("entropy_decode"):
            codes = torch.from_numpy(np.stack([decode_codes(data, codes.shape[1:], tables) for data in payloads]))
        with clock.stage("decode"):
            decoded = model.decode(codes, step=step)[0]
        with clock.stage("finish"):
            processor.post_process(decoded, *(inputs[name] for name in inputs if name != model.main_input_name))

    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    identity = digest.hexdigest()[:16]
    reduction = model.config.dimensionality_reduction
    if "num_channels" in settings:
        reduction *= model.config.latent_channels / settings["num_channels"]
    parameters = sum(p.numel() for p in model.parameters())
    return Codec(
        spec,
        reduction,
        write,
        read,
        run,
        identity=identity,
        file_identity=f"{model.fingerprint()}-{tables_id(model.get_entropy_tables().to_arrays())}",
        parameters=parameters,
        latent_channels=model.config.latent_channels,
    )


# Conventional formats.


def _image_format(spec: str, name: str, quality: float, sampling_rate: int = 0) -> Codec:
    if name == "jxl":
        try:
            import pillow_jxl  # noqa: F401 (registers the format with Pillow)
        except ImportError as error:
            raise CodecUnavailableError(f"{error}; pip install pillow-jxl-plugin") from error
    form = IMAGE_FORMATS[name]
    Image.init()
    if form not in Image.SAVE:
        raise CodecUnavailableError(f"this Pillow was built without {form}")

    def write(image: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(image).save(out, form, quality=round(quality), **({"method": 6} if name == "webp" else {}))
        return out.getvalue()

    def read(blob: bytes, like: np.ndarray) -> np.ndarray:
        with Image.open(io.BytesIO(blob)) as image:
            return np.asarray(image.convert("RGB"))

    return Codec(spec, 1.0, write, read, _run_through_files(write, read))


def _resize_codec(spec: str, factor: int) -> Codec:
    """What compressed-domain learning competes with: fewer pixels."""
    if factor < 2:
        raise ValueError(f"the factor of {spec!r} must be at least 2")

    def shrink(image: np.ndarray) -> Image.Image:
        size = tuple(max(1, round(side / factor)) for side in image.shape[1::-1])
        return Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)

    def write(image: np.ndarray) -> bytes:
        out = io.BytesIO()
        shrink(image).save(out, "WEBP", lossless=True, method=6)
        return out.getvalue()

    def enlarge(small: Image.Image, like: np.ndarray) -> np.ndarray:
        return np.asarray(small.convert("RGB").resize(like.shape[1::-1], Image.Resampling.BICUBIC))

    def read(blob: bytes, like: np.ndarray) -> np.ndarray:
        with Image.open(io.BytesIO(blob)) as small:
            return enlarge(small, like)

    def run(signals: list[np.ndarray], clock: Clock, decode: bool) -> None:
        with clock.stage("encode"):
            small = [shrink(signal) for signal in signals]
        if decode:
            with clock.stage("decode"):
                for image, signal in zip(small, signals, strict=True):
                    enlarge(image, signal)

    return Codec(spec, float(factor**2), write, read, run)


def _audio_format(spec: str, name: str, quality: float, sampling_rate: int) -> Codec:
    import soundfile

    form, subtype = AUDIO_FORMATS[name]
    rate = 48000 if name == "opus" else sampling_rate  # Opus knows no 44.1 kHz
    more = {"bitrate_mode": "CONSTANT"} if name == "mp3" else {}

    def write(waveform: np.ndarray) -> bytes:
        x, out = _resample(waveform.T, sampling_rate, rate), io.BytesIO()
        with soundfile.SoundFile(
            out, "w", rate, x.shape[1], format=form, subtype=subtype, compression_level=quality, **more
        ) as file:
            for start in range(0, len(x), 4096):  # libsndfile keeps a block on its stack
                file.write(x[start : start + 4096])
        return out.getvalue()

    def read(blob: bytes, like: np.ndarray) -> np.ndarray:
        x, source = soundfile.read(io.BytesIO(blob), dtype="float32", always_2d=True)
        x = _resample(x, source, sampling_rate).T
        length = like.shape[1]
        if name == "mp3" and x.shape[1] > length:
            # Frames of low rates have no room for the tag that tells decoders to skip the delay of LAME and mpg123.
            x = x[:, 576 + 529 :]
        return np.pad(x[:, :length], ((0, 0), (0, max(0, length - x.shape[1]))))

    return Codec(spec, 1.0, write, read, _run_through_files(write, read))


def _run_through_files(write, read):
    def run(signals: list[np.ndarray], clock: Clock, decode: bool) -> None:
        with clock.stage("encode"):
            blobs = [write(signal) for signal in signals]
        if decode:
            with clock.stage("decode"):
                for blob, signal in zip(blobs, signals, strict=True):
                    read(blob, signal)

    return run


def _matched(make: Callable[[float], Codec], model: Codec, kind: str) -> Callable[[np.ndarray], bytes]:
    """The smallest file of a format that is no smaller than the model's: a comparison in favour of the format."""

    def write(signal: np.ndarray) -> bytes:
        target = len(model.write(signal))
        if kind == "image":
            low, high, best = 1, 100, None
            while low <= high:
                middle = (low + high) // 2
                blob = make(middle).write(signal)
                if len(blob) >= target:
                    best, high = blob, middle - 1
                else:
                    low = middle + 1
            return best if best is not None else make(100).write(signal)
        low, high, best = 0.0, 0.999, make(0.0).write(signal)  # 0 is the largest file
        for _ in range(7):
            middle = (low + high) / 2
            blob = make(middle).write(signal)
            if len(blob) >= target:
                best, low = (blob, middle) if len(blob) <= len(best) else (best, middle)
            else:
                high = middle
        return best

    return write


# Neural codecs. Their weights come from the Hub; without them the true architecture can be timed with random weights.


@dataclasses.dataclass
class _Network:
    """`encode` maps (batch, channels, *sizes), images in [0, 1] and audio in [-1, 1], to what is stored; `decode` back.

    What is stored is a tensor: floats are written in half precision, integers with `bits` each.
    """

    module: torch.nn.Module
    encode: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]
    reduction: float
    trained: bool
    bits: int = 16
    sampling_rate: int | None = None
    mono: bool = False
    multiple: int = 1
    note: str = ""


def _neural(spec: str, name: str, kind: str, sampling_rate: int, speed_only: bool) -> Codec:
    torch.manual_seed(0)
    try:
        network = {"cheng2020": _cheng2020, "sd3-vae": _sd3_vae, "stable-audio": _stable_audio}.get(
            name, _original if name in ORIGINAL else _audio_codec
        )(name, speed_only)
    except ImportError as error:
        raise CodecUnavailableError(str(error)) from error
    except OSError as error:  # the Hub cannot be reached, or asks for a login
        reason = str(error).splitlines()[0]
        raise CodecUnavailableError(f"no weights ({reason}); its speed can be measured with --speed_only") from error
    network.module.eval()
    rate = network.sampling_rate or sampling_rate

    def to_tensor(signals: list[np.ndarray]) -> torch.Tensor:
        if kind == "image":
            x = torch.from_numpy(np.stack(signals)).movedim(-1, 1).float() / 255
        else:
            x = torch.from_numpy(np.stack([_resample(s.T, sampling_rate, rate).T for s in signals])).float()
        x = x.reshape(-1, 1, x.shape[-1]) if network.mono else x
        padding = [p for size in reversed(x.shape[2:]) for p in (0, -size % network.multiple)]
        return torch.nn.functional.pad(x, padding)

    @torch.inference_mode()
    def write(signal: np.ndarray) -> bytes:
        stored = network.encode(to_tensor([signal]))
        header = bytes([stored.ndim]) + np.array(stored.shape, "<u4").tobytes()
        if stored.is_floating_point():
            return header + stored.half().numpy().tobytes()
        planes = (stored.reshape(-1, 1).numpy() >> np.arange(network.bits)) & 1
        return header + np.packbits(planes.astype(np.uint8)).tobytes()

    @torch.inference_mode()
    def read(blob: bytes, like: np.ndarray) -> np.ndarray:
        dims = blob[0]
        shape = np.frombuffer(blob[1 : 1 + 4 * dims], "<u4").astype(int)
        data = np.frombuffer(blob[1 + 4 * dims :], np.uint8)
        if network.bits == 16:
            stored = torch.from_numpy(data.view(np.float16).reshape(shape).astype(np.float32))
        else:
            planes = np.unpackbits(data)[: shape.prod() * network.bits].reshape(-1, network.bits)
            stored = torch.from_numpy((planes.astype(np.int64) << np.arange(network.bits)).sum(axis=1).reshape(shape))
        x = network.decode(stored)
        if kind == "image":
            pixels = (x[0].clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).numpy()
            return pixels[: like.shape[0], : like.shape[1]]
        x = _resample(x.reshape(len(like), -1).T.numpy(), rate, sampling_rate).T[:, : like.shape[1]]
        return np.pad(x, ((0, 0), (0, like.shape[1] - x.shape[1])))

    @torch.inference_mode()
    def run(signals: list[np.ndarray], clock: Clock, decode: bool) -> None:
        with clock.stage("prepare"):
            x = to_tensor(signals)
        with clock.stage("encode"):
            stored = network.encode(x)
        if decode:
            with clock.stage("decode"):
                network.decode(stored)

    note = "; ".join(part for part in ("" if network.trained else "random weights, speed only", network.note) if part)
    files = (write, read) if network.trained else (None, None)
    parameters = sum(p.numel() for p in network.module.parameters())
    return Codec(spec, network.reduction, *files, run, note=note, parameters=parameters)


def _original(name: str, speed_only: bool) -> _Network:
    import diffusers  # noqa: F401 (before it could see the stand-in)

    with stand_ins("torchvision"):
        from walloc.walloc import Codec1D, Codec2D

    settings = ORIGINAL[name]
    image = settings["channels"] == 3
    network = Codec2D(**settings) if image else Codec1D(**settings, post_filter=True)
    bands = 4**3 if image else 2**8

    def encode(x):
        x = x - 0.5 if image else 0.5 * x
        return network.encoder(network.wavelet_analysis(x, J=network.J))

    def decode(z):
        x = network.wavelet_synthesis(network.decoder(z), J=network.J)
        return network.clamp(x if image else network.post(x))

    reduction = settings["channels"] * bands / settings["latent_dim"]
    multiple = 2 ** settings["J"]
    return _Network(network, encode, decode, reduction, trained=False, multiple=multiple, note="package walloc")


def _cheng2020(name: str, speed_only: bool) -> _Network:
    # The package asks for torchvision and torch_geometric, which its image models do not use.
    with stand_ins("torchvision", "torch_geometric"):
        try:
            from compressai.models import Cheng2020Anchor
        except ImportError as error:
            raise ImportError(f"{error}; pip install --no-deps compressai pytorch-msssim") from error
    network = Cheng2020Anchor(192)
    return _Network(
        network,
        network.g_a,
        network.g_s,
        reduction=4.0,
        trained=False,
        multiple=64,
        note="transforms alone, without the serial context model and the entropy coder",
    )


def _sd3_vae(name: str, speed_only: bool) -> _Network:
    from diffusers import AutoencoderKL

    if speed_only:
        network = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    else:
        network = AutoencoderKL.from_pretrained("stabilityai/stable-diffusion-3-medium-diffusers", subfolder="vae")
    return _Network(
        network,
        lambda x: network.encode(2 * x - 1).latent_dist.mode(),
        lambda z: network.decode(z).sample / 2 + 0.5,
        reduction=3 * 64 / 16,
        trained=not speed_only,
        multiple=8,
    )


def _stable_audio(name: str, speed_only: bool) -> _Network:
    from diffusers import AutoencoderOobleck

    source = "stabilityai/stable-audio-open-1.0"
    network = AutoencoderOobleck() if speed_only else AutoencoderOobleck.from_pretrained(source, subfolder="vae")
    return _Network(
        network,
        lambda x: network.encode(x).latent_dist.mode(),
        lambda z: network.decode(z).sample,
        reduction=2 * 2048 / 64,
        trained=not speed_only,
        multiple=2048,
    )


def _audio_codec(name: str, speed_only: bool) -> _Network:
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

    trained = not speed_only
    if name == "encodec":
        stereo = dict(sampling_rate=48000, audio_channels=2, norm_type="time_group_norm", use_causal_conv=False)
        network = (
            EncodecModel.from_pretrained("facebook/encodec_48khz")
            if trained
            else EncodecModel(EncodecConfig(**stereo, target_bandwidths=[3.0, 6.0, 12.0, 24.0]))
        )
        quantizer = network.quantizer
        # The whole clip at once: the published chunks of one second with their own loudness only bound the memory.
        return _Network(
            network,
            lambda x: quantizer.encode(network.encoder(x), 12.0),
            lambda codes: network.decoder(quantizer.decode(codes)),
            reduction=2 * 320 / 128,
            trained=trained,
            bits=10,
            sampling_rate=48000,
            multiple=320,
            note="12 kbps",
        )
    if name == "dac":
        network = (
            DacModel.from_pretrained("descript/dac_44khz") if trained else DacModel(DacConfig(sampling_rate=44100))
        )
        return _Network(
            network,
            lambda x: network.encode(x).audio_codes,
            lambda codes: network.decode(audio_codes=codes).audio_values,
            reduction=512 / 1024,
            trained=trained,
            bits=10,
            sampling_rate=44100,
            mono=True,
            multiple=512,
            note="channel by channel",
        )
    network = MimiModel.from_pretrained("kyutai/mimi") if trained else MimiModel(MimiConfig())
    return _Network(
        network,
        lambda x: network.encode(x, num_quantizers=32).audio_codes,
        lambda codes: network.decode(codes).audio_values,
        reduction=1920 / 512,
        trained=trained,
        bits=11,
        sampling_rate=24000,
        mono=True,
        multiple=1920,
        note="channel by channel, 32 codebooks, 24 kHz",
    )


def _resample(x: np.ndarray, source: int, target: int) -> np.ndarray:
    if source == target:
        return x
    import soxr

    return soxr.resample(x, source, target)
