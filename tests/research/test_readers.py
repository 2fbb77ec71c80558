"""Scores of frozen readers, on texts and numbers whose answers are plain."""

import mido
import numpy as np
import pytest
import soundfile
from PIL import Image

from research.corpora import multitracks
from research.readers import documents, music, scores

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


def test_notes_that_were_played_are_those_of_the_score(tmp_path):
    def song(channel: int, notes: list[tuple[int, float, float]]) -> bytes:
        events = [(start, mido.Message("note_on", channel=channel, note=note), "x") for note, start, _ in notes]
        events += [(end, mido.Message("note_off", channel=channel, note=note), "x") for note, _, end in notes]
        return multitracks.excerpt_of_role(sorted(events, key=lambda event: event[0]), "x", 0.0, 30.0)

    # The last note begins after the part that is listened to, the one before it ends there.
    (tmp_path / "other.mid").write_bytes(song(0, [(69, 1.0, 1.5), (81, 19.0, 22.0), (60, 21.0, 22.0)]))
    (tmp_path / "bass.mid").write_bytes(song(1, [(45, 1.0, 2.0)]))
    intervals, pitches = music.played(tmp_path)
    np.testing.assert_allclose(intervals, [[1.0, 1.5], [1.0, 2.0], [19.0, 20.0]], atol=1e-3)
    assert sorted(pitches) == [110.0, 440.0, 880.0]


def test_a_mix_is_the_sum_of_its_stems(tmp_path):
    for name, value in (("drums", 0.25), ("other", 0.5)):
        soundfile.write(tmp_path / f"{name}.flac", np.full((2000, 2), value), 1000)
    clip, rate = music.mix(tmp_path)
    assert rate == 1000 and clip.shape == (2, 2000)
    np.testing.assert_allclose(clip, 0.75, atol=1e-4)


def test_scores_of_rendered_songs_are_against_their_notes(tmp_path, monkeypatch):
    pytest.importorskip("mir_eval")
    truth = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([440.0, 880.0])
    monkeypatch.setattr(music, "played", lambda song: truth)
    monkeypatch.setattr(music, "notes", lambda clip, rate: (truth[0][:1], truth[1][:1]))
    monkeypatch.setattr(music, "SCORES", tmp_path / "scores.json")
    song = tmp_path / "songs" / "a"
    song.mkdir(parents=True)
    soundfile.write(song / "other.flac", np.zeros((4000, 2)), 4000)
    (song / "other.mid").write_bytes(b"")
    argv = ["measure-scores", "--data", str(song.parent), "--conditions", "resample-19"]
    assert music.main(argv) == 0
    study = scores.load_study(tmp_path / "scores.json", "")
    for condition in ("original", "resample-19"):
        assert study.values(condition, "f1", ["a"]) == pytest.approx(100 * 2 / 3)
        assert study.values(condition, "recall", ["a"]) == 50
    assert music.main(["measure-scores", "--data", str(tmp_path)]) == 2
