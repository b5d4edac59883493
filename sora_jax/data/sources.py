"""Where clips come from: a folder of files, what curation kept of one, somebody's TFDS dataset, or the embedded world.

A source is (items, examples, made_from): items to be dealt to the shards, `examples(part, skipped)` that yields their
records, and what tells this source from another (see `shards.write`). A record is one clip: its bytes as they were
found, its captions, its size.
"""

import functools
import itertools
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sora_jax import media
from sora_jax.data import captions, shards, worlds
from sora_jax.errors import InputError

VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ts", ".gif")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FPS = 8.0  # of what does not say its own: frames of a TFDS dataset

Source = tuple[Sequence, "functools.partial[Iterator[dict]]", dict]


def clip(data: bytes, said: list[str], name: str, facts: dict) -> dict:
    """One record. `caption` is the first that was given; `captions` all of them, from the shortest to the longest."""
    return {
        "media": data,
        "caption": said[0] if said else "",
        "captions": json.dumps(sorted(said, key=len), ensure_ascii=False),
        "name": name,
        **{key: int(facts[key]) for key in ("width", "height", "frames")},
        "fps": float(facts["fps"]),
    }


# ------------------------------------------------------------------------------------------------ a folder of files


def folder(src, table=None, fps: float | None = None) -> Source:
    """The clips and images anywhere under `src`, with their captions.

    Raises InputError when there is no such folder, nothing to read in it, or a table of captions that cannot be read.
    """
    root = Path(src).expanduser().absolute()
    if not root.is_dir():
        what = "is a file, not a folder of clips" if root.exists() else "does not exist"
        raise InputError(f"{src} {what}: name a folder of clips and images, or a TFDS dataset as tfds:NAME")
    files = sorted(_files(root))
    names = [name for name in files if name.lower().endswith(VIDEOS + IMAGES)]
    if not names:
        inside = f"only other files, such as {files[0]}" if files else "nothing"
        raise InputError(f"{src} holds {inside}: no clip or image ({' '.join(VIDEOS + IMAGES)})")
    told = _table(root, table, names)
    items = [(name, told.get(name)) for name in names]
    stems = {os.path.splitext(name)[0] for name in names}
    beside = [name for name in files if name.endswith((".txt", ".json")) and os.path.splitext(name)[0] in stems]
    content = [(name, (root / name).stat().st_size) for name in names + beside]
    made_from = {"source": str(root), "files": len(names), "content": shards.digest([content, told]), "fps": fps}
    return items, functools.partial(_read_files, root, fps), made_from


def _files(root: Path) -> Iterator[str]:
    for here, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((Path(here) / name).relative_to(root).as_posix() for name in files if not name.startswith("."))


def _table(root: Path, path, names: list[str]) -> dict[str, list[str]]:
    if path is None:
        path = next((root / name for name in captions.TABLES if (root / name).is_file()), None)
        if path is None:
            return {}
        print(f"captions from {path}", file=sys.stderr)
    told = captions.table(Path(path).expanduser(), root)
    strangers = sorted(set(told) - set(names))
    if len(strangers) == len(told):
        raise InputError(f"{path} names no file of {root}: it names {strangers[0]}, where there is {names[0]}")
    if strangers:
        print(f"{path} names {len(strangers)} files that are not there, such as {strangers[0]}", file=sys.stderr)
    return told


def _read_files(root: Path, fps: float | None, part: Sequence, skipped: list) -> Iterator[dict]:
    for name, told in part:
        path = root / name
        try:
            facts = media.probe(path)
            said = captions.sidecar(path) if told is None else told
            data = path.read_bytes()
            if fps and facts["kind"] == "video" and abs(facts["fps"] - fps) > 1e-3:
                video = media.read(path, fps=fps)
                data, facts = media.encode(video), _facts(video)
        except Exception as error:
            skipped.append(shards.skip(name, error))
            continue
        yield clip(data, said, name, facts)


def _facts(video: media.Video) -> dict:
    return {"width": video.width, "height": video.height, "frames": len(video.frames), "fps": video.fps}


# ------------------------------------------------------------------------------------------------ what was curated

APART = 10.0  # seconds between two clips of a file from which on it is opened anew instead of read on


def is_curated(src) -> bool:
    """Whether `sora-jax data curate` made the folder `src`, or began to."""
    marker = Path(src).expanduser() / "build.json"
    return marker.is_file() and json.loads(marker.read_text())["dataset"] == "shots"


def curated(src, fps: float | None = None) -> Source:
    """The clips that `curate` listed in the folder `src`, out of the footage they lie in.

    Raises InputError when the curation is not finished, or the footage is no longer where it was.
    """
    held = Path(src).expanduser().absolute()
    if not (held / "clips.jsonl").is_file():
        raise InputError(f"{src} is not finished: run the `data curate` that began it once more")
    root = Path(json.loads((held / "build.json").read_text())["source"])
    if not root.is_dir():
        raise InputError(f"the footage that {src} lists is no longer at {root}: put it back")
    listed = (held / "clips.jsonl").read_text()
    clips = [json.loads(line) for line in listed.splitlines()]
    made_from = {"source": str(held), "files": len(clips), "content": shards.digest(listed), "fps": fps}
    return clips, functools.partial(_read_listed, root, fps), made_from


def _read_listed(root: Path, fps: float | None, part: Sequence, skipped: list) -> Iterator[dict]:
    for file, some in itertools.groupby(part, key=lambda line: line["file"]):
        frames, at = None, 0  # the footage where we are in it, and that frame's number
        for line in some:
            whole = line["frames"] == line["total"] and line["crop"] == [0, 0, *line["size"]]
            asked = None if line["total"] == 1 else fps  # a photograph has no rate: it would become a still clip
            rate = asked or line["fps"]
            # The moments k / rate from the clip's first frame on, to its end. (Rates in the list are rounded.)
            first = math.ceil(line["first"] * rate / line["fps"] - 0.1)
            end = max(first + 1, math.ceil((line["first"] + line["frames"]) * rate / line["fps"] - 0.1))
            try:
                if whole and abs(rate - line["fps"]) < 1e-3:
                    data = (root / file).read_bytes()
                    facts = dict(zip(("width", "height"), line["size"])) | {"frames": line["frames"], "fps": rate}
                else:
                    if frames is None or first < at or first - at > APART * rate:
                        frames, at = media.frames(root / file, asked, start=first / rate), first
                    data, facts = _cut(frames, range(first - at, end - at), line["crop"], rate)
                    at = end
            except Exception as error:
                skipped.append(shards.skip(line["name"], error))
                frames = None
                continue
            yield clip(data, line["captions"], line["name"], facts)


def _cut(frames: Iterator, wanted: range, crop: list[int], fps: float) -> tuple[bytes, dict]:
    """Some frames of a stream, cropped to [x, y, width, height], as (mp4, its facts); flat memory."""
    x, y, width, height = crop
    suffix = ".png" if len(wanted) == 1 else ".mp4"
    with tempfile.TemporaryDirectory() as folder:
        with media.Writer(Path(folder) / f"clip{suffix}", width, height, fps) as writer:
            for frame in itertools.islice(frames, wanted.start, wanted.stop):
                writer.write(frame[y : y + height, x : x + width])
        if writer.count != len(wanted):
            raise InputError(f"the footage ends after {writer.count} of {len(wanted)} frames: curate it again")
        return writer.path.read_bytes(), {"width": width, "height": height, "frames": writer.count, "fps": writer.fps}


# ------------------------------------------------------------------------------------------------ a TFDS dataset


def tfds(spec: str, fps: float | None = None) -> Source:
    """The examples of `NAME[:SPLIT][@DATA_DIR]`, or of a prepared dataset's own folder, as clips.

    Its first video, else its first image feature is encoded (TFDS keeps frames, not files); frames that do not say
    their rate are taken to be at `fps`, else 8. Raises InputError where there is no such dataset, split or feature.
    """
    _open.cache_clear()  # the dataset may have been prepared anew since
    builder, _, start, stop = _open(spec)
    if _features(builder)[0] is None:
        raise InputError(f"tfds:{spec} has no video or image among its features: {', '.join(builder.info.features)}")
    made_from = {"source": f"tfds:{spec}", "version": str(builder.info.version), "clips": stop - start, "fps": fps}
    return range(start, stop), functools.partial(_read_examples, spec, fps), made_from


def tfds_captions(spec: str) -> Iterator[list[str]]:
    """The captions of each example of a TFDS dataset."""
    _, _, start, stop = _open(spec)
    for example in _examples(spec, range(start, stop), media_too=False):
        yield example[1]


@functools.cache
def _open(spec: str):
    """(builder, split, first, last + 1) of a prepared dataset."""
    import tensorflow_datasets as tfds

    name, _, data_dir = spec.partition("@")
    name, _, split = name.partition(":") if not Path(name).is_dir() else (name, "", "")
    if re.match(r"(\d+|\*)\.", split):  # NAME:1.0.0[:SPLIT]
        version, _, split = split.partition(":")
        name = f"{name}:{version}"
    split = split or "train"
    how_to = f"prepare it with `tfds build {name}`, and say where it is with tfds:{name}@DATA_DIR"
    try:
        if (Path(name) / "dataset_info.json").exists():
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(name, data_dir=str(Path(data_dir).expanduser()) if data_dir else None, try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        said = str(error).strip().split("\n")[0]
        raise InputError(f"TFDS knows no dataset {name!r} ({said}): {how_to}") from error
    if not builder.info.splits:
        raise InputError(f"the TFDS dataset {name!r} is not in {builder.data_dir}: {how_to}")
    try:
        slices = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
    except (ValueError, AssertionError) as error:
        raise InputError(f"{name} has no split {split!r}: it has {', '.join(builder.info.splits)}") from error
    if len(slices) != 1:
        raise InputError(f"{split!r} is more than one split: build them one by one")
    count = builder.info.splits[slices[0].splitname].num_examples
    start, stop = slices[0].from_ or 0, count if slices[0].to is None else slices[0].to
    return builder, slices[0].splitname, start, stop


def _features(builder) -> tuple[tuple | None, tuple | None]:
    """(path of the video or image, path of the captions) in a dataset's nested features."""
    import tensorflow_datasets as tfds

    features = tfds.features
    flat = list(_flat(builder.info.features, ()))
    videos = [path for path, f in flat if isinstance(f, features.Video)]
    images = [path for path, f in flat if isinstance(f, features.Image) and f.dtype == np.uint8]
    named = "caption", "text", "description", "prompt", "title", "sentence"
    words = [path for path, f in flat if isinstance(f, features.Text)]
    words = [path for name in named for path in words if name in "/".join(path).lower()]
    words += [path for path, f in flat if isinstance(f, features.ClassLabel) and path[-1] == "label"]
    return next(iter(videos + images), None), next(iter(words), None)


def _flat(feature, path: tuple) -> Iterator[tuple[tuple, object]]:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        for key, inner in feature.items():
            yield from _flat(inner, (*path, key))
    elif isinstance(feature, tfds.features.Sequence) and not isinstance(feature, tfds.features.Video):
        inner = list(_flat(feature.feature, path))
        yield from ((p, f) for p, f in inner if isinstance(f, tfds.features.Text))  # several captions of one clip
    else:
        yield path, feature


def _examples(spec: str, part: range, media_too: bool = True) -> Iterator[tuple[np.ndarray | None, list[str], int]]:
    """(frames uint8 [f h w 3], captions, index) of some examples; only the features that are needed are decoded."""
    import tensorflow_datasets as tfds

    builder, split, _, _ = _open(spec)
    picture, words = _features(builder)
    label = dict(_flat(builder.info.features, ())).get(words)
    needed = [path for path in (picture if media_too else None, words) if path]
    if not needed:
        return
    if builder.info.file_format in tfds.core.FileFormat.with_random_access():
        whole = builder.as_data_source(split=split)
        rows = (whole[index] for index in part)
    else:
        tree: dict = {}
        for path in needed:
            node = tree
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = True
        exactly = tfds.core.ReadInstruction(split, from_=part.start, to=part.stop, unit="abs")
        read = builder.as_dataset(split=exactly, decoders=tfds.decode.PartialDecoding(tree), shuffle_files=False)
        rows = iter(tfds.as_numpy(read))
    for index, row in zip(part, rows, strict=True):
        said = _at(row, words) if words else []
        said = [label.int2str(int(said)).replace("_", " ")] if hasattr(label, "int2str") else _strings(said)
        yield _rgb(_at(row, picture)) if media_too else None, captions.distinct(said), index


def _at(row: dict, path: tuple):
    return functools.reduce(lambda node, key: node[key], path, row)


def _strings(value) -> list[str]:
    if isinstance(value, bytes):
        return [value.decode("utf-8", "replace")]
    return [value] if isinstance(value, str) else [text for inner in value for text in _strings(inner)]


def _rgb(picture) -> np.ndarray:
    """An image or the frames of a video, grey or with alpha, as uint8 [f h w 3]."""
    frames = np.asarray(picture)
    frames = frames[None] if frames.ndim == 3 else frames
    return np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames[..., :3]


def _read_examples(spec: str, fps: float | None, part: range, skipped: list) -> Iterator[dict]:
    for frames, said, index in _examples(spec, part):
        name = f"{spec}/{index}"
        try:
            video = media.Video(np.ascontiguousarray(frames), fps or FPS)
            data = media.encode(video)
        except Exception as error:
            skipped.append(shards.skip(name, error))
            continue
        yield clip(data, said, name, _facts(video))


# ------------------------------------------------------------------------------------------------ the embedded world


def world(clips: int, seed: int = 0, fps: float | None = None, max_frames: int | None = None, scene=None) -> Source:
    """The scenes of seed, seed + 1, ... as files would hold them: PNG and H.264; `scene`: see `worlds.FIXED`.

    Raises InputError for a word that the world does not know.
    """
    scene = scene or {}
    worlds.check(scene)
    made_from = {"source": "world", "seed": seed, "clips": clips, "fps": fps, "max_frames": max_frames, "scene": scene}
    return range(seed, seed + clips), functools.partial(_read_scenes, fps, max_frames, scene), made_from


def _read_scenes(fps: float | None, max_frames: int | None, fixed: dict, part: range, skipped: list) -> Iterator[dict]:
    for seed in part:
        try:
            video, said, _, name = rendered(fps, max_frames, fixed, seed)
        except InputError as error:
            skipped.append(shards.skip(f"world/{seed}", error))
            continue
        yield clip(media.encode(video), said, name, _facts(video))


def rendered(
    fps: float | None, max_frames: int | None, fixed: dict, seed: int
) -> tuple[media.Video, list[str], str, str]:
    """(the clip of a seed's scene, its captions from short to long, the one it counts as coming with, its name)."""
    scene = worlds.sample(seed, **({} if fps is None else {"fps": fps}), **fixed)
    short, long = worlds.captions(scene)
    return media.Video(worlds.render(scene)[:max_frames], scene.fps), [short, long], long, f"world/{seed}"
