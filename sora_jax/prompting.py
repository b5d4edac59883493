"""Prompting with pictures and footage: every verb says what of the clip to paint is known, as a Draft (`drafts.py`).

The verbs are functions of a Model and its methods too: `model.extend(video, after=2.0)`. All of them take the keywords
of `drafts.paint`: seed, steps, guidance, negative, cache, progress.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from sora_jax.diffusion.requests import Shot
from sora_jax.drafts import Draft, draft, paint, part_of, reach, window, windows_of
from sora_jax.errors import InputError
from sora_jax.media import Video

if TYPE_CHECKING:
    from sora_jax.model import Model

CROSSFADE = 0.6  # how strongly `connect` repaints the cross-fade it starts from
BETWEEN = 0.6  # and `interpolate` the blend of its neighbours
RING = 0.5  # and how strongly the latents around a hole in the picture may adapt to what is painted in it


# ------------------------------------------------------------------------------------------------ along time


def animate(
    model: Model,
    image: Video | None = None,
    prompt: str = "",
    *,
    at: float = 0.0,
    keys: Mapping[float, Video] | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    seconds: float | None = None,
    **how,
) -> Video:
    """A picture comes to life: it is the frame at the share `at` of the clip (0 the first, 1 the last).

    keys: more pictures, or all of them, by their time in seconds; those of another size than `size` (width, height; by
    default the first's) are letterboxed into it. A key holds the whole latent that it falls into. Raises InputError for
    no picture, or one outside the clip.
    """
    fps = model.sample["fps"]
    length = length_of(frames, seconds, fps, model.sample["frames"])
    if not 0 <= at <= 1:
        raise InputError(f"the picture is placed at {at} of the clip: give a share from 0, its first frame, to 1")
    places = {} if image is None else {round(at * (length - 1)): image}
    for second, key in (keys or {}).items():
        if not 0 <= second * fps <= length - 0.5:
            raise InputError(f"a picture at {second:g} s is outside a clip of {length / fps:g} s")
        places[min(round(second * fps), length - 1)] = key
    if not places:
        raise InputError("animate needs a picture: give one, or keys")
    first = next(iter(places.values()))
    size = size or (first.width, first.height)
    stills = {k: letterboxed(v, size).frames[0] for k, v in sorted(places.items())}
    order, time = np.array(sorted(stills)), model.grid[0]
    index = np.arange(length)
    cell = -(-index // time)  # of the codec: the first frame alone, then `time` frames each
    nearest = order[np.abs(index[:, None] - order).argmin(1)]
    holder = {-(-k // time): k for k in stills}
    source = [k if k in stills else holder.get(c, n) for k, c, n in zip(index.tolist(), cell.tolist(), nearest)]
    known, held = np.isin(index, order), np.isin(cell, list(holder))
    made = draft(np.stack([stills[k] for k in source]), known[:, None, None], fps)
    return paint(model, made._replace(start=np.where(held[:, None, None], 0.0, made.start)), prompt, **how)


def extend(
    model: Model,
    video: Video,
    prompt: str = "",
    *,
    before: float = 0.0,
    after: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **how,
) -> Video:
    """The video with so many seconds more before it and after it. Raises InputError when neither is above 0."""
    video = paced(video, model.sample["fps"])
    back, ahead = (_frames_of(seconds, video.fps) for seconds in (before, after))
    if not back + ahead:
        raise InputError(f"extend by {before:g} s before and {after:g} s after adds no frame: give --before or --after")
    frames, (longest, _), time = video.frames, reach(model), model.grid[0]
    sees = min(len(frames), 1 + longest // 2 + time // 2)  # how much of the video the painter is shown
    sees = midway(sees, time) if sees > 3 * time else sees  # of a short one all: it has to tell how things move
    if longest <= sees:
        raise InputError(f"this model paints {longest} frame(s) at a time: it cannot extend a video")
    early = len(windows_of(sees + ahead, *reach(model))) if ahead else 0
    done, parts = early, early - (-back // (longest - sees))  # windows
    if ahead:
        guess = np.concatenate([frames[-sees:], np.repeat(frames[-1:], ahead, 0)])
        known = np.arange(len(guess)) < sees
        tick = part_of(progress, 0, parts, early)
        made = paint(model, draft(guess, known[:, None, None], video.fps), prompt, seed=seed, progress=tick, **how)
        frames = np.concatenate([frames, made.frames[sees:]])
    while back:
        now = min(back, longest - sees)
        new = midway(now + time - 1, time)  # a few more, so that the video begins amid a latent
        head = frames[: min(sees, longest - new)]
        guess = np.concatenate([np.repeat(head[:1], new, 0), head])
        known = np.arange(len(guess)) >= new
        tick, done = part_of(progress, done, parts), done + 1
        made = paint(model, draft(guess, known[:, None, None], video.fps), prompt, seed=seed, progress=tick, **how)
        frames, back, seed = np.concatenate([made.frames[new - now : new], frames]), back - now, seed + 1
    return Video(frames, video.fps)


def loop(model: Model, video: Video, prompt: str = "", *, seconds: float | None = None, **how) -> Video:
    """The video with a join after it that leads from its end to its beginning: played again and again, it has no seam.

    seconds: of the join; by default half of what the model paints at once. Raises InputError below 2 frames.
    """
    if len(video.frames) < 2:
        raise InputError(f"a loop needs a video of 2 frames or more, not {len(video.frames)}: `animate` makes one")
    join = join_of(model, video.frames, video.frames, seconds, video.fps, 1.0, prompt, how)
    return Video(np.concatenate([video.frames, join]), video.fps)


def connect(
    model: Model, a: Video, b: Video, prompt: str = "", *, seconds: float | None = None, hard: bool = False, **how
) -> Video:
    """A flows into B through a join of so many seconds, painted from noise if `hard`, else over a cross-fade.

    B is resampled to A's rate; of two sizes the smaller clip is letterboxed into the larger's.
    """
    a = paced(a, b.fps if len(b.frames) > 1 else model.sample["fps"])
    b = paced(b, a.fps)
    size = max(((v.width, v.height) for v in (a, b)), key=lambda wh: wh[0] * wh[1])
    a, b = letterboxed(a, size), at_rate(letterboxed(b, size), a.fps)
    strength = 1.0 if hard else CROSSFADE
    join = join_of(model, a.frames, b.frames, seconds, a.fps, strength, prompt, how)
    return Video(np.concatenate([a.frames, join, b.frames]), a.fps)


def join_of(
    model: Model,
    a: UInt8[np.ndarray, "f h w 3"],
    b: UInt8[np.ndarray, "f2 h w 3"],
    seconds: float | None,
    fps: float,
    strength: float,
    prompt: str,
    how: dict,
) -> UInt8[np.ndarray, "f3 h w 3"]:
    """Frames that lead from the end of clip `a` to the beginning of clip `b`; `how` goes to `paint`.

    Raises InputError for a join shorter than a frame.
    """
    longest, time = model.sample["frames"], model.grid[0]
    gap = max(time, longest // 2 // time * time) if seconds is None else _frames_of(seconds, fps)
    if gap < 1:
        raise InputError(f"a join of {seconds:g} s at {fps:g} fps has no frame: give more")
    a = a[-midway(min(len(a), 1 + max(0, longest - gap) // 2 + time // 2), time) :]
    b = b[: max(1, longest - gap - len(a))]
    guess = np.concatenate([a, crossfade(a[-1], b[0], gap), b])
    index = np.arange(len(guess))
    known = (index < len(a)) | (index >= len(a) + gap)
    made = paint(model, draft(guess, known[:, None, None], fps, strength), prompt, **how)
    return made.frames[len(a) : len(a) + gap]


def interpolate(model: Model, video: Video, fps: float, prompt: str = "", **how) -> Video:
    """The video at a higher rate: its frames stay, each at the nearest moment of that rate; those between are painted
    over the blend of their neighbours."""
    if not video.fps < fps < float("inf"):
        raise InputError(f"the video has {video.fps:g} fps already: interpolate to more than that, not to {fps:g}")
    last = len(video.frames) - 1
    at = np.round(np.arange(last + 1) * fps / video.fps).astype(int)  # each at its nearest moment
    place = np.arange(at[-1] + 1) * video.fps / fps
    low = np.clip(np.floor(place + 1e-6).astype(int), 0, last)
    share = np.clip(place - low, 0, 1)
    low[at], share[at] = np.arange(last + 1), 0.0
    known = np.isin(np.arange(len(place)), at)
    ends = video.frames[low].astype(np.float32), video.frames[np.minimum(low + 1, last)].astype(np.float32)
    blend = ends[0] + share[:, None, None, None] * (ends[1] - ends[0])
    guess = np.where(known[:, None, None, None], video.frames[low], np.round(blend).astype(np.uint8))
    return paint(model, draft(guess, known[:, None, None], fps, BETWEEN), prompt, **how)


def storyboard(
    model: Model, shots: Sequence[tuple[float, str] | tuple[float, str, bool]], *, size: tuple[int, int], **how
) -> Video:
    """Several shots on one timeline in one sample: (seconds, prompt, whether a cut comes before it) each.

    Every patch reads its own shot's prompt and sees the patches of all shots, so that what is in one stays itself in
    the next. Without a cut a shot flows out of the one before. Raises InputError for a shot shorter than a frame.
    """
    fps = model.sample["fps"]
    board = [Shot(_frames_of(seconds, fps), *rest) for seconds, *rest in shots]
    if not board or min(shot.frames for shot in board) < 1:
        raise InputError(f"a storyboard needs shots of at least one frame ({1 / fps:g} s) each")
    w, h = size
    blank = np.zeros((sum(shot.frames for shot in board), h, w, 3), np.uint8)
    return Video(window(model, draft(blank, np.bool_(False), fps), board, **how), fps)


# ------------------------------------------------------------------------------------------------ within the picture


def fill(
    model: Model,
    video: Video,
    prompt: str = "",
    *,
    missing: Sequence[tuple[int, int]] = (),
    mask: Video | None = None,
    **how,
) -> Video:
    """Paints what is missing: frames first..last (counted from 0, both included), and what is white in the mask.

    The mask is a picture, or a clip as long as the video, of the video's size. Raises InputError when it is not, when
    frames lie outside the video, or when nothing is missing or nothing is left.
    """
    hole = np.zeros(video.frames.shape[:3], bool)
    for first, last in missing:
        if not 0 <= first <= last < len(hole):
            raise InputError(f"frames {first}-{last} are not in a video of frames 0-{len(hole) - 1}")
        hole[first : last + 1] = True
    if mask is not None:
        hole |= mask_of(mask, video)
    if not hole.any() or hole.all():
        raise InputError("nothing is missing" if not hole.any() else "nothing of the video is left: use generate")
    return paint(model, with_ring(draft(guessed(video.frames, hole), ~hole, video.fps), model.grid[1]), prompt, **how)


def outpaint(model: Model, video: Video, prompt: str = "", *, size: tuple[int, int], **how) -> Video:
    """A wider or taller view of the same clip, which stays in its middle. Raises InputError for a smaller size."""
    w, h = size
    if w < video.width or h < video.height or size == (video.width, video.height):
        raise InputError(f"a video of {video.width}x{video.height} cannot be outpainted to {w}x{h}: give a larger size")
    top, left = (h - video.height) // 2, (w - video.width) // 2
    over = ((0, 0), (top, h - video.height - top), (left, w - video.width - left))
    frames = np.pad(video.frames, (*over, (0, 0)), "edge")
    known = np.pad(np.ones(video.frames.shape[:3], bool), over)
    return paint(model, with_ring(draft(frames, known, video.fps), model.grid[1]), prompt, **how)


def edit(
    model: Model,
    video: Video,
    prompt: str,
    *,
    strength: float | Sequence[float] = 0.6,
    mask: Video | None = None,
    **how,
) -> Video:
    """Repaints the video, or what is white in the mask, as strongly as said (SDEdit, arXiv:2108.01073).

    strength: 0 changes nothing, 1 keeps nothing; several are spread over the video's time. Raises InputError outside.
    """
    values = np.atleast_1d(np.asarray(strength, np.float32))
    if not (values.min() >= 0 and values.max() <= 1):
        raise InputError(f"strength is {strength}: give numbers from 0 (nothing changes) to 1 (nothing stays)")
    along = np.interp(np.linspace(0, 1, len(video.frames)), np.linspace(0, 1, len(values)), values)
    where = np.ones(video.frames.shape[:3], bool) if mask is None else mask_of(mask, video)
    start = (along[:, None, None] * where).astype(np.float32)
    return paint(model, Draft(video.frames, start == 0, start, video.fps), prompt, **how)


# ------------------------------------------------------------------------------------------------ guesses and masks


def crossfade(a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"], count: int) -> np.ndarray:
    """`count` frames between two pictures."""
    share = (np.arange(1, count + 1) / (count + 1))[:, None, None, None]
    return np.round(a + share * (b.astype(np.float32) - a)).astype(np.uint8)


def guessed(frames: UInt8[np.ndarray, "f h w 3"], hole: Bool[np.ndarray, "f h w"]) -> UInt8[np.ndarray, "f h w 3"]:
    """The frames with holes filled by the nearest known pixel, nearer in its own frame than in any other."""
    from scipy import ndimage

    far = float(sum(frames.shape[1:3]))
    nearest = ndimage.distance_transform_edt(hole, sampling=(far, 1, 1), return_distances=False, return_indices=True)
    return frames[tuple(nearest)]


def with_ring(draft: Draft, side: int) -> Draft:
    """Lets the latents around a hole adapt to it (RING); their known pixels come back all the same."""
    from scipy import ndimage

    near = ndimage.maximum_filter(draft.start, (1, 2 * side + 1, 2 * side + 1))
    whole = draft.known.all((1, 2), keepdims=True)  # frames without a hole stay
    return draft._replace(start=np.where(whole, draft.start, np.maximum(draft.start, RING * near)).astype(np.float32))


def mask_of(mask: Video, video: Video) -> Bool[np.ndarray, "f h w"]:
    """What is white in a mask. Raises InputError when its size or length is not the video's."""
    if (mask.width, mask.height) != (video.width, video.height):
        raise InputError(
            f"the mask is {mask.width}x{mask.height}, the video {video.width}x{video.height}: make them the same size"
        )
    if len(mask.frames) not in (1, len(video.frames)):
        raise InputError(f"the mask has {len(mask.frames)} frames, the video {len(video.frames)}: give as many, or one")
    return np.broadcast_to(mask.frames.mean(-1) > 127, video.frames.shape[:3])


def letterboxed(video: Video, size: tuple[int, int]) -> Video:
    """The video scaled into a size, aspect kept, black where it does not reach."""
    w, h = size
    if (video.width, video.height) == size:
        return video
    scale = min(w / video.width, h / video.height)
    inner = max(1, round(video.width * scale)), max(1, round(video.height * scale))
    left, top = (w - inner[0]) // 2, (h - inner[1]) // 2
    frames = np.zeros((len(video.frames), h, w, 3), np.uint8)
    for page, frame in zip(frames, video.frames):
        page[top : top + inner[1], left : left + inner[0]] = Image.fromarray(frame).resize(inner, Image.LANCZOS)
    return Video(frames, video.fps)


def paced(video: Video, fps: float) -> Video:
    """A picture as a clip of that rate, for it has none of its own; a clip as it is."""
    return Video(video.frames, fps) if len(video.frames) == 1 else video


def at_rate(video: Video, fps: float) -> Video:
    """What is on screen at k / fps."""
    if video.fps == fps:
        return video
    count = max(1, round(len(video.frames) * fps / video.fps))
    index = np.minimum((np.arange(count) * video.fps / fps + 1e-6).astype(int), len(video.frames) - 1)
    return Video(video.frames[index], fps)


def length_of(frames: int | None, seconds: float | None, fps: float, default: int) -> int:
    """A clip's length in frames, of which or of seconds one may be given. Raises InputError for both, or none in it."""
    if frames is not None and seconds is not None:
        raise InputError("give the length in frames or in seconds, not in both")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise InputError(f"{seconds} seconds cannot be painted: give more than 0")
    if frames is not None and frames < 1:
        raise InputError(f"{frames} frames cannot be painted: give 1 or more")
    if seconds is None:
        return default if frames is None else frames
    return max(1, round(seconds * fps))


def midway(frames: int, time: int) -> int:
    """The most frames of at most so many that end amid a latent, after the first one's and some of `time` frames each:
    where a clip and what is painted share a latent, no border between latents is seen between them (drafts.PARTLY)."""
    middle = 1 + time // 2
    return frames - (frames - middle) % time if frames > middle else frames


def _frames_of(seconds: float, fps: float) -> int:
    if not 0 <= seconds < float("inf"):
        raise InputError(f"{seconds} seconds cannot be painted: give 0 or more")
    return round(seconds * fps)
