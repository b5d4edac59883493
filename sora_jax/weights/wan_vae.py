"""The VAEs of Wan 2.1 and 2.2 (arXiv:2503.20314): names, sizes, and the statistics of their latents.

The encoder's and decoder's stages are a flat list in 2.1, residual blocks and resamplers counted together, and nested
in 2.2. Files hold no statistics of the latents: diffusers' are in its config, and those that were published are here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from sora_jax.errors import InputError
from sora_jax.weights.names import Name

MARKS = {
    "original": "encoder.middle.1.to_qkv.weight",
    "diffusers": "encoder.mid_block.attentions.0.to_qkv.weight",
}
ALIASES: dict[str, str] = {}
CONSTANTS = ("latent_mean", "latent_std")

# (mean, std) of every channel of the latents, from Wan 2.1's and 2.2's own code, by the number of channels
STATISTICS = {
    16: (
        (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
        + (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
        (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
        + (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
    48: (
        (-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891)
        + (0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502)
        + (-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723)
        + (-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
        (0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901)
        + (0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659)
        + (0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944)
        + (0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ),
}


def _affine(layout: str, ours: str, original: str, diffusers: str) -> list[Name]:
    return [
        Name(f"{ours}kernel", layout, f"{original}.weight", f"{diffusers}.weight"),
        Name(f"{ours}bias", "same", f"{original}.bias", f"{diffusers}.bias"),
    ]


def _block(ours: str, original: str, diffusers: str, shortcut: bool) -> list[Name]:
    rows = []
    for i, (norm, conv) in enumerate(((0, 2), (3, 6)), 1):
        rows.append(
            Name(f"{ours}/norm{i}/scale", "gain3d", f"{original}.residual.{norm}.gamma", f"{diffusers}.norm{i}.gamma")
        )
        rows += _affine("conv3d", f"{ours}/conv{i}/", f"{original}.residual.{conv}", f"{diffusers}.conv{i}")
    if shortcut:
        rows += _affine("conv3d", f"{ours}/shortcut/", f"{original}.shortcut", f"{diffusers}.conv_shortcut")
    return rows


def _ends(half: str, quant: tuple[str, str]) -> list[Name]:
    """What the encoder and the decoder have both: first and last convolution, the middle, the 1x1x1 convolution."""
    attention = f"{half}/mid_attention", f"{half}.middle.1", f"{half}.mid_block.attentions.0"
    return [
        *_affine("conv3d", f"{half}/conv_in/", f"{half}.conv1", f"{half}.conv_in"),
        *_block(f"{half}/mid0", f"{half}.middle.0", f"{half}.mid_block.resnets.0", False),
        Name(f"{attention[0]}/norm/scale", "gain2d", f"{attention[1]}.norm.gamma", f"{attention[2]}.norm.gamma"),
        *_affine("pixel", f"{attention[0]}/qkv/", f"{attention[1]}.to_qkv", f"{attention[2]}.to_qkv"),
        *_affine("pixel", f"{attention[0]}/out/", f"{attention[1]}.proj", f"{attention[2]}.proj"),
        *_block(f"{half}/mid1", f"{half}.middle.2", f"{half}.mid_block.resnets.1", False),
        Name(f"{half}/norm_out/scale", "gain3d", f"{half}.head.0.gamma", f"{half}.norm_out.gamma"),
        *_affine("conv3d", f"{half}/conv_out/", f"{half}.head.2", f"{half}.conv_out"),
        *_affine("conv3d", f"{half}/quant/", *quant),
    ]


def _stages(half: str, nested: bool, blocks: int, stages: int) -> Iterator[tuple[str, str, str]]:
    """(ours, original, diffusers) of every residual block and of the resampler after each stage but the last."""
    down = half == "encoder"
    outer, theirs = ("downsamples", "down_blocks") if down else ("upsamples", "up_blocks")
    resampler = "downsampler" if down else "upsampler" if nested else "upsamplers.0"
    count = 0
    for i in range(stages):
        for j in range(blocks + (i < stages - 1)):
            ours = f"{half}/block{i}_{j}" if j < blocks else f"{half}/{'down' if down else 'up'}{i}"
            original = f"{half}.{outer}.{i}.{outer}.{j}" if nested else f"{half}.{outer}.{count}"
            if down and not nested:
                diffusers = f"{half}.{theirs}.{count}"
            else:
                diffusers = f"{half}.{theirs}.{i}." + (f"resnets.{j}" if j < blocks else resampler)
            yield ours, original, diffusers
            count += 1


def names(fields: Mapping) -> list[Name]:
    """The table of a VAE of these fields."""
    rows = _ends("encoder", ("conv1", "quant_conv")) + _ends("decoder", ("conv2", "post_quant_conv"))
    nested, last = fields.get("shortcuts", False), len(fields["multipliers"]) - 1  # older models have no such field
    for half, blocks in (("encoder", fields["blocks"]), ("decoder", fields["blocks"] + 1)):
        down = half == "encoder"
        multipliers = fields["multipliers"] if down else fields["multipliers"][::-1]
        time = fields["time"] if down else fields["time"][::-1]
        width = multipliers[0] if not down else 1
        for ours, original, diffusers in _stages(half, nested, blocks, last + 1):
            name = ours.rpartition("/")[2]
            if name.startswith("block"):
                i = int(name.removeprefix("block").partition("_")[0])
                rows += _block(ours, original, diffusers, width != multipliers[i])
                width = multipliers[i]
                continue
            space = f"{ours}/space_" if down else f"{ours}/conv/"
            rows += _affine("frame", space, f"{original}.resample.1", f"{diffusers}.resample.1")
            if time[int(name.lstrip("downup"))] == 2:
                rows += _affine("conv3d", f"{ours}/time_", f"{original}.time_conv", f"{diffusers}.time_conv")
            if not down and not nested:
                width /= 2
    return rows


LAYER = re.compile(r"encoder\.(?:downsamples|down_blocks)\.(.+)\.(residual\.2|conv1|resample\.1)\.weight")


def fields(shapes: Mapping[str, tuple[int, ...]], config: Mapping) -> dict:
    """The fields of `models.vae.VAE`, from the tensors' shapes alone."""
    layers = {}  # (stage, number in it) or (number,): width, or the factor in time of a resampler
    for name, shape in shapes.items():
        if found := LAYER.fullmatch(name):
            place = tuple(int(n) for n in re.findall(r"\d+", found[1]))
            if found[2] != "resample.1":
                layers[place] = shape[0]
            else:  # behind all blocks of its stage
                place += (len(shapes),) * found[1].endswith("downsampler")
                layers[place] = "time" if name.replace("resample.1", "time_conv") in shapes else "space"
    order = [layers[place] for place in sorted(layers)]
    resamplers = [layer for layer in order if isinstance(layer, str)]
    blocks = order.index(resamplers[0])
    original = MARKS["original"] in shapes
    width, folded = shapes["encoder.conv1.weight" if original else "encoder.conv_in.weight"][:2]
    multipliers = [layer // width for layer in order[:: blocks + 1]]
    decoder_width = shapes["decoder.head.2.weight" if original else "decoder.conv_out.weight"][1] // multipliers[0]
    return {
        "width": width,
        "multipliers": multipliers,
        "blocks": blocks,
        "time": [2 if layer == "time" else 1 for layer in resamplers],
        "space": [2] * len(resamplers),
        "patch": math.isqrt(folded // 3),
        "channels": shapes["conv2.weight" if original else "post_quant_conv.weight"][0],
        "linear_skip": False,
        "dtype": "float32",
        "decoder_width": decoder_width if decoder_width != width else 0,
        "shortcuts": max(map(len, layers)) > 1,
    }


def constants(fields: Mapping, config: Mapping) -> dict[str, np.ndarray]:
    """Our parameters that no tensor holds: mean and std of the latents, from the config beside the file, or published.

    Raises InputError for a number of channels of which neither tells.
    """
    channels = fields["channels"]
    mean, std = STATISTICS.get(channels, (None, None))
    mean, std = config.get("latents_mean", mean), config.get("latents_std", std)
    if mean is None or std is None or not len(mean) == len(std) == channels:
        raise InputError(
            f"nothing says the mean and std of this VAE's latents of {channels} channels: put its config.json, "
            "with latents_mean and latents_std, beside it"
        )
    return {"latent_mean": np.asarray(mean, np.float32), "latent_std": np.asarray(std, np.float32)}


def shapes(fields: Mapping, found: Mapping[str, tuple[int, ...]]) -> dict:
    """The tree of our parameters' shapes."""
    from sora_jax.model import vae_shapes

    return vae_shapes(fields)


def published(
    fields: Mapping, found: Mapping[str, tuple[int, ...]], latent_mean: np.ndarray, latent_std: np.ndarray
) -> dict:
    """The config.json of diffusers' AutoencoderKLWan."""
    patch, side = fields["patch"], 2 ** len(fields["space"]) * fields["patch"]
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": fields["width"],
        "decoder_base_dim": fields.get("decoder_width") or fields["width"],
        "z_dim": fields["channels"],
        "dim_mult": list(fields["multipliers"]),
        "num_res_blocks": fields["blocks"],
        "attn_scales": [],
        "temperal_downsample": [time == 2 for time in fields["time"]],
        "dropout": 0.0,
        "latents_mean": latent_mean.tolist(),
        "latents_std": latent_std.tolist(),
        "is_residual": fields.get("shortcuts", False),
        "in_channels": 3 * patch**2,
        "out_channels": 3 * patch**2,
        "patch_size": patch if patch > 1 else None,
        "scale_factor_temporal": int(np.prod(fields["time"])),
        "scale_factor_spatial": side,
    }
