"""A clip as a model takes it: no more pixels than asked, whole cells of the VAE's grid."""

import numpy as np
from PIL import Image

from sora_jax.errors import InputError
from sora_jax.media import Video


def fit(video: Video, grid: tuple[int, int, int], max_pixels: int | None = None) -> Video:
    """The video shrunk to `max_pixels` a frame if it has more (aspect kept), and cropped to the VAE's grid.

    1 + k * time frames from the start; height and width about the centre. Raises InputError below one cell.
    """
    frames, (time, *cell) = video.frames, grid
    f, h, w = frames.shape[:3]
    if max_pixels and h * w > max_pixels:
        scale = (max_pixels / (h * w)) ** 0.5
        size = max(1, int(w * scale)), max(1, int(h * scale))
        frames = np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.LANCZOS)) for x in frames])
        w, h = size
    sides = h - h % cell[0], w - w % cell[1]
    if not all(sides):
        raise InputError(f"a clip of {w}x{h} is smaller than one cell of the VAE's grid ({cell[1]}x{cell[0]})")
    top, left = (h - sides[0]) // 2, (w - sides[1]) // 2
    frames = frames[: f - (f - 1) % time, top : top + sides[0], left : left + sides[1]]
    return Video(np.ascontiguousarray(frames), video.fps)


def middle(video: Video) -> Video:
    """The largest square in the middle of the frame."""
    h, w = video.height, video.width
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    return Video(np.ascontiguousarray(video.frames[:, top : top + side, left : left + side]), video.fps)
