"""Four small stages beside the world: each goes on by a rule of its own, and knows its own truth.

    parallax  three objects in space, and a camera that circles around them: near ones pass by far ones
    stroke    a brush moves along a curve, and leaves a line of another colour behind it
    bite      an object comes, bites a piece out of a large one, and goes back; the piece is gone
    game      a ball bounces off walls and off a square, the player, whose policy is to run after the ball

    stage = sample("game", seed)    # a `worlds.Scene` of solid objects before a still view, and the rule's numbers
    video = render(stage)           # uint8 [f h w 3], drawn as the world is, so that its oracle can look at it

No model is trained on them. All comes from one seed, bit for bit.

Space is measured in pixels at its middle, the point that the camera circles around and looks at: x right, y up, z to
the viewer when the angle is 0. With the camera turned by a, raised by PITCH and FAR away, a place is seen at

    (1) x' = x cos a + z sin a            z' = z cos a - x sin a
    (2) up = y cos PITCH - z' sin PITCH   near = y sin PITCH + z' cos PITCH
    (3) scale = FAR / (FAR - near)        (w / 2 + x' scale, h / 2 - up scale)
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from sora_jax.data import drawing
from sora_jax.data.drawing import COLORS, DARK, LIGHT, SHAPES
from sora_jax.data.worlds import Background, Scene, Thing
from sora_jax.errors import InputError

SIZE, FRAMES, FPS = (96, 64), 33, 8.0
CLEAR = ("red", "yellow", "green", "blue", "purple")  # no two of them pass for each other, nor do their mixtures
PITCH, FAR = 0.45, 160.0  # radians; pixels
PACE = 1.5  # pixels a frame: how fast the player of the game runs
WALL = 1.0  # pixels between the edge of the frame and what bounces off it


@dataclass(frozen=True)
class Stage:
    """A scene and its rule. given: how many frames show what is needed to go on, one more than whole latents' worth.

    things of the scene: of `stroke` the line's tip and the brush, of `bite` the eaten and the eater, of `game` the ball
    and the player. places [n 3] and angles [f]: of `parallax`. speed: the ball's along x and y, pixels a frame.
    """

    kind: str
    scene: Scene
    caption: str
    given: int
    places: tuple[tuple[float, float, float], ...] = ()
    angles: tuple[float, ...] = ()
    speed: tuple[float, float] = (0.0, 0.0)


def sample(kind: str, seed: int) -> Stage:
    """The stage of a kind and a seed. Raises InputError for a kind that there is not."""
    if kind not in KINDS:
        raise InputError(f"there is no stage {kind!r}: choose among {', '.join(KINDS)}")
    rng = np.random.default_rng((seed, 1 + list(KINDS).index(kind)))
    while True:
        stage = KINDS[kind](rng, seed)
        if stage is not None:
            return stage


def render(stage: Stage) -> UInt8[np.ndarray, "f h w 3"]:
    """The pixels of a stage."""
    if stage.kind in ("parallax", "game"):
        return drawing.render(stage.scene)
    still, mover = stage.scene.things
    ground = drawing.render(replace(stage.scene, things=())).astype(np.float32)
    if stage.kind == "stroke":
        video = ground + swept(stage.scene, still) * (np.float32(COLORS[still.color]) - ground)
    else:
        whole = drawing.render(replace(stage.scene, things=(still,))).astype(np.float32)
        video = whole + swept(stage.scene, mover) * (ground - whole)
    video = (video + 0.5).astype(np.uint8)
    drawing.paste(video, mover, np.asarray(mover.track))
    return video


def swept(scene: Scene, thing: Thing) -> Float[np.ndarray, "f h w 1"]:
    """How much of every pixel a thing has covered by then, at one time or another."""
    x, y, scale, _ = np.float32(thing.track).T[:, :, None, None]
    x, y = np.arange(scene.width) + 0.5 - x, (np.arange(scene.height) + 0.5)[:, None] - y
    alpha = np.clip(0.5 - drawing.distance(thing.shape, x, y, thing.diameter * scale), 0, 1)
    return np.maximum.accumulate(alpha, 0)[..., None].astype(np.float32)


# ------------------------------------------------------------------------------------------------ the rules


def view(places: Float[np.ndarray, "n 3"], angles: Float[np.ndarray, "f"]) -> Float[np.ndarray, "n f 3"]:
    """(x, y, scale) of places seen by a camera turned by each of the angles (radians): equations (1) to (3)."""
    (x, y, z), a = np.asarray(places).T[:, :, None], np.asarray(angles)[None]
    x, z = x * np.cos(a) + z * np.sin(a), z * np.cos(a) - x * np.sin(a)
    up, near = y * np.cos(PITCH) - z * np.sin(PITCH), y * np.sin(PITCH) + z * np.cos(PITCH)
    scale = FAR / (FAR - near)
    return np.stack([SIZE[0] / 2 + x * scale, SIZE[1] / 2 - up * scale, scale], -1)


def run_after(player: float, ball: float) -> float:
    """The player's policy: where it is a frame later, the ball being at x = `ball`."""
    return player + float(np.clip(ball - player, -PACE, PACE))


def fly(ball, speed, player: float, things: tuple[Thing, ...]):
    """The world's rule: (place, speed) of the ball a frame later. It bounces off three walls, and off the player where
    that is below it; else it falls on."""
    (x, y), (vx, vy) = ball, speed
    left, right, top, floor, reach = court(things)
    x, y = x + vx, y + vy
    if not left <= x <= right:
        x, vx = 2 * np.clip(x, left, right) - x, -vx
    if y < top or (y > floor and abs(x - player) <= reach):
        y, vy = 2 * np.clip(y, top, floor) - y, -vy
    return (float(x), float(y)), (vx, vy)


def court(things: tuple[Thing, ...]) -> tuple[float, float, float, float, float]:
    """Where the ball's centre turns back (left, right, top, floor, how far beside the player's it may be there)."""
    ball, player = things
    r, half = ball.diameter / 2, SHAPES["square"][0] * player.diameter
    return WALL + r, SIZE[0] - WALL - r, WALL + r, SIZE[1] - WALL - 2 * half - r, half + r


# ------------------------------------------------------------------------------------------------ the stages


def _parallax(rng, seed: int) -> Stage | None:
    """Three objects around the middle, a third of a turn apart or so; they neither touch nor leave the frame."""
    spokes = rng.uniform(0, 2 * np.pi) + np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.5, 0.5, 3)
    radius = rng.uniform(14, 34, 3)
    places = np.stack([radius * np.cos(spokes), rng.uniform(-9, 9, 3), radius * np.sin(spokes)], 1).round(3)
    angles = (np.linspace(0, 1, FRAMES) * rng.uniform(1.0, 1.6) * rng.choice([-1, 1])).round(5)
    seen, diameters = view(places, angles), rng.uniform(12, 15, 3)
    shapes, colors = rng.permutation(list(SHAPES))[:3].tolist(), rng.permutation(CLEAR)[:3].tolist()
    reach = np.array([SHAPES[shape][3] for shape in shapes])[:, None] * diameters[:, None] * seen[:, :, 2]
    if (np.abs(seen[:, :, :2] - np.array(SIZE) / 2) + reach[..., None] > np.array(SIZE) / 2 - 1).any():
        return None
    for i in range(3):
        if (np.hypot(*(seen[i] - seen[i - 1])[:, :2].T) < reach[i] + reach[i - 1] + 2).any():
            return None
    tracks = [np.concatenate([path, np.zeros((FRAMES, 1))], 1) for path in seen]
    things = [_thing(*looks, "still", track) for *looks, track in zip(shapes, colors, diameters, tracks)]
    names = [_name(thing) for thing in things]
    words = f"{names[0]}, {names[1]} and {names[2]}, the camera circles around them"
    ground = Background(
        "horizon", *(("white", "beige"), ("pale blue", "grey"), ("slate", "dark brown"))[rng.integers(3)], 0.0
    )
    space = {"places": tuple(map(tuple, places.tolist())), "angles": tuple(angles.tolist())}
    return Stage("parallax", _scene(seed, things, ground), words, 9, **space)


def _stroke(rng, seed: int) -> Stage:
    """From one side to the other, along a bow."""
    w, h = SIZE
    way, color, line = str(rng.choice(["left", "right"])), *rng.permutation(CLEAR)[:2].tolist()
    brush, u = rng.uniform(11, 13), np.linspace(0, 1, FRAMES)
    x = rng.uniform(0.1, 0.16) * w + rng.uniform(0.66, 0.74) * w * (u if way == "right" else 1 - u)
    y = h * (0.5 + rng.uniform(-0.12, 0.12) + rng.uniform(-0.2, 0.2) * (4 * u * (1 - u) - 0.5))
    track = np.stack([x, y, np.ones(FRAMES), np.zeros(FRAMES)], 1)
    things = [_thing("circle", line, rng.uniform(6, 7.5), way, track), _thing("circle", color, brush, way, track)]
    words = f"{_name(things[1])} moves {way} and paints {_a(line)} {line} line"
    return Stage("stroke", _scene(seed, things, _plain(rng)), words, 9)


def _bite(rng, seed: int) -> Stage:
    """It comes for three tenths of the clip, and goes back as fast."""
    w, h = SIZE
    side, (color, eater) = rng.choice([-1, 1]), rng.permutation(CLEAR)[:2].tolist()
    shape = str(rng.choice(["circle", "square"]))
    diameter, mouth = rng.uniform(26, 29), rng.uniform(15, 17)
    x, y = w / 2 + side * rng.uniform(20, 24), h * rng.uniform(0.42, 0.58)
    edge = x - side * SHAPES[shape][0] * diameter
    deep, start = edge + side * rng.uniform(0.5, 2.5), w / 2 - side * (w / 2 - mouth / 2 - 2)
    u, hit = np.linspace(0, 1, FRAMES), rng.uniform(0.28, 0.31)
    away = np.minimum(np.abs(1 - u / hit), 1.0)  # from where it bites, of the way to where it came from
    track = np.stack([deep + (start - deep) * away, np.full(FRAMES, y + rng.uniform(-3, 3)), 1 + 0 * u, 0 * u], 1)
    stays = np.tile([x, y, 1.0, 0.0], (FRAMES, 1))
    way = "right" if side > 0 else "left"
    things = [_thing(shape, color, diameter, "still", stays), _thing("circle", eater, mouth, way, track)]
    words = f"{_name(things[1])} moves {way}, bites a piece out of {_name(things[0])} and comes back"
    return Stage("bite", _scene(seed, things, _plain(rng)), words, 13)


def _game(rng, seed: int) -> Stage | None:
    """The player never misses; it has some way to run when the given frames end, and catches the ball after them."""
    colors = rng.permutation(CLEAR)[:2].tolist()
    d, side, given = rng.uniform(12, 13.5), rng.uniform(16, 18), 13
    blank = np.zeros((FRAMES, 4))
    things = (_thing("circle", colors[0], d, "bounce", blank), _thing("square", colors[1], side, "follow", blank))
    left, right, top, floor, reach = court(things)
    speed = (float(rng.uniform(1.4, 2.0) * rng.choice([-1, 1])), float(rng.uniform(1.7, 2.2) * rng.choice([-1, 1])))
    ball, player = (rng.uniform(left, right), rng.uniform(top, floor)), rng.uniform(left + 4, right - 4)
    balls, players, catches, now = [ball], [player], [], speed
    for frame in range(1, FRAMES):
        before, (ball, now) = now, fly(ball, now, player, things)
        if ball[1] > floor or (now[1] < 0 < before[1] and abs(ball[0] - player) > reach - 3):
            return None
        catches += [frame] if now[1] < 0 < before[1] else []
        player = run_after(player, balls[-1][0])
        balls.append(ball)
        players.append(player)
    if not any(given < frame < FRAMES - 4 for frame in catches) or abs(balls[given - 1][0] - players[given - 1]) < 6:
        return None
    rest = np.stack([np.ones(FRAMES), np.zeros(FRAMES)], 1)
    floor_of_player = np.full(FRAMES, SIZE[1] - WALL - SHAPES["square"][1] * side)
    tracks = np.array(balls), np.stack([players, floor_of_player], 1)
    things = [
        replace(thing, track=tuple(map(tuple, np.concatenate([track, rest], 1).round(4).tolist())))
        for thing, track in zip(things, tracks)
    ]
    words = f"{_name(things[0])} bounces off the walls and {_name(things[1])} below it follows it"
    return Stage("game", _scene(seed, things, _plain(rng)), words, given, speed=speed)


KINDS = {"parallax": _parallax, "stroke": _stroke, "bite": _bite, "game": _game}


def _thing(shape: str, color: str, diameter: float, motion: str, track: np.ndarray) -> Thing:
    scale = "small" if diameter < 20 else "large"
    track = tuple(map(tuple, np.asarray(track).round(4).tolist()))
    return Thing(shape, color, scale, "solid", motion, "", float(diameter), track)


def _scene(seed: int, things, ground: Background) -> Scene:
    shot = ((0.0, 0.0, 1.0),) * FRAMES
    return Scene(seed, *SIZE, FRAMES, FPS, tuple(things), ground, "still", shot, "", 0.0, 0.0)


def _plain(rng) -> Background:
    color = str(rng.choice(LIGHT + DARK))
    return Background("plain", color, color, 0.0)


def _name(thing: Thing) -> str:
    return f"{_a(thing.color)} {thing.color} {thing.shape}"


def _a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
