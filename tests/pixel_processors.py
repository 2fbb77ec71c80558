"""Small processors of text and images for the models of `pixel_models`, in the files that their repositories have."""

import json
from pathlib import Path

import transformers
from pixel_models import FAMILIES, GRID, IMAGE_TOKEN, MEAN, PATCH, STD, VOCABULARY, save_pixel_model
from tokenizers import Tokenizer, models, pre_tokenizers

SIDE = PATCH * GRID[0]
_SQUARE = {"size": {"height": SIDE, "width": SIDE}}
_BUDGET = {"patch_size": PATCH, "merge_size": 2, "size": {"shortest_edge": 256, "longest_edge": 1024}}
_SPLITS = {"size": {"longest_edge": 3 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
_FAKE = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
_FAKE += [f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)]
_QWEN = ("Qwen2VLImageProcessorPil", _BUDGET)
_QWEN_TOKENS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
_QWEN_WORDS = ["<|vision_start|>", "<|vision_end|>"]
_GLM_TOKENS = {"image_token": "<|image|>", "video_token": "<|video|>"}
_GLM_WORDS = ["<|begin_of_image|>", "<|end_of_image|>"]

# Family -> (class of the processor, image processor and its options, named tokens with that of images first, further
# words, further options of the processor).
PROCESSORS: dict = {
    "paligemma": ("PaliGemmaProcessor", ("SiglipImageProcessorPil", _SQUARE), {"image_token": "<image>"}, [], {}),
    "gemma3": (
        "Gemma3Processor",
        ("Gemma3ImageProcessorPil", _SQUARE),
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        [],
        {"image_seq_length": 4},
    ),
    "llava_onevision": (
        "LlavaOnevisionProcessor",
        ("LlavaOnevisionImageProcessorPil", {**_SQUARE, "image_grid_pinpoints": [[SIDE, SIDE], [SIDE, 2 * SIDE]]}),
        {"image_token": "<image>", "video_token": "<video>"},
        [],
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    ),
    "internvl": (
        "InternVLProcessor",
        ("GotOcr2ImageProcessorPil", {**_SQUARE, "crop_to_patches": True, "max_patches": 4}),
        {
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        },
        [],
        {"image_seq_length": 4},
    ),
    "idefics3": (
        "Idefics3Processor", ("Idefics3ImageProcessorPil", _SPLITS), {"image_token": "<image>"}, _FAKE,
        {"image_seq_len": 4},
    ),
    "smolvlm": (
        "SmolVLMProcessor", ("SmolVLMImageProcessorPil", _SPLITS), {"image_token": "<image>"}, _FAKE,
        {"image_seq_len": 4},
    ),
    "granite_docling": (
        "GraniteDoclingProcessor", ("GraniteDoclingImageProcessorPil", {**_SQUARE, "max_patches": 4}),
        {"image_token": "<image>"}, _FAKE, {"image_seq_len": 4},
    ),
    "paddleocr_vl": (
        "PaddleOCRVLProcessor", ("PaddleOCRVLImageProcessorPil", _BUDGET), {"image_token": "<|IMAGE_PLACEHOLDER|>"},
        _QWEN_WORDS, {},
    ),
    "qwen2_vl": ("Qwen2VLProcessor", _QWEN, _QWEN_TOKENS, _QWEN_WORDS, {}),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", _QWEN, _QWEN_TOKENS, _QWEN_WORDS, {}),
    "qwen3_vl": ("Qwen3VLProcessor", _QWEN, _QWEN_TOKENS, _QWEN_WORDS, {}),
    "qwen3_5": ("Qwen3VLProcessor", _QWEN, _QWEN_TOKENS, _QWEN_WORDS, {}),
    "glm4v": ("Glm4vProcessor", ("Glm4vImageProcessorPil", _BUDGET), _GLM_TOKENS, _GLM_WORDS, {}),
    "glm_ocr": ("Glm46VProcessor", ("Glm46VImageProcessorPil", _BUDGET), _GLM_TOKENS, _GLM_WORDS, {}),
    "gemma4": (
        "Gemma4Processor",
        ("Gemma4ImageProcessorPil", {"patch_size": PATCH, "pooling_kernel_size": 2, "max_soft_tokens": 70}),
        {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
         "boa_token": "<|audio>", "eoa_token": "<audio|>", "video_token": "<|video|>"},
        [], {},
    ),
    "colpali": ("ColPaliProcessor", ("SiglipImageProcessorPil", _SQUARE), {"image_token": "<image>"}, [], {}),
    "colqwen2": ("ColQwen2Processor", _QWEN, _QWEN_TOKENS, _QWEN_WORDS, {}),
}  # fmt: skip
# Those that only see images, and how their image processors cut.
IMAGE_PROCESSORS: dict = {
    "vit": ("ViTImageProcessorPil", _SQUARE),
    "dinov3_vit": ("ViTImageProcessorPil", _SQUARE),
    "clip": ("CLIPImageProcessorPil", {"size": {"shortest_edge": SIDE}, "crop_size": _SQUARE["size"]}),
    "siglip": ("SiglipImageProcessorPil", _SQUARE),
    "siglip2": ("Siglip2ImageProcessorPil", {"patch_size": PATCH, "max_num_patches": 24}),
    "pixtral": ("PixtralImageProcessorPil", {"patch_size": PATCH, "size": {"longest_edge": 32}}),
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ ' ' + part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def image_processor(family: str):
    """The pixel model's own."""
    name, options = PROCESSORS[family][1] if family in PROCESSORS else IMAGE_PROCESSORS[family]
    return getattr(transformers, name)(image_mean=list(MEAN), image_std=list(STD), **options)


def placeholder(family: str) -> str:
    """What stands for an image in a text."""
    if family not in PROCESSORS:
        return ""
    tokens = PROCESSORS[family][2]
    between = {"gemma3": "boi_token", "internvl": "context_image_token"}.get(family, "image_token")
    around = _QWEN_WORDS if family.startswith("qwen") else _GLM_WORDS if family.startswith("glm") else []
    token = tokens[between]
    return f"{around[0]}{token}{around[1]}" if around else token


def save_pixel_repository(family: str, folder: str) -> None:
    """Model, image processor, tokenizer, chat template and processor, as the Hub has them."""
    save_pixel_model(family, folder)
    image_processor(family).save_pretrained(folder)
    if family not in PROCESSORS:
        return
    name, _, named, words, options = PROCESSORS[family]
    _tokenizer(named, words).save_pretrained(folder)
    Path(folder, "processor_config.json").write_text(json.dumps({"processor_class": name, **options}))
    Path(folder, "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("IMAGE", placeholder(family)))


def _tokenizer(named: dict[str, str], words: list[str]):
    """Of the vocabulary of the tiny models, the token of images at its place."""
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    vocabulary = [*special.values(), "what", "is", "the", "total", "\n", *words]
    vocabulary += [f"word{i}" for i in range(len(vocabulary), IMAGE_TOKEN)]
    vocabulary += list(named.values())
    vocabulary += [f"word{i}" for i in range(len(vocabulary), VOCABULARY)]
    if "<|vision_start|>" in words or "<|begin_of_image|>" in words:  # the tiny models have them at 92 and 93
        for word, place in zip(words, (92, 93), strict=True):
            at = vocabulary.index(word)
            vocabulary[at], vocabulary[place] = vocabulary[place], vocabulary[at]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=[*words, *named.values()], **special,
        extra_special_tokens=named,
    )  # fmt: skip


assert PROCESSORS.keys() | IMAGE_PROCESSORS.keys() == FAMILIES.keys()
