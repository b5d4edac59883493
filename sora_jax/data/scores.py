"""What a few frames of a clip tell of its worth: numbers, from arrays alone.

Frames come at a working size (`media.frames(within=)`), so that a score means the same for footage of any resolution;
lengths are shares of the frame's diagonal, times are seconds. What is blurred more finely than the working size, or
written smaller than it shows, is not seen.

    motion  mean length of the optical flow, in % of the diagonal a second (DIS: Kroeger et al., arXiv:1603.03590)
    shake   how much the whole picture's own motion changes from frame to frame, in the same unit: 0 for a steady pan
    change  % of the pixels that are another half a second later: 0 for a still
    blur    Crete et al. 2007, "The blur effect": 0 is sharp, 1 is nothing but blur; it does not depend on contrast
    dark    % of the pixels without any light left, bright: without any shade left
    text    % of the picture that lies in boxes of text (read by RapidOCR), the most of three moments; nan where nobody
            looked
"""

import functools

import numpy as np
from jaxtyping import Float, UInt8

NAMES = ("motion", "shake", "change", "blur", "dark", "bright", "text")
BLACK, WHITE = 16, 250  # a pixel as dark, or as bright, as this shows nothing any more
NOISE = 12  # grey levels: how far compression alone moves a pixel
SURE = 0.7  # how sure the reader of text must be, of 1
BARS = 28  # a bar may flicker up to this level,
EDGE = 0.5  # and beside it this share of the line must be brighter by NOISE at some time


def luma(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """BT.601 luma of an RGB frame."""
    import cv2

    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def halved(picture: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h/2 w/2 *c"]:
    """At half the size, which is enough for what compares whole frames; a stamp stays as it is."""
    import cv2

    height, width = picture.shape[:2]
    if min(height, width) < 128:
        return picture
    return cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)


def is_black(grey: UInt8[np.ndarray, "h w"], level: int = BARS) -> bool:
    """Whether less than 1 % of the frame is brighter than `level`."""
    return np.count_nonzero(grey > level) < 0.01 * grey.size


def flow(before: UInt8[np.ndarray, "h w"], after: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 2"]:
    """Where each pixel of `before` went, in (columns, rows); zeros for frames too small to follow anything in."""

    if min(before.shape) < 16:
        return np.zeros((*before.shape, 2), np.float32)
    return _dis().calc(before, after, None)


@functools.cache
def _dis():
    import cv2

    cv2.setNumThreads(1)  # Beam deals out the cores
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)


def motion(grey: UInt8[np.ndarray, "n 3 h w"], fps: float) -> tuple[float, float]:
    """(motion, shake) over n moments of three consecutive frames each; nan where there are none."""
    if not len(grey):
        return np.nan, np.nan
    lengths, jumps = [], []
    for three in grey:
        first, second, third = map(halved, three)
        unit = 100 * fps / np.hypot(*first.shape)
        one, two = flow(first, second), flow(second, third)
        lengths.append(np.hypot(two[..., 0], two[..., 1]).mean() * unit)
        jumps.append(np.hypot(*(np.median(two, axis=(0, 1)) - np.median(one, axis=(0, 1)))) * unit)
    return float(np.mean(lengths)), float(np.mean(jumps))


def change(grey: UInt8[np.ndarray, "n h w"]) -> float:
    """% of the pixels that moved by more than NOISE from one moment to the next; nan for a single one."""
    if len(grey) < 2:
        return np.nan
    return float(100 * np.mean(np.abs(np.diff(grey.astype(np.int16), axis=0)) > NOISE))


def blur(grey: UInt8[np.ndarray, "h w"], reach: int = 11) -> float:
    """How little a frame loses of its differences between neighbours when it is blurred (again) over `reach` pixels."""
    import cv2

    grey, worst = grey.astype(np.float32), 0.0
    for axis in (0, 1):
        kernel = (1, reach) if axis == 0 else (reach, 1)  # OpenCV says width first
        had = np.abs(np.diff(grey, axis=axis))
        left = np.abs(np.diff(cv2.blur(grey, kernel), axis=axis))
        total = had.sum()
        worst = max(worst, 1 - np.maximum(had - left, 0).sum() / total if total else 1.0)
    return float(worst)


def exposure(grey: UInt8[np.ndarray, "... h w"]) -> tuple[float, float]:
    """(dark, bright): % of the pixels at most BLACK, and at least WHITE."""
    return float(100 * np.mean(grey <= BLACK)), float(100 * np.mean(grey >= WHITE))


def bars(grey: UInt8[np.ndarray, "n h w"]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right): lines of the frame that are black at all moments and end at a straight edge.

    A night sky has no such edge. Zeros when what remained would be less than a quarter of a side.
    """
    peak = grey.max(axis=0)
    found = [_bar(peak), _bar(peak[::-1]), _bar(peak.T), _bar(peak.T[::-1])]
    for side, (one, other) in zip(peak.shape, ((0, 1), (2, 3))):
        if found[one] + found[other] > 0.75 * side:
            found[one] = found[other] = 0
    return tuple(found)


def _bar(peak: UInt8[np.ndarray, "h w"]) -> int:
    light = np.flatnonzero(peak.max(axis=1) > BARS)
    if not len(light) or light[0] < 2:
        return 0
    inside = peak[min(light[0] + 1, len(peak) - 1)]  # the first lit line may be half a bar, at this size
    return int(light[0]) if np.mean(inside > BARS + NOISE) >= EDGE else 0


def phash(grey: UInt8[np.ndarray, "h w"]) -> np.uint64:
    """64 bits of a frame: which of its 8x8 lowest frequencies (of 32x32 pixels, DCT-II) lie above their median.

    Two frames that look alike differ in few bits, whatever their sizes and compression.
    """
    import cv2

    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    return np.packbits(low > np.median(low[1:])).view(np.uint64)[0]  # without the mean brightness


def tiny(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "8 8 3"]:
    """The frame's colours at 8x8 pixels: tells apart what its hash does not."""
    import cv2

    return cv2.resize(frame, (8, 8), interpolation=cv2.INTER_AREA)


def can_read() -> bool:
    """Whether RapidOCR, whose wheel brings its weights, is installed."""
    import importlib.util

    return importlib.util.find_spec("rapidocr") is not None and importlib.util.find_spec("onnxruntime") is not None


def text(frame: UInt8[np.ndarray, "h w 3"]) -> float:
    """% of the frame inside boxes in which RapidOCR reads something it is sure of; its detector alone sees text in
    leaves and clouds. One sign alone is no text: a rabbit before the sky is read as an 8 as large as the picture."""
    found = _reader()(frame[..., ::-1], use_det=True, use_cls=False, use_rec=True, text_score=SURE)
    share = 0.0
    for box, said in [] if found.boxes is None else zip(found.boxes, found.txts):
        if len(said.strip()) < 2:
            continue
        x, y = np.asarray(box, np.float64).T
        share += 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))  # the shoelace formula
    return round(float(100 * share / (frame.shape[0] * frame.shape[1])), 2)


@functools.cache
def _reader():
    import logging

    from rapidocr import RapidOCR

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    side = {"Det.limit_type": "min", "Det.limit_side_len": 32}  # at the size it comes: no enlarging
    quiet = {"Global.log_level": "error", "EngineConfig.onnxruntime.intra_op_num_threads": 1}
    return RapidOCR(params=side | quiet)
