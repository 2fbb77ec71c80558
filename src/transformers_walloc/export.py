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
from torch import nn

from .atomic import atomic_file
from .codec.bottleneck import code_dtype
from .codec.configuration_walloc import WallocConfig
from .codec.kinds import KINDS
from .codec.modeling_walloc import WallocAudioModel, WallocImageModel
from .export_modules import (
    ExportDecoder,
    ExportEncoder,
    ExportLatentDecoder,
    ExportQuantizer,
)
from .loading import load_codec, make_processor

FORMATS = ("onnx",)
PARTS = ("encoder", "quantizer", "decoder", "latent_decoder", "decoder_int8")
OPSET = 18  # what the exporter writes without a conversion


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
    signal, decoded = KINDS[config.kind].input_name, KINDS[config.kind].output_name
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
