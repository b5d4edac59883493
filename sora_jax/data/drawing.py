"""The pixels of a scene: background, moving shapes, pillar; anti-aliased, pure numpy, only where something is.

A shape is a signed distance in pixels (negative inside), so that the share of a pixel it covers is

    (1) alpha = clip(1/2 - distance, 0, 1)

and a clip costs one background plus, for every object, one small [f k k] block of distances.
x runs right and y runs down, in pixels; the centre of the first pixel is (0.5, 0.5).
"""

import numpy as np
from jaxtyping import Float, UInt8

COLORS = {
    "red": (222, 38, 38),
    "orange": (250, 132, 18),
    "yellow": (248, 216, 32),
    "green": (40, 168, 62),
    "cyan": (32, 200, 216),
    "blue": (38, 82, 226),
    "purple": (138, 52, 204),
    "pink": (255, 105, 185),
}
GREYS = {  # low saturation, so that nothing in a background can be taken for an object
    "white": (240, 240, 237),
    "light grey": (204, 206, 209),
    "cream": (238, 230, 212),
    "pale blue": (204, 216, 230),
    "pale green": (208, 221, 206),
    "beige": (212, 200, 184),
    "grey": (146, 148, 152),
    "dark grey": (74, 76, 82),
    "slate": (64, 76, 92),
    "dark brown": (84, 70, 62),
    "black": (28, 28, 33),
}
LIGHT = ("white", "light grey", "cream", "pale blue", "pale green", "beige")
DARK = ("dark grey", "slate", "dark brown", "black")
# Half width, extent above and extent below the centre, radius of the enclosing circle; in units of the diameter.
SHAPES = {
    "circle": (0.50, 0.50, 0.50, 0.50),
    "square": (0.44, 0.44, 0.44, 0.63),
    "triangle": (0.56, 0.64, 0.33, 0.64),
    "star": (0.59, 0.62, 0.51, 0.62),
    "cross": (0.54, 0.54, 0.54, 0.58),
}
SHADE = 0.58  # the darker tone of textures: the same hue, 58% of the light


def distance(shape: str, x: np.ndarray, y: np.ndarray, d) -> np.ndarray:
    """Signed distance in pixels to a shape of diameter `d` at the origin, negative inside; convex corners are sharp."""
    if shape == "circle":
        return np.hypot(x, y) - 0.5 * d
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.44 * d
    if shape == "triangle":  # equilateral, its tip up: three lines at the inradius
        return np.maximum(y, 0.8660254 * np.abs(x) - 0.5 * y) - 0.32 * d
    if shape == "cross":
        x, y = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(x - 0.54 * d, y - 0.19 * d), np.maximum(x - 0.19 * d, y - 0.54 * d))
    if shape == "star":  # five points: fold the plane into one half-sector, then one line from tip to valley
        tip, valley, sector = 0.62, 0.28, np.pi / 5
        angle = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
        radius = np.hypot(x, y)
        nx, ny = valley * np.sin(sector), tip - valley * np.cos(sector)
        length = np.hypot(nx, ny)
        return ((radius * np.cos(angle) - tip * d) * nx + radius * np.sin(angle) * ny) / length
    raise ValueError(shape)


def texture(kind: str, x: np.ndarray, y: np.ndarray, d) -> np.ndarray:
    """How much of the darker tone there is at each point, 0 to 1; the pattern turns and grows with its object."""
    if kind == "striped":
        period = np.maximum(0.36 * d, 6.0)
        return np.clip(0.5 + np.sin(2 * np.pi / period * x) * period / (2 * np.pi), 0, 1)
    if kind == "dotted":
        period = np.maximum(0.36 * d, 7.0)
        dx, dy = (x + period / 2) % period - period / 2, (y + period / 2) % period - period / 2
        return np.clip(0.5 + 0.27 * period - np.hypot(dx, dy), 0, 1)
    if kind == "two-tone":
        return np.clip(0.5 + y, 0, 1)
    raise ValueError(kind)


def backdrop(
    kind: str, a, b, phase: float, x: np.ndarray, y: np.ndarray, w: int, h: int
) -> Float[np.ndarray, "f h w 3"]:
    """The background at world points x [f w], y [f h] of a w x h frame: 0 is tone `a`, 1 is tone `b`."""
    side, x, y = min(w, h), x[:, None, :], y[:, :, None]
    if kind == "plain":
        mix = np.zeros_like(x + y)
    elif kind == "gradient":
        mix = np.clip(y / h, 0, 1) + 0 * x
    elif kind == "tiles":
        period = max(0.34 * side, 12.0) / np.pi
        wave = np.clip(2 * np.sin(x / period + phase), -1, 1) * np.clip(2 * np.sin(y / period + 2 * phase), -1, 1)
        mix = 0.5 + 0.5 * wave
    else:  # a sky and a ground; hills are a ground with two waves
        ground = h * (0.62 + 0.04 * np.sin(7 * phase))
        if kind == "hills":
            ground = ground - 0.10 * side * np.sin(x / (0.16 * side) + phase) - 0.04 * side * np.sin(x / (0.07 * side))
        mix = np.clip(0.5 + y - ground, 0, 1)
    return np.float32(a) + mix[..., None].astype(np.float32) * (np.float32(b) - np.float32(a))


def paste(video: np.ndarray, thing, track: np.ndarray) -> None:
    """Blends one object into uint8 frames [f h w 3], in place; `track` [f 4] is x, y, scale, angle."""
    f, h, w, _ = video.shape
    d = thing.diameter * track[:, 2]
    k = int(np.ceil(2 * SHAPES[thing.shape][3] * d.max())) + 3
    corner = np.floor(track[:, :2] - k / 2).astype(int)
    x, y = (corner[:, i, None] + np.arange(k) + 0.5 - track[:, i, None] for i in (0, 1))
    x, y, d = x[:, None, :].astype(np.float32), y[:, :, None].astype(np.float32), d[:, None, None].astype(np.float32)
    light = 1.06 - 0.12 * (y / d + 0.5)  # a little brighter above than below
    if track[:, 3].any():
        c, s = (g(track[:, 3])[:, None, None].astype(np.float32) for g in (np.cos, np.sin))
        x, y = c * x + s * y, c * y - s * x
    alpha = np.clip(0.5 - distance(thing.shape, x, y, d), 0, 1)[..., None]
    if thing.texture != "solid":
        light = light * (1 - (1 - SHADE) * texture(thing.texture, x, y, d))
    color = np.minimum(np.broadcast_to(light, alpha.shape[:3])[..., None] * np.float32(COLORS[thing.color]), 255)
    for i in range(f):
        x0, y0 = corner[i]
        rows, cols = slice(max(y0, 0), max(min(y0 + k, h), 0)), slice(max(x0, 0), max(min(x0 + k, w), 0))
        part = (slice(rows.start - y0, rows.stop - y0), slice(cols.start - x0, cols.stop - x0))
        under = video[i, rows, cols]
        video[i, rows, cols] = under + alpha[i][part] * (color[i][part] - under) + 0.5


def render(scene) -> UInt8[np.ndarray, "f h w 3"]:
    """The pixels of a `worlds.Scene`: background, what passes behind the pillar, the pillar, everything else."""
    f, h, w = scene.frames, scene.height, scene.width
    shot = np.asarray(scene.shot)  # f (x y zoom)
    views = shot if scene.camera != "still" else shot[:1]
    x, y = ((np.arange(n) + 0.5 - n / 2) / views[:, 2:] + n / 2 + views[:, i : i + 1] for i, n in ((0, w), (1, h)))
    ground = scene.background
    video = backdrop(ground.kind, GREYS[ground.color], GREYS[ground.other], ground.phase, x, y, w, h)
    video = np.broadcast_to((video + 0.5).astype(np.uint8), (f, h, w, 3)).copy()
    hidden = [thing for thing in scene.things if thing.motion == "hide"]
    for thing in hidden:
        paste(video, thing, np.asarray(thing.track))
    if hidden:
        u = (np.arange(w) + 0.5 - scene.pillar_x) / (scene.pillar_width / 2)  # -1 .. 1 across it, lit from the left
        alpha = np.clip(0.5 + (1 - np.abs(u)) * scene.pillar_width / 2, 0, 1)[:, None]
        tone = (
            np.float32(GREYS["slate" if ground.color in LIGHT else "light grey"])
            * (1 - 0.15 * np.clip(u, -1, 1))[:, None]
        )
        band = np.flatnonzero(alpha[:, 0])
        band = slice(band[0], band[-1] + 1)
        under = video[:, :, band].astype(np.float32)
        video[:, :, band] = under + alpha[band] * (np.minimum(tone, 255)[band] - under) + 0.5
    for thing in scene.things:
        if thing.motion != "hide":
            paste(video, thing, np.asarray(thing.track))
    return video
