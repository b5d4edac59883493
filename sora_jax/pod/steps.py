"""The steps that plans are made of: the trainer's, the sampler's and the VAE's, on abstract arrays.

Each is the function that runs, jitted with the shardings it runs with; only the arrays are absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.errors import InputError
from sora_jax.pod import mesh as pod


class Step(NamedTuple):
    """A jitted function, its abstract arguments, and what is known of it before it is compiled.

    held: bytes of one device by part of the state; parameters: how many; model_flops: of all devices, None where no
    formula says; facts: what the step does, for the reader.
    """

    function: Callable
    arguments: tuple
    held: dict[str, int]
    parameters: int
    model_flops: float | None
    facts: dict


def trained(config, mesh) -> Step:
    """The trainer's own update, on a full batch."""
    from sora_jax.train import loop, tasks

    task = tasks.make(config)
    update, state, _ = loop.prepare(task, config, mesh)
    frozen = loop.frozen(task, config, mesh)
    data, dit = config.data, config.dit
    shapes = {
        "x": ((data.rows, data.row, math.prod(dit.patch) * (dit.channels + dit.get("given", 0))), jnp.float32),
        "pos": ((data.rows, data.row, 3), jnp.int32),
        "seg": ((data.rows, data.row), jnp.int32),
        "grid": ((data.rows, data.segments, 3), jnp.int32),
        "txt": ((data.rows, data.text_row), jnp.int32),
        "txt_seg": ((data.rows, data.text_row), jnp.int32),
    }
    batch = {name: abstract(s, t, pod.batch_sharding(mesh, name, s)) for name, (s, t) in shapes.items()}
    facts = {"rows": data.rows, "row": data.row, "tokens": data.rows * data.row, "text_row": data.text_row}
    parts = held({**state, "frozen": frozen, "batch": batch})
    parts = {name: parts[name] for name in ("frozen",) * bool(frozen) + ("params", "ema", "opt", "batch")}
    parameters = size_of(state["params"]) + size_of(frozen)
    return Step(update, (state, batch, frozen), parts, parameters, model_flops(config, data.rows), facts)


def sampled(config, mesh) -> Step:
    """One guided step of the sampler over one row."""
    from sora_jax.diffusion import requests, sampler
    from sora_jax.models.dit import DiT
    from sora_jax.models.text import TextEncoder
    from sora_jax.train import tasks

    text, dit, row, words = TextEncoder(**config.text), DiT(**config.dit), config.data.row, config.data.text_row
    shapes = jax.eval_shape(tasks.make(config).init, jax.random.key(0))
    shapes = {part: shapes[part] for part in ("text", "dit")}
    spread = pod.shardings(mesh, shapes)
    params = jax.tree.map(lambda x, s: abstract(x.shape, x.dtype, s), shapes, spread)
    whole = NamedSharding(mesh, PartitionSpec())
    width = math.prod(dit.patch) * dit.channels
    like = dict.fromkeys(("z", "eps"), ((1, row, width), jnp.float32)) | {"pos": ((1, row, 3), jnp.int32)}
    if dit.given:
        like["given"] = ((1, row, math.prod(dit.patch) * dit.given), jnp.float32)
    like |= dict.fromkeys(("seg", "ask", "level"), ((1, row), jnp.int32))
    like |= dict.fromkeys(("start", "shift"), ((1, requests.LEVELS), jnp.float32))
    like |= dict.fromkeys(("txt", "txt_seg"), ((2, words), jnp.int32))
    batch = {name: abstract(s, t, pod.batch_sharding(mesh, name, s)) for name, (s, t) in like.items()}
    us, scales, cache = (abstract(s, jnp.float32, whole) for s in ((2,), (1,), ()))

    def step(params, batch, us, scales, cache):
        solver, predict = config.sample.solver, config.flow.predict
        return sampler.denoise(dit, text, False, solver, predict, True, params, batch, us, scales, cache, None)

    facts = {"rows": 1, "row": row, "tokens": row, "text_row": words}
    parts = {"params": held({"params": params})["params"], "batch": sum(held(batch).values())}
    out = pod.batch_sharding(mesh, "x", (1, row, width))
    function = jax.jit(pod.on(mesh, step), out_shardings=out)
    # guided: with and without the prompt, forward only
    model = 2 * model_flops(config, 1) / 3
    return Step(function, (params, batch, us, scales, cache), parts, size_of(params), model, facts)


def decoded(config, mesh, size: tuple[int, int]) -> Step:
    """One streamed chunk of the VAE's decoder for frames of `size`, rows or columns cut among all devices."""
    from sora_jax.model import CHUNK
    from sora_jax.models import vae as models

    if "vae" not in config:
        raise InputError("--task vae-decode needs a VAE's config, such as configs/vae.py:wan")
    vae, (width, height) = models.VAE(**config.vae), size
    time, side, _ = vae.grid
    z = (1, CHUNK, height // side, width // side, vae.channels)
    if height % side or width % side or (z[2] % mesh.size and z[3] % mesh.size):
        near = max(1, round(width / side / mesh.size)) * mesh.size * side
        raise InputError(
            f"frames of {width}x{height} do not divide into latents of {side} pixels, their rows or columns among "
            f"{mesh.size} devices: the nearest is {near}x{max(1, round(height / side)) * side}"
        )
    frames = NamedSharding(mesh, pod.frames(z, dict(mesh.shape)))
    first = jax.ShapeDtypeStruct((1, 1, *z[2:]), jnp.float32)
    shapes = jax.eval_shape(lambda x: vae.init(jax.random.key(0), x, True, method="decode"), first)
    params = shapes["params"]
    cache = jax.eval_shape(
        lambda p, x: vae.apply({"params": p}, x, True, method="decode", mutable=["cache"])[1]["cache"], params, first
    )
    spread = pod.shardings(mesh, {"vae": params})["vae"]
    params = jax.tree.map(lambda x, s: abstract(x.shape, x.dtype, s), params, spread)
    cache = jax.tree.map(lambda x: abstract(x.shape, x.dtype, frames), cache)

    def step(params, cache, z):
        y, kept = vae.apply({"params": params, "cache": cache}, z, False, method="decode", mutable=["cache"])
        return y, kept["cache"]

    results = (frames, jax.tree.map(lambda x: x.sharding, cache))
    function = jax.jit(pod.on(mesh, step), out_shardings=results, donate_argnums=1)
    parts = held({"params": params, "cache": cache})
    facts = {"frames": CHUNK * time, "size": [width, height], "tokens": CHUNK * time}
    return Step(function, (params, cache, abstract(z, jnp.float32, frames)), parts, size_of(params), None, facts)


def abstract(shape, dtype, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def size_of(params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def model_flops(config, rows: int) -> float:
    """As the trainer counts them, for rows of one clip each and its longest text."""
    from sora_jax.models.dit import training_flops

    row, words = config.data.row, min(config.data.text_tokens, config.data.text_row)
    return training_flops(config.dit, rows * row, rows * row**2, rows * words, rows * row * words)


def held(state) -> dict[str, int]:
    """Bytes on one device of each part of a state of abstract arrays with shardings."""

    def of(leaf) -> int:
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize

    return {name: sum(map(of, jax.tree.leaves(part))) for name, part in state.items()}
