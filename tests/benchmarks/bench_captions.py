"""Do models follow prompts better that were trained on descriptive captions? `configs/sweeps/captions.py` trains two.

    python tests/benchmarks/bench_captions.py MODEL... [--seeds 200] [--out page.png] [--frames 1]

Each model paints held-out scenes, prompted by the world's short caption as a person would write it, by that caption
expanded with the bundled expander, and by the scene's own long caption. The oracle looks at pixels alone and is asked
for the objects of the short caption; `background` is the share of clips whose upper and lower half have the scene's own
median colour, give or take CLOSE, of which short captions rarely tell. Prints a table, with 90 % intervals over the
scenes; `--out` writes the first scenes side by side.
"""

import argparse
from itertools import chain
from pathlib import Path

import numpy as np

import sora_jax
from sora_jax import expansion, media
from sora_jax.data import worlds
from sora_jax.evaluate import world

SCORES = ("color", "shape", "count", "relation", "two_objects", "framing", "background")
SHOWN = 6
CLOSE = 24  # of 255


def background(painted: np.ndarray, scene: worlds.Scene) -> bool:
    """Whether the halves' median colours are the scene's: objects seldom cover half of one."""
    a, b = (np.median(np.array_split(frames[0], 2), axis=(1, 2)) for frames in (painted, worlds.render(scene)))
    return bool((np.abs(a - b) < CLOSE).all())


def interval(verdicts: list[dict], name: str) -> str:
    """The share of yes and half its interval's width, by drawing the scenes anew."""
    rng, asked = np.random.default_rng(0), [verdict[name] for verdict in verdicts]
    draws = ([asked[i] for i in rng.integers(0, len(asked), len(asked))] for _ in range(500))
    values = [np.mean(list(chain(*drawn))) for drawn in draws if any(drawn)]
    low, high = np.percentile(values, (5, 95))
    return f"{np.mean(list(chain(*asked))):.2f} +-{(high - low) / 2:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seeds = range(worlds.HELD_OUT + 9000, worlds.HELD_OUT + 9000 + args.seeds)
    scenes = [worlds.sample(seed, size=(64, 64), frames=args.frames) for seed in seeds]
    short, long = map(list, zip(*map(worlds.captions, scenes), strict=True))
    prompts = {"short": short, "expanded": [expansion.expand(p, "tiny").text for p in short], "the scene's long": long}
    print(f"| trained on | prompt | {' | '.join(SCORES)} |\n{'|---' * (2 + len(SCORES))}|")
    rows, titles = [], []
    for name in args.models:
        model = sora_jax.load(name)
        for kind, texts in prompts.items():
            painted = world.paint(model, scenes, texts, 16, 0, {"steps": args.steps})
            verdicts = [
                world.judge(frames, scene, text) | {"background": [background(frames, scene)]}
                for frames, scene, text in zip(painted, scenes, short, strict=True)
            ]
            values = [interval(verdicts, score) for score in SCORES]
            print(f"| {Path(name).name} | {kind} | {' | '.join(values)} |", flush=True)
            rows.append(np.concatenate([frames[:1] for frames in painted[:SHOWN]]))
            titles.append(f"{Path(name).name}, prompt {kind}")
    if args.out:
        media.contact_sheet([media.Video(row, 1.0) for row in rows], titles, args.out, frames=SHOWN, cell=128)
        print("\n".join(f"{i}: {a}  ->  {b}" for i, (a, b) in enumerate(zip(short, prompts["expanded"])) if i < SHOWN))


if __name__ == "__main__":
    main()
