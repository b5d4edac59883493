"""At which noise a model decides what it paints: held-out images, noised so far, painted back with and without words.

    python tests/benchmarks/bench_levels.py [--model tiny] [--seeds 48] [--count 1] [--levels 0.5,0.65,0.8,0.9,1]
        [--guidance 1]

An image of 64x64 of the embedded world that is noised to t and painted to its end from there, without guidance unless
some is asked for, shows what the noise has left of it and what the model makes of the rest. Where the oracle finds the
shape whether it was told or not, the noise still showed it; where it finds it only told, the words decided; where it
finds it neither way, that is what the model has yet to learn. Level 0 is the VAE alone. Prints a table.
"""

import argparse

import numpy as np

import sora_jax
from sora_jax.data import worlds
from sora_jax.diffusion import sampler
from sora_jax.diffusion.canvas import Canvas
from sora_jax.evaluate import world
from sora_jax.media import Video

SCORES = ("color", "shape", "count", "framing", "two_objects")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--count", type=int, help="objects in each image; drawn as the world does without")
    parser.add_argument("--levels", default="0.5,0.65,0.8,0.9,1")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    args = parser.parse_args()
    model = sora_jax.load(args.model)
    fixed = {} if args.count is None else {"count": args.count}
    seeds = range(worlds.HELD_OUT + 5000, worlds.HELD_OUT + 5000 + args.seeds)
    scenes = [worlds.sample(seed, size=(64, 64), frames=1, **fixed) for seed in seeds]
    texts = world.prompts(scenes)
    latents = [model.encode(Video(worlds.render(scene), scene.fps)) for scene in scenes]

    def row(level: float, told: str, painted: list[np.ndarray]) -> None:
        frames = [model.decode(z).frames for z in painted]
        found = world.score([world.judge(*one) for one in zip(frames, scenes, texts, strict=True)])
        values = ("" if found[name] is None else f"{found[name]:.2f}" for name in SCORES)
        print(f"| {level:.2f} | {told} | {' | '.join(values)} |", flush=True)

    print(f"| noise | told | {' | '.join(SCORES)} |")
    print("|---" * (2 + len(SCORES)) + "|")
    row(0.0, "", latents)
    for level in map(float, args.levels.split(",")):
        canvases = [Canvas(z, np.full(z.shape[:3], level, np.float32)) for z in latents]
        for told in (True, False):
            words = texts if told else [""] * len(texts)
            painted = sampler.paint(model, canvases, words, seed=3, steps=args.steps, guidance=args.guidance)
            row(level, "yes" if told else "no", painted)


if __name__ == "__main__":
    main()
