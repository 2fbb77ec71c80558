"""Fit a codec to your own signals in one pass: images and volumes of any bands and bits, audio of any channels.

The pass accumulates the covariance of the wavelet packet coefficients; its leading eigenvectors are the codec
(Karhunen-Loeve transform). The same data give the same codec, bit for bit on any number of threads. `walloc fit` is
`fit_codec` as a command.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..codec.bottleneck import companding_scale
from ..codec.configuration_walloc import WallocConfig
from ..codec.kinds import KINDS
from ..codec.rate_control import decibels
from ..codec.runtime import torch_threads
from ..loading import MODELS, make_processor
from .conversion import save_model_folder
from .entropy_fitting import fit_entropy_tables
from .fit_card import described, lines, model_card
from .fit_signals import Kind, count_signals, read_signals
from .fit_statistics import Gathered, Kept
from .fit_training import train_decoder
from .klt import SubbandStatistics, fit_klt
from .scale import measure_scale

DEFAULT_REDUCTION = 16.0
HOLD_OUT = 8  # every eighth signal is measured on and not fitted to
ROUNDING = 1 / 16  # error of rounding over the variance of the strongest channel that is left out
MEASURED = 24  # crops that are kept for measuring
CODED = 48  # crops that the entropy tables are fitted to
TRAINED = 256  # crops that are kept for training a network


@dataclass
class Fit:
    """A fitted codec.

    Args:
        model: in evaluation mode.
        processor: that fits it.
        facts: what the data were found to be and what was measured, plain values for JSON.
    """

    model: Any
    processor: Any
    facts: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def fit_codec(
    data: Any,
    output: str | Path | None = None,
    *,
    kind: Kind | None = None,
    num_channels: int | None = None,
    sampling_rate: int | None = None,
    sample_range: tuple[float, float] | None = None,
    nodata: float | None = None,
    band_names: Sequence[str] | None = None,
    dimensionality_reduction: float | None = None,
    latent_channels: int | None = None,
    psnr: float | None = None,
    num_levels: int | None = None,
    wavelet: str | None = None,
    boundary: str | None = None,
    symmetric: bool = False,
    step: float | None = None,
    rate: float | None = None,
    validation: Any = None,
    table_steps: int = 200,
    minutes: float = 0.0,
    overwrite: bool = False,
    progress: bool = True,
) -> Fit:
    """Fit a codec to signals in closed form, in one streaming pass.

    Args:
        data: a folder, files, or an iterable of images or clips; see `read_signals`.
        output: model folder to write; none if None.
        kind: "image", "audio" or "volume", where the data do not tell: "volume" makes slices of three axes, and of the
            pages of TIFF files.
        num_channels: converts images to gray (1) or colour (3) and clips to mono (1).
        sampling_rate: of the codec, in Hz, to which clips are resampled; that of the first clip if None.
        sample_range: the values that become -0.5 and 0.5; measured if None, see `media.rasters.read_raster`.
        nodata: value that marks missing samples.
        band_names: names of the bands, kept in the files.
        dimensionality_reduction: how many numbers of the signal one number of the latents stands for; 16 if neither
            this nor the following two are given.
        latent_channels: the same as a number of channels.
        psnr: the same as the PSNR in dB (of samples over their range, clips normalised) that must be reached, by the
            smallest number of channels that does.
        num_levels: levels of the wavelet packet transform; 3 for images, 8 for audio, 2 for volumes if None.
        wavelet: of the transform, by its PyWavelets name; `bior4.4` (CDF 9/7) if None.
        boundary: `symmetric` or `periodization`, the only one for wavelets of even length; the one that fits if None.
        symmetric: images only: 16 x 16 blocks (`num_levels=4`, `wavelet="haar"`) that do not overlap, with latents that
            can be flipped, rotated and cropped. Take them for learners, for augmentation and for reading parts of
            pictures; overlapping wavelets where pictures are looked at through the linear decoder, which shows blocks.
        step: quantisation step of the transform's coefficients, in units of a range of 1. If None it is chosen so that
            rounding costs a sixteenth of the strongest channel that is left out, signal or noise of the data: no more
            than is lost anyway.
        rate: bits per pixel, or kilobits per second, that the step is chosen for instead.
        validation: other data to measure on. If None every eighth signal is kept for it, where there are as many.
        table_steps: optimisation steps of each network of the entropy tables; 0 keeps the generic tables.
        minutes: train a network for the decoder for so long.
        overwrite: whether `output` may be replaced.
        progress: whether to show progress and what was found.

    Raises:
        ValueError: mixed numbers of channels or types, constant data, NaN or infinite values, a range that the type
            does not hold, fewer positions than coefficients, targets that contradict each other or are out of reach.
        FileExistsError: `output` exists and `overwrite` is false.
    """
    if sum(value is not None for value in (dimensionality_reduction, latent_channels, psnr)) > 1:
        raise ValueError("choose one of dimensionality_reduction, latent_channels and psnr")
    if step is not None and rate is not None:
        raise ValueError("choose one of step and rate")
    transform = _transform(wavelet, boundary, symmetric)
    if symmetric:
        num_levels = num_levels or 4
    if output is not None and Path(output).exists() and not overwrite:
        raise FileExistsError(f"{output} exists already")
    started = time.monotonic()
    options: dict[str, Any] = {
        "kind": kind,
        "num_channels": num_channels,
        "sampling_rate": sampling_rate,
        "nodata": nodata,
    }
    total = count_signals(data, kind) if progress else None
    hold_out = HOLD_OUT if validation is None else 0
    kept = TRAINED if minutes else CODED
    found = Gathered(num_levels, sample_range, sampling_rate, band_names, hold_out, kept, MEASURED, transform)
    with torch_threads(1):
        for signal in tqdm(read_signals(data, **options), "statistics", total, disable=not progress, unit="signal"):
            if symmetric and signal.kind != "image":
                raise ValueError(f"symmetric is for images; {signal.name or 'the first signal'} is {signal.kind}")
            found.take(signal)
    config, statistics = found.finish()
    if validation is not None:
        held = Kept(MEASURED)
        for signal in read_signals(validation, **options):
            found.check(signal)
            held.offer(signal)
    else:
        held = found.held if found.held.signals else found.kept
    units = [found.to_unit(signal) for signal in held.signals[:MEASURED]]
    fitted = [found.to_unit(signal) for signal in found.kept.signals[:CODED]]
    facts = found.facts() | {"measured_on": "held out" if held is not found.kept else "the data of the fit"}
    if progress:
        print(described(facts), flush=True)

    if psnr is None:
        channels = _channels(config, dimensionality_reduction, latent_channels)
        model, step = _closed_form(config, statistics, channels, step, symmetric)
    else:
        model, step = _reach(config, statistics, psnr, step, units, symmetric)
    if rate is not None:
        model, step = _meet(model, step, statistics, rate, units)
    if minutes:
        shape = {"decoder_type": "residual", "decoder_hidden_size": 48, "decoder_num_layers": 4}
        model, step = _closed_form(model.config, statistics, model.config.latent_channels, step, symmetric, **shape)
        if progress:
            print(f"decoder: {minutes:g} min of training", flush=True)
        with torch.enable_grad():
            train_decoder(model, [found.to_unit(signal) for signal in found.kept.signals], minutes)
        model.eval()
    _set_scale(model, fitted)
    if table_steps:
        if progress:
            print("entropy tables", flush=True)
        _fit_tables(model, fitted, table_steps)
    facts |= _measure(model, step, units, found) | {"seconds": round(time.monotonic() - started, 1)}
    fit = Fit(model, make_processor(model.config), facts)
    if progress:
        print("\n".join(lines(facts)))
    if output is not None:
        _save(fit, Path(output), overwrite)
    return fit


def _transform(wavelet: str | None, boundary: str | None, symmetric: bool) -> dict[str, str]:
    """Fields of a configuration; those that are not given follow from the others."""
    if symmetric:
        wavelet, boundary = wavelet or "haar", boundary or "periodization"
        if (wavelet, boundary) != ("haar", "periodization"):
            raise ValueError(
                f"symmetric needs wavelet 'haar' and boundary 'periodization', got {wavelet!r} and {boundary!r}"
            )
    elif wavelet == "haar" and boundary is None:
        boundary = "periodization"
    return {name: value for name, value in (("wavelet", wavelet), ("boundary", boundary)) if value is not None}


def _channels(config: WallocConfig, reduction: float | None, channels: int | None) -> int:
    if channels is None:
        reduction = DEFAULT_REDUCTION if reduction is None else reduction
        if not reduction >= 1:
            raise ValueError(f"dimensionality_reduction is {reduction}; it must be at least 1")
        channels = max(1, round(config.subband_channels / reduction))
    if not 1 <= channels <= config.subband_channels:
        raise ValueError(f"latent_channels is {channels}; valid: 1 to {config.subband_channels}")
    return channels


@torch_threads(1)
def _closed_form(
    config: WallocConfig, statistics: SubbandStatistics, channels: int, step: float | None, symmetric: bool, **changes
) -> tuple[Any, float]:
    """The codec with so many channels, and its step: from what is left out if None."""
    config = type(config).from_dict(
        {**config.to_dict(), "latent_channels": channels, "latent_symmetry": None, **changes}
    )
    variances = np.linalg.eigvalsh(statistics.covariance)[::-1]
    rank = _rank(variances)
    if channels > rank:
        raise ValueError(
            f"latent_channels is {channels}, but only {rank} of the {config.subband_channels} coefficients of these "
            "data vary independently: choose fewer"
        )
    if step is None:
        left_out = variances[channels] if channels < len(variances) else variances[-1]
        # No finer than what companding to `latent_bits` holds of the strongest channel.
        finest = math.sqrt(variances[0]) / companding_scale(config.latent_bits)
        step = max(math.sqrt(12 * ROUNDING * max(left_out, 0.0)), finest)
    model: Any = MODELS[config.kind][0](config)
    fit_klt(model, statistics, step, symmetric)
    return model.eval(), step


def _rank(variances: np.ndarray) -> int:
    """How many coefficients vary independently; `variances` in decreasing order."""
    return int((variances > 1e-9 * variances[0]).sum())


def _reach(
    config: WallocConfig, statistics: SubbandStatistics, psnr: float, step: float | None, units, symmetric: bool
) -> tuple[Any, float]:
    """The codec with the fewest channels that reach a PSNR, by bisection."""
    fails, reaches = 0, _rank(np.linalg.eigvalsh(statistics.covariance)[::-1])
    best = _closed_form(config, statistics, reaches, step, symmetric)
    most = _psnr(best[0], units)
    if most < psnr:
        raise ValueError(f"psnr {psnr:g} dB is out of reach: with all {reaches} channels these data give {most:.2f} dB")
    while reaches - fails > 1:
        middle = (fails + reaches) // 2
        tried = _closed_form(config, statistics, middle, step, symmetric)
        if _psnr(tried[0], units) >= psnr:
            best, reaches = tried, middle
        else:
            fails = middle
    return best


def _meet(model, step: float, statistics: SubbandStatistics, rate: float, units) -> tuple[Any, float]:
    """The same codec with the step that gives a rate, by bisection in its logarithm."""
    low, high = math.log(step / 64), math.log(step * 64)
    channels, symmetric = model.config.latent_channels, model.config.latent_symmetry is not None
    for _ in range(10):
        middle = (low + high) / 2
        tried, _ = _closed_form(model.config, statistics, channels, math.exp(middle), symmetric)
        low, high = (middle, high) if _rate(tried, units) > rate else (low, middle)
    return _closed_form(model.config, statistics, channels, math.exp(high), symmetric)


@torch_threads(1)
def _set_scale(model, units) -> None:
    """Mean and standard deviation of the latents, for models that learn from them."""
    mean, std = measure_scale(model, (x[None] for x in units))
    model.config.latents_mean = [round(value, 5) for value in mean]
    model.config.latents_std = [round(max(value, 1e-3), 5) for value in std]


@torch_threads(1)
def _fit_tables(model, units, steps: int) -> None:
    """Entropy tables for the codes of these signals, at the codec's step and at a coarser one."""
    codes = [model.quantize(model.encode(x[None]).latents, coarser)[0].numpy() for coarser in (1.0, 2.0) for x in units]
    if model.config.kind == "volume":  # as in files: slices one below the other
        codes = [item.reshape(len(item), -1, item.shape[-1]) for item in codes]
    with torch.enable_grad():
        model.set_entropy_tables(fit_entropy_tables(codes, steps=steps, hidden=8))


def _psnr(model, units) -> float:
    """Mean over signals, in dB, of samples in [-0.5, 0.5]."""
    errors = [(model.decode(model.quantize(model.encode(x[None]).latents))[0][0] - x).square().mean() for x in units]
    return float(np.mean([min(decibels(error.item()), 120.0) for error in errors]))


def _rate(model, units) -> float:
    """Bits per pixel, or kilobits per second, of finished files."""
    size = sum(len(model.compress(x[None])[0]) for x in units)
    positions = sum(math.prod(x.shape[1:]) for x in units)
    return 8 * size / positions * (model.config.sampling_rate / 1000 if model.config.kind == "audio" else 1.0)


def _measure(model, step: float, units, found: Gathered) -> dict[str, Any]:
    config = model.config
    rate = _rate(model, units)
    first = found.first
    bits = 16 if first is None or first.raster is None else 8 * np.dtype(first.raster.dtype).itemsize
    per_position = rate * 1000 / config.sampling_rate if config.kind == "audio" else rate
    return {
        "num_levels": config.num_levels,
        "latent_channels": config.latent_channels,
        "dimensionality_reduction": round(config.dimensionality_reduction, 2),
        "step": float(step),
        "psnr": round(_psnr(model, units), 2),
        KINDS[config.kind].rate: round(rate, 4),
        "compression_ratio": round(bits * config.num_channels / per_position, 1),
        "raw_bits": bits,
    }


def _save(fit: Fit, output: Path, overwrite: bool) -> None:
    facts = {**fit.facts, "codec": output.name}
    documents = {"README.md": model_card(facts), "fit.json": json.dumps(facts, indent=2) + "\n"}
    save_model_folder(fit.model, output, torch.float16, overwrite, documents)
    if fit.model.config.kind == "volume":  # the atlas is of pictures and waveforms
        return
    try:
        from ..evaluation import plots

        plots.save(plots.latent_atlas(fit.model), output / "atlas", ["png"])
    except ImportError:  # matplotlib comes with the extra `eval`
        return
    except ValueError:  # no picture of other than gray or colour
        return
    with open(output / "README.md", "a", encoding="utf-8") as card:
        card.write("\nWhat each latent channel stands for:\n\n![Latent atlas](atlas.png)\n")
