"""The paths that objects take: each motion as positions over a clip, within the frame.

`u` [f] runs from 0 to 1 over the clip. A track [f 4] holds x, y (pixels, y down), scale (of the diameter) and angle
(radians, clockwise). Every motion is (track, way), or None where it does not fit into the frame (draw again then).
"""

from typing import NamedTuple

import numpy as np

from sora_jax.data.drawing import SHAPES

STRAIGHT = ("left", "right", "up", "down")
TURNS = ("clockwise", "counterclockwise")
MOTIONS = ("still", *STRAIGHT, "bounce", "orbit", "fall", "grow", "shrink", "spin", "hide", "collide")
CAMERAS = ("still", "pan left", "pan right", "pan up", "pan down", "zoom in", "zoom out")


class Plan(NamedTuple):
    """An object before it has a place: `way` may be None (any), `diameter` is in pixels."""

    shape: str
    color: str
    scale: str
    texture: str
    motion: str
    way: str | None
    diameter: float

    @property
    def half(self) -> float:
        return SHAPES[self.shape][0] * self.diameter

    @property
    def radius(self) -> float:
        return SHAPES[self.shape][3] * self.diameter


def axis_of(way: str) -> tuple[int, int]:
    """(0 for x or 1 for y, the sign along it)."""
    return int(way in ("up", "down")), 1 if way in ("right", "down") else -1


def zoom(camera: str, u: np.ndarray) -> np.ndarray:
    """The magnification of "zoom in" or "zoom out" over the clip: between 1 and 1.5."""
    return 1 + 0.5 * (u if camera == "zoom in" else 1 - u)


def room(plan: Plan, w: int, h: int, grown: float = 1.0) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the centre may be so that all of the object shows, a pixel from the edges: (least, most) of x and of y."""
    half, up, down, radius = (extent * plan.diameter * grown for extent in SHAPES[plan.shape])
    if plan.motion == "spin":
        half = up = down = radius
    return (half + 1, max(w - half - 1, half + 1)), (up + 1, max(h - down - 1, up + 1))


def rest(rng, rooms, u: np.ndarray) -> np.ndarray:
    """A track that stays at one place of the room."""
    return np.tile([rng.uniform(*rooms[0]), rng.uniform(*rooms[1]), 1.0, 0.0], (len(u), 1))


def seen_by(rng, plan: Plan, w, h, u, camera: str, travel: float):
    """A thing at rest in the world as a moving camera shows it: against a pan, or away from the middle in a zoom."""
    if camera.startswith("pan"):
        axis, sign = axis_of(camera.split()[1])
        rooms = room(plan, w, h)
        return _slide(rng, rest(rng, rooms, u), rooms, axis, -sign, travel * (w, h)[axis], u)
    rooms, scale = room(plan, w, h, 1.5), zoom(camera, u)
    track = rest(rng, rooms, u)
    for axis, n in ((0, w), (1, h)):
        track[:, axis] = n / 2 + (track[:, axis] - n / 2) / 1.5 * scale
    track[:, 2] = scale
    return track, ""


def path(rng, plan: Plan, w, h, u, pillar: tuple[float, float]):
    """The motion of one object on its own; `pillar` is (x, width) of what "hide" passes behind."""
    rooms = room(plan, w, h)
    track = rest(rng, rooms, u)
    if plan.motion in STRAIGHT:
        axis, sign = axis_of(plan.motion)
        step = min(rng.uniform(0.32, 0.6) * (w, h)[axis], rooms[axis][1] - rooms[axis][0])
        return _slide(rng, track, rooms, axis, sign, step, u) if step >= 0.28 * (w, h)[axis] else None
    if plan.motion == "bounce":
        way = plan.way or str(rng.choice(STRAIGHT))
        axis, sign = axis_of(way)
        low, high = rooms[axis]
        hit, step = rng.uniform(0.42, 0.55), rng.uniform(0.7, 1.0) * (high - low) / 1.4
        track[:, axis] = (high if sign > 0 else low) - sign * step * np.abs(1 - u / hit)
        return (track, way) if step >= 0.25 * (w, h)[axis] else None
    if plan.motion == "fall":
        top, floor = rooms[1]
        start = top + rng.uniform(0, 0.15) * (floor - top)
        track[:, 1] = _rebound(u, start, floor, rng.uniform(0.42, 0.52))
        return (track, "down") if floor - start >= 0.3 * h else None
    if plan.motion == "orbit":
        radius = min(rng.uniform(0.2, 0.3) * min(w, h), *((b - a) / 2 for a, b in rooms))
        center = [rng.uniform(a + radius, max(b - radius, a + radius)) for a, b in rooms]
        return _turn(rng, track, center, radius, plan.way, u) if radius >= 0.18 * min(w, h) else None
    if plan.motion in ("grow", "shrink"):
        least = min(max(10.0 / plan.diameter, 0.48), 0.7)
        track[:, 2] = least + (1 - least) * (u if plan.motion == "grow" else 1 - u)
    if plan.motion == "spin":
        way = plan.way or str(rng.choice(TURNS))
        track[:, 3] = rng.uniform(0.5, 0.9) * np.pi * u * (1 if way == "clockwise" else -1)
        return track, way
    if plan.motion == "hide":
        way = plan.way or str(rng.choice(("left", "right")))
        beside = pillar[1] / 2 + plan.half + 1
        (low, high), before, after = rooms[0], pillar[0] - beside, pillar[0] + beside
        if before < low or after > high:
            return None
        start, end = rng.uniform(low, before), rng.uniform(after, high)
        track[:, 0] = start + (end - start) * (u if way == "right" else 1 - u)
        return track, way
    return track, ""


def collide(rng, plans, w, h, u):
    """Two tracks on one level that meet in the middle of the clip and part again."""
    rooms = [room(plan, w, h) for plan in plans]
    low, high = max(r[1][0] for r in rooms), min(r[1][1] for r in rooms)
    touch = plans[0].half + plans[1].half + 0.5  # distance of the centres
    free = (rooms[1][0][1] - rooms[0][0][0] - touch) / 2  # what each may travel when they meet in the middle
    meet, step = rng.uniform(0.46, 0.55), rng.uniform(0.7, 1.0) * free / 1.2
    if step < 0.14 * w or low > high:
        return None
    spare = free - 1.18 * step  # the way back is at most (1 - 0.46) / 0.46 of the way there
    x, y, away = rooms[0][0][0] + free + spare * rng.uniform(-1, 1), rng.uniform(low, high), step * np.abs(1 - u / meet)
    one, y = np.ones_like(u), np.full_like(u, y)
    return [
        (np.stack([x - away, y, one, 0 * u], 1), "right"),
        (np.stack([x + touch + away, y, one, 0 * u], 1), "left"),
    ]


def orbit(rng, plans, w, h, u):
    """Two tracks: the first stays, the second goes around it."""
    radius = plans[0].radius + plans[1].radius + rng.uniform(2, 5)
    rooms = [(a + radius, b - radius) for a, b in room(plans[1], w, h)]
    if any(a > b for a, b in rooms):
        return None
    track = rest(rng, rooms, u)
    return [(track, ""), _turn(rng, track.copy(), track[0, :2], radius, plans[1].way, u)]


def apart(plans, tracks, event: str, pillar: tuple[float, float]) -> bool:
    """Whether all keep two pixels from each other (but a colliding pair) and from the pillar (but what hides)."""
    radius = [plan.radius * track[:, 2] for plan, track in zip(plans, tracks)]
    for i, (plan, track) in enumerate(zip(plans, tracks)):
        if pillar[1] and plan.motion != "hide" and (np.abs(track[:, 0] - pillar[0]) < radius[i] + pillar[1] / 2).any():
            return False
        for j in range(i):
            gap = np.hypot(*(track[:, :2] - tracks[j][:, :2]).T) - radius[i] - radius[j]
            if gap.min() < 2 and not (event == "collide" and i == 1):
                return False
    return True


def _slide(rng, track, rooms, axis, sign, step, u):
    low, high = rooms[axis]
    spare = high - low - step
    if spare < -1e-6:
        return None
    track[:, axis] = low + rng.random() * max(spare, 0.0) + step * (u if sign > 0 else 1 - u)
    return track, STRAIGHT[2 * axis + (sign > 0)]


def _turn(rng, track, center, radius, way, u):
    way = way or str(rng.choice(TURNS))
    angle = rng.uniform(0, 2 * np.pi) + rng.uniform(0.75, 1.0) * 2 * np.pi * u * (1 if way == "clockwise" else -1)
    track[:, 0], track[:, 1] = center[0] + radius * np.cos(angle), center[1] + radius * np.sin(angle)
    return track, way


def _rebound(u, start, floor, hit, keep=0.7):
    """Height under gravity: from rest at `start` to `floor` at time `hit`, up with `keep` of the speed, and so on."""
    gravity = 2 * (floor - start) / hit**2
    y, speed, begin = start + gravity * u**2 / 2, gravity * hit, hit
    while begin < 1:
        speed *= keep
        flight = np.maximum(u - begin, 0)
        y = np.where(u >= begin, floor - speed * flight + gravity * flight**2 / 2, y)
        begin += max(2 * speed / gravity, 0.05)
    return np.minimum(y, floor)
