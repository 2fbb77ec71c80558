"""Scores of frozen readers, on texts and numbers whose answers are plain."""

import numpy as np
import pytest
from PIL import Image

from research.readers import documents, scores

ANSWERS = {"company": "ACME SDN BHD", "date": "25/12/2018", "address": "12, JALAN SAGU", "total": "9.00"}


def test_fields_are_found_regardless_of_case_spaces_and_punctuation():
    pytest.importorskip("rapidfuzz")
    found = documents.score("acme sdn. bhd 12 Jalan Sagu Date: 25/12/2018 Total RM 9.00", ANSWERS)
    assert found == {"company": 1, "date": 1, "address": 1, "total": 1, "found": 1, "anls": 1}
    # A wrong digit loses a date and a total, and one letter in twelve loses no name.
    found = documents.score("ACNE SDN BHD, 12 JALAN SAGU, 25/12/2013, 900", ANSWERS)
    assert (found["company"], found["date"], found["total"], found["found"]) == (1, 0, 0, 0.5)
    assert 0.8 < found["anls"] < 1
    assert documents.score("", ANSWERS)["anls"] == 0


def test_intervals_hold_the_mean_and_shrink_with_more_signals():
    values = np.random.default_rng(0).normal(50, 10, 400)
    mean, low, high = scores.interval(values)
    assert mean == pytest.approx(values.mean()) and low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * 10 / 20, rel=0.15)  # of the normal distribution
    few = scores.interval(values[:25])
    assert few[2] - few[1] > 2 * (high - low)


def test_views_keep_the_size_and_lose_what_they_should():
    page = Image.effect_noise((96, 64), 80).convert("RGB")
    ways = documents.Ways()
    error = {}
    for condition in ("original", "resize-4", "resize-16", "linear-4", "linear-16", "linear-32"):
        view = ways.view(page, condition)
        assert view.size == page.size
        error[condition] = np.square(np.subtract(view, page, dtype=float)).mean()
    assert error["original"] == 0
    assert error["linear-4"] < error["linear-16"] < error["linear-32"]
    assert error["linear-4"] < error["resize-4"]


def test_tables_and_picture_are_of_signals_that_all_conditions_have(tmp_path, monkeypatch):
    study = scores.Study("Pages")
    for condition, value in {"original": 1.0, "resize-4": 0.5, "walloc-4": 0.75}.items():
        for signal in ("a", "b"):
            study.put(condition, signal, "key", {"found": value})
    study.put("original", "c", "key", {"found": 0.0})  # the others are still to come
    scores.save_study(tmp_path / "study.json", study)
    assert scores.load_study(tmp_path / "study.json", "Pages").get("original", "c", "key")
    assert scores.load_study(tmp_path / "study.json", "Pages").get("original", "c", "other weights") is None
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- x:begin -->\nold\n<!-- x:end -->\nrest\n")
    monkeypatch.setattr(scores, "PAGE", page)
    monkeypatch.setattr(scores, "PICTURE", tmp_path / "picture.png")
    ways = {"resize": "resized", "walloc": "WaLLoC"}
    scores.summarise("x", tmp_path / "study.json", {"found": "found, %"}, [4], ways)
    text = page.read_text()
    assert "2 of them" in text and "old" not in text and text.endswith("rest\n")
    assert "| 4 | 50.0 (50.0 to 50.0) | 75.0 (75.0 to 75.0) | +25.0 (+25.0 to +25.0) |" in text
    assert (tmp_path / "picture_x.png").stat().st_size > 1000
