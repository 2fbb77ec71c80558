"""A codec, its folder, and folders of pixel models, for all tests of latents."""

import pytest
import torch
from codec_fixtures import image_model
from pixel_models import save_pixel_model


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
