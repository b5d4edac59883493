"""Packing beside padding and beside buckets: the same clips, the same noise, the same steps, and what each costs.

    python tests/benchmarks/bench_batching.py [--steps 6] [--json]

The bundled model's transformer, from random weights, learns from CLIPS scenes of the embedded world a step (latents of
their true sizes and captions; what is in them is noise, for only time and sameness are measured). Gradients are summed
over passes of at most PATCHES patches, which is what memory holds:

    packed    whole clips side by side in rows of ROW patches, as the trainer has them
    buckets   a clip to a row, padded to the next power of two; a pass holds rows of one length
    padded    a clip to a row as long as the longest

Noise levels and noise are drawn for each clip by itself, so all three have the same loss at every step, up to the
order of sums: what differs is seconds. Useful patches are those of clips, not of padding.
"""

import argparse
import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sora_jax.data import packing, pipeline, worlds
from sora_jax.diffusion import flow
from sora_jax.model import find
from sora_jax.models.dit import DiT
from sora_jax.models.text import TextEncoder, Tokenizer
from sora_jax.train import configs

ROW, PATCHES, CLIPS = 1728, 3456, 48


def drawn(config, tokenizer: Tokenizer, step: int) -> list[packing.Clip]:
    """The clips of a step, in noise: x is what a patch becomes at the clip's noise level, beside what to predict."""
    clips = []
    for seed in range(step * CLIPS, (step + 1) * CLIPS):
        scene, rng = worlds.sample(seed), pipeline.generator(0, seed)
        grid = ((scene.frames + 3) // 4, scene.height // 8, scene.width // 8)
        grid = packing.grid_of((*grid, config.dit.channels), config.dit.patch)
        patches = (int(np.prod(grid)), config.dit.channels * int(np.prod(config.dit.patch)))
        x0, eps = (rng.standard_normal(patches, np.float32) for _ in range(2))
        t = 1 / (1 + np.exp(-rng.standard_normal()))
        both = np.concatenate([flow.add_noise(x0, eps, t), eps - x0, np.full((len(x0), 1), t, np.float32)], 1)
        clips.append(packing.Clip(both, packing.positions(grid), grid, tokenizer.encode(worlds.captions(scene)[0])))
    return clips


def packed(clips: list[packing.Clip], text_row: int) -> list[list[list[packing.Clip]]]:
    """Passes of rows of clips, the longest placed first."""
    packer = packing.Packer(ROW, text_row, len(clips), open_rows=len(clips))
    for i, clip in sorted(enumerate(clips), key=lambda each: -len(each[1].x)):
        packer.add(i, (len(clip.x), len(clip.txt)))
    rows = [[clips[i] for i in row] for row in packer.state()["closed"] + packer.state()["open"]]
    return [rows[at : at + PATCHES // ROW] for at in range(0, len(rows), PATCHES // ROW)]


def in_rows_of(clips: list[packing.Clip], length) -> list[list[list[packing.Clip]]]:
    """Passes of rows of one clip each, those of one `length(clip)` together."""
    passes = []
    for size in sorted({length(clip) for clip in clips}):
        rows = [[clip] for clip in clips if length(clip) == size]
        passes += [rows[at : at + PATCHES // size] for at in range(0, len(rows), PATCHES // size)]
    return passes


def power_of_two(clip: packing.Clip) -> int:
    """The least power of two that holds the clip, 64 or more: fewer programs to compile."""
    return max(64, 1 << (len(clip.x) - 1).bit_length())


def bench(steps: int) -> dict[str, dict]:
    """Way -> its loss at every step, seconds a step, useful patches a second, share of padding."""
    config = configs.read("configs/dit.py:tiny")
    tokenizer = Tokenizer(find("tiny"))
    text, dit = TextEncoder(**config.text), DiT(**config.dit)
    size = config.dit.channels * int(np.prod(config.dit.patch))
    ints, floats = jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 8, size))
    keys = jax.random.split(jax.random.key(0))
    begin = {
        "text": text.init(keys[0], ints, ints)["params"],
        "dit": dit.init(
            keys[1], floats, jnp.zeros((1, 8, 3), jnp.int32), ints, jnp.zeros((1, 1)), ints,
            jnp.zeros((1, 8, config.text.width)), ints,
        )["params"],
    }  # fmt: skip
    rule = optax.adam(1e-3)

    def loss(params, batch, total):
        x, target, t = jnp.split(batch["x"], [size, 2 * size], -1)
        # a row's table of noise levels has an entry for each of its clips: 0 for padding, then by segment
        levels = jax.vmap(partial(jax.ops.segment_max, num_segments=CLIPS + 1))(t[..., 0], batch["seg"])
        ctx = text.apply({"params": params["text"]}, batch["txt"], batch["txt_seg"])
        out = dit.apply(
            {"params": params["dit"]}, x, batch["pos"], batch["seg"], jnp.clip(levels, 0, 1), batch["seg"], ctx,
            batch["txt_seg"],
        )  # fmt: skip
        error = flow.velocity(config.flow.predict, out, x, t) - target
        return jnp.sum(jnp.where(batch["seg"] > 0, jnp.square(error).mean(-1), 0.0)) / total

    @partial(jax.jit, donate_argnums=1)
    def summed(params, gradient, batch, total):
        value, new = jax.value_and_grad(loss)(params, batch, total)
        return value, jax.tree.map(jnp.add, gradient, new)

    @jax.jit
    def stepped(params, state, gradient):
        change, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    def collated(rows, way):
        length = {"packed": ROW, "padded": longest}.get(way) or power_of_two(rows[0][0])
        count, text_row = PATCHES // length, config.data.text_row if way == "packed" else config.data.text_tokens
        batch = packing.collate(rows, length, text_row, max(len(row) for row in rows))
        fill = {k: np.pad(v, [(0, count - len(v)), *[(0, 0)] * (v.ndim - 1)]) for k, v in batch.items() if k != "grid"}
        return jax.tree.map(jnp.asarray, fill)

    steps_of_clips = [drawn(config, tokenizer, step) for step in range(steps)]
    longest = max(len(clip.x) for clips in steps_of_clips for clip in clips)
    result = {}
    for way in ("packed", "buckets", "padded"):
        params, state, losses, seconds, passes = begin, rule.init(begin), [], 0.0, 0
        for clips in steps_of_clips:
            if way == "packed":
                laid = packed(clips, config.data.text_row)
            else:
                laid = in_rows_of(clips, power_of_two if way == "buckets" else lambda _: longest)
            batches, total = [collated(rows, way) for rows in laid], float(sum(len(clip.x) for clip in clips))
            for batch in {b["x"].shape: b for b in batches}.values():  # compiled before the clock runs
                jax.block_until_ready(summed(params, jax.tree.map(jnp.zeros_like, params), batch, total))
            began = time.perf_counter()
            gradient, values = jax.tree.map(jnp.zeros_like, params), []
            for batch in batches:
                value, gradient = summed(params, gradient, batch, total)
                values.append(value)
            params, state = jax.block_until_ready(stepped(params, state, gradient))
            seconds += time.perf_counter() - began
            losses.append(round(float(sum(values)), 5))
            passes += len(batches)
        used = sum(len(clip.x) for clips in steps_of_clips for clip in clips)
        result[way] = {
            "seconds_per_step": round(seconds / steps, 2),
            "useful_patches_per_second": round(used / seconds),
            "padding": round(1 - used / (passes * PATCHES), 3),
            "loss": losses,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    args = parser.parse_args()
    result = bench(args.steps)
    if args.json:
        print(json.dumps(result))
        return
    for way, found in result.items():
        seconds, useful = found["seconds_per_step"], found["useful_patches_per_second"]
        losses = " ".join(f"{loss:.5f}" for loss in found["loss"])
        print(f"{way:8} {seconds:7.2f} s/step {useful:6} patches/s, padding {found['padding']:6.1%}, loss {losses}")


if __name__ == "__main__":
    main()
