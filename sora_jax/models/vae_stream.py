"""Clips and frames larger than memory, through a VAE: in pieces of time, in tiles, in rows on several devices.

Time    the layers' caches carry the past from one piece to the next. What is held is one piece and two frames or fewer
        of every layer's input, whatever the length: `stream_encode`, `stream_decode`.
Tiles   the VAE's two parts, one after the other. Its inner part, at the latents' own size, attends across whole frames
        and runs on them; its outer part is convolutions alone and runs on one window of the frame after the other, each
        with as many latents around its tile as its outputs can see (`reach`). So tiles are exact, without blending;
        what they cost is the seen borders, computed more than once, and what is held is a tile's pieces and the inner
        part's output for the whole clip (as many values as the deepest width, per latent): `tile_encode`,
        `tile_decode`.
Rows    frames are cut among devices; they exchange the one row that a convolution sees of a neighbour, and gather the
        attention's keys and values, at the latents' size: a mesh given to `stream_encode`, `stream_decode`.

All of it equals the full pass: one program computes every piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from sora_jax.models.vae import MEND_REACH, VAE
from sora_jax.pod import mesh as pod


@partial(jax.jit, static_argnums=(0, 4, 5, 6), donate_argnums=2)
def piece(vae: VAE, params: dict, cache: dict, xs: tuple, first: bool, method: str, mesh: Mesh | None):
    """(result, cache) of one piece: a method of the VAE on pieces of its arguments, frames cut over the mesh if any."""

    def apply(params, cache, xs):
        variables = {"params": params} if first else {"params": params, "cache": cache}
        y, kept = vae.apply(variables, *xs, first, method=method, mutable=["cache"])
        return y, kept["cache"]

    return (pod.on(mesh, apply) if mesh else apply)(params, cache, xs)


def _stream(vae: VAE, params: dict, pieces: Iterator[tuple], method: str, mesh: Mesh | None = None) -> Iterator[Array]:
    cache: dict = {}
    for i, xs in enumerate(pieces):
        if mesh:
            side = vae.grid[1] if method == "encode" else 1  # of what is cut, in latents
            xs = tuple(jax.device_put(x, NamedSharding(mesh, cut(mesh, x.shape, side))) for x in xs)
        y, cache = piece(vae, params, cache, xs, i == 0, method, mesh)
        yield y


def cut(mesh: Mesh, shape: tuple[int, ...], side: int) -> PartitionSpec:
    """How frames [b f h w c] of `side` x `side` pixels a latent are cut over a mesh: see `pod.mesh.frames`."""
    b, f, h, w, c = shape
    return pod.frames((b, f, h // side, w // side, c), dict(mesh.shape))


def spans(frames: int, chunk: int) -> list[slice]:
    """The first frame, then `chunk` at a time."""
    starts = [0, *range(1, frames, chunk)]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], frames])]


def stream_decode(
    vae: VAE, params: dict, z: Float[Array, "b f h w c"], chunk: int = 4, mesh: Mesh | None = None
) -> Iterator[Float[Array, "b f2 h2 w2 3"]]:
    """Decodes the first latent frame, then `chunk` at a time; the pieces joined equal `decode` of the whole.

    mesh: clips, and rows of their frames, are cut over it (`pod.mesh.frames`), as are the pixels that come back.
    """
    return _stream(vae, params, ((z[:, span],) for span in spans(z.shape[1], chunk)), "decode", mesh)


def stream_encode(
    vae: VAE, params: dict, chunks: Iterator[Float[Array, "b f h w 3"]], mesh: Mesh | None = None
) -> Iterator[Float[Array, "b f2 h2 w2 c"]]:
    """Encodes chunks of pixels: the first of 1 + 4j frames, the rest of 4j (for a time factor of 4)."""
    return _stream(vae, params, ((video,) for video in chunks), "encode", mesh)


# ------------------------------------------------------------------------------------------------ tiles


def reach(vae: VAE) -> tuple[int, int]:
    """How many latents away the outer parts of (encoder, decoder) see, at most."""
    into = 1  # conv_in, in rows of its own size, as all that follows
    scale = 1
    for i in range(len(vae.multipliers)):
        into += 2 * vae.blocks * scale
        if i < len(vae.space) and vae.space[i] == 2:
            into += scale
            scale *= 2
    out = 1  # conv_out
    for i in reversed(range(len(vae.multipliers))):
        out += 2 * (vae.blocks + 1)
        if i > 0 and vae.space[-i] == 2:
            out = -(-(out + 1) // 2)
    if vae.mend:
        out += -(-MEND_REACH // vae.grid[1])
    return -(-into // scale), out


def windows(n: int, tile: int, around: int) -> list[tuple[slice, slice, slice]]:
    """(tile, its window, the tile within the window) for tiles along an axis of n; all windows are of one size.

    A window has `around` more on each side; at a border it reaches further into the frame instead.
    """
    size = min(n, tile + 2 * around)
    cuts = []
    for a in range(0, n, tile):
        b, start = min(a + tile, n), min(max(a - around, 0), n - size)
        cuts.append((slice(a, b), slice(start, start + size), slice(a - start, b - start)))
    return cuts


def tile_decode(
    vae: VAE, params: dict, z: Float[Array, "b f h w c"], tile: int, chunk: int = 4
) -> Iterator[tuple[slice, slice, slice, Float[Array, "b f2 h2 w2 3"]]]:
    """(frames, rows, columns, pixels) of tiles of `tile` x `tile` latents, `chunk` latent frames at a time.

    Put in their places they equal `decode` of the whole.
    """
    time, side, _ = vae.grid
    pieces = spans(z.shape[1], chunk)
    inner = list(_stream(vae, params, ((z[:, span],) for span in pieces), "decode_inner"))
    _, around = reach(vae)
    for rows, tall, top in windows(z.shape[2], tile, around):
        for columns, wide, left in windows(z.shape[3], tile, around):
            parts = ((x[:, :, tall, wide], z[:, span, tall, wide]) for x, span in zip(inner, pieces))
            for span, y in zip(pieces, _stream(vae, params, parts, "decode_outer")):
                frames = slice(max(0, 1 + (span.start - 1) * time), 1 + (span.stop - 1) * time)
                yield (
                    frames,
                    _pixels(rows, side),
                    _pixels(columns, side),
                    y[:, :, _pixels(top, side), _pixels(left, side)],
                )


def tile_encode(
    vae: VAE, params: dict, video: Float[np.ndarray, "b f h w 3"], tile: int, chunk: int = 4
) -> Float[np.ndarray, "b f2 h2 w2 c"]:
    """`encode` of the whole, by tiles of `tile` x `tile` latents, `chunk` latent frames at a time."""
    time, side, _ = vae.grid
    latents = 1 + (video.shape[1] - 1) // time
    pieces = spans(latents, chunk)
    frames = [_frames(span, time) for span in pieces]
    around, _ = reach(vae)
    inner: list = [None] * len(pieces)
    for rows, tall, top in windows(video.shape[2] // side, tile, around):
        for columns, wide, left in windows(video.shape[3] // side, tile, around):
            parts = ((jnp.asarray(video[:, f, _pixels(tall, side), _pixels(wide, side)]),) for f in frames)
            for i, x in enumerate(_stream(vae, params, parts, "encode_outer")):
                if inner[i] is None:
                    shape = (*x.shape[:2], video.shape[2] // side, video.shape[3] // side, x.shape[-1])
                    inner[i] = np.zeros(shape, x.dtype)
                inner[i][:, :, rows, columns] = x[:, :, top, left]
    parts = ((x, video[:, f]) for x, f in zip(inner, frames))
    return np.concatenate([np.asarray(z) for z in _stream(vae, params, parts, "encode_inner")], 1)


def _frames(latents: slice, time: int) -> slice:
    return slice(max(0, 1 + (latents.start - 1) * time), 1 + (latents.stop - 1) * time)


def _pixels(latents: slice, side: int) -> slice:
    return slice(latents.start * side, latents.stop * side)
