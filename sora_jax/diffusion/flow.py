"""Noise: how it is added, what the network predicts of it, and how much of it training shows.

With x0 a clean patch, eps ~ N(0, 1) and t its noise level (1 = pure noise, 0 = clean):

    x_t      = (1 - t) x0 + t eps                                                        (1)
    velocity = d x_t / dt = eps - x0                                (flow matching, arXiv:2210.02747)   (2)
    v        = (1 - t) eps - t x0                                   (v-prediction, arXiv:2202.00512)    (3)

    velocity = (x_t - x0) / t = (eps - x_t) / (1 - t)                                    (4)
    x0       = x_t - t velocity,      eps = x_t + (1 - t) velocity                       (5)
    velocity = (v + (2t - 1) x_t) / ((1-t)^2 + t^2)                 from (1), (3)        (6)

    shift(t) = s t / (1 + (s - 1) t),  s = sqrt(tokens / base)      (SD3, arXiv:2403.03206, eq. 23)     (7)

A clip with more tokens keeps its layout through more noise, so that s > 1 spends more of the time at high noise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sora_jax.errors import InputError

PREDICTIONS = ("x0", "eps", "v", "velocity")
LAWS = ("uniform", "logit_normal", "mode", "cosine")
TRIES = 16  # see draw_within
MIN_T = 0.02  # divisions by t or 1 - t stop here


def add_noise(x0: Float[Array, "*b p"], eps: Float[Array, "*b p"], t: Float[Array, "*b 1"]) -> Float[Array, "*b p"]:
    """Equation (1)."""
    return (1.0 - t) * x0 + t * eps


def target(kind: str, x0: Array, eps: Array, t: Array) -> Array:
    """What a network of this kind of prediction is trained to say. Raises InputError for an unknown kind."""
    if kind == "x0":
        return x0
    if kind == "eps":
        return eps
    if kind == "v":
        return (1.0 - t) * eps - t * x0
    if kind == "velocity":
        return eps - x0
    raise InputError(f"flow.predict is {kind!r}; choose one of {', '.join(PREDICTIONS)}")


def velocity(kind: str, prediction: Array, x_t: Array, t: Array) -> Array:
    """Any prediction as a velocity, equations (4) and (6). Raises InputError for an unknown kind."""
    if kind == "x0":
        return (x_t - prediction) / jnp.maximum(t, MIN_T)
    if kind == "eps":
        return (prediction - x_t) / jnp.maximum(1.0 - t, MIN_T)
    if kind == "v":
        return (prediction + (2.0 * t - 1.0) * x_t) / ((1.0 - t) ** 2 + t**2)
    if kind == "velocity":
        return prediction
    raise InputError(f"flow.predict is {kind!r}; choose one of {', '.join(PREDICTIONS)}")


def clean(velocity: Array, x_t: Array, t: Array) -> Array:
    """x0 of equation (5)."""
    return x_t - t * velocity


def noise(velocity: Array, x_t: Array, t: Array) -> Array:
    """eps of equation (5)."""
    return x_t + (1.0 - t) * velocity


def shifted(t: Float[Array, "*b"], shift: Float[Array, "*b"] | float) -> Float[Array, "*b"]:
    """Equation (7); maps 0 to 0 and 1 to 1 whatever the shift."""
    return shift * t / (1.0 + (shift - 1.0) * t)


def shift_of(tokens: Float[Array, "*b"], base: float) -> Float[Array, "*b"]:
    """s of equation (7) for clips of so many tokens; 1 for everything when base is 0."""
    return jnp.sqrt(jnp.maximum(tokens, 1) / base) if base else jnp.ones_like(jnp.asarray(tokens, jnp.float32))


def draw_levels(law: str, key: Array, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Training noise levels in (0, 1). Raises InputError for an unknown law.

    uniform; logit_normal: sigmoid(N(0, 1)); mode: SD3's eq. 20 with scale 1.29; cosine: SD3's eq. 21.
    The published formulas are symmetric in t, so that which end is called noise does not matter.
    """
    u = jax.random.uniform(key, shape, minval=1e-5, maxval=1.0 - 1e-5)
    if law == "uniform":
        return u
    if law == "logit_normal":
        return jax.nn.sigmoid(jax.scipy.special.ndtri(u))
    if law == "mode":
        return 1.0 - u - 1.29 * (jnp.cos(jnp.pi / 2 * u) ** 2 - 1.0 + u)
    if law == "cosine":
        return 1.0 - 1.0 / (jnp.tan(jnp.pi / 2 * u) + 1.0)
    raise InputError(f"flow.law is {law!r}; choose one of {', '.join(LAWS)}")


def draw_within(
    law: str, key: Array, shape: tuple[int, ...], shift: Array | float, low: float, high: float
) -> Float[Array, "*shape"]:
    """Training noise levels of a law, shifted, that lie in [low, high): of TRIES draws the first that does or, should
    none (once in 700 where each has a third of a chance), one anywhere between. Of 0 to 1 it is `draw_levels`, shifted.
    """
    if (low, high) == (0.0, 1.0):
        return shifted(draw_levels(law, key, shape), shift)
    tries = shifted(draw_levels(law, key, (TRIES, *shape)), shift)
    within = (tries >= low) & (tries < high)
    first = jnp.take_along_axis(tries, jnp.argmax(within, 0)[None], 0)[0]
    return jnp.where(within.any(0), first, low + (high - low) * tries[0])
