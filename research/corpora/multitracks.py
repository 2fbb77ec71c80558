#!/usr/bin/env python
"""Make multitrack music for source separation: scores of free games, rendered one stem per role.

    apt-get install fluidsynth && pip install 'transformers-walloc[train]'
    python -m research.corpora.multitracks --out /data/multitracks

needs Debian or Ubuntu with `apt-get update` done once, about 2 GB of disk and ten minutes. It writes what MUSDB18-HQ
has, folders of stems, so that either goes into `research.tasks.separation`, and the notes of each stem (.mid):

    OUT/train/<song>/{drums,bass,other}.flac        freedoom, with the soundfonts FluidR3 GM and GMbank (of Csound), so
                                                    that no one's instruments are learnt by heart: about 100 minutes
    OUT/validation/<song>/...                       freedm, with FluidR3 GM: about 10 minutes
    OUT/test/<song>/...                             openttd-openmsx, with another soundfont, TimGM6mb: about 10 minutes
    OUT/manifest.jsonl                              one line per song: score, soundfont, levels, licence
    OUT/licences/<package>                          the copyright file of each package
    OUT/downloads/, OUT/unpacked/                   the packages; may be deleted afterwards

A song's mix is the sum of its stems, by definition: effects of a synthesiser that plays all together do not add up.
Each stem is normalised and gets a random level. Scores without one of the roles are left out, and so is a score that
is in two packages. Run it again at any time: rendered songs are kept.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import mido
import numpy as np
import soundfile
from tqdm.auto import tqdm

from research.corpora.packages import PackageError, fetch_package, scratch_folder, unpack_package
from transformers_walloc.atomic import write_atomically

RECIPE = 2  # raise it when a rule below changes, so that songs are rendered anew
ROLES = ("drums", "bass", "other")
SAMPLING_RATE = 44100
DRUM_CHANNEL = 9  # counted from zero, as General MIDI has it
BASS_PROGRAMS = range(32, 40)
LEVELS_DB = {"drums": (-22, -17), "bass": (-24, -19), "other": (-22, -17)}  # root mean square of a stem, drawn
PEAK = 0.9  # of the mix and of every stem
TICKS = 10_000  # per second, of the excerpts' scores


@dataclasses.dataclass(frozen=True)
class Scores:
    """A package of scores: `pattern` finds MIDI files, or game archives (WAD) with MIDI files in them."""

    split: str
    package: str
    pattern: str
    soundfonts: tuple[str, ...]  # each song is rendered with each
    licence: str


@dataclasses.dataclass(frozen=True)
class Soundfont:
    package: str
    pattern: str
    licence: str


SOUNDFONTS = {
    "FluidR3_GM": Soundfont("fluid-soundfont-gm", "*/FluidR3_GM.sf2", "MIT"),
    "GMbank": Soundfont("csound-soundfont", "*/sf_GMbank.sf2", "LGPL-2.1+"),
    "TimGM6mb": Soundfont("timgm6mb-soundfont", "*/TimGM6mb.sf2", "GPL-2"),
}
SCORES = (
    Scores("train", "freedoom", "*/freedoom?.wad", ("FluidR3_GM", "GMbank"), "BSD-3-clause"),
    Scores("validation", "freedm", "*/freedm.wad", ("FluidR3_GM",), "BSD-3-clause"),
    Scores("test", "openttd-openmsx", "*/openmsx/*.mid", ("TimGM6mb",), "GPL-2"),
)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        if not shutil.which("fluidsynth"):
            raise PackageError("fluidsynth is not installed: apt-get install fluidsynth (or brew install fluid-synth)")
        scores = {source: unpacked(source.package, args.out) for source in SCORES}
        fonts = {}
        for name, font in SOUNDFONTS.items():
            found = sorted(p for p in unpacked(font.package, args.out).rglob("*.sf2") if p.match(font.pattern))
            if not found:
                raise PackageError(f"{font.package} has no file {font.pattern}")
            fonts[name] = found[0]
        render_all(scores, fonts, args)
    except PackageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for split, seconds in write_manifest(args.out).items():
        print(f"{split:12} {len(seconds):3} songs {sum(seconds) / 60:6.1f} minutes")
    return 0


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the stems, made if need be")
    parser.add_argument("--seconds", type=float, default=60, help="at most, of a training song (default: %(default)s)")
    parser.add_argument(
        "--test-seconds", type=float, default=30, help="of a validation or test song (default: %(default)s)"
    )
    parser.add_argument("--songs", type=int, default=1000, help="at most, for training (default: all)")
    parser.add_argument("--test-songs", type=int, default=1000, help="at most, for validation and test (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the levels (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in ("seconds", "test_seconds"):
        if getattr(args, name) < 5:
            parser.error(f"--{name.replace('_', '-')} must be at least 5, got {getattr(args, name)}")
    for name in ("songs", "test_songs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}")
    return args


def unpacked(package: str, out: Path) -> Path:
    """The folder of a package's files; downloads and unpacks it on the first call."""
    folder = out / "unpacked" / package
    if not folder.is_dir():
        deb = fetch_package(package, out / "downloads")
        with scratch_folder(out / f".unpacked-{package}") as partial:
            unpack_package(deb, partial / "files")
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / "files", folder)
        notice = folder / "usr/share/doc" / package / "copyright"
        if notice.is_file():
            write_atomically(out / "licences" / package, notice.read_bytes())
    return folder


# --- scores -------------------------------------------------------------------------------------------------------


def songs(folder: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(name, MIDI file) of every score in a package, in a fixed order."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.match(pattern)):
        if file.suffix == ".wad":
            yield from ((f"{file.stem}-{name}", content) for name, content in wad_music(file.read_bytes()))
        else:
            yield file.stem, file.read_bytes()


def wad_music(wad: bytes) -> Iterator[tuple[str, bytes]]:
    """MIDI files among the music lumps (`D_...`) of a WAD: a header, the lumps, a directory of 16 bytes per lump."""
    if wad[:4] not in (b"IWAD", b"PWAD"):
        raise PackageError("not a WAD file")
    count, directory = struct.unpack_from("<ii", wad, 4)
    for i in range(count):
        start, size, name = struct.unpack_from("<ii8s", wad, directory + 16 * i)
        content = wad[start : start + size]
        if name.startswith(b"D_") and content.startswith(b"MThd"):
            yield name.rstrip(b"\0").decode("ascii").lower(), content


def timed_events(midi: bytes) -> list[tuple[float, mido.Message, str | None]]:
    """(seconds, message, role) of a score; notes have a role, everything else has None."""
    events, now = [], 0.0
    program = [0] * 16
    sounding: dict[tuple[int, int], str] = {}
    for message in mido.MidiFile(file=io.BytesIO(midi)):
        now += message.time
        if message.is_meta or message.type == "sysex":
            continue
        role = None
        if message.type == "program_change":
            program[message.channel] = message.program
        elif message.type in ("note_on", "note_off"):
            key = (message.channel, message.note)
            if message.type == "note_on" and message.velocity:
                drums, bass = message.channel == DRUM_CHANNEL, program[message.channel] in BASS_PROGRAMS
                role = sounding[key] = "drums" if drums else "bass" if bass else "other"
            else:
                role = sounding.pop(key, "other")
        events.append((now, message, role))
    return events


def best_excerpt(events: Sequence[tuple], seconds: float) -> tuple[float, float] | None:
    """(start, end) of the part in which all roles play most: the most seconds with a note of the rarest role."""
    notes = [(t, role) for t, message, role in events if role and message.type == "note_on" and message.velocity]
    active = {role: {int(t) for t, r in notes if r == role} for role in ROLES}
    end = max((t for t, _ in notes), default=0.0)
    length = min(seconds, end)
    if length < 5:
        return None
    starts = np.arange(0, max(end - length, 0) + 1e-9, 2.0)

    def rarest(start: float) -> int:
        return min(sum(start <= t < start + length for t in times) for times in active.values())

    start = float(max(starts, key=rarest))  # the earliest of several
    return (start, start + length) if rarest(start) >= length / 4 else None


def excerpt_of_role(events: Sequence[tuple], role: str, start: float, end: float) -> bytes:
    """A MIDI file of one role's notes from `start` to `end` seconds; settings made before hold from the beginning."""
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=1_000_000)])
    last = 0
    for t, message, of_role in events:
        is_note_on = message.type == "note_on" and message.velocity > 0
        if of_role not in (None, role) or (is_note_on and not start <= t < end) or t >= end:
            continue
        ticks = round(max(t - start, 0.0) * TICKS)
        track.append(message.copy(time=ticks - last))
        last = ticks
    remaining = max(round((end - start) * TICKS) - last, 0)
    for channel in range(16):  # all sound off: fluidsynth goes on for ever while a note is held
        track.append(mido.Message("control_change", channel=channel, control=120, time=remaining * (channel == 0)))
    track.append(mido.MetaMessage("end_of_track"))
    file = io.BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=TICKS, tracks=[track]).save(file=file)
    return file.getvalue()


# --- sound --------------------------------------------------------------------------------------------------------


def render_all(scores: dict[Scores, Path], fonts: dict[str, Path], args: argparse.Namespace) -> None:
    """Renders every song that is not there yet; a record in its folder says with what."""
    jobs: list[tuple] = []
    seen: set[str] = set()
    for source, folder in scores.items():
        train = source.split == "train"
        seconds, wanted = (args.seconds, args.songs) if train else (args.test_seconds, args.test_songs)
        count = 0
        for name, midi in tqdm(songs(folder, source.pattern), desc=f"reading {source.package}", unit="score"):
            if count == wanted:
                break
            digest = hashlib.sha256(midi).hexdigest()
            events = timed_events(midi)
            # Packages share songs, some of them edited: the same notes of the same length are the same song.
            notes = [(m.channel, m.note) for _, m, role in events if role and m.type == "note_on"][:200]
            keys = {digest, hashlib.sha256(repr(notes).encode()).hexdigest()}
            part = best_excerpt(events, seconds)
            if part is None or keys & seen:
                continue
            seen |= keys
            count += 1
            jobs += [(source, font, name, digest, events, part) for font in source.soundfonts]
    for source, font, name, digest, events, part in tqdm(jobs, desc="rendering", unit="song"):
        several = f"-{font}" if len(source.soundfonts) > 1 else ""
        target = args.out / source.split / f"{source.package}-{name}{several}"
        facts = {
            "recipe": [RECIPE, digest, font, *map(float, part), args.seed],
            "song": target.relative_to(args.out).as_posix(),
            "split": source.split,
            "package": source.package,
            "score": name,
            "licence": source.licence,
            "soundfont": f"{font} ({SOUNDFONTS[font].licence})",
        }
        if is_rendered(target, facts["recipe"]):
            continue
        with scratch_folder(args.out / ".rendering") as scratch:
            excerpts = {role: excerpt_of_role(events, role, *part) for role in ROLES}
            stems = {role: play(midi, fonts[font], scratch, part) for role, midi in excerpts.items()}
            if not all(np.abs(stem).max() > 1e-4 for stem in stems.values()):
                continue
            levels = set_levels(stems, random.Random(f"{args.seed}-{name}{several}"))
            done = scratch / "done"
            done.mkdir()
            for role, stem in stems.items():
                soundfile.write(done / f"{role}.flac", stem, SAMPLING_RATE, subtype="PCM_16")
                (done / f"{role}.mid").write_bytes(excerpts[role])
            facts.update(seconds=round(len(stems[ROLES[0]]) / SAMPLING_RATE, 3), rms_db=levels)
            (done / "song.json").write_text(json.dumps(facts, indent=1) + "\n")
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(done, target)


def is_rendered(folder: Path, recipe: list) -> bool:
    try:
        return json.loads((folder / "song.json").read_text())["recipe"] == recipe
    except (OSError, ValueError, KeyError):
        return False


def play(midi: bytes, soundfont: Path, scratch: Path, part: tuple[float, float]) -> np.ndarray:
    """(length, 2) float64: what fluidsynth makes of a score, cut to the length of the part (no tails)."""
    score, sound = scratch / "score.mid", scratch / "sound.wav"
    score.write_bytes(midi)
    options = ["-r", str(SAMPLING_RATE), "-O", "float", "-T", "wav", "-o", "synth.dynamic-sample-loading=1"]
    command = ["fluidsynth", "-niq", "-g", "0.3", *options, "-F", str(sound)]
    try:
        done = subprocess.run([*command, str(soundfont), str(score)], capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"fluidsynth did not end in {error.timeout:.0f} seconds") from error
    if done.returncode or not sound.is_file():
        raise PackageError(f"fluidsynth failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    samples = soundfile.read(sound, dtype="float64", always_2d=True)[0]
    length = round((part[1] - part[0]) * SAMPLING_RATE)
    return np.pad(samples[:length], ((0, max(length - len(samples), 0)), (0, 0)))


def set_levels(stems: dict[str, np.ndarray], generator: random.Random) -> dict[str, float]:
    """Gives each stem a level of its role, and all of them one gain that keeps the mix below clipping; in place."""
    for role, stem in stems.items():
        stem *= 10 ** (generator.uniform(*LEVELS_DB[role]) / 20) / np.sqrt(np.mean(stem**2))
    loudest = max(np.abs(x).max() for x in (sum(stems.values()), *stems.values()))
    for stem in stems.values():
        stem *= min(1.0, PEAK / loudest)
    return {role: round(20 * float(np.log10(np.sqrt(np.mean(stem**2)))), 2) for role, stem in stems.items()}


def write_manifest(out: Path) -> dict[str, list[float]]:
    """Joins the songs' records into manifest.jsonl; returns the seconds of the songs of each split."""
    records = [json.loads(file.read_text()) for file in sorted(out.glob("*/*/song.json"))]
    lines = [json.dumps({k: v for k, v in record.items() if k != "recipe"}) + "\n" for record in records]
    write_atomically(out / "manifest.jsonl", "".join(lines).encode())
    splits: dict[str, list[float]] = {}
    for record in sorted(records, key=lambda r: [s.split for s in SCORES].index(r["split"])):
        splits.setdefault(record["split"], []).append(record["seconds"])
    return splits


if __name__ == "__main__":
    sys.exit(main())
