"""From noise to latents: guidance and solvers in one lax.scan, over packed rows.

At global noise level u, which falls from 1 to 0, a patch is at

    t(u) = min(shift(u), start)                                        (flow.py eq. 7, canvas.py)       (1)

so that a patch with start = 0 never moves, and requests of any size share a row. Each step goes from t0 = t(u_i) to
t1, as its solver has it (solvers.py), by what the network sees of x0,

    x0 = x - t0 velocity,    velocity = uncond + guidance (cond - uncond)                (arXiv:2207.12598)     (2)

The step cache: what the network sees moves on smoothly, so a step may leave it out and go on along the line through
its last two looks, k steps after the last,

    x0 = x0' + k (x0' - x0'') / n    while    k |x0' - x0''|_1 / n < cache |x0'|_1                        (3)

with n steps between the two looks (skipping by expected change: arXiv:2411.19108; here measured on x0 itself).

The compiled program knows only the row's length: any size and duration run in the same one. A model with a second
transformer for low noise (`dit_low`, below `sample.switch`) is painted with in two such programs, each given one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from sora_jax.data.packing import unpatchify
from sora_jax.diffusion import flow, solvers
from sora_jax.diffusion.canvas import Canvas
from sora_jax.diffusion.requests import Shot, arrange, check_memory, pack, prepare
from sora_jax.errors import InputError
from sora_jax.models.dit import beside
from sora_jax.pod import mesh as pod

if TYPE_CHECKING:
    from sora_jax.model import Model


class Seen(NamedTuple):
    """The network's last look at the rows: x0, its change per step since the look before, that change's share of x0's
    size, and how many steps ago it was."""

    x0: Float[Array, "b s p"]
    slope: Float[Array, "b s p"]
    rate: Float[Array, ""]
    ago: Float[Array, ""]


def paint(
    model: Model,
    canvases: Sequence[Canvas],
    prompts: Sequence[str | Sequence[Shot]],
    *,
    seed: int = 0,
    first: int = 0,
    steps: int | Sequence[float] | None = None,
    guidance: float | Sequence[float] | None = None,
    solver: str | None = None,
    negative: str = "",
    cache: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Float[np.ndarray, "f h w c"]]:
    """Paints every canvas to its prompt, all packed together, and returns their latents.

    A prompt is a text, or the Shots of a clip. steps, guidance, solver: the model's own when None. `steps` is a number
    of even ones, or the levels u themselves, from 1 down to 0; several values of `guidance` are spread over them, but
    two, where there are two transformers, are one for each. A canvas's noise depends on the seed and its place in the
    list alone, counted from `first`, not on its neighbours in the row (with `cache` they decide when the network looks
    again). `progress` is called with (steps done, steps in all). Under `with jax.set_mesh(pod.mesh.make(...))` all of
    its devices paint: a row's patches are cut among those along context, weights stay as they lie; every process calls,
    and gets, the same.
    Raises InputError: an unknown solver, bad steps, too long a prompt, a canvas that memory does not hold.
    """
    config = model.config["sample"]
    steps = config["steps"] if steps is None else steps
    guidance = config["guidance"] if guidance is None else guidance
    solver = config["solver"] if solver is None else solver
    if solver not in solvers.SOLVERS:
        raise InputError(f"solver is {solver!r}; choose one of {', '.join(solvers.SOLVERS)}")
    if not 0 <= cache < float("inf"):
        raise InputError(f"cache is {cache}; give a share of 0 (no cache) or more")
    us = schedule(steps)
    steps = len(us) - 1
    scales = np.atleast_1d(np.asarray(guidance, np.float32))
    if not np.isfinite(scales).all():
        raise InputError(f"guidance is {guidance}; give finite numbers")
    predict, turn = model.config["flow"]["predict"], turning(model, us)
    whole = {"timesteps": 0, **model.config["flow"]}["timesteps"]
    if turn < steps and len(scales) == 2:
        scales = np.where(np.arange(steps) < turn, *scales)
    else:
        scales = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(scales)), scales)
    patch = model.dit.patch
    if any((0 if canvas.given is None else canvas.given.shape[-1]) != model.dit.given for canvas in canvases):
        raise InputError(f"this model is given {model.dit.given} channels beside the noise: see drafts.canvas_of")
    longest = max(math.prod(-(-n // p) for n, p in zip(canvas.start.shape, patch)) for canvas in canvases)
    row = config["row"] * -(-longest // config["row"])
    check_memory(model, row, max(canvases, key=lambda canvas: canvas.start.size).start.shape, longest)
    items = [
        prepare(model, canvas, prompt, negative, seed, first + i)
        for i, (canvas, prompt) in enumerate(zip(canvases, prompts))
    ]
    if row > config["row"]:
        print(f"a clip of {longest} patches needs a row of {row} (the model's is {config['row']})", file=sys.stderr)
    words = config["text_row"] * -(-max(item["text"] for item in items) // config["text_row"])
    rows = arrange([len(item["x"]) for item in items], [item["text"] for item in items], row, words)
    painted: dict[int, np.ndarray] = {}
    mesh = jax.sharding.get_mesh()
    for r, members in enumerate(rows):
        batch = pack([items[i] for i in members], row, words)
        batch = batch if mesh.empty else pod.place(mesh, batch, 1)
        tick = None if progress is None else lambda i, r=r: progress(r * steps + int(i) + 1, len(rows) * steps)
        kind = (model.dit, model.text, tick is not None, solver, predict, bool((scales != 1).any()))
        numbers = (jnp.asarray(us, jnp.float32), jnp.asarray(scales, jnp.float32), jnp.float32(cache))
        if turn < steps:
            x = relay(model.params, turn, *kind, batch, *numbers, _Tick(tick), whole)
        else:
            params = pod.placed({"dit": model.params["dit"], "text": model.params["text"]})
            x = denoise(*kind, params, batch, *numbers, _Tick(tick), whole)
        if not mesh.empty:  # without one this process paints by itself, and others would be waited for in vain
            x = multihost_utils.process_allgather(x, tiled=True)
        x, start = np.asarray(x[0], np.float32), 0
        for i in members:
            painted[i] = x[start : start + len(items[i]["x"])]
            start += len(items[i]["x"])
    results = []
    for i, canvas in enumerate(canvases):
        f, h, w = canvas.start.shape
        z = unpatchify(painted[i], items[i]["grid"], patch)[:f, :h, :w]
        results.append(np.where(canvas.start[..., None] == 0, canvas.z, z))
    return results


def schedule(steps: int | Sequence[float]) -> Float[np.ndarray, n]:
    """The global noise levels from 1 to 0. Raises InputError for less than a step, or levels that do not fall so."""
    if np.ndim(steps) == 0:
        if steps < 1:
            raise InputError(f"steps is {steps}; take at least 1")
        return np.linspace(1.0, 0.0, int(steps) + 1)
    us = np.asarray(steps, np.float64)
    if len(us) < 2 or us[0] != 1 or us[-1] != 0 or not (np.diff(us) < 0).all():
        raise InputError(f"steps are {list(steps)}; levels must fall from 1 to 0")
    return us


class _Tick:
    """Carries the progress function into a compiled program without being part of what it is compiled for."""

    current: Callable | None = None

    def __init__(self, function):
        _Tick.current = function

    def __hash__(self):
        return 0

    def __eq__(self, other):
        return isinstance(other, _Tick)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5, 11, 12))
def denoise(
    dit, text, ticking: bool, solver: str, predict: str, guided: bool, params: dict, batch: dict,
    us: Float[Array, steps+1], guidance: Float[Array, steps], cache: Float[Array, ""], tick: _Tick, whole: int = 0,
) -> Float[Array, "b s p"]:  # fmt: skip
    """The whole way from u = 1 to 0 for one packed batch; compiled once per row length and number of steps.

    whole: the network is told noise levels in whole steps of so many, rounded down as in its training; 0: as they are.
    """
    carry = beginning(solver, batch)
    walked = walk(
        dit, text, ticking, solver, predict, guided, whole, tick, params, batch, cache, carry, way(us, guidance)
    )
    return ending(batch, walked)


def relay(
    params: dict, turn: int, dit, text, ticking: bool, solver: str, predict: str, guided: bool, batch: dict,
    us: Float[Array, steps+1], guidance: Float[Array, steps], cache: Float[Array, ""], tick: _Tick, whole: int,
) -> Float[Array, "b s p"]:  # fmt: skip
    """The same way with two transformers: `params["dit"]` for the first `turn` steps, then `params["dit_low"]`.

    One of them at a time is the argument of a program; where the parameters are the machine's and not the device's
    (`load(..., host=True)`), only that one is on the device.
    """
    carry, whole_way = beginning(solver, batch), way(us, guidance)
    for name, here in (("dit", slice(0, turn)), ("dit_low", slice(turn, len(guidance)))):
        if here.start < here.stop:
            part = pod.placed({"dit": params[name], "text": params["text"]})
            stretch = jax.tree.map(lambda x, here=here: x[here], whole_way)
            walked = walk(dit, text, ticking, solver, predict, guided, whole, tick, part, batch, cache, carry, stretch)
            carry = jax.block_until_ready(walked)  # or the next one would be sent while this one is still at work
    return ending(batch, carry)


def turning(model: Model, us: Float[np.ndarray, steps + 1]) -> int:
    """The number of steps that the first transformer takes: all, or, where there are two, those from `sample.switch`
    up, in the whole steps that the network is told."""
    if "dit_low" not in model.params:
        return len(us) - 1
    settings = model.config["flow"]
    t = np.minimum(flow.shifted(us[:-1], settings["shift"]), solvers.TOP)
    return int((np.floor(t * settings["timesteps"]) >= model.config["sample"]["switch"] * settings["timesteps"]).sum())


def way(us: Float[Array, steps + 1], guidance: Float[Array, steps]) -> tuple:
    """What each step is told: its number, the levels around it (see solvers.Levels), and its guidance."""
    early = jnp.concatenate([us[:1], us[:1], us])  # before the first step nothing moves
    levels = solvers.Levels(early[3:], early[2:-1], early[1:-2], early[:-3])
    return jnp.arange(len(us) - 1), levels, guidance


def beginning(solver: str, batch: dict) -> tuple:
    """Noise where all is to be painted, the clean latents where nothing is; and nothing seen."""
    start = jnp.take_along_axis(batch["start"], batch["level"], 1)[..., None]
    x = (1 - start) * batch["z"] + start * batch["eps"]
    nothing = jnp.zeros_like(x)
    return x, solvers.remembered(solver, x), Seen(nothing, nothing, jnp.float32(jnp.inf), jnp.float32(0))


def ending(batch: dict, carry: tuple) -> Float[Array, "b s p"]:
    """What was painted, and what was known bit for bit."""
    start = jnp.take_along_axis(batch["start"], batch["level"], 1)[..., None]
    return jnp.where(start == 0, batch["z"], carry[0])


def _walk(
    dit, text, ticking: bool, solver: str, predict: str, guided: bool, whole: int, tick: _Tick,
    params: dict, batch: dict, cache: Float[Array, ""], carry: tuple, steps: tuple,
) -> tuple:  # fmt: skip
    """A stretch of the way, from one carry to another: (x, what the solver remembers, what was seen)."""
    sides = 2 if guided else 1
    txt, txt_seg = batch["txt"][:sides], batch["txt_seg"][:sides]
    ctx = text.apply({"params": params["text"]}, txt, txt_seg)
    pos, seg, ask, level = (jnp.repeat(batch[name], sides, 0) for name in ("pos", "seg", "ask", "level"))

    def levels(u: Array) -> Float[Array, "1 k"]:  # equation (1)
        return jnp.minimum(flow.shifted(u, batch["shift"]), batch["start"])

    def of(table: Float[Array, "1 k"]) -> Float[Array, "1 s 1"]:
        return jnp.take_along_axis(table, batch["level"], 1)[..., None]

    def told(both: Array) -> Array:
        """The rows with what is given of them, if anything is."""
        if "given" not in batch:
            return both
        return beside(both, jnp.repeat(batch["given"], sides, 0), int(np.prod(dit.patch)))

    def look(x: Array, table: Array, scale: Array) -> Array:
        """x0 as the network sees it."""
        both, t0 = jnp.repeat(x, sides, 0), of(table)
        table = jnp.repeat(table, sides, 0)
        # the half thousandth is for what float32 lacks of a whole number
        heard = jnp.floor(jnp.minimum(table, solvers.TOP) * whole + 5e-4) / whole if whole else table
        out = dit.apply({"params": params["dit"]}, told(both), pos, seg, heard, level, ctx, txt_seg, ask)
        v = flow.velocity(predict, out, both, jnp.repeat(t0, sides, 0))
        if guided:  # equation (2)
            v = v[1:] + scale * (v[:1] - v[1:])
        return flow.clean(v, x, t0)

    def step(carry, now):
        x, past, seen = carry
        i, us, scale = now
        table = levels(us.now)

        def look_again() -> Seen:
            x0 = look(x, table, scale)
            slope = (x0 - seen.x0) / (seen.ago + 1)
            rate = jnp.abs(slope * real).sum() / jnp.abs(x0 * real).sum()
            return Seen(x0, slope, jnp.where(i > 0, rate, jnp.inf), jnp.float32(0))

        smooth = (seen.ago + 1) * seen.rate < cache  # equation (3)
        seen = jax.lax.cond(smooth, lambda: seen._replace(ago=seen.ago + 1), look_again)
        x0 = seen.x0 + seen.ago * seen.slope
        noise = partial(solvers.fresh, batch["eps"], i)
        x, past = solvers.advance(solver, x, x0, past, solvers.Levels(*map(levels, us)), of, noise)
        if ticking:
            jax.debug.callback(lambda i: _Tick.current(i), i)
        return (x, past, seen), None

    real = (batch["seg"] > 0)[..., None]
    return jax.lax.scan(step, carry, steps)[0]


walk = jax.jit(_walk, static_argnums=(0, 1, 2, 3, 4, 5, 6, 7))
