"""The attention kernels, one interface: which runs where is `attend_local`'s to say.

    S = q k^T + mask,   lse = log sum_j exp S_j,   P = exp(S - lse),   out = P v                                    (1)
    dV = P^T dOut,   dS = P (dOut v^T - D),   D = sum_k dOut out,   dQ = dS k,   dK = dS^T q                        (2)

with q scaled already and mask = 0 where the segments are equal, else -inf. As (2) takes any lse, a part of the keys may
be met with the lse of all of them: so rows go around a ring (`pod.context.streamed`, FlashAttention-2's backward pass,
arXiv:2307.08691).

    CPU   XLA; one matrix of scores up to QUERY_CHUNK queries, (1) and (2) in blocks of as many beyond: memory O(s)
    GPU   the same: `jax.nn.dot_product_attention` (cuDNN) masks segments by a dense matrix only, and no other kernel
          was measured
    TPU   tokamax's splash attention, which skips tiles whose segments do not meet; where tokamax is not installed, the
          one in JAX, which computes them all
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float, Int

from sora_jax.errors import InputError
from sora_jax.pod.context import NOTHING, streamed

QUERY_CHUNK = 2048  # longest block of queries whose full score matrix is held at once
LANES = 128  # a TPU's vector width: lengths and head widths of its kernels are multiples
TILE = 1024  # queries and keys of one tile of scores, at most: 4 MiB in float32, in vector memory
TILES = 176 * 176  # tiles of which tokamax's schedule fits scalar memory (1 MiB; found by compiling for v5p and v6e)
PADDING, FILL = 1 << 30, (1 << 30) + 1  # segments of a row's padding and of what fills the last tile: greatest, as
# a tile is skipped by the least and greatest segment in it, and padding ends a row


class Kernel(NamedTuple):
    """Attention of scaled queries q [b n s k] over keys k, v [b n j k] with segments [b s], [b j].

    forward(q, k, v, q_seg, kv_seg) -> out [b n s k], lse [b n s] float32, natural logarithm: equation (1).
    backward(q, k, v, q_seg, kv_seg, out, lse, d_out) -> dq, dk, dv: equation (2).
    A query whose segment has no key gets something finite. tiled: lengths must be multiples of `tile` of themselves.
    """

    forward: Callable
    backward: Callable
    tiled: bool


def attend_local(
    platform: str,
    q: Float[Array, "b s n k"],
    k: Float[Array, "b j n k"],
    v: Float[Array, "b j n k"],
    q_seg: Int[Array, "b s"],
    kv_seg: Int[Array, "b j"],
    ring: str | None,
) -> Float[Array, "b s n k"]:
    """Attention on one device, or with keys from all devices along the mesh axis `ring`: platform cpu, gpu or tpu."""
    if platform == "tpu":
        return flash(tokamax() or splash(), q, k, v, q_seg, kv_seg, ring)
    if ring is None and q.shape[1] <= QUERY_CHUNK:
        return whole(q, k, v, q_seg, kv_seg)
    return flash(XLA, q, k, v, q_seg, kv_seg, ring)


def whole(q: Array, k: Array, v: Array, q_seg: Array, kv_seg: Array) -> Array:
    """All scores at once, softmax in float32."""
    scores = jnp.einsum("bqnk,bjnk->bnqj", q, k, preferred_element_type=jnp.float32) / np.sqrt(q.shape[-1])
    mask = q_seg[:, None, :, None] == kv_seg[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(mask, scores, NOTHING), -1).astype(v.dtype)
    return jnp.einsum("bnqj,bjnk->bqnk", weights, v)


def flash(
    kernel: Kernel, q: Array, k: Array, v: Array, q_seg: Array, kv_seg: Array, ring: str | None = None
) -> Float[Array, "b s n k"]:
    """The kernel on rows of any length and head width, with its own backward pass; shapes as in `attend_local`."""
    length, width = q.shape[1], q.shape[3]

    def fit(x: Array) -> Array:
        x = rearrange(x, "b s n k -> b n s k")
        return filled(filled(x, 2, tile(x.shape[2], width), 0), 3, LANES, 0) if kernel.tiled else x

    def ids(seg: Array) -> Array:
        return filled(jnp.where(seg == 0, PADDING, seg), 1, tile(seg.shape[1], width), FILL) if kernel.tiled else seg

    y = streamed(kernel, ring, fit(q * width**-0.5), fit(k), fit(v), ids(q_seg), ids(kv_seg))
    return rearrange(y[:, :, :length, :width], "b n s k -> b s n k")


def filled(x: Array, axis: int, multiple: int, value) -> Array:
    """x with `value` behind it along the axis, up to a multiple."""
    more = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)], constant_values=value) if more else x


def tile(length: int, width: int = LANES) -> int:
    """The side of a tile: of multiples of LANES up to TILE, one that fills a row of this length with the fewest tiles
    and then the least padding. A row that is filled up to a multiple has the same tile again. Heads wider than LANES
    (a VAE's has all channels) take smaller tiles: a tile's queries, keys and values lie in vector memory too."""
    most = max(1, TILE // (-(-width // LANES) * LANES)) * LANES
    return -(-length // (-(-length // most) * LANES)) * LANES


# ------------------------------------------------------------------------------------------------ XLA


def _scores(q: Array, k: Array, q_seg: Array, kv_seg: Array) -> Float[Array, "b n q j"]:
    scores = jnp.einsum("bnqk,bnjk->bnqj", q, k, preferred_element_type=jnp.float32)
    return jnp.where(q_seg[:, None, :, None] == kv_seg[:, None, None, :], scores, NOTHING)


def _blocks(x: Array, axis: int, value=0) -> Float[Array, "i ..."]:
    """x in blocks of QUERY_CHUNK along the axis, which the result has first."""
    size = min(QUERY_CHUNK, x.shape[axis])
    x = filled(x, axis, size, value)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis, 0)


def _joined(x: Array, axis: int, length: int) -> Array:
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return lax.slice_in_dim(x, 0, length, axis=axis)


def _xla_forward(q, k, v, q_seg, kv_seg):
    def block(part):
        scores = _scores(part[0], k, part[1], kv_seg)
        lse = jax.nn.logsumexp(scores, -1)
        weights = jnp.exp(scores - lse[..., None]).astype(v.dtype)
        return jnp.einsum("bnqj,bnjk->bnqk", weights, v), lse

    out, lse = lax.map(block, (_blocks(q, 2), _blocks(q_seg, 1, -1)))
    return _joined(out, 2, q.shape[2]), _joined(lse, 2, q.shape[2])


def _xla_backward(q, k, v, q_seg, kv_seg, out, lse, d_out):
    d = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1)
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def block(carry, part):
        q, q_seg, lse, d, d_out = part
        p = jnp.exp(_scores(q, k, q_seg, kv_seg) - lse[..., None])
        ds = (p * (dot("bnqk,bnjk->bnqj", d_out, v) - d[..., None])).astype(q.dtype)
        dk = carry[0] + dot("bnqj,bnqk->bnjk", ds, q)
        dv = carry[1] + dot("bnqj,bnqk->bnjk", p.astype(v.dtype), d_out)
        return (dk, dv), jnp.einsum("bnqj,bnjk->bnqk", ds, k)

    # what fills the last block has a segment of its own: its scores are NOTHING, and its p is 0 as its lse is
    parts = (_blocks(q, 2), _blocks(q_seg, 1, -1), _blocks(lse, 2), _blocks(d, 2), _blocks(d_out, 2))
    zero = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    (dk, dv), dq = lax.scan(block, zero, parts)
    return _joined(dq, 2, q.shape[2]), dk.astype(k.dtype), dv.astype(v.dtype)


XLA = Kernel(_xla_forward, _xla_backward, tiled=False)


# ------------------------------------------------------------------------------------------------ TPU


@functools.cache
def tokamax(interpret: bool = False) -> Kernel | None:
    """tokamax's splash attention (its version is pinned: the path is private), or None where it is not installed.

    interpret: on a CPU, slowly. dq is summed over the tiles of keys in q's dtype. Its base-2 exponentials are kept, but
    lse leaves and enters in natural units: tokamax's own ring merges it as if it were natural, and is wrong by that.
    """
    try:
        from tokamax._src.ops.experimental.tpu.splash_attention import base
        from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as impl
    except ImportError:
        return None
    full = impl.MaskInfo(*[None] * len(impl.MaskInfo._fields))  # the segments mask, and nothing else
    shared = dict(mask_value=base.DEFAULT_MASK_VALUE, is_mqa=False, mask_function=None, fwd_mask_sparsity=1.0)

    def config(q, k):
        bq, bk = tile(q.shape[2], q.shape[3]), tile(k.shape[2], q.shape[3])
        tiles = (q.shape[2] // bq) * (k.shape[2] // bk)
        if tiles > TILES:
            raise InputError(
                f"{q.shape[2]} patches by {k.shape[2]} on one device are {tiles} tiles of {bq} x {bk}, but the "
                f"kernel's schedule holds {TILES}: a larger mesh.ring cuts the row, into parts of {176 * TILE} at most"
            )
        return impl.SplashConfig(
            bq, bk, bk, bq, bk, bk, interpret=interpret, dq_reduction_steps=3
        )  # 3 partial sums of dq, not one for every tile of keys: those would be O(s^2 / tile)

    def forward(q, k, v, q_seg, kv_seg):
        def row(q, k, v, q_seg, kv_seg):
            return impl._splash_attention_forward(
                full, q, k, v, base.SegmentIds(q_seg, kv_seg), None, config=chosen, save_residuals=True, **shared
            )

        chosen = config(q, k)
        out, stats = jax.vmap(row)(q, k, v, q_seg, kv_seg)
        return out, jnp.maximum(stats["logsumexp"] / impl.LOG2E, NOTHING)

    def backward(q, k, v, q_seg, kv_seg, out, lse, d_out):
        def row(q, k, v, q_seg, kv_seg, out, lse, d_out):
            kept = (q, k, v, base.SegmentIds(q_seg, kv_seg), None, out, lse, full, None)
            grads = impl._splash_attention_bwd(
                False, config=chosen, dkv_mask_sparsity=1.0, res=kept, grads=d_out, **shared
            )
            return grads[2:5]

        chosen = config(q, k)
        return jax.vmap(row)(q, k, v, q_seg, kv_seg, out, lse * impl.LOG2E, d_out)

    return Kernel(forward, backward, tiled=True)


@functools.cache
def splash(interpret: bool = False) -> Kernel:
    """The splash attention in JAX, which masks segments but computes every tile.

    Its fused backward pass holds a partial dq for every tile of keys, 16 GiB at 131,072 patches, so it is not used.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as impl
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as masks

    full = masks.MaskInfo(None, None, None, None, None)
    shared = dict(
        mask_value=impl.DEFAULT_MASK_VALUE,
        is_mqa=False,
        residual_checkpoint_name=None,
        mask_function=None,
        attn_logits_soft_cap=None,
        interpret=interpret,
    )

    def sizes(q, k):
        bq, bk = tile(q.shape[2], q.shape[3]), tile(k.shape[2], q.shape[3])
        return impl.BlockSizes(bq, bk, bk, bq, bk, bk, bq, bk, use_fused_bwd_kernel=False)

    def forward(q, k, v, q_seg, kv_seg):
        def row(q, k, v, q_seg, kv_seg):
            segments = impl.SegmentIds(q_seg, kv_seg)
            return impl._splash_attention_forward(
                full, q, k, v, segments, None, block_sizes=chosen, save_residuals=True, **shared
            )

        chosen = sizes(q, k)
        out, (lse,) = jax.vmap(row)(q, k, v, q_seg, kv_seg)
        return out, jnp.maximum(lse, NOTHING)

    def backward(q, k, v, q_seg, kv_seg, out, lse, d_out):
        def row(q, k, v, q_seg, kv_seg, out, lse, d_out):
            kept = (q, k, v, impl.SegmentIds(q_seg, kv_seg), None, out, lse, full, full)
            return impl._splash_attention_bwd(False, block_sizes=chosen, res=kept, do=d_out, **shared)[3:6]

        chosen = sizes(q, k)
        return jax.vmap(row)(q, k, v, q_seg, kv_seg, out, lse, d_out)

    return Kernel(forward, backward, tiled=True)
