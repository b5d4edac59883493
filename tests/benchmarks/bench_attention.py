"""Attention of a packed row on this machine, forward and backward: all scores at once, and in blocks that skip.

    python tests/benchmarks/bench_attention.py

Prints the seconds of four rows of 576 patches and of one of 1,728, each of several clips, by the length of a block, and
their ratio to the rows as a whole.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.models import kernels

ROWS = {4: (24, 180, 64, 216, 92), 1: (240, 400, 108, 320, 48, 576, 36)}  # how many, of which clips
HEADS, WIDTH, TURNS = 4, 32, 7
BLOCKS = (64, 128, 256, 512)


def seconds(attend, *arrays) -> float:
    """The least of several turns."""
    gradients = jax.jit(jax.grad(lambda *x: (attend(*x) ** 2).sum(), argnums=(0, 1, 2)))
    jax.block_until_ready(gradients(*arrays))
    turns = []
    for _ in range(TURNS):
        began = time.perf_counter()
        jax.block_until_ready(gradients(*arrays))
        turns.append(time.perf_counter() - began)
    return min(turns)


def main() -> None:
    for rows, clips in ROWS.items():
        seg = jnp.asarray(np.repeat(np.arange(len(clips)) + 1, clips)[None].repeat(rows, 0), jnp.int32)
        keys = jax.random.split(jax.random.key(0), 3)
        q, k, v = (jax.random.normal(key, (*seg.shape, HEADS, WIDTH)) for key in keys)
        whole = seconds(lambda *x, seg=seg: kernels.whole(*x, seg, seg), q, k, v)
        print(f"{rows} x {sum(clips)}, all scores at once  {whole:.3f} s")
        here = kernels.even(sum(clips), kernels.BLOCK["cpu"])
        for block in sorted({*BLOCKS, here}):
            took = seconds(lambda *x, b=block, seg=seg: kernels.flash(kernels.xla(b), *x, seg, seg), q, k, v)
            print(f"blocks of {block:<9} {took:.3f} s, {whole / took:.1f} times as fast{'  (here)' * (block == here)}")


if __name__ == "__main__":
    main()
