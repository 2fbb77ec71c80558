#!/usr/bin/env python
"""What a frozen transcriber still hears of music: resampled clips against WaLLoC latents, at equally many numbers.

    pip install --no-deps basic-pitch && pip install librosa pretty_midi mir_eval resampy   # its pins are old
    python -m research.readers.music measure --data MUSIC --clips 40
    python -m research.readers.music measure-scores --data MULTITRACKS/test
    python -m research.readers.music summarise                       # docs/results -> docs/frozen_readers.md

basic-pitch (Bittner et al., ICASSP 2022; ONNX weights inside its wheel) writes down the notes of each clip as it is and
from `DR` times fewer numbers:

    resample  the clip at 1/DR of its sampling rate (soxr, very high quality) and back
    linear    latents of stereo-5x or stereo-20x, rounded, and decoded by the linear branch of the decoder
    walloc    the same latents, decoded by the trained decoder

DR 4.74 and 19 are the codecs as they are, 9.5 and 38 the first half of their channels. The score is the F1 of the notes
against those heard in the original (mir_eval: same pitch within a quarter tone, onsets within 50 ms). Nothing is
trained here. MUSIC holds audio files that no codec was trained on.

`measure-scores` knows what was played: MULTITRACKS/test holds the songs that `research.corpora.multitracks` renders,
and the score is the F1 against the notes of their bass and other instruments, with the drums sounding along.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from tqdm.auto import tqdm

from research.pages import RESULTS
from research.readers.scores import load_study, save_study, summarise
from transformers_walloc import WallocAudioFeatureExtractor, WallocAudioModel
from transformers_walloc.codec.decoders import LinearDecoder

STORE, SCORES = RESULTS / "readers_music.json", RESULTS / "readers_scores.json"
SECONDS = 20.0
CODECS = {
    4.74: ("walloc/stereo-5x", 108),
    9.5: ("walloc/stereo-5x", 54),
    19: ("walloc/stereo-20x", 27),
    38: ("walloc/stereo-20x", 13),
}
WAYS = {"resample": "resampled", "linear": "WaLLoC, linear", "walloc": "WaLLoC"}
CONDITIONS = [f"{way}-{dr:g}" for dr in CODECS for way in WAYS]
MEASURES = {"f1": "F1 of the notes, %", "precision": "precision, %", "recall": "recall, %"}


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="listen to clips and keep the scores")
    add_clips(measure)
    scores = commands.add_parser("measure-scores", help="listen to rendered songs and compare with their notes")
    scores.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of songs in stems, with notes")
    for command in (measure, scores):
        command.add_argument("--conditions", nargs="+", default=CONDITIONS, choices=CONDITIONS, metavar="NAME")
    commands.add_parser("summarise", help="write the tables (into <!-- music:begin --> of the page) and the picture")
    return parser.parse_args(argv)


def add_clips(parser: argparse.ArgumentParser) -> None:
    """Where `audio_files` finds clips, and how many."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of audio files")
    parser.add_argument("--clips", type=int, default=40, help="one from the middle of each file (default: %(default)s)")


def main(argv=None) -> int:
    args = parse_arguments(argv)
    if args.command == "summarise":
        summarise("music", STORE, MEASURES, list(CODECS), WAYS)
        summarise("scores", SCORES, MEASURES, list(CODECS), WAYS)
        return 0
    if args.command == "measure":
        signals, wanted = audio_files(args.data, args.clips), "audio files"
        store, title = STORE, f"basic-pitch, clips of {SECONDS:g} s from the middle of validation music"
    else:
        signals, wanted = sorted(path.parent for path in args.data.glob("*/other.mid")), "songs with notes"
        store, title = SCORES, f"basic-pitch, {SECONDS:g} s of rendered songs, against the notes that were played"
    if not signals:
        print(f"error: {args.data} has no {wanted}", file=sys.stderr)
        return 2
    study, ways = load_study(store, title), Ways()
    keys = {"original": "original"} | {condition: ways.key(condition) for condition in args.conditions}
    for signal in tqdm(signals, unit="clip", mininterval=5):
        if not study.missing(signal.name, keys):
            continue
        clip, rate = (middle if signal.is_file() else mix)(signal)
        heard = notes(clip, rate)
        reference = heard if signal.is_file() else played(signal)
        if not len(reference[0]):
            continue  # nothing to hear
        study.put("original", signal.name, "original", f1(reference, heard))
        for condition in args.conditions:
            if study.get(condition, signal.name, keys[condition]) is None:
                heard = notes(ways.view(clip, rate, condition), rate)
                study.put(condition, signal.name, keys[condition], f1(reference, heard))
        save_study(store, study)
    return 0


def audio_files(folder: Path, count: int) -> list[Path]:
    """So many of them, evenly spread."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".ogg", ".flac", ".wav", ".mp3"))
    return [files[i] for i in sorted({round(i) for i in np.linspace(0, len(files) - 1, count)})] if files else []


def mix(song: Path) -> tuple[np.ndarray, int]:
    """(2, length) float32 and the sampling rate of the beginning of a song, all stems together."""
    stems = [soundfile.read(stem, dtype="float32", always_2d=True) for stem in sorted(song.glob("*.flac"))]
    rate = stems[0][1]
    return sum(samples[: round(SECONDS * rate)] for samples, _ in stems).T, rate


def played(song: Path) -> tuple[np.ndarray, np.ndarray]:
    """Intervals (notes, 2) in seconds and pitches (notes,) in Hz of a song's instruments with a pitch."""
    import mido

    found: list[tuple[float, float, int]] = []
    for role in ("bass", "other"):
        now, sounding = 0.0, dict[tuple[int, int], float]()
        for message in mido.MidiFile(song / f"{role}.mid"):
            now += message.time
            if message.type not in ("note_on", "note_off"):
                continue
            key = message.channel, message.note
            if key in sounding:  # also where a note is struck again before it ends
                found.append((sounding.pop(key), now, message.note))
            if message.type == "note_on" and message.velocity:
                sounding[key] = now
        found += [(start, now, note) for (_, note), start in sounding.items()]
    found = sorted((start, end, note) for start, end, note in found if start < SECONDS and end > start)
    return (
        np.array([[start, min(end, SECONDS)] for start, end, _ in found]).reshape(-1, 2),
        np.array([440 * 2 ** ((note - 69) / 12) for _, _, note in found]),
    )


def middle(file: Path) -> tuple[np.ndarray, int]:
    """(2, length) float32 and the sampling rate of the clip in the middle of a file."""
    with soundfile.SoundFile(file) as sound:
        length = round(SECONDS * sound.samplerate)
        sound.seek(max(0, (sound.frames - length) // 2))
        clip = sound.read(length, dtype="float32", always_2d=True).T
        return (np.repeat(clip, 2, axis=0) if len(clip) == 1 else clip[:2]), sound.samplerate


def notes(clip: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Intervals (notes, 2) in seconds and pitches (notes,) in Hz that basic-pitch hears."""
    from basic_pitch.inference import Model, predict

    global _model
    _model = _model or Model(_weights())
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        soundfile.write(file.name, clip.T, rate, subtype="FLOAT")
        _, _, events = predict(file.name, _model)
    events = sorted(events)
    return (
        np.array([[start, end] for start, end, *_ in events]).reshape(-1, 2),
        np.array([440 * 2 ** ((pitch - 69) / 12) for _, _, pitch, *_ in events]),
    )


_model = None


def _weights() -> Path:
    import basic_pitch

    return Path(basic_pitch.__file__).parent / "saved_models" / "icassp_2022" / "nmp.onnx"


def f1(reference: tuple[np.ndarray, np.ndarray], heard: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    from mir_eval.transcription import precision_recall_f1_overlap

    if not len(heard[0]):
        return {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    precision, recall, score, _ = precision_recall_f1_overlap(*reference, *heard, offset_ratio=None)
    return {"f1": score, "precision": precision, "recall": recall}


class Ways:
    """Clips as each condition sounds."""

    def __init__(self):
        self.models: dict[str, tuple[WallocAudioModel, WallocAudioFeatureExtractor]] = {}

    def key(self, condition: str) -> str:
        """What the result of a condition depends on beside the clip: which weights."""
        way, _, dr = condition.partition("-")
        if way == "resample":
            return way
        model, _ = self.model(CODECS[float(dr)][0], way == "linear")
        decoder = sum(float(p.detach().double().abs().sum()) for p in model.decoder.parameters())
        return f"{model.fingerprint()}:{decoder:.6e}"

    def model(self, name: str, linear: bool) -> tuple[WallocAudioModel, WallocAudioFeatureExtractor]:
        key = f"{name}@linear" if linear else name
        if key not in self.models:
            model = WallocAudioModel.from_pretrained(name).eval()
            if linear:
                synthesis, model.decoder = model.decoder.linear, LinearDecoder(model.config)
                model.decoder.linear = synthesis
            self.models[key] = model, WallocAudioFeatureExtractor.from_pretrained(name)
        return self.models[key]

    @torch.inference_mode()
    def view(self, clip: np.ndarray, rate: int, condition: str) -> np.ndarray:
        way, _, dr = condition.partition("-")
        if way == "resample":
            low = soxr.resample(clip.T, rate, rate / float(dr), quality="VHQ")
            return soxr.resample(low, rate / float(dr), rate, quality="VHQ").T
        name, channels = CODECS[float(dr)]
        model, extractor = self.model(name, way == "linear")
        inputs = extractor(clip, sampling_rate=rate, return_tensors="pt")
        codes = model.quantize(model.encode(inputs["input_values"]).latents)
        codes[:, channels:] = 0
        levels = {name: inputs[name] for name in ("padding_mask", "gain", "offset")}
        decoded = extractor.post_process(model.decode(codes).audio_values, **levels)[0]
        ours = extractor.sampling_rate
        return decoded if ours == rate else soxr.resample(decoded.T, ours, rate, quality="VHQ").T


if __name__ == "__main__":
    sys.exit(main())
