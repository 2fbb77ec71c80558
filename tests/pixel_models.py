"""Small random models of the families that `load_on_latents` knows, which stand in for pretrained ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
import transformers
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    ColPaliForRetrieval,
    ColQwen2ForRetrieval,
    set_seed,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from transformers_walloc.codec.bottleneck import decompand
from transformers_walloc.codec.wavelets import wavelet_packet_synthesis
from transformers_walloc.latents.families import FAMILIES as ROWS
from transformers_walloc.latents.layouts import model_inputs

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
IMAGE_TOKEN, VOCABULARY = 90, 96
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**VISION, "num_key_value_heads": 1, "vocab_size": VOCABULARY, "head_dim": 8, "pad_token_id": 0}
PATCH, GRID = 4, (4, 4)  # pixels, patches

QWEN_IDS = {"image_token_id": IMAGE_TOKEN, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}


def vision_options(**more):
    return {**VISION, "image_size": PATCH * GRID[0], "patch_size": PATCH, **more}


def save_pixel_model(family: str, folder: str) -> None:
    """A "pretrained" model of pixels, with weights large enough that the image matters."""
    set_seed(0)
    row = FAMILIES[family]
    if family == "clip":  # whose vision model is loaded from a folder of all of CLIP
        model = AutoModel.from_config(row.config())
    else:
        model = row.auto_class._from_config(row.config()) if row.is_class else row.auto_class.from_config(row.config())
    for name, parameter in model.named_parameters():
        if "embed" in name or parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)


def photograph(height: int, width: int) -> torch.Tensor:
    """(1, 3, height, width) in [-0.5, 0.5]."""
    pixels = torch.from_numpy(skimage.data.astronaut()[40:, 120:].copy()).permute(2, 0, 1)[None]
    return pixels[:, :, :height, :width].float() / 255 - 0.5


def latents_with_halo(codec, x: torch.Tensor, halo: int) -> torch.Tensor:
    with torch.no_grad():
        return codec.encode(F.pad(x, (8 * halo,) * 4, mode="reflect")).latents


def linear_decode(codec, latents: torch.Tensor) -> torch.Tensor:
    """Not clamped, as opposed to `decode`."""
    config = codec.config
    with torch.no_grad():
        subbands = codec.decoder(decompand(latents, config.latent_bits))
        return wavelet_packet_synthesis(subbands, config.num_levels, config.wavelet, config.boundary, 2)


def normalised_pixels(reconstruction: torch.Tensor, halo: int, ratio: int, family: str = "vit") -> torch.Tensor:
    """The pixel model's input: cropped, box resized, normalised."""
    crop = reconstruction[:, :, 8 * halo :, 8 * halo :]
    crop = crop[:, :, : crop.shape[2] - 8 * halo, : crop.shape[3] - 8 * halo]
    resized = F.avg_pool2d(crop, ratio) + 0.5
    if ROWS[FAMILIES[family].row or family].normalises:
        return resized
    return (resized - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def inputs_of(family: str, pixels: torch.Tensor, patch: int) -> dict:
    """Model inputs of an image (1, channels, height, width), normalised pixels or windows of latents alike."""
    model, gh, gw = FAMILIES[family], pixels.shape[2] // patch, pixels.shape[3] // patch
    if pixels.shape[1] == 3:
        inputs = _pixel_inputs(ROWS[model.row or family].layout, pixels, patch, model.merge_size)
    else:
        inputs = model_inputs(pixels, patch, ROWS[model.row or family].layout, model.merge_size)
    if "image_grid_thw" in inputs:
        assert inputs["image_grid_thw"].tolist() == [[1, gh, gw]]
    if model.tokens is None:
        return inputs
    count = model.tokens(gh, gw) if callable(model.tokens) else gh * gw // model.tokens
    ids = torch.tensor([[2, *[IMAGE_TOKEN] * count, 3, 5, 6]])
    if model.vision_tokens:
        ids[0, 0], ids[0, count + 1] = 92, 93
    inputs.update(input_ids=ids, attention_mask=torch.ones_like(ids))
    if model.types is not None:
        inputs[model.types] = (ids == IMAGE_TOKEN).long()
    return inputs


def _pixel_inputs(layout: str, pixels: torch.Tensor, patch: int, merge_size: int) -> dict:
    """As the image processors of these families do it."""
    gh, gw = pixels.shape[2] // patch, pixels.shape[3] // patch
    grid = torch.tensor([[1, gh, gw]])
    if layout == "image":
        return {"pixel_values": pixels}
    if layout == "nested":
        return {"pixel_values": pixels[:, None]}
    if layout == "masked":
        return {"pixel_values": pixels[:, None], "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool)}
    if layout == "tiles":
        return {"pixel_values": torch.stack([pixels, pixels], 1), "image_sizes": torch.tensor([pixels.shape[2:]])}
    if layout in ("rows", "padded_rows"):
        processor = Qwen2VLImageProcessorPil(patch_size=patch, temporal_patch_size=2, merge_size=merge_size)
        image = processor(
            list(pixels.numpy()), do_resize=False, do_rescale=False, do_normalize=False, do_convert_rgb=False,
            input_data_format="channels_first", return_tensors="pt",
        )  # fmt: skip
        rows = image["pixel_values"]
        return {"pixel_values": rows[None] if layout == "padded_rows" else rows, "image_grid_thw": grid}
    if layout == "patches":
        patches = pixels.reshape(3, gh, patch, gw, patch).permute(1, 3, 0, 2, 4).reshape(-1, 3, patch, patch)
        return {"pixel_values": patches, "image_grid_thw": grid}
    rows = torch.from_numpy(convert_image_to_patches(pixels[0].numpy(), patch))[None]
    if layout == "naflex":
        return {
            "pixel_values": rows,
            "pixel_attention_mask": torch.ones(1, gh * gw).int(),
            "spatial_shapes": grid[:, 1:],
        }
    positions = np.stack(np.meshgrid(np.arange(gw), np.arange(gh)), -1).reshape(1, -1, 2)
    return {"pixel_values": rows, "image_position_ids": torch.from_numpy(positions)}


def tokens_and_output(model, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch tokens as the projection gives them, rows of tokens, and the model's output."""
    embedding = ROWS[model.config.model_type].embedding
    projection = next(m for name, m in model.named_modules() if name.endswith(embedding))
    tokens = []
    handle = projection.register_forward_hook(lambda module, args, output: tokens.append(output))
    with torch.no_grad():
        output = model.eval()(**inputs)
    handle.remove()
    return tokens[0], main_output(output)


def main_output(output) -> torch.Tensor:
    return next(output[name] for name in ("logits", "embeddings", "last_hidden_state") if name in output)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def _vision(**more) -> dict:
    return {"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2, "hidden_size": 16, **more}


def _rope(sections: list[int] | None = None) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections or [1, 1, 2]}}


def _named(name: str) -> Any:
    return getattr(transformers, name)


def _clip():
    text = _named("CLIPTextConfig")(**VISION, vocab_size=VOCABULARY, eos_token_id=2, max_position_embeddings=8)
    vision = _named("CLIPVisionConfig")(**vision_options())
    return _named("CLIPConfig")(text_config=text.to_dict(), vision_config=vision.to_dict())


def _paligemma():
    vision = {**vision_options(), "model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 16}
    return _named("PaliGemmaConfig")(
        text_config={**TEXT, "model_type": "gemma"},
        vision_config=vision,
        image_token_index=IMAGE_TOKEN,
        projection_dim=16,
        hidden_size=16,
    )


def _gemma3():
    vision = {**vision_options(), "model_type": "siglip_vision_model", "vision_use_head": False}
    return _named("Gemma3Config")(
        text_config=TEXT, vision_config=vision, image_token_index=IMAGE_TOKEN, mm_tokens_per_image=4
    )


def _gemma4():
    vision = {**VISION, "num_key_value_heads": 2, "head_dim": 8, "patch_size": PATCH, "pooling_kernel_size": 2}
    text = {**TEXT, "global_head_dim": 8, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 4}
    return _named("Gemma4Config")(
        text_config={**text, "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config={**vision, "position_embedding_size": 32},
        image_token_id=IMAGE_TOKEN,
        audio_config=None,
    )


def _idefics(name: str):
    return _named(name)(
        text_config={**TEXT, "model_type": "llama"},
        vision_config=vision_options(),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    )


def _granite_docling():
    vision = {**vision_options(), "out_hidden_size": 16, "scale_factor": 2, "use_fine_route": False}
    return _named("GraniteDoclingConfig")(
        text_config=TEXT, vision_config={**vision, "deepstack_visual_indexes": [0]}, image_token_id=IMAGE_TOKEN
    )


def _llava_onevision():
    side = PATCH * GRID[0]
    return _named("LlavaOnevisionConfig")(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={**vision_options(), "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_id=IMAGE_TOKEN,
        image_grid_pinpoints=[[side, side], [side, 2 * side]],
        vision_feature_layer=-1,
    )


def _internvl():
    return _named("InternVLConfig")(
        text_config={**TEXT, "model_type": "qwen2"}, vision_config=vision_options(), image_token_id=IMAGE_TOKEN
    )


def _qwen(name: str, text: dict | None = None, **vision):
    return _named(name)(text_config={**TEXT, **_rope(), **(text or {})}, vision_config=_vision(**vision), **QWEN_IDS)


def _glm(name: str):
    ids = {"image_start_token_id": 92, "image_end_token_id": 93, "image_token_id": IMAGE_TOKEN, "video_token_id": 91}
    return _named(name)(
        text_config={**TEXT, **_rope()},
        vision_config=_vision(image_size=PATCH * GRID[0], out_hidden_size=16, intermediate_size=24),
        **ids,
    )


def _paddle():
    return _named("PaddleOCRVLConfig")(
        text_config={**TEXT, **_rope()}, vision_config={**vision_options(), "spatial_merge_size": 2}, **QWEN_IDS
    )


@dataclass(frozen=True)
class PixelModel:
    """A family's stand-in: its config, the class to load it with, and what goes with an image.

    Args:
        tokens: patches to a token of the text, or a function of the grid; None for models without text.
        vision_tokens: whether an image stands between tokens 92 and 93.
        types: name of the input that tells image tokens from text.
        row: of the table, where it is not the family's name.
    """

    config: Callable[[], Any]
    auto_class: Any = AutoModelForImageTextToText
    tokens: int | Callable[[int, int], int] | None = None
    merge_size: int = 1
    vision_tokens: bool = False
    types: str | None = None
    any_size: bool = False
    row: str | None = None

    @property
    def is_class(self) -> bool:
        """Whether `auto_class` is a model's class."""
        return issubclass(self.auto_class, transformers.PreTrainedModel)

    @property
    def generates(self) -> bool:
        return self.auto_class is AutoModelForImageTextToText


_GRID_OF_QWEN: dict[str, Any] = {
    "tokens": 4, "merge_size": 2, "vision_tokens": True, "types": "mm_token_type_ids", "any_size": True
}  # fmt: skip
FAMILIES: dict[str, PixelModel] = {
    "vit": PixelModel(lambda: _named("ViTConfig")(**vision_options(), num_labels=3), AutoModelForImageClassification),
    "dinov3_vit": PixelModel(
        lambda: _named("DINOv3ViTConfig")(**vision_options(), num_register_tokens=2), AutoModel, any_size=True
    ),
    "clip": PixelModel(_clip, _named("CLIPVisionModel"), row="clip_vision_model"),
    "siglip": PixelModel(
        lambda: _named("SiglipVisionConfig")(**vision_options()), AutoModel, row="siglip_vision_model"
    ),
    "siglip2": PixelModel(
        lambda: _named("Siglip2VisionConfig")(**VISION, patch_size=PATCH, num_patches=16),
        AutoModel,
        any_size=True,
        row="siglip2_vision_model",
    ),
    "pixtral": PixelModel(
        lambda: _named("PixtralVisionConfig")(**vision_options(), head_dim=8), AutoModel, any_size=True
    ),
    "paligemma": PixelModel(_paligemma, tokens=1),
    "gemma3": PixelModel(_gemma3, tokens=4, types="token_type_ids"),
    "gemma4": PixelModel(_gemma4, tokens=4, merge_size=2, any_size=True, types="mm_token_type_ids"),
    "llava_onevision": PixelModel(_llava_onevision, tokens=lambda gh, gw: gh * gw + gh * (gw + 1)),
    "internvl": PixelModel(_internvl, tokens=4),
    "idefics3": PixelModel(lambda: _idefics("Idefics3Config"), tokens=4),
    "smolvlm": PixelModel(lambda: _idefics("SmolVLMConfig"), tokens=4),
    "granite_docling": PixelModel(_granite_docling, tokens=4),
    "paddleocr_vl": PixelModel(_paddle, **_GRID_OF_QWEN),
    "qwen2_vl": PixelModel(lambda: _qwen("Qwen2VLConfig", embed_dim=16, mlp_ratio=2), **_GRID_OF_QWEN),
    "qwen2_5_vl": PixelModel(
        lambda: _qwen(
            "Qwen2_5_VLConfig",
            intermediate_size=24,
            out_hidden_size=16,
            window_size=4 * PATCH,
            fullatt_block_indexes=[1],
        ),
        **_GRID_OF_QWEN,
    ),
    "qwen3_vl": PixelModel(
        lambda: _qwen(
            "Qwen3VLConfig",
            intermediate_size=24,
            out_hidden_size=16,
            num_position_embeddings=16,
            deepstack_visual_indexes=[0],
        ),
        **_GRID_OF_QWEN,
    ),
    "qwen3_5": PixelModel(
        lambda: _qwen(
            "Qwen3_5Config",
            {
                "layer_types": ["linear_attention", "full_attention"],
                "linear_num_key_heads": 1,
                "linear_num_value_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            },
            intermediate_size=24,
            out_hidden_size=16,
            num_position_embeddings=16,
        ),
        **_GRID_OF_QWEN,
    ),
    "glm4v": PixelModel(lambda: _glm("Glm4vConfig"), **_GRID_OF_QWEN),
    "glm_ocr": PixelModel(lambda: _glm("GlmOcrConfig"), **_GRID_OF_QWEN),
    "colpali": PixelModel(
        lambda: _named("ColPaliConfig")(vlm_config=_paligemma(), embedding_dim=8), ColPaliForRetrieval, tokens=1
    ),
    "colqwen2": PixelModel(
        lambda: _named("ColQwen2Config")(vlm_config=_qwen("Qwen2VLConfig", embed_dim=16, mlp_ratio=2), embedding_dim=8),
        ColQwen2ForRetrieval,
        **_GRID_OF_QWEN,
    ),
}
AUTO_CLASSES = {name: model.auto_class for name, model in FAMILIES.items()}
LANGUAGE = [name for name, model in FAMILIES.items() if model.generates]
