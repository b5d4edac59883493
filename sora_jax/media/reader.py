"""A file, or its bytes -> pictures with times -> frames at a stated rate. Video by PyAV (FFmpeg), images by Pillow."""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import UInt8
from PIL import Image, ImageOps, ImageSequence

from sora_jax.errors import InputError
from sora_jax.media.boxes import clean_aperture, declared_bytes

Frame = UInt8[np.ndarray, "h w 3"]


class Shot(NamedTuple):
    """One stored picture: on screen from `start` for `seconds`; called, `picture` turns it into pixels.

    Only the last one's `seconds` matter; a video's are at least one average frame, as many files do not know them.
    """

    start: float
    seconds: float
    picture: Callable[[], Frame]


class Clip(NamedTuple):
    """An opened file: its pictures in order (pulled once), its average rate, what the file says it is."""

    shots: Iterator[Shot]
    rate: float
    kind: str  # "video" or "image"
    first: float | None = None  # when the file's first picture starts, if it is not the first of `shots`


_STILL_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
# Only these demuxers: FFmpeg also "plays" text files, playlists and network addresses. The sound ones are here so that
# a song is called a song.
_DEMUXERS = (
    "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,obu,ivf,mxf,nut,m4v,dv,wav,mp3,aac,flac,aiff,w64"
)
# Exact rounding and chroma at full resolution: FFmpeg's fast path is a whole grey level too dark on average.
EXACT = "accurate_rnd+full_chroma_int+full_chroma_inp"
_UNTAGGED = 2  # AVCOL_SPC_UNSPECIFIED


def checked_fps(fps: float) -> float:
    """`fps` as a float. Raises InputError unless it is in (0, 1000]."""
    if not (isinstance(fps, int | float | Fraction | np.number) and math.isfinite(fps) and 0 < fps <= 1000):
        raise InputError(f"fps must be a number of frames per second above 0 and up to 1000, not {fps!r}")
    return float(fps)


@contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Whatever a decoder throws at a bad file becomes one InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be read, it is damaged or cut short: {reason(error)}") from error


def reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0]


def open_clip(
    source: Path | bytes, name: str, start: float = 0.0, within: int | None = None, strict: bool = False
) -> Clip:
    """Opens a file or its bytes; pictures that are over well before `start` seconds may be left out.

    within: pictures with a longer side than this are shrunk to it, by area, as they are decoded. strict: damage that a
    decoder could hide (it repeats what was there before) is an error, too.
    Raises InputError naming it: missing, empty, cut short, sound only, not media.
    """
    with one_sentence(name):
        if isinstance(source, Path):
            if not source.exists():
                raise InputError(f"{name}: there is no such file")
            if not source.is_file():
                raise InputError(f"{name} is a folder or a device, not a clip or an image")
        with _handle(source) as file:
            have = file.seek(0, 2)
            if have == 0:
                raise InputError(f"{name} is empty (0 bytes)")
            want = declared_bytes(file)
            if want is not None and want > have:
                raise InputError(f"{name} is cut short: it should have {want} bytes and has {have}; copy it again")
            file.seek(0)
            try:
                with Image.open(file, formats=_STILL_FORMATS) as image:
                    seconds = _delays(image)
                return Clip(
                    _stills(source, seconds, within), 1 / _common_delay(seconds), "video" if seconds[1:] else "image"
                )
            except Image.UnidentifiedImageError:
                aperture = clean_aperture(file)
        shots = _footage(source, name, aperture, start, within, strict)
        rate, first = next(shots)
        return Clip(shots, rate, "video", first)


def spans(source: Path | bytes, clip: Clip, name: str) -> list[tuple[float, float]]:
    """(start, seconds) of every picture, of a video without decoding it."""
    with one_sentence(name):
        if clip.kind == "image" or _is_still_format(source):
            return [(shot.start, shot.seconds) for shot in clip.shots]
        with _container(source, name) as container:
            stream = _picture_stream(container, name)
            frame = 1 / _rate(stream)
            return [
                (float(packet.pts * stream.time_base), max(float((packet.duration or 0) * stream.time_base), frame))
                for packet in container.demux(stream)
                if packet.pts is not None and packet.size and not packet.is_discard
            ]


def frames_in(seconds: float, fps: float) -> int:
    """How many moments k / fps lie before the end, which may be a tenth of a frame off (times are rounded)."""
    return max(1, math.ceil(seconds * fps - 0.1))


def resample(clip: Clip, fps: float, name: str, start: float = 0.0) -> Iterator[Frame]:
    """Frame k is what is on screen at start + k / fps, forgiving timestamps up to half a frame late (they are rounded).

    At least one frame: a `start` past the end gives the last one.

    Raises InputError: nothing can be decoded, damaged on the way, the picture changes its size.
    """
    slack = 0.5 / max(fps, clip.rate)
    count, first, held, size, now, end = 0, clip.first, None, None, -math.inf, 0.0
    with one_sentence(name):
        for time, seconds, picture in clip.shots:
            first = time if first is None else first
            now = max(now, time - first - start)  # a clock that runs backwards stands still
            while held is not None and count / fps + slack < now:
                yield (shown := _same_size(held(), size, name))
                size, count = shown.shape, count + 1
            held, end = cache(picture), max(end, now + seconds)
        if held is None:
            raise InputError(f"{name} cannot be read, it is damaged or cut short: not one frame of it can be decoded")
        while count < frames_in(end, fps):
            yield (shown := _same_size(held(), size, name))
            size, count = shown.shape, count + 1


def _same_size(picture: Frame, size: tuple | None, name: str) -> Frame:
    if size is not None and picture.shape != size:
        was, became = f"{size[1]}x{size[0]}", f"{picture.shape[1]}x{picture.shape[0]}"
        raise InputError(f"{name} changes its size from {was} to {became} on the way; re-encode it at one size")
    return picture


def _handle(source: Path | bytes) -> BinaryIO:
    return open(source, "rb") if isinstance(source, Path) else io.BytesIO(source)


# Images: one picture, or an animation whose delays are in each frame.


def _is_still_format(source: Path | bytes) -> bool:
    with _handle(source) as file:
        try:
            Image.open(file, formats=_STILL_FORMATS)
            return True
        except Image.UnidentifiedImageError:
            return False


def _delays(image: Image.Image) -> list[float]:
    """Seconds of each frame; [1.0] for a single picture (also the pages of a TIFF, the views of an MPO)."""
    if not getattr(image, "is_animated", False) or image.format in ("TIFF", "MPO"):
        return [1.0]
    delays = [(frame.load(), frame.info.get("duration", 0))[1] for frame in ImageSequence.Iterator(image)]
    return [delay / 1000 if delay > 10 else 0.1 for delay in delays]  # browsers show 10 ms or less as 100 ms


def _common_delay(seconds: list[float]) -> float:
    """The delay of one frame, when repeated frames were joined and delays rounded to 10 ms (120, 130, 250: 125)."""
    shortest = min(seconds)
    return sum(seconds) / sum(max(1, round((delay - 0.005) / shortest)) for delay in seconds)


def _stills(source: Path | bytes, seconds: list[float], within: int | None) -> Iterator[Shot]:
    with _handle(source) as file, Image.open(file, formats=_STILL_FORMATS) as image:
        start = 0.0
        for index, delay in enumerate(seconds):
            image.seek(index)
            pixels = _shrunk(_rgb(ImageOps.exif_transpose(image)), within)
            yield Shot(start, delay, lambda pixels=pixels: pixels)
            start += delay


def _rgb(image: Image.Image) -> Frame:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        grey = np.asarray(image).astype(np.float64)
        grey = np.round(grey / (257 if grey.max() > 255 else 1)).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        return _on_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _on_white(rgba: UInt8[np.ndarray, "h w 4"]) -> Frame:
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _fitted(width: int, height: int, within: int | None) -> tuple[int, int]:
    """(width, height) with the longer side at most `within`, about the same shape."""
    scale = min(1.0, (within or math.inf) / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _shrunk(pixels: Frame, within: int | None) -> Frame:
    size = _fitted(pixels.shape[1], pixels.shape[0], within)
    return (
        pixels if size == pixels.shape[1::-1] else np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    )


# Video.


def _container(source: Path | bytes, name: str):
    opened = str(source) if isinstance(source, Path) else io.BytesIO(source)
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    try:
        return av.open(opened, options=options)
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:  # the latter: a demuxer not listed
        raise InputError(
            f"{name} is not a video or an image that can be read (mp4, webm, mov, mkv, avi, gif, png, jpg, webp ...), "
            "or it is cut short"
        ) from error


def _picture_stream(container, name: str):
    for stream in container.streams.video:
        if not stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):  # an album's cover
            return stream
    what = "only sound" if container.streams.audio else "no pictures"
    raise InputError(f"{name} holds {what}; name a file with video in it")


def _rate(stream) -> float:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < float(rate) <= 1000:
            return float(rate)
    return 25.0  # a stream that states no rate, such as a single picture


def _footage(
    source: Path | bytes, name: str, aperture: tuple | None, start: float, within: int | None, strict: bool
) -> Iterator[tuple]:
    """First (the average rate, when the first picture starts if it is left out), then the shots."""
    with _container(source, name) as container:
        stream = _picture_stream(container, name)
        rate, first = _rate(stream), None
        if start > 0 and container.format.name.startswith(("mov", "matroska")):  # these have an index of key frames
            first = float((stream.start_time or 0) * stream.time_base)
            container.seek(max(0, math.floor((first + start - 0.5 / rate) / stream.time_base)), stream=stream)
        if strict:
            stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
        yield rate, first
        to_rgb, now = _Converter(aperture, within), 0.0
        for frame in _decoded(container, stream):
            now = now + 1 / rate if frame.pts is None else float(frame.pts * stream.time_base)
            seconds = float((frame.duration or 0) * stream.time_base)
            yield Shot(now, max(seconds, 1 / rate), lambda frame=frame: to_rgb(frame))


def _decoded(container, stream) -> Iterator[av.VideoFrame]:
    if stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in ("vp8", "vp9"):
        # FFmpeg's own VP8 and VP9 decoders drop the alpha of a WebM; the reference decoder keeps it.
        decoder = av.CodecContext.create("libvpx" if stream.codec_context.name == "vp8" else "libvpx-vp9", "r")
        decode = decoder.decode
    else:
        stream.thread_type = "AUTO"
        decode = stream.decode
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise av.error.InvalidDataError(0, "a packet is incomplete")
        yield from decode(packet if packet.size else None)


KINDS = 8  # of frames, whose filter graphs are kept
_idle: dict[tuple, list[av.filter.Graph]] = {}  # graphs that nobody uses now


class _Converter:
    """Decoded frames -> upright RGB; keeps the filter graph between frames of the same kind, and leaves it to the next
    file: a graph holds tens of MB, and is a cycle of references, which Python frees when it likes."""

    def __init__(self, aperture: tuple | None, within: int | None):
        self.aperture, self.within, self.kind, self.graph = aperture, within, None, None

    def __del__(self):
        self._leave()

    def _leave(self):
        if self.graph is not None:
            _idle.setdefault(self.kind, []).append(self.graph)
            for kind in list(_idle)[:-KINDS]:
                _idle.pop(kind, None)

    def __call__(self, frame: av.VideoFrame) -> Frame:
        matrix, levels = int(frame.colorspace), int(frame.color_range)
        # An aperture is told in stored pixels: such a frame is cropped before it shrinks.
        size = (frame.width, frame.height) if self.aperture else _fitted(frame.width, frame.height, self.within)
        kind = (frame.width, frame.height, frame.format.name, matrix, levels, size)
        if kind != self.kind or self.graph is None:
            self._leave()
            try:
                graph = _idle.get(kind, []).pop()  # at once: whatever other threads do, nobody else has it
            except IndexError:
                graph = _to_rgb(*kind)
            self.kind, self.graph = kind, graph
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        graph, self.graph = self.graph, None  # one that fails is left to nobody
        graph.push(frame)
        pixels = graph.pull().to_ndarray()
        self.graph = graph
        pixels = _on_white(pixels) if pixels.shape[-1] == 4 else pixels
        pixels = _shrunk(_cropped(pixels, self.aperture), self.within)
        return np.ascontiguousarray(_upright(pixels, frame.side_data.get("DISPLAYMATRIX")))


def _to_rgb(width: int, height: int, pixels: str, matrix: int, levels: int, to: tuple[int, int]) -> av.filter.Graph:
    fmt = av.VideoFormat(pixels, width, height)
    untagged = "" if fmt.is_rgb or matrix != _UNTAGGED else f":in_color_matrix={'bt709' if height >= 720 else 'bt601'}"
    graph = av.filter.Graph()
    size = f"video_size={width}x{height}:pix_fmt={pixels}:time_base=1/25:pixel_aspect=1/1"
    colour = "" if fmt.is_rgb else f":colorspace={matrix}:range={levels}"
    how = f"flags=bicubic+{EXACT}" if to == (width, height) else f"{to[0]}:{to[1]}:flags=area"  # the fast path shrinks
    nodes = [
        graph.add("buffer", size + colour),
        graph.add("scale", f"{how}{untagged}:out_range=pc"),
        graph.add("format", "pix_fmts=rgba" if _has_alpha(pixels) else "pix_fmts=rgb24"),
        graph.add("buffersink"),
    ]
    for left, right in pairwise(nodes):
        left.link_to(right)
    graph.configure()
    return graph


def _has_alpha(pixels: str) -> bool:
    return pixels.startswith(("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya", "pal8", "ayuv", "vuya"))


def _cropped(pixels: Frame, aperture: tuple | None) -> Frame:
    if aperture is None:
        return pixels
    width, height, x, y = aperture
    left, top = (pixels.shape[1] - width) / 2 + x, (pixels.shape[0] - height) / 2 + y
    inside = left >= 0 and top >= 0 and left + width <= pixels.shape[1] and top + height <= pixels.shape[0]
    if not (inside and left % 1 == 0 and top % 1 == 0):
        return pixels
    return pixels[int(top) : int(top) + height, int(left) : int(left) + width]


def _upright(pixels: Frame, matrix) -> Frame:
    """Applies an ISO/IEC 14496-12 display matrix (x, y) -> (a x + c y, b x + d y), to the nearest quarter turn."""
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):  # the sides change places
        pixels, across, down = pixels.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    pixels = pixels[:, ::-1] if across < 0 else pixels
    return pixels[::-1] if down < 0 else pixels
