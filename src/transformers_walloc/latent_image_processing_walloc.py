"""Images in, latents out: the image processor of models that take WaLLoC latents in place of pixels."""

from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from transformers import BaseImageProcessor, BatchFeature

from .image_processing_walloc import WallocImageProcessor
from .modeling_walloc import WallocImageEncoder
from .patch_embedding import flatten_patches, latent_values, latent_windows


class WallocLatentImageProcessorKwargs(TypedDict, total=False):
    """Options of [`WallocLatentImageProcessor`], settable at construction and overridable in each call."""

    codec: str
    size: dict[str, int]
    patch_size: int
    halo: int
    constant_channel: bool
    merge_size: int | None
    output_name: str
    device: str | torch.device | None
    return_tensors: str | None


class WallocLatentImageProcessor(BaseImageProcessor):
    r"""
    Turns images into the input of a model made by [`load_on_latents`]: resize, encode, undo the companding, lay out the
    windows of the patches.

    It runs in data-loader workers on the CPU or, with `device`, on a GPU; the codec's encoder is loaded at the first
    call and holds fewer than 100,000 parameters. Latents are not rounded.

    Args:
        codec (`str`): Hub id or folder of the codec.
        size (`dict`): `{"height": ..., "width": ...}` in pixels that the images are resized to, multiples of
            `patch_size * 2**num_levels`. Resizing is bicubic and antialiased.
        patch_size (`int`): latents per side of a patch.
        halo (`int`, defaults to 0): further latents on each side of a patch. The image is extended by reflection, so
            that those of the outer patches exist.
        constant_channel (`bool`, defaults to `False`): append a channel of ones, for patch embeddings without a bias.
        merge_size (`int`, *optional*): for models that take flattened patches (Qwen2-VL): patches per side of a token.
            The output is then rows of patches, with `image_grid_thw`.
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
    patch_size = 7
    halo = 0
    constant_channel = False
    output_name = "latent_values"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        self.model_input_names = [self.output_name] + (["image_grid_thw"] if self.merge_size else [])
        self._encoder: WallocImageEncoder | None = None

    def preprocess(self, images, **kwargs) -> BatchFeature:
        """
        Args:
            images: one image, a batch, or nested lists of images of any kind that [`WallocImageProcessor`] takes.

        Returns:
            `latent_values` (or `output_name`): (B, channels, height, width), windows side by side, or with `merge_size`
            rows (patches, channels * k * k) and `image_grid_thw` (B, 3).
        """
        unknown = set(kwargs) - set(WallocLatentImageProcessorKwargs.__annotations__)
        if unknown:
            valid = ", ".join(WallocLatentImageProcessorKwargs.__annotations__)
            raise TypeError(f"unknown option {sorted(unknown)[0]!r} of WallocLatentImageProcessor; valid: {valid}")
        options = {name: kwargs.get(name, getattr(self, name, None)) for name in self.valid_kwargs.__annotations__}
        return self._preprocess(images, **options)

    @torch.no_grad()
    def _preprocess(  # type: ignore[override]
        self, images, codec, size, patch_size, halo, constant_channel, merge_size, output_name, device, return_tensors
    ) -> BatchFeature:
        encoder = self._load_encoder(codec, device)
        config = encoder.config
        unit = patch_size * config.patch_size
        height, width = size["height"], size["width"]
        if height % unit or width % unit:
            raise ValueError(
                f"size {height}x{width} is not a multiple of {unit} pixels: patches of {patch_size} latents of "
                f"{config.patch_size} pixels"
            )
        to_pixels = WallocImageProcessor(num_channels=config.num_channels, patch_size=1)
        margin = halo * config.patch_size
        if margin >= min(height, width):
            raise ValueError(f"a halo of {halo} latents does not fit images of {height}x{width} pixels")
        batch = []
        for image in to_pixels._prepare_images_structure(images):
            pixels = to_pixels(image, device=device, return_tensors="pt")["pixel_values"]
            if pixels.shape[2:] != (height, width):
                pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True).clamp(-0.5, 0.5)
            batch.append(F.pad(pixels, (margin,) * 4, mode="reflect") if margin else pixels)
        values = latent_values(encoder(torch.cat(batch)).latents, config)
        values = latent_windows(values, patch_size, halo, constant_channel)
        data: dict[str, Any] = {output_name: values}
        if merge_size:
            data[output_name], data["image_grid_thw"] = flatten_patches(values, patch_size + 2 * halo, merge_size)
        if return_tensors is not None and str(getattr(return_tensors, "value", return_tensors)) == "np":
            data = {name: tensor.numpy(force=True) for name, tensor in data.items()}
        return BatchFeature(data)

    def _load_encoder(self, codec: str, device) -> WallocImageEncoder:
        if self._encoder is None or self._encoder.name_or_path != codec:
            self._encoder = WallocImageEncoder.from_pretrained(codec, dtype=torch.float32)
        return self._encoder if device is None else self._encoder.to(device)

    def _standardize_kwargs(self, **kwargs) -> dict:  # type: ignore[override]
        return kwargs

    def to_dict(self) -> dict[str, Any]:
        options = super().to_dict()
        options.pop("_encoder", None)
        if options.get("device") is not None:
            options["device"] = str(options["device"])
        return options
