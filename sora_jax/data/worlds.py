"""The embedded data: a procedural world of coloured shapes that move, perfectly captioned, that knows its own truth.

    scene = sample(seed)            # everything there is to know, as plain numbers and words
    video = render(scene)           # uint8 [f h w 3]
    short, long = captions(scene)   # "a red circle moves right"; and where, how, before what, seen by which camera

One to three objects of shape x colour x size x texture, each with its own motion; a background of low saturation; a
camera that mostly stands still. When it moves, the objects stand still in the world, so that every sentence has one
meaning. All comes from one seed: the same seed is the same scene, bit for bit.
Motions span the clip whatever its length: a path of a third of the frame is one in 9 frames and in 33.

Seeds below `HELD_OUT` (10**8) are for training, the others for evaluation.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from sora_jax.data.drawing import COLORS, DARK, GREYS, LIGHT, SHAPES, render
from sora_jax.data.motions import (
    CAMERAS,
    MOTIONS,
    STRAIGHT,
    TURNS,
    Plan,
    apart,
    axis_of,
    collide,
    orbit,
    path,
    seen_by,
    zoom,
)
from sora_jax.data.wording import captions
from sora_jax.errors import InputError

HELD_OUT = 10**8
SIZES = {  # native sizes and how often they come, transposed half of the time; 64 x 64 pixels in the mean
    (32, 32): 3, (48, 48): 5, (64, 64): 14, (80, 80): 4, (96, 96): 2, (128, 96): 1,
    (48, 32): 4, (64, 32): 2, (64, 48): 9, (80, 48): 7, (80, 64): 5,
    (96, 48): 4, (96, 64): 7, (112, 64): 3, (128, 80): 1,
}  # fmt: skip
FRAMES = {1: 20, 9: 30, 17: 35, 33: 15}
SCALES = {
    "small": (0.26, 15.0),
    "medium": (0.34, 18.0),
    "large": (0.44, 21.0),
}  # of the shorter side; at least so many pixels
TEXTURES = {"solid": 64, "striped": 14, "dotted": 9, "two-tone": 13}
ALONE = {"straight": 46, "still": 6, "bounce": 9, "orbit": 7, "fall": 8, "grow": 6, "shrink": 6, "spin": 6, "hide": 6}
TOGETHER = {"straight": 52, "still": 22, "bounce": 5, "fall": 4, "grow": 5, "shrink": 5, "spin": 7}
EVENTS = {"": 80, "collide": 13, "orbit": 7}
KINDS = {"plain": 30, "gradient": 22, "horizon": 18, "hills": 14, "tiles": 16}
FIXED = {  # what a caller of `sample` may fix, and the words for it
    "count": (1, 2, 3),
    "camera": CAMERAS,
    "background": tuple(KINDS),
    "event": tuple(EVENTS),
    "shape": tuple(SHAPES),
    "color": tuple(COLORS),
    "scale": tuple(SCALES),
    "texture": tuple(TEXTURES),
    "motion": MOTIONS[:-1],  # two objects collide: that is an event
    "way": (*STRAIGHT, *TURNS),
}


@dataclass(frozen=True)
class Thing:
    """One object. `motion` is one of MOTIONS, `way` its direction or sense; `track` is (x, y, scale, angle) per frame.

    x, y: centre in pixels of the frame, y down; scale: of `diameter` (pixels); angle: radians, clockwise.
    """

    shape: str
    color: str
    scale: str
    texture: str
    motion: str
    way: str
    diameter: float
    track: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Background:
    """`kind` is one of KINDS; `color` and `other` name two tones of GREYS: the upper, the lower."""

    kind: str
    color: str
    other: str
    phase: float


@dataclass(frozen=True)
class Scene:
    """All that is in a clip. `shot` is the camera's (x, y, zoom) per frame; `event` is "", "collide" or "orbit":
    what things 0 and 1 do to each other ("orbit": 1 goes around 0). A JSON-able `dataclasses.asdict` away."""

    seed: int
    width: int
    height: int
    frames: int
    fps: float
    things: tuple[Thing, ...]
    background: Background
    camera: str
    shot: tuple[tuple[float, float, float], ...]
    event: str
    pillar_x: float
    pillar_width: float


def held_out(seed: int) -> bool:
    """True for seeds that no training may touch (>= 10**8)."""
    return seed >= HELD_OUT


def positions(scene: Scene) -> Float[np.ndarray, "n f 2"]:
    """Centre (x, y) of every object in every frame, pixels."""
    return np.array([thing.track for thing in scene.things])[:, :, :2]


def visible(scene: Scene) -> Bool[np.ndarray, "n f"]:
    """Whether every object shows entirely: False while any of it is behind the pillar."""
    near = np.array(
        [(SHAPES[t.shape][0] * t.diameter + scene.pillar_width / 2) * (t.motion == "hide") for t in scene.things]
    )
    return np.abs(positions(scene)[:, :, 0] - scene.pillar_x) >= near[:, None]


# ------------------------------------------------------------------------------------------------ sampling


def sample(
    seed: int, size: tuple[int, int] | None = None, frames: int | None = None, fps: float = 8.0, **fixed
) -> Scene:
    """The scene of a seed. What is not given is drawn: size (width, height) and frames from SIZES and FRAMES.

    fixed: the keys of FIXED. count, camera, background and event are one word; shape, color, scale, texture, motion and
    way are one word for all objects, or a tuple with a word (or None: any) for each.
    Raises InputError for an unknown name or word, and when that many objects do not fit into the frame.
    """
    check(fixed, size, frames, fps)
    rng = np.random.default_rng(seed)
    w, h = _pick(rng, SIZES)
    w, h = size or ((w, h) if rng.random() < 0.5 else (h, w))
    f = frames or _pick(rng, FRAMES)
    count = _pick(rng, {1: 50, 2: 35, 3: 15})
    listed = [len(value) for value in fixed.values() if isinstance(value, tuple)]
    pinned = "count" in fixed or bool(listed) or bool(fixed.get("event"))
    if pinned:
        count = fixed.get("count") or max(listed, default=2)
    else:
        count = min(count, 3 if w * h >= 72 * 64 else 2 if w * h >= 40 * 40 else 1)
    while True:
        for _ in range(40):
            scene = _attempt(rng, seed, w, h, f, float(fps), count, fixed)
            if scene is not None:
                return scene
        if pinned or count == 1:
            raise InputError(
                f"{count} object(s) with {fixed} do not fit into {w}x{h}: ask for fewer, smaller ones or a larger frame"
            )
        count -= 1


def check(fixed: dict, size: tuple[int, int] | None = None, frames: int | None = None, fps: float = 8.0) -> None:
    """Raises InputError for what no seed's scene can be: see `sample`."""
    for name, value in fixed.items():
        if name not in FIXED:
            raise InputError(f"a scene has no {name!r} to fix: choose among {', '.join(FIXED)}")
        for word in value if isinstance(value, tuple) else (value,):
            if word is not None and word not in FIXED[name]:
                raise InputError(f"{name} cannot be {word!r}: choose among {', '.join(map(str, FIXED[name]))}")
    if fixed.get("event") and fixed.get("count") == 1:
        raise InputError(f"one object cannot {fixed['event']} with another: ask for count=2 or 3")
    if size is not None and min(size) < 16:
        raise InputError(f"a world of {size[0]}x{size[1]} is too small to see anything: make each side at least 16")
    if (frames is not None and frames < 1) or fps <= 0:
        raise InputError(f"a clip of {frames} frames at {fps} fps cannot be: both must be positive")


def _pick(rng, weights: dict):
    """A key, as often as its weight says."""
    at, x = 0.0, rng.random() * sum(weights.values())
    for key, weight in weights.items():
        at += weight
        if x < at:
            return key
    return key


def _any(rng, words):
    return words[rng.integers(len(words))]


def _attempt(rng, seed, w, h, f, fps, count, fixed) -> Scene | None:
    """Draws a whole scene; None when its objects would touch or leave the frame."""
    camera, event = fixed.get("camera"), fixed.get("event")
    if camera is None:
        moves = rng.random() < 0.1 and not fixed.keys() & {"motion", "event", "way"}
        camera = _any(rng, CAMERAS[1:]) if moves else "still"
    camera = camera if f > 1 else "still"
    if event is None:
        event = "" if count == 1 or camera != "still" or "motion" in fixed else _pick(rng, EVENTS)
    event = event if f > 1 and camera == "still" else ""
    # A pan over a plain wall cannot be seen: moving cameras get a background with places in it.
    kinds = {kind: weight for kind, weight in KINDS.items() if camera == "still" or kind in ("hills", "tiles")}
    background = _background(rng, fixed.get("background") or _pick(rng, kinds), camera)
    plans = _cast(rng, min(w, h), f, count, camera, event, fixed)

    u, pillar, travel = np.linspace(0, 1, f), (0.0, 0.0), rng.uniform(0.28, 0.42)
    widths = [2 * plan.half for plan in plans if plan.motion == "hide"]
    if widths:
        pillar = (w * rng.uniform(0.46, 0.54), max(1.3 * max(widths), 12.0))
    for _ in range(12):  # the same cast, other places
        pair = {"collide": collide, "orbit": orbit}[event](rng, plans[:2], w, h, u) if event else []
        if pair is None:
            continue
        moved = [
            path(rng, plan, w, h, u, pillar) if camera == "still" else seen_by(rng, plan, w, h, u, camera, travel)
            for plan in plans[len(pair) :]
        ]
        paths = pair + moved
        if None not in paths and apart(plans, [track for track, _ in paths], event, pillar):
            break
    else:
        return None
    things = [
        Thing(
            *plan[:5],
            "" if camera != "still" else way,
            float(plan.diameter),
            tuple(map(tuple, track.round(4).tolist())),
        )
        for plan, (track, way) in zip(plans, paths)
    ]
    shot = np.tile([0.0, 0.0, 1.0], (f, 1))
    if camera.startswith("pan"):
        axis, sign = axis_of(camera.split()[1])
        shot[:, axis] = sign * travel * (w, h)[axis] * u
    elif camera.startswith("zoom"):
        shot[:, 2] = zoom(camera, u)
    shot = tuple(map(tuple, shot.round(4).tolist()))
    return Scene(seed, w, h, f, fps, tuple(things), background, camera, shot, event, *map(float, pillar))


def _cast(rng, side, f, count, camera, event, fixed) -> list[Plan]:
    """Who takes part: the objects' looks, sizes and motions, of distinct colours where they are not fixed."""
    plans, colors = [], rng.permutation(list(COLORS)).tolist()
    for i in range(count):
        want = {
            name: (value[i] if i < len(value) else None) if isinstance(value, tuple) else value
            for name, value in fixed.items()
        }
        motion = want.get("motion") or _pick(rng, ALONE if count == 1 else TOGETHER)
        motion = _any(rng, STRAIGHT) if motion == "straight" else motion
        if f == 1 or camera != "still":
            motion = "still"
        elif event and i < 2:
            motion = "collide" if event == "collide" else ("still", "orbit")[i]
        shape = want.get("shape") or _any(rng, tuple(SHAPES))
        if motion == "spin" and shape == "circle" and not want.get("shape"):
            shape = "square"  # a plain circle's spin cannot be seen
        scale = want.get("scale") or _pick(rng, {"small": 10, "medium": 16, "large": 10 if count == 1 else 6})
        if (
            scale == "large"
            and not want.get("scale")
            and (event == "orbit" or motion == "hide" or camera.startswith("zoom"))
        ):
            scale = "small"
        if motion in ("grow", "shrink"):
            scale = "large"
        share, least = SCALES[scale]
        diameter = min(max(share * side, least), 0.5 * side) * rng.uniform(0.96, 1.04)
        fine = {"dotted": 20, "striped": 14}  # pixels below which a texture would blur
        textures = {kind: weight for kind, weight in TEXTURES.items() if diameter >= fine.get(kind, 0)}
        texture = want.get("texture") or _pick(rng, textures)
        if motion == "spin" and shape == "circle" and texture == "solid":
            texture = "two-tone"
        color = want.get("color") or next(c for c in colors if c not in [plan.color for plan in plans])
        plans.append(Plan(shape, color, scale, texture, motion, want.get("way"), diameter))
    return plans


def _background(rng, kind: str, camera: str) -> Background:
    light = rng.random() < 0.68
    color, other = rng.permutation(LIGHT if light else DARK).tolist()[:2]
    if kind in ("horizon", "hills"):  # a sky and a ground that can be told apart
        color = _any(rng, ("white", "cream", "pale blue") if light else ("slate", "black"))
        other = _any(
            rng, ("grey", "beige", "dark brown", "pale green") if light else ("grey", "dark brown", "dark grey")
        )
    elif kind == "plain":
        color = other = _any(rng, tuple(GREYS))
    if camera != "still" and kind in ("hills", "tiles"):  # contrast enough to see it pass by
        other = _any(rng, ("grey", "dark brown")) if light else "grey"
    return Background(kind, color, other, float(rng.uniform(0, 2 * np.pi)))


# ------------------------------------------------------------------------------------------------ a stream of clips


def clips(seeds: Iterable[int], threads: int | None = None, **fixed):
    """A tf.data.Dataset of {video uint8 [f h w 3], short, long} in the order of the seeds, rendered by `threads`.

    `threads` None: as tf.data finds best. `fixed` goes to `sample`; sizes differ from clip to clip unless fixed.
    """
    import tensorflow as tf

    def draw(seed):
        scene = sample(int(seed), **fixed)
        return render(scene), *captions(scene)

    def load(seed):
        video, short, long = tf.numpy_function(draw, [seed], (tf.uint8, tf.string, tf.string), stateful=False)
        return {"video": tf.ensure_shape(video, (None, None, None, 3)), "short": short, "long": long}

    seeds = tf.data.Dataset.from_tensor_slices(np.asarray(list(seeds), np.int64))
    return seeds.map(load, num_parallel_calls=threads or tf.data.AUTOTUNE, deterministic=True)
