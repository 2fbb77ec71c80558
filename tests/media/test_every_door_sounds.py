"""Every door hears every kind of recording alike, to its end: what is expected is what each file was made of."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from codec_fixtures import audio_model
from kinds_of_files import SOUNDS, AudioFile

from transformers_walloc import WallocAudioFeatureExtractor
from transformers_walloc.cli.main import main
from transformers_walloc.evaluation import compare, inspection, plots
from transformers_walloc.evaluation.signals import Signals
from transformers_walloc.media.messages import MediaError, MediaWarning
from transformers_walloc.media.paths import list_files
from transformers_walloc.training import fit_signals, fit_tables, scale
from transformers_walloc.training.data import MediaCache

RATE = 44100
# Six channels are refused by name where one file is asked for, and mixed, with a note, where a corpus is.
ALONE = ("compress", "compare", "inspect", "extractor")


class Folder:
    def __init__(self, path: Path):
        self.path, self.out, self.codec = path, path, str(path / "codec")
        self.files = {name: make() for name, make in SOUNDS.items()}
        self.paths = {}
        for i, (name, file) in enumerate(self.files.items()):
            folder = path / f"{i:02d}"
            folder.mkdir()
            self.paths[name] = folder / f"sound{file.suffix}"
            self.paths[name].write_bytes(file.data)
        self.model = audio_model(64)  # of all 64 channels
        self.model.save_pretrained(self.codec)
        self.extractor = WallocAudioFeatureExtractor(hop_length=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Folder(tmp_path_factory.mktemp("doors"))


def levelled(inputs) -> np.ndarray:
    """The extractor's output at the level of the clip."""
    levels = {name: inputs[name] for name in ("padding_mask", "gain", "offset")}
    return WallocAudioFeatureExtractor(hop_length=32).post_process(inputs["input_values"], **levels)[0]


def by_compress(folder: Folder, path: Path) -> np.ndarray:
    out = folder.out / "back.wav"
    if main(["compress", str(path), "-o", f"{folder.out}/x.walloc", "--model", folder.codec, "--force"]):
        raise ValueError("refused")
    assert main(["decompress", f"{folder.out}/x.walloc", "-o", str(out), "--model", folder.codec, "--force"]) == 0
    return soundfile.read(out, dtype="float32", always_2d=True)[0].T


def by_compare(folder: Folder, path: Path) -> np.ndarray:
    heard = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "AUDIO_FORMATS", {})
        patch.setattr(compare, "audio_psnr", lambda reference, decoded: heard.append(reference) or 0.0)
        if main(["compare", str(path), "--model", folder.codec]):
            raise ValueError("refused")
    return heard[0]


def by_inspect(folder: Folder, path: Path) -> np.ndarray:
    shown: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "waveforms", lambda clips, rate: shown.update(clips))
        for drawn in ("channel_maps", "latent_histograms", "latent_atlas"):
            patch.setattr(plots, drawn, lambda *_: None)
        patch.setattr(plots, "save", lambda *_: [])
        inspection.inspect(path, folder.model, folder.out / "drawn")
    return shown["original"]


def by_evaluate(folder: Folder, path: Path) -> np.ndarray:
    (signal,) = Signals(path.parent, "audio")
    return signal.array


def by_train(folder: Folder, path: Path) -> np.ndarray:
    (array,) = MediaCache(list_files(path.parent, (path.suffix,)), "audio", folder.out)
    return array.T / 32767


def by_fit(folder: Folder, path: Path) -> np.ndarray:
    (signal,) = fit_signals.read_signals(str(path), sampling_rate=RATE)
    return signal.values


def by_fit_tables(folder: Folder, path: Path) -> np.ndarray:
    codes = list(fit_tables.codes_of_folder(folder.model, folder.extractor, "audio", path.parent, None, 60.0, 1.0))
    with torch.no_grad():
        return folder.model.decode(torch.from_numpy(codes[0])[None].float())[0][0].numpy()


def by_scale(folder: Folder, path: Path) -> np.ndarray:
    (batch,) = scale.read_signals(folder.model.config, [str(path)])
    return batch[0].numpy()


def by_extractor(folder: Folder, path: Path) -> np.ndarray:
    return levelled(folder.extractor(str(path), return_tensors="pt"))


DOORS = {
    "compress": by_compress,
    "compare": by_compare,
    "inspect": by_inspect,
    "evaluate": by_evaluate,
    "train": by_train,
    "fit": by_fit,
    "fit-tables": by_fit_tables,
    "scale": by_scale,
    "extractor": by_extractor,
}


def heard(file: AudioFile, channels: int) -> np.ndarray:
    """(channels, length) at 44.1 kHz: mono copied, six channels mixed as ITU-R BS.775 says, no louder than before."""
    clip = file.clip
    if len(clip) == 6 and channels == 2:
        left, right, centre, _, back_left, back_right = clip
        half = 0.5**0.5
        clip = np.stack([left + half * (centre + back_left), right + half * (centre + back_right)]) / (1 + 2 * half)
    elif len(clip) == 1:
        clip = clip.repeat(channels, 0)
    if file.rate != RATE:
        times = np.arange(round(clip.shape[1] * RATE / file.rate)) * (file.rate / RATE)
        clip = np.stack([np.interp(times, np.arange(clip.shape[1]), channel) for channel in clip])
    return clip


@pytest.mark.filterwarnings("ignore:.*channels are mixed")
@pytest.mark.parametrize("kind", SOUNDS)
@pytest.mark.parametrize("door", DOORS)
def test_recordings_are_whole(folder, door, kind, capsys):
    file, path = folder.files[kind], folder.paths[kind]
    if kind == "six channels" and door in ALONE:
        with pytest.raises(ValueError, match=r"refused|6 channels"):
            DOORS[door](folder, path)
        assert door not in ("compress", "compare") or "has 6 channels" in capsys.readouterr().err
        return
    found = DOORS[door](folder, path)
    expected = heard(file, len(found))
    rate = len(found) and (file.rate if door in ("compress", "compare") else RATE)
    if door in ("compress", "compare"):
        expected = file.clip
    assert len(found) == len(expected)
    # Encoders add a little silence at either end, blocks of at most 0.06 s.
    assert -64 <= found.shape[1] - expected.shape[1] <= 0.06 * rate + 32
    if door in ("fit-tables", "scale"):  # normalised as a clip is
        expected = (expected - expected.mean()) / (2 * np.abs(expected - expected.mean()).max())
    length = min(found.shape[1], expected.shape[1])
    found, expected = found[:, :length], expected[:, :length]
    exact = file.tolerance is not None and file.rate == RATE
    if exact and door not in ("compress", "fit-tables"):
        assert np.abs(found - expected).max() <= max(file.tolerance, 1e-4) * 1.5
    elif exact:
        error = np.square(found - expected).mean() / np.square(expected - expected.mean()).mean()
        assert error < 0.02
    else:  # lossy: as loud as what went in, all along
        parts = [np.array_split(np.square(x).mean(0), 3) for x in (found, expected)]
        for a, b in zip(*parts, strict=True):
            slack = 1.1 if door in ("compress", "fit-tables") else 0.2  # noise is what a codec of 8 bits keeps least of
            assert abs(np.sqrt(a.mean()) - np.sqrt(b.mean())) < slack * np.sqrt(np.square(expected).mean()) + 1e-3


@pytest.mark.parametrize("door", [door for door in DOORS if door not in (*ALONE, "fit")])
def test_mixed_channels_are_said(folder, door):
    with pytest.warns(MediaWarning, match=r"sound\.wav: its 6 channels are mixed to stereo"):
        if door == "train":  # there is a cache of it already
            MediaCache([folder.paths["six channels"]], "audio", folder.out / "other")
        else:
            DOORS[door](folder, folder.paths["six channels"])


def test_a_recording_that_was_cut_off_says_so(folder, tmp_path):
    path = tmp_path / "cut.flac"
    path.write_bytes(folder.files["FLAC"].data[:20000])
    with pytest.raises(MediaError, match=r"cut\.flac: not audio that can be read: .*lost sync"):
        by_evaluate(folder, path)
    path = tmp_path / "wav" / "cut.wav"
    path.parent.mkdir()
    path.write_bytes(folder.files["stereo"].data[:20000])
    with pytest.warns(MediaWarning, match=r"cut\.wav: the audio ends after \d+ of the 88200 bytes"):
        by_evaluate(folder, path)


def test_an_empty_wav_is_empty(tmp_path, capsys):
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 2)), RATE)
    assert main(["compress", str(tmp_path / "empty.wav")]) == 1
    assert "empty.wav: the audio is empty" in capsys.readouterr().err
