"""A codec, its folder, and folders of pixel models, for all tests of latents."""

import pytest
import torch
from codec_fixtures import image_model
from pixel_models import AUTO_CLASSES, save_pixel_model
from pixel_processors import PROCESSORS, save_pixel_repository
from transformers import AutoImageProcessor, AutoProcessor

from transformers_walloc import load_on_latents, load_processor_on_latents


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def codec():
    return image_model(12)


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs") / "tiny"
    image_model(12).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A "pretrained" pixel model of each family, built once."""
    made = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = str(tmp_path_factory.mktemp(family))
            save_pixel_model(family, made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session")
def repositories(tmp_path_factory):
    """Folders of pixel models with their processors, built once."""
    made = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = str(tmp_path_factory.mktemp(f"repository-{family}"))
            save_pixel_repository(family, made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session")
def saved(repositories, codec_folder, tmp_path_factory):
    """Folders of models on latents, with all that goes with them."""
    made = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = str(tmp_path_factory.mktemp(f"latents-{family}"))
            model = load_on_latents(repositories(family), codec_folder, AUTO_CLASSES[family])
            model.save_pretrained(made[family])
            load_processor_on_latents(repositories(family), model, codec_folder).save_pretrained(made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session")
def loaded(saved):
    """Processor and model of a family on latents, as the Auto classes load them from a folder."""
    made = {}

    def parts(family: str):
        if family not in made:
            folder = saved(family)
            auto_class = AutoProcessor if family in PROCESSORS else AutoImageProcessor
            made[family] = auto_class.from_pretrained(folder), AUTO_CLASSES[family].from_pretrained(folder)
        return made[family]

    return parts
