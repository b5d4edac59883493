"""The expander: a short caption -> the long one, words to words.

    x [b s 1]      tokens of many short captions, packed      seg [b s]      which caption of the row; 0 is padding
    txt [b l]      the long ones, each behind a mark           txt_seg [b l]  which caption a token expands

A T5 encoder (`reader`, models/text.py) reads the short caption; the captioner's two decoders write
(models/captioner.py): a causal one over what was written (`text`), and one whose tokens also attend to the reader's
states (`teller`), by which a word of the prompt is copied.

    loss = mean over tokens of -log p(token_i+1 | tokens_<=i, the short caption)                                    (1)

To the decoders a short caption is a clip, and its tokens are the patches: packing (`data.pipeline`) and decoding
(`captioner.tell`) are those of clips.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sora_jax.models.captioner import Captioner, Teller, Text, places
from sora_jax.models.text import TextEncoder


class Expander(nn.Module):
    """See the file's head.

    width, heads, mlp: of all three transformers; depth, text_depth, tell_depth: layers of reader, text and teller;
    vocab: tokens of the tokenizer; the mark before a long caption is token `vocab`.
    """

    width: int
    depth: int
    text_depth: int
    tell_depth: int
    heads: int
    mlp: int
    vocab: int
    dtype: str = "float32"

    def setup(self):
        each = self.width // self.heads
        self.reader = TextEncoder(self.vocab, self.width, self.depth, self.heads, each, self.mlp, dtype=self.dtype)
        self.text = Text(self.width, self.text_depth, self.heads, self.mlp, self.vocab + 1, self.dtype)
        self.teller = Teller(self.width, self.tell_depth, self.heads, self.mlp, self.dtype)

    def __call__(
        self,
        x: Float[Array, "b s 1"],
        seg: Int[Array, "b s"],
        txt: Int[Array, "b l"],
        txt_seg: Int[Array, "b l"],
    ) -> Float[Array, "b l v"]:
        """Logits of the token after each of the long captions'."""
        ctx = self.see(x, None, seg)
        states, _ = self.text(txt, places(txt_seg), txt_seg, None, None)
        out, _ = self.teller(states, places(txt_seg), txt_seg, None, None, ctx, seg)
        return self.text.logits(out)

    def see(self, x: Float[Array, "b s 1"], pos, seg: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        """The states of the short captions; places are relative here, and `pos` is not read."""
        return self.reader(x[..., 0].astype(jnp.int32), seg)

    # a word at a time, with its cache: as a captioner's
    say, empty = Captioner.say, Captioner.empty
