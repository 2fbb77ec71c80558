"""The card of a fitted codec, and the lines that its fit prints."""

from typing import Any


def model_card(facts: dict[str, Any]) -> str:
    """README.md of a fitted codec: what it is for and what was measured."""
    name, image = facts["codec"], facts["kind"] != "audio"
    auto = "AutoImageProcessor" if image else "AutoFeatureExtractor"
    return f"""---
library_name: transformers
pipeline_tag: {"image-feature-extraction" if image else "feature-extraction"}
tags:
- walloc
- compression
- {facts["kind"]}
---

# {name}

A WaLLoC codec (Wavelet Learned Lossy Compression), fitted in closed form to {described(facts)}

```python
from transformers import AutoModel, {auto}
import transformers_walloc

model = AutoModel.from_pretrained("{name}")
processor = {auto}.from_pretrained("{name}")
```

## Measured

On crops of {"signals that it was not fitted to" if facts["measured_on"] == "held out" else "the data of the fit"}:

{chr(10).join("* " + line for line in lines(facts))}
"""


def described(facts: dict[str, Any]) -> str:
    many = f"{facts['signals']} signal{'s' if facts['signals'] != 1 else ''}"
    if facts["kind"] == "audio":
        return f"{many}: audio of {facts['num_channels']} channels at {facts['sampling_rate']} Hz"
    missing = f", nodata {facts['nodata']}" if facts["nodata"] is not None else ""
    return (
        f"{many}: {facts['kind']}s of {facts['num_channels']} channels, {facts['dtype']}, range {facts['low']:g} to "
        f"{facts['high']:g}{missing}"
    )


def lines(facts: dict[str, Any]) -> list[str]:
    unit = {"image": "bits per pixel", "volume": "bits per voxel", "audio": "kbit/s"}[facts["kind"]]
    rate = f"{facts['kbps' if facts['kind'] == 'audio' else 'bpp']:g} {unit}"
    return [
        f"dimensionality reduction {facts['dimensionality_reduction']:g} ({facts['latent_channels']} channels)",
        f"PSNR {facts['psnr']:.2f} dB over the range of the samples",
        f"files {facts['compression_ratio']:g} times smaller than samples of {facts['raw_bits']} bits ({rate})",
        f"step {facts['step']:.4g}; fitted in {facts['seconds']:g} s",
    ]
