"""What weights in 8 bits cost and save: a model's velocity and painted frames against the same in full.

    python tests/benchmarks/bench_quant.py [--model tiny] [--clips 2] [--steps 8]

Prints for bfloat16 (the weights rounded to it, the products as they were), int8 and float8: the bytes that transformer
and text encoder take where they are kept, the relative error of the velocity (root of the mean square, over that of the
full one's) at three noise levels, on noise and a held-out prompt of the world, and the PSNR of painted frames against
those of the same seed in full.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import sora_jax
from sora_jax.data import packing, worlds
from sora_jax.evaluate.metrics import psnr
from sora_jax.model import Model

LEVELS = (0.3, 0.6, 0.9)


def rounded(model: Model) -> Model:
    """The model with weights of bfloat16, each widened again by its product."""
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), {part: model.params[part] for part in ("text", "dit")})
    return Model(model.config, model.params | narrow, model.tokenizer)


def velocities(model: Model, prompt: str) -> np.ndarray:
    """Of one clip of noise, at each of LEVELS."""
    grid = packing.grid_of(model.latents_of(64, 64, 17), model.dit.patch)
    pos = packing.positions(grid)[None]
    ones = np.ones(pos.shape[:2], np.int32)
    width = int(np.prod(model.dit.patch)) * (model.dit.channels + model.dit.given)
    x = np.random.default_rng(0).standard_normal((1, len(pos[0]), width), np.float32)
    txt = np.array([model.tokenizer.encode(prompt)], np.int32)

    @jax.jit
    def look(params, t):
        seg = np.ones_like(txt)
        ctx = model.text.apply({"params": params["text"]}, txt, seg)
        return model.dit.apply({"params": params["dit"]}, x, pos, ones, t, 0 * ones, ctx, seg)

    return np.stack([look(model.params, jnp.full((1, 1), t)) for t in LEVELS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    scenes = [worlds.sample(worlds.HELD_OUT + 2 * 10**6 + i, size=(64, 64), frames=17) for i in range(args.clips)]
    prompts = [worlds.captions(scene)[0] for scene in scenes]
    full = sora_jax.load(args.model)
    want, clips = velocities(full, prompts[0]), full.generate(prompts, steps=args.steps)
    print(f"{'weights':>9} {'bytes':>12} {'error':>9} {'PSNR, dB':>9}")
    for name in ("full", "bfloat16", "int8", "float8"):
        made = (
            full if name == "full" else rounded(full) if name == "bfloat16" else sora_jax.load(args.model, quant=name)
        )
        size = sum(x.nbytes for part in ("text", "dit") for x in jax.tree.leaves(made.params[part]))
        if made is full:
            print(f"{name:>9} {size:12,}")
            continue
        error = np.sqrt(np.mean((velocities(made, prompts[0]) - want) ** 2) / np.mean(want**2))
        painted = made.generate(prompts, steps=args.steps)
        apart = np.mean([min(psnr(a.frames, b.frames), 99.0) for a, b in zip(painted, clips, strict=True)])
        print(f"{name:>9} {size:12,} {error:9.4f} {apart:9.1f}")


if __name__ == "__main__":
    main()
