"""Pictures as a frozen reader sees them: as they are, resized, as files of other formats, or coded by WaLLoC."""

import functools
import io
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image

from transformers_walloc import WallocImageModel, WallocImageProcessor
from transformers_walloc.codec.compression import file_of_codes
from transformers_walloc.codec.decoders import LinearDecoder
from transformers_walloc.evaluation.rivals import IMAGE_FORMATS, ImageFormat


class Ways:
    """Pictures as each condition shows them.

    A condition is "original" or WAY-DR, where DR says how many times fewer numbers it has than the picture:

        resize       the picture made smaller by sqrt(DR) per side (Lanczos), 8 bits, and enlarged to its size (bicubic)
        jpeg, webp   the picture as a file of the format, of as many bytes as the `.walloc` file of walloc-DR
        any other    latents of a codec, rounded, and decoded; "linear" in the name stands for its linear decoder

    Args:
        codecs: for each way on latents the codec, a name or a folder, and the channels that are kept, by DR.
    """

    def __init__(self, codecs: Mapping[str, Mapping[int, tuple[str, int]]]):
        self.codecs, self.processor = codecs, WallocImageProcessor()
        self.models: dict[str, WallocImageModel] = {}

    @functools.cache  # noqa: B019 (one object a program)
    def key(self, condition: str) -> str:
        """What the result of a condition depends on beside the picture: which weights.

        Raises:
            OSError: a codec that cannot be had.
        """
        way, _, dr = condition.partition("-")
        if way in ("original", "resize"):
            return way
        if way in IMAGE_FORMATS:
            return f"{way}:{self.model('walloc', int(dr)).fingerprint()}"
        model = self.model(way, int(dr))
        decoder = sum(float(p.detach().double().abs().sum()) for p in model.decoder.parameters())
        return f"{model.fingerprint()}:{decoder:.6e}"

    def model(self, way: str, dr: int) -> WallocImageModel:
        name, linear = self.codecs[way][dr][0], "linear" in way
        key = f"{name}@linear" if linear else name
        if key not in self.models:
            model = WallocImageModel.from_pretrained(name if "/" in name else f"walloc/{name}").eval()
            if linear:
                synthesis, model.decoder = model.decoder.linear, LinearDecoder(model.config)
                model.decoder.linear = synthesis
            self.models[key] = model
        return self.models[key]

    def view(self, picture: Image.Image, condition: str) -> Image.Image:
        return self.coded(picture, condition)[0]

    @torch.inference_mode()
    def coded(self, picture: Image.Image, condition: str) -> tuple[Image.Image, int | None]:
        """An RGB picture as a condition shows it, and the bytes of its file; None where there is no file."""
        way, _, dr = condition.partition("-")
        if way == "original":
            return picture, None
        if way == "resize":
            small = [max(1, round(size / int(dr) ** 0.5)) for size in picture.size]
            return picture.resize(small, Image.Resampling.LANCZOS).resize(picture.size, Image.Resampling.BICUBIC), None
        if way in IMAGE_FORMATS:
            size = len(self._file("walloc", int(dr), *self._codes(picture, "walloc", int(dr))))
            _, blob = ImageFormat(way).at_size(np.asarray(picture), size)
            return Image.open(io.BytesIO(blob)).convert("RGB"), len(blob)
        codes, sizes = self._codes(picture, way, int(dr))
        pixels = self.model(way, int(dr)).decode(codes).pixel_values
        (decoded,) = self.processor.post_process(pixels, original_sizes=sizes)
        assert isinstance(decoded, Image.Image)  # not an array, as codecs of other than 1 or 3 channels give
        return decoded, len(self._file(way, int(dr), codes, sizes))

    def _codes(self, picture: Image.Image, way: str, dr: int) -> tuple[torch.Tensor, torch.Tensor]:
        model = self.model(way, dr)
        processor = WallocImageProcessor(patch_size=model.config.patch_size)
        inputs = processor(picture, return_tensors="pt")
        codes = model.quantize(model.encode(inputs["pixel_values"]).latents)
        codes[:, self.codecs[way][dr][1] :] = 0
        return codes, inputs["original_sizes"]

    def _file(self, way: str, dr: int, codes: torch.Tensor, sizes: torch.Tensor) -> bytes:
        size = tuple(map(int, sizes[0]))
        return file_of_codes(self.model(way, dr), codes[0].numpy(), self.codecs[way][dr][1], sizes=size)
