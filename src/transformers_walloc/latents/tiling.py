"""Which rectangles of a picture a model sees, and how large: what the image processor of its pixel model decides.

```
picture --resized to--> canvas --cut--> tiles, in pixels of the pixel model        Qwen: one, by a budget of pixels
                                                                                   Idefics3: squares, and the whole
```

The arithmetic is transformers' own. Options count pixels of the pixel model, so that a budget gives as many tokens on
latents as on pixels. A token then covers `zoom` times as many pixels per side, and canvases are that much larger.
"""

import functools
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers

from .values import resize_pixels

Size = tuple[int, int]


@dataclass(frozen=True)
class Tile:
    """One image that the model is given, in pixels of the pixel model.

    Args:
        canvas: (height, width) that the picture is resized to.
        box: (top, left, height, width) of the canvas; what lies beyond it is filled.
        crop: (top, left, height, width) of the picture, in its own pixels, to resize in place of all of it.
        fill: red, green and blue, 0..255.
    """

    canvas: Size
    box: tuple[int, int, int, int]
    crop: tuple[int, int, int, int] | None = None
    fill: tuple[int, ...] = (0, 0, 0)

    @classmethod
    def whole(cls, canvas: Size, **more: Any) -> "Tile":
        """A tile that is the whole of a canvas, (height, width) in pixels."""
        return cls(canvas, (0, 0, *canvas), **more)


@dataclass(frozen=True)
class Plan:
    """Tiles of a picture in the order in which the model takes them, and the grid that they were cut in."""

    tiles: list[Tile] = field(default_factory=list)
    rows: int = 0
    columns: int = 0


class Tiling:
    """How the image processor of a pixel model cuts and resizes.

    Args:
        options: what its `to_dict` gives, or the part of it that matters here.
    """

    def __init__(self, options: Mapping[str, Any]):
        self.options = dict(options)
        self.own = _own_processor(json.dumps(self.options, sort_keys=True))

    @staticmethod
    def options_of(own: Any, patch_size: int) -> dict[str, Any] | None:
        """What of an image processor decides on tiles; None for one that resizes all images to one size.

        Args:
            own: the image processor of a pixel model.
            patch_size: of the model, in pixels.
        """
        name = base_name(type(own).__name__)
        if name not in PLANNERS:
            return None
        every = own.to_dict()
        options = {key: every[key] for key in PLANNERS[name].options if every.get(key) is not None}
        if hasattr(own, "patch_size"):
            options["patch_size"] = patch_size
        return {"image_processor_type": name, **options}

    @property
    def name(self) -> str:
        """Name of the image processor's class whose tiles these are."""
        return str(self.options["image_processor_type"])

    def with_options(self, given: Mapping[str, Any]) -> "Tiling":
        """The same with other options, as its own call takes them.

        Raises:
            ValueError: an option that this image processor does not have, or a value that it cannot use.
        """
        valid = PLANNERS[self.name].arguments
        options = dict(self.options)
        for key, value in given.items():
            if key not in valid:
                raise ValueError(f"{key} is no option of {self.name}; valid: {', '.join(valid)}")
            for edge, length in value.items() if key in ("size", "max_image_size") else ():
                if length is not None and length < 1:
                    raise ValueError(f"{edge} is {length}; valid: at least 1 pixel")
            if key in ("min_pixels", "max_pixels"):
                edge = "shortest_edge" if key == "min_pixels" else "longest_edge"
                options["size"] = {**_as_dict(options.get("size", self.own.size)), edge: value}
            elif key == "size":
                known = _as_dict(options.get("size", self.own.size))
                unknown = sorted(set(_as_dict(value)) - set(known))
                if unknown:
                    raise ValueError(f"size has {', '.join(unknown)}; valid for {self.name}: {', '.join(known)}")
                options["size"] = {**known, **_as_dict(value)}
            else:
                options[key] = value
        return Tiling(options)

    def plan(self, height: int, width: int, alone: bool = True) -> Plan:
        """Tiles of a picture.

        Args:
            height, width: of the picture, in pixels.
            alone: whether it is the only picture of its sample; LLaVA-OneVision tiles no others.

        Raises:
            ValueError: the options leave no room for one token, or the picture is too long for its width.
        """
        return PLANNERS[self.name].plan(self.own, height, width, alone)

    def size_for_model(self, height: int, width: int, scale: float) -> tuple[float, float]:
        """Size of a picture as LLaVA-OneVision is told it, which finds the tiles' grid and the padding from it.

        Args:
            scale: by which the model's own grids are smaller than those of its pixel model.
        """
        module, points = _module(self.own), self.own.image_grid_pinpoints
        scaled = [[round(length * scale) for length in point] for point in points]
        best = module.select_best_resolution((height, width), points)
        size = (height * scale, width * scale)
        if points[scaled.index(list(module.select_best_resolution(size, scaled)))] != list(best):
            # Near ties are broken by whole numbers of pixels: the picture as it lies on the canvas has no other fit.
            canvas = module.get_patch_output_size(_blank(height, width), best, "channels_first")
            size = (canvas[0] * scale, canvas[1] * scale)
        return size

    def number_of_patches(self, height: int, width: int) -> Any:
        """As its `get_number_of_image_patches`: patches, tiles, or tiles, rows and columns."""
        count = getattr(self.own, "get_number_of_image_patches", None)
        if count is not None:
            return count(height, width, {})
        tiles = self.plan(height, width).tiles
        if "patch_size" not in self.options:  # it cuts squares, and leaves patches to the model
            return len(tiles)
        tile = tiles[0]
        return tile.box[2] // self.own.patch_size * (tile.box[3] // self.own.patch_size)


def render(pixels: torch.Tensor, plan: Plan, zoom: float, patch: int, unit: int) -> list[torch.Tensor]:
    """Tiles of a picture as images for the encoder.

    Args:
        pixels: (1, channels, height, width) in [-0.5, 0.5] or uint8.
        zoom: pixels of an image for the encoder for one of the pixel model.
        patch, unit: pixels per side of a patch: of the pixel model, of the model on latents.

    Returns:
        (1, channels, h, w) each, h and w whole numbers of `unit`.
    """
    images, canvas, key = [], pixels, None
    for tile in plan.tiles:
        if key != (tile.crop, tile.canvas):
            key, canvas = (tile.crop, tile.canvas), pixels
            if tile.crop is not None:
                top, left, height, width = tile.crop
                canvas = canvas[:, :, top : top + height, left : left + width]
            whole = tile.box == (0, 0, *tile.canvas)
            target = [length // patch * unit if whole else max(1, round(length * zoom)) for length in tile.canvas]
            canvas = resize_pixels(canvas, target)
        height, width = tile.box[2] // patch * unit, tile.box[3] // patch * unit
        if not height or not width:
            raise ValueError(f"tiles of {tile.box[2]} x {tile.box[3]} pixels have no room for a patch of {patch}")
        top, left = round(tile.box[0] * zoom), round(tile.box[1] * zoom)
        bottom, right = min(top + height, canvas.shape[2]), min(left + width, canvas.shape[3])
        part = canvas[:, :, max(top, 0) : bottom, max(left, 0) : right]
        if part.shape[2:] != (height, width):
            fill = torch.tensor(tile.fill, device=pixels.device)
            fill = fill.to(torch.uint8) if pixels.dtype == torch.uint8 else fill / 255 - 0.5
            framed = fill.to(pixels.dtype)[None, :, None, None].expand(1, pixels.shape[1], height, width).clone()
            y, x = max(-top, 0), max(-left, 0)
            framed[:, :, y : y + part.shape[2], x : x + part.shape[3]] = part
            part = framed
        images.append(part)
    return images


def base_name(name: str) -> str:
    """Name of an image processor's class without its backend."""
    return name.removesuffix("Fast").removesuffix("Pil")


@functools.lru_cache(maxsize=64)
def _own_processor(options: str) -> Any:
    known = json.loads(options)
    name = base_name(known.pop("image_processor_type"))
    if name not in PLANNERS:
        raise ValueError(f"no image processor is known by the name {name!r}; valid: {', '.join(PLANNERS)}")
    return getattr(transformers, f"{name}Pil")(**known)  # needs no torchvision


def _smart_resize(own: Any, height: int, width: int, alone: bool) -> Plan:
    factor = own.patch_size * own.merge_size
    low, high = own.size["shortest_edge"], own.size["longest_edge"]
    if high is None or low is None or high < factor**2:
        raise ValueError(f"max_pixels is {high}; a token alone has {factor} x {factor} = {factor**2} pixels")
    if low > high:
        raise ValueError(f"min_pixels is {low}, more than max_pixels, {high}")
    arguments = {"height": height, "width": width, "factor": factor, "min_pixels": low, "max_pixels": high}
    if "Glm" in type(own).__name__:  # which counts the frames that a still image stands for
        arguments |= {"num_frames": own.temporal_patch_size, "temporal_factor": own.temporal_patch_size}
    return Plan([Tile.whole(_module(own).smart_resize(**arguments))])


def _naflex(own: Any, height: int, width: int, alone: bool) -> Plan:
    if own.max_num_patches < 1:
        raise ValueError(f"max_num_patches is {own.max_num_patches}; valid: at least 1")
    fit = _module(own).get_image_size_for_max_num_patches
    return Plan([Tile.whole(fit(height, width, own.patch_size, own.max_num_patches))])


def _soft_tokens(own: Any, height: int, width: int, alone: bool) -> Plan:
    merge = own.pooling_kernel_size
    fit = _module(own).get_aspect_ratio_preserving_size
    return Plan([Tile.whole(fit(height, width, own.patch_size, own.max_soft_tokens * merge**2, merge))])


def _longest_edge(own: Any, height: int, width: int, alone: bool) -> Plan:
    patch = own.patch_size if isinstance(own.patch_size, int) else own.patch_size["height"]
    longest = own.size["longest_edge"]
    if longest < patch:
        raise ValueError(f"longest_edge is {longest} pixels, less than a patch of {patch}")
    fit = _module(own).get_resize_output_image_size
    return Plan([Tile.whole(fit(_blank(height, width), longest, patch, "channels_first"))])


def _splits(own: Any, height: int, width: int, alone: bool) -> Plan:
    side = own.max_image_size["longest_edge"]
    overview = Tile.whole((side, side))
    if not own.do_image_splitting:
        return Plan([overview])
    if own.size["longest_edge"]:
        height, width = _module(own).get_resize_output_image_size(_blank(height, width), own.size["longest_edge"])
    else:
        height, width = own.size["height"], own.size["width"]
    ratio = width / height
    if width >= height:
        width = -(-width // side) * side
        height = -(-int(width / ratio) // side) * side
    else:
        height = -(-height // side) * side
        width = -(-int(height * ratio) // side) * side
    if max(height, width) <= side:
        return Plan([overview])
    rows, columns = height // side, width // side
    return Plan([*_grid((height, width), (side, side)), overview], rows, columns)


def _best_canvas(own: Any, height: int, width: int, alone: bool) -> Plan:
    side = own.size["height"], own.size["width"]
    rows = columns = 1
    if hasattr(own, "get_tile_grid"):
        rows, columns = own.get_tile_grid(height, width)
    elif own.crop_to_patches and own.max_patches > 1:
        fit = _module(own).get_optimal_tiled_canvas
        columns, rows = fit((height, width), side, own.min_patches, own.max_patches)
    tiles = _grid((rows * side[0], columns * side[1]), side)
    return Plan(tiles if len(tiles) == 1 else [*tiles, Tile.whole(side)], rows, columns)


def _anyres(own: Any, height: int, width: int, alone: bool) -> Plan:
    side = (own.size["height"], own.size["width"]) if own.size["height"] else (own.size["shortest_edge"],) * 2
    if not alone:  # one square each, the picture in its middle
        longest = max(height, width)
        canvas = tuple(round(length * s / longest) for length, s in zip((height, width), side, strict=True))
        fill = tuple(int(255 * mean) for mean in own.image_mean)
        return Plan([_centred(canvas, side, fill)])
    module = _module(own)
    best = module.select_best_resolution((height, width), own.image_grid_pinpoints)
    canvas = module.get_patch_output_size(_blank(height, width), best, "channels_first")
    top, left = ((b - c) // 2 for b, c in zip(best, canvas, strict=True))
    tiles = [
        Tile(tuple(canvas), (y - top, x - left, *side))
        for y in range(0, best[0], side[0])
        for x in range(0, best[1], side[1])
    ]
    return Plan([Tile.whole(side), *tiles], best[0] // side[0], best[1] // side[1])


def _pan_and_scan(own: Any, height: int, width: int, alone: bool) -> Plan:
    side = own.size["height"], own.size["width"]
    tiles = [Tile.whole(side)]
    if own.do_pan_and_scan:
        ratio = own.pan_and_scan_min_ratio_to_activate
        limits = own.pan_and_scan_min_crop_size, own.pan_and_scan_max_num_crops, ratio
        if not all(limits):
            raise ValueError(
                "do_pan_and_scan needs pan_and_scan_min_crop_size, pan_and_scan_max_num_crops and "
                f"pan_and_scan_min_ratio_to_activate, above 0; they are {', '.join(map(str, limits))}"
            )
        for i, crop in enumerate(
            own.pan_and_scan(_blank(height, width), *limits)
        ):  # side by side, or one below another
            if i == 0:  # they stand side by side, or one below another
                _, *step = crop.shape  # the last one may be smaller
            top, left = (0, i * step[1]) if width >= height else (i * step[0], 0)
            tiles.append(Tile.whole(side, crop=(top, left, *crop.shape[1:])))
    return Plan(tiles, len(tiles) - 1, 1)


def _grid(canvas: Size, side: Size) -> list[Tile]:
    rows, columns = canvas[0] // side[0], canvas[1] // side[1]
    return [Tile(canvas, (y * side[0], x * side[1], *side)) for y in range(rows) for x in range(columns)]


def _centred(canvas: Size, side: Size, fill: tuple[int, ...]) -> Tile:
    return Tile(canvas, ((canvas[0] - side[0]) // 2, (canvas[1] - side[1]) // 2, *side), fill=fill)


def _module(own: Any) -> Any:
    """Where an image processor's class keeps its arithmetic."""
    return sys.modules[type(own).__module__]


def _blank(height: int, width: int) -> np.ndarray:
    """A picture of which only the size is read; it takes no memory."""
    return np.broadcast_to(np.uint8(0), (3, height, width))


def _as_dict(size: Any) -> dict[str, int]:
    return {key: value for key, value in dict(size).items() if value is not None}


@dataclass(frozen=True)
class Planner:
    """What is known of an image processor's class.

    Args:
        options: attributes that decide on tiles.
        arguments: those that a call may change.
    """

    plan: Callable[[Any, int, int, bool], Plan]
    options: tuple[str, ...]
    arguments: tuple[str, ...]


_BUDGET = Planner(_smart_resize, ("size", "merge_size", "temporal_patch_size"), ("min_pixels", "max_pixels", "size"))
_SPLITS = Planner(
    _splits, ("size", "max_image_size", "do_image_splitting"), ("size", "max_image_size", "do_image_splitting")
)
_CUTS = ("crop_to_patches", "min_patches", "max_patches")
_DENSE = ("dense_max_patches", "dense_max_scale", "dense_min_aspect", "dense_max_aspect")
_SCANS = tuple(
    f"{verb}pan_and_scan{what}"
    for verb, what in (("do_", ""), ("", "_min_crop_size"), ("", "_max_num_crops"), ("", "_min_ratio_to_activate"))
)
PLANNERS = {
    "Qwen2VLImageProcessor": _BUDGET,
    "PaddleOCRVLImageProcessor": _BUDGET,
    "Glm4vImageProcessor": _BUDGET,
    "Glm46VImageProcessor": _BUDGET,
    "Siglip2ImageProcessor": Planner(_naflex, ("max_num_patches",), ("max_num_patches",)),
    "Gemma4ImageProcessor": Planner(_soft_tokens, ("max_soft_tokens", "pooling_kernel_size"), ("max_soft_tokens",)),
    "PixtralImageProcessor": Planner(_longest_edge, ("size",), ("size",)),
    "Idefics3ImageProcessor": _SPLITS,
    "SmolVLMImageProcessor": _SPLITS,
    "GotOcr2ImageProcessor": Planner(_best_canvas, ("size", *_CUTS), _CUTS),
    "GraniteDoclingImageProcessor": Planner(_best_canvas, ("size", "fine_route", *_CUTS, *_DENSE), (*_CUTS, *_DENSE)),
    "LlavaOnevisionImageProcessor": Planner(_anyres, ("size", "image_grid_pinpoints", "image_mean"), ()),
    "Gemma3ImageProcessor": Planner(_pan_and_scan, ("size", *_SCANS), _SCANS),
}
# Options of calls that only some image processors have.
ARGUMENTS = tuple(sorted({name for planner in PLANNERS.values() for name in planner.arguments} - {"size"}))
