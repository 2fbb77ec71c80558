"""The card of a data set of latents: what is in it, and how it is read."""

import json
from pathlib import Path

from ..atomic import write_atomically

# No list of files in the metadata: `datasets` finds data/SPLIT-* by itself, and with a list it takes two data sets in
# folders of the same name for one, and reads the first from its cache in place of the second.
_OURS = "<!-- written by transformers-walloc -->"
_CARD = """\
---
tags:
- walloc
- image
---
{ours}
# Latents of images

Images as latents of the codec `{codec}` ({fingerprint}): codes of 8 bits, stored as `{storage}`, {size}, with a halo of
{halo} and a quantisation step of {step:g}. Rows: {rows}.

```python
from datasets import load_dataset
from transformers_walloc import decode_rows, latent_transform

dataset = load_dataset({folder!r}, split={split!r})
rows = dataset.with_transform(latent_transform({name!r}))  # rows[0]["latent_values"] is what a model reads
images = decode_rows(dataset[:4]["latents"], {name!r})  # and these are the images again

stream = load_dataset({folder!r}, split={split!r}, streaming=True)
stream = stream.map(latent_transform({name!r}), batched=True, remove_columns=["latents"])
```

Column `latents` is the struct that `transformers_walloc.latents.datasets` describes; all other columns are those of the
data set that the images are from.
"""


def write_card(folder: Path) -> None:
    """Write or renew `folder/README.md` from what the folder says of itself; another card is left alone."""
    path = folder / "README.md"
    if path.exists() and _OURS not in path.read_text(encoding="utf-8"):
        return
    facts = json.loads((folder / "walloc_latents.json").read_text(encoding="utf-8"))
    splits = list(facts["rows"])
    codec = facts["codec"]
    size = "at {} x {} pixels".format(*facts["size"]) if facts["size"] else "at their own sizes"
    text = _CARD.format(
        ours=_OURS,
        rows=", ".join(f"{count} of {split}" for split, count in facts["rows"].items()),
        name=codec,
        folder=folder.name,
        split=splits[0],
        size=size,
        **{key: facts[key] for key in ("codec", "fingerprint", "storage", "halo", "step")},
    )
    write_atomically(path, text)
