"""Images in, latents out: the image processor of models that take WaLLoC latents in place of pixels."""

import importlib
import itertools
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedConfig
from transformers.image_processing_backends import PilBackend

from ..codec.identity import codec_name
from ..codec.image_processing_walloc import WallocImageProcessor
from ..codec.modeling_walloc import WallocImageEncoder
from ..codec.pixels import scale_pixels
from .codecs import check_device, check_identity, unpack_encoder
from .datasets import RowReader
from .flat_code import auto_map, write_code
from .image_options import COMPANIONS, PASSED_ON, WallocLatentImageProcessorKwargs
from .layouts import model_inputs
from .stored import samples_of, stored_latents, to_whole_patches
from .tiling import ARGUMENTS, Plan, Tile, Tiling, render
from .values import LatentView


class WallocLatentImageProcessor(PilBackend):
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
        fingerprint (`str`, *optional*): of the encoder that the model was folded on; another codec is refused.
        encoder (`dict`, *optional*): the encoder itself, see `pack_encoder`; in place of loading `codec`.
        tiling (`dict`, *optional*): how the pixel model's own image processor cuts and resizes, see `Tiling`; in place
            of `size`. Its options (`max_pixels`, `size`, `do_image_splitting`, ...) are options here, too, and
            count pixels of the pixel model: they give as many tokens as there.
        pixel_patch_size (`int`, *optional*): of the pixel model, with `tiling`.

    Images may also be stored latents: rows of a data set, or tensors with `latent_channels` channels. They are laid out
    as they are, and need no encoder.

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
    fingerprint = None
    encoder = None
    tiling = None
    pixel_patch_size: Any = None
    auto_map: dict[str, str] | None = None

    def __init__(self, **kwargs: Any) -> None:
        if "codec" in kwargs:
            kwargs["codec"] = str(kwargs["codec"])  # a path is written into preprocessor_config.json
        if kwargs.get("tiling"):
            tiling, chosen = Tiling(kwargs["tiling"]), {n: kwargs[n] for n in ARGUMENTS if kwargs.get(n) is not None}
            if kwargs.get("size") not in (None, tiling.options.get("size")):
                chosen["size"] = kwargs["size"]
            kwargs["tiling"] = tiling.with_options(chosen).options
            kwargs["size"] = kwargs["tiling"].get("size")
            for name in {"min_pixels", "max_pixels"} & chosen.keys():
                del kwargs[name]  # which are in the size now
        super().__init__(**kwargs)
        self.model_input_names = [self.output_name, *COMPANIONS.get(self.layout, [])]
        self._encoder: WallocImageEncoder | None = None
        self._readers: dict[bool, RowReader] = {}

    @classmethod
    def for_model(cls, config: PreTrainedConfig, codec: Any = None, **kwargs: Any) -> "WallocLatentImageProcessor":
        """The processor of a model on latents.

        Args:
            config: of a model that [`load_on_latents`] made, with its `walloc_latents`.
            codec: Hub id, folder or model of the codec that the model was made for; None for the one that it names.
            **kwargs: options that differ from what the config says; the output is called `pixel_values` by default.

        Raises:
            ValueError: the model is not on latents, or on those of another codec.
        """
        # By name, because the code of this class goes into the folders of models without the rest of the package.
        options = importlib.import_module(".processors", __package__).options_for_model
        return cls(**{**options(config, codec), **kwargs})

    @property
    def image_seq_length(self) -> int:
        """Patches in an image of `size`, which is what PaliGemma's processor asks for."""
        if self.tiling:
            tile = Tiling(self.tiling).plan(1, 1).tiles[-1]
            return tile.box[2] // self.pixel_patch_size * (tile.box[3] // self.pixel_patch_size)
        unit = self.patch_size * self._load_encoder(self.codec, None).config.patch_size
        return (self.size["height"] // unit) * (self.size["width"] // unit)

    def input_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of images for the encoder, at which data sets of latents are to be written.

        None where the model takes any size. Of a model that cuts pictures into tiles it is that of a tile, which stored
        latents are one of.
        """
        config = self._load_encoder(self.codec, None).config
        if self.tiling is None:
            return (self.size["height"], self.size["width"]) if self.do_resize else None
        if self.layout not in ("image", "nested", "masked", "tiles") or "Pixtral" in Tiling(self.tiling).name:
            return None
        _, _, height, width = Tiling(self.tiling).plan(1, 1).tiles[0].box
        unit = self.patch_size * config.patch_size
        return height // self.pixel_patch_size * unit, width // self.pixel_patch_size * unit

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> Any:
        """What the pixel model's image processor says of an image of this size: patches, tiles, rows and columns.

        Args:
            height, width: of the image, in pixels.
            images_kwargs: options of the call that the image is meant for.
        """
        tiling = self.tiling_of(images_kwargs or {})
        if tiling is not None:
            return tiling.number_of_patches(height, width)
        unit = self.patch_size * self._load_encoder(self.codec, None).config.patch_size
        if self.do_resize:
            height, width = self.size["height"], self.size["width"]
        rows, columns = self._native_size(height, width, unit)
        return rows // unit * (columns // unit)

    def get_tile_grid(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> tuple[int, int]:
        """Rows and columns that an image of this size is cut into, (1, 1) for one that is not."""
        tiling = self.tiling_of(images_kwargs or {})
        plan = Plan(rows=1, columns=1) if tiling is None else tiling.plan(height, width)
        return max(plan.rows, 1), max(plan.columns, 1)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Images of paths, URLs and rows of data sets; other images as they are."""
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, str | os.PathLike):
            return WallocImageProcessor().fetch_images(image_url_or_urls)
        encoder = self._load_encoder(self.codec, None)
        stored = stored_latents(image_url_or_urls, encoder.config, self._row_reader)
        return image_url_or_urls if stored is None else stored

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """
        Args:
            images: one image, a batch, or nested lists of images of any kind that [`WallocImageProcessor`] takes, and
                stored latents.
            **kwargs: the options of the class, for this call.

        Returns:
            `latent_values` (or `output_name`): (B, channels, height, width), windows side by side, and what else goes
            with another `layout`, see `model_inputs`.

        Raises:
            TypeError: an unknown option, something that is no image.
            ValueError: a size that is not a whole number of patches, images of different sizes in one batch, a budget
                that leaves no room for a token, latents of another codec.
        """
        valid = tuple(name for name in self.valid_kwargs.__annotations__ if name not in PASSED_ON)
        for name in kwargs:
            if name not in valid + PASSED_ON:
                raise TypeError(f"unknown option {name!r} of WallocLatentImageProcessor; valid: {', '.join(valid)}")
        if kwargs.get("device") is not None:
            check_device(kwargs["device"])
        tiling = self.tiling_of(kwargs)
        own = ("codec", "device", "patch_size", "halo", "constant_channel", "scale", "mean", "std")
        names = (*own, "layout", "merge_size")
        options: dict[str, Any] = {name: kwargs.get(name, getattr(self, name, None)) for name in names}
        if tiling is not None and options["patch_size"] == self.pixel_patch_size:
            options["patch_size"] = self.patch_size  # processors of text and images know that of the pixel model
        size = kwargs.get("size", self.size)
        do_resize, return_tensors = kwargs.get("do_resize", self.do_resize), kwargs.get("return_tensors")
        output_name = kwargs.get("output_name", self.output_name)
        data = self._preprocess(images, tiling, size, do_resize, **options)
        data[output_name] = data.pop("pixel_values")
        if not kwargs.get("return_row_col_info") and options["layout"] == "nested":
            del data["rows"], data["cols"]
        if return_tensors is not None and str(getattr(return_tensors, "value", return_tensors)) == "np":
            data = {k: v.numpy(force=True) if isinstance(v, torch.Tensor) else v for k, v in data.items()}
        return BatchFeature(data)

    @torch.no_grad()
    def _preprocess(  # type: ignore[override]
        self,
        images: Any,
        tiling: Tiling | None,
        size: Mapping[str, int],
        do_resize: bool,
        codec: str,
        device: Any,
        patch_size: int,
        halo: int,
        constant_channel: bool,
        scale: str | None,
        mean: Any,
        std: Any,
        layout: str,
        merge_size: int,
    ) -> dict[str, Any]:
        encoder = self._load_encoder(codec, device)
        options: dict[str, Any] = {"patch_size": patch_size, "halo": halo, "constant_channel": constant_channel}
        if std is None:
            view = LatentView.scaled(encoder.config, scale, **options)  # type: ignore[arg-type]
        else:
            view = LatentView(encoder.config, mean=mean, std=std, **options)
        unit = view.patch_pixels
        if tiling is None and do_resize:
            if not {"height", "width"} <= size.keys():
                raise ValueError(f"size has {', '.join(size) or 'nothing'}; valid for this model: height and width")
            if size["height"] % unit or size["width"] % unit:
                raise ValueError(
                    f"size {size['height']}x{size['width']} is not a multiple of {unit} pixels: patches of {patch_size}"
                    f" latents of {encoder.config.patch_size} pixels"
                )
        samples = samples_of(self.fetch_images(images))
        if not any(samples):
            raise ValueError("empty batch: there is no image to process")
        # 8-bit images are resized in 8 bits and go to the encoder as they are: on a CPU it is a compiled kernel.
        to_pixels = WallocImageProcessor(num_channels=encoder.config.num_channels, patch_size=1, do_rescale=False)
        tiles: list[torch.Tensor] = []  # images for the encoder, or windows of stored latents
        plans, sizes = [], []
        for sample in samples:
            for image in sample:
                stored = stored_latents(image, encoder.config, self._row_reader)
                if stored is not None:
                    wanted = self.input_size()
                    grid = None if wanted is None else (wanted[0] // unit, wanted[1] // unit)
                    whole = to_whole_patches(stored, view, merge_size, grid).to(encoder.device)
                    height, width = (length // view.kernel_size * unit for length in whole.shape[1:])
                    plan = Plan([Tile.whole((height, width))] * (2 if layout == "tiles" else 1))
                    tiles += [whole] * len(plan.tiles)
                else:
                    pixels = to_pixels(image, return_tensors="pt")["pixel_values"]
                    if pixels.dtype == torch.uint8 and pixels.device.type != "cpu":
                        pixels = scale_pixels(pixels)  # only CPUs resize 8 bits
                    height, width = pixels.shape[2:]
                    if tiling is not None and do_resize:
                        plan, patch = tiling.plan(height, width, alone=len(sample) == 1), self.pixel_patch_size
                    else:
                        target = (size["height"], size["width"])
                        if not do_resize:
                            target = self._native_size(height, width, unit * merge_size)
                        plan, patch = Plan([Tile.whole(target)]), unit
                        plan = Plan(plan.tiles * 2) if layout == "tiles" else plan
                    tiles += render(pixels, plan, unit / patch, patch, unit)
                plans.append(plan)
                sizes.append((height, width))
        windows = _encoded(tiles, view, encoder)
        per_image = [len(plan.tiles) for plan in plans]
        counts = per_image
        if layout in ("nested", "masked"):
            each = iter(per_image)
            counts = [sum(next(each) for _ in sample) for sample in samples]
        data = model_inputs(windows, view.kernel_size, layout, merge_size, counts)  # type: ignore[arg-type]
        data.update(self._facts(samples, plans, sizes, tiling, layout, view, merge_size, windows))
        return data

    def _facts(
        self, samples: Any, plans: Any, sizes: Any, tiling: Any, layout: str, view: Any, merge_size: int, windows: Any
    ) -> dict[str, Any]:
        """What the processors of text and images ask of an image processor, beside its images."""
        facts: dict[str, Any] = {}
        if layout in ("nested", "masked"):
            each = iter(plans)
            grids = [[(plan.rows, plan.columns) for plan in (next(each) for _ in sample)] for sample in samples]
            least = 0 if layout == "nested" else 1
            facts["rows"] = [[max(rows, least) for rows, _ in grid] for grid in grids]
            facts["cols"] = [[max(columns, least) for _, columns in grid] for grid in grids]
        if layout == "tiles":
            facts["batch_num_images"] = [len(sample) for sample in samples]
            if tiling is not None:
                scale = view.kernel_size / self.pixel_patch_size
                facts["image_sizes"] = torch.tensor([tiling.size_for_model(*size, scale) for size in sizes])
        if layout == "image" and tiling is not None and "min_patches" in tiling.options:
            facts["num_patches"] = [len(plan.tiles) for plan in plans]
        if layout == "image" and tiling is not None and "Gemma3" in tiling.name:
            facts["num_crops"] = [len(plan.tiles) - 1 for plan in plans]
        if layout == "positions":
            token = (view.kernel_size * merge_size) ** 2
            facts["num_soft_tokens_per_image"] = [image.shape[1] * image.shape[2] // token for image in windows]
        return facts

    def tiling_of(self, options: Mapping[str, Any]) -> Tiling | None:
        """How images are cut and resized in a call with these options."""
        chosen = {name: options[name] for name in ARGUMENTS if options.get(name) is not None}
        if self.tiling is None:
            # Processors of some families pass on what their own image processors have; budgets are asked for.
            if asked := [name for name in chosen if name.startswith(("min_pixels", "max_pixels", "max_soft"))]:
                raise ValueError(f"{asked[0]} is no option here: this processor resizes all images to one size")
            return None
        tiling = Tiling(self.tiling)
        if options.get("size") not in (None, self.size):
            chosen["size"] = options["size"]
        return tiling.with_options(chosen) if chosen else tiling

    @staticmethod
    def _native_size(height: int, width: int, token: int) -> tuple[int, int]:
        """The nearest whole number of tokens, at least one."""
        return max(1, round(height / token)) * token, max(1, round(width / token)) * token

    def _row_reader(self, storage: str) -> RowReader:
        files = storage == "walloc" and self.encoder is not None  # whose entropy coder does not travel with the encoder
        if files not in self._readers:
            self._readers[files] = RowReader(self.codec if files else self._load_encoder(self.codec, None))
        return self._readers[files]

    def _load_encoder(self, codec: str, device: Any) -> WallocImageEncoder:
        if self._encoder is None or self._encoder.name_or_path != str(codec):
            if self.encoder is not None and codec == self.codec:
                self._encoder = unpack_encoder(self.encoder, codec)
            else:
                self._encoder = WallocImageEncoder.from_pretrained(str(codec), dtype=torch.float32)
            if self.fingerprint is not None:
                expected = {"name": codec_name(self.codec), "fingerprint": self.fingerprint}
                check_identity(expected, self._encoder, "the encoder")
        return self._encoder if device is None else self._encoder.to(device)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return kwargs

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Write the processor, and its code for machines without this package."""
        self.auto_map = auto_map("AutoImageProcessor", WallocLatentImageProcessor)
        write_code(save_directory, "image_processing")
        return super().save_pretrained(save_directory, *args, **kwargs)

    def __repr__(self) -> str:
        config = None if self._encoder is None and self.encoder is None else self._load_encoder(self.codec, None).config
        grid = f", DR {config.dimensionality_reduction:g}, grid of {config.patch_size} pixels" if config else ""
        cut = f"tiled as {Tiling(self.tiling).name}" if self.tiling else f"size {dict(self.size)}"
        patches = f"patches of {self.patch_size} x {self.patch_size} latents"
        return f"{type(self).__name__}({self.codec!r}{grid}, {patches}, halo {self.halo}, {cut})"

    def __getstate__(self) -> dict[str, Any]:
        # So that a processor's hash stays the same when it is used.
        return {**self.__dict__, "_encoder": None, "_readers": {}}

    def to_dict(self) -> dict[str, Any]:
        """What `preprocessor_config.json` holds."""
        loaded = self._encoder, self._readers
        self._encoder, self._readers = None, {}
        try:
            options = super().to_dict()
        finally:
            self._encoder, self._readers = loaded
        optional = ("tiling", "pixel_patch_size", "fingerprint", "encoder")
        for name in ("_encoder", "_readers", *(name for name in optional if not options.get(name))):
            options.pop(name, None)
        if self.auto_map is not None:
            options["auto_map"] = self.auto_map
        if options.get("device") is not None:
            options["device"] = str(options["device"])
        return options


def _encoded(tiles: list[torch.Tensor], view: LatentView, encoder: WallocImageEncoder) -> list[torch.Tensor]:
    """Windows of all tiles. Neighbours of one size are encoded together; three axes are windows already."""
    windows: list[torch.Tensor] = []
    for (_, shape), run in itertools.groupby(tiles, lambda tile: (tile.dtype, tile.shape)):
        members = list(run)
        windows += members if len(shape) == 3 else view.from_pixels(torch.cat(members), encoder)
    return windows
