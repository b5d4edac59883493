"""Where the time of a training step goes on this machine: forward, backward, optimizer, beside its matrix products.

    python tests/benchmarks/bench_step.py [--config configs/dit.py:images] [--config.KEY=VALUE ...]

A config of the task dit, on a few scenes of the embedded world: the medians of several turns, in seconds; model FLOP/s,
and their share of what a square product in float32 reaches here at that moment. On a CPU, memory that is taken and
given back at every step costs a sixth of it unless it comes in large pages: GLIBC_TUNABLES=glibc.malloc.hugetlb=1.
"""

import argparse
import time
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.pod import mesh as pod
from sora_jax.train import configs, loop, tasks

TURNS, SIDE = 7, 2048


def seconds(run, *arrays) -> float:
    """The median of several turns, the first, which compiles, left out."""
    jax.block_until_ready(run(*arrays))
    turns = []
    for _ in range(TURNS):
        began = time.perf_counter()
        jax.block_until_ready(run(*arrays))
        turns.append(time.perf_counter() - began)
    return float(np.median(turns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/dit.py:images")
    args, settings = parser.parse_known_args()
    given = [setting.removeprefix("--config.") for setting in settings]
    world = ["vae_model=tiny", "tokenizer=tiny", "data.path=world", "data.held_out=world-held-out"]
    config = configs.read(args.config, [*world, *given])
    mesh, task = pod.make(config.mesh), tasks.make(config)
    update, _, fresh = loop.prepare(task, config, mesh)
    batch, _ = next(islice(task.batches(None, 0, 1), 1))
    placed, key, state = pod.place(mesh, batch, 1), jax.random.key(0), fresh()

    loss = lambda params, batch: task.loss(params, batch, key)[0]
    with jax.set_mesh(mesh):
        forward = seconds(jax.jit(pod.on(mesh, loss)), state["params"], placed)
        both = seconds(jax.jit(pod.on(mesh, jax.value_and_grad(loss))), state["params"], placed)

    def step():
        nonlocal state  # its buffers are given away
        state, metrics = update(state, placed, {})
        return metrics["loss"]

    whole = seconds(step)
    square = jnp.ones((SIDE, SIDE))
    peak = 2 * SIDE**3 / seconds(jax.jit(jnp.matmul), square, square)
    rate = task.flops(batch) / whole
    print(f"{task.units(batch)} patches: forward {forward:.3f} s, backward {both - forward:.3f} s, ", end="")
    print(f"optimizer and average {whole - both:.3f} s, step {whole:.3f} s")
    print(f"{rate / 1e9:.1f} GFLOP/s of the model, {100 * rate / peak:.0f} % of a product of {SIDE} x {SIDE}")


if __name__ == "__main__":
    main()
