"""What does not depend on how many threads torch runs on: files to the bit, 8-bit pictures to one level."""

import pytest
import skimage.data
import torch
from codec_fixtures import sound

from transformers_walloc import WallocAudioModel, WallocImageModel


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["rgb-4x", "rgb-16x"])
@torch.inference_mode()
def test_threads(name):
    model = WallocImageModel.from_pretrained(f"walloc/{name}").eval()
    picture = torch.from_numpy(skimage.data.astronaut()[:256, :384].copy()).permute(2, 0, 1)[None]
    files, decoded = [], []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        files.append(model.compress(picture))
        decoded.append(model.decompress(files[0])[0])
    assert files[0] == files[1] == files[2]
    for other in decoded[1:]:
        assert (other - decoded[0]).abs().max() < 1e-5
        levels = [torch.round((x + 0.5) * 255) for x in (decoded[0], other)]
        assert (levels[0] - levels[1]).abs().max() <= 1


@pytest.mark.parametrize("name", ["stereo-20x", "mono-20x"])
@torch.inference_mode()
def test_threads_of_audio(name):
    model = WallocAudioModel.from_pretrained(f"walloc/{name}").eval()
    wave = torch.from_numpy(sound(3.0, channels=model.config.num_channels))[None, :, : 256 * 500]
    files, decoded = [], []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        files.append(model.compress(0.5 * wave))
        decoded.append(model.decompress(files[0])[0])
    assert files[0] == files[1] == files[2]
    for other in decoded[1:]:
        assert (other - decoded[0]).abs().max() < 2**-16  # half a step of 16-bit samples
