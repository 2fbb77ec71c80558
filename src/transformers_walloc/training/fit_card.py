"""The card of a fitted codec, and the lines that its fit prints."""

from typing import Any

from ..codec.kinds import KINDS


def model_card(facts: dict[str, Any]) -> str:
    """README.md of a fitted codec: what it is for and what was measured."""
    name, audio = facts["codec"], facts["kind"] == "audio"
    return f"""---
library_name: transformers
pipeline_tag: {"feature-extraction" if audio else "image-feature-extraction"}
tags:
- walloc
- compression
- codec
- {facts["kind"]}
---

# {name}

{name} turns signals like those that it was fitted to into {facts["dimensionality_reduction"]:g} times fewer numbers,
called latents. A model learns on them, and files hold them.

It is a WaLLoC codec (Wavelet Learned Lossy Compression) in closed form, fitted to {described(facts)}.

```python
{_SNIPPETS["audio" if audio else "image"].format(name=name).strip()}
```

`walloc compress FILE --model {name}` and `walloc decompress FILE --model {name}` do the same on the command line.

## Limits

* It fits the signals above. Others decode, but less faithfully.
* Codes have 8 bits: above 45 to 50 dB, use a lossless format.
* Fine detail that few channels cannot hold is blurred.

## Measured

On crops of {"signals that it was not fitted to" if facts["measured_on"] == "held out" else "the data of the fit"}:

{chr(10).join("* " + line for line in lines(facts))}

The options of the fit are in `fit.json`; the same data and options give the same codec.
"""


_SNIPPETS = {
    "image": """
import transformers_walloc  # registers the classes
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}")
inputs = processor(array, return_tensors="pt")  # an array of the shape and type that it was fitted to
latents = model.encode(inputs["pixel_values"]).latents
blob = model.compress(**inputs)[0]  # bytes of a .walloc file
(restored,) = processor.post_process(model.decompress([blob]))
""",
    "audio": """
import transformers_walloc  # registers the classes
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}")
inputs = extractor(array, sampling_rate=sampling_rate, return_tensors="pt")  # (channels, length)
latents = model.encode(inputs["input_values"]).latents
blob = model.compress(**inputs)[0]  # bytes of a .walloc file
(restored,) = model.decompress([blob])
""",
}


def described(facts: dict[str, Any]) -> str:
    many = f"{facts['signals']} signal{'s' if facts['signals'] != 1 else ''}"
    channels = f"{facts['num_channels']} channel{'s' if facts['num_channels'] != 1 else ''}"
    if facts["kind"] == "audio":
        return f"{many}: audio of {channels} at {facts['sampling_rate']} Hz"
    missing = f", nodata {facts['nodata']}" if facts["nodata"] is not None else ""
    return (
        f"{many}: {facts['kind']}s of {channels}, {facts['dtype']}, range {facts['low']:g} to {facts['high']:g}"
        f"{missing}"
    )


def lines(facts: dict[str, Any]) -> list[str]:
    kind = KINDS[facts["kind"]]
    rate = f"{facts[kind.rate]:g} {kind.rate_unit}"
    return [
        f"dimensionality reduction {facts['dimensionality_reduction']:g} ({facts['latent_channels']} channels)",
        f"PSNR {facts['psnr']:.2f} dB over the range of the samples",
        f"files {facts['compression_ratio']:g} times smaller than samples of {facts['raw_bits']} bits ({rate})",
        f"step {facts['step']:.4g}; fitted in {facts['seconds']:g} s",
    ]
