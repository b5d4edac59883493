"""The encoders of T5 v1.1 (arXiv:1910.10683, arXiv:2002.05202) and umT5 (arXiv:2304.09151): names and sizes.

Two layouts: transformers', and the one in which Wan's authors store umT5-xxl.
"""

from __future__ import annotations

from collections.abc import Mapping

from sora_jax.weights.names import Name, blocks

MARKS = {"original": "token_embedding.weight", "diffusers": "encoder.final_layer_norm.weight"}
ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}  # the same table twice, or under the other name
CONSTANTS = ()

_BLOCK, _ATTENTION = "encoder.block.{i}.layer", "encoder.block.{i}.layer.0.SelfAttention"
BIAS = f"{_ATTENTION}.relative_attention_bias.weight"
NAMES = [
    Name("embed", "same", "token_embedding.weight", "shared.weight"),
    *(
        Name(f"blocks/{x}/kernel", "linear", f"blocks.{{i}}.attn.{x}.weight", f"{_ATTENTION}.{x}.weight")
        for x in "qkvo"
    ),
    Name("blocks/norm_attention/scale", "same", "blocks.{i}.norm1.weight", f"{_BLOCK}.0.layer_norm.weight"),
    Name("blocks/gate/kernel", "linear", "blocks.{i}.ffn.gate.0.weight", f"{_BLOCK}.1.DenseReluDense.wi_0.weight"),
    Name("blocks/up/kernel", "linear", "blocks.{i}.ffn.fc1.weight", f"{_BLOCK}.1.DenseReluDense.wi_1.weight"),
    Name("blocks/down/kernel", "linear", "blocks.{i}.ffn.fc2.weight", f"{_BLOCK}.1.DenseReluDense.wo.weight"),
    Name("blocks/norm_mlp/scale", "same", "blocks.{i}.norm2.weight", f"{_BLOCK}.1.layer_norm.weight"),
    Name("norm/scale", "same", "norm.weight", "encoder.final_layer_norm.weight"),
]
EVERY_LAYER = Name("blocks/bias", "same", "blocks.{i}.pos_embedding.embedding.weight", BIAS)
SHARED = Name("bias", "same", "pos_embedding.embedding.weight", BIAS.format(i=0))


def names(fields: Mapping) -> list[Name]:
    """The table: T5 v1.1 has one table of positions, which transformers keeps in the first block, umT5 one a block."""
    return [*NAMES, EVERY_LAYER if fields["bias_every_layer"] else SHARED]


def fields(shapes: Mapping[str, tuple[int, ...]], config: Mapping) -> dict:
    """The fields of `models.text.TextEncoder`, from the tensors' shapes; `config` is not needed."""
    original = "token_embedding.weight" in shapes
    q, gate = ("blocks.{i}.attn.q.weight", "blocks.{i}.ffn.gate.0.weight") if original else (NAMES[1][3], NAMES[6][3])
    every = (EVERY_LAYER.original if original else BIAS).format(i=1) in shapes
    bias = SHARED.original if original and not every else (EVERY_LAYER.original if original else BIAS).format(i=0)
    buckets, heads = shapes[bias]
    embed = "token_embedding.weight" if original else "shared.weight"
    vocab, width = shapes[embed]
    return {
        "vocab": vocab,
        "width": width,
        "depth": blocks(shapes, q),
        "heads": heads,
        "head_width": shapes[q.format(i=0)][0] // heads,
        "mlp": shapes[gate.format(i=0)][0],
        "buckets": buckets,
        "max_distance": 128,
        "bias_every_layer": every,
        "dtype": "bfloat16",
        "rows": 512,  # as Wan reads it
        "clean": "wan",
    }


def shapes(fields: Mapping, found: Mapping) -> dict:
    """The tree of our parameters' shapes."""
    from sora_jax.model import text_shapes

    return text_shapes(fields)


def published(fields: Mapping, found: Mapping) -> dict:
    """The config.json of transformers' UMT5EncoderModel or T5EncoderModel."""
    umt5 = fields["bias_every_layer"]
    return {
        "architectures": ["UMT5EncoderModel" if umt5 else "T5EncoderModel"],
        "model_type": "umt5" if umt5 else "t5",
        "vocab_size": fields["vocab"],
        "d_model": fields["width"],
        "d_kv": fields["head_width"],
        "d_ff": fields["mlp"],
        "num_layers": fields["depth"],
        "num_heads": fields["heads"],
        "relative_attention_num_buckets": fields["buckets"],
        "relative_attention_max_distance": fields["max_distance"],
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": umt5,
    }
