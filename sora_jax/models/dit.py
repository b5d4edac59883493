"""The diffusion transformer on packed rows of spacetime patches.

    x [b s p]      noisy patches of many clips, packed           pos [b s 3]   each patch's place in its own clip
    seg [b s]      which clip of the row; 0 is padding           level [b s]   index of its noise level in t
    t [b k]        the row's few noise levels, 1 = pure noise    ctx [b l d], txt_seg [b l]   packed text states
    ask [b s]      which text of the row it reads: its clip's, or, in a clip of several shots, its shot's

Shaped like Wan 2.1 (arXiv:2503.20314): with e = table + time projection, in the order shift, scale, gate,

    x += e_3 * SelfAttention(LN(x) (1 + e_2) + e_1)        3-D RoPE, full-width RMSNorm on q and k
    x += CrossAttention(LN_affine(x), ctx)                 no gate
    x += e_6 * MLP(LN(x) (1 + e_5) + e_4)                  GELU-tanh

and of what it hears each patch says how much is passed on, value by value (`gated`; Wan does not):

    prediction = head(y) + head_gate(y) * x,    y = LN(x_last) (1 + e_2') + e_1'

Where a patch is flat its clean value is known, and what is left to predict is a multiple of x, which a narrow stream
hardly carries through its layers: the product says it at once (configs/sweeps/gate.py).

Rotary positions say how far two patches are apart, and no more: the sum over what a patch attends to forgets where it
was, and nothing tells where the frame ends. With `absolute` a patch hears its own place too (as in patch n' pack:
factorised, fractional; arXiv:2307.06304):

    x = patch_in(patch) + place_in(sinusoids of its index and of its share of the clip's length, height, width)

An object of few patches is seen in none of them alone, and at high noise in few of them together. With a `stem` of so
many features patches hear their neighbours before the first block, as vision transformers with a convolutional stem do
(arXiv:2106.14881):

    x += stem_out(GELU(stem_in(the 3 x 3 patches around it, and those before and behind it)))

A patch has its own noise level, but a row has few distinct ones: modulation is computed per (row, level) and gathered,
for a table per patch would not fit at scale. Layers are scanned and rematerialised: one compiled block at any depth.
Weights are float32; matrices multiply in `dtype`; norms, modulation, softmax and the residual stream are float32.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from sora_jax.errors import InputError
from sora_jax.models.layers import Dense, RMSNorm, attend, layer_norm, rope, rotate
from sora_jax.pod.context import SAVED_OUT, SAVED_TRIPS
from sora_jax.pod.mesh import PATCHES, ROWS, in_place, into, out_of, shard

TIME_SCALE = 1000.0  # noise levels in [0, 1] enter the sinusoids as timesteps in [0, 1000]
TIME_FREQUENCIES = 256
PLACE_FREQUENCIES = 32  # for each of six: a patch's index and its share of the clip, along three axes
# a stem's steps to neighbours, along (frames, rows, columns)
AROUND = np.array([(0, y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)] + [(-1, 0, 0), (1, 0, 0)])
# what `gated`, `absolute` and `stem` add: as drawn it changes nothing, so that a model trained without goes on with it
LATE = ("head_gate", "place_in", "stem_in", "stem_out")
# what remat keeps of a block besides its input; attention grows with the row's square, its results only with the row
KEEP = {"nothing": (), "attention": (SAVED_OUT,), "heads": (SAVED_TRIPS, SAVED_OUT)}


def sinusoid(t: Float[Array, "*b"], width: int = TIME_FREQUENCIES) -> Float[Array, "*b width"]:
    """Sinusoidal embedding of timesteps in float32, cosines first (Wan; periods 2 pi .. 1e4 * 2 pi)."""
    frequency = jnp.asarray(1e4 ** (-np.arange(width // 2, dtype=np.float64) / (width // 2)), jnp.float32)
    angle = t[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def sides_of(pos: Int[Array, "b s 3"], seg: Int[Array, "b s"]) -> Int[Array, "b s 3"]:
    """The length, height and width of each patch's clip, in patches."""
    last = jax.vmap(partial(jax.ops.segment_max, num_segments=seg.shape[1] + 1))(pos, seg)
    return 1 + jnp.take_along_axis(last, seg[..., None], 1)


def place(pos: Int[Array, "b s 3"], sides: Int[Array, "b s 3"]) -> Float[Array, "b s 192"]:
    """Sinusoids of each patch's index, and of its share of its clip's sides, in (0, 1), as a noise level's."""
    both = jnp.concatenate([pos.astype(jnp.float32), (pos + 0.5) / sides * TIME_SCALE], -1)
    return rearrange(sinusoid(both, PLACE_FREQUENCIES), "b s n k -> b s (n k)")


def around(
    x: Float[Array, "b s p"], pos: Int[Array, "b s 3"], seg: Int[Array, "b s"], sides: Int[Array, "b s 3"]
) -> Float[Array, "b s q"]:
    """Each patch's neighbourhood (AROUND), zeros where its clip ends or a neighbour was dropped."""
    _, height, width = jnp.moveaxis(sides, -1, 0)[..., None]
    index = jnp.arange(x.shape[1])[:, None] + AROUND[:, 0] * height * width + AROUND[:, 1] * width + AROUND[:, 2]
    index = jnp.clip(index, 0, x.shape[1] - 1)  # b s n
    take = jax.vmap(lambda row, i: row[i])
    there = (take(seg, index) == seg[..., None]) & (take(pos, index) == pos[:, :, None] + AROUND).all(-1)
    return rearrange(jnp.where(there[..., None], take(x, index), 0), "b s n p -> b s (n p)")


def spread(levels: Float[Array, "b k n d"], of_level: Float[Array, "b s k"]) -> list[Float[Array, "b s d"]]:
    """Each patch's n vectors, by its noise level. A product with one-hot rows copies exactly, and its gradient is a
    product too, where a gather's would be a scatter: slow everywhere, on a CPU most of the step."""
    pick = partial(jnp.einsum, "b s k, b k d -> b s d", precision=jax.lax.Precision.HIGHEST)
    return [pick(of_level, levels[:, :, i]) for i in range(levels.shape[2])]


def beside(x: Float[Array, "b s p"], given: Float[Array, "b s q"], latents: int) -> Float[Array, "b s r"]:
    """Patches of so many latents, each latent with what is given of it (`DiT.given`) behind its own channels."""
    parts = (rearrange(y, "b s (n c) -> b s n c", n=latents) for y in (x, given))
    return rearrange(jnp.concatenate(list(parts), -1), "b s n c -> b s (n c)")


class SelfAttention(nn.Module):
    """Attention among the patches of one clip."""

    heads: int
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b s d"], cos: Array, sin: Array, seg: Int[Array, "b s"]
    ) -> Float[Array, "b s d"]:
        width = x.shape[-1]
        q, k, v = (Dense(width, dtype=self.dtype, dot_general=into, name=name)(x) for name in "qkv")
        q, k = RMSNorm(name="q_norm")(q), RMSNorm(name="k_norm")(k)
        q, k, v = (rearrange(y, "b s (n k) -> b s n k", n=self.heads) for y in (q, k, v))
        q, k, v = (shard(y, ROWS, PATCHES, "tensor", None) for y in (q, k, v))
        y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, seg, seg)
        return Dense(width, dtype=self.dtype, dot_general=out_of, name="o")(rearrange(y, "b s n k -> b s (n k)"))


class CrossAttention(nn.Module):
    """Patches attend to the text they ask for."""

    heads: int
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "b s d"], ctx: Float[Array, "b l d"], ask: Int[Array, "b s"], txt_seg: Int[Array, "b l"]
    ) -> Float[Array, "b s d"]:
        width = x.shape[-1]
        q = RMSNorm(name="q_norm")(Dense(width, dtype=self.dtype, dot_general=into, name="q")(x))
        k = RMSNorm(name="k_norm")(Dense(width, dtype=self.dtype, dot_general=into, name="k")(ctx))
        v = Dense(width, dtype=self.dtype, dot_general=into, name="v")(ctx)
        q, k, v = (rearrange(y, "b s (n k) -> b s n k", n=self.heads) for y in (q, k, v))
        q, k, v = (shard(y, ROWS, PATCHES, "tensor", None) for y in (q, k, v))
        y = rearrange(attend(q, k, v, ask, txt_seg), "b s n k -> b s (n k)")
        return Dense(width, dtype=self.dtype, dot_general=out_of, name="o")(y)


class Block(nn.Module):
    """One transformer block; the carry of the scan is the residual stream."""

    heads: int
    mlp: int
    dtype: str

    @nn.compact
    def __call__(self, x, time, of_level, ctx, cos, sin, seg, ask, txt_seg):
        width = x.shape[-1]
        table = self.param("modulation", nn.initializers.normal(width**-0.5), (6, width))
        e = spread(table + time, of_level)  # six of b s d
        y = (layer_norm(x) * (1 + e[1]) + e[0]).astype(self.dtype)
        x = x + e[2] * SelfAttention(self.heads, self.dtype, name="self")(y, cos, sin, seg)
        y = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name="cross_norm")(x).astype(self.dtype)
        x = x + CrossAttention(self.heads, self.dtype, name="cross")(y, ctx, ask, txt_seg)
        y = (layer_norm(x) * (1 + e[4]) + e[3]).astype(self.dtype)
        y = nn.gelu(Dense(self.mlp, dtype=self.dtype, dot_general=into, name="mlp_up")(y), approximate=True)
        y = shard(y, ROWS, PATCHES, "tensor")
        x = x + e[5] * Dense(width, dtype=self.dtype, dot_general=out_of, name="mlp_down")(y)
        return shard(x, ROWS, PATCHES, None), None


class DiT(nn.Module):
    """See the file's head.

    width, depth, heads, mlp: the transformer's sizes; patch: latents per patch along (frames, rows, columns);
    channels: of the latents; gated: the head's product with x; absolute: patches hear their place in the clip; stem:
    features of their neighbours, 0 for none; given: channels of what else is known of each latent, behind its own in
    x; remat: recompute a block's insides in the backward pass instead of keeping them, except `keep`: "nothing",
    "attention" (its results) or "heads" (q, k and v as well, and what several devices exchanged); unroll: layers
    compiled one behind the other, for on a CPU stacking what the backward pass needs is a quarter of a step.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    channels: int = 16
    gated: bool = False
    absolute: bool = False
    stem: int = 0
    given: int = 0
    patch: tuple[int, int, int] = (1, 2, 2)
    remat: bool = True
    keep: str = "nothing"
    unroll: int = 1
    dtype: str = "bfloat16"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b s p"],
        pos: Int[Array, "b s 3"],
        seg: Int[Array, "b s"],
        t: Float[Array, "b k"],
        level: Int[Array, "b s"],
        ctx: Float[Array, "b l c"],
        txt_seg: Int[Array, "b l"],
        ask: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b s p"]:
        """The prediction (see `flow.PREDICTIONS`) for every patch, in float32. ask None: each its clip's text.

        Raises InputError where `gated` and `given` are both asked for.
        """
        if self.gated and self.given:
            raise InputError(f"a gated transformer hears noise alone: dit.given is {self.given}; leave out dit.gated")
        ask = seg if ask is None else ask
        heard = x
        x = nn.Dense(self.width, dtype=self.dtype, name="patch_in")(x).astype(jnp.float32)
        x = shard(x, ROWS, PATCHES, None)
        # both begin at nothing, so that a model that has learned without them goes on
        late = partial(nn.Dense, self.width, use_bias=False, kernel_init=nn.initializers.zeros)
        sides = sides_of(pos, seg) if self.absolute or self.stem else None
        if self.absolute:
            x = x + shard(late(name="place_in")(place(pos, sides)), ROWS, PATCHES, None)
        if self.stem:
            y = nn.Dense(self.stem, dtype=self.dtype, name="stem_in")(around(heard, pos, seg, sides))
            x = x + shard(late(name="stem_out")(nn.gelu(y, approximate=True)), ROWS, PATCHES, None)
        ctx = nn.Dense(self.width, dtype=self.dtype, name="text_in")(shard(ctx, ROWS, PATCHES, None))
        ctx = nn.Dense(self.width, dtype=self.dtype, name="text_out")(nn.gelu(ctx, approximate=True))
        ctx = shard(ctx, ROWS, PATCHES, None)
        time = nn.Dense(self.width, dot_general=in_place, name="time_in")(sinusoid(t * TIME_SCALE))
        time = nn.Dense(self.width, dot_general=in_place, name="time_out")(nn.silu(time))  # b k d
        six = nn.Dense(6 * self.width, dot_general=in_place, name="time_projection")(nn.silu(time))
        six = shard(rearrange(six, "b k (six d) -> b k six d", six=6), ROWS, None, None, None)
        time = shard(time, ROWS, None, None)
        cos, sin = rope(pos, self.width // self.heads)
        kept = jax.checkpoint_policies.save_only_these_names(*KEEP[self.keep])
        block = nn.remat(Block, prevent_cse=False, policy=kept) if self.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            unroll=self.unroll,
        )
        of_level = shard(nn.one_hot(level, t.shape[1]), ROWS, PATCHES, None)
        x, _ = layers(self.heads, self.mlp, self.dtype, name="blocks")(
            x, six, of_level, ctx, cos, sin, seg, ask, txt_seg
        )
        table = self.param("head_modulation", nn.initializers.normal(self.width**-0.5), (2, self.width))
        e = spread(table + time[:, :, None], of_level)
        y = layer_norm(x) * (1 + e[1]) + e[0]
        size = int(np.prod(self.patch)) * self.channels
        ends = partial(nn.Dense, size, kernel_init=nn.initializers.zeros)
        return ends(name="head")(y) + (ends(name="head_gate")(y) * heard if self.gated else 0.0)


def training_flops(config: dict, patches: int, squares: int, text: int, crossed: int) -> float:
    """Model FLOPs (multiply-add = 2) of a forward and backward pass, without recomputation.

    patches: packed tokens; squares: sum over clips of tokens^2; text: text tokens; crossed: sum of tokens x words.
    Per layer and token 12 d^2 (self q k v o, cross q o) + 4 d mlp, 4 s d self- and 4 l d cross-attention.
    """
    d, mlp = config["width"], config["mlp"]
    layer = patches * (12 * d * d + 4 * d * mlp) + text * 4 * d * d + 4 * d * (squares + crossed)
    ends = (6 if config.get("gated") else 4) * patches * d * int(np.prod(config["patch"])) * config["channels"]
    ends += 2 * patches * d * 6 * PLACE_FREQUENCIES if config.get("absolute") else 0
    patch = int(np.prod(config["patch"])) * config["channels"]
    ends += 2 * patches * config.get("stem", 0) * (d + len(AROUND) * patch)
    return 3.0 * (config["depth"] * layer + ends)
