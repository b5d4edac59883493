"""Does a model simulate? It sees the beginning of a held-out scene, goes on by itself, and what it painted is measured.

    permanence  an object passes behind a pillar: it comes out on the far side, the same; given: until it first hides
    gravity     an object falls: the acceleration fitted to its fall, against the true one; given: the first 9 frames
    collision   two objects meet: both are still there, the same, and have parted; given: until shortly before they meet
    coherence   an object moves straight or stands still: in every window of a long clip it is still there, and the same

Clips have 33 frames, `coherence` as many as asked; prompts are the scenes' short captions. Beside the model stand the
same measures of the rendered truth after the model's VAE, the ceiling of any painter behind it, and of a clip that
repeats its last given frame (whose objects stay what they are, but do nothing). All is read from pixels by the world's
oracle.
"""

import json
import sys

import numpy as np
from jaxtyping import UInt8

from sora_jax.data import worlds
from sora_jax.data.oracle import Object, oracle
from sora_jax.evaluate import results
from sora_jax.evaluate.results import Case, finite
from sora_jax.media import Video

FIRST = worlds.HELD_OUT + 2 * 10**6  # away from the seeds of the other evaluations
FRAMES, GIVEN = 33, 9
SIZE = (96, 64)
CLOSE = 0.25  # a fitted gravity within this share of the true one is right
LEAST = 4  # frames that a path needs to be fitted
WINDOW = 17  # frames in which `coherence` looks for its object

Frames = UInt8[np.ndarray, "f h w 3"]


def scene_of(probe: str, case: int) -> worlds.Scene:
    """The scene of a case: one or two objects without texture before a still camera."""
    kinds = {
        "permanence": {"motion": "hide", "count": 1},
        "gravity": {"motion": "fall", "count": 1},
        "collision": {"event": "collide", "count": 2},
        "coherence": {"motion": (*worlds.STRAIGHT, "still")[case % 5], "count": 1},
    }
    fixed = {"camera": "still", "texture": "solid", **kinds[probe]}
    return worlds.sample(FIRST + case, size=SIZE, frames=FRAMES, **fixed)


def given(probe: str, scene: worlds.Scene) -> int:
    """How many frames the model sees: one more than whole latents' worth, and nothing of what it is asked for."""
    if probe in ("gravity", "coherence"):
        return GIVEN
    if probe == "permanence":
        until = int(np.argmin(worlds.visible(scene)[0]))
    else:
        gap = np.linalg.norm(np.subtract(*worlds.positions(scene)), axis=-1)
        until = int(np.argmin(gap)) - 1
    return max(5, 1 + (until - 1) // 4 * 4)


def find(frames: Frames, thing: worlds.Thing) -> Object | None:
    """The object of a thing's colour and shape; None where there is none."""
    return next((o for o in oracle(frames).objects if (o.color, o.shape) == (thing.color, thing.shape)), None)


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


def collision(frames: Frames, scene: worlds.Scene) -> dict[str, float]:
    """both: the last quarter of the clip shows both objects with their colours and shapes. parted: and they go away
    from each other there, on their own sides, at half the true speed or more."""
    end = frames[-(FRAMES // 4) :]
    left, right = (find(end, thing) for thing in scene.things[:2])
    if left is None or right is None:
        return {"both": 0.0, "parted": 0.0}
    gap = right.path[:, 0].mean() - left.path[:, 0].mean()
    speed = lambda seen: np.polyfit(seen.frames, seen.path[:, 0], 1)[0] if len(seen.frames) >= LEAST else 0.0
    true = np.diff(np.subtract(*worlds.positions(scene)[1::-1, -(FRAMES // 4) :, 0])).mean()
    return {"both": 1.0, "parted": float(gap > 0 and speed(right) - speed(left) >= true / 2)}


def coherence(frames: Frames, scene: worlds.Scene) -> dict[str, float]:
    """same: the share of windows behind the given frames in which the object is there with its colour and shape."""
    windows = [frames[at : at + WINDOW] for at in range(GIVEN, len(frames) - WINDOW // 2, WINDOW)]
    return {"same": float(np.mean([find(window, scene.things[0]) is not None for window in windows]))}


PROBES = {probe.__name__: probe for probe in (permanence, gravity, collision, coherence)}


# ------------------------------------------------------------------------------------------------ all of it


def mean(rows: list[dict[str, float]]) -> dict[str, float | None]:
    """The mean of every measure over the cases that have it."""
    found = {key: [row[key] for row in rows if np.isfinite(row[key])] for key in rows[0]}
    return {key: round(float(np.mean(values)), 3) if values else None for key, values in found.items()}


def evaluate(
    model="tiny",
    *,
    cases: int = 25,
    probes=tuple(PROBES),
    seconds: float = 4.0,
    seed: int = 0,
    steps: int | None = None,
    out: str | None = None,
) -> dict:
    """Every probe on so many held-out scenes; prints a table and a JSON line, and returns what the line holds.

    seconds: the length of the clips of `coherence` (60 paints them in windows); out: a folder for the result and its
    page (`results.write`). Raises InputError as `load` does.
    """
    from tqdm import tqdm

    called, seen = str(model), []
    if not hasattr(model, "generate"):
        from sora_jax.model import load

        model = load(model)
    result: dict = {}
    with tqdm(total=len(probes) * cases, desc="simulating", unit="case", file=sys.stderr, disable=None) as bar:
        for name in probes:
            rows: dict[str, list] = {"model": [], "ceiling": [], "repeat": []}
            for case in range(cases):
                scene = scene_of(name, case)
                truth, prompt, n = worlds.render(scene), worlds.captions(scene)[0], given(name, scene)
                start = Video(truth[:n], scene.fps)
                length = max(FRAMES, round(seconds * scene.fps)) if name == "coherence" else FRAMES
                made = model.extend(start, prompt, after=(length - n) / scene.fps, seed=seed + case, steps=steps).frames
                passed = model.decode(model.encode(Video(truth, scene.fps))).frames
                still = np.concatenate([truth[:n], np.repeat(truth[n - 1 : n], length - n, 0)])
                for kind, frames in (("model", made), ("ceiling", passed), ("repeat", still)):
                    rows[kind].append(PROBES[name](frames, scene))
                clips = {"painted": Video(made, scene.fps), "truth": Video(truth, scene.fps)}
                seen.append(Case(name, str(scene.seed), finite(rows["model"][-1]), prompt, clips))
                bar.update()
            result[name] = {kind: mean(found) for kind, found in rows.items()}
            print(table(name, result[name]))
    print(json.dumps(result | {"cases": cases, "seconds": seconds}))
    if out:
        print(results.write(out, "simulation", called, result, seen), file=sys.stderr)
    return result


def table(name: str, found: dict[str, dict]) -> str:
    """A probe's lines for people: a measure each, for the model, the ceiling, and the last frame repeated."""
    show = lambda value: f"{value:>9.3f}" if value is not None else f"{'-':>9}"
    return "\n".join(
        f"{name:12}{key:8}" + "".join(f"  {kind} {show(found[kind][key])}" for kind in found)
        for key in found["model"]
    )  # fmt: skip
