#!/usr/bin/env python
"""Make the training corpora from free Debian packages: photographs, stereo music and pages of text.

    python -m research.corpora.prepare images audio documents --out /data/corpus

needs Debian or Ubuntu with `apt-get update` done once (no root for this program itself), about 12 GB of disk, and
`pip install 'transformers-walloc[train]'`. It writes

    OUT/images/<package>/...               photographs (about 540, 700 megapixels)
    OUT/documents/...                      rendered pages, meant for 5-10% of the training crops
    OUT/audio/train/<package>/...          true-stereo 44.1 kHz music (about 11 h)
    OUT/audio/validation/<package>/...     music from other packages, never trained on (about 1.8 h)
    OUT/manifest.jsonl                     one line per file: package, version, origin, size, licence, SHA-256
    OUT/licences/<package>                 the copyright file of each package
    OUT/downloads/                         the packages as downloaded; may be deleted afterwards

Run it again at any time: finished packages are not redone, whatever was interrupted is taken up again. Each file
appears under its name only when it is complete. Then train:

    walloc train --train /data/corpus/images:0.93 /data/corpus/documents:0.07 ...
    walloc train --train /data/corpus/audio/train --validation /data/corpus/audio/validation ...

On other systems any folder of images or music will do in place of these.
"""

import argparse
import dataclasses
import fnmatch
import hashlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm.auto import tqdm

from research.corpora.documents import render_page, usable_fonts
from research.corpora.filters import accept_audio, accept_image, fingerprint, largest_jpeg, looks_like, webp_streams
from research.corpora.packages import Copyright, PackageError, fetch_package, scratch_folder, unpack_package
from research.corpora.sources import AUDIO, FONTS, IMAGES, Source
from transformers_walloc.atomic import write_atomically

RECIPE = 1  # raise it when a rule below changes, so that existing corpora are made anew


def main() -> int:
    args = parse_arguments()
    parts = {"images": IMAGES, "audio": AUDIO, "documents": FONTS}
    known = [source.package for part in args.parts for source in parts[part]]
    unknown = sorted(set(args.packages + args.skip) - set(known))
    if unknown:
        print(
            f"error: no source of {', '.join(args.parts)}: {', '.join(unknown)}; known: {', '.join(known)}",
            file=sys.stderr,
        )
        return 2
    problems = []
    for part in args.parts:
        sources = [s for s in parts[part] if s.package not in args.skip and s.package in (args.packages or known)]
        if part == "documents":
            problems += prepare_documents(sources, args)
        else:
            problems += prepare_media(part, sources, args)
    entries = write_manifest(args.out)
    print_summary(entries, args.parts)
    for problem in problems:
        print(f"missing: {problem}", file=sys.stderr)
    return 1 if problems else 0


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("images", "audio", "documents"), help="what to prepare")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the corpus, made if need be")
    parser.add_argument("--packages", nargs="+", default=[], metavar="NAME", help="only these packages")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="not these (0ad-data alone is 1.4 GB)")
    parser.add_argument(
        "--exclude",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of test images, e.g. Kodak: whatever looks like one of them stays out of the corpus",
    )
    parser.add_argument("--pages", type=int, default=100, help="number of document pages (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the document pages (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.pages < 1:
        parser.error(f"--pages must be positive, got {args.pages}")
    for folder in args.exclude:
        if not folder.is_dir():
            parser.error(f"--exclude {folder} is not a folder")
    return args


# --- what is inside them ------------------------------------------------------------------------------------------


def candidates(source: Source, folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """(origin, file name, content) of every file that the source names in its unpacked package, in a fixed order."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        path = file.relative_to(folder).as_posix()
        if not _matches(path, source.patterns) or _matches(path, source.exclude):
            continue
        if source.archive == "zip":
            with zipfile.ZipFile(file) as archive:
                for member in sorted(archive.namelist()):
                    if fnmatch.fnmatchcase(member, source.member) and not member.endswith("/"):
                        yield f"{path}!{member}", _flat_name(member), archive.read(member)
        elif source.archive == "webp":
            for i, stream in enumerate(webp_streams(file.read_bytes())):
                yield f"{path}#{i}", f"{file.stem}-{i:03d}.webp", stream
        elif source.archive == "jpeg":
            largest = largest_jpeg(file.read_bytes())
            if largest:
                yield f"{path}#largest", f"{file.stem}.jpg", largest
        else:
            yield path, _flat_name(path), file.read_bytes()


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _flat_name(path: str) -> str:
    """The file's name, with the theme's in front of it where KDE's names say only a resolution."""
    parts = PurePosixPath(path).parts
    return f"{parts[-4]}-{parts[-1]}" if len(parts) > 3 and parts[-3] == "contents" else parts[-1]


# --- the three parts ----------------------------------------------------------------------------------------------


def prepare_media(part: str, sources: Sequence[Source], args: argparse.Namespace) -> list[str]:
    """Downloads, filters and stores images or audio; returns what could not be had."""
    problems: list[str] = []
    args.out.mkdir(parents=True, exist_ok=True)
    folders = args.exclude if part == "images" else []
    excluded = [fingerprint(Image.open(file)) for folder in folders for file in image_files(folder)]
    digest = hashlib.sha256(b"".join(bits.tobytes() for bits in excluded)).hexdigest()[:16]
    bar = tqdm(sources, desc=part, unit="package")
    for source in bar:
        bar.set_postfix_str(source.package)
        split = ("validation" if source.validation else "train") if part == "audio" else ""
        target = args.out / part / split / source.package
        record = args.out / "packages" / f"{part}-{source.package}.json"
        recipe = [RECIPE, dataclasses.asdict(source), digest]
        if is_finished(record, recipe, args.out):
            continue
        try:
            deb = fetch_package(source.package, args.out / "downloads")
            with scratch_folder(args.out / f".unpacked-{source.package}") as folder:
                unpack_package(deb, folder)
                files, rejected = store(part, source, folder, target, excluded, args.out)
            if not files and not rejected:
                raise PackageError(
                    f"{source.package}: {deb.name} has other contents, no file matches {source.patterns}"
                )
        except PackageError as error:
            problems.append(str(error))
            continue
        version = deb.name.split("_")[1].replace("%3a", ":")
        for entry in files:
            entry.update({"split": split or "train", "version": version})
        kept = {Path(entry["file"]).name for entry in files}
        for stale in target.iterdir() if target.is_dir() else ():
            if stale.name not in kept:
                stale.unlink()
        write_atomically(
            record, json.dumps({"recipe": recipe, "files": files, "rejected": rejected}, indent=1).encode()
        )
    return problems


def store(part: str, source: Source, unpacked: Path, target: Path, excluded: list, out: Path) -> tuple[list, list]:
    """Writes the good files of one unpacked package; returns their manifest entries and why others were rejected."""
    files: list[dict] = []
    rejected: list[dict] = []
    names: set[str] = set()
    notice = unpacked / "usr/share/doc" / source.package / "copyright"
    text = notice.read_bytes() if notice.is_file() else b""
    write_atomically(out / "licences" / source.package, text or source.licence.encode())
    licences = Copyright(text.decode(errors="replace"))
    for origin, name, content in tqdm(candidates(source, unpacked), desc=source.package, unit="file", leave=False):
        try:
            if part == "images":
                facts, content, suffix = accept_image(content, source.halve)
                if excluded and looks_like(fingerprint(Image.open(io.BytesIO(content))), excluded):
                    raise ValueError("looks like one of the excluded test images")
                name = Path(name).stem + suffix if suffix else name
            else:
                # a model learns from the best material, but is judged on files as they come
                facts = accept_audio(content, strict=not source.validation)
        except ValueError as error:
            rejected.append({"origin": origin, "reason": str(error)})
            continue
        while name in names:
            name = f"{Path(name).stem}_{Path(name).suffix}"
        names.add(name)
        write_atomically(target / name, content)
        files.append(
            {
                "file": (target / name).relative_to(out).as_posix(),
                "kind": part,
                "package": source.package,
                "origin": origin,
                "licence": licences.licence(origin.replace("@2x", "")) or licences.licence(origin) or source.licence,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                **facts,
            }
        )
    return files, rejected


def prepare_documents(sources: Sequence[Source], args: argparse.Namespace) -> list[str]:
    """Renders the pages with the fonts of the packages, or with the system's where there are none."""
    problems: list[str] = []
    fonts: list[Path] = []
    args.out.mkdir(parents=True, exist_ok=True)
    target, record = args.out / "documents", args.out / "packages" / "documents.json"
    for source in sources:
        folder = args.out / "fonts" / source.package
        try:
            if not folder.is_dir():
                deb = fetch_package(source.package, args.out / "downloads")
                with scratch_folder(args.out / f".unpacked-{source.package}") as unpacked:
                    unpack_package(deb, unpacked / "package")
                    folder.parent.mkdir(exist_ok=True)
                    os.replace(unpacked / "package", folder)
        except PackageError as error:
            problems.append(str(error))
            continue
        paths = [path for path in folder.rglob("*") if path.is_file()]
        fonts += [p for p in paths if _matches(p.name, source.patterns) and not _matches(p.name, source.exclude)]
    usable = usable_fonts(fonts or system_fonts())
    recipe = [RECIPE, args.pages, args.seed, [font.name for font in usable]]
    if is_finished(record, recipe, args.out):
        return problems
    licence = "text: PSF-2.0 (Python documentation); fonts: " + ", ".join(sorted({s.licence for s in sources}))
    files = []
    for i in tqdm(range(args.pages), desc="documents", unit="page"):
        page = render_page(usable, f"{args.seed}-{i}")
        buffer = io.BytesIO()
        page.save(buffer, "PNG")
        name = f"page-{args.seed}-{i:04d}.png"
        write_atomically(target / name, buffer.getvalue())
        files.append(
            {
                "file": f"documents/{name}",
                "kind": "documents",
                "split": "train",
                "package": "rendered",
                "origin": f"seed {args.seed}-{i}",
                "licence": licence,
                "bytes": buffer.tell(),
                "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
                "width": page.width,
                "height": page.height,
            }
        )
    write_record(record, recipe, files, [])
    return problems


def system_fonts() -> list[str]:
    """The TrueType and OpenType files that matplotlib finds here; none without matplotlib."""
    try:
        from matplotlib import font_manager
    except ImportError:
        return []
    return font_manager.findSystemFonts()


# --- files --------------------------------------------------------------------------------------------------------


def image_files(folder: Path) -> list[Path]:
    suffixes = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"}
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)


def write_record(record: Path, recipe: list, files: list, rejected: list) -> None:
    """Notes that a package is finished, and with what result."""
    content = {"recipe": recipe, "files": files, "rejected": rejected}
    write_atomically(record, json.dumps(content, indent=1).encode())


def is_finished(record: Path, recipe: list, out: Path) -> bool:
    """True if the record was written by this recipe and every file of it is still there in its full size."""
    try:
        state = json.loads(record.read_text())
        complete = all((out / entry["file"]).stat().st_size == entry["bytes"] for entry in state["files"])
    except (OSError, ValueError, KeyError):
        return False
    return complete and state["recipe"] == json.loads(json.dumps(recipe))


def write_manifest(out: Path) -> list[dict]:
    """Joins the packages' records into manifest.jsonl and rejected.jsonl; returns the entries of the former."""
    entries, rejected = [], []
    for record in sorted((out / "packages").glob("*.json")):
        state = json.loads(record.read_text())
        entries += state["files"]
        rejected += [{"package": record.stem.split("-", 1)[1], **entry} for entry in state["rejected"]]
    for name, lines in (("manifest.jsonl", entries), ("rejected.jsonl", rejected)):
        write_atomically(out / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return entries


def print_summary(entries: Sequence[dict], parts: Sequence[str]) -> None:
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for entry in entries:
        if entry["kind"] in parts:
            groups.setdefault((entry["kind"], entry["split"], entry["package"]), []).append(entry)
    totals: dict[tuple[str, str], list[float]] = {}
    for (kind, split, package), group in sorted(groups.items()):
        amount = sum(e["seconds"] / 3600 if kind == "audio" else e["width"] * e["height"] / 1e6 for e in group)
        unit = "h" if kind == "audio" else "megapixels"
        print(f"{kind:9} {split:10} {package:28} {len(group):4} files {amount:8.2f} {unit}")
        total = totals.setdefault((kind, split), [0, 0.0])
        total[0] += len(group)
        total[1] += amount
    for (kind, split), (count, amount) in totals.items():
        unit = "h" if kind == "audio" else "megapixels"
        print(f"{kind:9} {split:10} {'all':28} {count:4} files {amount:8.2f} {unit}")


if __name__ == "__main__":
    sys.exit(main())
