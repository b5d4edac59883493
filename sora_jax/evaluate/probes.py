"""What the probes of simulation measure, each of one clip; all is read from pixels by the world's oracle.

The first four look at scenes of the embedded world, the others at stages of their own (`data/stages.py`):

    permanence  an object passes behind a pillar: it comes out on the far side, the same; given: until it first hides
    gravity     an object falls: the acceleration fitted to its fall, against the true one; given: the first 9 frames
    collision   two objects meet: both are still there, the same, have parted, and as fast as they came; given: until
                shortly before they meet
    coherence   an object moves straight or stands still: in every window of a long clip it is still there, and the same
    parallax    a camera circles around three objects: one path of one camera explains all of theirs; given: 9 frames
    stroke      a brush leaves a line: it grows, and what was painted stays; given: 9 frames
    bite        one bites a piece out of another and goes back: the piece does not; given: 13 frames, until it shows
    game        a ball bounces, a player runs after it: both by the rules; given: 13 frames
"""

import itertools

import numpy as np
from jaxtyping import Bool, Float, UInt8

from sora_jax.data import stages, worlds
from sora_jax.data.oracle import FAINT, NAMES, OWN, Object, nearest_color, oracle
from sora_jax.data.silhouette import SATURATED, grow, saturation
from sora_jax.data.stages import FRAMES, SIZE, Stage
from sora_jax.media import Video

FIRST = worlds.HELD_OUT + 2 * 10**6  # away from the seeds of the other evaluations
GIVEN = 9
CLOSE = 0.25  # a fitted gravity, speed or camera path within this share of the true one is right
LEAST = 4  # frames that a path needs to be fitted
WINDOW = 17  # frames in which `coherence` looks for its object
KEPT = 0.85  # of what was painted or bitten must be so at the end
MOVE, NEAR = 8, 2.5  # frames of a move of the game; pixels that it may be away from where the rules lead
RULED = 0.8  # of the moves must follow the rules

Frames = UInt8[np.ndarray, "f h w 3"]


def scene_of(probe: str, case: int) -> worlds.Scene | Stage:
    """The scene of a case: one or two objects without texture before a still camera, or a stage."""
    if probe in stages.KINDS:
        return stages.sample(probe, FIRST + case)
    kinds = {
        "permanence": {"motion": "hide", "count": 1},
        "gravity": {"motion": "fall", "count": 1},
        "collision": {"event": "collide", "count": 2},
        "coherence": {"motion": (*worlds.STRAIGHT, "still")[case % 5], "count": 1},
    }
    fixed = {"camera": "still", "texture": "solid", **kinds[probe]}
    return worlds.sample(FIRST + case, size=SIZE, frames=FRAMES, **fixed)


def shown(scene: worlds.Scene | Stage) -> tuple[Video, str]:
    """The rendered truth of a scene, and its short caption."""
    if isinstance(scene, Stage):
        return Video(stages.render(scene), scene.scene.fps), scene.caption
    return Video(worlds.render(scene), scene.fps), worlds.captions(scene)[0]


def given(probe: str, scene: worlds.Scene | Stage) -> int:
    """How many frames the model sees: one more than whole latents' worth, and nothing of what it is asked for."""
    if isinstance(scene, Stage):
        return scene.given
    if probe in ("gravity", "coherence"):
        return GIVEN
    if probe == "permanence":
        until = int(np.argmin(worlds.visible(scene)[0]))
    else:
        gap = np.linalg.norm(np.subtract(*worlds.positions(scene)), axis=-1)
        until = int(np.argmin(gap)) - 1
    return max(5, 1 + (until - 1) // 4 * 4)


# ------------------------------------------------------------------------------------------------ what is seen


def find(frames: Frames, thing: worlds.Thing) -> Object | None:
    """The object of a thing's colour and shape; None where there is none."""
    return next((o for o in oracle(frames).objects if (o.color, o.shape) == (thing.color, thing.shape)), None)


def paths(frames: Frames, things) -> Float[np.ndarray, "n f 2"]:
    """Where the largest object of each thing's colour is, frame by frame; nan where it is not seen."""
    found, objects = np.full((len(things), len(frames), 2), np.nan), oracle(frames).objects
    for path, thing in zip(found, things):
        seen = next((o for o in objects if o.color == thing.color), None)
        if seen is not None:
            path[seen.frames] = seen.path
    return found


def bridged(path: Float[np.ndarray, "f 2"]) -> Float[np.ndarray, "f 2"]:
    """With at most two frames in a row filled in, straight: things that touch are now and then taken for one."""
    path, at = path.copy(), np.flatnonzero(np.isfinite(path[:, 0]))
    for a, b in itertools.pairwise(at):
        if b - a <= 3:
            path[a:b] = path[a] + (path[b] - path[a]) * np.arange(b - a)[:, None] / (b - a)
    return path


def of_color(frames: Frames, color: str) -> Bool[np.ndarray, "f h w"]:
    """Which pixels have a colour of the world, and are no paler than half of it: a codec's ghosts are."""
    rgb, index = frames.astype(np.float32), NAMES.index(color)
    return (nearest_color(rgb) == index) & (saturation(rgb) > max(SATURATED, FAINT * OWN[index]))


# ------------------------------------------------------------------------------------------------ what is measured


def permanence(frames: Frames, scene: worlds.Scene) -> dict[str, float]:
    """after: it is seen whole on the far side, by itself, with its colour and shape. place: the mean distance there
    between where it is and where it should be, as a share of the width."""
    thing, hidden = scene.things[0], ~worlds.visible(scene)[0]
    out = int(np.flatnonzero(hidden)[-1]) + 1
    seen = find(frames[out:], thing) if out < len(frames) else None
    if seen is None:
        return {"after": 0.0, "place": np.nan}
    true = worlds.positions(scene)[0, out:][seen.frames]
    side = np.sign(true[-1, 0] - scene.pillar_x)
    return {
        "after": float(np.median(np.sign(seen.path[:, 0] - scene.pillar_x)) == side),
        "place": float(np.linalg.norm(seen.path - true, axis=-1).mean() / scene.width),
    }


def acceleration(heights: np.ndarray, at: np.ndarray) -> float:
    """Of a path under constant acceleration, by least squares, pixels per frame^2."""
    return float(2 * np.polyfit(at, heights, 2)[0])


def gravity(frames: Frames, scene: worlds.Scene) -> dict[str, float]:
    """right: the acceleration fitted to the fall, from the first frame to the first rebound, is within CLOSE of the
    true one. error: how far it is, as a share of the true one."""
    height = worlds.positions(scene)[0, :, 1]
    lands = int(np.argmax(height)) if np.argmax(height) else len(height)
    true = acceleration(height[:lands], np.arange(lands))
    seen = next((o for o in oracle(frames[:lands]).objects if o.color == scene.things[0].color), None)
    if seen is None or (seen.frames >= GIVEN).sum() < LEAST:
        return {"right": 0.0, "error": np.nan}
    error = abs(acceleration(seen.path[:, 1], seen.frames) / true - 1)
    return {"right": float(error <= CLOSE), "error": error}


def speed(seen: Object | None) -> float:
    """Along x, pixels a frame, by least squares; 0 where too little of it is seen."""
    return float(np.polyfit(seen.frames, seen.path[:, 0], 1)[0]) if seen and len(seen.frames) >= LEAST else 0.0


def collision(frames: Frames, scene: worlds.Scene) -> dict[str, float]:
    """both: the last quarter of the clip shows both objects with their colours and shapes. parted: and they go away
    from each other there, on their own sides, at half the true speed or more. conserved: and their momentum (they
    bounce as equal masses do) and the speed of one seen from the other are within CLOSE of what the given frames have,
    as shares of that speed."""
    start, end = frames[: given("collision", scene)], frames[-(FRAMES // 4) :]
    left, right = (find(end, thing) for thing in scene.things[:2])
    if left is None or right is None:
        return {"both": 0.0, "parted": 0.0, "conserved": 0.0}
    gap = right.path[:, 0].mean() - left.path[:, 0].mean()
    true = np.diff(np.subtract(*worlds.positions(scene)[1::-1, -(FRAMES // 4) :, 0])).mean()
    parted = gap > 0 and speed(right) - speed(left) >= true / 2
    came = [speed(find(start, thing)) for thing in scene.things[:2]]
    before, approach, parting = sum(came), came[0] - came[1], speed(right) - speed(left)
    lost = max(abs(speed(left) + speed(right) - before), abs(parting - approach))
    return {"both": 1.0, "parted": float(parted), "conserved": float(parted and lost <= CLOSE * approach)}


def coherence(frames: Frames, scene: worlds.Scene) -> dict[str, float]:
    """same: the share of windows behind the given frames in which the object is there with its colour and shape."""
    windows = [frames[at : at + WINDOW] for at in range(GIVEN, len(frames) - WINDOW // 2, WINDOW)]
    return {"same": float(np.mean([find(window, scene.things[0]) is not None for window in windows]))}


def parallax(frames: Frames, stage: Stage) -> dict[str, float]:
    """right: behind the given frames all objects are seen, error is within CLOSE, and the camera goes as far around as
    it should, to a half of that. error: how far they are (root mean square) from where the one camera sees them whose
    angle fits all of them best, frame by frame, as a share of how far they move; 1 at most, and where nothing moves."""
    grid, places = np.linspace(-np.pi, np.pi, 1440, endpoint=False), np.array(stage.places)
    seen, n = paths(frames, stage.scene.things)[:, stage.given :], stage.given
    if (np.isfinite(seen[..., 0]).mean(1) < 0.5).any():
        return {"right": 0.0, "error": 1.0}
    there = np.isfinite(seen[..., 0]).any(0)  # frames that show anything
    off = seen[:, there, None] - stages.view(places, grid)[:, None, :, :2]  # n f a 2
    misfit = np.nanmean((off**2).sum(-1), 0)
    moved = seen - worlds.positions(stage.scene)[:, n - 1 : n]
    error = np.sqrt(misfit.min(1).mean() / max(np.nanmean((moved**2).sum(-1)), 1e-6))
    angles = np.unwrap([stage.angles[n - 1], *grid[misfit.argmin(1)]])
    around = (np.median(angles[-3:]) - angles[0]) / (stage.angles[-2] - stage.angles[n - 1])
    return {"right": float(error <= CLOSE and abs(around - 1) <= 0.5), "error": min(float(error), 1.0)}


def stroke(frames: Frames, stage: Stage) -> dict[str, float]:
    """kept: of all that was painted, in two frames or more, the share that is painted at the end. right: that is KEPT
    or more, and the line has grown by half to twice as much as it should."""
    color, n = stage.scene.things[0].color, stage.given
    line, true = of_color(frames, color), of_color(stages.render(stage), color)
    painted = line.sum(0) > 1
    kept = float((painted & grow(line[-1], 1)).sum() / max(painted.sum(), 1))
    grown = (line[-1].sum() - line[n - 1].sum()) / (true[-1].sum() - true[n - 1].sum())
    return {"right": float(kept >= KEPT and 0.5 <= grown <= 2), "kept": kept}


def bite(frames: Frames, stage: Stage) -> dict[str, float]:
    """kept: of the piece that was bitten out, the share that is still missing in the last quarter of the clip. right:
    that is KEPT or more, so much of the rest is there, and who bit has gone back half of its way or more."""
    eaten, eater = stage.scene.things
    true = of_color(stages.render(stage), eaten.color)
    end = of_color(frames[-(FRAMES // 4) :], eaten.color)
    piece, rest = true[0] & ~grow(true[-1], 1), true[-1]
    kept, left = float(1 - end[:, piece].mean()), float(end[:, rest].mean())
    way = np.diff(worlds.positions(stage.scene)[1, [stage.given - 1, -1]], axis=0)[0]
    rows, cols = np.nonzero(of_color(frames[-1:], eater.color)[0])
    if not len(rows):
        return {"right": 0.0, "kept": kept}
    gone = np.array([cols.mean() + 0.5, rows.mean() + 0.5]) - worlds.positions(stage.scene)[1, stage.given - 1]
    return {"right": float(min(kept, left) >= KEPT and gone @ way >= 0.5 * way @ way), "kept": kept}


def game(frames: Frames, stage: Stage) -> dict[str, float]:
    """player: the share of moves, MOVE frames each behind the given ones, after which it is where its policy leads, the
    ball being where it is painted. world: the share of those in which one of the four ways that the ball may fly
    explains where it is, to NEAR (root mean square). right: RULED or more of both."""
    balls, players = map(bridged, paths(frames, stage.scene.things))
    moves = range(stage.given - 1, len(frames) - MOVE)
    player = np.mean([_plays(balls[at : at + MOVE + 1, 0], players[at : at + MOVE + 1, 0]) for at in moves])
    world = np.mean([_flies(balls[at : at + MOVE + 1], players[at : at + MOVE + 1, 0], stage) for at in moves])
    return {"right": float(min(player, world) >= RULED), "player": float(player), "world": float(world)}


def _plays(balls: np.ndarray, players: np.ndarray) -> bool:
    """Whether the player [m + 1] ends where its policy leads it from where it begins, the balls being there."""
    now = players[0]
    for ball in balls[:-1]:
        now = stages.run_after(now, ball)
    return bool(abs(now - players[-1]) <= NEAR)


def _flies(balls: np.ndarray, players: np.ndarray, stage: Stage) -> bool:
    """Whether the ball [m + 1, 2] flies by the rules from where it begins, one way or another."""
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        start = balls[0]
        for _ in range(2):  # again from where it fits best on the whole: a painter's jitter is no rule broken
            flight, speed = [tuple(start)], tuple(np.multiply(stage.speed, signs))
            for player in players[:-1]:
                now, speed = stages.fly(flight[-1], speed, player, stage.scene.things)
                flight.append(now)
            off = balls - flight
            if np.sqrt((off**2).sum(-1).mean()) <= NEAR:  # False where it was not seen
                return True
            start = start + off.mean(0)
    return False


PROBES = {probe.__name__: probe for probe in (permanence, gravity, collision, coherence, parallax, stroke, bite, game)}


def mean(rows: list[dict[str, float]]) -> dict[str, float | None]:
    """The mean of every measure over the cases that have it."""
    found = {key: [row[key] for row in rows if np.isfinite(row[key])] for key in rows[0]}
    return {key: round(float(np.mean(values)), 3) if values else None for key, values in found.items()}
