"""Audio to files and back: formats, rates, depths, channels."""

import numpy as np
import pytest
import soundfile
from codec_fixtures import sound
from command_line import fails, said

from transformers_walloc.cli.main import main


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_audio_formats_in_and_out(here, codecs, suffix):
    clip = sound(0.5)
    soundfile.write(f"in{suffix}", clip.T, 44100)
    length = soundfile.info(f"in{suffix}").frames
    assert main(["compress", f"in{suffix}", "-o", "a.walloc", "--model", codecs["audio"]]) == 0
    assert main(["decompress", "a.walloc", "-o", f"out{suffix}", "--model", codecs["audio"]]) == 0
    back, rate = soundfile.read(f"out{suffix}")
    assert rate == 44100 and len(back) == length
    assert np.sqrt(np.mean((back[:20000] - clip.T[:20000]) ** 2)) < 0.05


@pytest.mark.parametrize(("rate", "channels"), [(48000, 1), (16000, 2), (22050, 1), (44100, 1)])
def test_rate_length_and_channels_of_the_recording_are_restored(here, codecs, rate, channels):
    clip = sound(0.4, channels, rate)[:, : int(0.4 * rate) - 7]
    soundfile.write("in.flac", clip.T, rate)
    assert main(["compress", "in.flac", "--model", codecs["audio"]]) == 0
    assert main(["decompress", "in.walloc", "--model", codecs["audio"], "--format", "wav"]) == 0
    back, back_rate = soundfile.read("in.wav", always_2d=True)
    assert back_rate == rate and back.shape == clip.T.shape
    assert np.sqrt(np.mean((back - clip.T) ** 2)) < 0.05


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_audio_returns_at_its_depth(here, codecs, capsys, suffix, subtype):
    if not soundfile.check_format(suffix.upper(), subtype):
        pytest.skip(f"{suffix} has no {subtype}")
    loud = 1.5 if subtype in ("FLOAT", "DOUBLE") else 0.5
    soundfile.write(f"in.{suffix}", loud * sound(0.2).T, 44100, subtype=subtype)
    model = ["--model", codecs["audio"]]
    assert main(["compress", f"in.{suffix}", *model]) == 0
    assert main(["decompress", "in.walloc", "-o", f"out.{suffix}", *model]) == 0
    assert soundfile.info(f"out.{suffix}").subtype == subtype
    assert said(capsys) == ""
    if loud > 1:  # where the samples cannot be kept it is said
        assert np.abs(soundfile.read(f"out.{suffix}")[0]).max() > 1
        assert main(["decompress", "in.walloc", "-o", "out.mp3", *model]) == 0
        assert "out.mp3: " in (err := capsys.readouterr().err) and "are clipped" in err


def test_more_channels_are_mixed_when_told(here, codecs, capsys):
    clip = sound(0.3)
    silence = 0 * clip[0]
    # Left, right, centre, low frequencies, back left, back right.
    soundfile.write("surround.wav", np.stack([clip[0], clip[1], silence, clip[0], silence, silence], axis=1), 44100)
    fails(capsys, ["compress", "surround.wav", "--model", codecs["audio"]], "6 channels")
    assert main(["compress", "surround.wav", "--downmix", "--model", codecs["audio"]]) == 0
    assert main(["decompress", "surround.walloc", "-o", "back.wav", "--model", codecs["audio"]]) == 0
    back, _ = soundfile.read("back.wav")
    assert np.abs(back.T - clip / (1 + 2**0.5)).max() < 0.05
