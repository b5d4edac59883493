"""The diffusion transformer of Wan 2.1 and 2.2 (arXiv:2503.20314): names, sizes, and the models that are published.

In the block, diffusers calls the affine norm before the text `norm2`, the original `norm3`; the other two have no
parameters. Of I2V 2.1 with its image encoder (`k_img`, `add_k_proj`) there is nothing here: its names are refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from sora_jax.errors import InputError
from sora_jax.weights.names import Name, blocks

MARKS = {"original": "time_projection.1.weight", "diffusers": "condition_embedder.time_proj.weight"}
ALIASES: dict[str, str] = {}
CONSTANTS = ()
HEAD_WIDTH = 128  # of every published size


def _dense(ours: str, original: str, diffusers: str) -> list[Name]:
    return [
        Name(f"{ours}/kernel", "linear", f"{original}.weight", f"{diffusers}.weight"),
        Name(f"{ours}/bias", "same", f"{original}.bias", f"{diffusers}.bias"),
    ]


def _attention(ours: str, original: str, diffusers: str) -> list[Name]:
    rows = []
    for name, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")):
        rows += _dense(f"blocks/{ours}/{name}", f"blocks.{{i}}.{original}.{name}", f"blocks.{{i}}.{diffusers}.{theirs}")
    for name in ("q", "k"):
        norm = f"blocks/{ours}/{name}_norm/scale", "same"
        rows.append(
            Name(*norm, f"blocks.{{i}}.{original}.norm_{name}.weight", f"blocks.{{i}}.{diffusers}.norm_{name}.weight")
        )
    return rows


NAMES = [
    Name("patch_in/kernel", "patch", "patch_embedding.weight", "patch_embedding.weight"),
    Name("patch_in/bias", "same", "patch_embedding.bias", "patch_embedding.bias"),
    *_dense("text_in", "text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    *_dense("text_out", "text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    *_dense("time_in", "time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    *_dense("time_out", "time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    *_dense("time_projection", "time_projection.1", "condition_embedder.time_proj"),
    Name("blocks/modulation", "first", "blocks.{i}.modulation", "blocks.{i}.scale_shift_table"),
    *_attention("self", "self_attn", "attn1"),
    Name("blocks/cross_norm/scale", "same", "blocks.{i}.norm3.weight", "blocks.{i}.norm2.weight"),
    Name("blocks/cross_norm/bias", "same", "blocks.{i}.norm3.bias", "blocks.{i}.norm2.bias"),
    *_attention("cross", "cross_attn", "attn2"),
    *_dense("blocks/mlp_up", "blocks.{i}.ffn.0", "blocks.{i}.ffn.net.0.proj"),
    *_dense("blocks/mlp_down", "blocks.{i}.ffn.2", "blocks.{i}.ffn.net.2"),
    Name("head_modulation", "first", "head.modulation", "scale_shift_table"),
    *_dense("head", "head.head", "proj_out"),
]


def names(fields: Mapping) -> list[Name]:
    """The table, which is the same for all sizes."""
    return NAMES


def fields(shapes: Mapping[str, tuple[int, ...]], config: Mapping) -> dict:
    """The fields of `models.dit.DiT`, from the tensors' shapes, and the number of heads from the config beside them.

    Raises InputError when the number of heads is nowhere and the heads are not of the published width.
    """
    original = "head.head.weight" in shapes
    width, inside = shapes["patch_embedding.weight"][:2]
    heads = config.get("num_heads", config.get("num_attention_heads", 0))
    if not heads and width % HEAD_WIDTH:
        raise InputError(f"nothing says how many heads a DiT of width {width} has: put its config.json beside it")
    up = "blocks.{i}.ffn.0.weight" if original else "blocks.{i}.ffn.net.0.proj.weight"
    channels = shapes["head.head.weight" if original else "proj_out.weight"][0] // 4
    return {
        "width": width,
        "depth": blocks(shapes, up),
        "heads": heads or width // HEAD_WIDTH,
        "mlp": shapes[up.format(i=0)][0],
        "channels": channels,
        "given": inside - channels,
        "patch": [1, 2, 2],
        "remat": True,
        "keep": "attention",
        "dtype": "bfloat16",
    }


def shapes(fields: Mapping, found: Mapping[str, tuple[int, ...]]) -> dict:
    """The tree of our parameters' shapes; the width of the text's states is that of what was found."""
    from sora_jax.model import dit_shapes

    return dit_shapes(fields, found["text_in/kernel"][0])


def published(fields: Mapping, found: Mapping[str, tuple[int, ...]]) -> dict:
    """The config.json of diffusers' WanTransformer3DModel."""
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": [1, 2, 2],
        "num_attention_heads": fields["heads"],
        "attention_head_dim": fields["width"] // fields["heads"],
        "in_channels": fields["channels"] + fields["given"],
        "out_channels": fields["channels"],
        "text_dim": found["text_in/kernel"][0],
        "freq_dim": 256,
        "ffn_dim": fields["mlp"],
        "num_layers": fields["depth"],
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "rope_max_seq_len": 1024,
    }
