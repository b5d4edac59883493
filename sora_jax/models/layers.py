"""The few layers that the models share: causal convolution, norms, 3-D rotary positions, packed attention.

Equations:

    RMS norm     y = x / sqrt(mean(x^2) + eps) * scale                                              (1)
    Channel norm y = x / max(|x|, 1e-12) * sqrt(c) * scale      (Wan VAE; |x| over channels)        (2)
    Rotary       (x_2i, x_2i+1) -> rotation by pos * theta^(-2i/k), theta = 1e4  (RoFormer)         (3)
    Attention    softmax(q k^T / sqrt(k) + mask) v, mask = 0 where the segments are equal, else -inf (4)

Rotary widths follow Wan: a head of width k gives 2*(k//6) to rows, the same to columns and the rest to frames.
This is the only file that knows which kernel computes a convolution; `kernels` knows those of attention, and
`pod.context` how a row that several devices hold is attended.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, Int

from sora_jax.models.kernels import attend_local
from sora_jax.pod.context import spread

ROPE_THETA = 1e4  # RoFormer, arXiv:2104.09864


def as_stored(x: Array, kernel, bias: Array | None, dtype) -> tuple:
    """What a Dense computes with, in `dtype`; a kernel in 8 bits (`weights.quant`) stays so until its product is taken
    (`into` and `out_of` of `pod.mesh`), so that no more of it than one layer's is ever anything wider."""
    if not hasattr(kernel, "qvalue"):
        return promote_dtype(x, kernel, bias, dtype=dtype)
    x, bias = promote_dtype(x, bias, dtype=dtype)
    return x, kernel, bias


Dense = partial(nn.Dense, promote_dtype=as_stored)  # whose kernel may be one of 8 bits


class RMSNorm(nn.Module):
    """Equation (1) in float32 over the last axis, with a learned scale."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
        return (y * scale).astype(x.dtype)


class ChannelNorm(nn.Module):
    """Equation (2): each pixel's channel vector is scaled to length sqrt(c), then by a learned gain."""

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        norm = jnp.sqrt(jnp.maximum(jnp.sum(y * y, -1, keepdims=True), 1e-24))
        return (y / norm * np.sqrt(x.shape[-1]) * scale).astype(x.dtype)


def layer_norm(x: Float[Array, "*b d"], eps: float = 1e-6) -> Float[Array, "*b d"]:
    """LayerNorm without scale and shift, computed and returned in float32: adaLN supplies both."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


def platform() -> str:
    """cpu, gpu or tpu: the ambient mesh's, whose devices need not be here (a plan's are not), or else JAX's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


# ------------------------------------------------------------------------------------------------ convolution


def conv3d(
    x: Float[Array, "b f h w c"], kernel: Float[Array, "kt kh kw c o"], stride: tuple[int, int], pad: str | list
) -> Float[Array, "b f2 h2 w2 o"]:
    """3-D convolution, valid in time, `pad` in space; `stride` is (time, space).

    XLA's CPU backend runs a 3-D convolution 4 to 7 times slower than the same sum written as a 2-D convolution with the
    taps in time folded into channels; TPUs and GPUs prefer the 3-D form.
    """
    kt = kernel.shape[0]
    if platform() != "cpu":
        spatial = pad if isinstance(pad, str) else [(0, 0), *pad]
        if pad == "SAME":
            spatial = [(0, 0)] + [((k - 1) // 2, k // 2) for k in kernel.shape[1:3]]
        return jax.lax.conv_general_dilated(
            x, kernel, (stride[0], stride[1], stride[1]), spatial, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
    frames = (x.shape[1] - kt) // stride[0] + 1
    taps = [x[:, i : i + (frames - 1) * stride[0] + 1 : stride[0]] for i in range(kt)]
    x2 = rearrange(jnp.concatenate(taps, -1), "b f h w c -> (b f) h w c")
    if kernel.shape[1:3] == (1, 1) and stride[1] == 1:
        y = x2 @ rearrange(kernel, "t 1 1 c o -> (t c) o")
    else:
        y = jax.lax.conv_general_dilated(
            x2,
            rearrange(kernel, "t h w c o -> h w (t c) o"),
            (stride[1], stride[1]),
            pad,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    return rearrange(y, "(b f) h w o -> b f h w o", f=frames)


class CausalConv3d(nn.Module):
    """A convolution whose output at frame i sees frames <= i: kernel_time - 1 zero frames stand before the first.

    Streaming: with the collection `cache` mutable, the last kernel_time - 1 input frames are kept, and a call with
    first=False starts from them instead of zeros. A full pass is one call with first=True.
    """

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    dtype: str = "float32"
    zero: bool = False  # start at zero, for the last layer beside a shortcut

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool = True) -> Float[Array, "b f h w o"]:
        init = nn.initializers.zeros if self.zero else nn.initializers.lecun_uniform()
        kernel = self.param("kernel", init, (*self.kernel, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = with_past(self, x.astype(self.dtype), self.kernel[0] - 1, first)
        return conv3d(x, kernel, (1, 1), "SAME") + bias


def with_past(module: nn.Module, x: Float[Array, "b f *hwc"], frames: int, first: bool) -> Float[Array, "b f2 *hwc"]:
    """Puts the `frames` frames before x in front of it: zeros for the first chunk, else those the cache kept."""
    if frames == 0:
        return x
    past = jnp.zeros((x.shape[0], frames, *x.shape[2:]), x.dtype)
    if module.is_mutable_collection("cache") or not first:
        cache = module.variable("cache", "past", lambda: past)
        x = jnp.concatenate([past if first else cache.value, x], 1)
        cache.value = x[:, x.shape[1] - frames :]
        return x
    return jnp.concatenate([past, x], 1)


# ------------------------------------------------------------------------------------------------ rotary positions


def rope(pos: Int[Array, "b s 3"], head_width: int) -> tuple[Float[Array, "b s r"], Float[Array, "b s r"]]:
    """Cosines and sines of equation (3) for every patch; r = head_width / 2, frames first, then rows, columns."""
    side = 2 * (head_width // 6)
    angles = []
    for axis, width in enumerate((head_width - 2 * side, side, side)):
        frequency = ROPE_THETA ** (-np.arange(0, width, 2, dtype=np.float64) / width)
        angles.append(pos[..., axis, None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32))
    angle = jnp.concatenate(angles, -1)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(
    x: Float[Array, "b s n k"], cos: Float[Array, "b s r"], sin: Float[Array, "b s r"]
) -> Float[Array, "b s n k"]:
    """Rotates interleaved pairs (x_2i, x_2i+1) in float32."""
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape).astype(x.dtype)


# ------------------------------------------------------------------------------------------------ attention


def attend(
    q: Float[Array, "b s n k"],
    k: Float[Array, "b j n k"],
    v: Float[Array, "b j n k"],
    q_seg: Int[Array, "b s"],
    kv_seg: Int[Array, "b j"],
) -> Float[Array, "b s n k"]:
    """Equation (4) for packed rows: a query sees the keys of its own segment; softmax in float32.

    Padding (segment 0) attends to padding; a query whose segment has no key gets something finite. Memory grows with s,
    not with its square. Under an ambient mesh q, k and v are of all devices, and attention runs across them.
    """
    return spread(partial(attend_local, platform()), q, k, v, q_seg, kv_seg)
