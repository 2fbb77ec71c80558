"""What codecs are measured on: images, or clips of one sampling rate, from a folder or a repository of `datasets`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..media.audio import read_clip
from ..media.paths import SUFFIXES, find_files
from ..media.pictures import read_pixels

SAMPLING_RATE = 44100


@dataclass
class Signal:
    name: str
    array: np.ndarray  # uint8 (height, width, 3) or float32 (channels, length)
    fingerprint: str


class Signals:
    """Signals, read when they are needed.

    Args:
        data: a file, a folder, or the id of a `datasets` repository.
        kind: "image" or "audio".
        split: of a repository.
        files: how many of them, evenly spread; default: all.
        seconds: of every clip, from its middle.
        name: what results call the data; default: the folder's name or the id.

    Raises:
        ValueError: nothing of this kind is there.
    """

    def __init__(
        self,
        data: str | Path,
        kind: str = "image",
        split: str = "test",
        files: int | None = None,
        seconds: float = 30.0,
        name: str | None = None,
    ):
        self.kind, self.seconds, self.sampling_rate = kind, seconds, SAMPLING_RATE
        self.dataset: Any = None
        path = Path(data)
        if path.exists():
            found = find_files([str(path)], SUFFIXES[kind])
            self.entries: list = [Path(entry) for entry, _ in found]
            self.names = [Path(shown).as_posix() for _, shown in found]
        else:
            self._open_repository(str(data), split)
        if files and files < len(self.entries):
            chosen = [round(i) for i in np.linspace(0, len(self.entries) - 1, files)]
            self.entries, self.names = ([values[i] for i in chosen] for values in (self.entries, self.names))
        self.description: dict[str, Any] = {
            "name": name or (path.name if path.exists() else str(data)),
            "files": self.names,
        }
        if kind == "audio":
            self.description["seconds"] = seconds

    def _open_repository(self, name: str, split: str) -> None:
        import datasets

        try:
            self.dataset = datasets.load_dataset(name, split=split)
        except (FileNotFoundError, ConnectionError, ValueError) as error:
            raise ValueError(
                f"{name} is neither a folder nor a datasets repository that can be read: {error}"
            ) from error
        wanted = datasets.Image if self.kind == "image" else datasets.Audio
        columns = [column for column, feature in self.dataset.features.items() if isinstance(feature, wanted)]
        if not columns:
            raise ValueError(f"{name} has no column of {self.kind}; its columns: {', '.join(self.dataset.features)}")
        self.column = columns[0]
        self.dataset = self.dataset.cast_column(self.column, wanted(decode=False))
        self.entries = list(range(len(self.dataset)))
        self.names = [f"{self.column}[{i}]" for i in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Signal]:
        for name, entry in zip(self.names, self.entries, strict=True):
            if self.dataset is None:
                data = Path(entry).read_bytes()
            else:
                cell = self.dataset[entry][self.column]
                data = cell["bytes"] or Path(cell["path"]).read_bytes()
            array = read_pixels(name, data) if self.kind == "image" else self._clip(name, data)
            yield Signal(name, array, hashlib.sha256(array.tobytes()).hexdigest()[:16])

    def _clip(self, name: str, data: bytes) -> np.ndarray:
        x = read_clip(name, data, self.sampling_rate, 2, self.seconds)
        # 16-bit PCM is what the compression ratio refers to.
        return np.ascontiguousarray((np.round(x * 32768).clip(-32768, 32767) / 32768).astype(np.float32))
