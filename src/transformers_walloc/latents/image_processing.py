"""Images in, latents out: the image processor of models that take WaLLoC latents in place of pixels."""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from transformers import BaseImageProcessor, BatchFeature, PreTrainedConfig

from ..codec.image_processing_walloc import WallocImageProcessor
from ..codec.modeling_walloc import WallocImageEncoder
from ..codec.pixels import scale_pixels
from .families import family_of, image_grid
from .families import merge_size as merge_size_of
from .layouts import model_inputs
from .values import LatentView, resize_pixels

COMPANIONS = {  # of pixel values, by layout
    "masked": ["pixel_attention_mask"],
    "tiles": ["image_sizes"],
    "rows": ["image_grid_thw"],
    "padded_rows": ["image_grid_thw"],
    "patches": ["image_grid_thw"],
    "naflex": ["pixel_attention_mask", "spatial_shapes"],
    "positions": ["image_position_ids"],
}


class WallocLatentImageProcessorKwargs(TypedDict, total=False):
    """Options of [`WallocLatentImageProcessor`], settable at construction and overridable in each call."""

    codec: str
    size: dict[str, int]
    do_resize: bool
    patch_size: int
    halo: int
    constant_channel: bool
    scale: str | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    layout: str
    merge_size: int
    output_name: str
    device: str | torch.device | None
    return_tensors: str | None
    # Passed on by the processors of Idefics3 and PaliGemma; there is nothing to choose here.
    return_row_col_info: bool | None
    data_format: str | None


class WallocLatentImageProcessor(BaseImageProcessor):
    r"""
    Turns images into the input of a model made by [`load_on_latents`]: resize, encode, undo the companding, scale, lay
    out the windows of the patches. `for_model` reads all options but the codec from the model's config.

    It runs in data-loader workers on the CPU or, with `device`, on a GPU; the codec's encoder is loaded at the first
    call and holds fewer than 100,000 parameters. Latents are not rounded.

    Args:
        codec (`str`): Hub id or folder of the codec.
        size (`dict`): `{"height": ..., "width": ...}` in pixels that the images are resized to, multiples of
            `patch_size * 2**num_levels`. Resizing is bicubic and antialiased, of 8-bit images in 8 bits.
        do_resize (`bool`, defaults to `True`): `False` keeps the resolution up to the nearest whole number of tokens,
            for models that take any size.
        patch_size (`int`): latents per side of a patch.
        halo (`int`, defaults to 0): further latents on each side of a patch. The image is extended by reflection, so
            that those of the outer patches exist.
        constant_channel (`bool`, defaults to `False`): append a channel of ones, for patch embeddings without a bias.
        scale (`str`, *optional*): of the latents, `"none"`, `"partial"` or `"corpus"`; see [`LatentView.scaled`]. By
            default `"corpus"` where the codec knows its corpus.
        mean, std (`list[float]`, *optional*): of each latent channel, in place of `scale`; see [`LatentView`].
        layout (`str`, defaults to `"image"`): how the model takes patches, see `model_inputs`.
        merge_size (`int`, defaults to 1): patches per side of a token, for models that merge them.
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
    scale = None
    mean = None
    std = None
    layout = "image"
    merge_size = 1
    output_name = "latent_values"

    def __init__(self, **kwargs):
        if "codec" in kwargs:
            kwargs["codec"] = str(kwargs["codec"])  # a path is written into preprocessor_config.json
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        self.model_input_names = [self.output_name, *COMPANIONS.get(self.layout, [])]
        self._encoder: WallocImageEncoder | None = None

    @classmethod
    def for_model(cls, config: PreTrainedConfig, codec: str, **kwargs: Any) -> "WallocLatentImageProcessor":
        """The processor of a model on latents.

        Args:
            config: of a model that [`load_on_latents`] made, with its `walloc_latents`.
            codec: Hub id or folder of the codec that the model was made for.
            **kwargs: options that differ from what the config says; the output is called `pixel_values` by default.
        """
        own = getattr(config, "walloc_latents", None)
        if not isinstance(own, dict):
            raise ValueError(f"the config of {config.name_or_path!r} has no walloc_latents; use load_on_latents")
        encoder = WallocImageEncoder.from_pretrained(codec, dtype=torch.float32)
        unit, grid = LatentView(encoder.config, **own).patch_pixels, image_grid(config)
        options: dict[str, Any] = {"codec": codec, "output_name": "pixel_values", "scale": "none", **own}
        options["do_resize"] = grid is not None
        if grid is not None:
            options["size"] = {"height": grid * unit, "width": grid * unit}
        options["layout"] = family_of(config).layout
        options["merge_size"] = merge_size_of(config)
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
            `latent_values` (or `output_name`): (B, channels, height, width), windows side by side, and what else goes
            with another `layout`, see `model_inputs`.

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
        scale,
        mean,
        std,
        layout,
        merge_size,
        output_name,
        device,
        return_tensors,
    ) -> BatchFeature:
        encoder = self._load_encoder(codec, device)
        options = {"patch_size": patch_size, "halo": halo, "constant_channel": constant_channel}
        if std is None:
            view = LatentView.scaled(encoder.config, scale, **options)
        else:
            view = LatentView(encoder.config, mean=mean, std=std, **options)
        unit = view.patch_pixels
        if do_resize and (size["height"] % unit or size["width"] % unit):
            raise ValueError(
                f"size {size['height']}x{size['width']} is not a multiple of {unit} pixels: patches of {patch_size} "
                f"latents of {encoder.config.patch_size} pixels"
            )
        # 8-bit images are resized in 8 bits and go to the encoder as they are: on a CPU it is a compiled kernel.
        to_pixels = WallocImageProcessor(num_channels=encoder.config.num_channels, patch_size=1, do_rescale=False)
        batch = []
        for image in to_pixels._prepare_images_structure(images):
            pixels = to_pixels(image, return_tensors="pt")["pixel_values"]
            if pixels.dtype == torch.uint8 and pixels.device.type != "cpu":
                pixels = scale_pixels(pixels)  # only CPUs resize 8 bits
            target = (size["height"], size["width"])
            if not do_resize:
                token = unit * merge_size
                target = tuple(max(1, round(length / token)) * token for length in pixels.shape[2:])
            batch.append(resize_pixels(pixels, target))
        if all((pixels.shape, pixels.dtype) == (batch[0].shape, batch[0].dtype) for pixels in batch):
            windows = list(view.from_pixels(torch.cat(batch), encoder))
        else:
            windows = [view.from_pixels(pixels, encoder)[0] for pixels in batch]
        counts = _counts(images) if layout in ("nested", "masked") else None
        data = model_inputs(windows, view.kernel_size, layout, merge_size, counts)
        data[output_name] = data.pop("pixel_values")
        if layout == "nested":
            # Idefics3's processor asks into how many rows and columns an image was split; here none is.
            data["rows"] = data["cols"] = [[0] * count for count in _counts(images)]
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
