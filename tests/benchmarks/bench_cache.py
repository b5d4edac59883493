"""What the step cache saves and what it costs, on held-out prompts of the embedded world.

    python tests/benchmarks/bench_cache.py [--model tiny] [--clips 8] [--steps 30]

Paints the same clips with and without the cache, in turn, the compilation left out, and prints for each threshold the
speed-up of the sampler and the PSNR of the cached clips against the uncached ones.
"""

import argparse
import time

import numpy as np

import sora_jax
from sora_jax.data import worlds
from sora_jax.diffusion import canvas, sampler
from sora_jax.evaluate.metrics import psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.1, 0.15, 0.2, 0.3])
    args = parser.parse_args()
    model = sora_jax.load(args.model)
    scenes = [worlds.sample(worlds.HELD_OUT + 2 * 10**6 + i, size=(64, 64), frames=17) for i in range(args.clips)]
    prompts = [worlds.captions(scene)[0] for scene in scenes]
    blank = canvas.blank(model.latents_of(64, 64, 17), model.vae.channels)

    def paint(cache: float) -> tuple[list[np.ndarray], float]:
        began = time.perf_counter()
        z = sampler.paint(model, [blank] * len(prompts), prompts, steps=args.steps, cache=cache)
        return z, time.perf_counter() - began

    paint(0.0)  # compiles
    print(f"{'cache':>6} {'speed-up':>9} {'PSNR, dB':>9}")
    for threshold in args.thresholds:
        z, seconds = paint(0.0)
        cached, quick = paint(threshold)
        pairs = [(model.decode(a).frames, model.decode(b).frames) for a, b in zip(z, cached, strict=True)]
        print(f"{threshold:6.2f} {seconds / quick:8.2f}x {np.mean([min(psnr(*pair), 99.0) for pair in pairs]):9.1f}")


if __name__ == "__main__":
    main()
