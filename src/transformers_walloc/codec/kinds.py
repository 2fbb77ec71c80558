"""What the kinds of signals are that codecs are for, said once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """
    Args:
        name: as `config.kind` and the headers of files give it.
        code: its number in .walloc files.
        axes: of a signal behind batch and channels.
        input_name, output_name: of the models' tensors.
        rate: option of `compress` for the size of a file, in `rate_unit`.
        positions: what a signal has many of.
    """

    name: str
    code: int
    axes: tuple[str, ...]
    input_name: str
    output_name: str
    rate: str
    rate_unit: str
    positions: str

    @property
    def num_dims(self) -> int:
        """Axes of a signal, without its channels."""
        return len(self.axes)


_PIXELS = ("pixel_values", "pixel_values", "bpp")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("image", 1, ("height", "width"), *_PIXELS, "bits per pixel", "pixels"),
        Kind("audio", 2, ("length",), "input_values", "audio_values", "kbps", "kilobits per second", "samples"),
        Kind("volume", 3, ("depth", "height", "width"), *_PIXELS, "bits per voxel", "voxels"),
    )
}


def kind_of_dims(num_dims: int) -> Kind:
    """The kind of signals with so many axes."""
    return next(kind for kind in KINDS.values() if kind.num_dims == num_dims)
