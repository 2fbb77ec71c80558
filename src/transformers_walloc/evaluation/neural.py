"""Neural codecs of others. Their weights come from the Hub; without them the true architecture can be timed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..codec.clips import resample
from ..codec.pixels import to_8_bits
from .codecs import Clock, Codec, CodecUnavailableError
from .stand_ins import stand_ins

NEURAL = {
    "image": ("original-4x", "original-16x", "cheng2020", "sd3-vae"),
    "audio": ("original-5x", "original-20x", "encodec", "dac", "mimi", "stable-audio"),
}
ORIGINAL: dict[str, dict[str, Any]] = {  # latent_dim and Ne, Nd of the published configurations
    "original-4x": dict(channels=3, J=3, Ne=384, Nd=768, latent_dim=48, latent_bits=8, lightweight_encode=True),
    "original-16x": dict(channels=3, J=3, Ne=384, Nd=768, latent_dim=12, latent_bits=8, lightweight_encode=True),
    "original-5x": dict(channels=2, J=8, Ne=768, Nd=768, latent_dim=108, latent_bits=8, lightweight_encode=True),
    "original-20x": dict(channels=2, J=8, Ne=768, Nd=768, latent_dim=27, latent_bits=8, lightweight_encode=True),
}


@dataclass
class Network:
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


class NeuralCodec(Codec):
    """
    Args:
        name: one of `NEURAL[kind]`.
        speed_only: random weights, to time it where the Hub is out of reach.

    Raises:
        CodecUnavailableError: its package is not installed, or its weights cannot be had.
    """

    def __init__(self, name: str, kind: str, sampling_rate: int = 44100, speed_only: bool = False):
        make = {"cheng2020": _cheng2020, "sd3-vae": _sd3_vae, "stable-audio": _stable_audio}
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                network = make.get(name, _original if name in ORIGINAL else _audio_codec)(name, not speed_only)
        except ImportError as error:
            raise CodecUnavailableError(str(error)) from error
        except OSError as error:  # the Hub cannot be reached, or asks for a login
            reason = str(error).splitlines()[0]
            raise CodecUnavailableError(
                f"no weights ({reason}); its speed can be measured with --speed-only"
            ) from error
        network.module.eval()
        self.name, self.kind, self.network = name, kind, network
        self.sampling_rate, self.rate = sampling_rate, network.sampling_rate or sampling_rate
        self.dimensionality_reduction = network.reduction
        self.speed_only = not network.trained
        self.note = "; ".join(filter(None, ("random weights, speed only" * self.speed_only, network.note)))
        self.parameters = sum(p.numel() for p in network.module.parameters())

    def to_tensor(self, signals: list[np.ndarray]) -> torch.Tensor:
        if self.kind == "image":
            x = torch.from_numpy(np.stack(signals)).movedim(-1, 1).float() / 255
        else:
            x = torch.stack([self._resample(torch.from_numpy(s), self.sampling_rate, self.rate) for s in signals])
        x = x.reshape(-1, 1, x.shape[-1]) if self.network.mono else x
        padding = [p for size in reversed(x.shape[2:]) for p in (0, -size % self.network.multiple)]
        return torch.nn.functional.pad(x, padding)

    @torch.inference_mode()
    def write(self, signal: np.ndarray) -> bytes:
        stored = self.network.encode(self.to_tensor([signal]))
        header = bytes([stored.ndim]) + np.array(stored.shape, "<u4").tobytes()
        if stored.is_floating_point():
            return header + stored.half().numpy().tobytes()
        planes = (stored.reshape(-1, 1).numpy() >> np.arange(self.network.bits)) & 1
        return header + np.packbits(planes.astype(np.uint8)).tobytes()

    @torch.inference_mode()
    def read(self, blob: bytes, like: np.ndarray) -> np.ndarray:
        dims, bits = blob[0], self.network.bits
        shape = np.frombuffer(blob[1 : 1 + 4 * dims], "<u4").astype(int)
        data = np.frombuffer(blob[1 + 4 * dims :], np.uint8)
        if bits == 16:
            stored = torch.from_numpy(data.view(np.float16).reshape(shape).astype(np.float32))
        else:
            planes = np.unpackbits(data)[: shape.prod() * bits].reshape(-1, bits)
            stored = torch.from_numpy((planes.astype(np.int64) << np.arange(bits)).sum(axis=1).reshape(shape))
        x = self.network.decode(stored)
        if self.kind == "image":
            return to_8_bits(x[0] - 0.5).movedim(0, -1).numpy()[: like.shape[0], : like.shape[1]]
        clip = self._resample(x.reshape(len(like), -1), self.rate, self.sampling_rate).numpy()[:, : like.shape[1]]
        return np.pad(clip, ((0, 0), (0, like.shape[1] - clip.shape[1])))

    @torch.inference_mode()
    def run(self, signals: list[np.ndarray], clock: Clock, decode: bool = True) -> None:
        with clock.stage("prepare"):
            x = self.to_tensor(signals)
        with clock.stage("encode"):
            stored = self.network.encode(x)
        if decode:
            with clock.stage("decode"):
                self.network.decode(stored)

    @staticmethod
    def _resample(clip: torch.Tensor, source: int, target: int) -> torch.Tensor:
        return clip.float() if source == target else resample(clip.float(), source, target)


def _original(name: str, trained: bool) -> Network:
    import diffusers  # noqa: F401 (before it could see the stand-in)

    with stand_ins("torchvision"):
        from walloc.walloc import Codec1D, Codec2D

    settings = ORIGINAL[name]
    image = settings["channels"] == 3
    network: Any = Codec2D(**settings) if image else Codec1D(**settings, post_filter=True)
    bands = 4**3 if image else 2**8

    def encode(x):
        x = x - 0.5 if image else 0.5 * x
        return network.encoder(network.wavelet_analysis(x, J=network.J))

    def decode(z):
        x = network.wavelet_synthesis(network.decoder(z), J=network.J)
        return network.clamp(x if image else network.post(x))

    reduction = settings["channels"] * bands / settings["latent_dim"]
    multiple = 2 ** settings["J"]
    return Network(network, encode, decode, reduction, trained=False, multiple=multiple, note="package walloc")


def _cheng2020(name: str, trained: bool) -> Network:
    # The package asks for torchvision and torch_geometric, which its image models do not use.
    with stand_ins("torchvision", "torch_geometric"):
        try:
            from compressai.models import Cheng2020Anchor
        except ImportError as error:
            raise ImportError(f"{error}; pip install --no-deps compressai pytorch-msssim") from error
    network: Any = Cheng2020Anchor(192)
    return Network(
        network,
        network.g_a,
        network.g_s,
        reduction=4.0,
        trained=False,
        multiple=64,
        note="transforms alone, without the serial context model and the entropy coder",
    )


def _sd3_vae(name: str, trained: bool) -> Network:
    from diffusers import AutoencoderKL

    network: Any
    if trained:
        network = AutoencoderKL.from_pretrained("stabilityai/stable-diffusion-3-medium-diffusers", subfolder="vae")
    else:
        network = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    return Network(
        network,
        lambda x: network.encode(2 * x - 1).latent_dist.mode(),
        lambda z: network.decode(z).sample / 2 + 0.5,
        reduction=3 * 64 / 16,
        trained=trained,
        multiple=8,
    )


def _stable_audio(name: str, trained: bool) -> Network:
    from diffusers import AutoencoderOobleck

    source = "stabilityai/stable-audio-open-1.0"
    network: Any = AutoencoderOobleck.from_pretrained(source, subfolder="vae") if trained else AutoencoderOobleck()
    return Network(
        network,
        lambda x: network.encode(x).latent_dist.mode(),
        lambda z: network.decode(z).sample,
        reduction=2 * 2048 / 64,
        trained=trained,
        multiple=2048,
    )


def _audio_codec(name: str, trained: bool) -> Network:
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

    network: Any
    if name == "encodec":
        if trained:
            network = EncodecModel.from_pretrained("facebook/encodec_48khz")
        else:
            config = EncodecConfig(
                sampling_rate=48000,
                audio_channels=2,
                norm_type="time_group_norm",
                use_causal_conv=False,
                target_bandwidths=[3.0, 6.0, 12.0, 24.0],
            )
            network = EncodecModel(config)
        # The whole clip at once: the published chunks of one second with their own loudness only bound the memory.
        return Network(
            network,
            lambda x: network.quantizer.encode(network.encoder(x), 12.0),
            lambda codes: network.decoder(network.quantizer.decode(codes)),
            reduction=2 * 320 / 128,
            trained=trained,
            bits=10,
            sampling_rate=48000,
            multiple=320,
            note="12 kbps",
        )
    if name == "dac":
        source = "descript/dac_44khz"
        network = DacModel.from_pretrained(source) if trained else DacModel(DacConfig(sampling_rate=44100))
        return Network(
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
    return Network(
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
