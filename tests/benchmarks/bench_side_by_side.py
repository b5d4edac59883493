"""What several models paint for the same held-out prompts, one below the other, the rendered truth on top.

    python tests/benchmarks/bench_side_by_side.py MODEL... --out FILE.png [--size 96x48] [--frames 1] [--scene count=1]

Images: a row for each model, with the first eight scenes. Videos: the frames of the first two scenes, a row for each
model. A picture and no measurement: the first scenes are taken, whatever they show.
"""

import argparse
from pathlib import Path

import numpy as np

import sora_jax
from sora_jax import flags, media
from sora_jax.data import worlds
from sora_jax.evaluate import world

FIRST = worlds.HELD_OUT + 9000
IMAGES, CLIPS = 8, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--size", type=flags.size, default=(96, 48), metavar="WxH")
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--scene", type=flags.words, default={})
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    count = IMAGES if args.frames == 1 else CLIPS
    scenes = [worlds.sample(FIRST + i, size=args.size, frames=args.frames, **args.scene) for i in range(count)]
    prompts = world.prompts(scenes)
    rows = {"truth": [worlds.render(scene) for scene in scenes]}
    for name in args.models:
        rows[Path(name).name] = world.paint(sora_jax.load(name), scenes, prompts, count, 0, {})
    if args.frames == 1:
        videos, titles = [media.Video(np.concatenate(row), 1.0) for row in rows.values()], list(rows)
    else:
        shown = [(f"{name}: {prompts[i]}", row[i]) for i in range(count) for name, row in rows.items()]
        titles, videos = [title for title, _ in shown], [media.Video(frames, 8.0) for _, frames in shown]
    media.contact_sheet(videos, titles, args.out, frames=IMAGES, cell=128)
    print("\n".join(f"{i}: {prompt}" for i, prompt in enumerate(prompts)))


if __name__ == "__main__":
    main()
