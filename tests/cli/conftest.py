"""Two small codecs, and a folder with a photograph and a song."""

import PIL.Image
import PIL.ImageCms
import PIL.ImageFile
import pytest
import soundfile
from codec_fixtures import audio_model, image_model, pictures, sound


@pytest.fixture(scope="session")
def codecs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs")
    image_model().save_pretrained(folder / "image")
    audio_model().save_pretrained(folder / "audio")
    return {"image": str(folder / "image"), "audio": str(folder / "audio")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a photo and a song."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(pictures()[1]).save("photo.png")
    soundfile.write("song.wav", sound(0.5).T, 44100)
    return tmp_path
