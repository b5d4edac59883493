"""Clips as a captioner sees them: pixels in [-1, 1], thinned to a few frames, with their captions.

Motion spans a clip, so that a few frames spread over it tell what moved where; a captioner of any size reads clips of
any length so. The records are those of `pipeline.latents` (z and caption_*), z being pixels: what packs latents packs
these.
"""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from jaxtyping import Float, Int, UInt8

from sora_jax import media
from sora_jax.data import dataset, worlds
from sora_jax.data.fitting import fit
from sora_jax.errors import InputError

MARK = ": "  # between what is asked for and the caption: "long: a red circle moves right"


def thinned(frames: UInt8[np.ndarray, "f h w 3"], most: int) -> UInt8[np.ndarray, "f2 h w 3"]:
    """At most so many frames, spread evenly from the first to the last."""
    return frames[spread(len(frames), most)]


def spread(count: int, most: int) -> Int[np.ndarray, "n"]:
    """Which of so many frames those are."""
    return np.round(np.linspace(0, count - 1, min(count, most))).astype(int)


def glance(row: dict, most: int, max_pixels: int = 0) -> media.Video:
    """Of a clip of a dataset only what `seen` needs of it: an hour of it takes no more memory than a second. Its rate
    is that of what is left, from the first frame to the last."""
    wanted = set(spread(row["frames"], most).tolist())
    frames = [x for n, x in enumerate(media.frames(row["media"], name=row["name"])) if n in wanted]
    fps = row["fps"] * max(len(frames) - 1, 1) / max(row["frames"] - 1, 1)
    return fit(media.Video(np.stack(frames), fps), (1, 1, 1), max_pixels or None)


def seen(video: media.Video, most: int, max_pixels: int) -> Float[np.ndarray, "f h w 3"]:
    """What a captioner sees of a clip: `most` frames of at most `max_pixels` pixels (0: of any), in [-1, 1]."""
    video = fit(media.Video(thinned(video.frames, most), video.fps), (1, 1, 1), max_pixels or None)
    return video.frames.astype(np.float32) / 127.5 - 1.0


class World(Sequence):
    """The scenes of the embedded world from seed `first` on, `count` of them; the share `images` shows one frame."""

    def __init__(self, frames: int, images: float, first: int = 0, count: int = worlds.HELD_OUT):
        self.frames, self.images, self.first, self.count = frames, images, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.count:
            raise IndexError(index)
        seed = self.first + index
        # As thinned: motions span a clip whatever its length, so that 9 frames of 33 are those of a scene of 9.
        image = np.random.default_rng((seed, 2)).random() < self.images
        scene = worlds.sample(seed, frames=1 if image else self.frames)
        return record(worlds.render(scene).astype(np.float32) / 127.5 - 1.0, *worlds.captions(scene))


class Clips(Sequence):
    """The clips of a dataset that `data build` or `caption` made, as `record`s; one that has no caption, or is damaged,
    leaves its place to the next. Raises InputError, when read, where all are so."""

    def __init__(self, path, frames: int, max_pixels: int):
        self.held, self.frames, self.max_pixels = dataset.open_clips(path), frames, max_pixels

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, index: int) -> dict:
        for k in range(len(self.held)):
            row = self.held[(index + k) % len(self.held)]
            if row["captions"]:
                with suppress(InputError):  # damage in a clip's middle shows only here
                    video = glance(row, self.frames, self.max_pixels)
                    return record(seen(video, self.frames, self.max_pixels), row["captions"][0], row["captions"][-1])
        raise InputError(f"no clip of {self.held.path} has a caption to learn from, and can be read")


def record(z: Float[np.ndarray, "f h w 3"], short: str, long: str) -> dict:
    """z, and the captions behind what is asked for."""
    return {"z": z, "caption_short": f"short{MARK}{short}", "caption_long": f"long{MARK}{long}"}
