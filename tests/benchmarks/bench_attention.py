"""Attention of a packed row on this machine, forward and backward: all scores at once, and in blocks that skip.

    python tests/benchmarks/bench_attention.py

Prints the seconds of a row of 1,728 patches of seven clips, by the length of a block, and their ratio to
the row as a whole.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.models import kernels

CLIPS = (240, 400, 108, 320, 48, 576, 36)
HEADS, WIDTH, TURNS = 3, 64, 7
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
    seg = jnp.asarray(np.repeat(np.arange(len(CLIPS)) + 1, CLIPS)[None], jnp.int32)
    q, k, v = (jax.random.normal(key, (*seg.shape, HEADS, WIDTH)) for key in jax.random.split(jax.random.key(0), 3))
    whole = seconds(lambda *x: kernels.whole(*x, seg, seg), q, k, v)
    print(f"all scores at once  {whole:.3f} s")
    for block in BLOCKS:
        took = seconds(lambda *x, b=block: kernels.flash(kernels.xla(b), *x, seg, seg), q, k, v)
        mark = "  (here)" if block == kernels.BLOCK["cpu"] else ""
        print(f"blocks of {block:<9} {took:.3f} s, {whole / took:.1f} times as fast{mark}")


if __name__ == "__main__":
    main()
