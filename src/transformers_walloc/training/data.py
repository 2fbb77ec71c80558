"""Random crops and segments from folders of media files, for training.

Needs `pip install 'transformers-walloc[train]'` (audio: its soundfile and soxr).
"""

import functools
import hashlib
import json
import math
import os
import random
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info
from tqdm.auto import tqdm

from ..atomic import atomic_file, write_atomically
from ..media.audio import read_clip
from ..media.messages import MediaError, MediaWarning
from ..media.pictures import read_pixels

STEREO = 2
_READER = 2  # counts changes of how files are read, after which caches are made again


class MediaCache:
    """Decoded media in one memory-mapped file, so that a random crop costs a copy and not a decoder run.

    Arrays are (height, width, channels) uint8 images or (length, channels) int16 audio. The file is built once, with a
    progress bar, and reused as long as names, sizes and times of the sources stay the same. Files that cannot be read
    are left out, each with a `MediaWarning`; MediaError if that leaves none.
    """

    def __init__(self, files: Sequence[Path], kind: str, cache_dir: str | Path, sampling_rate: int = 44100):
        entries = [[str(f), f.stat().st_size, int(f.stat().st_mtime)] for f in files]
        key = json.dumps([*entries, kind, sampling_rate, _READER])
        stem = Path(cache_dir) / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self.path, index = stem.with_suffix(".bin"), stem.with_suffix(".json")
        self.dtype = np.dtype({"image": np.uint8, "audio": np.int16}[kind])
        if not index.exists():
            self._build(files, kind, index, sampling_rate)
        self.shapes = [tuple(shape) for shape in json.loads(index.read_text())]
        sizes = [math.prod(shape) for shape in self.shapes]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        self._data: np.memmap | None = None

    def _build(self, files: Sequence[Path], kind: str, index: Path, sampling_rate: int):
        index.parent.mkdir(parents=True, exist_ok=True)
        shapes = []
        decode = _read_image if kind == "image" else functools.partial(_read_audio, sampling_rate=sampling_rate)

        def read(file: Path) -> np.ndarray | str:
            try:
                return decode(file)
            except (MediaError, OSError) as error:
                return str(error)

        with atomic_file(self.path) as partial, open(partial, "wb") as out:
            for array in tqdm(_in_threads(read, files), desc=f"decoding {kind} files", unit="file", total=len(files)):
                if isinstance(array, str):
                    warnings.warn(MediaWarning(f"{array}; the file is left out"), stacklevel=2)
                    continue
                out.write(np.ascontiguousarray(array, dtype=self.dtype).tobytes())
                shapes.append(array.shape)
            if not shapes:
                raise MediaError(f"none of {len(files)} {kind} files can be read")
        write_atomically(index, json.dumps(shapes))  # last: where it is, the data is

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int) -> np.ndarray:
        if self._data is None:  # opened in the worker that reads it
            self._data = np.memmap(self.path, dtype=self.dtype, mode="r")
        start = int(self.offsets[i])
        return self._data[start : start + math.prod(self.shapes[i])].reshape(self.shapes[i])


def _in_threads(read: Callable[[Path], Any], files: Sequence[Path]) -> Iterator[Any]:
    """What `read` makes of each file, in order, a few files ahead; decoders leave Python's lock to others."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(files), workers):  # so that no more than this is in memory
            yield from pool.map(read, files[start : start + workers])


def _read_image(file: Path) -> np.ndarray:
    return read_pixels(str(file), file.read_bytes(), max_pixels=None)


def _read_audio(file: Path, sampling_rate: int) -> np.ndarray:
    # All in stereo, so that mono files batch with stereo ones.
    audio = read_clip(str(file), file.read_bytes(), sampling_rate, STEREO, max_samples=None)
    return (audio.T.clip(-1, 1) * 32767).round().astype(np.int16)


class RandomPieces(IterableDataset):
    """An endless stream of random pieces, different and reproducible in every worker and process.

    Args:
        caches: where pieces are taken from.
        shares: positive, of the draws that go to each cache, in any unit.
        seed: streams with the same one are equal, process by process (by the environment's `RANK`).

    Raises:
        ValueError: a share that is not positive, or a source without a file that is large enough.
    """

    def __init__(self, caches: Sequence[MediaCache], shares: Sequence[float], seed: str):
        if len(caches) != len(shares) or min(shares, default=0) <= 0:
            raise ValueError(f"every source needs a positive share, got {list(shares)} for {len(caches)} sources")
        self.caches, self.shares, self.seed = list(caches), list(shares), seed
        self.rank = int(os.environ.get("RANK", 0))
        for cache in self.caches:
            if not any(self.fits(shape) for shape in cache.shapes):
                largest = max(cache.shapes, key=lambda shape: min(shape[:-1]))
                raise ValueError(f"no file of a source is large enough for a piece; the largest is {largest}")

    def weights(self, cache: MediaCache) -> list[float]:
        """The square root of a file's size: large files count more, but do not drown the small ones' variety."""
        return [math.sqrt(math.prod(shape[:-1])) if self.fits(shape) else 0.0 for shape in cache.shapes]

    def fits(self, shape: tuple[int, ...]) -> bool:
        raise TypeError("use ImageCrops or AudioSegments")

    def draw(self, array: np.ndarray, generator: random.Random) -> dict:
        raise TypeError("use ImageCrops or AudioSegments")

    def __iter__(self):
        worker = get_worker_info()
        generator = random.Random(f"{self.seed}-{self.rank}-{worker.id if worker else 0}")
        weights = [self.weights(cache) for cache in self.caches]
        while True:
            (source,) = generator.choices(range(len(self.caches)), self.shares)
            (i,) = generator.choices(range(len(weights[source])), weights[source])
            yield self.draw(self.caches[source][i], generator)


class ImageCrops(RandomPieces):
    """Square crops `pixel_values` (3, crop_size, crop_size) in [-0.5, 0.5].

    Crops are taken from images downscaled by a random factor of 0.5 to 1, which removes the traces of an earlier
    compression and adds high frequencies, then flipped and transposed at random.
    """

    usual_size, usual_batch = 192, 14

    def __init__(self, caches, shares, crop_size: int, seed: str = "0"):
        self.crop_size = crop_size
        super().__init__(caches, shares, seed)

    def fits(self, shape):
        return min(shape[:2]) >= self.crop_size

    def draw(self, array, generator):
        largest = min(2.0, min(array.shape[:2]) / self.crop_size)
        factor = generator.uniform(1.0, largest)
        if factor < 1.1:  # so close to 1 resampling would only blur
            factor = 1.0
        size = min(round(self.crop_size * factor), *array.shape[:2])
        top, left = (generator.randint(0, full - size) for full in array.shape[:2])
        crop = array[top : top + size, left : left + size]
        if factor > 1.0:
            image = Image.fromarray(np.ascontiguousarray(crop))
            resample = generator.choice([Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BOX])
            crop = np.asarray(image.resize((self.crop_size, self.crop_size), resample))
        if generator.random() < 0.5:
            crop = crop[::-1]
        if generator.random() < 0.5:
            crop = crop[:, ::-1]
        if generator.random() < 0.5:
            crop = crop.transpose(1, 0, 2)
        pixels = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
        return {"pixel_values": pixels.float().div_(255.0).sub_(0.5)}


class DeviceCrops(IterableDataset):
    """Batches of crops like those of `ImageCrops`, cut on a GPU, which would wait for the CPU's.

    The pictures lie on the device at four sizes, from all to half of theirs per axis, in place of one for each crop:
    7 GB for a gigapixel.

    Args:
        crops: whose pictures, shares, size and seed these are.
        batch_size: crops of a batch.
        device: where pictures and batches are.
    """

    factors = (1.0, 1.26, 1.59, 2.0)

    def __init__(self, crops: ImageCrops, batch_size: int, device: torch.device | str):
        self.crop_size, self.batch_size = crops.crop_size, batch_size
        self.seed = f"{crops.seed}-{crops.rank}"
        self.device = torch.device(device)
        pictures: list[torch.Tensor] = []
        rows: list[list[float]] = []  # height, width, weight
        for cache, share in zip(crops.caches, crops.shares, strict=True):
            start = len(rows)
            for i in tqdm(range(len(cache)), desc=f"pictures to {self.device}", unit="file", leave=False):
                picture = torch.from_numpy(np.array(cache[i])).to(self.device)
                for factor in self.factors:
                    sizes = [round(size / factor) for size in picture.shape[:2]]
                    if min(sizes) >= self.crop_size:
                        pictures.append(_resized(picture, sizes).flatten())
                        rows.append([*sizes, math.sqrt(math.prod(sizes))])
            total = sum(row[2] for row in rows[start:])
            for row in rows[start:]:
                row[2] *= share / total
        heights, widths, weights = torch.tensor(rows, dtype=torch.float64, device=self.device).T
        self.heights, self.widths, self.weights = heights.long(), widths.long(), weights.float()
        lengths = torch.tensor([len(picture) for picture in pictures], device=self.device)
        self.offsets = lengths.cumsum(0) - lengths
        self.pixels = torch.cat(pictures)

    def __iter__(self):
        # crc32, and not hash(), which differs from run to run.
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(self.seed.encode()))
        while True:
            yield {"pixel_values": self._draw(generator)}

    def _draw(self, generator: torch.Generator) -> torch.Tensor:
        """(batch_size, 3, crop_size, crop_size) in [-0.5, 0.5]."""
        count, size = self.batch_size, self.crop_size
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        height, width = self.heights[chosen], self.widths[chosen]
        top, left, *flips = torch.rand(5, count, device=self.device, generator=generator)
        top, left = (top * (height - size + 1)).long(), (left * (width - size + 1)).long()
        positions = torch.arange(size, device=self.device)

        def along(flip: torch.Tensor) -> torch.Tensor:
            return torch.where(flip[:, None] < 0.5, positions, size - 1 - positions)

        down, right = along(flips[0])[:, :, None], along(flips[1])[:, None, :]
        transposed = (flips[2] < 0.5)[:, None, None]
        row = torch.where(transposed, right, down) + top[:, None, None]
        column = torch.where(transposed, down, right) + left[:, None, None]
        first = self.offsets[chosen][:, None, None] + 3 * (row * width[:, None, None] + column)
        crops = self.pixels[first[:, None] + torch.arange(3, device=self.device)[:, None, None]]
        return crops.float().div_(255.0).sub_(0.5)


def _resized(picture: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """A picture (height, width, 3) in uint8 made smaller, as antialiased bicubic resampling does."""
    if list(picture.shape[:2]) == sizes:
        return picture
    planes = picture.permute(2, 0, 1)[None].float()
    small = F.interpolate(planes, size=sizes, mode="bicubic", antialias=True)
    return small[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)


class AudioSegments(RandomPieces):
    """Segments `input_values` (channels, length), normalised as the feature extractor does (zero mean, peak 0.5).

    Channels are swapped, the sign is flipped and a peak below full scale is drawn at random; near-silence is skipped.
    """

    usual_size, usual_batch = 65536, 16

    def __init__(self, caches, shares, length: int, seed: str = "0"):
        self.length = length
        super().__init__(caches, shares, seed)

    def fits(self, shape):
        return shape[0] >= self.length

    def draw(self, array, generator):
        for _ in range(8):
            start = generator.randint(0, len(array) - self.length)
            segment = array[start : start + self.length].astype(np.float32)
            segment -= segment.mean()
            peak = np.abs(segment).max()
            if peak > 300:  # -40 dB of full scale
                break
        # A clip is normalised by its own peak, which lies above the peak of most of its segments.
        segment *= 0.5 * math.exp(generator.uniform(math.log(0.25), 0.0)) / max(peak, 1.0)
        if generator.random() < 0.5:
            segment = segment[:, ::-1]
        if generator.random() < 0.5:
            segment = -segment
        return {"input_values": torch.from_numpy(np.ascontiguousarray(segment.T))}


PIECES: dict[str, type[ImageCrops] | type[AudioSegments]] = {"image": ImageCrops, "audio": AudioSegments}
