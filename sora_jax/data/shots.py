"""One file of footage -> its shots, and what is worth knowing of each, in one pass and flat memory.

    frames at the working size -> where shots begin -> pieces -> records

A piece is a run of frames of one shot that are all black or all not, at most `scan["seconds"]` long. The pieces of a
file tile it: each of its frames is in exactly one, in order. A record is a piece with its scores (`scores.py`), its
hashes and a strip of three pictures; nothing is decided here.
"""

import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sora_jax import media
from sora_jax.data import scores
from sora_jax.media.reader import Frame

BEHIND = 2  # frames that the detector looks at on either side of a cut
STRIP = 96  # height of a record's three pictures
TIMED = 16

spent: Counter = Counter()  # in this process: frames seen, and CPU seconds at all and for anything but decoding


@dataclass
class Piece:
    """Frames first .. first + frames - 1 of a file, and some moments of them (`every` frames one)."""

    shot: int
    first: int
    black: bool
    every: int
    frames: int = 0
    moments: list[Frame] = field(default_factory=list)
    around: list[np.ndarray] = field(default_factory=list)  # luma [3 h w], up to each moment but one at the beginning
    last: deque = field(default_factory=lambda: deque(maxlen=3))

    def add(self, frame: Frame, grey: np.ndarray) -> None:
        self.last.append(grey)
        if self.frames == 0 or self.frames % self.every == self.every // 2:
            if len(self.moments) == 1 and not self.around:
                self.moments.clear()  # the very first stood in, should there be no other: a cut may bleed into it
            self.moments.append(frame)
            if len(self.last) == 3:
                self.around.append(np.stack(self.last))
        self.frames += 1


def begins(frames: Iterable[Frame], fps: float, scan: dict) -> Iterator[tuple[Frame, bool]]:
    """(frame, whether a shot begins with it), by PySceneDetect's adaptive detector."""
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector(
        adaptive_threshold=scan["cut_ratio"],
        min_content_val=scan["cut_content"],
        min_scene_len=max(1, round(scan["cut_seconds"] * fps)),
        window_width=BEHIND,
    )
    waiting, found, at = deque(), {0}, 0
    for index, frame in enumerate(frames):
        waiting.append(frame)
        found.update(
            cut.frame_num for cut in detector.process_frame(FrameTimecode(index, fps), scores.halved(frame)[..., ::-1])
        )
        if len(waiting) > BEHIND:
            yield waiting.popleft(), at in found
            found.discard(at)
            at += 1
    for frame in waiting:
        yield frame, at in found
        at += 1


def pieces(frames: Iterable[Frame], fps: float, scan: dict) -> Iterator[Piece]:
    """The pieces of a file's frames, each when its last frame has been seen."""
    longest, every = max(1, round(scan["seconds"] * fps)), max(5, round(scan["every"] * fps))
    piece, shot = None, -1
    for frame, cut in begins(frames, fps, scan):
        grey = scores.luma(frame)
        black = scores.is_black(grey)
        cut |= piece is not None and piece.black != black
        if cut or piece.frames == longest:
            if piece is not None:
                yield piece
            shot += cut
            piece = Piece(shot, 0 if piece is None else piece.first + piece.frames, black, every)
        piece.add(frame, grey)
    yield piece


def records(path: Path, name: str, said: list[str], scan: dict) -> Iterator[dict]:
    """The records of a file, shot by shot. Raises InputError where it cannot be read (on)."""
    cpu = time.process_time()
    facts = media.probe(path)
    frames, rest = _timed(media.frames(path, within=scan["size"], strict=True)), time.thread_time()
    waited = spent["waiting"]
    for piece in pieces(frames, facts["fps"], scan):
        record = _record(piece, facts, scan)
        yield {"file": name, "captions": json.dumps(said, ensure_ascii=False)} | record
        spent["frames"] += piece.frames
        # What this thread did besides waiting for frames; the decoder's own threads are in the process's time alone.
        now, then = time.process_time(), time.thread_time()
        spent["cpu"] += now - cpu
        spent["scoring"] += then - rest - (spent["waiting"] - waited)
        cpu, rest, waited = now, then, spent["waiting"]


def name(row: dict) -> str:
    """A clip's name: its file, and where it is not all of it the seconds, as a W3C media fragment."""
    if row["frames"] == row["total"]:
        return row["file"]
    start, end = row["first"] / row["fps"], (row["first"] + row["frames"]) / row["fps"]
    return f"{row['file']}#t={start:.3f},{end:.3f}"


def _timed(frames: Iterator[Frame]) -> Iterator[Frame]:
    """The same frames; notes how long this thread waits for them, judging by one in TIMED: clocks are slow, too."""
    for number in itertools.count():
        began = time.thread_time() if number % TIMED == 1 else None
        frame = next(frames, None)
        if began is not None:
            spent["waiting"] += TIMED * (time.thread_time() - began)
        if frame is None:
            return
        yield frame


def _record(piece: Piece, facts: dict, scan: dict) -> dict:
    import cv2

    video, whole = facts["kind"] == "video", np.stack(piece.moments)
    greys = np.stack([scores.luma(moment) for moment in whole])
    top, bottom, left, right = (0, 0, 0, 0) if piece.black else scores.bars(greys)
    high, wide = greys.shape[1:]
    inside = np.s_[..., top : high - bottom, left : wide - right]
    grey, rgb = greys[inside], whole[:, top : high - bottom, left : wide - right]
    around = np.stack(piece.around)[inside] if video and piece.around else np.empty((0, 3, 1, 1), np.uint8)
    shown = rgb[[0, len(rgb) // 2, -1]] if len(rgb) > 2 else rgb[:1]
    motion, shake = scores.motion(around, facts["fps"])
    dark, bright = scores.exposure(grey)
    seen = {
        "motion": motion,
        "shake": shake,
        "change": scores.change(grey) if video else np.nan,
        "blur": float(np.median([scores.blur(moment) for moment in grey])),
        "dark": dark,
        "bright": bright,
        "text": max(map(scores.text, shown)) if scan["text"] and not piece.black else np.nan,
    }
    width = max(1, round(STRIP * shown.shape[2] / shown.shape[1]))
    strip = np.concatenate([cv2.resize(x, (width, STRIP), interpolation=cv2.INTER_AREA) for x in shown], axis=1)
    return {
        "kind": facts["kind"],
        "shot": piece.shot,
        "first": piece.first,
        "frames": piece.frames,
        "total": facts["frames"],
        "fps": facts["fps"],
        "width": facts["width"],
        "height": facts["height"],
        "crop": _crop((top, bottom, left, right), (high, wide), (facts["height"], facts["width"])),
        "black": int(piece.black),
        **seen,
        "hashes": np.array([scores.phash(moment) for moment in grey]).tobytes(),
        "colours": np.stack([scores.tiny(moment) for moment in rgb]).tobytes(),
        "strip": cv2.imencode(".jpg", strip[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes(),
    }


def _crop(bars: tuple[int, int, int, int], small: tuple[int, int], large: tuple[int, int]) -> list[int]:
    """Bars at the working size as [x, y, width, height] of the file's own pixels, even where a bar was cut.

    A bar's last line may end anywhere inside a line of the smaller frame: that line is cut off, too.
    """
    edges = []
    for lines, had, have in zip(bars, (small[0],) * 2 + (small[1],) * 2, (large[0],) * 2 + (large[1],) * 2):
        cut = int(np.ceil((lines + 1) * have / had)) if lines else 0
        edges.append(cut + cut % 2)
    top, bottom, left, right = edges
    return [left, top, large[1] - left - right, large[0] - top - bottom]
