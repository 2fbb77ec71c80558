"""The measurement of augmented latents on two classes of a few pictures."""

import json

import pytest
import skimage.data
from block_codecs import block_model
from PIL import Image

from research import augmentation


@pytest.fixture
def classes(tmp_path):
    for name, picture in (("cat", skimage.data.chelsea()), ("coffee", skimage.data.coffee())):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(picture[20 * i : 20 * i + 200, :300]).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def test_runs_are_kept_and_told(classes, tmp_path, capsys):
    model = block_model()
    model.config.latents_mean, model.config.latents_std = [0.0] * 48, [1.0] * 48
    model.save_pretrained(tmp_path / "codec")
    options = ["--data", str(classes), "--codec", str(tmp_path / "codec"), "--steps", "2", "--seeds", "0"]
    options += ["--output", str(tmp_path / "results.json")]
    augmentation.main(options)
    record = json.loads((tmp_path / "results.json").read_text())
    assert set(record["accuracy"]) == set(augmentation.CONDITIONS)
    assert all(0 <= value["0"] <= 100 for value in record["accuracy"].values())
    assert "random crops and flips" in capsys.readouterr().out
    record["accuracy"]["none"]["0"] = 12.34
    (tmp_path / "results.json").write_text(json.dumps(record))
    augmentation.main(options)
    assert "12.3" in capsys.readouterr().out  # read, not run again
    with pytest.raises(SystemExit):
        augmentation.main([*options, "--steps", "3"])


def test_summary_is_of_pairs():
    # Differences of 1 and 3: mean 2, half the width of the interval 12.706 * sqrt(2) / sqrt(2).
    record = {"accuracy": {"none": {"0": 50.0, "1": 60.0}, "crops": {"0": 51.0, "1": 63.0}}}
    assert "+2.0 (-10.7 to +14.7)" in augmentation.summary(record)
