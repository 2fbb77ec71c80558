import json

import pytest
from codec_fixtures import audio_model, image_model
from huggingface_hub import ModelCard

from transformers_walloc.publishing.cards import model_card, write_card


def test_a_card_of_ones_own_codec(tmp_path):
    folder = tmp_path / "my-codec"
    image_model().save_pretrained(folder)
    recipe = {"train": ["/data/photos"], "sources": ["my photographs"], "machine": "my machine", "minutes": 2.5}
    recipe["continue_from"] = "walloc/rgb-16x"
    (folder / "recipe.json").write_text(json.dumps(recipe))
    row = {"codec": "my-codec", "dimensionality_reduction": 16.0, "psnr": 30.123, "bpp": 0.5, "files": 2}
    other = {"codec": "jpeg@quality=50", "dimensionality_reduction": 1.0, "psnr": 31.0, "bpp": 0.6}
    result = {
        "kind": "image",
        "command": "walloc evaluate tables",
        "data": {"name": "My pictures", "files": ["a", "b"]},
        "date": "2026-01-01",
        "machine": {"processor": "P", "cores": 2, "threads": 1, "clock": "wall time"},
        "versions": {"python": "3.11"},
        "rows": [row, other],
    }
    write_card(folder, result, repo_id="me/my-codec", licence="cc-by-4.0")
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "transformers"
    (value,) = [entry for entry in card.data.eval_results if entry.metric_type == "psnr"]
    assert value.metric_value == 30.12 and value.dataset_name == "My pictures"
    assert card.data.base_model == "walloc/rgb-16x"
    text = card.text
    order = [text.index(part) for part in ("latents", "```python", "## Limits", "## Results", "## Training")]
    assert order == sorted(order)
    assert 'from_pretrained("me/my-codec")' in text and "* my photographs\n" in text and "Apache" not in text
    assert "walloc train --train photos --minutes 2.5 --continue-from rgb-16x" in text
    assert "2.5 minutes of training in all, on my machine." in text
    assert "\n\n\n" not in text and json.loads((folder / "results.json").read_text())["rows"] == [row]


@pytest.mark.parametrize("model", [image_model, audio_model])
def test_a_card_before_anything_was_measured(model, tmp_path):
    model().save_pretrained(tmp_path / "new")
    text = str(model_card(tmp_path / "new"))
    assert "Not measured yet" in text and "| PSNR" not in text and "{{" not in text
