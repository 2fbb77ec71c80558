"""Images in, latents out: the image processor of models that take WaLLoC latents in place of pixels."""

from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from transformers import BaseImageProcessor, BatchFeature, PreTrainedConfig

from ..codec.image_processing_walloc import WallocImageProcessor
from ..codec.modeling_walloc import WallocImageEncoder
from .folding import flatten_patches, latent_values, latent_windows


class WallocLatentImageProcessorKwargs(TypedDict, total=False):
    """Options of [`WallocLatentImageProcessor`], settable at construction and overridable in each call."""

    codec: str
    size: dict[str, int]
    do_resize: bool
    patch_size: int
    halo: int
    constant_channel: bool
    merge_size: int | None
    nested_images: bool
    output_name: str
    device: str | torch.device | None
    return_tensors: str | None
    # Passed on by the processors of Idefics3 and PaliGemma; there is nothing to choose here.
    return_row_col_info: bool | None
    data_format: str | None


class WallocLatentImageProcessor(BaseImageProcessor):
    r"""
    Turns images into the input of a model made by [`load_on_latents`]: resize, encode, undo the companding, lay out the
    windows of the patches. `for_model` reads all options but the codec from the model's config.

    It runs in data-loader workers on the CPU or, with `device`, on a GPU; the codec's encoder is loaded at the first
    call and holds fewer than 100,000 parameters. Latents are not rounded.

    Args:
        codec (`str`): Hub id or folder of the codec.
        size (`dict`): `{"height": ..., "width": ...}` in pixels that the images are resized to, multiples of
            `patch_size * 2**num_levels`. Resizing is bicubic and antialiased.
        do_resize (`bool`, defaults to `True`): `False` keeps the resolution up to the nearest whole number of tokens,
            for models that take any size.
        patch_size (`int`): latents per side of a patch.
        halo (`int`, defaults to 0): further latents on each side of a patch. The image is extended by reflection, so
            that those of the outer patches exist.
        constant_channel (`bool`, defaults to `False`): append a channel of ones, for patch embeddings without a bias.
        merge_size (`int`, *optional*): for models that take flattened patches (Qwen2-VL): patches per side of a token.
            The output is then rows of patches, with `image_grid_thw`.
        nested_images (`bool`, defaults to `False`): for models that take several images a sample (Idefics3, SmolVLM).
        output_name (`str`, defaults to `"latent_values"`): key of the output. Processors of vision-language models
            expect `"pixel_values"`.
        device (`str`, *optional*): where to encode.

    ```python
    >>> from transformers_walloc import WallocLatentImageProcessor

    >>> processor = WallocLatentImageProcessor(
    ...     codec="walloc/rgb-16x", size={"height": 896, "width": 896}, patch_size=7
    ... )
    >>> processor(image, return_tensors="pt")["latent_values"].shape  # as many numbers as 224 x 224 RGB pixels
    torch.Size([1, 12, 112, 112])
    ```"""

    model_input_names = ["latent_values"]  # noqa: RUF012 - transformers' own convention
    valid_kwargs = WallocLatentImageProcessorKwargs  # type: ignore[assignment]
    codec = "walloc/rgb-16x"
    size = {"height": 896, "width": 896}  # noqa: RUF012
    do_resize = True
    patch_size = 7
    halo = 0
    constant_channel = False
    merge_size = None
    nested_images = False
    output_name = "latent_values"

    def __init__(self, **kwargs):
        if "codec" in kwargs:
            kwargs["codec"] = str(kwargs["codec"])  # a path is written into preprocessor_config.json
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        self.model_input_names = [self.output_name] + (["image_grid_thw"] if self.merge_size else [])
        self._encoder: WallocImageEncoder | None = None

    @classmethod
    def for_model(cls, config: PreTrainedConfig, codec: str, **kwargs: Any) -> "WallocLatentImageProcessor":
        """The processor of a model on latents.

        Args:
            config: of a model that [`load_on_latents`] made, with its `walloc_latents`.
            codec: Hub id or folder of the codec that the model was made for.
            **kwargs: options that differ from what the config says; the output is called `pixel_values` by default.
        """
        windows = getattr(config, "walloc_latents", None)
        if not isinstance(windows, dict):
            raise ValueError(f"the config of {config.name_or_path!r} has no walloc_latents; use load_on_latents")
        vision = getattr(config, "vision_config", config)
        encoder = WallocImageEncoder.from_pretrained(codec, dtype=torch.float32)
        options: dict[str, Any] = {"codec": codec, "output_name": "pixel_values", **windows}
        unit = windows["patch_size"] * encoder.config.patch_size
        if hasattr(vision, "image_size"):
            options["size"] = dict.fromkeys(("height", "width"), vision.image_size // vision.patch_size * unit)
        else:
            options["do_resize"] = False
        options["merge_size"] = getattr(vision, "spatial_merge_size", None)
        options["nested_images"] = config.model_type in ("idefics3", "smolvlm")
        return cls(**{**options, **kwargs})

    @property
    def image_seq_length(self) -> int:
        """Patches in an image of `size`, which is what PaliGemma's processor asks for."""
        unit = self.patch_size * self._load_encoder(self.codec, None).config.patch_size
        return (self.size["height"] // unit) * (self.size["width"] // unit)

    def fetch_images(self, image_url_or_urls):
        return WallocImageProcessor().fetch_images(image_url_or_urls)

    def preprocess(self, images, **kwargs) -> BatchFeature:
        """
        Args:
            images: one image, a batch, or nested lists of images of any kind that [`WallocImageProcessor`] takes.
            **kwargs: the options of the class, for this call.

        Returns:
            `latent_values` (or `output_name`): (B, channels, height, width), windows side by side; with `merge_size`
            rows (patches, channels * k * k) and `image_grid_thw` (B, 3); with `nested_images`
            (B, images, channels, height, width), filled up with zeros.

        Raises:
            TypeError: an unknown option, something that is no image.
            ValueError: a size that is not a whole number of patches, images of different sizes in one batch.
        """
        passed_on = ("return_row_col_info", "data_format")
        valid = tuple(name for name in self.valid_kwargs.__annotations__ if name not in passed_on)
        for name in kwargs:
            if name not in valid + passed_on:
                raise TypeError(f"unknown option {name!r} of WallocLatentImageProcessor; valid: {', '.join(valid)}")
        return self._preprocess(images, **{name: kwargs.get(name, getattr(self, name, None)) for name in valid})

    @torch.no_grad()
    def _preprocess(  # type: ignore[override]
        self,
        images,
        codec,
        size,
        do_resize,
        patch_size,
        halo,
        constant_channel,
        merge_size,
        nested_images,
        output_name,
        device,
        return_tensors,
    ) -> BatchFeature:
        encoder = self._load_encoder(codec, device)
        config = encoder.config
        to_pixels = WallocImageProcessor(num_channels=config.num_channels, patch_size=1)
        unit, margin = patch_size * config.patch_size, halo * config.patch_size
        if do_resize and (size["height"] % unit or size["width"] % unit):
            raise ValueError(
                f"size {size['height']}x{size['width']} is not a multiple of {unit} pixels: patches of {patch_size} "
                f"latents of {config.patch_size} pixels"
            )
        batch = []
        for image in to_pixels._prepare_images_structure(images):
            pixels = to_pixels(image, device=device, return_tensors="pt")["pixel_values"]
            token = unit * (merge_size or 1)
            target = (size["height"], size["width"])
            if not do_resize:
                target = tuple(max(1, round(length / token)) * token for length in pixels.shape[2:])
            if margin >= min(target):
                raise ValueError(f"a halo of {halo} latents does not fit images of {target[0]}x{target[1]} pixels")
            if pixels.shape[2:] != target:
                pixels = F.interpolate(pixels, target, mode="bicubic", antialias=True).clamp(-0.5, 0.5)
            batch.append(F.pad(pixels, (margin,) * 4, mode="reflect") if margin else pixels)
        if not merge_size:
            if any(pixels.shape != batch[0].shape for pixels in batch):
                sizes = ", ".join(f"{pixels.shape[2]}x{pixels.shape[3]}" for pixels in batch)
                raise ValueError(f"images of different sizes in one batch ({sizes}); use do_resize")
            batch = [torch.cat(batch)]
        windows = [
            latent_windows(
                latent_values(encoder(pixels.to(encoder.device)).latents, config), patch_size, halo, constant_channel
            )
            for pixels in batch
        ]
        data: dict[str, Any] = {}
        if merge_size:
            rows, grids = zip(*(flatten_patches(w, patch_size + 2 * halo, merge_size) for w in windows), strict=True)
            data[output_name], data["image_grid_thw"] = torch.cat(rows), torch.cat(grids)
        elif nested_images:
            data = {output_name: _nest(windows[0], images)}
            # Idefics3's processor asks into how many rows and columns an image was split; here none is.
            data["rows"] = data["cols"] = [[0] * count for count in _counts(images)]
        else:
            data[output_name] = windows[0]
        if return_tensors is not None and str(getattr(return_tensors, "value", return_tensors)) == "np":
            data = {k: v.numpy(force=True) if isinstance(v, torch.Tensor) else v for k, v in data.items()}
        return BatchFeature(data)

    def _load_encoder(self, codec: str, device) -> WallocImageEncoder:
        if self._encoder is None or self._encoder.name_or_path != str(codec):
            self._encoder = WallocImageEncoder.from_pretrained(str(codec), dtype=torch.float32)
        return self._encoder if device is None else self._encoder.to(device)

    def _standardize_kwargs(self, **kwargs) -> dict:  # type: ignore[override]
        return kwargs

    def to_dict(self) -> dict[str, Any]:
        options = super().to_dict()
        options.pop("_encoder", None)
        if options.get("device") is not None:
            options["device"] = str(options["device"])
        return options


def _counts(images) -> list[int]:
    """Images of each sample; an image that is in no list of its own is a sample."""
    if not isinstance(images, list | tuple):
        return [1]
    return [len(sample) if isinstance(sample, list | tuple) else 1 for sample in images]


def _nest(flat: torch.Tensor, images) -> torch.Tensor:
    counts = _counts(images)
    nested = flat.new_zeros(len(counts), max(counts), *flat.shape[1:])
    for sample, own in zip(nested, flat.split(counts), strict=True):
        sample[: len(own)] = own
    return nested
