"""Images to windows of latents: against the way by hand, and inside the processors of vision-language models."""

import numpy as np
import PIL.Image
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from pixel_models import AUTO_CLASSES, MEAN, STD
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    Idefics3Processor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
)

from transformers_walloc import WallocImageEncoder, WallocLatentImageProcessor, bundled_path
from transformers_walloc.latents.layouts import flatten_patches
from transformers_walloc.latents.pretrained import load_on_latents
from transformers_walloc.latents.values import LatentView, latent_values, latent_windows

# Latents of 8-bit images come from the compiled kernel, equal to 2e-4 before the companding is undone.
CLOSE = {"rtol": 1e-3, "atol": 2e-4}


def _by_hand(codec, image: np.ndarray, size: tuple[int, int], patch_size: int, halo: int) -> torch.Tensor:
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    x = F.interpolate(x, size, mode="bicubic", antialias=True) / 255 - 0.5
    with torch.no_grad():
        latents = codec.encode(F.pad(x, (8 * halo,) * 4, mode="reflect")).latents
    return latent_windows(latent_values(latents, codec.config), patch_size, halo)


@pytest.mark.parametrize("halo", [0, 2])
def test_by_hand(halo, codec, codec_folder):
    """One image of any kind, or several of different sizes."""
    images = [skimage.data.astronaut()[:200, :300], skimage.data.coffee()]
    processor = WallocLatentImageProcessor(
        codec=codec_folder, size={"height": 64, "width": 96}, patch_size=4, halo=halo
    )
    expected = torch.cat([_by_hand(codec, image, (64, 96), 4, halo) for image in images])
    assert expected.shape == (2, 12, 2 * (4 + 2 * halo), 3 * (4 + 2 * halo))
    kinds = [
        images,
        [PIL.Image.fromarray(i) for i in images],
        [torch.from_numpy(i.copy()).movedim(2, 0) for i in images],
    ]
    for batch in kinds:
        torch.testing.assert_close(processor(batch, return_tensors="pt")["latent_values"], expected, **CLOSE)
        torch.testing.assert_close(processor(batch[0], return_tensors="pt")["latent_values"], expected[:1], **CLOSE)
    as_numpy = processor(images, return_tensors="np", output_name="pixel_values")["pixel_values"]
    assert isinstance(as_numpy, np.ndarray) and as_numpy.shape == expected.shape
    assert processor(images[0], device="cpu", return_tensors="pt")["latent_values"].device.type == "cpu"


def test_codes_are_those_of_floats():
    """8-bit images take the compiled kernel without a picture of floats between."""
    codec = WallocImageEncoder.from_pretrained(bundled_path("rgb-16x")).requires_grad_(False)
    size = {"height": 448, "width": 448}
    processor = WallocLatentImageProcessor(codec=str(bundled_path("rgb-16x")), size=size, patch_size=7, scale="none")
    image = skimage.data.astronaut()[:448, :448]
    values = processor(image, return_tensors="pt")["latent_values"]
    codes = LatentView(codec.config, patch_size=7).to_latents(values).round()
    floats = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255 - 0.5
    assert (codes != codec.encode(floats).latents.round()).float().mean() <= 1e-4  # one of 37,632 may lie on an edge


def test_save_and_load(codec_folder, tmp_path):
    processor = WallocLatentImageProcessor(codec=codec_folder, size={"height": 64, "width": 64}, patch_size=4, halo=1)
    image = skimage.data.astronaut()
    before = processor(image, return_tensors="pt")["latent_values"]
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is WallocLatentImageProcessor
    assert again.to_dict() == processor.to_dict()
    assert again(image, return_tensors="pt")["latent_values"].equal(before)


def _tokenizer(*special: str) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "what", "is", "this", "\n", *special]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=list(special), **named)


@pytest.mark.parametrize("family", ["paligemma", "idefics3"])
def test_processor_of_a_vision_language_model(family, codec, codec_folder, folders, tmp_path):
    """Text and image in one call, saved and loaded by AutoProcessor, and the model generates from the result."""
    model = load_on_latents(folders(family), codec, AUTO_CLASSES[family], halo=1, image_mean=MEAN, image_std=STD)
    model.save_pretrained(tmp_path)
    config = AUTO_CLASSES[family].from_pretrained(tmp_path).config
    image_processor = WallocLatentImageProcessor.for_model(config, codec_folder)
    if family == "paligemma":
        processor = PaliGemmaProcessor(image_processor, _tokenizer("<image>"))
    else:
        tokenizer = _tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
        processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=4)
    processor.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor.image_processor) is WallocLatentImageProcessor
    image = PIL.Image.fromarray(skimage.data.astronaut()[:70, :101])
    inputs = processor(images=image, text="<image> what is this", return_tensors="pt")
    expected = _by_hand(codec, np.array(image), (64, 64), 2, 1)
    torch.testing.assert_close(inputs["pixel_values"], expected[:, None] if family == "idefics3" else expected, **CLOSE)
    # The tiny model has a vocabulary of its own.
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    ids = inputs["input_ids"]
    assert (ids == token).sum() == (16 if family == "paligemma" else 4)
    inputs["input_ids"] = torch.where(ids == token, 90, ids % 80)
    generated = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert generated.shape[1] == ids.shape[1] + 2


def test_qwen(codec, codec_folder, folders):
    """Rows of patches of any image size, for a model without a bias (its text processor needs torchvision)."""
    model = load_on_latents(
        folders("qwen2_5_vl"), codec, AUTO_CLASSES["qwen2_5_vl"], halo=1, image_mean=MEAN, image_std=STD
    )
    processor = WallocLatentImageProcessor.for_model(model.config, codec_folder)
    image = skimage.data.astronaut()[:70, :101]
    inputs = processor(image, return_tensors="pt")
    windows = _by_hand(codec, image, (64, 96), 2, 1)
    rows, grid = flatten_patches(torch.cat([windows, torch.ones_like(windows[:, :1])], 1), 4, 2)
    torch.testing.assert_close(inputs["pixel_values"], rows, **CLOSE)
    assert inputs["image_grid_thw"].tolist() == grid.tolist() == [[1, 4, 6]]
    assert processor.model_input_names == ["pixel_values", "image_grid_thw"]


def test_several_images_a_sample(codec, codec_folder):
    """Samples with fewer images are filled up with zeros."""
    a, b, c = skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()
    processor = WallocLatentImageProcessor(
        codec=codec_folder, size={"height": 32, "width": 32}, patch_size=2, layout="nested"
    )
    values = processor([[a, b], [c]], return_tensors="pt")["latent_values"]
    assert values.shape == (2, 2, 12, 4, 4)
    torch.testing.assert_close(values[1, :1], _by_hand(codec, c, (32, 32), 2, 0), **CLOSE)
    assert not values[1, 1].any()


def test_any_size(codec_folder):
    processor = WallocLatentImageProcessor(
        codec=codec_folder, patch_size=2, layout="rows", merge_size=2, do_resize=False
    )
    images = [skimage.data.astronaut()[:60, :100], skimage.data.coffee()[:33, :20]]
    inputs = processor(images, return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6], [1, 2, 2]]
    assert inputs["latent_values"].shape == (24 + 4, 12 * 2 * 2)
    with pytest.raises(ValueError, match=r"different sizes in one batch \(4x6, 2x1 patches\); use do_resize"):
        processor(images, layout="image", merge_size=1)


def test_errors(codec_folder):
    processor = WallocLatentImageProcessor(codec=codec_folder)
    image = skimage.data.astronaut()
    with pytest.raises(
        TypeError, match="unknown option 'patch_sise' of WallocLatentImageProcessor; valid: codec, size"
    ):
        processor(image, patch_sise=4)
    with pytest.raises(
        ValueError, match="size 100x100 is not a multiple of 56 pixels: patches of 7 latents of 8 pixels"
    ):
        processor(image, size={"height": 100, "width": 100})
