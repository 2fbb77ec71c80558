"""Publish a checkpoint folder on the Hub, with the code that loads it where this package is not installed.

    walloc publish model_cards/rgb-16x walloc/rgb-16x [--private] [--dry_run DIR]

Weights, card and measured results are uploaded as they are. Configuration and processor get an `auto_map`, and the
package's modules are put beside them, so that `AutoModel.from_pretrained(..., trust_remote_code=True)` works with
transformers alone; with the package imported, its own classes are used. Log in with `hf auth login` or `HF_TOKEN`.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel

import transformers_walloc


def publish(folder: str | Path, repository: str, private: bool = False, dry_run: str | Path | None = None) -> str:
    """Upload a checkpoint folder to the Hub, with the code that loads it.

    Args:
        folder: as `save_pretrained` of model and processor writes it, such as model_cards/rgb-16x.
        repository: Hub id, such as walloc/rgb-16x; created if it does not exist.
        private: whether a repository that is created is private.
        dry_run: folder to write the files into; nothing is uploaded then.

    Returns:
        The commit's hash, or the folder of a dry run.

    Raises:
        ValueError: no checkpoint folder.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no checkpoint folder: it has no config.json")
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / "repository"
        stage(folder, staged)
        if dry_run:
            shutil.copytree(staged, dry_run, dirs_exist_ok=True)
            return str(dry_run)
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=staged,
            commit_message=f"{folder.name}, transformers-walloc {transformers_walloc.__version__}",
        )
        return commit.oid


def stage(folder: Path, staged: Path) -> None:
    """Copy a checkpoint folder and add the code and the `auto_map` entries that load it."""
    shutil.copytree(folder, staged)
    model = AutoModel.from_pretrained(folder)
    image = model.config.num_dims != 1
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command `walloc publish`."""
    parser = argparse.ArgumentParser(
        prog="walloc publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a checkpoint folder, such as model_cards/rgb-16x")
    parser.add_argument("repository", help="Hub id, such as walloc/rgb-16x; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--dry_run", type=Path, metavar="DIR", help="write the files into DIR and upload nothing")
    arguments = parser.parse_args(argv)
    try:
        result = publish(**vars(arguments))
    except ValueError as error:
        parser.error(str(error))
    print(f"wrote {result}" if arguments.dry_run else f"published {arguments.repository}: {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
