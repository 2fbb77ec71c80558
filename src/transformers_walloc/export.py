"""Codecs as ONNX graphs for runtimes without PyTorch: encoder, quantiser and decoders with dynamic sizes.

```
encoder.onnx          pixel_values (B, C, H, W) or input_values (B, C, L)  ->  latents, companded, not rounded
quantizer.onnx        latents, step (1,)                                   ->  codes, int8 (int16 above 8 bits)
decoder.onnx          codes, step (1,)                                     ->  pixel_values or audio_values
latent_decoder.onnx   latents                                              ->  the same, latents not being rounded
config.json, preprocessor_config.json
```

The package's own routes branch on the size of a signal and keep matrices per size. Here each level of the transform is
an explicit reflection and a strided convolution, which is exact for all sizes down to one latent. ONNX has an error
function but no inverse: `decompand_by_polynomial` takes its place, and codes are looked up in a table of all their
values.
"""

import copy
import os
import warnings
from collections.abc import Sequence
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
PARTS = ("encoder", "quantizer", "decoder", "latent_decoder")
OPSET = 18  # what the exporter writes without a conversion


def export_codec(
    codec: Any,
    folder: str | os.PathLike,
    format: str = "onnx",
    parts: Sequence[str] = ("encoder", "quantizer", "decoder"),
) -> dict[str, Path]:
    """Write the parts of a codec as graphs with dynamic batch and sizes.

    Args:
        codec: a `WallocImageModel` or `WallocAudioModel`, or the name of one: bundled, Hub id or folder.
        folder: where to write; made if missing.
        format: "onnx".
        parts: of `PARTS`.

    Returns:
        The file of each part. Beside them lie `config.json` and `preprocessor_config.json`.

    Raises:
        ValueError: an unknown format or part.
        ImportError: onnx or onnxscript is missing.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; valid: {', '.join(FORMATS)}")
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"unknown part {unknown[0]!r}; valid: {', '.join(PARTS)}")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"export needs {error.name}: pip install 'transformers-walloc[onnx]'") from error
    model = _load(codec)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {part: folder / f"{part}.onnx" for part in parts}
    for part, path in paths.items():
        _write_onnx(export_program(model, part), path, _names(model.config, part))
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
