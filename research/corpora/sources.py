"""The free Debian packages behind the training corpora, and what counts as good material.

Read by `research.corpora.prepare`. Patterns are matched against paths in the unpacked package (or an archive in it),
with `*` crossing slashes as in `fnmatch`. Licences are what the copyright files of the packages say, in short; where
one of these names a licence for a single file, that licence goes into the manifest instead.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Source:
    """One package.

    package: its name in Debian 12; patterns, exclude: which files to take; licence: in short.
    archive: how the material is packed: "" (plain files), "zip", "webp" (all WebP streams inside, Qt resources) or
        "jpeg" (the largest JPEG stream inside, Enlightenment themes).
    member: for a zip, which of its members to take.
    halve: downscale by two, because the files are strongly compressed or upscaled.
    validation: kept apart from training (audio).
    """

    package: str
    patterns: tuple[str, ...]
    licence: str
    exclude: tuple[str, ...] = ()
    archive: str = ""
    member: str = "*"
    halve: bool = False
    validation: bool = False


# Where a package mixes photographs with drawings, the photographs are listed by name.
LXQT_PHOTOS = (
    "Butterfly-Kenneth-Wimer.jpg",
    "Valendas.png",
    "after-the-rain.jpg",
    "appleflower.png",
    "beam.png",
    "butterfly.png",
    "cloud.png",
    "drop.png",
    "flowers.png",
    "fog.jpg",
    "this-is-not-windows.jpg",
)
PLASMA_PHOTOS = (
    "BytheWater",
    "ColdRipple",
    "ColorfulCups",
    "DarkestHour",
    "EveningGlow",
    "FallenLeaf",
    "Grey",
    "Kite",
    "OneStandsOut",
    "Path",
    "summer_1am",
)

IMAGES = (
    Source("endless-sky-high-dpi", ("*/images/land/*@2x.jpg",), "CC-BY-SA-4.0"),
    Source("krank", ("*/unera-backgrounds/*.jpg",), "public-domain"),
    Source(
        "gcompris-qt-data",
        ("*/rcc/erase.rcc", "*/rcc/explore_*.rcc", "*/rcc/clickgame.rcc"),
        "GPL-3+ (mostly)",
        archive="webp",
        halve=True,
    ),
    Source("lomiri-wallpapers-16.04", ("*.jpg",), "CC-BY/CC-BY-SA/CC0", ("*/umang_*", "*/analogpattern_*"), halve=True),
    Source("lomiri-wallpapers-20.04", ("*/Kleiber_*.jpg",), "CC-BY/CC-BY-SA/CC0", halve=True),
    Source(
        "lxqt-themes",
        tuple(f"*/wallpapers/{name}" for name in LXQT_PHOTOS),
        "LGPL-2.1+",
    ),
    Source(
        "plasma-workspace-wallpapers",
        tuple(f"*/wallpapers/{name}/contents/images/*" for name in PLASMA_PHOTOS),
        "GPL-2+",
        halve=True,
    ),
    Source("mate-backgrounds", ("*/mate/nature/*.jpg",), "GPL-2+", halve=True),
    Source(
        "enlightenment-data",
        ("*/backgrounds/*.edj",),
        "BSD-2-clause",
        tuple(f"*/{name}.edj" for name in ("Dunes", "Flat-*", "Squiggle*", "Paper-Flower", "Sunset-Hills")),
        archive="jpeg",
    ),
    Source("tuxpaint-data", ("*/tuxpaint/templates/*.jpg",), "GPL-2+"),
    Source("libelementary-data", ("*/elementary/images/*.jpg",), "LGPL-2.1+"),
    Source("palapeli-data", ("*/palapeli/collection/*.jpg",), "GPL-2+"),
    Source("plasma-workspace-data", ("*/avatars/photos/*.png",), "CC0-1.0"),
    Source("libjxl-testdata", ("*/flower/flower.png", "*/500px/*_srgb8.png"), "BSD-3-clause/CC0-1.0"),
)

# Left out on purpose, as material for final tests that nothing was tuned on: hyperrogue-music, widelands-data and the
# fretsonfire-songs-* packages. supertux and supertuxkart, megaglest and wesnoth share composers or tracks: never put
# two of such a group on two sides of a split.
AUDIO = (
    Source("wesnoth-1.16-music", ("*/music/*.ogg",), "GPL-2+"),
    Source("ufoai-music", ("*.pk3",), "GPL-2+/CC-BY-SA-3.0/CC-BY-3.0", archive="zip", member="music/*.ogg"),
    Source("naev-data", ("*/snd/music/*.ogg",), "GPL-3+/CC-BY-SA"),
    Source("hedgewars-data", ("*/Data/Music/*.ogg",), "GPL-2"),
    Source("nexuiz-music", ("*.pk3",), "GPL-2+", archive="zip", member="sound/cdtracks/*.ogg"),
    Source("supertux-data", ("*/supertux2/music/*.ogg",), "GPL-2+/CC-BY-SA"),
    Source("colobot-common-sounds", ("*/colobot/music/*.ogg",), "GPL-3+"),
    Source("0ad-data", ("*/public.zip",), "CC-BY-SA-3.0", archive="zip", member="audio/music/*.ogg"),
    Source("marsshooter-data", ("*/audio/music/*.ogg",), "CC-BY-SA-3.0", validation=True),
    Source("pushover-data", ("*/themes/*.ogg",), "GPL-3+", validation=True),
    Source("openclonk-data", ("*/Music.ocg/*.ogg",), "CC-BY/CC0", validation=True),
)

# TrueType and OpenType fonts for the document pages: sans, serif, typewriter, handwriting-like, several scripts.
FONTS = (
    Source("fonts-dejavu-core", ("*.ttf",), "Bitstream-Vera"),
    Source("fonts-liberation", ("*.ttf",), "OFL-1.1"),
    Source("fonts-freefont-ttf", ("*.ttf",), "GPL-3+ with font exception"),
    Source("fonts-linuxlibertine", ("*.otf",), "OFL-1.1/GPL-2+ with font exception", ("*Keyboard*", "*Initials*")),
    Source("fonts-roboto-unhinted", ("*.ttf",), "Apache-2.0"),
    Source("fonts-courier-prime", ("*.ttf", "*.otf"), "OFL-1.1"),
    Source("fonts-comic-neue", ("*.ttf", "*.otf"), "OFL-1.1"),
    Source("fonts-ebgaramond", ("*.otf", "*.ttf"), "OFL-1.1", ("*Initials*",)),
    Source("fonts-inconsolata", ("*.otf", "*.ttf"), "OFL-1.1"),
)
