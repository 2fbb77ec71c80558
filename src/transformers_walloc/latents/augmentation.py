"""Random augmentation of stored latents, as if the pictures had been augmented before they were encoded.

Latents are linear in the picture once companding is undone, so what is linear in the picture is a small matrix here:

    geometry     flips, rotations, crops on the grid     exact (symmetric block codecs; crops: all block codecs)
    brightness   x -> b x                                exact, but for pixels that would be clipped
    contrast     x -> c x + (1 - c) * mean grey          exact for the mean grey of the linear decoding
    saturation   x -> s x + (1 - s) * grey(x)            least squares: what the latents leave out of the other
    hue          rotation of the colours about grey      colours is missing (`research.measure_augmentation`)
"""

import math

import torch
from torch import nn

from ..codec.bottleneck import compand, decompand
from ..codec.image_colours import LUMA
from ..codec.modeling_walloc import WallocImageModel
from ..codec.symmetries import SYMMETRIES
from .symmetries import transform_latents


class LatentAugmentation(nn.Module):
    """Draws an augmentation for every picture of a batch of latents or codes; a module, so that `.to(device)` works.

    ```python
    augment = LatentAugmentation(codec, flips=True, crop_size=14, brightness=0.2, saturation=0.2)
    latents = augment(latents)  # (batch, latent_channels, 14, 14)
    ```

    Args:
        codec: full model with a linear synthesis; only small matrices of it are kept.
        flips: whether half of the pictures are mirrored left to right.
        rotations: whether all eight positions of the square are drawn; needs square latents, or crops.
        crop_size: latents per side, or (rows, columns), of a random crop; None for no crop.
        brightness, contrast, saturation: factors are drawn from `[max(0, 1 - value), 1 + value]`, as in torchvision.
        hue: turns of the colour wheel are drawn from `[-hue, hue]`, at most 0.5.

    Raises:
        ValueError: values out of range; flips or rotations of a codec whose latents have no symmetry; crops of one
            whose blocks overlap; colours of one that has not three channels.
    """

    def __init__(
        self,
        codec: WallocImageModel,
        flips: bool = False,
        rotations: bool = False,
        crop_size: int | tuple[int, int] | None = None,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
    ):
        super().__init__()
        config = codec.config
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; valid: a finite number from 0")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue is {hue}; valid: 0 to 0.5")
        if flips or rotations:
            transform_latents(torch.zeros(config.latent_channels, 1, 1), config, "hflip")  # or it says why not
        if crop_size is not None and (config.wavelet, config.boundary) != ("haar", "periodization"):
            raise ValueError(
                "a crop of these latents is not the latents of a crop, since the transform overlaps: crop the pictures "
                "before they are encoded, or use a block codec such as walloc/rgb-f16c48"
            )
        if (saturation or hue) and config.num_channels != 3:
            raise ValueError(f"saturation and hue need a codec of three colours, this one has {config.num_channels}")
        self.config, self.flips, self.rotations = config, flips, rotations
        self.crop_size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.analysis: torch.Tensor
        self.synthesis: torch.Tensor
        self.offset: torch.Tensor
        self.white: torch.Tensor
        self.grey: torch.Tensor
        self.grey_offset: torch.Tensor
        for part, matrix in _linear_parts(codec).items():
            self.register_buffer(part, matrix, persistent=False)

    def forward(
        self, latents: torch.Tensor, step: float = 1.0, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """
        Args:
            latents: (batch, latent_channels, h, w) companded latents, or integer codes, to which `step` belongs.
            step: of the codes.
            generator: of torch, on the CPU, for draws that can be repeated.

        Returns:
            (batch, latent_channels, rows, columns): codes where codes came and colours stay, else float latents.
        """
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"latents must be (batch, {self.config.latent_channels}, h, w), got {tuple(latents.shape)}"
            )
        latents = self._geometry(latents, generator)
        if self.brightness or self.contrast or self.saturation or self.hue:
            return self._colours(latents, step, generator)
        return latents

    def adjust(
        self,
        latents: torch.Tensor,
        brightness: float = 1.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        hue: float = 0.0,
    ) -> torch.Tensor:
        """(batch, latent_channels, h, w) latents, all with the same factors and turn of the colour wheel."""
        z = decompand(latents.float(), self.config.latent_bits).transpose(1, -1)  # channels last, to apply matrices
        if brightness != 1.0:
            z = self._brighter(z, torch.tensor(brightness, device=z.device))
        if contrast != 1.0:
            z = self._more_contrast(z, torch.tensor(contrast, device=z.device))
        if saturation != 1.0 or hue:
            z = self._mixed(z, colour_matrix(saturation, hue).to(z.device))
        return compand(z.transpose(1, -1), self.config.latent_bits)

    def _geometry(self, latents: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        count, (height, width) = len(latents), latents.shape[2:]
        rows, columns = self.crop_size or (height, width)
        if rows > height or columns > width:
            raise ValueError(f"crop_size is {(rows, columns)}; the latents are {height} x {width}")
        if self.rotations and rows != columns:
            raise ValueError(f"rotations need square latents, these are {rows} x {columns}: give a square crop_size")
        names: tuple[str, ...] = ("identity",)
        if self.rotations:
            names = SYMMETRIES
        elif self.flips:
            names = ("identity", "hflip")
        if len(names) == 1 and self.crop_size is None:
            return latents
        tops, lefts, moves = (
            torch.randint(high, (count,), generator=generator).tolist()
            for high in (height - rows + 1, width - columns + 1, len(names))
        )
        pieces = [
            transform_latents(x[:, top : top + rows, left : left + columns], self.config, names[move])
            if move
            else x[:, top : top + rows, left : left + columns]
            for x, top, left, move in zip(latents, tops, lefts, moves, strict=True)
        ]
        return torch.stack(pieces)

    def _colours(self, latents: torch.Tensor, step: float, generator: torch.Generator | None) -> torch.Tensor:
        count = len(latents)

        def draw(spread: float) -> torch.Tensor:
            low, high = max(0.0, 1.0 - spread), 1.0 + spread
            return (low + (high - low) * torch.rand(count, generator=generator)).to(latents.device)[:, None, None, None]

        companded = latents.float() if latents.is_floating_point() else latents.float() * step
        z = decompand(companded, self.config.latent_bits).transpose(1, -1)  # (batch, w, h, channels)
        if self.brightness:
            z = self._brighter(z, draw(self.brightness))
        if self.contrast:
            z = self._more_contrast(z, draw(self.contrast))
        if self.saturation or self.hue:
            factors = draw(self.saturation).flatten().tolist()
            turns = (2 * self.hue * (torch.rand(count, generator=generator) - 0.5)).tolist()
            matrices = torch.stack([colour_matrix(s, turn) for s, turn in zip(factors, turns, strict=True)])
            z = self._mixed(z, matrices.to(z.device))
        return compand(z.transpose(1, -1), self.config.latent_bits)

    def _brighter(self, z: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        # x in [-0.5, 0.5]: (x + 0.5) b - 0.5 = b x + (b - 1) / 2
        return factor * (z - self.offset) + 0.5 * (factor - 1) * self.white + self.offset

    def _more_contrast(self, z: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        grey = (z @ self.grey + self.grey_offset).mean(dim=(1, 2))[:, None, None, None]  # of each picture
        return factor * (z - self.offset) + (1 - factor) * grey * self.white + self.offset

    def _mixed(self, z: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        mixing = self._mixing(matrices)
        mixed = (z - self.offset).flatten(1, 2) @ mixing.transpose(-1, -2)
        result: torch.Tensor = mixed.unflatten(1, z.shape[1:3]) + self.offset
        return result

    def _mixing(self, matrices: torch.Tensor) -> torch.Tensor:
        """W (M x I) S: decode linearly, mix the colours, encode."""
        return self.analysis @ _mix_bands(self.synthesis, matrices)


def colour_matrix(saturation: float = 1.0, hue: float = 0.0) -> torch.Tensor:
    """What saturation and a turn of the colour wheel do to a colour: (3, 3), rows sum to 1, so that grey stays grey.

    The hue turns about the axis of greys in RGB, which is linear; in HSV, as torchvision turns it, it is not.
    """
    grey = torch.tensor(LUMA).expand(3, 3)
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    axis = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    rotation = cos * torch.eye(3) + (1 - cos) * axis + sin * cross  # Rodrigues' formula
    return (saturation * torch.eye(3) + (1 - saturation) * grey) @ rotation


@torch.no_grad()
def _linear_parts(codec: WallocImageModel) -> dict[str, torch.Tensor]:
    """The projection W and its bias, the linear synthesis S, and what white and the mean grey are in latents.

    The mean of a block is its lowest band, whatever the wavelet: 1 is `patch_size` there, for a synthesis of unit
    energy.
    """
    config, linear = codec.config, getattr(codec.decoder, "linear", None)
    if linear is None:
        raise ValueError(f"augmentation needs a linear synthesis, which decoder_type {config.decoder_type!r} has not")
    analysis = codec.encoder.projection.weight.flatten(1).double()
    offset = codec.encoder.projection.get_parameter("bias").double()
    synthesis, constant = linear.weight.flatten(1).double(), linear.bias.double()
    bands = config.patch_size**2
    lowest = torch.arange(config.num_channels, device=analysis.device) * bands
    white = config.patch_size * analysis[:, lowest].sum(1)
    luma = torch.tensor(LUMA, dtype=torch.float64) if config.num_channels == 3 else torch.ones(config.num_channels)
    luma = (luma / luma.sum()).to(analysis)
    grey = luma @ synthesis[lowest] / config.patch_size
    grey_offset = luma @ constant[lowest] / config.patch_size
    parts = {"analysis": analysis, "synthesis": synthesis, "offset": offset, "white": white, "grey": grey}
    return {name: value.float() for name, value in (parts | {"grey_offset": grey_offset}).items()}


def _mix_bands(synthesis: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """(M x I) S: colours (..., 3, 3) mixed in every band alike."""
    by_colour = synthesis.unflatten(0, (3, -1))
    return torch.einsum("...pc,cbk->...pbk", matrices, by_colour).flatten(-3, -2)
