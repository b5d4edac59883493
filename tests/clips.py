"""Clips made here, and files of them: what the tests of media share."""

from fractions import Fraction

import av
import numpy as np

from sora_jax.media import Video


def clip(frames=9, height=48, width=64, fps=8.0) -> Video:
    """A smooth picture in which a soft blob moves: nothing that half-resolution colour could not hold."""
    y, x = np.mgrid[:height, :width]
    shots = []
    for f in range(frames):
        blob = np.exp(-((x - width * (f + 1) / (frames + 2)) ** 2 + (y - height / 2) ** 2) / 200)
        shots.append(np.stack([200 * x / width, 200 * y / height + 50 * blob, 90 + 100 * blob + 4 * f], -1))
    return Video(np.stack(shots).clip(0, 255).astype(np.uint8), fps)


def psnr(a, b) -> float:
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2)))


def encode_file(path, pictures, codec="libx264", pixels="yuv420p", times=None, rate=25, prepare=lambda stream: None):
    """Writes pictures (arrays, or (array, format)) with PyAV alone; times in milliseconds make the rate variable."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        first = pictures[0][0] if isinstance(pictures[0], tuple) else pictures[0]
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        prepare(stream)
        for index, picture in enumerate(pictures):
            array, kind = picture if isinstance(picture, tuple) else (picture, "rgb24")
            frame = av.VideoFrame.from_ndarray(array, format=kind)
            frame.pts = index if times is None else times[index]
            frame.time_base = 1 / Fraction(rate) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def flat(value, height=32, width=48):
    return np.full((height, width, 3), value, np.uint8)
