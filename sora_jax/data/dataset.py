"""Clips -> a dataset of clips -> a dataset of latents, both TFDS folders that are read by index.

    build("footage/", "clips/")                # encoded bytes as they were found, captions, sizes
    latents("clips/", "model/", "latents/")    # each clip through the VAE at its native size
    open_latents("latents/")[7]["z"]           # float32 [f h w c], nothing padded, nothing resized

Both may be killed and run again (`shards.py` says how), skip what cannot be read and list it in OUT/report.json, and
run on any Apache Beam runner: `beam=["project=p", "region=r"]` are that runner's own options. On this machine,
`beam=["direct_num_workers=8", "direct_running_mode=multi_processing"]` builds clips on eight cores.
"""

import functools
import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sora_jax import media
from sora_jax.data import captions as beside
from sora_jax.data import shards, sources, worlds
from sora_jax.data.fitting import fit, middle
from sora_jax.errors import InputError

if TYPE_CHECKING:
    from sora_jax.model import Model

ENDLESS = "the world has no end: say how many clips of it to take (--clips N)"
AHEAD = 4  # clips decoded while one is encoded


def build(
    src,
    out,
    *,
    captions=None,
    fps: float | None = None,
    max_frames: int | None = None,
    clips: int | None = None,
    seed: int = 0,
    scene: dict | None = None,
    shard_size: int | None = None,
    runner: str = "DirectRunner",
    beam: Sequence[str] = (),
) -> dict:
    """A folder of clips and images, what `curate` kept of one, a TFDS dataset ("tfds:NAME[:SPLIT][@DATA_DIR]") or the
    embedded "world", as a dataset of clips at `out`.

    captions: a .jsonl or .csv of `file` and `caption`; else a table of that kind in `src`, else sidecar .txt and .json.
    fps: files at another rate are resampled, and only then encoded anew; TFDS frames are taken to be at it (else at 8).
    max_frames, clips, seed, scene: of the world alone, as `latents` takes them.
    Features: media (bytes), caption, captions (JSON list, shortest first), name, width, height, frames, fps.

    Returns the report: {"out", "dataset", "records", "shards", "bytes", "skipped": [{"file", "reason"}]}.
    Raises InputError: no such folder, nothing readable in it, captions that cannot be read, `out` taken or full.
    """
    from_world = str(src) == "world"
    if captions is not None and (from_world or str(src).startswith("tfds:")):
        raise InputError(f"{src} brings its own captions: leave out {captions}")
    if from_world:
        if clips is None:
            raise InputError(ENDLESS)
        items, examples, made_from = sources.world(clips, seed, fps, max_frames, scene)
    elif clips is not None or max_frames is not None or scene:
        raise InputError(f"{src} is built whole: clips, max_frames and scene are of the embedded world")
    elif str(src).startswith("tfds:"):
        items, examples, made_from = sources.tfds(str(src)[5:], fps)
    elif sources.is_curated(src):
        if captions is not None:
            raise InputError(f"{src} brings the captions it was curated with: leave out {captions}")
        items, examples, made_from = sources.curated(src, fps)
    else:
        items, examples, made_from = sources.folder(src, captions, fps)
    parts = [items[part.start : part.stop] for part in shards.split(len(items), shard_size)]
    return shards.write(out, "clips", clip_features(), parts, examples, made_from, runner, beam)


def latents(
    dataset,
    model: "str | Path | Model",
    out,
    *,
    max_pixels: int | None = None,
    max_frames: int | None = None,
    fps: float | None = None,
    clips: int | None = None,
    seed: int = 0,
    scene: dict | None = None,
    square: bool = False,
    shard_size: int | None = None,
    runner: str = "DirectRunner",
    beam: Sequence[str] = (),
) -> dict:
    """The clips of a dataset that `build` made, or of the embedded "world", through the VAE of `model` into `out`.

    A clip keeps its native size: it is cropped by less than one cell of the VAE's grid (about the centre, and at its
    end). Only `max_pixels` (width * height) shrinks larger ones; `fps` resamples, `max_frames` keeps the beginning;
    `square` keeps the square in the middle alone, as models that know one size are trained: to compare with.
    clips, seed: how many to take; of the world, the scenes of seed, seed + 1, ... with what `scene` fixes of them
    (words of `worlds.FIXED`); a scene into whose frame that does not fit is skipped.
    A model whose transformer is given what is known beside the noise (Wan 2.2's I2V) has that behind each latent, for a
    mask of the curriculum that is drawn here for each clip (`diffusion.canvas.GIVEN`): known pixels are not in latents.
    Features: z (float16 [f h w c]), caption_short, caption_long, caption_original (the one the clip came with), name;
    width, height, frames, fps of what was encoded.

    Returns the report as `build` does, and "largest": [frames, height, width] of the largest clip's latents.
    Raises InputError: no such dataset or model, a word that the world does not know, `out` taken or full.
    """
    for name, value in {"max_pixels": max_pixels, "max_frames": max_frames, "clips": clips}.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    where, vae = _model_for(model, runner, beam)
    if str(dataset) == "world":
        if clips is None:
            raise InputError(ENDLESS)
        worlds.check(scene or {})  # said before anything is written
        start, load = seed, functools.partial(sources.rendered, fps, max_frames, scene or {})
        made_from = {"source": "world", "seed": seed} | ({"scene": scene} if scene else {})
    elif scene:
        raise InputError(f"scene {scene} is of the embedded world: {dataset} has the clips that it has")
    else:
        held = open_clips(dataset)
        start, clips = 0, min(len(held), clips or len(held))
        load = functools.partial(_from_clips, held, max_frames, fps, max_pixels, square)
        content = shards.digest([(held.path / name).read_text() for name in ("build.json", "report.json")])
        made_from = {"source": str(held.path), "content": content}
    made_from |= {"clips": clips, "model": _fingerprint(vae)}
    made_from |= {"max_pixels": max_pixels, "max_frames": max_frames, "fps": fps}
    made_from |= {"square": True} if square else {}  # said only then: what was begun before it could be asked goes on
    if beside := _given(vae):
        from sora_jax.diffusion import canvas

        made_from |= {"given": beside, "masks": list(canvas.GIVEN)}
    parts = [range(start + part.start, start + part.stop) for part in shards.split(clips, shard_size)]
    examples = functools.partial(_encoded, load, where, max_pixels, square)
    features = _latent_features(vae.vae.channels + beside)
    return shards.write(out, "latents", features, parts, examples, made_from, runner, beam, size=_sides)


def open_clips(path) -> shards.Records:
    """The clips at `path` by index: dicts of media (bytes for `media.decode`), caption (the one they came with),
    captions (list, shortest first), told (a `captions.Caption`, or None where no captioner has been), name, width,
    height, frames, fps.

    Raises InputError when it holds no finished dataset of clips.
    """
    return shards.Records(path, "clips", _read_clip)


def open_latents(*paths) -> shards.Records:
    """The latents of one folder, or of several one behind the other, by index: dicts of z (float32 [f h w c]),
    caption_short, caption_long, caption_original (the long one where none was kept), name, width, height, frames, fps.

    Raises InputError when one holds no finished dataset of latents.
    """
    first, *more = (shards.Records(path, "latents", _read_latent) for path in paths)
    return sum(more, first)


def captions_of(src, clips: int = 20_000, seed: int = 0) -> Iterator[str]:
    """All captions of a dataset, a folder of clips, a table or .txt of captions, "tfds:..." or "world" (`clips` seeds).

    Raises InputError when there is nothing at `src`, or no caption in it.
    """
    found = False
    for text in _captions(src, clips, seed):
        found = True
        yield text
    if not found:
        raise InputError(f"{src} has no captions")


# ------------------------------------------------------------------------------------------------ records


def clip_features():
    from tensorflow_datasets import features as f

    texts = dict.fromkeys(("caption", "captions", "name"), f.Text())
    numbers = dict.fromkeys(("width", "height", "frames"), np.int32)
    return f.FeaturesDict({"media": f.Scalar(np.object_), **texts, **numbers, "fps": np.float32})  # Scalar keeps bytes


def _latent_features(channels: int):
    from tensorflow_datasets import features as f

    z = f.Tensor(shape=(None, None, None, channels), dtype=np.float16, encoding="bytes")
    texts = dict.fromkeys(("caption_short", "caption_long", "caption_original", "name"), f.Text())
    numbers = dict.fromkeys(("width", "height", "frames"), np.int32)
    return f.FeaturesDict({"z": z, **texts, **numbers, "fps": np.float32})


def _read_clip(values: dict) -> dict:
    said = {key: values[key][0].decode() for key in ("caption", "captions", "name")}
    numbers = {key: values[key][0] for key in ("width", "height", "frames", "fps")}
    told = json.loads(said["captions"])  # a list of texts, or what a captioner told
    told = {"captions": told, "told": None} if isinstance(told, list) else {"told": beside.Caption(**told)}
    if told["told"]:
        told["captions"] = beside.distinct([told["told"].short, told["told"].long])
    return {"media": values["media"][0]} | said | told | numbers


def _read_latent(values: dict) -> dict:
    z = np.frombuffer(values["z/value"][0], np.float16).reshape(values["z/shape"]).astype(np.float32)
    said = {key: values[key][0].decode() for key in ("caption_short", "caption_long", "name")}
    original = values.get("caption_original", values["caption_long"])  # older datasets have none
    said["caption_original"] = original[0].decode()
    return {"z": z} | said | {key: values[key][0] for key in ("width", "height", "frames", "fps")}


def _sides(record: dict) -> tuple[int, ...]:
    return record["z"].shape[:3]


def _captions(src, clips: int, seed: int) -> Iterator[str]:
    path = Path(src).expanduser()
    if str(src) == "world":
        for n in range(seed, seed + clips):
            yield from worlds.captions(worlds.sample(n))
    elif str(src).startswith("tfds:"):
        yield from (text for said in sources.tfds_captions(str(src)[5:]) for text in said)
    elif sources.is_curated(path):
        yield from (text for line in sources.curated(path)[0] for text in line["captions"])
    elif (path / "build.json").exists() and json.loads((path / "build.json").read_text())["dataset"] == "latents":
        yield from (row[key] for row in open_latents(path) for key in ("caption_short", "caption_long") if row[key])
    elif (path / "build.json").exists():
        yield from (text for row in open_clips(path) for text in row["captions"])
    elif path.suffix.lower() == ".txt" and path.is_file():
        yield from beside.distinct(path.read_text().splitlines())
    elif path.is_file():
        yield from (text for said in beside.table(path, path.parent).values() for text in said)
    else:
        for name, told in sources.folder(path)[0]:
            yield from beside.sidecar(path / name) if told is None else told


# ------------------------------------------------------------------------------------------------ clips -> latents


_models: dict[str, "Model"] = {}  # in this process, by what `_model_for` calls them


def _model_for(model, runner: str, beam: Sequence[str]) -> "tuple[str, Model]":
    """(what workers know the model by, the model): its folder; or a name, for one that lives in this process only."""
    from sora_jax.model import find, load

    _models.clear()
    if isinstance(model, str | Path):
        where = str(find(model).expanduser().absolute())
        _models[where] = load(model)
    elif runner == "DirectRunner" and not beam:
        where = f"in memory {_fingerprint(model)}"
        _models[where] = model
    else:
        raise InputError("other processes cannot see a model that is in memory: save it, and give its folder")
    return where, _models[where]


def _model(where: str) -> "Model":
    """The model in a worker, which loads it for the first clip it meets."""
    if where not in _models:
        from sora_jax.model import load

        _models[where] = load(where)
    return _models[where]


def _fingerprint(model: "Model") -> str:
    from sora_jax.model import flat

    seen = hashlib.sha256(json.dumps(model.config["vae"], sort_keys=True).encode())
    for name, leaf in sorted(flat(model.params["vae"]).items()):
        seen.update(name.encode() + np.asarray(leaf, np.float32).tobytes())
    return seen.hexdigest()[:16]


def _from_clips(
    held: shards.Records, max_frames: int | None, fps: float | None, max_pixels: int | None, square: bool, index: int
) -> tuple[media.Video, list[str], str, str]:
    row = held[index]
    stream = itertools.islice(media.frames(row["media"], fps, name=row["name"]), max_frames)
    # Each shrinks before the next is decoded: of large footage many times the memory that what is left of it takes.
    each = (media.Video(frame[None]) for frame in stream)
    small = [fit(middle(one) if square else one, (1, 1, 1), max_pixels).frames for one in each]
    return media.Video(np.concatenate(small), fps or row["fps"]), row["captions"], row["caption"], row["name"]


def _encoded(
    load: Callable, where: str, max_pixels: int | None, square: bool, part: range, skipped: list
) -> Iterator[dict]:
    """The records of some clips, encoded one by one: a size compiles once, and any length is a stream of it."""
    model = _model(where)
    for index, loaded in _ahead(load, part):
        name = f"clip {index}"
        try:
            video, said, original, name = loaded.result()
            video = fit(middle(video) if square else video, model.grid, max_pixels)
            z = encoded(model, video, index).astype(np.float16)
            if not np.isfinite(z).all():
                raise InputError(f"{name}: its latents do not fit float16; is the VAE trained?")
        except Exception as error:
            skipped.append(shards.skip(name, error))
            continue
        yield {
            "z": z,
            "caption_short": said[0] if said else "",
            "caption_long": said[-1] if said else "",
            "caption_original": original,
            "name": name,
            "width": video.width,
            "height": video.height,
            "frames": len(video.frames),
            "fps": video.fps,
        }


def encoded(model: "Model", video: media.Video, seed: int) -> np.ndarray:
    """The latents [f h w c] of a clip of the VAE's grid; behind them what is given of them, if the model's transformer
    is given anything, for a mask drawn by the seed."""
    z = model.encode(video)
    if not _given(model):
        return z
    from sora_jax import drafts
    from sora_jax.diffusion import canvas

    known = canvas.drawn_mask(seed, z.shape[:3], model.dit.patch)
    return np.concatenate([z, drafts.given_of(model, video.frames, known)], -1)


def _given(model: "Model") -> int:
    """Channels that the model's transformer is given beside each latent's own."""
    return model.dit.given if "dit" in model.config else 0


def _ahead(load: Callable, items: Iterable) -> Iterator[tuple[object, Future]]:
    """(item, future of load(item)) in order, a few of them loading in threads while the caller is at work."""
    waiting: deque = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for item in items:
            waiting.append((item, pool.submit(load, item)))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting
