"""The causal spacetime autoencoder: pixels [b f h w 3] in [-1, 1] <-> latents [b f' h' w' c] of unit variance.

    f = 1 + k * time  ->  f' = 1 + k        (the first frame stands alone: an image is a one-frame video)
    h, w              ->  h / space, w / space

Wan 2.1's VAE (arXiv:2503.20314), weight for weight: channel-norm residual blocks, attention within a frame in the
middle, convolutions that look only into the past. Every layer keeps the few past frames it needs in the collection
`cache`, so that a clip can be encoded or decoded in pieces (`models.vae_stream`) with memory that does not grow with
its length, and the pieces equal the full pass.

Wan 2.2's is the same with `patch` 2, its own `decoder_width` and `shortcuts`: around each size stands a linear path
without weights, which averages a block of time x space x space values, channels included, on the way in, and repeats
them on the way out.

`linear_skip` adds a linear codec beside the network: each time x space x space block of pixels is projected to its
latent and back. Set to the blocks' principal components (`principal_components`) and kept there, it lets training begin
where a linear codec ends, instead of spending its first hour getting there; the convolutions learn what it cannot.

`mend` adds a small network behind the decoder, in pixels: it hears how they differ from their surroundings, and nothing
where a picture is flat, so that it learns edges, which a linear codec blurs, in minutes. It looks at the frames
of one latent together and at none before, as tall and wide as MEND_REACH.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from sora_jax.models.layers import CausalConv3d, ChannelNorm, attend, conv3d, with_past
from sora_jax.pod.mesh import shard_frames

SURROUNDINGS = 5  # pixels a side of the square whose mean a pixel is compared with by `mend`
MEND_SIDE, MEND_BLOCKS = 2, 2  # pixels a side of what it takes as one place; residual blocks
MEND_REACH = SURROUNDINGS // 2 + MEND_SIDE * (2 * MEND_BLOCKS + 2)  # pixels around that it sees
LATE = ("image_mend", "video_mend")  # as drawn they change nothing, so that a model trained without goes on with them
CONTRAST = 4.0  # brings differences, a quarter of a picture's range at edges, near unit size


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, beside a shortcut that is 1x1x1 where the width changes."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool) -> Float[Array, "b f h w o"]:
        y = CausalConv3d(self.features, dtype=self.dtype, name="conv1")(nn.silu(ChannelNorm(name="norm1")(x)), first)
        y = CausalConv3d(self.features, dtype=self.dtype, name="conv2")(nn.silu(ChannelNorm(name="norm2")(y)), first)
        if x.shape[-1] != self.features:
            x = CausalConv3d(self.features, (1, 1, 1), dtype=self.dtype, name="shortcut")(x, first)
        return x + y


class FrameAttention(nn.Module):
    """Single-head attention among the pixels of one frame."""

    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        width = x.shape[-1]
        y = rearrange(ChannelNorm(name="norm")(x), "b f h w c -> (b f) (h w) 1 c")
        q, k, v = jnp.split(nn.Dense(3 * width, dtype=self.dtype, name="qkv")(y), 3, -1)
        frame = jnp.ones(y.shape[:2], jnp.int32)
        y = attend(q, k, v, frame, frame)
        y = nn.Dense(width, dtype=self.dtype, name="out")(y)
        return shard_frames(x + rearrange(y, "(b f) (h w) 1 c -> b f h w c", b=x.shape[0], h=x.shape[2]))


class Downsample(nn.Module):
    """Halves space by a strided convolution, then time: frame 0 passes, frame j sees frames 2j-2 .. 2j."""

    time: int
    space: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool) -> Float[Array, "b f2 h2 w2 c"]:
        width, init = x.shape[-1], nn.initializers.lecun_uniform()
        if self.space == 2:
            kernel = self.param("space_kernel", init, (1, 3, 3, width, width)).astype(self.dtype)
            bias = self.param("space_bias", nn.initializers.zeros, (width,)).astype(self.dtype)
            x = conv3d(x, kernel, (1, 2), [(0, 1), (0, 1)]) + bias
        if self.time == 2:
            kernel = self.param("time_kernel", init, (3, 1, 1, width, width)).astype(self.dtype)
            bias = self.param("time_bias", nn.initializers.zeros, (width,)).astype(self.dtype)
            head = x[:, :1] if first else None
            x = with_past(self, x, 1, first)  # a zero frame, or the last one seen
            x = x[:, 1:] if first else x
            rest = conv3d(x, kernel, (2, 1), "SAME") + bias if x.shape[1] >= 3 else x[:, :0]
            x = rest if head is None else jnp.concatenate([head, rest], 1)
        return x


class Upsample(nn.Module):
    """Doubles time (frame 0 passes; its successors become pairs and never see it), then space by nearest and conv.

    features: of the convolution in space; without one (space 1) the channels stay what they are.
    """

    time: int
    space: int
    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool) -> Float[Array, "b f2 h2 w2 o"]:
        width, init = x.shape[-1], nn.initializers.lecun_uniform()
        if self.time == 2:
            kernel = self.param("time_kernel", init, (3, 1, 1, width, 2 * width)).astype(self.dtype)
            bias = self.param("time_bias", nn.initializers.zeros, (2 * width,)).astype(self.dtype)
            head, rest = (x[:, :1], x[:, 1:]) if first else (x[:, :0], x)
            rest = with_past(self, rest, 2, first)
            if rest.shape[1] == 2:  # the first frame alone
                return self.enlarge(head, first)
            rest = conv3d(rest, kernel, (1, 1), "SAME") + bias
            x = jnp.concatenate([head, rearrange(rest, "b f h w (two c) -> b (f two) h w c", two=2)], 1)
        return self.enlarge(x, first)

    def enlarge(self, x: Float[Array, "b f h w c"], first: bool) -> Float[Array, "b f h2 w2 o"]:
        if self.space == 2:
            x = jnp.repeat(jnp.repeat(x, 2, 2), 2, 3)
            x = CausalConv3d(self.features, (1, 3, 3), dtype=self.dtype, name="conv")(x, first)
        return x


def averaged(
    x: Float[Array, "b f h w c"], features: int, time: int, space: int, first: bool
) -> Float[Array, "b f2 h2 w2 o"]:
    """Each time x space x space block's values, channel by channel, in `features` equal groups that are averaged.

    The first frame stands at the end of a block whose other frames are zero (Wan 2.2 averages it with them).
    """
    if first:
        x = jnp.pad(x, [(0, 0), (time - 1, 0)] + [(0, 0)] * 3)
    x = rearrange(x, "b (f p) (h q) (w r) c -> b f h w (c p q r)", p=time, q=space, r=space)
    return rearrange(x, "b f h w (o g) -> b f h w o g", o=features).mean(-1)


def repeated(
    x: Float[Array, "b f h w c"], features: int, time: int, space: int, first: bool
) -> Float[Array, "b f2 h2 w2 o"]:
    """Each value as many times as fill a time x space x space block of `features` channels; one frame of the first."""
    x = jnp.repeat(x, features * time * space**2 // x.shape[-1], -1)
    x = rearrange(x, "b f h w (o p q r) -> b (f p) (h q) (w r) o", p=time, q=space, r=space)
    return x[:, time - 1 :] if first else x


class FrozenDense(nn.Module):
    """A Dense whose weights are set, not learned: gradients pass through it to its input alone."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b o"]:
        kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return x @ jax.lax.stop_gradient(kernel) + jax.lax.stop_gradient(bias)


class Mend(nn.Module):
    """Adds to frames, `time` together, what their differences from their surroundings tell; begins at nothing."""

    features: int
    time: int

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w 3"]) -> Float[Array, "b f h w 3"]:
        folded = dict(p=self.time, q=MEND_SIDE, r=MEND_SIDE)
        square = (1, SURROUNDINGS, SURROUNDINGS)
        around = nn.avg_pool(x, square, padding="SAME", count_include_pad=False)  # padding first would send rows about
        y = rearrange(CONTRAST * (x - around), "b (f p) (h q) (w r) c -> b f h w (p q r c)", **folded)
        conv = partial(CausalConv3d, kernel=(1, 3, 3))
        y = conv(self.features, name="conv_in")(y)
        for i in range(MEND_BLOCKS):
            z = conv(self.features, name=f"block{i}_1")(nn.silu(y))
            y = y + conv(self.features, zero=True, name=f"block{i}_2")(nn.silu(z))
        y = conv(3 * self.time * MEND_SIDE**2, zero=True, name="conv_out")(nn.silu(y))
        return x + rearrange(y, "b f h w (p q r c) -> b (f p) (h q) (w r) c", **folded)


class Encoder(nn.Module):
    """Pixels (patchified) -> twice the latent channels: mean and log-variance.

    part: "all" of it; its "outer" part alone, whose every output sees `vae_stream.reach` latents around it, no more; or
    the "inner" rest, at the latents' own size, which sees a whole frame.
    """

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    time: tuple[int, ...]
    space: tuple[int, ...]
    shortcuts: bool
    features: int
    dtype: str
    zero: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool, part: str = "all") -> Float[Array, "b f2 h2 w2 o"]:
        if part != "inner":
            x = CausalConv3d(self.width, dtype=self.dtype, name="conv_in")(x, first)
            for i, multiplier in enumerate(self.multipliers):
                fine, (time, space) = x, (self.time[i], self.space[i]) if i < len(self.time) else (1, 1)
                for j in range(self.blocks):
                    x = ResBlock(self.width * multiplier, self.dtype, name=f"block{i}_{j}")(x, first)
                if i < len(self.time):
                    x = Downsample(time, space, self.dtype, name=f"down{i}")(x, first)
                if self.shortcuts:
                    x = x + averaged(fine, x.shape[-1], time, space, first)
        if part == "outer":
            return x
        x = ResBlock(x.shape[-1], self.dtype, name="mid0")(x, first)
        x = FrameAttention(self.dtype, name="mid_attention")(x)
        x = ResBlock(x.shape[-1], self.dtype, name="mid1")(x, first)
        x = nn.silu(ChannelNorm(name="norm_out")(x))
        x = CausalConv3d(self.features, dtype=self.dtype, zero=self.zero, name="conv_out")(x, first)
        return CausalConv3d(self.features, (1, 1, 1), dtype=self.dtype, name="quant")(x, first)


class Decoder(nn.Module):
    """Latents -> pixels (patchified), the encoder's mirror with one block more at each size; `part` as there."""

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    time: tuple[int, ...]
    space: tuple[int, ...]
    shortcuts: bool
    features: int
    dtype: str
    zero: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], first: bool, part: str = "all") -> Float[Array, "b f2 h2 w2 o"]:
        if part != "outer":
            x = CausalConv3d(x.shape[-1], (1, 1, 1), dtype=self.dtype, name="quant")(x, first)
            x = CausalConv3d(self.width * self.multipliers[-1], dtype=self.dtype, name="conv_in")(x, first)
            x = ResBlock(x.shape[-1], self.dtype, name="mid0")(x, first)
            x = FrameAttention(self.dtype, name="mid_attention")(x)
            x = ResBlock(x.shape[-1], self.dtype, name="mid1")(x, first)
        if part == "inner":
            return x
        for i, multiplier in enumerate(reversed(self.multipliers)):
            coarse, width = x, self.width * multiplier
            for j in range(self.blocks + 1):
                x = ResBlock(width, self.dtype, name=f"block{i}_{j}")(x, first)
            if i < len(self.time):
                time, space = self.time[-1 - i], self.space[-1 - i]
                features = width if self.shortcuts else width // 2
                x = Upsample(time, space, features, self.dtype, name=f"up{i}")(x, first)
                if self.shortcuts:
                    x = x + repeated(coarse, width, time, space, first)
        x = nn.silu(ChannelNorm(name="norm_out")(x))
        return CausalConv3d(self.features, dtype=self.dtype, zero=self.zero, name="conv_out")(x, first)


class VAE(nn.Module):
    """See the file's head. `first=False` continues a stream and needs the `cache` of the chunk before.

    width, multipliers, blocks: channels at each size and residual blocks there (the decoder has one more).
    decoder_width: the decoder's own; 0 is the encoder's.
    time, space: the factor (1 or 2) of each step between sizes; patch: pixels folded into channels before the first.
    shortcuts: linear paths around each size, and upsampling that keeps its channels instead of halving them.
    mend: features of the network behind the decoder, 0 for none.
    """

    width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    time: tuple[int, ...] = (1, 2, 2)
    space: tuple[int, ...] = (2, 2, 2)
    patch: int = 1
    channels: int = 16
    linear_skip: bool = False
    dtype: str = "float32"
    decoder_width: int = 0
    shortcuts: bool = False
    mend: int = 0

    @property
    def grid(self) -> tuple[int, int, int]:
        """Pixels per latent along (frames, rows, columns)."""
        side = int(np.prod(self.space)) * self.patch
        return int(np.prod(self.time)), side, side

    def setup(self):
        sizes = self.multipliers, self.blocks, self.time, self.space, self.shortcuts
        self.encoder = Encoder(self.width, *sizes, 2 * self.channels, self.dtype, self.linear_skip)
        width = self.decoder_width or self.width
        self.decoder = Decoder(width, *sizes, 3 * self.patch**2, self.dtype, self.linear_skip)
        self.latent_mean = self.param("latent_mean", nn.initializers.zeros, (self.channels,))
        self.latent_std = self.param("latent_std", nn.initializers.ones, (self.channels,))
        time, side, _ = self.grid
        if self.mend:
            self.image_mend, self.video_mend = Mend(self.mend, 1), Mend(self.mend, time)
        if self.linear_skip:
            self.image_in = FrozenDense(self.channels, name="image_in")
            self.video_in = FrozenDense(self.channels, name="video_in")
            self.image_out = FrozenDense(3 * side**2, name="image_out")
            self.video_out = FrozenDense(3 * side**2 * time, name="video_out")

    def __call__(self, video: Float[Array, "b f h w 3"], first: bool = True) -> Float[Array, "b f h w 3"]:
        return self.decode(self.encode(video, first), first)

    def encode(self, video: Float[Array, "b f h w 3"], first: bool = True) -> Float[Array, "b f2 h2 w2 c"]:
        """The posterior's mean, normalised by the stored statistics (`train.export.latent_statistics`)."""
        return (self.moments(video, first)[0] - self.latent_mean) / self.latent_std

    def decode(self, z: Float[Array, "b f h w c"], first: bool = True) -> Float[Array, "b f2 h2 w2 3"]:
        """Pixels of normalised latents, not clipped."""
        return self.pixels(z * self.latent_std + self.latent_mean, first)

    def moments(
        self, video: Float[Array, "b f h w 3"], first: bool = True
    ) -> tuple[Float[Array, "b f2 h2 w2 c"], Float[Array, "b f2 h2 w2 c"]]:
        """Mean and log-variance of the posterior, before normalisation."""
        return self._posterior(self.encoder(self._folded(video), first), video, first)

    def pixels(self, z: Float[Array, "b f h w c"], first: bool = True) -> Float[Array, "b f2 h2 w2 3"]:
        """Pixels of latents before normalisation (as `moments` gives them)."""
        return self._unfolded(self.decoder(z, first), z, first)

    # The same in two parts, of which one sees a few latents around and the other whole frames: see `vae_stream`.

    def encode_outer(self, video: Float[Array, "b f h w 3"], first: bool = True) -> Float[Array, "b f2 h2 w2 d"]:
        return self.encoder(self._folded(video), first, "outer")

    def encode_inner(
        self, x: Float[Array, "b f h w d"], video: Float[Array, "b f2 h2 w2 3"], first: bool = True
    ) -> Float[Array, "b f h w c"]:
        mean, _ = self._posterior(self.encoder(x, first, "inner"), video, first)
        return (mean - self.latent_mean) / self.latent_std

    def decode_inner(self, z: Float[Array, "b f h w c"], first: bool = True) -> Float[Array, "b f h w d"]:
        return self.decoder(z * self.latent_std + self.latent_mean, first, "inner")

    def decode_outer(
        self, x: Float[Array, "b f h w d"], z: Float[Array, "b f h w c"], first: bool = True
    ) -> Float[Array, "b f2 h2 w2 3"]:
        return self._unfolded(self.decoder(x, first, "outer"), z * self.latent_std + self.latent_mean, first)

    def _folded(self, video: Array) -> Array:
        return rearrange(video, "b f (h q) (w r) c -> b f h w (c r q)", q=self.patch, r=self.patch)

    def _posterior(self, x: Array, video: Array, first: bool) -> tuple[Array, Array]:
        mean, logvar = jnp.split(x.astype(jnp.float32), 2, -1)
        if self.linear_skip:
            image, rest = split_blocks(video, self.grid, first)
            parts = [self.image_in(image)] if first else []
            mean = mean + jnp.concatenate(parts + ([self.video_in(rest)] if rest.shape[1] else []), 1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def _unfolded(self, x: Array, z: Array, first: bool) -> Array:
        x = x.astype(jnp.float32)
        video = rearrange(x, "b f h w (c r q) -> b f (h q) (w r) c", q=self.patch, r=self.patch)
        if self.linear_skip:
            image, rest = (z[:, :1], z[:, 1:]) if first else (z[:, :0], z)
            parts = [join_blocks(self.image_out(image), self.grid, 1)] if first else []
            parts += [join_blocks(self.video_out(rest), self.grid, self.grid[0])] if rest.shape[1] else []
            video = video + jnp.concatenate(parts, 1)
        if self.mend:
            parts = [self.image_mend(video[:, :1])] if first else []
            rest = video[:, len(parts) :]
            video = jnp.concatenate(parts + ([self.video_mend(rest)] if rest.shape[1] else []), 1)
        return video


def split_blocks(video: Array, grid: tuple[int, int, int], first: bool) -> tuple[Array, Array]:
    """The first frame's blocks [b 1 h' w' 3*s*s] and the rest's [b k h' w' 3*t*s*s]."""
    time, side, _ = grid
    head, rest = (video[:, :1], video[:, 1:]) if first else (video[:, :0], video)
    return (
        rearrange(head, "b f (h q) (w r) c -> b f h w (q r c)", q=side, r=side),
        rearrange(rest, "b (f p) (h q) (w r) c -> b f h w (p q r c)", p=time, q=side, r=side),
    )


def join_blocks(blocks: Array, grid: tuple[int, int, int], time: int) -> Array:
    """The inverse of `split_blocks` for blocks of `time` frames."""
    return rearrange(blocks, "b f h w (p q r c) -> b (f p) (h q) (w r) c", p=time, q=grid[1], r=grid[2])


def principal_components(
    blocks: Float[np.ndarray, "n p"], channels: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Dense weights of the linear codec of least squared error, strongest component first, half whitened.

    A latent's variance is its component's standard deviation. Wholly whitened, the last details would weigh as much as
    the first in all that a diffusion model learns; as they are, the first would drown the rest in any noise.
    """
    mean = blocks.mean(0)
    covariance = np.cov((blocks - mean).T.astype(np.float64))
    variance, vectors = np.linalg.eigh(covariance)
    variance, vectors = variance[::-1][:channels], vectors[:, ::-1][:, :channels]
    root = np.maximum(variance, 1e-8) ** 0.25
    into, out = vectors / root, (vectors * root).T
    return (
        {"kernel": into.astype(np.float32), "bias": (-mean @ into).astype(np.float32)},
        {"kernel": out.astype(np.float32), "bias": mean.astype(np.float32)},
    )
