#!/usr/bin/env python
"""Codecs fitted in closed form to several kinds of signals, beside lossless formats: for docs/guides/own_signal.md.

    python -m research.any_signal [--music DIR]
    python -m research.any_signal --speed PHOTOS        # time of a fit to 500 pictures of a megapixel

Each codec is fitted to one half of a signal and measured on the other: finished files, dtype and shape as they were.
"""

import argparse
import io
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import skimage.data
import soundfile

from transformers_walloc.media.paths import list_files
from transformers_walloc.media.rasters import compress_raster, decompress_raster, describe, encode_raster
from transformers_walloc.media.volumes import encode_volume
from transformers_walloc.training.fit import fit_codec

QUICK: dict[str, Any] = {"table_steps": 0, "progress": False}  # the generic entropy tables


def rasters() -> dict[str, np.ndarray]:
    """Real pictures of scikit-image as (bands, height, width)."""
    left, right, disparity = skimage.data.stereo_motorcycle()
    scene = np.concatenate([left, right], axis=2).transpose(2, 0, 1)
    linear = ((scene / 255.0) ** 2.2 * 4095).astype(np.uint16)
    depth = np.where(np.isfinite(disparity) & (disparity > 0), disparity, np.nan).astype(np.float32)
    return {
        "gray photograph, 8 bits": skimage.data.camera()[None],
        "scanned page, 8 bits": np.concatenate([skimage.data.page()[:, :376], skimage.data.text()[:, :376]])[None],
        "stereo camera, 6 bands of 12 bits": linear,
        "disparity, float32 with missing samples": depth[None],
    }


def raster_row(name: str, planes: np.ndarray) -> list[str]:
    """Fitted to the upper half, measured on the lower one."""
    half = planes.shape[1] // 2
    fit = fit_codec(
        [planes[:, :half]],
        dimensionality_reduction=8,
        sample_range=(float(np.nanmin(planes)), float(np.nanmax(planes))) if planes.dtype.kind == "f" else None,
        **QUICK,
    )
    test = np.ascontiguousarray(planes[:, half:])
    raster = describe(test, "channels_first")
    blob = compress_raster(fit.model, test, raster)
    restored, raster = decompress_raster(fit.model, blob)
    if restored.dtype != test.dtype or restored.shape != test.shape:
        raise RuntimeError(f"{name} came back as {restored.dtype} {restored.shape}")
    lossless = {"TIFF, deflate": len(encode_raster(test, raster, "x.tif"))}
    if len(test) == 1 and test.dtype == np.uint8:
        import pillow_jxl  # noqa: F401 - registers the format

        file = io.BytesIO()
        PIL.Image.fromarray(test[0]).save(file, "JXL", lossless=True)
        lossless = {"JPEG XL": len(file.getvalue())}
    return row(name, fit, test, restored, raster.high - raster.low, len(blob), test.nbytes, lossless)


def volume_rows() -> list[list[str]]:
    """Two scans of a head from the tests of nibabel: fitted to the first, measured on the second, in 3-D and 2-D."""
    import nibabel

    path = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"
    file: Any = nibabel.load(path)
    scans = np.asarray(file.dataobj).transpose(3, 2, 1, 0)
    first, second = (np.ascontiguousarray(scan) for scan in scans)
    raster = describe(second, "single")
    peer = {"TIFF, deflate": len(encode_volume(second, raster, "x.tif"))}
    rows = []
    for name, levels in (("MRI, 24 slices of 12 bits", 2), ("the same in blocks of 8 x 8 x 8", 3)):
        fit = fit_codec([first], kind="volume", num_levels=levels, dimensionality_reduction=16, **QUICK)
        blob = compress_raster(fit.model, second)
        restored, raster = decompress_raster(fit.model, blob)
        if restored.dtype != second.dtype or restored.shape != second.shape:
            raise RuntimeError(f"{name} came back as {restored.dtype} {restored.shape}")
        rows.append(row(name, fit, second, restored, raster.high - raster.low, len(blob), second.nbytes, peer))
    fit = fit_codec(list(first), dimensionality_reduction=16, validation=[first[12]], **QUICK)
    blobs = [compress_raster(fit.model, image) for image in second]
    restored = np.stack([decompress_raster(fit.model, blob)[0] for blob in blobs])
    size, span = sum(map(len, blobs)), raster.high - raster.low
    return [*rows, row("the same, slice by slice in 2-D", fit, second, restored, span, size, second.nbytes, peer)]


def music_row(folder: str) -> list[str]:
    """The music of a folder in mono, the last file measured on."""
    files = list_files(folder, [".ogg", ".flac", ".wav"])
    clip, rate = soundfile.read(files[-1], dtype="float32", always_2d=True, frames=60 * 44100)
    clip = clip.mean(axis=1)[None]
    options: dict[str, Any] = {"num_channels": 1, "sampling_rate": rate, "dimensionality_reduction": 20}
    fit = fit_codec([str(file) for file in files[:-1][:12]], **options, **QUICK)
    inputs = fit.processor(clip, sampling_rate=rate, return_tensors="pt")
    blob = fit.model.compress(**inputs)[0]
    restored = fit.model.decompress([blob])[0].numpy()
    file = io.BytesIO()
    soundfile.write(file, clip.T, rate, format="FLAC")
    peak = 2 * float(np.abs(clip).max())
    return row("mono music", fit, clip, restored, peak, len(blob), 2 * clip.size, {"FLAC": len(file.getvalue())})


def row(name, fit, test, restored, span: float, size: int, raw: int, lossless: dict[str, int]) -> list[str]:
    error = np.nanmean(((test.astype(np.float64) - restored) / span) ** 2)
    peer, peer_size = next(iter(lossless.items()))
    return [
        name,
        f"{fit.model.config.dimensionality_reduction:.3g}",
        f"{-10 * math.log10(error):.2f}",
        f"{raw / size:.1f}",
        f"{raw / peer_size:.1f} ({peer})",
    ]


def measure_speed(folder: str, count: int) -> None:
    """Time of a whole fit to pictures of a megapixel, cut from photographs: of the clock, and of all threads."""
    paths = []
    for path in list_files(folder, [".jpg", ".jpeg", ".png"]):
        with PIL.Image.open(path) as image:
            if image.width * image.height >= 1e6:
                paths.append(path)
    if not paths:
        raise ValueError(f"{folder} has no picture of a megapixel")
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(count):
            with PIL.Image.open(paths[i % len(paths)]) as image:
                picture = PIL.ImageOps.fit(image.convert("RGB"), (1000, 1000))
            if i // len(paths) % 2:
                picture = PIL.ImageOps.mirror(picture)
            picture.save(Path(scratch) / f"{i:05}.jpg", quality=92)
        clock, processor = time.monotonic(), time.process_time()
        fit_codec(scratch, num_channels=3, progress=False)
        processor, clock = time.process_time() - processor, time.monotonic() - clock
        print(f"{count} pictures of a megapixel: {processor:.0f} s of one core, {clock:.0f} s of the clock")


def main(argv=None) -> list[list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--music", metavar="DIR", help="folder of music files")
    parser.add_argument("--speed", metavar="DIR", help="folder of photographs: measure the time of a fit instead")
    parser.add_argument("--pictures", type=int, default=500, help="of a megapixel, for --speed (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.speed:
        measure_speed(arguments.speed, arguments.pictures)
        return []
    rows = [raster_row(name, planes) for name, planes in rasters().items()] + volume_rows()
    if arguments.music:
        rows.append(music_row(arguments.music))
    header = ["signal", "DR", "PSNR, dB", "CR", "lossless CR"]
    for line in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(line)} |")
    return rows


if __name__ == "__main__":
    main()
