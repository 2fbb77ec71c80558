"""The whole folder of a model on latents: model, tokenizer, chat template and image processor, for every family."""

import base64
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import skimage.data
import torch
from codec_fixtures import image_model
from pixel_models import AUTO_CLASSES, IMAGE_TOKEN, LANGUAGE
from pixel_processors import (
    IMAGE_PROCESSORS,
    PROCESSORS,
    image_processor,
    placeholder,
)
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, pipeline

from transformers_walloc import WallocImageModel, WallocLatentImageProcessor, load_on_latents, load_processor_on_latents
from transformers_walloc.latents.tiling import Tiling

PICTURE = PIL.Image.fromarray(skimage.data.astronaut()[:200, :101])
# Their processors have no `_get_num_multimodal_tokens`, on pixels neither.
UNASKED = ("smolvlm", "paddleocr_vl")


def _inputs(processor, family: str, image=PICTURE, **options):
    if family.startswith("col"):
        return processor(images=[image], return_tensors="pt", **options)
    return processor(images=image, text=f"{placeholder(family)} what is the total", return_tensors="pt", **options)


@pytest.mark.parametrize("family", PROCESSORS)
def test_whole_folder(family, saved):
    """What is saved loads by the Auto classes, answers, and has as many tokens as the pixel model's processor says."""
    folder = saved(family)
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(processor.image_processor, WallocLatentImageProcessor)
    inputs = _inputs(processor, family)
    tokens = int((inputs["input_ids"] == IMAGE_TOKEN).sum())
    own = image_processor(family)
    if "tiling" in processor.image_processor.to_dict():
        assert Tiling(processor.image_processor.tiling).plan(200, 101) == Tiling(Tiling.options_of(own, 4)).plan(
            200, 101
        )
    if hasattr(own, "merge_size"):
        assert tokens == own.get_number_of_image_patches(200, 101) // 4
    if family not in UNASKED:
        asked = processor._get_num_multimodal_tokens(image_sizes=[(200, 101)])["num_image_tokens"][0]
        # Some count what stands around and between the tiles.
        assert asked - tokens == {"idefics3": 17, "granite_docling": 4, "internvl": 2}.get(family, 0)
    model = AUTO_CLASSES[family].from_pretrained(folder)
    if family in LANGUAGE:
        generated = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        assert generated.shape[1] == inputs["input_ids"].shape[1] + 2
        again = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "what is"}]}],
            tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        )  # fmt: skip
        assert again["pixel_values"].equal(inputs["pixel_values"])
    else:
        assert model(**inputs).embeddings.isfinite().all()


@pytest.mark.parametrize("family", IMAGE_PROCESSORS)
def test_whole_folder_of_images_alone(family, saved):
    folder = saved(family)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert isinstance(processor, WallocLatentImageProcessor)
    output = AUTO_CLASSES[family].from_pretrained(folder)(**processor(PICTURE, return_tensors="pt"))
    assert next(iter(output.values())).isfinite().all()


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_vl"])
def test_pipeline(family, saved, tmp_path):
    """Chat messages with a picture, its path, its URL."""
    answerer = pipeline("image-text-to-text", model=saved(family))
    PICTURE.save(tmp_path / "page.png")
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    answers = []
    for image in ({"image": PICTURE}, {"path": str(tmp_path / "page.png")}, {"url": url}):
        messages = [{"role": "user", "content": [{"type": "image", **image}, {"type": "text", "text": "what is"}]}]
        answer = answerer(text=messages, max_new_tokens=3, do_sample=False, return_full_text=False)
        answers.append(answer[0]["generated_text"])
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_vl", "vit"])
def test_without_the_package(family, saved, tmp_path):
    """`trust_remote_code` gives the same inputs where nothing of this package can be imported."""
    folder = saved(family)
    auto_class = "AutoImageProcessor" if family in IMAGE_PROCESSORS else "AutoProcessor"
    program = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers_walloc":
            raise ImportError("not installed")
sys.meta_path.insert(0, Blocked())
import torch, PIL.Image, skimage.data
from transformers import {auto_class}
processor = {auto_class}.from_pretrained({folder!r}, trust_remote_code=True)
picture = PIL.Image.fromarray(skimage.data.astronaut()[:200, :101])
text = {{}} if {family in IMAGE_PROCESSORS} else {{"text": {placeholder(family)!r} + " what is the total"}}
inputs = processor(images=picture, return_tensors="pt", **text)
torch.save(dict(inputs), {str(tmp_path / "inputs.pt")!r})
processor.save_pretrained({str(tmp_path / "again")!r})
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=300)
    found = torch.load(tmp_path / "inputs.pt")
    if family in IMAGE_PROCESSORS:
        inputs = AutoImageProcessor.from_pretrained(folder)(PICTURE, return_tensors="pt")
    else:
        inputs = _inputs(AutoProcessor.from_pretrained(folder), family)
    assert found.keys() == inputs.keys()
    for name, value in inputs.items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert sorted(os.listdir(tmp_path / "again")) == [f for f in sorted(os.listdir(folder)) if f not in _OF_THE_MODEL]


_OF_THE_MODEL = ("config.json", "generation_config.json", "model.safetensors")


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_vl", "gemma3", "vit"])
def test_works_when_the_codec_has_gone(family, repositories, tmp_path):
    """The folder carries its encoder: nothing else is read."""
    codec = tmp_path / "codec"
    image_model(12).save_pretrained(codec)
    model = load_on_latents(repositories(family), str(codec), AUTO_CLASSES[family])
    processor = load_processor_on_latents(repositories(family), model, str(codec))
    processor.save_pretrained(tmp_path / "saved")
    for file in codec.iterdir():
        file.unlink()
    codec.rmdir()
    auto_class = AutoImageProcessor if family == "vit" else AutoProcessor
    again = auto_class.from_pretrained(tmp_path / "saved")
    if family == "vit":
        assert again(PICTURE, return_tensors="pt")["pixel_values"].equal(
            processor(PICTURE, return_tensors="pt")["pixel_values"]
        )
    else:
        assert _inputs(again, family)["pixel_values"].equal(_inputs(processor, family)["pixel_values"])
    for file in (tmp_path / "saved").glob("*.json"):
        assert str(tmp_path) not in file.read_text()
    assert str(tmp_path) not in json.dumps(model.config.to_dict())


def test_pickle(saved):
    processor = AutoProcessor.from_pretrained(saved("qwen2_vl"))
    before = pickle.dumps(processor.image_processor)
    expected = _inputs(processor, "qwen2_vl")["pixel_values"]
    assert pickle.dumps(processor.image_processor) == before  # its hash stays as it is
    assert _inputs(pickle.loads(pickle.dumps(processor)), "qwen2_vl")["pixel_values"].equal(expected)


def test_budgets_of_a_call(saved):
    """By all the names that users know, through the processor of text and images too."""
    processor, own = AutoProcessor.from_pretrained(saved("qwen2_vl")), image_processor("qwen2_vl")
    for options in ({"max_pixels": 512}, {"size": {"shortest_edge": 256, "longest_edge": 512}}):
        expected = own.get_number_of_image_patches(200, 101, {"min_pixels": 256, "max_pixels": 512})
        inputs = _inputs(processor, "qwen2_vl", **options)
        assert len(inputs["pixel_values"]) == expected != own.get_number_of_image_patches(200, 101)
        assert processor._get_num_multimodal_tokens(image_sizes=[(200, 101)], **options)["num_image_patches"] == [
            expected
        ]
    again = AutoProcessor.from_pretrained(saved("qwen2_vl"), max_pixels=512)
    assert len(_inputs(again, "qwen2_vl")["pixel_values"]) == expected
    smol = AutoProcessor.from_pretrained(saved("smolvlm"))
    assert _inputs(smol, "smolvlm")["pixel_values"].shape[1] == 7
    assert _inputs(smol, "smolvlm", do_image_splitting=False)["pixel_values"].shape[1] == 1
    assert _inputs(smol, "smolvlm", size={"longest_edge": 32})["pixel_values"].shape[1] == 3


def test_batches(saved):
    """Two pictures in a prompt, prompts without any, pictures of different sizes."""
    other = PIL.Image.fromarray(skimage.data.coffee()[:60, :90])
    processor = AutoProcessor.from_pretrained(saved("smolvlm"))
    texts = ["<image> what <image> is", "<image> the total"]
    inputs = processor(images=[[PICTURE, other], [other]], text=texts, padding=True, return_tensors="pt")
    counts = [7 + 7, 7]  # tiles, with the whole picture
    assert (inputs["input_ids"] == IMAGE_TOKEN).sum(1).tolist() == [4 * count for count in counts]
    assert inputs["pixel_values"].shape[:2] == (2, 14) and not inputs["pixel_values"][1, 7:].any()
    assert processor(text="what is", return_tensors="pt").keys() == {"input_ids", "attention_mask"}
    qwen = AutoProcessor.from_pretrained(saved("qwen2_vl"))
    texts = [placeholder("qwen2_vl") * 2, placeholder("qwen2_vl")]
    inputs = qwen(images=[PICTURE, other, other], text=texts, padding=True, return_tensors="pt")
    assert len(inputs["image_grid_thw"]) == 3


def test_another_codec_is_refused(repositories, codec_folder, saved, tmp_path):
    other = image_model(12)
    with torch.no_grad():
        other.encoder.projection.weight.mul_(1.01)
    other.save_pretrained(tmp_path / "other")
    model = AUTO_CLASSES["vit"].from_pretrained(saved("vit"))
    message = r"is of codec 'other' \(\w{16}\), the model is on latents of codec 'tiny' \(\w{16}\): use that codec"
    with pytest.raises(ValueError, match=message):
        WallocLatentImageProcessor.for_model(model.config, str(tmp_path / "other"))
    with pytest.raises(ValueError, match=message):
        load_processor_on_latents(repositories("vit"), model, WallocImageModel.from_pretrained(tmp_path / "other"))
    with pytest.raises(ValueError, match=message):
        AutoImageProcessor.from_pretrained(saved("vit"))(PICTURE, codec=str(tmp_path / "other"))
    del model.config.walloc_codec
    with pytest.raises(ValueError, match="does not say its codec: name it with codec="):
        WallocLatentImageProcessor.for_model(model.config)
    with pytest.warns(UserWarning, match="does not say which codec"):
        WallocLatentImageProcessor.for_model(model.config, codec_folder)


def test_errors(repositories, saved):
    """Those of every family stand in test_families.py."""
    with pytest.raises(ValueError, match=r"walloc/rgb16x: .*no such bundled codec; did you mean 'rgb-16x'"):
        load_on_latents(repositories("vit"), "walloc/rgb16x", AUTO_CLASSES["vit"])
    with pytest.raises(ValueError, match="nothing: no such folder, and no such bundled codec"):
        load_processor_on_latents(repositories("vit"), AUTO_CLASSES["vit"].from_pretrained(saved("vit")), "nothing")
    with pytest.raises(TypeError, match="codec is a int; valid: a bundled name, a Hub id, a folder or a codec"):
        load_on_latents(repositories("vit"), 3, AUTO_CLASSES["vit"])
    qwen = AutoProcessor.from_pretrained(saved("qwen2_vl"))
    with pytest.raises(ValueError, match="max_pixels is 10; a token alone has 8 x 8 = 64 pixels"):
        _inputs(qwen, "qwen2_vl", max_pixels=10)
    with pytest.raises(ValueError, match=r"Found total 1 .* tokens and 2 images"):
        qwen(images=[PICTURE] * 2, text=placeholder("qwen2_vl"))
    with pytest.raises(ValueError, match="in the text but no images were passed"):
        qwen(text=placeholder("qwen2_vl"))


def test_processor_class_cannot_be_anything(saved, tmp_path):
    """A hostile folder does not choose which class of transformers is made."""
    processor = AutoProcessor.from_pretrained(saved("qwen2_vl"))
    processor.save_pretrained(tmp_path)
    file = Path(tmp_path, "processor_config.json")
    file.write_text(file.read_text().replace('"Qwen2VLProcessor"', '"AutoModel"'))
    with pytest.raises(ValueError, match="pixel_processor_class is 'AutoModel'; valid: the name of a"):
        AutoProcessor.from_pretrained(tmp_path)


def test_model_class_is_kept(saved):
    assert (
        type(AutoModelForImageTextToText.from_pretrained(saved("smolvlm"))).__name__
        == "SmolVLMForConditionalGeneration"
    )
