#!/usr/bin/env python
"""Publish a checkpoint folder on the Hub, with the code that loads it where this package is not installed.

    python -m transformers_walloc.training.publish model_cards/rgb-16x walloc/rgb-16x [--private] [--dry_run DIR]

Weights, card and measured results are uploaded as they are. Configuration and processor get an `auto_map`, and the
package's modules are put beside them, so that `AutoModel.from_pretrained(..., trust_remote_code=True)` works with
transformers alone; with the package imported, its own classes are used. Log in with `hf auth login` or `HF_TOKEN`.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel

import transformers_walloc


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkpoint folder, such as model_cards/rgb-16x")
    parser.add_argument("repository", help="Hub id, such as walloc/rgb-16x; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--dry_run", type=Path, metavar="DIR", help="write the files into DIR and upload nothing")
    args = parser.parse_args(argv)
    if not (args.folder / "config.json").is_file():
        parser.error(f"{args.folder} is no checkpoint folder: it has no config.json")

    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / "repository"
        stage(args.folder, staged)
        if args.dry_run:
            shutil.copytree(staged, args.dry_run, dirs_exist_ok=True)
            print(f"wrote {args.dry_run}")
            return
        api = HfApi()
        api.create_repo(args.repository, private=args.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=args.repository,
            folder_path=staged,
            commit_message=f"{args.folder.name}, transformers-walloc {transformers_walloc.__version__}",
        )
        print(f"published {args.repository}: {commit.oid}")


def stage(folder: Path, staged: Path) -> None:
    """Copy a checkpoint folder and add the code and the `auto_map` entries that load it."""
    shutil.copytree(folder, staged)
    model = AutoModel.from_pretrained(folder)
    image = model.config.num_dims == 2
    auto_class = "AutoImageProcessor" if image else "AutoFeatureExtractor"
    processor = (AutoImageProcessor if image else AutoFeatureExtractor).from_pretrained(folder)
    type(model.config).register_for_auto_class()
    type(model).register_for_auto_class("AutoModel")
    type(processor).register_for_auto_class(auto_class)
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        for file in Path(temporary).glob("*.py"):
            shutil.copy(file, staged)
        for name in ("config.json", "preprocessor_config.json"):
            saved = json.loads((Path(temporary) / name).read_text())
            merged = json.loads((staged / name).read_text()) | {"auto_map": saved["auto_map"]}
            (staged / name).write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
