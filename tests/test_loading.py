import pytest
import torch
from codec_fixtures import audio_model, image_model
from transformers import ViTConfig

from transformers_walloc import WallocAudioFeatureExtractor, WallocImageEncoder, WallocImageProcessor
from transformers_walloc.codec.clips import normalise_clip
from transformers_walloc.codec.pixels import to_8_bits
from transformers_walloc.loading import codec_path, load_codec, make_processor


def test_a_folder_without_a_processor_loads_with_one(tmp_path):
    image_model().save_pretrained(tmp_path / "image")
    audio_model().save_pretrained(tmp_path / "audio")
    model, processor = load_codec(tmp_path / "image", dtype=torch.bfloat16)
    assert not model.training and model.dtype == torch.bfloat16
    assert isinstance(processor, WallocImageProcessor) and processor.patch_size == model.config.patch_size
    encoder, _ = load_codec(str(tmp_path / "image"), encoder_only=True)
    assert isinstance(encoder, WallocImageEncoder)
    model, processor = load_codec(tmp_path / "audio")
    assert isinstance(processor, WallocAudioFeatureExtractor) and processor.hop_length == model.config.patch_size


def test_what_is_no_codec(tmp_path):
    with pytest.raises(ValueError, match="the folder has no config"):
        load_codec(tmp_path)
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model of type 'vit' is no WaLLoC codec"):
        load_codec(tmp_path)
    with pytest.raises(TypeError, match="ViTConfig"):
        make_processor(ViTConfig())


def test_bundled_names_stand_for_their_folders():
    assert codec_path("rgb-16x").endswith("rgb-16x") and codec_path("rgb-16x") != "rgb-16x"
    assert codec_path("walloc/rgb-16x") == "walloc/rgb-16x"


@pytest.mark.parametrize("name", ["./nosuch", "/no/such/folder", "gpt2", "~/codec", "a/b/c", ""])
def test_what_cannot_be_on_the_hub_is_refused_at_once(name):
    with pytest.raises(ValueError, match=r"no such folder, and no such bundled codec; valid: rgb-4x, .*owner/name"):
        codec_path(name)


def test_misspelt_names_are_offered():
    with pytest.raises(ValueError, match="did you mean 'rgb-16x'"):
        load_codec("rgb16x")
    for name in ("walloc/rgb16x", "walloc/RGB_16x"):
        with pytest.raises(ValueError, match="did you mean 'rgb-16x'"):
            codec_path(name)
    with pytest.warns(UserWarning, match=r"walloc/rgb-8x is not one of the bundled rgb-4x, .*Asking the Hub"):
        assert codec_path("walloc/rgb-8x") == "walloc/rgb-8x"
    assert codec_path("someone/codec") == "someone/codec"


def test_8bit_levels_round_and_clip():
    x = torch.tensor([-0.7, -0.5, -0.5 + 0.6 / 255, 0.0, 0.5, 0.6])
    assert to_8_bits(x).tolist() == [0, 0, 1, 128, 255, 255] and to_8_bits(x).dtype == torch.uint8


def test_clips_are_normalised_and_silence_is_kept():
    clip = torch.tensor([[1.0, 3.0], [2.0, 2.0]])  # mean 2, peak 1
    normalised, gain, offset = normalise_clip(clip)
    assert (gain, offset) == (2.0, 2.0) and normalised.tolist() == [[-0.5, 0.5], [0.0, 0.0]]
    for level in (0.0, 0.1):  # the mean of a constant is rounded, and the rest must not be amplified
        silence, gain, _ = normalise_clip(torch.full((2, 1000), level))
        assert gain == 0 and silence.abs().max() < 1e-6
