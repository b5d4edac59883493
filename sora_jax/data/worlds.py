"""The embedded data: a procedural world of coloured shapes that move, perfectly captioned, that knows its own truth.

    scene = sample(seed)            # everything there is to know, as plain numbers and words
    video = render(scene)           # uint8 [f h w 3]
    short, long = captions(scene)   # "a red circle moves right"; and where, how, before what, seen by which camera

One to three objects of shape x colour x size x texture, each with its own motion; a background of low saturation; a camera
that mostly stands still. When it moves, the objects stand still in the world, so that every sentence has one meaning.
Motions span the clip whatever its length: a path of a third of the frame is one in 9 frames and in 33.

Seeds below `HELD_OUT` (10**8) are for training, the others for evaluation.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from sora_jax.data.drawing import COLORS, GREYS, SHAPES, render  # noqa: F401  (render is half of this module's story)
from sora_jax.data.wording import captions  # noqa: F401
from sora_jax.errors import InputError

HELD_OUT = 10**8
SIDES = (32, 48, 64, 80, 96, 112, 128)
SIZES = {  # native sizes and how often they come, transposed half of the time; 64 x 64 pixels in the mean
    (32, 32): 3, (48, 48): 5, (64, 64): 14, (80, 80): 4, (96, 96): 2, (128, 128): 1,
    (48, 32): 4, (64, 32): 2, (64, 48): 9, (80, 48): 7, (80, 64): 5, (96, 48): 4, (96, 64): 7, (112, 64): 3, (128, 80): 1,
}  # fmt: skip
FRAMES = {1: 0.2, 9: 0.3, 17: 0.35, 33: 0.15}
SCALES = {"small": (0.22, 12.0), "medium": (0.30, 14.0), "large": (0.42, 16.0)}  # of the shorter side; least pixels
TEXTURES = {"solid": 0.64, "striped": 0.14, "dotted": 0.09, "two-tone": 0.13}
STRAIGHT = ("left", "right", "up", "down")
ALONE = {"straight": 46, "still": 6, "bounce": 9, "orbit": 7, "fall": 8, "grow": 6, "shrink": 6, "spin": 6, "hide": 6}
TOGETHER = {"straight": 52, "still": 22, "bounce": 5, "fall": 4, "grow": 5, "shrink": 5, "spin": 7}
MOTIONS = ("still", *STRAIGHT, "bounce", "orbit", "fall", "grow", "shrink", "spin", "hide", "collide")
CAMERAS = ("still", "pan left", "pan right", "pan up", "pan down", "zoom in", "zoom out")
KINDS = {"plain": 30, "gradient": 22, "horizon": 18, "hills": 14, "tiles": 16}
LIGHT = ("white", "light grey", "cream", "pale blue", "pale green", "beige")
DARK = ("dark grey", "slate", "dark brown", "black")


@dataclass(frozen=True)
class Thing:
    """One object. `motion` is one of MOTIONS, `way` its direction or sense; `track` holds (x, y, scale, angle) per frame.

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
    """`kind` is one of KINDS; `color` and `other` name two tones of GREYS (the upper and the lower where that matters)."""

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
    pillar_color: str


def held_out(seed: int) -> bool:
    """True for seeds that no training may touch (>= 10**8)."""
    return seed >= HELD_OUT


def positions(scene: Scene) -> Float[np.ndarray, "n f 2"]:
    """Centre (x, y) of every object in every frame, pixels."""
    return np.array([thing.track for thing in scene.things])[:, :, :2]


def visible(scene: Scene) -> Bool[np.ndarray, "n f"]:
    """Whether every object shows entirely: False while any of it is behind the pillar."""
    near = np.array([(SHAPES[t.shape][0] * t.diameter + scene.pillar_width / 2) * (t.motion == "hide") for t in scene.things])
    return np.abs(positions(scene)[:, :, 0] - scene.pillar_x) >= near[:, None]


# ------------------------------------------------------------------------------------------------ sampling


def sample(
    seed: int, size: tuple[int, int] | None = None, frames: int | None = None, fps: float = 8.0, **fixed
) -> Scene:
    """The scene of a seed. What is not given is drawn: size (width, height) and frames from SIZES and FRAMES.

    fixed: count (1-3); camera, background (a kind), event; and shape, color, scale, texture, motion, way of the objects: one word for
    all or a tuple with one word each (None leaves it to chance).
    Raises InputError for an unknown name or word, and when that many objects do not fit into the frame.
    """
    _check(size, frames, fps, fixed)
    rng = np.random.default_rng(seed)
    native, count = list(SIZES)[rng.choice(len(SIZES), p=_share(SIZES))], rng.choice(3, p=(0.5, 0.35, 0.15)) + 1
    w, h = size or (native if rng.random() < 0.5 else native[::-1])
    f = frames or int(rng.choice(list(FRAMES), p=list(FRAMES.values())))
    given = [len(v) for v in fixed.values() if isinstance(v, tuple)]
    if given or "count" in fixed:
        count = fixed.get("count", max(given, default=1))
    elif fixed.get("event"):
        count = 2
    else:
        count = min(count, 3 if w * h >= 72 * 64 else 2 if w * h >= 40 * 40 else 1)
    while True:
        for _ in range(40):
            scene = _scene(rng, seed, w, h, f, float(fps), int(count), fixed)
            if scene is not None:
                return scene
        if given or "count" in fixed or fixed.get("event") or count == 1:
            raise InputError(
                f"{count} object(s) with {fixed} do not fit into {w}x{h}: ask for fewer or smaller ones, or a larger frame"
            )
        count -= 1


def _check(size, frames, fps, fixed) -> None:
    words = {
        "count": (1, 2, 3), "camera": CAMERAS, "background": tuple(KINDS), "event": ("", "collide", "orbit"),
        "shape": tuple(SHAPES), "color": tuple(COLORS), "scale": tuple(SCALES), "texture": tuple(TEXTURES),
        "motion": MOTIONS, "way": (*STRAIGHT, "clockwise", "counterclockwise"),
    }  # fmt: skip
    for name, value in fixed.items():
        if name not in words:
            raise InputError(f"a scene has no {name!r} to fix: choose among {', '.join(words)}")
        for word in value if isinstance(value, tuple) else (value,):
            if word is not None and word not in words[name]:
                raise InputError(f"{name} cannot be {word!r}: choose among {', '.join(map(str, words[name]))}")
    if size is not None and min(size) < 16:
        raise InputError(f"a world of {size[0]}x{size[1]} is too small to see anything: make each side at least 16")
    if frames is not None and frames < 1 or fps <= 0:
        raise InputError(f"a clip of {frames} frames at {fps} fps cannot be: both must be positive")


def _share(weights: dict) -> np.ndarray:
    p = np.array(list(weights.values()), float)
    return p / p.sum()


def _pick(rng, weights):
    words = list(weights)
    return words[rng.choice(len(words), p=_share(weights) if isinstance(weights, dict) else None)]


def _scene(rng, seed, w, h, f, fps, count, fixed) -> Scene | None:
    """One attempt: None when its objects would touch or leave the frame."""

    def want(name, i):
        value = fixed.get(name)
        return (value[i] if i < len(value) else None) if isinstance(value, tuple) else value

    side = min(w, h)
    moving_camera = f > 1 and rng.random() < 0.1 and not fixed.keys() & {"motion", "event", "way"}
    camera = fixed.get("camera") or (_pick(rng, CAMERAS[1:]) if moving_camera else "still")
    camera = camera if f > 1 else "still"
    event = fixed.get("event")
    if event is None:
        alone = f == 1 or count == 1 or camera != "still" or "motion" in fixed
        event = "" if alone else _pick(rng, {"": 80, "collide": 13, "orbit": 7})
    event = event if f > 1 else ""
    kind = fixed.get("background") or _pick(rng, {k: v for k, v in KINDS.items() if camera == "still" or k in ("hills", "tiles")})
    background = _background(rng, kind)

    colors = rng.permutation(list(COLORS)).tolist()
    plans = []
    for i in range(count):
        motion = _pick(rng, ALONE if count == 1 else TOGETHER)
        motion = _pick(rng, STRAIGHT) if motion == "straight" else motion
        motion = want("motion", i) or motion
        if f == 1 or camera != "still":
            motion = "still"
        elif event == "collide" and i < 2 or event == "orbit" and i < 2:
            motion = "collide" if event == "collide" else ("still", "orbit")[i]
        shape = want("shape", i) or _pick(rng, tuple(SHAPES))
        if motion == "spin" and shape == "circle" and not want("shape", i):
            shape = "square"
        scale = want("scale", i) or _pick(rng, {"small": 1, "medium": 1.6, "large": 1 if count == 1 else 0.6})
        if event == "orbit" or motion == "hide" or camera.startswith("zoom"):
            scale = want("scale", i) or ("small" if scale == "large" else scale)
        if motion in ("grow", "shrink"):
            scale = "large"
        share, least = SCALES[scale]
        d = min(max(share * side, least), 0.5 * side) * rng.uniform(0.96, 1.04)
        kinds = {k: v for k, v in TEXTURES.items() if k == "solid" or d >= (20 if k == "dotted" else 14)}
        color = want("color", i) or next(c for c in colors if c not in [p[1] for p in plans])
        plans.append((shape, color, scale, want("texture", i) or _pick(rng, kinds), motion, want("way", i), d))

    u = np.linspace(0, 1, f)
    pillar = (0.0, 0.0)
    if any(p[4] == "hide" for p in plans):
        width = max(1.3 * max(2 * SHAPES[p[0]][0] * p[6] for p in plans if p[4] == "hide"), 12.0)
        pillar = (w * rng.uniform(0.46, 0.54), width)
    travel = rng.uniform(0.28, 0.42)
    things = []
    for _ in range(12):  # the same cast, other places
        if event == "collide":
            paths = _collide(rng, plans[:2], w, h, u)
        elif event == "orbit":
            paths = _circle_around(rng, plans[:2], w, h, u)
        else:
            paths = []
        if paths is not None:
            for plan in plans[len(paths) :]:
                paths.append(_path(rng, plan, w, h, u, camera, travel, pillar))
        if paths is not None and None not in paths and _apart(plans, [p[0] for p in paths], event, pillar):
            things = [
                Thing(*plan[:5], way, float(plan[6]), tuple(map(tuple, np.round(track, 4).tolist())))
                for plan, (track, way) in zip(plans, paths)
            ]
            break
    if not things:
        return None
    shot = np.stack([np.zeros(f), np.zeros(f), np.ones(f)], 1)
    if camera.startswith("pan"):
        axis, sign = _axis(camera.split()[1])
        shot[:, axis] = sign * travel * (w, h)[axis] * u
    elif camera.startswith("zoom"):
        shot[:, 2] = _zoom(camera, u)
    pillar_color = "slate" if background.color in LIGHT else "light grey"
    return Scene(
        seed, w, h, f, fps, tuple(things), background, camera, tuple(map(tuple, shot.tolist())), event,
        float(pillar[0]), float(pillar[1]), pillar_color,
    )  # fmt: skip


def _background(rng, kind: str) -> Background:
    tones = LIGHT if rng.random() < 0.68 else DARK
    color, other = rng.permutation(tones).tolist()[:2]
    if kind in ("horizon", "hills"):  # a sky and a ground that can be told apart
        color, other = (_pick(rng, ("white", "cream", "pale blue")), _pick(rng, ("grey", "beige", "dark brown", "pale green")))
        if tones is DARK:
            color, other = _pick(rng, ("slate", "black")), _pick(rng, ("grey", "dark brown", "dark grey"))
    elif kind == "plain":
        color = other = _pick(rng, tuple(GREYS))
    return Background(kind, color, other, float(rng.uniform(0, 2 * np.pi)))


def _axis(way: str) -> tuple[int, int]:
    return int(way in ("up", "down")), 1 if way in ("right", "down") else -1


def _zoom(camera: str, u: np.ndarray) -> np.ndarray:
    return 1 + 0.5 * (u if camera == "zoom in" else 1 - u)


def _room(plan, w, h, grown=1.0) -> list[tuple[float, float]]:
    """Where the centre may be so that the object shows whole: (least, most) of x and of y, a pixel from the edge."""
    half, up, down, radius = (e * plan[6] * grown for e in SHAPES[plan[0]])
    if plan[4] == "spin":
        half = up = down = radius
    return [(half + 1, max(w - half - 1, half + 1)), (up + 1, max(h - down - 1, up + 1))]


def _path(rng, plan, w, h, u, camera, travel, pillar):
    """(track [f 4], way) of one object, or None when its motion does not fit."""
    motion, way, d = plan[4], plan[5], plan[6]
    room = _room(plan, w, h)
    track = np.tile(np.array([rng.uniform(*room[0]), rng.uniform(*room[1]), 1.0, 0.0]), (len(u), 1))
    if camera.startswith("pan"):  # still in the world: moves against the camera
        axis, sign = _axis(camera.split()[1])
        return _slide(rng, track, room, axis, -sign, travel * (w, h)[axis], u), ""
    if camera.startswith("zoom"):
        zoom, room = _zoom(camera, u), _room(plan, w, h, 1.5)
        for axis, n in ((0, w), (1, h)):
            at = (rng.uniform(*room[axis]) - n / 2) / 1.5
            track[:, axis] = n / 2 + at * zoom
        track[:, 2] = zoom
        return track, ""
    if motion in STRAIGHT:
        axis, sign = _axis(motion)
        most = room[axis][1] - room[axis][0]
        step = min(rng.uniform(0.32, 0.6) * (w, h)[axis], most)
        return (_slide(rng, track, room, axis, sign, step, u), motion) if step >= 0.28 * (w, h)[axis] else None
    if motion == "bounce":
        way = way or _pick(rng, STRAIGHT)
        axis, sign = _axis(way)
        low, high = room[axis]
        hit, step = rng.uniform(0.42, 0.55), rng.uniform(0.7, 1.0) * (high - low) / 1.4
        if step < 0.25 * (w, h)[axis]:
            return None
        track[:, axis] = (high if sign > 0 else low) - sign * step / hit * np.abs(hit - u)
        return track, way
    if motion == "orbit":
        way = way or _pick(rng, ("clockwise", "counterclockwise"))
        most = min(room[0][1] - room[0][0], room[1][1] - room[1][0]) / 2
        radius = min(rng.uniform(0.2, 0.3) * min(w, h), most)
        if radius < 0.18 * min(w, h):
            return None
        center = [rng.uniform(a + radius, b - radius) if b - a > 2 * radius else (a + b) / 2 for a, b in room]
        return _turn(rng, track, center, radius, way, u), way
    if motion == "fall":
        top, floor = room[1]
        start, hit = top + rng.uniform(0, 0.15) * (floor - top), rng.uniform(0.42, 0.52)
        if floor - start < 0.3 * h:
            return None
        track[:, 1] = _rebound(u, start, floor, hit)
        return track, "down"
    if motion in ("grow", "shrink"):
        least = min(max(10.0 / d, 0.48), 0.7)
        scale = least + (1 - least) * u
        track[:, 2] = scale if motion == "grow" else scale[::-1]
        return track, ""
    if motion == "spin":
        way = way or _pick(rng, ("clockwise", "counterclockwise"))
        track[:, 3] = rng.uniform(0.5, 0.9) * np.pi * u * (1 if way == "clockwise" else -1)
        return track, way
    if motion == "hide":
        way = way if way in ("left", "right") else _pick(rng, ("left", "right"))
        low, high = room[0]
        near = pillar[1] / 2 + SHAPES[plan[0]][0] * d + 1  # just beside the pillar
        if pillar[0] - near < low or pillar[0] + near > high:
            return None
        start, end = rng.uniform(low, pillar[0] - near), rng.uniform(pillar[0] + near, high)
        track[:, 0] = start + (end - start) * (u if way == "right" else 1 - u)
        return track, way
    if motion == "collide":
        raise InputError('motion "collide" takes two: fix event="collide"')
    return track, ""


def _slide(rng, track, room, axis, sign, step, u):
    low, high = room[axis]
    start = rng.uniform(low, max(high - step, low))
    track[:, axis] = start + step * (u if sign > 0 else 1 - u)
    return track


def _turn(rng, track, center, radius, way, u):
    angle = rng.uniform(0, 2 * np.pi) + rng.uniform(0.75, 1.0) * 2 * np.pi * u * (1 if way == "clockwise" else -1)
    track[:, 0], track[:, 1] = center[0] + radius * np.cos(angle), center[1] + radius * np.sin(angle)
    return track


def _rebound(u, start, floor, hit, keep=0.7):
    """Height under gravity: down from `start`, reaching `floor` at time `hit`, and up again with `keep` of the speed."""
    gravity = 2 * (floor - start) / hit**2
    y = start + gravity * u**2 / 2
    speed, begin = gravity * hit, hit
    while begin < 1:
        speed *= keep
        flight = np.where(u >= begin, u - begin, 0)
        y = np.where(u >= begin, floor - speed * flight + gravity * flight**2 / 2, y)
        begin += max(2 * speed / gravity, 0.05)
    return np.minimum(y, floor)


def _collide(rng, plans, w, h, u):
    """Two paths that meet in the middle of the clip and part again, on one level; None when too narrow."""
    half = [SHAPES[p[0]][0] * p[6] for p in plans]
    rooms = [_room(p, w, h) for p in plans]
    low, high = max(r[1][0] for r in rooms), min(r[1][1] for r in rooms)
    left, right = rooms[0][0][0], rooms[1][0][1]
    touch = half[0] + half[1] + 0.5
    free = (right - left - touch) / 2  # what each can travel if they meet in the middle
    if free < 0.14 * w or low > high:
        return None
    meet, step, y = rng.uniform(0.42, 0.55), rng.uniform(0.75, 1.0) * free / 1.3, rng.uniform(low, high)
    shift = rng.uniform(-0.2, 0.2) * free
    away = step * np.abs(u - meet) / meet
    paths = []
    for i, sign in ((0, -1), (1, 1)):
        x = left + free + shift - away if i == 0 else left + free + touch + shift + away
        paths.append((np.stack([x, np.full_like(u, y), np.ones_like(u), np.zeros_like(u)], 1), ("right", "left")[i]))
    return paths


def _circle_around(rng, plans, w, h, u):
    """The first stays in the middle, the second goes around it; None when there is no room."""
    radius = (SHAPES[plans[0][0]][3] * plans[0][6] + SHAPES[plans[1][0]][3] * plans[1][6]) + rng.uniform(2, 5)
    rooms = [_room(p, w, h) for p in plans]
    track = np.tile(np.array([0.0, 0.0, 1.0, 0.0]), (len(u), 1))
    low = [rooms[1][i][0] + radius for i in (0, 1)]
    high = [rooms[1][i][1] - radius for i in (0, 1)]
    if low[0] > high[0] or low[1] > high[1]:
        return None
    center = [rng.uniform(low[i], high[i]) for i in (0, 1)]
    still = track.copy()
    still[:, 0], still[:, 1] = center
    way = _pick(rng, ("clockwise", "counterclockwise"))
    return [(still, ""), (_turn(rng, track, center, radius, way, u), way)]


def _apart(plans, tracks, event, pillar) -> bool:
    """Whether all keep two pixels from each other (but those that collide) and from the pillar (but those that hide)."""
    radius = [SHAPES[p[0]][3] * p[6] * t[:, 2] for p, t in zip(plans, tracks)]
    for i, (a, t) in enumerate(zip(plans, tracks)):
        if pillar[1] and a[4] != "hide" and (np.abs(t[:, 0] - pillar[0]) < radius[i] + pillar[1] / 2).any():
            return False
        for j in range(i):
            gap = np.hypot(*(t[:, :2] - tracks[j][:, :2]).T) - radius[i] - radius[j]
            if gap.min() < 2 and not (event == "collide" and (j, i) == (0, 1)):
                return False
    return True


# ------------------------------------------------------------------------------------------------ a stream of clips


def clips(seeds: Iterable[int], threads: int | None = None, **fixed):
    """A tf.data.Dataset of {video uint8 [f h w 3], short, long} in the order of the seeds, rendered in `threads` (None: all cores).

    `fixed` goes to `sample`. Sizes differ from clip to clip unless fixed: do not batch them.
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
