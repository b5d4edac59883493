"""The captioner: packed clips of any size -> their captions, and how well a text fits a clip.

    x [b s p]     pixel patches of many clips, packed          pos [b s 3]    each patch's place in its own clip
    seg [b s]     which clip of the row; 0 is padding           txt [b l]      their captions, packed, each behind the
    txt_seg [b l] which clip a token tells of                                 mark of what is asked for (long, short)

Shaped like CoCa (Yu et al. 2022, arXiv:2205.01917): a transformer over spacetime patches (`video`), a causal one over
the text alone (`text`) whose last state is the text's embedding, a second one (`teller`) whose tokens also attend to
the patches and which says the next word, and an attentional pooling (`pool`) that makes the clip's embedding. Other
than in CoCa the teller reads the patches themselves: its 256 pooled ones would be more than a clip has here.

    caption loss  = mean over tokens of -log p(token_i+1 | tokens_<=i, patches)                                     (1)
    contrast loss = mean over clips i of -(log softmax_j(t <v_i, w_j>) + log softmax_j(t <w_i, v_j>))[i] / 2        (2)

with v, w the unit embeddings of clips and texts and t a learned temperature (CLIP, arXiv:2103.00020). Rows are packed
as everywhere: attention never crosses segments, so a clip is told alone as among neighbours.

Decoding keeps the keys and values of what is said and of the patches; all clips of all rows say a word at a time, in
one program, nucleus sampling (arXiv:1904.09751) with p = 0 being greedy.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, UInt32

from sora_jax.models.dit import CrossAttention, SelfAttention
from sora_jax.models.layers import RMSNorm, attend, rope, rotate
from sora_jax.models.text import EOS, PAD
from sora_jax.pod.mesh import PATCHES, ROWS, into, out_of, shard

KINDS = ("long", "short")  # what may be asked for; the mark of the i-th is token `vocab + i`
TEMPERATURE = 14.3  # at the start: 1 / 0.07, CLIP's


def places(seg: Int[Array, "b l"]) -> Int[Array, "b l"]:
    """Where in its own segment each token stands."""
    index = jnp.arange(seg.shape[1])
    begins = jnp.concatenate([jnp.ones_like(seg[:, :1], bool), seg[:, 1:] != seg[:, :-1]], 1)
    return index - jax.lax.cummax(jnp.where(begins, index, 0), 1)


def turned(place: Int[Array, "*b"], width: int) -> tuple[Array, Array]:
    """Rotary angles of tokens: a text has one axis, so that all of `layers.rope`'s three count it."""
    return rope(jnp.broadcast_to(place[..., None], (*place.shape, 3)), width)


def norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)


def mlp_of(x: Float[Array, "b s d"], mlp: int, dtype: str) -> Float[Array, "b s d"]:
    """A block's MLP, GELU-tanh as the DiT's, in the block's own scope."""
    y = nn.Dense(mlp, dtype=dtype, dot_general=into, name="mlp_up")(norm("mlp_norm")(x).astype(dtype))
    y = shard(nn.gelu(y, approximate=True), ROWS, None, "tensor")
    return nn.Dense(x.shape[-1], dtype=dtype, dot_general=out_of, name="mlp_down")(y)


class VideoBlock(nn.Module):
    """Patches of one clip attend to each other."""

    heads: int
    mlp: int
    dtype: str

    @nn.compact
    def __call__(self, x, cos, sin, seg):
        x = x + SelfAttention(self.heads, self.dtype, name="self")(
            norm("self_norm")(x).astype(self.dtype), cos, sin, seg
        )
        x = x + mlp_of(x, self.mlp, self.dtype)
        return shard(x, ROWS, PATCHES, None), None


class Said(nn.Module):
    """Causal attention to what was said before. With a cache x is one token of each text, [b g d], the `at`-th."""

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x, cache, cos, sin, mask, at):
        width = x.shape[-1]
        q, k, v = (nn.Dense(width, dtype=self.dtype, dot_general=into, name=name)(x) for name in "qkv")
        q, k = RMSNorm(name="q_norm")(q), RMSNorm(name="k_norm")(k)
        q, k, v = (rearrange(y, "b s (n k) -> b s n k", n=self.heads) for y in (q, k, v))
        q, k = rotate(q, cos, sin) * (width // self.heads) ** -0.5, rotate(k, cos, sin)
        if cache is None:
            q, k, v = (shard(y, ROWS, None, "tensor", None) for y in (q, k, v))
            scores = jnp.einsum("bqnk,bjnk->bnqj", q, k, preferred_element_type=jnp.float32)
            weight = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), -1).astype(v.dtype)
            y = jnp.einsum("bnqj,bjnk->bqnk", weight, v)
        else:
            k = cache["k"].at[:, :, at].set(k)  # b g l n k
            v = cache["v"].at[:, :, at].set(v)
            cache = {"k": k, "v": v}
            scores = jnp.einsum("bgnk,bglnk->bgnl", q, k, preferred_element_type=jnp.float32)
            weight = jax.nn.softmax(jnp.where(jnp.arange(k.shape[2]) <= at, scores, -1e30), -1).astype(v.dtype)
            y = jnp.einsum("bgnl,bglnk->bgnk", weight, v)
        y = rearrange(y, "b s n k -> b s (n k)")
        return nn.Dense(width, dtype=self.dtype, dot_general=out_of, name="o")(y), cache


class Seen(nn.Module):
    """Attention to the patches of the token's clip; their keys and values are computed once and kept in the cache."""

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x, cache, ctx, ask, seg):
        width = x.shape[-1]
        q = RMSNorm(name="q_norm")(nn.Dense(width, dtype=self.dtype, dot_general=into, name="q")(x))
        q = rearrange(q, "b s (n k) -> b s n k", n=self.heads)
        if cache is None or ctx is not None:
            k = RMSNorm(name="k_norm")(nn.Dense(width, dtype=self.dtype, dot_general=into, name="k")(ctx))
            v = nn.Dense(width, dtype=self.dtype, dot_general=into, name="v")(ctx)
            k, v = (
                shard(rearrange(y, "b s (n k) -> b s n k", n=self.heads), ROWS, PATCHES, "tensor", None) for y in (k, v)
            )
        else:
            k, v = cache["seen_k"], cache["seen_v"]
        y = rearrange(attend(q, k, v, ask, seg), "b s n k -> b s (n k)")
        y = nn.Dense(width, dtype=self.dtype, dot_general=out_of, name="o")(y)
        return y, {"seen_k": k, "seen_v": v}


class TextBlock(nn.Module):
    """A token attends to those before it, and, if it `sees`, to its clip. cache: None in a full pass."""

    heads: int
    mlp: int
    sees: bool
    dtype: str

    @nn.compact
    def __call__(self, x, cache, cos, sin, mask, at, ctx, ask, seg):
        y, kept = Said(self.heads, self.dtype, name="self")(
            norm("self_norm")(x).astype(self.dtype), cache, cos, sin, mask, at
        )
        x = x + y
        if self.sees:
            y, seen = Seen(self.heads, self.dtype, name="cross")(
                norm("cross_norm")(x).astype(self.dtype), cache, ctx, ask, seg
            )
            x, kept = x + y, kept and kept | seen
        x = x + mlp_of(x, self.mlp, self.dtype)
        return shard(x, ROWS, None, None), kept


def stack(block, depth: int, args: int, cached: bool):
    """`depth` blocks with stacked weights; unrolled, for a CPU takes a fifth less time then. The first of the `args`
    inputs is a cache, which each layer has its own of."""
    axes = (0 if cached else nn.broadcast, *[nn.broadcast] * (args - 1))
    how = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=depth, unroll=depth)
    return nn.scan(block, in_axes=axes, **how)


class Captioner(nn.Module):
    """See the file's head.

    width, heads, mlp: of all three transformers; depth, text_depth, tell_depth: layers of each; embed: width of the
    embeddings that are compared; vocab: tokens of the tokenizer; patch: pixels to a patch along (frames, rows,
    columns).
    """

    width: int
    depth: int
    text_depth: int
    tell_depth: int
    heads: int
    mlp: int
    embed: int
    vocab: int
    patch: tuple[int, int, int] = (3, 8, 8)
    dtype: str = "float32"

    def setup(self):
        self.video = Video(self.width, self.depth, self.heads, self.mlp, self.dtype)
        self.text = Text(self.width, self.text_depth, self.heads, self.mlp, self.vocab + len(KINDS), self.dtype)
        self.teller = Teller(self.width, self.tell_depth, self.heads, self.mlp, self.dtype)
        self.pool = Pool(self.width, self.heads, self.embed, self.dtype)

    def __call__(
        self,
        x: Float[Array, "b s p"],
        pos: Int[Array, "b s 3"],
        seg: Int[Array, "b s"],
        txt: Int[Array, "b l"],
        txt_seg: Int[Array, "b l"],
        segments: int,
    ) -> tuple[Float[Array, "b l v"], Float[Array, "b g e"], Float[Array, "b g e"], Float[Array, ""]]:
        """(logits of the token after each, embeddings of clips 1..segments of each row, of their texts,
        temperature).
        """
        ctx = self.see(x, pos, seg)
        states, _ = self.text(txt, places(txt_seg), txt_seg, None, None)
        out, _ = self.teller(states, places(txt_seg), txt_seg, None, None, ctx, seg)
        clips, texts = self.pool.clips(ctx, seg, segments), self.pool.texts(states, txt_seg, segments)
        return self.text.logits(out), clips, texts, jnp.exp(self.pool.temperature)

    def see(self, x: Float[Array, "b s p"], pos: Int[Array, "b s 3"], seg: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        """The states of the patches, all that is told of a clip."""
        return self.video(x, pos, seg)

    def clips(self, ctx: Float[Array, "b s d"], seg: Int[Array, "b s"], segments: int) -> Float[Array, "b g e"]:
        """The unit embeddings of the clips 1..segments of each row."""
        return self.pool.clips(ctx, seg, segments)

    def texts(self, txt: Int[Array, "b l"], txt_seg: Int[Array, "b l"], segments: int) -> Float[Array, "b g e"]:
        """The unit embeddings of the texts 1..segments of each row."""
        return self.pool.texts(self.text(txt, places(txt_seg), txt_seg, None, None)[0], txt_seg, segments)

    def say(self, token: Int[Array, "b g"], at: Int[Array, ""], cache: dict, ctx, seg: Int[Array, "b s"]):
        """(logits [b g v] of what follows the `at`-th token of each clip's text, the cache with it).

        ctx: the patches' states with the first token, None after: the cache then has what is needed of them.
        """
        place = jnp.full(token.shape, at)
        states, text = self.text(token, place, None, cache["text"], at)
        out, teller = self.teller(states, place, None, cache["teller"], at, ctx, seg)
        return self.text.logits(out), {"text": text, "teller": teller}

    def empty(self, rows: int, segments: int, length: int) -> dict:
        """A cache for texts of `length` tokens before the first is said."""

        def layers(depth):
            shape = (depth, rows, segments, length, self.heads, self.width // self.heads)
            return {"k": jnp.zeros(shape, self.dtype), "v": jnp.zeros(shape, self.dtype)}

        return {"text": layers(self.text_depth), "teller": layers(self.tell_depth)}


class Video(nn.Module):
    """Spacetime patches to states."""

    width: int
    depth: int
    heads: int
    mlp: int
    dtype: str

    @nn.compact
    def __call__(self, x, pos, seg):
        x = nn.Dense(self.width, dtype=self.dtype, name="patch_in")(x).astype(jnp.float32)
        x = shard(x, ROWS, PATCHES, None)
        cos, sin = rope(pos, self.width // self.heads)
        x, _ = stack(VideoBlock, self.depth, 3, False)(self.heads, self.mlp, self.dtype, name="blocks")(
            x, cos, sin, seg
        )
        return norm("norm")(x).astype(self.dtype)


class Text(nn.Module):
    """Tokens to states that have heard what was said; and states to the next token, by the same table."""

    width: int
    depth: int
    heads: int
    mlp: int
    vocab: int
    dtype: str

    def setup(self):
        self.embed = self.param("embed", nn.initializers.normal(self.width**-0.5), (self.vocab, self.width))
        self.blocks = stack(TextBlock, self.depth, 8, True)(self.heads, self.mlp, False, self.dtype)
        self.norm = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32)

    def __call__(self, txt, place, seg, cache, at):
        x = self.embed[txt] * self.width**0.5
        cos, sin = turned(place, self.width // self.heads)
        return self.blocks(x, cache, cos, sin, causal(seg), at, None, None, None)

    def logits(self, x: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        return jnp.einsum("bld,vd->blv", self.norm(x).astype(self.dtype), self.embed.astype(self.dtype)).astype(
            jnp.float32
        )


class Teller(nn.Module):
    """The states of a text that has seen its clip."""

    width: int
    depth: int
    heads: int
    mlp: int
    dtype: str

    @nn.compact
    def __call__(self, x, place, txt_seg, cache, at, ctx, seg):
        cos, sin = turned(place, self.width // self.heads)
        # one token of each clip: the i-th asks for the patches of segment i
        ask = jnp.broadcast_to(jnp.arange(1, x.shape[1] + 1), x.shape[:2]) if txt_seg is None else txt_seg
        blocks = stack(TextBlock, self.depth, 8, True)(self.heads, self.mlp, True, self.dtype, name="blocks")
        return blocks(x, cache, cos, sin, causal(txt_seg), at, ctx, ask, seg)


def causal(seg: Int[Array, "b l"] | None) -> Bool[Array, "b l l"] | None:
    """Which tokens each may attend to: of its own text, up to itself."""
    if seg is None:
        return None
    index = jnp.arange(seg.shape[1])
    return (seg[:, :, None] == seg[:, None, :]) & (index[:, None] >= index)


class Pool(nn.Module):
    """Embeddings of whole clips and whole texts in one space."""

    width: int
    heads: int
    embed: int
    dtype: str

    def setup(self):
        self.query = self.param("query", nn.initializers.normal(1.0), (self.width,))
        self.cross = CrossAttention(self.heads, self.dtype)
        self.video_norm, self.text_norm = (nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32) for _ in range(2))
        self.video_out, self.text_out = (nn.Dense(self.embed, use_bias=False) for _ in range(2))
        self.temperature = self.param("temperature", lambda key: jnp.log(jnp.float32(TEMPERATURE)))

    def clips(self, ctx, seg, segments: int):
        query = jnp.broadcast_to(self.query.astype(self.dtype), (len(seg), segments, self.width))
        ask = jnp.broadcast_to(jnp.arange(1, segments + 1), (len(seg), segments))
        return unit(self.video_out(self.video_norm(self.cross(query, ctx, ask, seg))))

    def texts(self, states, txt_seg, segments: int):
        last = (txt_seg > 0) & (txt_seg != jnp.pad(txt_seg[:, 1:], ((0, 0), (0, 1))))
        pick = nn.one_hot(jnp.where(last, txt_seg, 0) - 1, segments)  # a row of zeros where it is not the last
        return unit(self.text_out(self.text_norm(jnp.einsum("blg,bld->bgd", pick, states))))


def unit(x: Float[Array, "*b e"]) -> Float[Array, "*b e"]:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


# ------------------------------------------------------------------------------------------------ decoding


@partial(jax.jit, static_argnums=(0, 6))
def tell(
    captioner: Captioner,
    params: dict,
    batch: dict[str, Array],
    ask: Int[Array, "b g"],
    top_p: Float[Array, ""],
    seeds: UInt32[Array, "b g"],
    length: int,
) -> tuple[Int[Array, "b g l"], Float[Array, "b g"]]:
    """(tokens of each clip's caption, PAD behind its EOS; mean probability of its tokens).

    batch: x, pos, seg; ask: which of KINDS of each clip; top_p: 0 is greedy; seeds: a clip's own, so that what it is
    told depends neither on its place nor on its neighbours. The loop ends when all clips are done.
    """
    apply = partial(captioner.apply, {"params": params})
    rows, segments = ask.shape
    seg = batch["seg"]
    ctx = apply(batch["x"], batch["pos"], seg, method="see")
    there = (seg[:, None] == jnp.arange(1, segments + 1)[:, None]).any(-1)  # b g

    def chosen(logits, at):
        logits = logits[..., : captioner.vocab].at[..., PAD].set(-jnp.inf)
        p = jax.nn.softmax(logits, -1)
        order = jnp.argsort(-p, -1)
        ranked = jnp.take_along_axis(p, order, -1)
        nucleus = jnp.cumsum(ranked, -1) - ranked < jnp.maximum(top_p, 1e-9)  # the likeliest always, p = 0: it alone
        keys = jax.vmap(jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), at)))(seeds)
        draw = jax.vmap(jax.vmap(jax.random.categorical))(keys, jnp.where(nucleus, jnp.log(ranked), -jnp.inf))
        token = jnp.take_along_axis(order, draw[..., None], -1)
        return token[..., 0], jnp.take_along_axis(jnp.log(p), token, -1)[..., 0]

    def step(carry, logits, cache):
        at, said, sure, done, _, _ = carry
        token, log_p = chosen(logits, at)
        token = jnp.where(done, PAD, token)
        said, sure = said.at[:, :, at].set(token), sure + jnp.where(done, 0.0, log_p)
        return at + 1, said, sure, done | (token == EOS), token, cache

    mark = captioner.vocab + ask
    logits, cache = apply(mark, jnp.int32(0), captioner.empty(rows, segments, length), ctx, seg, method="say")
    nothing = jnp.zeros((rows, segments, length), jnp.int32), jnp.zeros((rows, segments))
    carry = step((jnp.int32(0), *nothing, ~there, mark, cache), logits, cache)

    def on(carry):
        at, _, _, _, token, cache = carry
        logits, cache = apply(token, at, cache, None, seg, method="say")
        return step(carry, logits, cache)

    _, said, sure, *_ = jax.lax.while_loop(lambda c: (c[0] < length) & ~c[3].all(), on, carry)
    return said, jnp.exp(sure / jnp.maximum((said != PAD).sum(-1), 1))
