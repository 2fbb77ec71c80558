"""A vision or vision-language model with a WaLLoC encoder in front: pixels in, latents computed inside."""

import contextlib
import inspect
from typing import Any

import torch
import transformers
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel, GenerationConfig, PreTrainedConfig, PreTrainedModel

from ..codec.configuration_walloc import WallocImageConfig
from ..codec.modeling_walloc import WallocImageEncoder, WallocImageModel
from .codecs import check_identity, codec_of
from .families import family_of, image_grid, merge_size
from .layouts import model_inputs
from .pretrained import load_on_latents
from .processors import load_encoder, load_image_codec
from .values import LatentView


@strict
class WallocLatentConfig(PreTrainedConfig):
    r"""
    Configuration of a [`WallocLatentModel`]: that of the codec, and that of the model behind it.

    Args:
        codec_config (`WallocImageConfig` or `dict`): of the encoder.
        model_config (`PreTrainedConfig` or `dict`): of the model, with the `walloc_latents` that [`load_on_latents`]
            left in it: `patch_size`, `halo`, `constant_channel` and scale of its [`LatentView`].
        model_class (`str`): name of the model's class in transformers, as `"PaliGemmaForConditionalGeneration"`.
        freeze_codec (`bool`): whether the encoder stays as it is in training.
        model_generation_config (`dict`, *optional*): defaults of the model's `generate`, written by `save_pretrained`.
    """

    model_type = "walloc_latent"
    sub_configs = {"codec_config": WallocImageConfig, "model_config": AutoConfig}  # noqa: RUF012 - transformers' type

    codec_config: dict[str, Any] | PreTrainedConfig | None = None
    model_config: dict[str, Any] | PreTrainedConfig | None = None
    model_class: str = "ViTForImageClassification"
    freeze_codec: bool = True
    model_generation_config: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.codec_config is None:
            self.codec_config = WallocImageConfig()
        elif isinstance(self.codec_config, dict):
            self.codec_config = WallocImageConfig(**self.codec_config)
        if self.model_config is None:
            windows = {"patch_size": 8, "halo": 0, "constant_channel": False}
            self.model_config = {"num_channels": 12, "image_size": 112, "patch_size": 8, "walloc_latents": windows}
        if isinstance(self.model_config, dict):
            self.model_config = AutoConfig.for_model(**{"model_type": "vit", **self.model_config})
        if not isinstance(getattr(self.model_config, "walloc_latents", None), dict):
            raise ValueError("model_config has no walloc_latents; make it with load_on_latents or from_pixel_model")
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]


class WallocLatentModel(PreTrainedModel):
    r"""
    A model of transformers that sees images through a WaLLoC encoder, on the device that it runs on.

    ```
    pixel_values --reflect halo--> encoder --latents--> values --> windows of patches --> model --> its own output
    ```

    ```python
    >>> from transformers import AutoModel, AutoModelForImageTextToText
    >>> from transformers_walloc import WallocLatentModel

    >>> codec = AutoModel.from_pretrained("walloc/rgb-16x")
    >>> model = WallocLatentModel.from_pixel_model("google/paligemma-3b-pt-224", codec, AutoModelForImageTextToText)
    >>> model.image_size  # in pixels; the pixel model had 224
    896
    ```"""

    config: WallocLatentConfig
    codec: WallocImageEncoder
    model: Any
    accepts_loss_kwargs: bool
    config_class = WallocLatentConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"codec"}  # noqa: RUF012 - the type transformers asks for

    def __init__(
        self,
        config: WallocLatentConfig,
        codec: WallocImageEncoder | None = None,
        model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.codec = codec if codec is not None else WallocImageEncoder._from_config(config.codec_config)
        self.model = model if model is not None else _model_class(config.model_class)._from_config(config.model_config)
        if model is None and config.model_generation_config:
            self.model.generation_config = GenerationConfig.from_dict(config.model_generation_config)
        if codec is not None and model is not None:
            check_identity(codec_of(model.config), codec, "the encoder")
        config.codec_config, config.model_config = self.codec.config, self.model.config
        for part in filter(None, (codec, model)):
            for module in part.modules():
                # post_init must not draw the weights of given parts anew.
                module._is_hf_initialized = True  # type: ignore[assignment]
        self.codec.requires_grad_(not config.freeze_codec)
        parameters = inspect.signature(self.model.forward).parameters.values()
        takes_any = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)
        self.accepts_loss_kwargs = getattr(self.model, "accepts_loss_kwargs", takes_any)  # Trainer asks
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As of other models; the codec is frozen where `config.freeze_codec` says so."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.codec.requires_grad_(not model.config.freeze_codec)  # loading makes new parameters
        return loaded

    @classmethod
    def from_pixel_model(
        cls,
        pretrained: str,
        codec: str | WallocImageModel,
        auto_class: Any = AutoModel,
        freeze_codec: bool = True,
        **kwargs: Any,
    ) -> "WallocLatentModel":
        """
        Args:
            pretrained: Hub id or folder of a pixel model of a family that [`load_on_latents`] knows.
            codec: bundled name, Hub id, folder or full model; its encoder becomes a part of the new model.
            auto_class: class to load the pixel model with, such as `AutoModelForImageTextToText`.
            freeze_codec: whether the encoder stays as it is in training.
            **kwargs: the options of [`load_on_latents`].
        """
        codec = load_image_codec(codec)
        model = load_on_latents(pretrained, codec, auto_class, **kwargs)
        _, encoder = load_encoder(codec)
        config = WallocLatentConfig(
            codec_config=codec.config.to_dict(),
            model_config=model.config.to_dict(),
            model_class=type(model).__name__,
            freeze_codec=freeze_codec,
        )
        encoder.to(model.device)  # type: ignore[arg-type]
        whole: WallocLatentModel = cls(config, encoder, model).eval()
        return whole

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Write codec and model into one folder, with the options of generation."""
        if self.model.can_generate():
            self.config.model_generation_config = self.model.generation_config.to_dict()
        return super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def image_size(self) -> int | None:
        """Height and width of images in pixels; None where the model takes any multiple of its patches."""
        grid = image_grid(self.model.config)
        return None if grid is None else grid * self.view.patch_pixels

    @property
    def view(self) -> LatentView:
        """What the model takes of latents."""
        return LatentView(self.codec.config, **self.model.config.walloc_latents)

    def extra_repr(self) -> str:
        """The pixel model's class, the codec, and the patches."""
        view = self.view
        windows = f"patches of {view.patch_size} x {view.patch_size} latents, halo {view.halo}"
        return f"{self.config.model_class} on latents of {self.codec.extra_repr()}, {windows}"

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Windows of latents as the model takes them.

        Args:
            pixel_values: (..., num_channels, height, width) in [-0.5, 0.5]: what [`WallocImageProcessor`] returns, or
                any image processor with an `image_mean` of 0.5 and an `image_std` of 1.

        Returns:
            (..., channels, height', width') in the dtype of the model.
        """
        view, sizes = self.view, tuple(pixel_values.shape[-2:])
        if any(size % view.patch_pixels for size in sizes):
            raise ValueError(f"height and width must be multiples of {view.patch_pixels}, got {sizes}")
        images = pixel_values.flatten(0, -4)
        with torch.no_grad() if self.config.freeze_codec else contextlib.nullcontext():
            values = view.from_pixels(images, self.codec)
        if pixel_values.ndim == 5:  # several images a sample; those that are zero throughout only fill up the batch
            values = values * images.flatten(1).any(1)[:, None, None, None]
        rows: torch.Tensor = values.unflatten(0, pixel_values.shape[:-3]).to(self.model.dtype)
        return rows

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            pixel_values: see `encode`; (batch, images, num_channels, height, width) for Idefics3 and SmolVLM.
            input_ids, attention_mask, labels, **kwargs: for the model. Qwen2-VL gets its `image_grid_thw` by itself.

        Returns:
            The model's own output.
        """
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        kwargs.update((name, value) for name, value in named.items() if value is not None)
        return self.model(**self._model_inputs(pixel_values, kwargs))

    @torch.no_grad()
    def generate(self, pixel_values: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """The model's `generate`, with pixels in place of latents."""
        return self.model.generate(**self._model_inputs(pixel_values, kwargs))

    def get_input_embeddings(self) -> Any:
        """Those of the model on latents."""
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Those of the model on latents."""
        return self.model.get_output_embeddings()

    def can_generate(self) -> bool:  # type: ignore[override]
        """False to transformers, though `generate` works where the model can."""
        return False  # transformers would look for the parts of a language model here; `generate` finds them in `model`

    def _model_inputs(self, pixel_values: torch.Tensor | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs.pop("original_sizes", None)  # of WallocImageProcessor, so that its output can be passed as it is
        if pixel_values is None:
            return kwargs
        config, windows = self.model.config, self.encode(pixel_values)
        family, kernel_size = family_of(config), self.view.kernel_size
        if family.layout not in ("nested", "masked"):
            kwargs.update(model_inputs(windows, kernel_size, family.layout, merge_size(config)))
            return kwargs
        kwargs["pixel_values"] = windows
        if family.layout == "masked":
            kwargs.setdefault("pixel_attention_mask", pixel_values.flatten(2).any(-1))
        elif (mask := kwargs.get("pixel_attention_mask")) is not None:
            unit = self.view.patch_pixels
            patches = mask[..., ::unit, ::unit]  # padding is at the bottom and at the right
            for axis in (-2, -1):
                patches = patches.repeat_interleave(kernel_size, axis)
            kwargs["pixel_attention_mask"] = patches
        return kwargs


def _model_class(name: str) -> Any:
    found = getattr(transformers, name, None)
    if not (inspect.isclass(found) and issubclass(found, PreTrainedModel)):
        raise ValueError(f"model_class is {name!r}; valid: the name of a model's class in transformers")
    return found
