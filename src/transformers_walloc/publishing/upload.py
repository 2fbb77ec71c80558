"""A checkpoint folder, or the page for browsers, on the Hub: `publish`, the command `walloc publish`."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel

import transformers_walloc

# What Trainer leaves beside a model, which is nobody's business, and pickles, which nobody should load.
_LEFT_OUT = ("checkpoint-*", "runs", "trainer_state.json", "average.safetensors", "*.bin", "*.pt", "*.pth", ".*.part")


def publish(
    folder: str | Path,
    repository: str,
    private: bool = False,
    dry_run: str | Path | None = None,
    eval_dataset: str | None = None,
) -> str:
    """Upload a checkpoint folder to the Hub, with the code that loads it, or a page.

    Args:
        folder: as `save_pretrained` of model and processor writes it, such as model_cards/rgb-16x; or a folder with an
            index.html, for a static Space.
        repository: Hub id, such as walloc/rgb-16x; created if it does not exist.
        private: whether a repository that is created is private.
        dry_run: folder to write the files into; nothing is uploaded then.
        eval_dataset: Hub id of the data set that the card's values were measured on. The values then become entries of
            `.eval_results`, which newer clients read; the card's header has them for older ones.

    Returns:
        The commit's hash, or the folder of a dry run.

    Raises:
        ValueError: neither a checkpoint folder nor a page, or a card without measured values for `eval_dataset`.
    """
    folder = Path(folder)
    page = (folder / "index.html").is_file()
    if not page and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no checkpoint folder: it has no config.json (nor the index.html of a page)")
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary) / "repository"
        if page:
            shutil.copytree(folder, staged)
        else:
            stage(folder, staged)
        if eval_dataset:
            write_eval_results(staged, eval_dataset)
        if dry_run:
            shutil.copytree(staged, dry_run, dirs_exist_ok=True)
            return str(dry_run)
        api = HfApi()
        kind = "space" if page else "model"
        api.create_repo(
            repository, private=private, exist_ok=True, repo_type=kind, space_sdk="static" if page else None
        )
        commit = api.upload_folder(
            repo_id=repository,
            repo_type=kind,
            folder_path=staged,
            commit_message=f"{folder.name}, transformers-walloc {transformers_walloc.__version__}",
        )
        return commit.oid


def stage(folder: Path, staged: Path) -> None:
    """Copy a checkpoint folder without what a training leaves, add the code and the `auto_map` entries that load it.

    Raises:
        ValueError: files that a repository needs are missing; names them, and how they are written.
    """
    wanted = {"model.safetensors": "model", "preprocessor_config.json": "processor"}
    if missing := [name for name in wanted if not any(folder.glob(name.replace("model.", "model*.")))]:
        calls = " and ".join(f"{wanted[name]}.save_pretrained({str(folder)!r})" for name in missing)
        raise ValueError(f"{folder} has no {' and no '.join(missing)}: {calls} writes what is missing")
    shutil.copytree(folder, staged, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    model = AutoModel.from_pretrained(folder)
    image = model.config.num_dims != 1
    auto_class = "AutoImageProcessor" if image else "AutoFeatureExtractor"
    processor = (AutoImageProcessor if image else AutoFeatureExtractor).from_pretrained(folder)
    remote = {type(model.config): "AutoConfig", type(model): "AutoModel", type(processor): auto_class}
    with code_beside_weights(remote), tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        for file in Path(temporary).glob("*.py"):
            shutil.copy(file, staged)
        for name in ("config.json", "preprocessor_config.json"):
            saved = json.loads((Path(temporary) / name).read_text())
            merged = json.loads((staged / name).read_text()) | {"auto_map": saved["auto_map"]}
            (staged / name).write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def code_beside_weights(classes: dict[Any, str]) -> Iterator[None]:
    """Have `save_pretrained` write the code of classes, by the names of their Auto classes, inside the block alone."""
    before = {cls: cls._auto_class for cls in classes}
    try:
        for cls, name in classes.items():
            cls.register_for_auto_class(name)
        yield
    finally:
        for cls, name in before.items():
            cls._auto_class = name


def write_eval_results(folder: Path, dataset: str) -> None:
    """Write `.eval_results/NAME.yaml` from the values in the header of a folder's card."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml  # not in its first releases

    card = folder / "README.md"
    measured = card.is_file() and ModelCard.load(card).data.eval_results
    if not measured:
        raise ValueError(f"no entries for {dataset}: the card has no measured values")
    entries = [EvalResultEntry(dataset, result.metric_type, result.metric_value) for result in measured]
    results = folder / ".eval_results"
    results.mkdir()
    name = dataset.rsplit("/", 1)[-1]
    (results / f"{name}.yaml").write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))
