"""A Draft is a clip with holes, in pixels, and one painter paints it.

    frames [f h w 3]   what is known, and a guess where nothing is
    known  [f h w]     pixels that come back exactly
    start  [f h w]     how much may change: 1 painted from noise, 0 kept, between: the guess repainted that strongly

`paint` encodes it to a canvas (`diffusion.canvas`: a latent may change as much as the least certain pixel it covers,
but no more than PARTLY where some of its frames are known, so that it goes on from them), samples, decodes, and puts
the known pixels back; the codec's error at their border fades out over a few pixels. A draft longer than what the
model learned (`sample.frames`) is painted in windows along time, each beginning with the last frames of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from sora_jax.diffusion import canvas, sampler
from sora_jax.diffusion.requests import Shot
from sora_jax.errors import InputError
from sora_jax.media import Video

if TYPE_CHECKING:
    from sora_jax.model import Model

FADE = (2.0, 1.0, 1.0)  # the codec's error at a border fades out over FEATHER of these units: frames count double
FEATHER = 4.0
PARTLY = 0.5  # how strongly a latent may change at most, some of whose frames are known


class Draft(NamedTuple):
    """See the file's head; `fps` of the clip."""

    frames: UInt8[np.ndarray, "f h w 3"]
    known: Bool[np.ndarray, "f h w"]
    start: Float[np.ndarray, "f h w"]
    fps: float


def draft(frames: np.ndarray, known: np.ndarray, fps: float, strength: float = 1.0) -> Draft:
    """A Draft whose unknown pixels may all change by `strength`. `known` broadcasts to [f h w]."""
    known = np.broadcast_to(known, frames.shape[:3])
    return Draft(frames, known, np.where(known, 0.0, strength).astype(np.float32), fps)


def paint(
    model: Model,
    draft: Draft,
    prompt: str = "",
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **how,
) -> Video:
    """The clip of a draft, window by window; `seed` is the first window's. `how` goes to `window`."""
    frames, known, start = np.array(draft.frames), np.array(draft.known), np.array(draft.start)
    windows = windows_of(len(frames), *reach(model))
    for number, (at, stop, fixed) in enumerate(windows):
        here = slice(at, stop)
        known[at : at + fixed], start[at : at + fixed] = True, 0.0
        part = Draft(frames[here], known[here], start[here], draft.fps)
        tick = part_of(progress, number, len(windows))
        frames[here] = window(model, part, prompt, seed=seed + number, progress=tick, **how)
    return Video(frames, draft.fps)


def window(model: Model, draft: Draft, prompt: str | Sequence[Shot], **how) -> UInt8[np.ndarray, "f h w 3"]:
    """The frames of a draft painted in one piece; `how` goes to `sampler.paint`. Nothing to paint costs nothing."""
    if draft.known.all():
        return draft.frames
    f, h, w = draft.start.shape
    [z] = sampler.paint(model, [canvas_of(model, draft)], [prompt], **how)
    return spliced(draft, model.decode(z).frames[:f, :h, :w])


def canvas_of(model: Model, draft: Draft) -> canvas.Canvas:
    """What a draft is to the sampler, on the least grid that covers it.

    For a transformer that is given what is known beside the noise (Wan 2.2's I2V) these are the mask, a channel for
    each frame of a latent, the first frame's said to all, and the latents of the known pixels with grey for the others;
    it paints the whole clip at one noise level, as it learned to. Raises InputError for other channels than these.
    """
    f, h, w = draft.start.shape
    time, side, _ = model.grid
    over = ((0, -(f - 1) % time), (0, -h % side), (0, -w % side))  # painted on the grid above, cropped after
    padded = lambda x: np.pad(x, [*over, *[(0, 0)] * (x.ndim - 3)], "edge")
    told = bool(model.dit.given)
    if told and model.dit.given != time + model.vae.channels:
        raise InputError(f"this model is given {model.dit.given} channels, not {time} of mask and a picture's latents")
    made = canvas.blank(model.latents_of(w, h, f), model.vae.channels)
    strength = float(draft.start.max() or 1) if told else draft.start.min()
    if strength < 1 or (draft.known.any() and not told):
        made = made._replace(z=model.encoded(padded(draft.frames)))
    known = padded(draft.known)
    cells = known.reshape(len(known), known.shape[1] // side, side, -1, side).all((2, 4))
    cells = np.concatenate([np.repeat(cells[:1], time, 0), cells[1:]]).reshape(-1, time, *cells.shape[1:])
    if not told:
        if strength < 1 or known.any():
            start, partly = canvas.cells(padded(draft.start), model.grid), cells.any(1) & ~cells.all(1)
            made = made._replace(start=np.where(partly, np.minimum(start, PARTLY), start))
        return made
    seen = model.encoded(np.where(known[..., None], padded(draft.frames), np.float32(127.5)))
    given = np.concatenate([np.moveaxis(cells, 1, -1).astype(np.float32), seen], -1)
    return canvas.Canvas(made.z, np.full_like(made.start, strength), given)


def given_of(
    model: Model, frames: UInt8[np.ndarray, "f h w 3"], known: Bool[np.ndarray, "f2 h2 w2"]
) -> Float[np.ndarray, "f2 h2 w2 g"]:
    """What a transformer with channels beside the noise is told of a clip of the VAE's grid, some of whose latents are
    known: the same, to train on, as `canvas_of` has it to paint."""
    time, side, _ = model.grid
    pixels = np.concatenate([known[:1], known[1:].repeat(time, 0)]).repeat(side, 1).repeat(side, 2)
    return canvas_of(model, draft(frames, pixels, 1.0)).given


def nothing(width: int, height: int, frames: int) -> Draft:
    """A clip of which nothing is known; its arrays take no memory."""
    shape = (frames, height, width)
    black = np.broadcast_to(np.uint8(0), (*shape, 3))
    return Draft(black, np.broadcast_to(False, shape), np.broadcast_to(np.float32(1), shape), 1.0)


def spliced(draft: Draft, painted: UInt8[np.ndarray, "f h w 3"]) -> UInt8[np.ndarray, "f h w 3"]:
    """What was painted with the known pixels put back, and their error beside them faded out (FADE, FEATHER)."""
    if not draft.known.any():
        return painted
    from scipy import ndimage

    error = draft.frames.astype(np.float32) - painted
    distance, nearest = ndimage.distance_transform_edt(~draft.known, sampling=FADE, return_indices=True)
    weight = np.clip(1.0 - distance / FEATHER, 0.0, 1.0)[..., None].astype(np.float32)
    mended = np.clip(np.round(painted + weight * error[tuple(nearest)]), 0, 255).astype(np.uint8)
    return np.where(draft.known[..., None], draft.frames, mended)


def stream(
    model: Model, prompt: str, *, size: tuple[int, int], frames: int, seed: int = 0, progress=None, **how
) -> Iterator[UInt8[np.ndarray, "f h w 3"]]:
    """A clip of any length, piece by piece in flat memory: each window sees the end of the one before."""
    w, h = size
    windows, end = windows_of(frames, *reach(model)), np.zeros((0, h, w, 3), np.uint8)
    for number, (at, stop, fixed) in enumerate(windows):
        held = end[len(end) - fixed :]
        new = np.repeat(held[-1:] if fixed else np.zeros((1, h, w, 3), np.uint8), stop - at - fixed, 0)
        known = np.arange(stop - at)[:, None, None] < fixed
        part = draft(np.concatenate([held, new]), known, model.sample["fps"])
        tick = part_of(progress, number, len(windows))
        end = window(model, part, prompt, seed=seed + number, progress=tick, **how)
        yield end[fixed:]


def reach(model: Model) -> tuple[int, int]:
    """(frames of a window, frames it shares with the one before): what the model learned; a quarter of it, and
    half a latent more, so that no border between latents is seen where it goes on."""
    time, frames = model.grid[0], model.sample["frames"]
    return frames, 1 + (frames - 1) // (4 * time) * time + (time // 2 if frames > time else 0)


def windows_of(frames: int, longest: int, overlap: int) -> list[tuple[int, int, int]]:
    """(begin, end, frames known from the window before) of the windows that cover a clip."""
    if frames > longest == overlap:
        raise InputError(f"this model paints {longest} frame(s) at a time, and cannot go on with them to {frames}")
    windows, at = [(0, min(frames, longest), 0)], longest - overlap
    while windows[-1][1] < frames:
        windows.append((at, min(frames, at + longest), overlap))
        at += longest - overlap
    return windows


def part_of(
    progress: Callable[[int, int], None] | None, first: int, of: int, windows: int = 1
) -> Callable[[int, int], None] | None:
    """The progress of the whole, told by a part of so many of its windows, from the `first` on."""
    if progress is None:
        return None
    return lambda done, steps: progress(first * steps // windows + done, of * steps // windows)
