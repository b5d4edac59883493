"""Frames -> a file, all or nothing: video and animations by PyAV (FFmpeg), single images by Pillow."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sora_jax.errors import InputError, local
from sora_jax.media.boxes import add_clean_aperture
from sora_jax.media.reader import EXACT, checked_fps, reason

# suffix: container, encoder, stored pixels
_MOVING = {
    ".mp4": ("mp4", "libx264", "yuv420p"),
    ".m4v": ("mp4", "libx264", "yuv420p"),
    ".mov": ("mov", "libx264", "yuv420p"),
    ".mkv": ("matroska", "libx264", "yuv420p"),
    ".avi": ("avi", "libx264", "yuv420p"),
    ".webm": ("webm", "libvpx-vp9", "yuv420p"),
    ".webp": ("webp", "libwebp_anim", "bgra"),
    ".gif": ("gif", "gif", "pal8"),
    ".png": ("apng", "apng", "rgb24"),
}
_STILL = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF"}
_ENCODER = {
    # mbtree: its macroblock tree reads what small frames leave unwritten, and the bytes would differ from run to run
    "libx264": {"crf": "18", "preset": "medium", "x264-params": "mbtree=0"},
    "libvpx-vp9": {"crf": "24", "b": "0", "cpu-used": "4", "row-mt": "1"},
    "libwebp_anim": {"quality": "92"},
}
_FAST = {"movflags": "+faststart"}  # the index first: a browser starts before the whole file is there
_MUXER = {"mp4": _FAST, "mov": _FAST, "apng": {"plays": "0"}, "webp": {"loop": "0"}}  # 0: for ever


class Writer:
    """Writes a clip piece by piece in flat memory: `with Writer("a.mp4", 640, 360, 24) as w: w.write(frames)`.

    Until the block ends without an error nothing stands under the target's name; then the whole file does. `comment`: a
    text that is kept in the file, where its kind can (all but .gif, .webp, .png and .avi).
    Raises InputError: a suffix it cannot write, frames of another size, no frames at all, a full disk.
    """

    def __init__(self, path: str | Path, width: int, height: int, fps: float, comment: str = ""):
        self.path, self.width, self.height = local(path), int(width), int(height)
        self.fps, self.count, self.comment = checked_fps(fps), 0, comment
        suffix = self.path.suffix.lower()
        if suffix in (".jpg", ".jpeg"):
            raise InputError(f"{path}: a .jpg holds one frame; save several as .mp4, .webm, .gif, .webp or .png")
        if suffix not in _MOVING:
            raise InputError(f"{path}: cannot write '{suffix}'; use one of {' '.join(_MOVING | _STILL)}")
        if suffix == ".gif" and self.fps > 50:
            raise InputError(f"{path}: a .gif runs at 50 frames per second at most, not {self.fps:g}; save it as .mp4")
        self._format, self._codec, self._pixels = _MOVING[suffix]
        odd = self._codec == "libx264" and (self.width % 2 or self.height % 2)
        self._aperture = bool(odd) and self._format in ("mp4", "mov")
        if odd and not self._aperture:
            self._pixels = "yuv444p"  # mkv and avi say no aperture; browsers play neither anyway
        self._stored = (self.width + self.width % 2, self.height + self.height % 2)
        if not self._aperture:
            self._stored = (self.width, self.height)

    def __enter__(self) -> "Writer":
        self._session = self._run()
        return self._session.__enter__()

    def __exit__(self, kind, error, trace) -> bool | None:
        return self._session.__exit__(kind, error, trace)

    def write(self, frames: UInt8[np.ndarray, "f h w 3"] | UInt8[np.ndarray, "h w 3"]) -> None:
        """Appends frames uint8 [f h w 3], or one [h w 3]."""
        frames = np.asarray(frames)
        frames = frames[None] if frames.ndim == 3 else frames
        if frames.dtype != np.uint8 or frames.shape[1:] != (self.height, self.width, 3):
            want = f"uint8 [f {self.height} {self.width} 3]"
            raise InputError(f"{self.path}: frames must be {want}, not {frames.dtype} {list(frames.shape)}")
        right, down = self._stored[0] - self.width, self._stored[1] - self.height
        for frame in frames:
            frame = np.ascontiguousarray(np.pad(frame, ((0, down), (0, right), (0, 0)), mode="edge"))
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = self.count, 1 / self._rate
            self._graph.push(picture)
            self._mux(self._graph.pull())
            self.count += 1

    @contextmanager
    def _run(self) -> Iterator["Writer"]:
        with _replacing(self.path) as part:
            self._open(part)
            try:
                yield self
                if not self.count:
                    raise InputError(f"{self.path}: no frames were written")
                self._mux(None)
            except BaseException:
                with suppress(av.error.FFmpegError, OSError):
                    self._container.close()
                raise
            self._container.close()  # may meet the full disk only here
            if self._aperture:
                add_clean_aperture(part, self.width, self.height, *self._stored)

    def _open(self, part: Path) -> None:
        self._rate = Fraction(self.fps).limit_denominator(1001)  # 29.97... is 30000/1001, as containers want it
        self._container = av.open(str(part), "w", format=self._format, options=_MUXER.get(self._format, {}))
        if self.comment:
            self._container.metadata["comment"] = self.comment
        options = dict(_ENCODER.get(self._codec, {}))
        if self._format == "avi":
            options["bf"] = "0"  # it stores no timestamps, so frames must not be reordered
        self._stream = self._container.add_stream(self._codec, rate=self._rate, options=options)
        self._stream.width, self._stream.height = self._stored
        self._stream.pix_fmt = self._pixels
        if self._pixels.startswith("yuv"):
            for tag in ("color_primaries", "color_trc", "colorspace", "color_range"):
                setattr(self._stream.codec_context, tag, 1)  # BT.709 in the first three, limited range in the last
        self._graph = _from_rgb(*self._stored, self._rate, self._pixels)

    def _mux(self, picture: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(picture):
            self._container.mux(packet)


def save_image(image: Image.Image, path: Path, comment: str = "") -> Path:
    """Writes a Pillow image as png (exact), jpg, webp or gif under `path`, all or nothing, with a comment (not in
    webp).
    """
    path = local(path)
    kind = _STILL.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: an image is written as {' '.join(_STILL)}, not '{path.suffix}'")
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}.get(kind, {})
    if comment and kind == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("comment", comment)
    elif comment:
        options["comment"] = comment.encode()
    with _replacing(path) as part:
        image.save(part, kind, **options)
    return path


def is_still(path: Path) -> bool:
    """Whether the name's suffix can hold a single image."""
    return path.suffix.lower() in _STILL


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary beside `path` that takes its name when the block ends well, and is gone when it does not."""
    part = path.with_name(f".{path.name[:30]}.{os.getpid()}-{secrets.token_hex(3)}.part")  # a name may have 255 bytes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except (OSError, av.error.FFmpegError) as error:
        raise InputError(f"{path} cannot be written: {reason(error)}") from error
    finally:
        for leftover in (part, part.with_name(part.name + ".clap")):
            with suppress(OSError):
                leftover.unlink()


def _from_rgb(width: int, height: int, rate: Fraction, pixels: str) -> av.filter.Graph:
    graph = av.filter.Graph()
    size = f"video_size={width}x{height}:pix_fmt=rgb24:time_base={1 / rate}:pixel_aspect=1/1"
    source, sink = graph.add("buffer", size), graph.add("buffersink")
    if pixels == "pal8":  # a palette of its own for each frame
        split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(sink)
    elif not pixels.startswith("yuv"):  # RGB in another order: the encoder sees to it
        source.link_to(sink)
    else:
        scale = graph.add("scale", f"flags=area+{EXACT}:out_color_matrix=bt709:out_range=tv")
        stored = graph.add("format", f"pix_fmts={pixels}")
        source.link_to(scale)
        scale.link_to(stored)
        stored.link_to(sink)
    graph.configure()
    return graph
