"""What a user of transformers expects of a model on latents and its processor, for every family that there is."""

import math
import statistics

import numpy as np
import PIL.Image
import pytest
import skimage.data
import torch
from codec_fixtures import image_model
from pixel_models import AUTO_CLASSES, FAMILIES, IMAGE_TOKEN, LANGUAGE, PATCH, main_output
from pixel_processors import PROCESSORS, image_processor, placeholder

from transformers_walloc import WallocLatentImageProcessor, latent_transform, load_on_latents
from transformers_walloc.latents.datasets import encode_rows
from transformers_walloc.latents.families import FAMILIES as ROWS

PICTURE = PIL.Image.fromarray(skimage.data.astronaut()[:200, :101])
_BUDGETS = ({"max_pixels": 512}, {"size": {"shortest_edge": 256, "longest_edge": 512}})
_SCAN = {"pan_and_scan_min_crop_size": 8, "pan_and_scan_max_num_crops": 3, "pan_and_scan_min_ratio_to_activate": 1.2}
# What a call may change, by the names of the pixel model's own image processor.
OPTIONS = {
    "gemma3": ({"do_pan_and_scan": True, **_SCAN},),
    "gemma4": ({"max_soft_tokens": 140},),
    "internvl": ({"crop_to_patches": False},),
    "granite_docling": ({"crop_to_patches": False},),
    "siglip2": ({"max_num_patches": 12},),
    "pixtral": ({"size": {"longest_edge": 16}},),
    **dict.fromkeys(("idefics3", "smolvlm"), ({"do_image_splitting": False}, {"size": {"longest_edge": 32}})),
    **{name: _BUDGETS for name, row in ROWS.items() if row.layout in ("rows", "padded_rows", "patches")},
    **dict.fromkeys(("glm4v", "glm_ocr"), _BUDGETS[1:]),  # of their own image processors
}
SQUARE = ("vit", "dinov3_vit", "clip", "siglip", "paligemma", "colpali")
# Their processors have no `_get_num_multimodal_tokens`, on pixels neither.
UNASKED = ("smolvlm", "paddleocr_vl")


def _images_of(processor):
    return getattr(processor, "image_processor", processor)


def _inputs(processor, family: str, image=PICTURE, **options):
    if family.startswith("col") or family not in PROCESSORS:
        return processor(images=[image], return_tensors="pt", **options)
    return processor(images=[[image]], text=[f"{placeholder(family)} what is"], return_tensors="pt", **options)


def _patches(output, side: int) -> int:
    if "image_grid_thw" in output:
        return int(torch.as_tensor(output["image_grid_thw"]).prod())
    if "spatial_shapes" in output:
        return int(torch.as_tensor(output["spatial_shapes"]).prod())
    if "image_position_ids" in output:
        return int((torch.as_tensor(output["image_position_ids"])[..., 0] >= 0).sum())
    shape = output["pixel_values"].shape
    return math.prod(shape[:-3]) * (shape[-2] // side) * (shape[-1] // side)


def test_every_family_is_tried():
    named = {model.row or name for name, model in FAMILIES.items()}
    assert ROWS.keys() - named == {"clip", "siglip", "siglip2"}  # whole models of images and text
    assert OPTIONS.keys() | {*SQUARE, "llava_onevision"} == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_options_of_a_call(family, loaded):
    """They give as many patches as they give the pixel model; others are refused with those that there are."""
    images, own = _images_of(loaded(family)[0]), image_processor(family)
    before = _patches(own(PICTURE, return_tensors="pt"), PATCH)
    for options in OPTIONS.get(family, ()):
        expected = _patches(own(PICTURE, return_tensors="pt", **options), PATCH)
        assert _patches(images(PICTURE, return_tensors="pt", **options), 2) == expected
        assert expected != before
    if family not in SQUARE:
        wrong = "max_num_patches" if _BUDGETS[1] in OPTIONS.get(family, ()) else "max_pixels"
        with pytest.raises(ValueError, match=f"{wrong} is no option of {type(own).__name__.removesuffix('Pil')}"):
            images(PICTURE, **{wrong: 100})
        return
    with pytest.raises(ValueError, match="max_pixels is no option here: this processor resizes all images to one size"):
        images(PICTURE, max_pixels=100)
    with pytest.raises(ValueError, match="size has longest_edge; valid for this model: height and width"):
        images(PICTURE, size={"longest_edge": 100})


# InternVL and Granite-Docling take at least one tile, whatever is asked for, as their pixel models.
BELOW = {
    "gemma3": ({"do_pan_and_scan": True}, "do_pan_and_scan needs pan_and_scan_min_crop_size, "),
    "gemma4": ({"max_soft_tokens": 1}, "must be one of"),
    "siglip2": ({"max_num_patches": 0}, "max_num_patches is 0; valid: at least 1"),
    "pixtral": ({"size": {"longest_edge": 2}}, "longest_edge is 2 pixels, less than a patch of 4"),
    **{
        name: ({"max_image_size": {"longest_edge": 2}}, "tiles of 2 x 2 pixels have no room for a patch of 4")
        for name in ("idefics3", "smolvlm")
    },
    **{
        name: ({"size": {"shortest_edge": 1, "longest_edge": 10}}, "max_pixels is 10; a token alone has 8 x 8 = 64")
        for name, each in OPTIONS.items()
        if _BUDGETS[1] in each
    },
}


@pytest.mark.parametrize("family", BELOW)
def test_budgets_below_a_patch(family, loaded):
    options, message = BELOW[family]
    with pytest.raises(ValueError, match=message):
        _images_of(loaded(family)[0])(PICTURE, **options)
    if family in ("idefics3", "smolvlm"):
        with pytest.raises(ValueError, match="longest_edge is 0; valid: at least 1 pixel"):
            _images_of(loaded(family)[0])(PICTURE, size={"longest_edge": 0})


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_of_patches(family, loaded):
    """What servers and other processors ask, `get_number_of_image_patches`, is what comes."""
    processor, _ = loaded(family)
    images, own = _images_of(processor), image_processor(family)
    output = images(PICTURE, return_tensors="pt")
    assert _patches(output, 2) == _patches(own(PICTURE, return_tensors="pt"), PATCH) or family == "llava_onevision"
    count = images.get_number_of_image_patches(200, 101, {})
    if family in ("internvl", "granite_docling", "gemma3", "llava_onevision"):
        assert count == output["pixel_values"].shape[family != "internvl" and family != "gemma3"]
    elif family not in ("idefics3", "smolvlm"):  # which say rows and columns as well
        assert count == _patches(output, 2)
    else:
        assert count[0] == output["pixel_values"].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_latents(family, loaded, codec_folder, codec):
    """A row of a data set goes where a picture goes, and is what the encoder makes of that picture; so do tensors."""
    processor, model = loaded(family)
    size = _images_of(processor).input_size() or (64, 96)
    (row,) = encode_rows([PICTURE.resize(size[::-1])], codec, "int8")
    row["codec"] = f"tiny:{codec.fingerprint()}"
    inputs = _inputs(processor, family, row)
    codes = torch.from_numpy(np.frombuffer(row["bytes"], np.int8).reshape(row["shape"]).copy())
    assert _inputs(processor, family, codes)["pixel_values"].equal(inputs["pixel_values"])
    assert _inputs(processor, family, codes.float())["pixel_values"].equal(inputs["pixel_values"])
    with torch.no_grad():
        output = model(**inputs)
    assert main_output(output).isfinite().all()
    if family in LANGUAGE:
        assert (inputs["input_ids"] == IMAGE_TOKEN).any()
    # The same row without a processor, for models that see images alone or bring their own tokens.
    read = latent_transform(codec_folder, windows=model.config, output_name="pixel_values")
    (values,) = read({"latents": [row]})["pixel_values"]
    found = inputs["pixel_values"]
    torch.testing.assert_close(values.reshape(-1), found.reshape(-1)[: values.numel()])


@pytest.mark.parametrize("family", FAMILIES)
def test_refused(family, loaded, saved, tmp_path):
    processor, model = loaded(family)
    folder = saved(family)
    with pytest.raises(ValueError, match="is on latents of tiny already: load it with"):
        load_on_latents(folder, "walloc/rgb-16x", AUTO_CLASSES[family])
    with pytest.raises(ValueError, match=r"rgb-16: .* did you mean 'rgb-16x'\? valid: rgb-4x, "):
        load_on_latents(folder, "rgb-16", AUTO_CLASSES[family])
    other = image_model(12)
    with torch.no_grad():
        other.encoder.projection.weight.mul_(1.01)
    other.config.name_or_path = "other"
    with pytest.raises(ValueError, match=r"is of codec 'other' \(\w{16}\), the model is on latents of codec 'tiny'"):
        WallocLatentImageProcessor.for_model(model.config, other)
    (row,) = encode_rows([PICTURE], other, "int8")
    with pytest.raises(ValueError, match="the latents were written by codec 'other'"):
        _inputs(processor, family, row)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' is not available here; available: cpu"):
            _inputs(processor, family, device="cuda")


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_smaller_than_a_token(family, loaded):
    processor, _ = loaded(family)
    for size in ((1, 1), (1, 30)):
        assert _inputs(processor, family, PIL.Image.new("RGB", size))["pixel_values"].isfinite().all()


@pytest.mark.parametrize("family", PROCESSORS)
def test_text_that_does_not_fit(family, loaded):
    processor, _ = loaded(family)
    with pytest.raises(ValueError, match="models on latents take images and no videos: pass frames as images"):
        processor(videos=[np.zeros((4, 32, 32, 3), np.uint8)], text="what")
    if family.startswith("col"):
        return
    with pytest.raises(ValueError, match="image"):
        processor(images=[[PICTURE, PICTURE]], text=[placeholder(family)])


@pytest.mark.parametrize("family", LANGUAGE)
def test_what_vllm_asks(family, loaded):
    """vLLM's backend for models of transformers, as its documentation and source state it; vLLM itself is not run.

    It puts each image's tokens where `text_replacement_offsets` say, splits `pixel_values` by `num_image_patches`, asks
    the model for `get_image_features`, and serves no videos where their tokens cannot be counted.
    """
    processor, model = loaded(family)
    inputs = _inputs(processor, family, return_text_replacement_offsets=True)
    (found,) = inputs.pop("text_replacement_offsets")[0]
    ids = processor.tokenizer(found["replacement"], add_special_tokens=False)["input_ids"]
    tokens = int((inputs["input_ids"] == IMAGE_TOKEN).sum())
    assert found["type"] == "image" and statistics.mode(ids) == IMAGE_TOKEN and ids.count(IMAGE_TOKEN) == tokens
    assert isinstance(processor.image_token, str)
    if family in UNASKED:
        assert not hasattr(type(processor).__mro__[2], "_get_num_multimodal_tokens")
        return
    asked = processor._get_num_multimodal_tokens(image_sizes=[(200, 101)])
    rows = int(inputs["image_grid_thw"].prod()) if "image_grid_thw" in inputs else asked["num_image_patches"][0]
    values = inputs["pixel_values"]
    assert rows in values.shape[:2] or values.shape[0] == 1
    assert not hasattr(processor, "video_processor")
    with pytest.raises(ValueError, match="images and no videos"):
        processor._get_num_multimodal_tokens(video_sizes=[[4, 32, 32]])
    text = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
    with torch.no_grad():
        features = model.get_image_features(**{name: value for name, value in inputs.items() if name not in text})
    features = getattr(features, "pooler_output", features)
    assert sum(each.shape[:-1].numel() for each in features) == tokens
