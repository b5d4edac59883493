"""How well a model paints around what it is given, on held-out scenes of the embedded world whose truth is known.

Every case is one scene of one object (two where it says so) that moves straight, 64 x 64 pixels, 17 frames:

    animate     given frame 0 and the caption: the object is still there (`kept`), and moves as told (`motion`)
    extend      given the first 9 frames: error of the centre's velocity after the join, as a share of the true speed
    backward    given the last 9, four seeds: the ending is exact, and how far the four beginnings differ (grey levels)
    loop        given all 17: the largest difference of frames at the seam is within the clip's own (share of cases);
                `seam_ceiling` is that of the truth behind the VAE, beside the clip itself
    connect     two clips: both come back exactly, and the largest jump between is at most twice their own
    fill        frames 5-12 missing: PSNR against the truth, and objects that are right to the oracle
    inpaint     a box over a part of the background and object missing in all frames: PSNR inside it
    edit        the same scene in another colour, strength 0.8: that colour is there, the object where it was
    storyboard  the same object in two shots that move differently: it is in both, and in the second moves as told

Beside fill, inpaint and extend stand what is obvious: repeat the last frame, cross-fade the neighbours, or the nearest
known pixel.
"""

import json
import sys
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sora_jax import prompting
from sora_jax.data import worlds
from sora_jax.data.oracle import Object, agrees, oracle
from sora_jax.drafts import draft, spliced
from sora_jax.errors import local
from sora_jax.evaluate import results
from sora_jax.evaluate.metrics import psnr
from sora_jax.evaluate.results import Case, finite
from sora_jax.media import Video, contact_sheet

FIRST = worlds.HELD_OUT + 10**6  # away from the seeds that `evaluate world` asks for
SIZE, FRAMES, GIVEN = (64, 64), 17, 9
WAYS = ("left", "right", "up", "down")
COLORS = tuple(worlds.COLORS)

Told = tuple[dict[str, float], dict[str, Video]]  # what a task measured of a case, and its clips to look at


def scene_of(case: int, **fixed) -> worlds.Scene:
    """The scene of a case: one object that goes straight, seen by a camera that stands still."""
    settings = {"count": 1, "camera": "still", "motion": WAYS[case % 4]} | fixed
    return worlds.sample(FIRST + case, size=SIZE, frames=FRAMES, **settings)


def clip_of(scene: worlds.Scene) -> tuple[Video, str]:
    return Video(worlds.render(scene), scene.fps), worlds.captions(scene)[0]


def main_object(frames: UInt8[np.ndarray, "f h w 3"], color: str) -> Object | None:
    """The largest object of a colour; None where there is none."""
    return next((seen for seen in oracle(frames).objects if seen.color == color), None)


def velocity(seen: Object | None) -> np.ndarray | None:
    """Pixels a frame, by least squares over the object's path."""
    if seen is None or len(seen.frames) < 3:
        return None
    return np.polyfit(seen.frames, seen.path, 1)[0]


def steps_between(frames: UInt8[np.ndarray, "f h w 3"]) -> np.ndarray:
    """Mean absolute difference of consecutive frames, grey levels."""
    return np.abs(np.diff(frames.astype(np.float32), axis=0)).mean((1, 2, 3))


# ------------------------------------------------------------------------------------------------ tasks, case by case


def animate(model, case: int, how: dict) -> Told:
    scene = scene_of(case)
    video, prompt = clip_of(scene)
    made = model.animate(Video(video.frames[:1]), prompt, frames=FRAMES, **how)
    seen = agrees(oracle(made.frames), scene)
    scores = {"kept": all(seen["color"] + seen["shape"]), "motion": all(seen["motion"])}
    return scores, {"given": Video(video.frames[:1]), "painted": made}


def extend(model, case: int, how: dict) -> Told:
    scene = scene_of(case)
    video, prompt = clip_of(scene)
    given = Video(video.frames[:GIVEN], video.fps)
    made = model.extend(given, prompt, after=(FRAMES - GIVEN) / video.fps, **how)
    color, true = scene.things[0].color, np.diff(worlds.positions(scene)[0], axis=0).mean(0)

    def error(frames) -> float:
        found = velocity(main_object(frames[GIVEN:], color))
        return float(np.linalg.norm(found - true) / np.linalg.norm(true)) if found is not None else 2.0

    still = np.repeat(given.frames[-1:], FRAMES - GIVEN, 0)
    scores = {
        "velocity_error": error(made.frames),
        "velocity_error_repeat": error(np.concatenate([given.frames, still])),
        "psnr": psnr(made.frames[GIVEN:], video.frames[GIVEN:]),
        "psnr_repeat": psnr(still, video.frames[GIVEN:]),
    }
    return scores, {"given": given, "painted": made, "truth": video}


def backward(model, case: int, how: dict) -> Told:
    video, prompt = clip_of(scene_of(case))
    given = Video(video.frames[-GIVEN:], video.fps)
    seeds = range(how["seed"], how["seed"] + 4)
    made = [
        model.extend(given, prompt, before=(FRAMES - GIVEN) / video.fps, **how | {"seed": seed}).frames
        for seed in seeds
    ]
    begin = [frames[: FRAMES - GIVEN].astype(np.float32) for frames in made]
    apart = [np.abs(a - b).mean() for i, a in enumerate(begin) for b in begin[:i]]
    scores = {
        "ending_exact": all((frames[-GIVEN:] == given.frames).all() for frames in made),
        "beginnings_differ": float(np.min(apart)),
    }
    painted = {f"seed {seed}": Video(frames, video.fps) for seed, frames in zip(seeds, made)}
    return scores, {"given": given, **painted}


def loop(model, case: int, how: dict) -> Told:
    video, prompt = clip_of(scene_of(case))
    made = model.loop(video, prompt, **how)
    played = steps_between(np.concatenate([made.frames] * 3))  # three wraps
    n, own = len(made.frames), steps_between(video.frames)
    seams = [at + k * n - 1 for k in (0, 1, 2) for at in (len(video.frames), n) if at + k * n - 1 < len(played)]
    cut = np.abs(video.frames[-1].astype(np.float32) - video.frames[0]).mean()
    known = draft(video.frames, (np.arange(FRAMES) < GIVEN)[:, None, None], video.fps)
    perfect = steps_between(spliced(known, model.decode(model.encode(video)).frames))[GIVEN - 1]
    scores = {
        "seam_within": bool(played[seams].max() <= own.max()),
        "seam": float(played[seams].max() / own.max()),
        "seam_repeat": float(cut / own.max()),
        "seam_ceiling": float(perfect / own.max()),
    }
    return scores, {"given": video, "painted": made}


def connect(model, case: int, how: dict) -> Told:
    (a, _), (b, prompt) = (clip_of(scene_of(2 * case + i)) for i in range(2))
    video = model.connect(a, b, prompt, **how)
    made = video.frames
    exact = (made[:FRAMES] == a.frames).all() and (made[-FRAMES:] == b.frames).all()
    own = max(steps_between(a.frames).max(), steps_between(b.frames).max())
    jump = steps_between(made[FRAMES - 1 : len(made) - FRAMES + 1]).max()
    cut = np.abs(a.frames[-1].astype(np.float32) - b.frames[0]).mean()
    scores = {"ends_exact": bool(exact), "smooth": bool(jump <= 2 * own), "jump": jump / own, "jump_cut": cut / own}
    return scores, {"a": a, "b": b, "painted": video}


def fill(model, case: int, how: dict) -> Told:
    scene = scene_of(case)
    video, prompt = clip_of(scene)
    first, last = 5, 12
    holes = video.frames.copy()
    holes[first : last + 1] = 0
    given = Video(holes, video.fps)
    made = model.fill(given, prompt, missing=[(first, last)], **how).frames
    count = last + 1 - first
    rivals = {
        "repeat": np.repeat(video.frames[first - 1 : first], count, 0),
        "crossfade": prompting.crossfade(video.frames[first - 1], video.frames[last + 1], count),
    }
    truth = video.frames[first : last + 1]
    scores = {f"psnr_{name}": psnr(frames, truth) for name, frames in rivals.items()}
    seen = agrees(oracle(made), scene)
    faded = video.frames.copy()
    faded[first : last + 1] = rivals["crossfade"]
    blurred = agrees(oracle(faded), scene)
    right = lambda said: all(said["color"] + said["shape"] + said["motion"] + [said["count"]])
    scores |= {"psnr": psnr(made[first : last + 1], truth), "right": right(seen), "right_crossfade": right(blurred)}
    return scores, {"given": given, "painted": Video(made, video.fps), "truth": video}


def inpaint(model, case: int, how: dict) -> Told:
    scene = scene_of(case)
    video, prompt = clip_of(scene)
    x, y = (int(n) for n in worlds.positions(scene)[0, FRAMES // 2])
    left, top = np.clip([x - 4, y - 4], 0, 64 - 24)
    hole = np.zeros((1, 64, 64), bool)
    hole[:, top : top + 24, left : left + 24] = True
    mask = Video(np.repeat(hole[..., None] * np.uint8(255), 3, -1))
    holes = np.where(hole[..., None], np.uint8(0), video.frames)
    given = Video(holes, video.fps)
    made = model.fill(given, prompt, mask=mask, **how).frames
    inside = np.broadcast_to(hole, video.frames.shape[:3])
    near = prompting.guessed(video.frames, inside)
    score = lambda frames: psnr(frames[inside][None], video.frames[inside][None])
    scores = {"psnr": score(made), "psnr_nearest": score(near)}
    return scores, {"given": given, "painted": Video(made, video.fps), "truth": video}


def edit(model, case: int, how: dict) -> Told:
    scene = scene_of(case, texture="solid")
    video, prompt = clip_of(scene)
    old = scene.things[0].color
    new = COLORS[(COLORS.index(old) + 1 + case % (len(COLORS) - 1)) % len(COLORS)]
    made = model.edit(video, prompt.replace(old, new), strength=0.8, **how).frames
    seen = main_object(made, new)
    there = seen is not None and len(seen.frames) > FRAMES // 2
    away = np.linalg.norm(seen.path - worlds.positions(scene)[0, seen.frames], axis=-1).mean() if there else np.inf
    scores = {"new_color": there, "layout_kept": bool(away <= 0.15 * 64)}
    return scores, {"given": video, "painted": Video(made, video.fps)}


def storyboard(model, case: int, how: dict) -> Told:
    scene = scene_of(case, texture="solid")
    thing, way = scene.things[0], WAYS[(case + 1 + case // 4 % 3) % 4]
    name = f"a {thing.color} {thing.shape}"
    shots = [(2.125, f"{name} moves {thing.motion}"), (2.0, f"{name} moves {way}")]
    video = model.storyboard(shots, size=SIZE, **how)
    halves = [main_object(part, thing.color) for part in (video.frames[:FRAMES], video.frames[FRAMES:])]
    scores = {
        "same_object": all(seen is not None and seen.shape == thing.shape for seen in halves),
        "second_moves": halves[1] is not None and halves[1].motion == way,
    }
    return scores, {"painted": video}


TASKS = {f.__name__: f for f in (animate, extend, backward, loop, connect, fill, inpaint, edit, storyboard)}


def drift(model, how: dict, cases: int = 4, seconds: float = 60.0, piece: float = 5.0) -> list[dict]:
    """The oracle's accuracy in each 5-second piece of clips of a minute: is the object still the one told?"""
    fps, found = model.sample["fps"], []
    for case in range(cases):
        scene = scene_of(case, texture="solid", motion="still")
        thing = scene.things[0]
        frames = model.generate(f"a {thing.color} {thing.shape}", size=SIZE, seconds=seconds, **how).frames
        step = round(piece * fps)
        for at in range(0, len(frames) - step + 1, step):
            seen = main_object(frames[at : at + step], thing.color)
            found.append((at // step, seen is not None, seen is not None and seen.shape == thing.shape))
    pieces = sorted({number for number, _, _ in found})
    mean = lambda number, column: float(np.mean([row[column] for row in found if row[0] == number]))
    return [{"from": number * piece, "color": mean(number, 1), "shape": mean(number, 2)} for number in pieces]


# ------------------------------------------------------------------------------------------------ all of it


def sheet(cases: dict[str, Case], path: Path) -> None:
    """A case of each task: what was painted, given frames marked; above it what was given, if no frame of it stays."""
    videos, captions, marks = [], [], []
    for task in TASKS:
        if task not in cases:
            continue
        clips = dict(cases[task].clips)
        sources = [clips[name] for name in ("given", "a", "b") if name in clips]
        held = {frame.tobytes() for source in sources for frame in source.frames}
        painted = clips.get("painted") or next(video for name, video in clips.items() if name.startswith("seed"))
        known = np.array([frame.tobytes() in held for frame in painted.frames])
        if sources and not known.any():
            videos, captions, marks = [*videos, sources[0]], [*captions, f"{task}: given"], [*marks, ~known]
        prompt = "" if task in ("connect", "edit", "storyboard") else f": {cases[task].prompt}"  # theirs are others
        videos, captions, marks = [*videos, painted], [*captions, task + prompt], [*marks, known]
    contact_sheet(videos, captions, path, frames=10, cell=128, known=marks)


def evaluate(
    model="tiny",
    *,
    cases: int = 50,
    tasks=tuple(TASKS),
    seed: int = 0,
    steps: int | None = None,
    minute: bool = False,
    out: str | None = None,
) -> dict:
    """Every task on so many held-out cases; prints a table and a JSON line, and returns what it holds.

    `minute`: the drift of a one-minute clip as well; `out`: a folder for the result and its page (`results.write`), and
    a contact sheet of the first case of each task, sheet.png.
    Raises InputError as `load` does.
    """
    from tqdm import tqdm

    called, seen = str(model), []
    if not hasattr(model, "generate"):
        from sora_jax.model import load

        model = load(model)
    result: dict = {}
    how = {"seed": seed, "steps": steps}
    with tqdm(total=len(tasks) * cases, desc="prompting", unit="case", file=sys.stderr, disable=None) as bar:
        for name in tasks:
            rows = []
            for case in range(cases):
                scores, clips = TASKS[name](model, case, how | {"seed": seed + 1000 * case})
                rows.append(scores)
                seen.append(Case(name, str(case), finite(scores), worlds.captions(scene_of(case))[0], clips))
                bar.update()
            result[name] = {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}
            print(f"{name:12}" + "  ".join(f"{key} {value:g}" for key, value in result[name].items()))
    if minute:
        result["drift"] = drift(model, how)
        for row in result["drift"]:
            print(f"{row['from']:4.0f} s  color {row['color']:.2f}  shape {row['shape']:.2f}")
    print(json.dumps(result | {"cases": cases}))
    if out:
        print(results.write(out, "prompting", called, result, seen), file=sys.stderr)
        sheet({case.group: case for case in reversed(seen)}, local(out).expanduser() / "sheet.png")
    return result
