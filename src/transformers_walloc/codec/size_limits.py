"""How large signals may be unless the caller says otherwise: in pixels, or in samples of one channel."""

import math
from collections.abc import Sequence

# To encode. It takes up to 40 bytes of memory for a pixel, or for a sample of every channel, so about 2.5 GB for 67
# megapixels, or for 25 minutes at 44.1 kHz.
MAX_ENCODED_PIXELS = MAX_ENCODED_SAMPLES = 2**26

# To decode, counted after padding to whole patches: Pillow's limit against bombs, and three hours at 48 kHz.
MAX_DECODED_PIXELS = 178_956_970
MAX_DECODED_SAMPLES = 2**29


def check_pixels(sizes: Sequence[int], max_pixels: int | None, bands: int = 1) -> None:
    """ValueError for a picture or a volume, ([depth,] height, width), that is too large.

    More than three bands count as so many more pixels.
    """
    count = math.prod(sizes)
    pixels = count * max(3, bands) // 3
    if max_pixels is not None and pixels > max_pixels:
        shown = " x ".join(map(str, (*sizes[:-2], sizes[-1], sizes[-2])))  # width first, as of pictures
        of = f" of {bands} bands, which count as {pixels}" if count <= max_pixels else ""
        raise ValueError(
            f"{shown} pixels{of}, more than the limit of {max_pixels}; raise max_pixels if there are "
            f"{40 * pixels / 1e9:.1f} GB of memory"
        )
