"""Text: a sentencepiece tokenizer and a T5-style encoder, from a prompt to the context the DiT reads.

T5 (Raffel et al. 2020, arXiv:1910.10683; v1.1's gated MLP: Shazeer 2020, arXiv:2002.05202), for a row x [l d]:

    (1) x <- x + A(rms(x)),   A = softmax(q k^T + bias[bucket(j - i), head]) v   no 1/sqrt(k): initialisation holds it
    (2) x <- x + (gelu(rms(x) W_gate) * rms(x) W_up) W_down                     no biases anywhere
    (3) rms(x) = x / sqrt(mean(x^2) + 1e-6) * scale

T5 v1.1 has one bias table, shared by all layers; umT5 (Chung et al. 2023, arXiv:2304.09151) has one in every layer.
Rows are packed: a token sees only its own non-zero segment, and relative positions inside a row are relative positions
inside a segment, so a text encodes the same alone and among neighbours. Padding comes out as exact zeros.
"""

import html
import io
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from einops import rearrange
from jaxtyping import Array, Float, Int

from sora_jax.errors import InputError
from sora_jax.models.layers import Dense
from sora_jax.pod.mesh import ROWS, into, out_of, shard

PAD, EOS, UNK = 0, 1, 2  # T5's ids


def clean_as_wan(text: str) -> str:
    """A prompt as Wan was trained on: encoding mended by ftfy, HTML unescaped twice, white space collapsed."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def clean(text: str) -> str:
    """A prompt as the tokenizer wants it: HTML unescaped, NFC, white space and control characters made one space.

    What UTF-8 cannot hold (lone surrogates) becomes U+FFFD; sentencepiece's own mark for a space, U+2581, becomes "_".
    """
    text = html.unescape(html.unescape(text))  # twice: scraped captions are often escaped twice ("&amp;quot;")
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").replace("\u2581", "_")
    text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in unicodedata.normalize("NFC", text))
    return " ".join(text.split())


CLEANERS = {"own": clean, "wan": clean_as_wan}


class Tokenizer:
    """A sentencepiece model: `encode(text) -> ids` ending in EOS, `decode(ids) -> text`, and its `vocab` size.

    `source` is its file, a model folder that has one, or its bytes; `data` keeps the bytes, to be stored unchanged.
    With byte fallback any language passes: `decode(encode(text)) == clean(text)`.
    rows: the ids of a text are cut (EOS stays last) or filled with PAD to so many; 0: they are as many as they are.
    clean: how a text is cleaned first, "own" or "wan": a key of CLEANERS.
    Raises InputError when the file is missing or is no sentencepiece model.
    """

    def __init__(self, source: str | os.PathLike | bytes, rows: int = 0, clean: str = "own"):
        if clean not in CLEANERS:
            raise InputError(f"text.clean is {clean!r}; choose one of {', '.join(CLEANERS)}")
        self.rows, self.clean = rows, CLEANERS[clean]
        name = "what was given" if isinstance(source, bytes) else os.fspath(source)
        try:
            if not isinstance(source, bytes):
                path = Path(source)
                source = (path / "tokenizer.model" if path.is_dir() else path).read_bytes()
            self.data = source
            self.pieces = sentencepiece.SentencePieceProcessor(model_proto=source)
        except FileNotFoundError:
            raise InputError(f"there is no tokenizer at {name}: train one with `sora-jax data tokenizer`") from None
        except RuntimeError:
            raise InputError(f"{name} is not a sentencepiece model") from None
        self.vocab = self.pieces.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the cleaned text, EOS last, then PAD up to `rows`; the empty text is [EOS]."""
        ids = self.pieces.encode(self.clean(text))
        if not self.rows:
            return ids + [EOS]
        ids = ids[: self.rows - 1] + [EOS]
        return ids + [PAD] * (self.rows - len(ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, up to the first EOS; padding is skipped."""
        kept = []
        for i in map(int, ids):
            if i == EOS:
                break
            if i != PAD:
                kept.append(i)
        return self.pieces.decode(kept)


def train_tokenizer(captions: Iterable[str], out: str | os.PathLike, vocab: int = 4096) -> Tokenizer:
    """Trains a BPE model with byte fallback on captions and writes it to `out`; the same captions give the same file.

    BPE and not T5's unigram: in captions of few distinct words every word becomes one piece, where the unigram trainer,
    which looks for substrings that several words share, leaves them in letters ("a red star moves left": 19 pieces, not
    6). `vocab` is an upper bound: a small world of words needs fewer pieces than asked for, and gets fewer.
    Raises InputError when there is no text to learn from or the vocabulary cannot hold the 256 bytes.
    """
    if vocab < 300:
        raise InputError(
            f"a vocabulary of {vocab} is too small: byte fallback alone takes 256 pieces, ask for 300 or more"
        )
    lines = [text for text in map(clean, captions) if text]
    if not lines:
        raise InputError("there are no captions to train a tokenizer on")
    model = io.BytesIO()
    alphabet = len(set("".join(lines))) + 1
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab,
        hard_vocab_limit=False,
        byte_fallback=True,
        # Every character seen must be a piece unless the bytes have to carry the rare ones.
        character_coverage=1.0 if alphabet + 300 < vocab else 0.9995,
        normalization_rule_name="identity",  # clean() has already said what a text is
        max_sentence_length=1 << 16,
        num_threads=1,  # threads would add up the expected counts in another order
        pad_id=PAD,
        eos_id=EOS,
        unk_id=UNK,
        bos_id=-1,
        minloglevel=2,
    )
    with open(out, "wb") as file:
        file.write(model.getvalue())
    return Tokenizer(model.getvalue())


def buckets_of(length: int, buckets: int = 32, max_distance: int = 128) -> Int[np.ndarray, "l l"]:
    """T5's bucket of every relative position: entry [i, j] is for query i and key j.

    Half the buckets are for keys after the query; in each half the first half are single distances, the rest grow
    as the logarithm up to `max_distance`, beyond which all share the last
    (Raffel et al. 2020, section 2.1 and its code).
    """
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    distance = np.abs(relative)
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(np.log(max_distance / exact))
    far = np.minimum(exact + (ratio * (half - exact)).astype(np.int32), half - 1)
    return ((relative > 0) * half + np.where(distance < exact, distance, far)).astype(np.int32)


class Norm(nn.Module):
    """T5's RMS norm, equation (3), in float32: no mean is taken away, no bias is added."""

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


class Block(nn.Module):
    """Equations (1) and (2) on packed rows. The residual stream is float32; matrix products are in `dtype`."""

    heads: int
    head_width: int
    mlp: int
    buckets: int
    own_bias: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], same: Array, bucket: Array, bias: Array | None):
        def dense(name, features, std):  # T5's own initial scales
            init, cut = nn.initializers.normal(std), out_of if name in ("o", "down") else into
            return Dense(features, use_bias=False, dtype=self.dtype, kernel_init=init, dot_general=cut, name=name)

        d, inner = x.shape[-1], self.heads * self.head_width
        y = Norm(name="norm_attention")(x)
        q, k, v = (
            rearrange(dense(name, inner, std)(y), "b l (n k) -> b l n k", n=self.heads)
            for name, std in (("q", (d * self.head_width) ** -0.5), ("k", d**-0.5), ("v", d**-0.5))
        )
        q, k, v = (shard(z, ROWS, None, "tensor", None) for z in (q, k, v))
        if self.own_bias:
            bias = self.param("bias", nn.initializers.normal(d**-0.5), (self.buckets, self.heads))
        logits = jnp.einsum("bink,bjnk->bnij", q, k, preferred_element_type=jnp.float32)
        logits += rearrange(bias[bucket], "i j n -> 1 n i j").astype(jnp.float32)
        weight = jax.nn.softmax(jnp.where(same[:, None], logits, -1e30), -1).astype(v.dtype)
        y = rearrange(jnp.einsum("bnij,bjnk->bink", weight, v), "b l n k -> b l (n k)")
        x += dense("o", d, inner**-0.5)(y).astype(jnp.float32)

        y = Norm(name="norm_mlp")(x)
        y = nn.gelu(dense("gate", self.mlp, d**-0.5)(y)) * dense("up", self.mlp, d**-0.5)(y)
        y = shard(y, ROWS, None, "tensor")
        return shard(x + dense("down", d, self.mlp**-0.5)(y).astype(jnp.float32), ROWS, None, None), None


class TextEncoder(nn.Module):
    """T5 v1.1 (`bias_every_layer=False`) or umT5 (`True`); the layers are stacked and scanned.

    rows, clean: of the Tokenizer that goes with it (see there).
    PAD tokens inside a segment are seen by nobody and come out as zeros, but they are rows of their text: what reads
    the states sees them. (Wan's texts are 512 rows, and its zeros are attended.)
    Parameters: `embed` [vocab width], `bias` [buckets heads] where shared, `blocks/...` (depth first), `norm/scale`.
    """

    vocab: int
    width: int
    depth: int
    heads: int
    head_width: int
    mlp: int
    buckets: int = 32
    max_distance: int = 128
    bias_every_layer: bool = False
    dtype: str = "float32"
    rows: int = 0
    clean: str = "own"

    @nn.compact
    def __call__(self, txt: Int[Array, "b l"], txt_seg: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Packed tokens and their segments (0 = padding) to float32 states; each segment's tokens lie side by side."""
        embed = self.param("embed", nn.initializers.normal(1.0), (self.vocab, self.width))
        bias = None
        if not self.bias_every_layer:
            bias = self.param("bias", nn.initializers.normal(self.width**-0.5), (self.buckets, self.heads))
        real = (txt_seg > 0) & (txt != PAD)
        same = (txt_seg[:, :, None] == txt_seg[:, None, :]) & real[:, None, :]  # b l l
        bucket = jnp.asarray(buckets_of(txt.shape[1], self.buckets, self.max_distance))
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
        )(self.heads, self.head_width, self.mlp, self.buckets, self.bias_every_layer, self.dtype, name="blocks")
        # left to itself the compiler computes the texts of all rows on every device
        x, _ = blocks(shard(embed[txt].astype(jnp.float32), ROWS, None, None), same, bucket, bias)
        return Norm(name="norm")(x) * real[:, :, None]
