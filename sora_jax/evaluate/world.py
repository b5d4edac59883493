"""How well a model follows prompts of the embedded world, judged by an oracle that sees pixels alone.

The prompts are the captions of held-out seeds exactly as training draws them (one to three objects, every motion,
camera, size and duration; short and long captions by turns); a clip has its scene's size and length.
The scores, each from 0 to 1:

    color        objects named whose colour is there
    shape        objects named whose colour is there with their shape
    motion       objects named in videos that move as told, straight, bouncing and falling ones in the right direction
    direction    the same for those told to go left, right, up or down
    count        clips with as many objects as told
    camera       videos whose camera does as told, or stays still when not told
    relation     clips told that an object is left or right of, above or below another, that begin so
    framing      objects whose colour is there that are wholly in view, in nine frames of ten
    two_objects  two-object prompts with both colours and both shapes right, each with its own
    two_moving   and both motions

Beside them stand the same scores of the rendered clips of the same scenes after the model's VAE, the ceiling of any
painter behind it, and `vae_psnr`, the mean over those clips in dB.
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from jaxtyping import UInt8

from sora_jax.data import worlds
from sora_jax.data.motions import STRAIGHT
from sora_jax.data.oracle import Object, agrees, oracle
from sora_jax.errors import InputError
from sora_jax.evaluate import results
from sora_jax.evaluate.metrics import psnr
from sora_jax.evaluate.results import Case
from sora_jax.media import Video

SCORES = (
    "color", "shape", "motion", "direction", "count", "camera", "relation", "framing", "two_objects", "two_moving"
)  # fmt: skip
RELATION = re.compile(
    r"\b(to its (left|right)|(above|below) (it|an?)|(left|right) of|on the left and an?)\b", re.IGNORECASE
)
APART = 1_000_000  # seeds from one try of a prompt to the next
CUT = 0.1  # share of its frames in which an object may touch the edge and still count as wholly in view


def judge(frames: UInt8[np.ndarray, "f h w 3"], scene: worlds.Scene, prompt: str) -> dict[str, list[bool]]:
    """What of the scene a clip shows: for every score its yes and no, an empty list where the prompt does not ask."""
    looked = oracle(frames)
    seen = agrees(looked, scene)
    video, both = scene.frames > 1, len(scene.things) == 2
    motion = seen["motion"] if video else []
    right = all(seen["color"] + seen["shape"])
    there = [next((o for o in looked.objects if o.color == thing.color), None) for thing in scene.things]
    related = RELATION.search(prompt) and beside(there) == beside(scene.things)
    return {
        "color": seen["color"],
        "shape": seen["shape"],
        "motion": motion,
        "direction": [ok for ok, thing in zip(motion, scene.things) if thing.motion in STRAIGHT],
        "count": [seen["count"]],
        "camera": [seen["camera"]] if video else [],
        "relation": [bool(related)] if RELATION.search(prompt) else [],
        "framing": [float(np.mean(o.cut)) <= CUT for o in there if o is not None],
        "two_objects": [right] if both else [],
        "two_moving": [right and all(motion)] if both and video else [],
    }


def beside(things: list) -> str:
    """Where the second of the oracle's objects, or of a scene's things, begins as seen from the first."""
    if None in things[:2]:
        return "nowhere"
    first, second = (thing.path[0] if isinstance(thing, Object) else thing.track[0] for thing in things[:2])
    dx, dy = np.subtract(second[:2], first[:2])
    return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("below" if dy > 0 else "above")


def score(verdicts: list[dict[str, list[bool]]]) -> dict[str, float | None]:
    """The share of yes in each score; None where nothing was asked (JSON has no NaN)."""
    found = {name: [ok for verdict in verdicts for ok in verdict[name]] for name in SCORES}
    return {name: round(float(np.mean(oks)), 4) if oks else None for name, oks in found.items()}


def prompts(scenes: list[worlds.Scene]) -> list[str]:
    """The short caption of every even seed, the long one of every odd seed."""
    return [worlds.captions(scene)[scene.seed % 2] for scene in scenes]


def evaluate(
    model="tiny",
    *,
    seeds: int = 200,
    first: int = worlds.HELD_OUT,
    frames: int | None = None,
    scene: dict | None = None,
    batch: int = 16,
    seed: int = 0,
    steps: int | None = None,
    solver: str | None = None,
    guidance: float | None = None,
    best: int = 1,
    quiet: bool = False,
    out: str | None = None,
) -> dict:
    """Scores a model (or the folder or name of one) on `seeds` scenes from `first` on; prints a table and a JSON line.

    `frames`: of every scene (1: images), else each its own; `scene`: what all have in common (words of `worlds.FIXED`;
    one into whose frame that does not fit is skipped); `batch` prompts are painted together; `seed`, `steps`,
    `solver`, `guidance` as in `Model.generate`; `best`: of so many clips the one that the bundled captioner finds
    likeliest (`captioning.likelihood`; it knows no oracle); `quiet`: no table; `out`: a folder for the result and its
    page, with the clips and the truth beside them (`results.write`).
    Returns what the JSON line holds: the scores of the model, `vae_psnr`, `ceiling` and `truth` (the scores of the
    clips after the VAE and as rendered), and `by`: model and ceiling by size, frames, motion and caption.
    """
    from tqdm import tqdm

    scenes = list(held_out(range(first, first + seeds), frames, scene or {}))
    if not scenes:
        raise InputError(f"no scene of {seeds} has room for {scene}: ask for fewer objects or smaller ones")
    called = str(model)
    if isinstance(model, str) or not hasattr(model, "generate"):
        from sora_jax.model import load

        model = load(model)
    texts = prompts(scenes)
    truth = [worlds.render(scene) for scene in scenes]
    with tqdm(total=(1 + best) * len(scenes), desc="evaluating", unit="clip", file=sys.stderr, disable=None) as bar:
        passed = []
        for one, clip in zip(scenes, truth, strict=True):
            passed.append(model.decode(model.encode(Video(clip, one.fps))).frames)
            bar.update()
        how = dict(steps=steps, solver=solver, guidance=guidance)
        tries = [paint(model, scenes, texts, batch, seed + k * APART, how, bar.update) for k in range(best)]
        painted = tries[0] if best == 1 else likeliest(texts, tries, [one.fps for one in scenes])

    told, ceiling, rendered = (list(map(judge, clips, scenes, texts)) for clips in (painted, passed, truth))
    by: dict[str, dict] = {}
    for kind, name, members in groups(scenes):
        by.setdefault(kind, {})[name] = {
            "clips": len(members),
            **score([told[i] for i in members]),
            "ceiling": score([ceiling[i] for i in members]),
        }
    result = {
        **score(told),
        "vae_psnr": round(float(np.mean([psnr(a, b) for a, b in zip(truth, passed, strict=True)])), 3),
        "ceiling": score(ceiling),
        "truth": score(rendered),
        "by": by,
        "seeds": len(scenes),
        "first_seed": first,
        **({"scene": scene} if scene else {}),
    }
    if not quiet:
        print(table(result))
    print(json.dumps(result))
    if out:
        clips = [
            {"painted": Video(made, one.fps), "truth": Video(clip, one.fps)}
            for made, clip, one in zip(painted, truth, scenes, strict=True)
        ]
        cases = [
            Case("", str(s.seed), verdict, text, pair) for s, verdict, text, pair in zip(scenes, told, texts, clips)
        ]
        print(results.write(out, "world", called, result, cases), file=sys.stderr)
    return result


def held_out(seeds: range, frames: int | None, fixed: dict) -> Iterator[worlds.Scene]:
    """The scenes of the seeds, without those into whose frame what is fixed of them does not fit."""
    worlds.check(fixed, frames=frames)
    for seed in seeds:
        with suppress(InputError):
            yield worlds.sample(seed, frames=frames, **fixed)


def groups(scenes: list[worlds.Scene]) -> Iterator[tuple[str, str, list[int]]]:
    """(kind, name, indices) of the groups to tell apart: by size, by frames, by motion, by length of the caption."""
    pixels = np.array([scene.width * scene.height for scene in scenes])
    frames = np.array([scene.frames for scene in scenes])
    odd = np.array([scene.seed % 2 for scene in scenes])
    kinds = {
        "size": {
            "up to 48x48": pixels <= 48 * 48,
            "up to 64x64": (pixels > 48 * 48) & (pixels <= 64 * 64),
            "larger": pixels > 64 * 64,
        },
        "frames": {str(f): frames == f for f in sorted(set(frames.tolist()))},
        "motion": {
            motion: np.array(
                [s.frames > 1 and s.camera == "still" and motion in {t.motion for t in s.things} for s in scenes]
            )
            for motion in worlds.MOTIONS
        },
        "caption": {"short": odd == 0, "long": odd == 1},
    }
    for kind, members in kinds.items():
        for name, mask in members.items():
            if mask.any():
                yield kind, name, np.flatnonzero(mask).tolist()


def paint(model, scenes, texts, batch, seed, how: dict, progress=lambda n: None) -> list[np.ndarray]:
    """The model's clips for the prompts, each in the size and length of its scene; like sizes are painted together."""
    order = sorted(range(len(scenes)), key=lambda i: scenes[i].width * scenes[i].height * (scenes[i].frames + 3))
    painted: list = [None] * len(scenes)
    for at in range(0, len(order), batch):
        some = order[at : at + batch]
        videos = model.generate(
            [texts[i] for i in some],
            size=[(scenes[i].width, scenes[i].height) for i in some],
            frames=[scenes[i].frames for i in some],
            seed=seed + at,
            **how,
        )
        for i, video in zip(some, videos, strict=True):
            painted[i] = video.frames
        progress(len(some))
    return painted


def likeliest(texts: list[str], tries: list[list[np.ndarray]], fps: list[float]) -> list[np.ndarray]:
    """Of each text's tries the one that the bundled captioner finds likeliest."""
    from sora_jax.captioning import likelihood
    from sora_jax.model import load

    captioner, kept = load("captioner"), []
    for text, rate, *each in zip(texts, fps, *tries, strict=True):
        kept.append(each[int(likelihood(captioner, [Video(frames, rate) for frames in each], text).argmax())])
    return kept


def table(result: dict) -> str:
    """The result for people, in percent: one column per score, one row for all and one for every group."""
    short = {"two_objects": "two", "two_moving": "two+motion"}
    lines = [f"{'':24}" + "".join(f"{short.get(name, name):>11}" for name in SCORES)]

    def row(name, scores):
        cells = ("-" if scores[key] is None else f"{100 * scores[key]:.1f}" for key in SCORES)
        lines.append(f"{name:24}" + "".join(f"{cell:>11}" for cell in cells))

    row(f"model, {result['seeds']} prompts", result)
    row("ceiling: through the VAE", result["ceiling"])
    row("truth: as rendered", result["truth"])
    for kind, members in result["by"].items():
        lines.append("")
        for name, scores in members.items():
            row(f"{kind} {name} ({scores['clips']})", scores)
            row("    ceiling", scores["ceiling"])
    lines += ["", f"VAE PSNR {result['vae_psnr']:.2f} dB"]
    return "\n".join(lines)
