"""Solvers: from noise level t0 to t1, given what the network has seen of x0 there and at the steps before.

With alpha = 1 - t, sigma = t, lambda = log(alpha / sigma), h = lambda(t1) - lambda(t0), and x0', h' of the step before:

    euler    x <- x + (t1 - t0) (x - x0) / t0                                                           (1)
    renoise  x <- (1 - t1) x0 + t1 eps',  eps' drawn anew in every step                                 (2)
             (as consistency models are sampled, arXiv:2303.01469, algorithm 1). What an early network got wrong in one
             step, neighbours that do not agree above all, is drowned in the next and seen again: it wants more steps
             than the others, paints calmer pictures, and fewer different ones.
    dpm2m    x <- t1/t0 x + ((1 - t1) - (1 - t0) t1/t0) D,  D = x0 + h/(2 h') (x0 - x0')                (3)
             (DPM-Solver++(2M), arXiv:2211.01095; first order where lambda is infinite)
    unipc    the same step as a predictor, after a corrector, which takes the step before once more, now that x0 at its
             end is known: with x' the sample there, B = exp(-h') - 1, r = (lambda'' - lambda') / h',
                 x <- t0/t' x' - (1 - t0) B (x0' + rho_1 (x0'' - x0') / r + rho_2 (x0 - x0'))           (4)
                 rho_1 + rho_2 = b_1,  r rho_1 + rho_2 = b_2,                                            (5)
                 b_1 = (B/-h' - 1) / B,  b_2 = 2 ((B/-h' - 1)/-h' - 1/2) / B
                 x <- t1/t0 x - (1 - t1) (exp(-h) - 1) (x0 + h/(2 h') (x0 - x0'))                       (6)
             (UniPC of order 2 with B_2(h), arXiv:2302.04867, equations 3 to 8; first order in the first step)

A patch has its own levels: t1, t0, the one before and the one before that are tables [1 k] of a row's levels, and `of`
spreads a table over patches. A patch that does not move (t1 = t0: it starts lower) stays, and has no steps before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SOLVERS = ("euler", "renoise", "dpm2m", "unipc")
TOP = 1.0 - 1e-6  # for unipc pure noise is this noisy, or its lambda would be infinite and no second step of order 2


class Levels(NamedTuple):
    """Where a step goes, where it begins, and where the two steps before it began."""

    to: Float[Array, "1 k"]
    now: Float[Array, "1 k"]
    before: Float[Array, "1 k"]
    earlier: Float[Array, "1 k"]


def remembered(solver: str, x: Float[Array, "b s p"]) -> tuple[Array, ...]:
    """What the solver keeps from step to step, before the first."""
    return (jnp.zeros_like(x),) * {"euler": 0, "renoise": 0, "dpm2m": 1, "unipc": 3}[solver]


def advance(
    solver: str,
    x: Float[Array, "b s p"],
    x0: Float[Array, "b s p"],
    past: tuple[Array, ...],
    levels: Levels,
    of: Callable[[Float[Array, "1 k"]], Float[Array, "1 s 1"]],
    noise: Callable[[], Float[Array, "b s p"]],
) -> tuple[Float[Array, "b s p"], tuple[Array, ...]]:
    """x at `levels.to`, and what to remember. In the first step `levels.before` is `levels.now`. noise() is fresh."""
    t1, t0 = of(levels.to), of(levels.now)
    if solver == "euler":
        return x + (t1 - t0) * (x - x0) / jnp.maximum(t0, 1e-6), ()
    if solver == "renoise":
        return jnp.where(t0 > t1, (1 - t1) * x0 + t1 * noise(), x), ()
    if solver == "dpm2m":
        (before,) = past
        h, h_before = half_log_ratio(levels.to, levels.now), half_log_ratio(levels.now, levels.before)
        second = jnp.isfinite(h) & jnp.isfinite(h_before) & (h_before > 0)
        weight = of(jnp.where(second, h / jnp.where(second, h_before, 1.0) / 2, 0.0))
        d = x0 + weight * (x0 - before)
        ratio = t1 / jnp.maximum(t0, 1e-6)
        return jnp.where(t0 > t1, ratio * x + ((1 - t1) - (1 - t0) * ratio) * d, x), (x0,)
    x_before, before, earlier = past
    x = corrected(x, x0, x_before, before, earlier, levels, of)
    top = Levels(*(jnp.minimum(t, TOP) for t in levels))
    h, h_before = half_log_ratio(top.to, top.now), half_log_ratio(top.now, top.before)
    second = jnp.isfinite(h) & jnp.isfinite(h_before) & (h_before > 0)
    weight = of(jnp.where(second, h / jnp.where(second, h_before, 1.0) / 2, 0.0))
    b = of(jnp.where(h > 0, jnp.expm1(-h), 0.0))
    stepped = of(top.to / jnp.maximum(top.now, 1e-6)) * x - of(1 - top.to) * b * (x0 + weight * (x0 - before))
    return jnp.where(t0 > t1, stepped, x), (x, x0, before)


def corrected(x, x0, x_before, before, earlier, levels: Levels, of: Callable) -> Float[Array, "b s p"]:
    """Equations (4) and (5): x again, for patches that moved in the step before."""
    _, now, last, first = (jnp.minimum(t, TOP) for t in levels)
    h, h_before = half_log_ratio(now, last), half_log_ratio(last, first)
    moved = jnp.isfinite(h) & (h > 0)
    second = moved & jnp.isfinite(h_before) & (h_before > 0)
    h = jnp.where(moved, h, 1.0)
    r = jnp.where(second, -h_before, -h) / h
    b = jnp.expm1(-h)
    b1 = (b / -h - 1) / b
    b2 = 2 * ((b / -h - 1) / -h - 0.5) / b
    rho1 = jnp.where(second, (b2 - b1) / jnp.where(second, r - 1, 1.0), 0.0)
    rho2 = jnp.where(second, b1 - rho1, 0.5)
    change = before + of(rho1 / r) * (earlier - before) + of(rho2) * (x0 - before)
    again = of(now / jnp.maximum(last, 1e-6)) * x_before - of((1 - now) * b) * change
    return jnp.where(of(moved), again, x)


def fresh(eps: Float[Array, "b s p"], step: Int[Array, ""]) -> Float[Array, "b s p"]:
    """Normal noise for a step, of the first noise's bits: a patch's own, whatever stands beside it in the row."""
    bits = jax.lax.bitcast_convert_type(eps[..., :2], jnp.uint32)

    def drawn(two):
        return jax.random.normal(
            jax.random.fold_in(jax.random.wrap_key_data(two, impl="threefry2x32"), step), eps.shape[-1:]
        )

    return jax.vmap(jax.vmap(drawn))(bits)


def half_log_ratio(t1: Array, t0: Array) -> Array:
    """lambda(t1) - lambda(t0); infinite where t0 = 1 or t1 = 0."""
    return jnp.log((1 - t1) / t1) - jnp.log((1 - t0) / t0)
