"""Solvers: from noise level t0 to t1, given what the network has seen of x0 there and at the steps before.

With alpha = 1 - t, sigma = t, lambda = log(alpha / sigma), h = lambda(t1) - lambda(t0), and x0', h' of the step before:

    euler    x <- x + (t1 - t0) (x - x0) / t0                                                           (1)
    dpm2m    x <- t1/t0 x + ((1 - t1) - (1 - t0) t1/t0) D,  D = x0 + h/(2 h') (x0 - x0')                (2)
             (DPM-Solver++(2M), arXiv:2211.01095; first order where lambda is infinite)
    unipc    the same step as a predictor, after a corrector, which takes the step before once more, now that x0 at its
             end is known: with x' the sample there, B = exp(-h') - 1, r = (lambda'' - lambda') / h',
                 x <- t0/t' x' - (1 - t0) B (x0' + rho_1 (x0'' - x0') / r + rho_2 (x0 - x0'))           (3)
                 rho_1 + rho_2 = b_1,  r rho_1 + rho_2 = b_2,                                            (4)
                 b_1 = (B/-h' - 1) / B,  b_2 = 2 ((B/-h' - 1)/-h' - 1/2) / B
                 x <- t1/t0 x - (1 - t1) (exp(-h) - 1) (x0 + h/(2 h') (x0 - x0'))                       (5)
             (UniPC of order 2 with B_2(h), arXiv:2302.04867, equations 3 to 8; first order in the first step)

A patch has its own levels: t1, t0, the one before and the one before that are tables [1 k] of a row's levels, and `of`
spreads a table over patches. A patch that does not move (t1 = t0: it starts lower) stays, and has no steps before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

SOLVERS = ("euler", "dpm2m", "unipc")
TOP = 1.0 - 1e-6  # for unipc pure noise is this noisy, or its lambda would be infinite and no second step of order 2


class Levels(NamedTuple):
    """Where a step goes, where it begins, and where the two steps before it began."""

    to: Float[Array, "1 k"]
    now: Float[Array, "1 k"]
    before: Float[Array, "1 k"]
    earlier: Float[Array, "1 k"]


def remembered(solver: str, x: Float[Array, "b s p"]) -> tuple[Array, ...]:
    """What the solver keeps from step to step, before the first."""
    return (jnp.zeros_like(x),) * {"euler": 0, "dpm2m": 1, "unipc": 3}[solver]


def advance(
    solver: str,
    x: Float[Array, "b s p"],
    x0: Float[Array, "b s p"],
    past: tuple[Array, ...],
    levels: Levels,
    of: Callable[[Float[Array, "1 k"]], Float[Array, "1 s 1"]],
) -> tuple[Float[Array, "b s p"], tuple[Array, ...]]:
    """x at `levels.to`, and what to remember. In the first step `levels.before` is `levels.now`."""
    t1, t0 = of(levels.to), of(levels.now)
    if solver == "euler":
        return x + (t1 - t0) * (x - x0) / jnp.maximum(t0, 1e-6), ()
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
    """Equations (3) and (4): x again, for patches that moved in the step before."""
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


def half_log_ratio(t1: Array, t0: Array) -> Array:
    """lambda(t1) - lambda(t0); infinite where t0 = 1 or t1 = 0."""
    return jnp.log((1 - t1) / t1) - jnp.log((1 - t0) / t0)
