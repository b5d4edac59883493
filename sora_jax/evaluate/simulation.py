"""Does a model simulate? It sees the beginning of a held-out scene, goes on by itself, and what it painted is measured.

What hides comes out again, what falls is pulled down, what collides parts, what is there stays there; one camera sees
all of a scene in space; a painted line stays, and a bite; the player and the world of a game move by their rules:
`probes.py` has the eight measures, and how much of a clip each gives to the model.

Clips have 33 frames, `coherence` as many as asked; prompts are the scenes' short captions. Beside the model stand the
same measures of the rendered truth after the model's VAE, the ceiling of any painter behind it, and of a clip that
repeats its last given frame (whose objects stay what they are, but do nothing).
"""

import json
import sys

import numpy as np

from sora_jax.evaluate import results
from sora_jax.evaluate.probes import FIRST, FRAMES, PROBES, given, mean, scene_of, shown
from sora_jax.evaluate.results import Case, finite
from sora_jax.media import Video


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
                (truth, prompt), n = shown(scene), given(name, scene)
                start = Video(truth.frames[:n], truth.fps)
                length = max(FRAMES, round(seconds * truth.fps)) if name == "coherence" else FRAMES
                made = model.extend(start, prompt, after=(length - n) / truth.fps, seed=seed + case, steps=steps)
                passed = model.decode(model.encode(truth))
                still = np.concatenate([start.frames, np.repeat(start.frames[-1:], length - n, 0)])
                for kind, frames in (("model", made.frames), ("ceiling", passed.frames), ("repeat", still)):
                    rows[kind].append(PROBES[name](frames, scene))
                clips = {"painted": made, "truth": truth}
                seen.append(Case(name, str(FIRST + case), finite(rows["model"][-1]), prompt, clips))
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
        f"{name:12}{key:10}" + "".join(f"  {kind} {show(found[kind][key])}" for kind in found)
        for key in found["model"]
    )  # fmt: skip
