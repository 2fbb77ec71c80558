"""Codecs as ONNX graphs for runtimes without PyTorch: encoder, quantiser and decoders with dynamic sizes.

```
encoder.onnx          pixel_values (B, C, H, W) or input_values (B, C, L)  ->  latents, companded, not rounded
quantizer.onnx        latents, step (1,)                                   ->  codes, int8 (int16 above 8 bits)
decoder.onnx          codes, step (1,)                                     ->  pixel_values or audio_values
latent_decoder.onnx   latents                                              ->  the same, latents not being rounded
decoder_int8.onnx     as decoder.onnx, most of its network in 8-bit integers
config.json, preprocessor_config.json
```

The package's own routes branch on the size of a signal and keep matrices per size. Here each level of the transform is
an explicit reflection and a strided convolution, which is exact for all sizes down to one latent. ONNX has an error
function but no inverse: `decompand_by_polynomial` takes its place, and codes are looked up in a table of all their
values.
"""

import copy
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .atomic import atomic_file
from .codec.bottleneck import MIN_PROBABILITY, code_dtype, companding_scale, decompand, latent_limit
from .codec.configuration_walloc import WallocConfig
from .codec.filter_banks import wavelet_filters
from .codec.modeling_walloc import WallocAudioModel, WallocImageModel
from .loading import load_codec, make_processor

FORMATS = ("onnx",)
PARTS = ("encoder", "quantizer", "decoder", "latent_decoder", "decoder_int8")
OPSET = 18  # what the exporter writes without a conversion

# Giles, "Approximating the erfinv function", GPU Computing Gems Jade 2 (2011): polynomials in w = -log(1 - x**2),
# shifted, below and above w = 5; highest power first.
_ERFINV_CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_ERFINV_TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def export_codec(
    codec: Any,
    folder: str | os.PathLike,
    format: str = "onnx",
    parts: Sequence[str] = ("encoder", "quantizer", "decoder"),
    calibration: Iterable[torch.Tensor] = (),
) -> dict[str, Path]:
    """Write the parts of a codec as graphs with dynamic batch and sizes.

    Args:
        codec: a `WallocImageModel` or `WallocAudioModel`, or the name of one: bundled, Hub id or folder.
        folder: where to write; made if missing.
        format: "onnx".
        parts: of `PARTS`. `decoder_int8` is for processors that multiply bytes (VNNI), where it is more than twice as
            fast; it loses some hundredths of a decibel.
        calibration: for `decoder_int8`: a few signals as `encode` takes them, which tell how large activations become.

    Returns:
        The file of each part. Beside them lie `config.json` and `preprocessor_config.json`.

    Raises:
        ValueError: an unknown format or part; `decoder_int8` without calibration, or of a decoder without a network.
        ImportError: onnx, onnxscript or (for `decoder_int8`) onnxruntime is missing.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; valid: {', '.join(FORMATS)}")
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"unknown part {unknown[0]!r}; valid: {', '.join(PARTS)}")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        if "decoder_int8" in parts:
            import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(f"export needs {error.name}: pip install 'transformers-walloc[onnx]'") from error
    model = _load(codec)
    feeds: list[dict[str, Any]] = []
    if "decoder_int8" in parts:
        if model.config.decoder_type == "linear":
            raise ValueError("decoder_int8: a linear decoder has no network to be quantised")
        feeds = _decoder_feeds(model, calibration)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {part: folder / f"{part}.onnx" for part in parts}
    with tempfile.TemporaryDirectory() as scratch:
        graphs = dict(paths)
        if "decoder_int8" in parts:
            graphs.pop("decoder_int8")
            graphs.setdefault("decoder", Path(scratch, "decoder.onnx"))
        for part, path in graphs.items():
            _write_onnx(export_program(model, part), path, _names(model.config, part))
        if "decoder_int8" in parts:
            _quantise_blocks(graphs["decoder"], paths["decoder_int8"], feeds)
    model.config.save_pretrained(folder)
    make_processor(model.config).save_pretrained(folder)
    return paths


def export_program(codec: Any, part: str) -> torch.export.ExportedProgram:
    """One of `PARTS` through `torch.export`, with dynamic batch and sizes."""
    model = _load(codec)
    config = model.config
    grid = tuple(torch.export.Dim(name, min=1, max=2**16) for name in ("rows", "columns")[-config.num_dims :])
    batch = torch.export.Dim("batch", min=1, max=2**16)
    # Not 1, which would be taken for a constant; unequal, so that no two sizes are taken for the same one.
    sizes = (5, 7)[: config.num_dims]
    latents = torch.zeros(2, config.latent_channels, *(n + 2 * config.encoder_padding for n in sizes))
    on_grid = {0: batch, **dict(enumerate(grid, 2))}
    step = torch.ones(1)
    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    shapes: tuple[dict[int, Any] | None, ...]
    if part == "encoder":
        module = ExportEncoder(model)
        inputs = (torch.zeros(2, config.num_channels, *(n * config.patch_size for n in sizes)),)
        shapes = ({0: batch, **{axis: config.patch_size * size for axis, size in enumerate(grid, 2)}},)
    elif part == "quantizer":
        module, inputs, shapes = ExportQuantizer(config), (latents, step), (on_grid, None)
    elif part == "decoder":
        codes = latents.to(code_dtype(config.latent_bits))
        module, inputs, shapes = ExportDecoder(model), (codes, step), (on_grid, None)
    elif part == "latent_decoder":
        module, inputs, shapes = ExportLatentDecoder(model), (latents,), (on_grid,)
    else:
        raise ValueError(f"unknown part {part!r}; valid: {', '.join(PARTS)}")
    with torch.no_grad():
        # Conditions on sizes that the solver cannot prove are checked when the program runs.
        return torch.export.export(
            module.eval(), inputs, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
        )


def _quantise_blocks(source: Path, target: Path, feeds: Sequence[dict[str, Any]]) -> None:
    """Statically quantise the residual blocks of a graph: 8-bit activations, weights with a scale for each channel.

    What joins and leaves the blocks stays in float32, and so does everything that is not a convolution of equally many
    inputs and outputs. Activations are unsigned, which is faster with VNNI; processors without it add products of
    unsigned and signed bytes in 16 bits, so weights have 7 bits.

    Args:
        source, target: ONNX files.
        feeds: inputs of the graph that tell how large activations become.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter(feeds)

        def get_next(self):
            return next(self.rest, None)

    graph = onnx.load(source).graph
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    inner = [node.name for node in convolutions if _of_a_block(shapes.get(node.input[1], ()))]
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends to prepare the graph, which the exporter has done
    try:
        with atomic_file(target) as partial:
            quantize_static(
                source,
                partial,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=inner,
            )
    finally:
        logger.setLevel(level)


def _of_a_block(shape: tuple[int, ...]) -> bool:
    """Whether weights (outputs, inputs, *kernel) are of a residual block, and not of a wavelet transform."""
    return len(shape) > 2 and shape[0] == shape[1] > 2 and math.prod(shape[2:]) > 1


def _decoder_feeds(model: Any, signals: Iterable[torch.Tensor]) -> list[dict[str, Any]]:
    feeds = []
    for signal in signals:
        with torch.inference_mode():
            codes = model.quantize(model.encode(signal)[0])
        feeds.append({"codes": codes.numpy(), "step": torch.ones(1).numpy()})
    if not feeds:
        raise ValueError("decoder_int8 needs calibration: a few signals as encode takes them")
    return feeds


def decompand_by_polynomial(u: torch.Tensor, latent_bits: int) -> torch.Tensor:
    """`decompand` of floats without an inverse error function, in float32.

    The relative error is below 1e-6 of the value, as is that of `torch.erfinv` itself, on the range that clamping to
    probabilities in [1e-4, 1 - 1e-4] leaves.
    """
    limit = 1.0 - 2.0 * MIN_PROBABILITY
    x = (u / latent_limit(latent_bits)).clamp(-limit, limit)
    w = -torch.log((1.0 - x) * (1.0 + x))
    centre = _polynomial(_ERFINV_CENTRE, w - 2.5)
    tail = _polynomial(_ERFINV_TAIL, torch.sqrt(w.clamp_min(0.0)) - 3.0)
    return torch.where(w < 5.0, centre, tail) * x * (math.sqrt(2.0) * companding_scale(latent_bits))


class ExportEncoder(nn.Module):
    """Signal -> latents."""

    def __init__(self, model: Any):
        super().__init__()
        self.analysis = PacketAnalysis(model.config)
        self.encoder = model.encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder.from_subbands(self.analysis(x))


class ExportQuantizer(nn.Module):
    """Latents and a step -> integer codes, as `model.quantize`."""

    def __init__(self, config: WallocConfig):
        super().__init__()
        self.limit, self.dtype = int(latent_limit(config.latent_bits)), code_dtype(config.latent_bits)

    def forward(self, latents: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return torch.round(latents / step).clamp(-self.limit, self.limit).to(self.dtype)


class _Synthesis(nn.Module):
    """Decompanded latents -> signal."""

    def __init__(self, model: Any):
        super().__init__()
        self.decoder, self.synthesis = model.decoder, PacketSynthesis(model.config)
        self.post_filter = model.post_filter if model.config.post_filter_size else nn.Identity()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        signal = self.synthesis(self.decoder(z))
        network = getattr(self.decoder, "network", None)  # of decoders that restore the picture
        if network is not None:
            signal = network(signal, z)
        return self.post_filter(signal).clamp(-0.5, 0.5)


class ExportLatentDecoder(nn.Module):
    """Latents -> signal."""

    def __init__(self, model: Any):
        super().__init__()
        self.latent_bits = model.config.latent_bits
        self.synthesis = _Synthesis(model)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.synthesis(decompand_by_polynomial(latents, self.latent_bits))


class ExportDecoder(nn.Module):
    """Integer codes and the step that they were quantised with -> signal."""

    levels: torch.Tensor
    values: torch.Tensor

    def __init__(self, model: Any):
        super().__init__()
        self.latent_bits = model.config.latent_bits
        self.limit = int(latent_limit(self.latent_bits))
        self.synthesis = _Synthesis(model)
        self.register_buffer("levels", torch.arange(-self.limit, self.limit + 1).float())
        self.register_buffer("values", decompand(self.levels, self.latent_bits))

    def forward(self, codes: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        table = torch.where(step == 1.0, self.values, decompand_by_polynomial(self.levels * step, self.latent_bits))
        index = (codes.to(torch.int64) + self.limit).clamp(0, 2 * self.limit)
        return self.synthesis(table[index])


class PacketAnalysis(nn.Module):
    """`wavelet_packet_analysis` level by level: (B, C, *sizes) -> (B, C * bands, *grid)."""

    taps: torch.Tensor  # (2, 1, length), low and high band

    def __init__(self, config: WallocConfig):
        super().__init__()
        self.num_levels, self.num_dims, self.boundary = config.num_levels, config.num_dims, config.boundary
        filters = wavelet_filters(config.wavelet)
        # Convolution layers correlate, so the taps run backwards; see `filter_banks._analysis_cascade`.
        taps = [filters.dec_lo[::-1].tolist(), filters.dec_hi[::-1].tolist()]
        self.register_buffer("taps", torch.tensor(taps)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.num_levels):
            for axis in range(1, self.num_dims + 1):  # the last axis first: it is the higher bit of a band
                x = self._split(x, -axis)
        return x

    def _split(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """(B, K, *sizes) -> (B, 2 K, *sizes), half the size along `axis`."""
        size, length = x.shape[axis], self.taps.shape[2]
        lead = length // 2 - 1
        extended = x.index_select(axis, _inside(torch.arange(-lead, size + length - lead - 2), size, self.boundary))
        y = _convolve(extended.flatten(0, 1)[:, None], self.taps, axis, stride=2)
        return y.unflatten(0, x.shape[:2]).flatten(1, 2)


class PacketSynthesis(nn.Module):
    """`wavelet_packet_synthesis` level by level, the inverse of [`PacketAnalysis`]."""

    taps: torch.Tensor  # (2 places of a pair of samples, 2 bands, length)

    def __init__(self, config: WallocConfig):
        super().__init__()
        self.num_levels, self.num_dims, self.boundary = config.num_levels, config.num_dims, config.boundary
        filters = wavelet_filters(config.wavelet)
        # Sample 2 i + p is the sum over a of coefficients i + a times tap p + length / 2 - 1 - 2 a of either
        # filter: see `_synthesis_cascade` in filter_banks.py.
        length = len(filters.rec_lo)
        self.before, self.after = (length - 1) // 4 + 1, length // 4
        taps = torch.zeros(2, 2, self.before + 1 + self.after)
        for place in range(2):
            for column in range(taps.shape[2]):
                tap = place + length // 2 - 1 - 2 * (column - self.before)
                if 0 <= tap < length:
                    taps[place, :, column] = torch.tensor([filters.rec_lo[tap], filters.rec_hi[tap]])
        self.register_buffer("taps", taps)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        for _ in range(self.num_levels):
            for axis in range(self.num_dims, 0, -1):
                y = self._merge(y, -axis)
        return y

    def _merge(self, y: torch.Tensor, axis: int) -> torch.Tensor:
        """(B, 2 K, *sizes) -> (B, K, *sizes), twice the size along `axis`."""
        size = y.shape[axis]
        y = y.unflatten(1, (-1, 2))
        batch, channels = y.shape[:2]
        places = torch.arange(-self.before, size + self.after)
        # Both bands lie on one lattice, low ones at even places, and the borders mirror that.
        bands = [
            y[:, :, band].index_select(axis, _inside(2 * places + band, 2 * size, self.boundary) // 2)
            for band in range(2)
        ]
        pairs = _convolve(torch.stack(bands, dim=2).flatten(0, 1), self.taps, axis, stride=1)
        # (R, 2, *sizes): the pair behind its axis, then both as one.
        pairs = pairs.movedim(1, pairs.ndim + axis)
        return pairs.flatten(axis - 1 + pairs.ndim, axis + pairs.ndim).unflatten(0, (batch, channels))


def _convolve(x: torch.Tensor, taps: torch.Tensor, axis: int, stride: int) -> torch.Tensor:
    """(R, inputs, *sizes) with (outputs, inputs, length) along `axis`."""
    if x.ndim == 3:
        return F.conv1d(x, taps, stride=stride)
    if axis == -1:
        return F.conv2d(x, taps[:, :, None], stride=(1, stride))
    return F.conv2d(x, taps[..., None], stride=(stride, 1))


def _inside(places: torch.Tensor, size: int, boundary: str) -> torch.Tensor:
    """Where the places of an endless signal lie within its `size` (even) samples."""
    # As tensors: ONNX takes no size that is known at run time only for a scalar.
    count = torch.full((1,), size)
    if boundary == "periodization":
        return torch.remainder(places, count)
    last = count - 1
    return last - (last - torch.remainder(places, 2 * last)).abs()


def _polynomial(coefficients: Sequence[float], x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y = y * x + coefficient
    return y


def _load(codec: Any) -> Any:
    """The codec in float32, a copy of it if it is a model already."""
    if isinstance(codec, str | os.PathLike):
        codec, _ = load_codec(codec)
    if not isinstance(codec, WallocImageModel | WallocAudioModel):
        raise TypeError(f"export takes a codec with encoder and decoder, got {type(codec).__name__}")
    fingerprint = codec.fingerprint()  # of the weights as they are
    model = copy.deepcopy(codec).float().eval()
    model.config.latent_fingerprint = fingerprint
    return model


def _names(config: WallocConfig, part: str) -> tuple[list[str], list[str]]:
    signal = "pixel_values" if config.num_dims == 2 else "input_values"
    decoded = "pixel_values" if config.num_dims == 2 else "audio_values"
    return {
        "encoder": ([signal], ["latents"]),
        "quantizer": (["latents", "step"], ["codes"]),
        "decoder": (["codes", "step"], [decoded]),
        "latent_decoder": (["latents"], [decoded]),
    }[part]


def _write_onnx(program: torch.export.ExportedProgram, path: Path, names: tuple[list[str], list[str]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporter internals
        onnx_program: Any = torch.onnx.export(
            program, input_names=names[0], output_names=names[1], dynamo=True, opset_version=OPSET, verbose=False
        )
    with atomic_file(path) as partial:
        onnx_program.save(partial, external_data=False)
