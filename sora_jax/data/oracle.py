"""Says what a clip of the world shows by looking at its pixels alone: colours, shapes, counts, motions, the camera.

It knows how things are drawn (`drawing.py`), never what was drawn. In order:

    find     saturated pixels make blobs, frame by frame; a blob where two hues touch is parted
    follow   blobs of one colour become one object through time, also when it vanishes behind the pillar for a while
    shape    how much of each pixel an object covers is unmixed from its colour and its surroundings, compared with the
             five shapes at every angle; its clearest frames vote
    motion   from the path, the size and the angle; the camera from what the background does

`agrees` compares what was seen with what a scene should show.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sora_jax.data.drawing import COLORS, SHAPES
from sora_jax.data.motions import STRAIGHT
from sora_jax.data.silhouette import SATURATED, SYMMETRY, compare, coverage, grow, saturation

FAINT = 0.5  # of a colour's own saturation: blobs paler than that are a codec's ghosts
LEAST = 20  # pixels of the smallest blob worth following
NAMES = tuple(COLORS)


@dataclass
class Object:
    """One object seen: `path` [n 2] its centres (pixels) in `frames` [n], `area` [n] its pixels there, `cut` [n]
    whether the edge of the frame cuts it."""

    color: str
    shape: str
    motion: str
    way: str
    frames: Int[np.ndarray, "n"] = field(repr=False)
    path: Float[np.ndarray, "n 2"] = field(repr=False)
    area: Float[np.ndarray, "n"] = field(repr=False)
    cut: Bool[np.ndarray, "n"] = field(repr=False)


@dataclass
class Seen:
    """What a clip shows: its objects, the largest first, and what the camera does."""

    objects: list[Object]
    camera: str

    @property
    def count(self) -> int:
        return len(self.objects)


def oracle(frames: UInt8[np.ndarray, "f h w 3"]) -> Seen:
    """Looks at a clip (or an image: one frame) and says what it sees."""
    frames = np.asarray(frames)
    video = frames.astype(np.float32)
    blobs = find(video)
    tracks = follow(blobs, len(video), min(video.shape[1:3]))
    objects = []
    for track in tracks:
        shape = read_shape(video, track)
        path = np.array([blob.center for blob in track])
        area = np.array([float(len(blob.pixels)) for blob in track])
        at, cut = np.array([blob.frame for blob in track]), np.array([blob.edge for blob in track])
        seen = Object(track[0].color, shape, "still", "", at, path, area, cut)
        seen.motion, seen.way = read_motion(video, track, seen)
        objects.append(seen)
    camera = read_camera(video, blobs, objects)
    if camera != "still":  # what moves with the world stands still in it
        for seen in objects:
            seen.motion, seen.way = "still", ""
    else:
        _meet(objects)
    return Seen(sorted(objects, key=lambda seen: -seen.area.mean()), camera)


# ------------------------------------------------------------------------------------------------ find and follow


@dataclass
class Blob:
    """Connected pixels [n 2] (row, column) of one colour in one frame.

    `strength`: its clearest pixels' saturation, of the colour's own; `edge`: touches one of the frame's; `alone`: no
    edge and no other blob.
    """

    frame: int
    color: str
    center: tuple[float, float]
    pixels: np.ndarray
    strength: float
    edge: bool
    alone: bool


def hue(rgb: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "..."]:
    """Angle around the grey axis in radians (the hexagon's corners at multiples of 60 degrees)."""
    r, g, b = np.moveaxis(np.asarray(rgb, np.float32), -1, 0)
    return np.arctan2(np.sqrt(3.0) * (g - b), 2 * r - g - b)


HUES = hue(np.array(list(COLORS.values())))


OWN = np.array([max(rgb) - min(rgb) for rgb in COLORS.values()])  # the saturation of each


def nearest_color(rgb: Float[np.ndarray, "... 3"]) -> Int[np.ndarray, "..."]:
    """Index into NAMES of the colour of nearest hue."""
    turn = hue(rgb)[..., None] - HUES
    return np.abs((turn + np.pi) % (2 * np.pi) - np.pi).argmin(-1)


def components(mask: Bool[np.ndarray, "f h w"]) -> Int[np.ndarray, "f h w"]:
    """A number for every connected region (4 neighbours, frame by frame), 0 outside.

    Every pixel takes its neighbours' largest number, then the number found there in turn: few rounds for any length.
    """
    ids = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        new = ids.copy()
        np.maximum(new[:, 1:], ids[:, :-1], out=new[:, 1:])
        np.maximum(new[:, :-1], ids[:, 1:], out=new[:, :-1])
        np.maximum(new[:, :, 1:], ids[:, :, :-1], out=new[:, :, 1:])
        np.maximum(new[:, :, :-1], ids[:, :, 1:], out=new[:, :, :-1])
        new *= mask
        new = np.where(mask, new.ravel()[np.maximum(new, 1) - 1], 0)
        if (new == ids).all():
            return ids
        ids = new


def find(video: Float[np.ndarray, "f h w 3"]) -> list[Blob]:
    """The blobs of all frames."""
    _, h, w, _ = video.shape
    chroma = saturation(video)
    ids = components(chroma > SATURATED)
    index = np.flatnonzero(ids)
    index = index[np.argsort(ids.ravel()[index], kind="stable")]
    blobs = []
    for part in np.split(index, np.flatnonzero(np.diff(ids.ravel()[index])) + 1):
        if len(part) < LEAST:
            continue
        frame, rows, cols = np.unravel_index(part, ids.shape)
        weight, rgb = chroma.ravel()[part], video.reshape(-1, 3)[part]
        color = nearest_color(rgb)
        share = np.bincount(color, weight, len(NAMES)) / weight.sum()
        several = [c for c in np.flatnonzero(share > 0.22) if (color == c).sum() >= LEAST]
        edge = rows.min() == 0 or cols.min() == 0 or rows.max() == h - 1 or cols.max() == w - 1
        for c in several if len(several) > 1 else [None]:
            own = np.ones(len(part), bool) if c is None else color == c
            if c is None:  # its clearest pixels: edges take on some of what lies behind
                c = nearest_color(rgb[weight >= 0.7 * np.percentile(weight, 90)].mean(0))
            center = (cols[own].mean() + 0.5, rows[own].mean() + 0.5)
            pixels, strength = np.stack([rows, cols], 1)[own], np.percentile(weight[own], 90) / OWN[c]
            if strength > FAINT:
                alone = len(several) < 2 and not edge
                blobs.append(Blob(int(frame[0]), NAMES[c], center, pixels, strength, bool(edge), alone))
    return blobs


def follow(blobs: list[Blob], f: int, side: int) -> list[list[Blob]]:
    """Blobs of one colour joined through time.

    What shows in less than a quarter of the frames is dropped as noise, and as an echo what is paler than another.
    """
    tracks: list[list[Blob]] = []
    for blob in sorted(blobs, key=lambda blob: (blob.frame, -len(blob.pixels))):
        free = [t for t in tracks if t[-1].color == blob.color and t[-1].frame < blob.frame]
        free = [(np.hypot(*np.subtract(t[-1].center, blob.center)), t) for t in free]
        near = min((d, i) for i, (d, _) in enumerate(free)) if free else None
        if near and near[0] < side:
            free[near[1]][1].append(blob)
        else:
            tracks.append([blob])
    tracks = [t for t in tracks if len(t) >= 0.25 * f]
    clear = [float(np.mean([blob.strength for blob in t])) for t in tracks]
    best = {t[0].color: max(c for u, c in zip(tracks, clear) if u[0].color == t[0].color) for t in tracks}
    return [t for t, c in zip(tracks, clear) if c > 0.65 * best[t[0].color]]


# ------------------------------------------------------------------------------------------------ shape


def read_shape(video: Float[np.ndarray, "f h w 3"], track: list[Blob]) -> str:
    """The shape by the vote of an object's clearest frames."""
    votes = [compare(coverage(video[blob.frame], blob.pixels), SHAPES) for blob in _clear(track, 6)]
    return min(SHAPES, key=lambda name: sum(vote[name][0] for vote in votes))


def read_turn(video: Float[np.ndarray, "f h w 3"], track: list[Blob], shape: str) -> float:
    """Radians turned clockwise through the clip: angles are known up to a symmetry and change little by frame."""
    clear = _clear(track, 17)
    if shape not in SYMMETRY or len(clear) < 3:
        return 0.0
    angles = [compare(coverage(video[blob.frame], blob.pixels), [shape], 12, 0.0)[shape][1] for blob in clear]
    time = np.array([blob.frame for blob in clear], float)
    slope = np.polyfit(time, np.unwrap(angles, period=2 * np.pi / SYMMETRY[shape]), 1)[0]
    return float(slope * (time[-1] - time[0]))


def _clear(track: list[Blob], most: int) -> list[Blob]:
    """Blobs that nothing touches or covers, near their largest: at most so many, spread over the clip."""
    clear = [blob for blob in track if blob.alone] or track
    largest = np.percentile([len(blob.pixels) for blob in clear], 90)
    clear = [blob for blob in clear if len(blob.pixels) > 0.75 * largest]
    return [clear[i] for i in np.unique(np.linspace(0, len(clear) - 1, min(most, len(clear))).round().astype(int))]


# ------------------------------------------------------------------------------------------------ motion


def read_motion(video: Float[np.ndarray, "f h w 3"], track: list[Blob], seen: Object) -> tuple[str, str]:
    """(motion, way) as worlds.Thing has them, from an object's path, areas and angles, the camera being still."""
    f, h, w, _ = video.shape
    if f == 1 or len(seen.frames) < 3:
        return "still", ""
    parts = np.array_split(np.arange(len(seen.frames)), min(9, len(seen.frames)))
    path = np.array([seen.path[part].mean(0) for part in parts])  # nine points: jitter does not add up to a way
    span = path.max(0) - path.min(0)
    axis = int((span / (w, h)).argmax())
    far = span / np.array([w, h])
    if far[axis] < 0.11:
        size = np.sqrt(seen.area)
        ratio = size[-max(len(size) // 8, 1) :].mean() / size[: max(len(size) // 8, 1)].mean()
        if ratio > 1.2 or ratio < 1 / 1.2:
            return ("grow" if ratio > 1 else "shrink"), ""
        turned = read_turn(video, track, seen.shape)
        return ("spin", "clockwise" if turned > 0 else "counterclockwise") if abs(turned) > 0.5 else ("still", "")
    if span.min() > 0.5 * span.max():
        spoke = path - (path.max(0) + path.min(0)) / 2
        a, b = spoke[:-1], spoke[1:]
        swept = np.arctan2(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], (a * b).sum(1)).sum()
        return "orbit", "clockwise" if swept > 0 else "counterclockwise"
    line = path[:, axis]
    way = STRAIGHT[2 * axis + int(line[-1] > line[0])]
    if np.abs(np.diff(line)).sum() < 1.25 * span[axis]:  # never turns back
        gone = f - len(seen.frames) - (seen.frames[0] + f - 1 - seen.frames[-1])  # frames missing in between
        ends = min(seen.area[:2].mean(), seen.area[-2:].mean())
        if axis == 0 and (gone > 0 or seen.area[1:-1].min() < 0.6 * ends):
            return "hide", way
        return way, way
    y = seen.path[:, axis]
    away = np.abs(y - y[0])
    back = np.flatnonzero(np.maximum.accumulate(away) - away > 0.15 * span[axis])
    turn = int(away[: back[0] + 1].argmax()) if len(back) else int(away.argmax())
    way = STRAIGHT[2 * axis + int(y[turn] > y[0])]
    drop = slice(0, turn if turn > 2 else turn + 1)  # the frame of the turn may already be past the hit
    t = (seen.frames[drop] - seen.frames[0]).astype(float)
    if way == "down" and len(t) > 2 and _misfit(t**2, y[drop]) < _misfit(t, y[drop]):
        return "fall", "down"
    return "bounce", way


def _misfit(t: np.ndarray, y: np.ndarray) -> float:
    """Squared error of the best line through (t, y)."""
    return float(((y - np.polyval(np.polyfit(t, y, 1), t)) ** 2).sum())


def _meet(objects: list[Object]) -> None:
    """Two that turn back from each other, at one time and side by side, have collided."""
    for i, a in enumerate(objects):
        for b in objects[:i]:
            if {(a.motion, a.way), (b.motion, b.way)} != {("bounce", "left"), ("bounce", "right")}:
                continue
            common, ia, ib = np.intersect1d(a.frames, b.frames, return_indices=True)
            if not len(common):
                continue
            gap = np.hypot(*(a.path[ia] - b.path[ib]).T)
            reach = (np.sqrt(a.area.mean()) + np.sqrt(b.area.mean())) / 2
            if gap.min() < 2 * reach:
                a.motion = b.motion = "collide"


def read_camera(video: Float[np.ndarray, "f h w 3"], blobs: list[Blob], objects: list[Object]) -> str:
    """What the camera does: objects that move or grow alike and a background that does so with them."""
    f, h, w, _ = video.shape
    whole = [seen for seen in objects if seen.frames[0] == 0 and seen.frames[-1] == f - 1]
    if f == 1 or not whole:
        return "still"
    free = np.ones((f, h, w), bool)
    for blob in blobs:
        if blob.frame in (0, f - 1):
            free[blob.frame, blob.pixels[:, 0], blob.pixels[:, 1]] = False
    free[0], free[-1] = ~grow(~free[0], 3), ~grow(~free[-1], 3)
    first, last = _soft(video[0]), _soft(video[-1])

    def mismatch(x, y):  # the last frame against the first, seen at x, y
        x, y = (
            np.floor(x).astype(int) + 0 * np.floor(y).astype(int),
            np.floor(y).astype(int) + 0 * np.floor(x).astype(int),
        )
        inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        x, y = np.clip(x, 0, w - 1), np.clip(y, 0, h - 1)
        both = inside & free[-1] & free[0][y, x]
        if both.sum() < 0.1 * h * w:
            return np.inf
        return np.abs(last - first[y, x]).mean(-1)[both].mean()

    y, x = (np.arange(h) + 0.5)[:, None], (np.arange(w) + 0.5)[None]
    as_it_was = mismatch(x, y)
    explained = min(0.75 * as_it_was, as_it_was - 0.4)  # at least a quarter less, and more than noise differs by
    move = np.mean([seen.path[-1] - seen.path[0] for seen in whole], 0)
    ratio = np.mean([np.sqrt(seen.area[-1] / seen.area[0]) for seen in whole])
    axis = int(np.abs(move / (w, h)).argmax())
    if ratio > 1.25 or ratio < 1 / 1.25:
        zoomed = min(
            mismatch((x - w / 2) / r + w / 2, (y - h / 2) / r + h / 2) for r in ratio ** np.array([0.9, 1, 1.1, 1.2])
        )
        if zoomed < explained:
            return "zoom in" if ratio > 1 else "zoom out"
    elif np.abs(move[axis]) > 0.15 * (w, h)[axis]:
        step = np.zeros(2)
        step[axis] = move[axis]
        if mismatch(x - step[0], y - step[1]) < explained:
            return "pan " + STRAIGHT[2 * axis + int(move[axis] < 0)]
    return "still"


def _soft(image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """A 3 x 3 mean, against noise."""
    wide = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    h, w = image.shape[:2]
    return sum(wide[i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9


# ------------------------------------------------------------------------------------------------ judgement


def agrees(seen: Seen, scene) -> dict:
    """What of a `worlds.Scene` was seen: lists of one bool for each of its objects, and for the clip as a whole.

    color: an object of that colour is there (one named twice must be there twice). shape: that object has the shape.
    motion: that object moves so, with its direction where it goes straight, bounces or falls; an image has none: True.
    count: as many objects as there should be, no more. camera: as it should be.
    """
    left = list(seen.objects)
    color, shape, motion = [], [], []
    for thing in scene.things:
        same = [o for o in left if o.color == thing.color]
        same.sort(key=lambda o: (o.shape != thing.shape, o.motion != thing.motion))
        found = same[0] if same else None
        if found is not None:
            left = [o for o in left if o is not found]
        directed = thing.motion in (*STRAIGHT, "bounce", "fall")
        color.append(found is not None)
        shape.append(found is not None and found.shape == thing.shape)
        moves = found is not None and found.motion == thing.motion and (not directed or found.way == thing.way)
        motion.append(scene.frames == 1 or moves)
    return {
        "color": color,
        "shape": shape,
        "motion": motion,
        "count": seen.count == len(scene.things),
        "camera": seen.camera == scene.camera,
    }
