"""Clips and images on disk <-> `Video(frames uint8 [f h w 3], fps)`.

In: mp4 mov m4v webm mkv avi mpg ts, gif, png, jpg, webp, bmp, tiff. Out: mp4 mov m4v webm mkv avi; gif, webp and png
(animated when there are several frames); jpg. What happens on the way in (`reader.py`):

- pixels keep their stored number: nothing is resized, and non-square pixels are not stretched;
- a picture is on screen from its timestamp until the next one's. Frame k of the result is what is on screen at k / fps,
  `fps` being what you ask for, else the file's average rate (a clip of constant rate comes back frame for frame);
- rotation and mirroring (display matrix, EXIF) are applied, a clean aperture is cropped to;
- transparency is composited on **white**; grey, palette and 10-bit pixels become 8-bit RGB. HDR is not tone-mapped;
- untagged YUV is BT.709 from 720 rows up and BT.601 below, as players guess.

And on the way out (`writer.py`): H.264 4:2:0, BT.709, crf 18, index first, which every browser plays. 4:2:0 halves the
resolution of colour: .png is the exact one. It also has even sides only: an odd mp4/mov is stored with its last row or
column repeated and a clean aperture of the asked size (`boxes.py`), which `read` crops to; a player that ignores the
aperture shows the repeat. Odd webm is stored as it is (VP9 can), odd mkv and avi in 4:4:4.
"""

import base64
import html
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sora_jax.errors import InputError, local
from sora_jax.media.reader import Frame, checked_fps, frames_in, open_clip, resample, spans
from sora_jax.media.sheet import contact_sheet
from sora_jax.media.writer import Writer, is_still, save_image

__all__ = [
    "Gallery", "Video", "Writer", "contact_sheet", "decode", "encode", "frames", "is_still", "probe", "read", "write",
]  # fmt: skip


@dataclass(eq=False, repr=False)
class Video:
    """A clip in memory; an image is a clip of one frame.

    frames: uint8 [f h w 3], RGB. fps: frames per second. Raises InputError for anything else.
    """

    frames: UInt8[np.ndarray, "f h w 3"]
    fps: float = 1.0

    def __post_init__(self):
        self.frames = np.asarray(self.frames)
        if self.frames.dtype != np.uint8 or self.frames.shape[3:] != (3,) or not self.frames.size:
            got = f"{self.frames.dtype} {list(self.frames.shape)}"
            raise InputError(f"a video is a non-empty uint8 array [frames height width 3], not {got}")
        self.fps = checked_fps(self.fps)

    @property
    def height(self) -> int:
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        return self.frames.shape[2]

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps

    def save(self, path: str | Path) -> Path:
        """Writes the clip, its kind chosen by the suffix; see `write`."""
        return write(self, path)

    def __repr__(self) -> str:
        return f"Video({len(self.frames)} frames, {self.width}x{self.height}, {self.fps:g} fps)"

    def _repr_html_(self) -> str:
        """What a notebook shows: the clip itself, inside the page; a small one magnified by a whole number."""
        data = base64.b64encode(encode(self)).decode()
        shown = self.width * max(1, 256 // max(self.width, self.height))
        style = f'width="{shown}" style="max-width:100%;image-rendering:pixelated"'
        if len(self.frames) == 1:
            return f'<img {style} src="data:image/png;base64,{data}">'
        return f'<video {style} autoplay loop muted playsinline controls src="data:video/mp4;base64,{data}"></video>'


@dataclass(eq=False)
class Gallery:
    """Clips side by side in a notebook, each playing, its caption under it. Raises InputError: not one for each."""

    videos: Sequence[Video]
    captions: Sequence[str] | None = None

    def __post_init__(self):
        self.captions = [""] * len(self.videos) if self.captions is None else list(self.captions)
        if len(self.captions) != len(self.videos):
            raise InputError(f"a gallery of {len(self.videos)} videos needs as many captions, not {len(self.captions)}")

    def _repr_html_(self) -> str:
        figures = (
            f'<figure style="margin:4px">{video._repr_html_()}<figcaption>{html.escape(caption)}</figcaption></figure>'
            for video, caption in zip(self.videos, self.captions)
        )
        return f'<div style="display:flex;flex-wrap:wrap;align-items:flex-end">{"".join(figures)}</div>'


def read(path: str | Path, fps: float | None = None, max_frames: int | None = None, start: float = 0.0) -> Video:
    """The clip or image at `path`, resampled by timestamps to `fps` (None: its own average rate).

    From `start` seconds on (mp4, mov, mkv and webm are not decoded from their beginning for it), at most `max_frames`.
    A clip longer than memory: `frames`. An image's rate is `fps`, or 1.
    Raises InputError naming the file: missing, empty, cut short, damaged, sound only, not media.
    """
    return _read(Path(path), str(path), fps, max_frames, start)


def decode(
    data: bytes,
    fps: float | None = None,
    max_frames: int | None = None,
    start: float = 0.0,
    name: str = "the clip",
) -> Video:
    """`read` of a file's bytes; `name` is how errors call it."""
    return _read(bytes(data), name, fps, max_frames, start)


def frames(
    source: str | Path | bytes,
    fps: float | None = None,
    start: float = 0.0,
    within: int | None = None,
    strict: bool = False,
    name: str | None = None,
) -> Iterator[Frame]:
    """`read`, or of bytes `decode`, one uint8 [h w 3] at a time, in flat memory. A held frame is given again: copy
    before you change it.

    within: frames with a longer side than this come shrunk to it (by area, fast: for looking at, not for training on).
    strict: damage that a decoder could hide (it repeats what was there before) is an error, too. name: how errors call
    it, else by its path.
    """
    inside = isinstance(source, bytes)
    name = name or ("the clip" if inside else str(source))
    clip = open_clip(source if inside else Path(source), name, start, within, strict)
    yield from resample(clip, checked_fps(clip.rate if fps is None else fps), name, start)


def probe(path: str | Path, fps: float | None = None) -> dict:
    """{width, height, frames, fps, seconds, kind} of what `read(path, fps)` gives; kind is "video" or "image".

    Decodes one picture of a video. Raises InputError as `read` does, except for damage further on.
    """
    name = str(path)
    clip = open_clip(Path(path), name)
    fps = checked_fps(clip.rate if fps is None else fps)
    height, width = next(resample(clip, fps, name)).shape[:2]
    times = spans(Path(path), open_clip(Path(path), name), name)
    count = frames_in(max(start + seconds for start, seconds in times) - min(start for start, _ in times), fps)
    return {"width": width, "height": height, "frames": count, "fps": fps, "seconds": count / fps, "kind": clip.kind}


def write(video: Video, path: str | Path, comment: str = "") -> Path:
    """Writes `video` under the name `path`, all or nothing; the suffix says how.

    One frame to png (exact), jpg, webp or gif is an image; several to png (exact), webp or gif an animation; the rest
    is video. WebP joins repeated frames. `comment`: a text that stays in the file, where its kind keeps one (mp4, m4v,
    mov, mkv, webm; an image as png or jpg). Raises InputError: another suffix, several frames to jpg, a gif above 50
    fps.
    """
    path = local(path)
    if len(video.frames) == 1 and is_still(path):
        return save_image(Image.fromarray(video.frames[0]), path, comment)
    with Writer(path, video.width, video.height, video.fps, comment) as writer:
        writer.write(video.frames)
    return path


def encode(video: Video) -> bytes:
    """The clip as bytes: mp4, or png for one frame."""
    suffix = ".png" if len(video.frames) == 1 else ".mp4"
    with tempfile.TemporaryDirectory() as folder:  # an index at the front needs a file that can be opened again
        return write(video, Path(folder) / f"clip{suffix}").read_bytes()


def _read(source: Path | bytes, name: str, fps: float | None, max_frames: int | None, start: float) -> Video:
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames must be at least 1, not {max_frames}")
    if not 0 <= start < float("inf"):
        raise InputError(f"start must be 0 seconds or more, not {start!r}")
    clip = open_clip(source, name, start)
    fps = checked_fps(clip.rate if fps is None else fps)
    return Video(np.stack(list(islice(resample(clip, fps, name, start), max_frames))), fps)
