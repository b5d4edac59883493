"""Prompting with pictures: a canvas says what is known and how much of it may change.

A Canvas is (z, start): normalised latents [f h w c] and, for every latent position, the noise level from which it is
painted. start = 1: from pure noise; 0: kept bit for bit; between: repainted that strongly (SDEdit, arXiv:2108.01073).
At global noise level u a position is at min(u, start). Every task is a builder of a canvas; there is one sampler.
A transformer that is told what is known in channels beside the noise (`given`, Wan 2.2's I2V) paints all of a canvas.

Training draws the same masks (`training_mask`), so that painting around what is known is learned, not hoped for. What
is given beside the noise takes a VAE to make: its masks are drawn when a dataset's latents are made (`drawn_mask`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sora_jax.data.packing import grid_of, positions

# The mask curriculum: what a training clip knows of itself, and the config's names for it (`config.masks`).
MASKS = ("none", "first", "last", "ends", "frames", "box")
# The shares of them in latents for a transformer that is given what is known: mostly first frames, as I2V is painted.
GIVEN = (0.1, 0.5, 0.1, 0.1, 0.1, 0.1)


class Canvas(NamedTuple):
    """`z` [f h w c] float32 normalised latents; `start` [f h w] float32 in [0, 1]; `given` [f h w g] float32, for a
    transformer that has such channels."""

    z: Float[np.ndarray, "f h w c"]
    start: Float[np.ndarray, "f h w"]
    given: Float[np.ndarray, "f h w g"] | None = None


def blank(grid: tuple[int, int, int], channels: int) -> Canvas:
    """Nothing is known: text to video, or to an image when the grid has one frame."""
    return Canvas(np.zeros((*grid, channels), np.float32), np.ones(grid, np.float32))


def cells(start: Float[np.ndarray, "f h w"], grid: tuple[int, int, int]) -> Float[np.ndarray, "f2 h2 w2"]:
    """Pixels' noise levels as latents': the highest of all that one covers. Sides must be multiples of the grid."""
    time, side, _ = grid
    wide = start.reshape(len(start), start.shape[1] // side, side, start.shape[2] // side, side).max((2, 4))
    later = wide[1:].reshape(-1, time, *wide.shape[1:]).max(1)
    return np.concatenate([wide[:1], later])


def drawn_mask(
    seed: int, size: tuple[int, int, int], patch: tuple[int, int, int], shares: tuple[float, ...] = GIVEN
) -> Bool[np.ndarray, "f h w"]:
    """`training_mask` of one clip of latents of a size: which of them are known."""
    grid = grid_of(size, patch)
    pos, one = positions(grid)[None], np.ones((1, int(np.prod(grid))), np.int32)
    known = jax.jit(training_mask, static_argnums=4)(jax.random.key(seed), pos, one, np.array([[grid]]), shares)
    known = np.asarray(known).reshape(grid)
    for axis, p in enumerate(patch):
        known = known.repeat(p, axis)
    return known[tuple(slice(n) for n in size)]


def training_mask(
    key: Array, pos: Int[Array, "b s 3"], seg: Int[Array, "b s"], grid: Int[Array, "b g 3"], shares: tuple[float, ...]
) -> Bool[Array, "b s"]:
    """Which patches of each clip are known (clean) in this step; True = known.

    Each clip draws one of MASKS with the given shares: nothing; its first 1..f-1 frames; its last; both ends; random
    single frames; all but a random spacetime box. A one-frame clip knows nothing, or all but a box. At least one patch
    is always left to paint.
    """
    b, g = grid.shape[:2]
    keys = jax.random.split(key, 5)
    kind = jax.random.choice(keys[0], len(MASKS), (b, g), p=jnp.asarray(shares) / sum(shares))
    frames = grid[..., 0]
    kind = jnp.where((frames == 1) & (kind > 0), jnp.where(kind == 5, 5, 0), kind)
    # how many frames stand at the front and at the back: one half of the time, else any number
    u = jax.random.uniform(keys[1], (b, g, 4))
    many = (1 + jnp.floor(u[..., :2] * (frames[..., None] - 1)).astype(jnp.int32)).clip(1)
    count = jnp.where(u[..., 2:] < 0.5, 1, many)
    front = jnp.minimum(count[..., 0], frames - 1)
    back = jnp.minimum(count[..., 1], frames - 1)
    # both ends leave at least one frame between them
    back_of_both = jnp.clip(jnp.minimum(back, frames - 1 - front), 0)
    # a box: in each axis a random interval of at least one patch
    corner = jnp.sort(jax.random.uniform(keys[2], (b, g, 3, 2)), -1) * grid[..., None]
    low = jnp.floor(corner[..., 0])
    high = jnp.maximum(jnp.ceil(corner[..., 1]), low + 1)

    def of(table: Array) -> Array:  # b g ... -> b s ..., each patch its own clip's entry
        index = jnp.maximum(seg - 1, 0)
        return jax.vmap(lambda t, i: t[i])(table, index)

    frame, total, kinds = pos[..., 0], of(frames), of(kind)
    # random frames: the same for all patches of a frame, so drawn per (clip, frame) by hashing the frame's number
    dice = jax.vmap(
        lambda k, i, f: jax.vmap(lambda a, c: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(k, a), c)))(i, f)
    )
    lucky = dice(jax.random.split(keys[3], b), seg, frame) < 0.5
    chosen = jax.random.uniform(keys[4], (b, g))
    lucky &= frame != jnp.floor(of(chosen) * total).astype(jnp.int32)  # one frame at least is to paint
    inside = jnp.all((pos >= of(low)) & (pos < of(high)), -1)
    known = jnp.select(
        [kinds == 1, kinds == 2, kinds == 3, kinds == 4, kinds == 5],
        [
            frame < of(front),
            frame >= total - of(back),
            (frame < of(front)) | (frame >= total - of(back_of_both)),
            lucky,
            ~inside,
        ],
        False,
    )
    return known & (seg > 0)
