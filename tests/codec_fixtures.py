"""Small working codecs for tests: closed-form fits to a few pictures and sounds, no training."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
import torch

from transformers_walloc import WallocAudioConfig, WallocAudioModel, WallocImageConfig, WallocImageModel
from transformers_walloc.codec.feature_extraction_walloc import WallocAudioFeatureExtractor
from transformers_walloc.codec.image_processing_walloc import WallocImageProcessor
from transformers_walloc.training.klt import SubbandStatistics, fit_klt


def pictures() -> list[np.ndarray]:
    """Photographs (h, w, 3) uint8 of several sizes."""
    return [skimage.data.astronaut()[:250, 100:401], skimage.data.coffee()[100:228, 200:400], skimage.data.chelsea()]


def sound(seconds: float = 1.0, channels: int = 2, rate: int = 44100, seed: int = 0) -> np.ndarray:
    """Decaying notes with overtones, (channels, length) float32, peak below 1 and a mean that is not zero."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    wave = np.zeros((channels, len(time)))
    for start in np.arange(0, max(seconds, 0.25), 0.25):
        pitch = 110 * 2 ** (rng.integers(0, 36) / 12)
        note = sum(np.sin(2 * np.pi * pitch * k * time) / k**2 for k in range(1, 6))
        envelope = np.exp(-6 * np.clip(time - start, 0, None)) * (time >= start)
        wave += rng.uniform(0.2, 0.6, (channels, 1)) * envelope * note
    return (0.7 * wave / np.abs(wave).max()).astype(np.float32)


@functools.cache
def _image_state(latent_channels: int):
    config = WallocImageConfig(latent_channels=latent_channels, decoder_type="linear")
    model = WallocImageModel(config).eval()
    processor, statistics = WallocImageProcessor(), SubbandStatistics(config)
    batches = [processor(picture, return_tensors="pt")["pixel_values"] for picture in pictures()]
    for batch in batches:
        statistics.update(batch)
    fit_klt(model, statistics, 0.1)
    return config.to_dict(), model.state_dict()


@functools.cache
def _audio_state(latent_channels: int):
    config = WallocAudioConfig(latent_channels=latent_channels, decoder_type="linear", num_levels=5)
    model = WallocAudioModel(config).eval()
    extractor, statistics = WallocAudioFeatureExtractor(hop_length=config.patch_size), SubbandStatistics(config)
    for seed in range(3):
        statistics.update(extractor(sound(seed=seed), sampling_rate=44100, return_tensors="pt")["input_values"])
    fit_klt(model, statistics, 0.02)
    return config.to_dict(), model.state_dict()


def image_model(latent_channels: int = 12) -> WallocImageModel:
    """A fresh copy of a codec with generic entropy tables."""
    config, weights = _image_state(latent_channels)
    model = WallocImageModel(WallocImageConfig(**config)).eval()
    model.load_state_dict(weights)
    return model


def audio_model(latent_channels: int = 8) -> WallocAudioModel:
    """A fresh copy of a codec, 32 samples for a latent."""
    config, weights = _audio_state(latent_channels)
    model = WallocAudioModel(WallocAudioConfig(**config)).eval()
    model.load_state_dict(weights)
    return model


def audio_inputs(clips, rate: int = 44100):
    return WallocAudioFeatureExtractor(hop_length=32)(clips, sampling_rate=rate, return_tensors="pt")


def image_inputs(images):
    return WallocImageProcessor()(images, return_tensors="pt")


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


PEAK = """
def reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak becomes what is resident now; see man 5 proc

def peak():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
"""


def printed_by(script: str, *arguments: str) -> list[str]:
    """Words on the last line that a script prints in a process of its own; it may call `reset_peak()` and `peak()`,
    bytes of resident memory since then."""
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("the peak of a process can be reset on Linux alone")
    command = [sys.executable, "-c", PEAK + script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1].split()
