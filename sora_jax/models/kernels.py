"""The attention kernels, one interface: which runs where is `attend_local`'s to say.

    S = q k^T + mask,   lse = log sum_j exp S_j,   P = exp(S - lse),   out = P v                                    (1)
    dV = P^T dOut,   dS = P (dOut v^T - D),   D = sum_k dOut out,   dQ = dS k,   dK = dS^T q                        (2)

with q scaled already and mask = 0 where the segments are equal, else -inf. As (2) takes any lse, a part of the keys may
be met with the lse of all of them: so rows go around a ring (`pod.context.streamed`, FlashAttention-2's backward pass,
arXiv:2307.08691).

    CPU   XLA; one matrix of scores up to BLOCK queries; beyond, (1) and (2) in even blocks of at most that, and
          those whose segments do not meet are skipped: memory O(s), and time that of the clips, not of the row
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
from jaxtyping import Array, Bool, Float, Int

from sora_jax.errors import InputError
from sora_jax.pod.context import NOTHING, streamed

BLOCK = {"cpu": 320, "gpu": 2048}  # queries and keys whose scores XLA holds at once: on a CPU they stay in its cache
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
    if ring is None and q.shape[1] <= BLOCK[platform]:
        return whole(q, k, v, q_seg, kv_seg)
    return flash(xla(even(q.shape[1], BLOCK[platform])), q, k, v, q_seg, kv_seg, ring)


def even(length: int, most: int) -> int:
    """The block, at most so long, of which a row holds the fewest and is filled up the least: 576 is three of 192."""
    return -(-length // -(-length // most))


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


class _Blocks(NamedTuple):
    """A row in blocks of c queries and of d keys: q [i n c k], k, v [j n d k], segments [i c], [j d]; meets [i j]:
    whether a block of queries and one of keys may have a segment in common, judged by their least and greatest."""

    q: Array
    q_seg: Array
    meets: Array
    k: Array
    v: Array
    kv_seg: Array


def _cut(x: Array, block: int, value=0) -> Float[Array, "i n c k"]:
    """[n s k] or [s] in blocks, `value` behind the last."""
    if x.ndim == 1:
        return filled(x, 0, block, value).reshape(-1, block)
    return rearrange(filled(x, 1, block, value), "n (i c) k -> i n c k", c=block)


def _blocks(block: int, q, k, v, q_seg, kv_seg) -> _Blocks:
    q_seg, kv_seg = (jnp.where(seg == 0, PADDING, seg) for seg in (q_seg, kv_seg))
    keys = even(k.shape[1], block)  # a text is shorter than its row
    q_seg, kv_seg = _cut(q_seg, block, FILL), _cut(kv_seg, keys, FILL + 1)  # what fills them meets nothing
    meets = (q_seg.min(1)[:, None] <= kv_seg.max(1)) & (kv_seg.min(1) <= q_seg.max(1)[:, None])
    return _Blocks(_cut(q, block), q_seg, meets, _cut(k, keys), _cut(v, keys), kv_seg)


def _each_met(step: Callable, meets: Bool[Array, " j"], carry):
    """step(j, carry) -> carry for each block of keys that is met, in order."""

    def at(carry, block):
        j, met = block
        return lax.cond(met, step, lambda j, carry: carry, j, carry), None

    return lax.scan(at, carry, (jnp.arange(len(meets)), meets))[0]


def _scores(q: Array, k: Array, q_seg: Array, kv_seg: Array) -> Float[Array, "n c d"]:
    scores = jnp.einsum("nck,ndk->ncd", q, k, preferred_element_type=jnp.float32)
    return jnp.where(q_seg[:, None] == kv_seg, scores, NOTHING)


def _xla_forward(block: int, q, k, v, q_seg, kv_seg):
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # A scan over layers makes what depends on its constants alone once, before it begins: that would be all masks of
    # all blocks, O(s^2) of memory. Behind the barrier segments depend on the layer.
    q, q_seg, kv_seg = lax.optimization_barrier((q, q_seg, kv_seg))

    def row(parts):
        blocks = _blocks(block, *parts)

        def queries(part):
            q, q_seg, meets = part

            def keys(j, carry):
                out, top, total = carry
                scores = _scores(q, blocks.k[j], q_seg, blocks.kv_seg[j])
                new = jnp.maximum(top, scores.max(-1))
                p, fade = jnp.exp(scores - new[..., None]), jnp.exp(top - new)
                out = out * fade[..., None] + dot("ncd,ndk->nck", p.astype(v.dtype), blocks.v[j])
                return out, new, total * fade + p.sum(-1)

            nothing = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:2], NOTHING), jnp.zeros(q.shape[:2])
            out, top, total = _each_met(keys, meets, nothing)
            total = jnp.maximum(total, 1e-30)  # 0 where no block was met
            return (out / total[..., None]).astype(v.dtype), top + jnp.log(total)

        out, lse = lax.map(queries, (blocks.q, blocks.q_seg, blocks.meets))
        return rearrange(out, "i n c k -> n (i c) k"), rearrange(lse, "i n c -> n (i c)")

    out, lse = lax.map(row, (q, k, v, q_seg, kv_seg))
    return out[:, :, : q.shape[2]], lse[:, :, : q.shape[2]]


def _xla_backward(block: int, q, k, v, q_seg, kv_seg, out, lse, d_out):
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def row(parts):
        *row, lse, d, d_out = parts
        blocks = _blocks(block, *row)

        def queries(carry, part):
            q, q_seg, meets, lse, d, d_out = part
            # gradients of keys are kept turned: so no scores must be, which a CPU does at half its speed
            q_t, d_out_t = jnp.swapaxes(q, 1, 2), jnp.swapaxes(d_out, 1, 2)

            def keys(j, carry):
                dk, dv, dq = carry
                p = jnp.exp(_scores(q, blocks.k[j], q_seg, blocks.kv_seg[j]) - lse)
                ds = (p * (dot("nck,ndk->ncd", d_out, blocks.v[j]) - d)).astype(q.dtype)
                dk = dk.at[j].add(dot("nkc,ncd->nkd", q_t, ds))
                dv = dv.at[j].add(dot("nkc,ncd->nkd", d_out_t, p.astype(v.dtype)))
                return dk, dv, dq + dot("ncd,ndk->nck", ds, blocks.k[j])

            *carry, dq = _each_met(keys, meets, (*carry, jnp.zeros(q.shape, jnp.float32)))
            return tuple(carry), dq

        # where a block is filled up, lse is 0 and the scores are NOTHING: p is 0
        lse, d = (_cut(x[..., None], block) for x in (lse, d))
        each = (blocks.q, blocks.q_seg, blocks.meets, lse, d, _cut(d_out, block))
        none = (jnp.zeros(jnp.swapaxes(x, 2, 3).shape, jnp.float32) for x in (blocks.k, blocks.v))
        (dk, dv), dq = lax.scan(queries, tuple(none), each)
        return rearrange(dq, "i n c k -> n (i c) k"), *(rearrange(x, "j n k d -> n (j d) k") for x in (dk, dv))

    d = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1)
    grads = lax.map(row, (q, k, v, q_seg, kv_seg, lse, d, d_out))
    return tuple(dx[:, :, : x.shape[2]].astype(x.dtype) for dx, x in zip(grads, (q, k, v)))


@functools.cache
def xla(block: int) -> Kernel:
    """Blocks of so many queries, and of at most as many keys, of any segments; those that cannot meet are skipped."""
    return Kernel(functools.partial(_xla_forward, block), functools.partial(_xla_backward, block), tiled=False)


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
