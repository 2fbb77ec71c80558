"""Each example end to end, on tiny models and tiny data."""

import base64
import io
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import skimage.data
import soundfile
import yaml
from codec_fixtures import audio_model, image_model, sound
from pixel_processors import save_pixel_repository
from transformers import AutoModelForImageClassification, AutoModelForImageTextToText, AutoProcessor

from examples import document_vqa, encode_dataset, fine_tune_codec, image_classification, source_separation
from transformers_walloc import load_on_latents, load_processor_on_latents

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    image_model(12).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    made = {}

    def folder(family):
        if family not in made:
            made[family] = str(tmp_path_factory.mktemp(family))
            save_pixel_repository(family, made[family])
        return made[family]

    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A data set of pictures with questions, as a folder."""
    folder = tmp_path_factory.mktemp("pages")
    lines = []
    for i in range(10):
        PIL.Image.fromarray(skimage.data.astronaut()[20 * i : 20 * i + 70, :90]).save(folder / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "question": "what is the total", "answers": [f"word{30 + i % 2}"]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    for name, picture in (("astronaut", skimage.data.astronaut()), ("coffee", skimage.data.coffee())):
        (folder / name).mkdir()
        for i in range(6):
            PIL.Image.fromarray(picture[30 * i : 30 * i + 128, :130]).save(folder / name / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize(("family", "options"), [("smolvlm", ["--lora_rank", "2"]), ("qwen2_vl", [])])
def test_document_vqa(family, options, codec, repository, pages, tmp_path):
    """Fold, train, evaluate, save, and load what was saved."""
    image_options = {"smolvlm": {"do_image_splitting": False}, "qwen2_vl": {"max_pixels": 512}}[family]
    found = document_vqa.main(
        ["--model", repository(family), "--codec", codec, "--dataset", pages, "--test_size", "0.3", "--max_steps", "2",
         "--batch_size", "2", "--accumulation", "1", "--workers", "0", "--max_new_tokens", "2",
         "--image_options", json.dumps(image_options), "--output_dir", str(tmp_path / "out"), *options]
    )  # fmt: skip
    assert found.keys() == {"anls_before", "exact_match_before", "anls", "exact_match"}
    assert all(0 <= value <= 100 for value in found.values())
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    rows = [{"image": PIL.Image.open(f"{pages}/0.png"), "question": "what is the total", "answers": ["word30"]}] * 2
    inputs = document_vqa.collate(processor, rows)
    assert (inputs["labels"] != -100).sum(1).tolist() == [2, 2]  # the answer and the end
    assert model(**inputs).loss.isfinite()


def test_document_vqa_of_stored_latents(codec, repository, pages, tmp_path):
    """Pages that were encoded once go through the same processor and the same loop."""
    family = "smolvlm"
    model = load_on_latents(repository(family), codec, AutoModelForImageTextToText)
    processor = load_processor_on_latents(repository(family), model, codec, do_image_splitting=False)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    folder = tmp_path / "latents"
    rows = encode_dataset.main([pages, str(folder), "--codec", codec, "--for_model", str(tmp_path / "model")])
    assert rows == {"train": 10}
    found = document_vqa.main(
        ["--model", repository(family), "--codec", codec, "--dataset", str(folder), "--test_size", "0.3",
         "--max_steps", "1", "--batch_size", "2", "--accumulation", "1", "--workers", "0", "--max_new_tokens", "2",
         "--image_options", '{"do_image_splitting": false}', "--output_dir", str(tmp_path / "out")]
    )  # fmt: skip
    assert 0 <= found["anls"] <= 100
    from datasets import load_dataset

    stored = load_dataset(str(folder), split="train")[0]
    image = PIL.Image.open(f"{pages}/0.png")
    text = document_vqa.prompt_of(processor, stored["question"])
    of_row = processor(images=[[stored["latents"]]], text=[text], return_tensors="pt")
    of_image = processor(images=[[image]], text=[text], return_tensors="pt")
    assert of_row["input_ids"].equal(of_image["input_ids"])
    # Latents are rounded in the data set, and not of a picture.
    error = (of_row["pixel_values"] - of_image["pixel_values"]).norm() / of_image["pixel_values"].norm()
    assert 0 < error < 0.05


def test_anls():
    """The metric's own examples."""
    assert document_vqa.anls("Hello", "hello") == 1
    assert document_vqa.anls("abcd", "abce") == 0.75
    assert document_vqa.anls("abcd", "xyz") == 0
    assert document_vqa.anls("", "") == 1


def test_image_classification(codec, repository, classes, tmp_path):
    found = image_classification.main(
        ["--model", repository("vit"), "--codec", codec, "--dataset", classes, "--test_size", "0.5", "--max_steps", "2",
         "--batch_size", "3", "--workers", "0", "--output_dir", str(tmp_path)]
    )  # fmt: skip
    assert np.isfinite(found["eval_loss"]) and 0 <= found["eval_accuracy"] <= 1
    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.id2label == {0: "astronaut", 1: "coffee"}
    from transformers import pipeline

    assert len(pipeline("image-classification", model=str(tmp_path))(f"{classes}/coffee/0.png")) == 2


def test_encode_dataset(codec, classes, tmp_path):
    assert encode_dataset.main([classes, str(tmp_path / "out"), "--codec", codec, "--size", "64", "64"]) == {
        "train": 12
    }
    with pytest.raises(SystemExit):
        encode_dataset.main([classes])


def test_fine_tune_codec(classes, tmp_path):
    found = fine_tune_codec.main(
        ["--data", classes, "--output_dir", str(tmp_path), "--test_size", "0.2", "--crop_size", "32",
         "--max_steps", "2", "--batch_size", "2", "--workers", "0", "--learning_rate", "1e-6"]
    )  # fmt: skip
    assert abs(found["psnr"] - found["psnr_before"]) < 0.5 and found["psnr"] > 20


def test_source_separation(tmp_path):
    """Train, measure, separate; and again from the saved model."""
    audio_model().save_pretrained(tmp_path / "codec")
    for song in range(2):
        for name, seed in (("bells", 3 + song), ("rest", 8 + song)):
            path = tmp_path / "songs" / str(song) / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.3 * sound(2.0, seed=seed).T, 44100)
    (tmp_path / "mixes").mkdir()
    mix = sum(soundfile.read(tmp_path / "songs" / "0" / f"{name}.wav")[0] for name in ("bells", "rest"))
    soundfile.write(tmp_path / "mixes" / "mix.wav", mix, 44100)
    config = yaml.safe_load((EXAMPLES / "source_separation.yaml").read_text())
    config["audio"]["chunk_size"] = 4096
    config["training"] |= {"instruments": ["bells", "rest"], "num_steps": 2, "batch_size": 2}
    config["model"] = {"codec": str(tmp_path / "codec"), "hidden_size": 8, "num_layers": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    common = ["--model_type", "walloc", "--config_path", str(tmp_path / "config.yaml"), "--num_workers", "0"]
    common += ["--valid_path", str(tmp_path / "songs")]
    found = source_separation.main(
        [*common, "--data_path", str(tmp_path / "songs"), "--results_path", str(tmp_path / "model")]
    )
    assert found.keys() == {"sdr_bells", "sdr_rest", "sdr"} and np.isfinite(found["sdr"])
    again = source_separation.main(
        [*common, "--start_check_point", str(tmp_path / "model"), "--input_folder", str(tmp_path / "mixes"),
         "--store_dir", str(tmp_path / "out")]
    )  # fmt: skip
    assert again == pytest.approx(found)
    assert sorted(p.name for p in (tmp_path / "out" / "mix").iterdir()) == ["bells.wav", "rest.wav"]


def test_sdr():
    """Seconds of a known error, and one of silence, which counts for nothing."""
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(2, 4000))
    reference[:, 3000:] = 0
    estimate = reference.copy()
    for second, decibels in enumerate((20, 10, 0)):
        part = slice(1000 * second, 1000 * (second + 1))
        noise = rng.normal(size=(2, 1000))
        noise *= np.linalg.norm(reference[:, part]) / np.linalg.norm(noise) * 10 ** (-decibels / 20)
        estimate[:, part] += noise
    assert source_separation.sdr(reference, estimate, 1000) == pytest.approx(10)


@pytest.mark.parametrize("trust", [False, True], ids=["package", "remote-code"])
def test_serve(trust, codec, repository, tmp_path):
    """The server starts, answers a question on a picture, and stops."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    model = load_on_latents(repository("smolvlm"), codec, AutoModelForImageTextToText)
    model.save_pretrained(tmp_path)
    load_processor_on_latents(repository("smolvlm"), model, codec).save_pretrained(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = ["-m", "transformers.cli.transformers", "serve"] if trust else [str(EXAMPLES / "serve.py")]
    options = [str(tmp_path), "--port", str(port), "--device", "cpu", *(["--trust-remote-code"] if trust else [])]
    with open(tmp_path / "log.txt", "w+") as log:
        server = subprocess.Popen([sys.executable, *program, *options], stdout=log, stderr=log)
        try:
            answer = _ask(server, port, str(tmp_path))
        except Exception as error:
            log.seek(0)
            raise AssertionError(log.read()[-3000:]) from error
        finally:
            server.terminate()
            server.wait(30)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["prompt_tokens"] > 4 * 7  # the picture's


def _ask(server, port: int, model: str) -> dict:
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        if server.poll() is not None:
            raise RuntimeError("the server has ended")
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).read()
            break
        except OSError:
            time.sleep(0.5)
    buffer = io.BytesIO()
    PIL.Image.fromarray(skimage.data.astronaut()[:200, :101]).save(buffer, "PNG")
    picture = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "what is the total"}]
    request = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 3, "stream": False}
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(request).encode(), headers)
    return json.loads(urllib.request.urlopen(asked, timeout=120).read())
