"""`walloc dataset`."""

import argparse
from typing import Any

from .console import complain
from .options import count

EXAMPLES = """\
  walloc dataset photos/ latents/ --size 896 896 --num-proc 8
  walloc dataset beans bean-latents/ --storage int8 --push-to-hub user/beans-latents
  walloc dataset lmms-lab/DocVQA docvqa-latents/ --config DocVQA --splits validation
  walloc dataset s3://bucket/photos s3://bucket/photo-latents --engine ray --num-proc 512

The same command continues an interrupted run. Reading it back, in Python:

  dataset = load_dataset("latents", split="train").with_transform(latent_transform("walloc/rgb-16x"))"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder of images, folder of save_to_disk, or Hub id of a data set")
    parser.add_argument("folder", help="folder to write; load_dataset reads it")
    parser.add_argument("--codec", default="walloc/rgb-16x", help="Hub id or folder (%(default)s)")
    parser.add_argument(
        "--storage", choices=("webp", "walloc", "int8"), default="webp", help="of the codes (%(default)s)"
    )
    parser.add_argument("--size", nargs=2, type=count, metavar=("HEIGHT", "WIDTH"), help="resize to; by default not")
    parser.add_argument("--halo", type=int, default=0, help="latents on each side beyond the image (%(default)s)")
    parser.add_argument(
        "--step", type=float, default=1.0, help="quantisation step, from 1 (finest, default) to coarser"
    )
    parser.add_argument("--config", metavar="NAME", help="which configuration of a data set that has several")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="by default all")
    parser.add_argument("--image-column", default="image", help="(%(default)s)")
    parser.add_argument("--shard-rows", type=count, default=1000, metavar="N", help="rows of a file (%(default)s)")
    parser.add_argument("--num-proc", type=count, default=1, metavar="N", help="processes (%(default)s)")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: on a cluster, a folder or URL of image files"
    )
    parser.add_argument("--device", help="of the encoder, as cuda; by default the CPU")
    parser.add_argument("--push-to-hub", metavar="REPOSITORY", help="upload the result")
    parser.add_argument("--private", action="store_true", help="of a repository that is made")


def run(source: str, folder: str, engine: str = "local", **options: Any) -> int:
    """Write a data set of latents and print what was written; the options are those of `compress_dataset`."""
    if engine == "ray":
        return _run_on_ray(source, folder, **options)
    from ..latents.writing import compress_dataset

    errors = 0
    for split, written in compress_dataset(source, folder, **options).items():
        print(f"{split}: {written.num_rows} rows ({written.new_rows} new), {written.num_bytes / 1e6:.2f} MB of Parquet")
        errors += written.num_errors
    if errors:
        complain(f"{errors} pictures could not be read: {folder}/errors says which and why")
    return 1 if errors else 0


def _run_on_ray(source: str, folder: str, num_proc: int = 1, **options: Any) -> int:
    from ..latents.distributed import compress_with_ray, read_images

    for name in ("config", "splits", "push_to_hub", "private", "device"):
        if options.pop(name, None):
            raise ValueError(f"--{name.replace('_', '-')} is not for --engine ray")
    options.pop("image_column", None)  # of the files that are read here there is one
    compress_with_ray(read_images(source), folder, num_workers=num_proc, **options)
    print(f"{folder}/data holds the latents; {folder}/errors, if it is there, pictures that could not be read")
    return 0
