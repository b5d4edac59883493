"""What the captioner gives the training loop: say the caption, and tell which caption is whose, on packed rows of
pixels.

    loss = caption loss  +  contrast * contrast loss             (models/captioner.py, equations 1 and 2)

Pixels and not the VAE's latents: it then captions clips before there is a VAE, its folder needs none, and the embedded
world renders new scenes faster than a CPU learns from them. Its first map starts as the principal components of
patches, half whitened, which is what the VAE's latents are at first, too: edges and motion are then as loud as colours.

Keys of the config it reads: captioner (fields of `Captioner`), tokenizer, describe (kept with the model: frames,
max_pixels, tokens: see `captioning`), loss = dict(contrast, smooth), data (see `data.pipeline.latents`; path is
"world" or a folder that `data build` made, held_out the same or "world-held-out"; frames, max_pixels as in describe;
images: the share of the world's scenes that are images). data.captions weighs short and long; data.text_dropout is 0.
"""

from __future__ import annotations

from functools import cache
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from sora_jax import media
from sora_jax.captioning import Asking, describe
from sora_jax.data import footage, packing, pipeline, worlds
from sora_jax.errors import InputError
from sora_jax.evaluate import captions as judge
from sora_jax.model import Model, find
from sora_jax.models.captioner import Captioner
from sora_jax.models.text import Tokenizer
from sora_jax.models.vae import principal_components
from sora_jax.pod.hosts import joined
from sora_jax.train.tasks import Task

EVAL_BATCHES = 4
EVAL_CLIPS = 64  # of the world, told and parsed at every evaluation
COMPONENTS = 48  # clips whose patches the first map is made of


def make(config) -> Task:
    """The task of `config.captioner`, trained on `config.data`. Raises InputError for settings that do not fit."""
    captioner = Captioner(**config.captioner)
    tokenizer = Tokenizer(find(config.tokenizer))
    if tokenizer.vocab > captioner.vocab:
        raise InputError(
            f"{config.tokenizer} has {tokenizer.vocab} pieces, config.captioner.vocab only {captioner.vocab}"
        )
    if config.data.text_dropout:
        raise InputError(f"config.data.text_dropout is {config.data.text_dropout}: a captioner is never told nothing")
    size, segments = 3 * int(np.prod(captioner.patch)), config.data.segments

    def init(key) -> dict:
        ints = jnp.zeros((1, 8), jnp.int32)
        x, pos = jnp.zeros((1, 8, size)), jnp.zeros((1, 8, 3), jnp.int32)
        params = captioner.init(key, x, pos, ints, ints, ints, 1)["params"]
        params["video"]["patch_in"] = jax.tree.map(jnp.asarray, components())
        return {"captioner": params}

    @cache
    def components() -> dict:
        """The weights of the first map (numpy: init is traced)."""
        held = source(config.data.path, 0.0)
        step = max(1, len(held) // COMPONENTS)
        patches = [packing.patchify(held[i]["z"], captioner.patch) for i in range(0, step * COMPONENTS, step)]
        return principal_components(np.concatenate(patches), captioner.width)[0]

    def outputs(params: dict, batch: dict):
        rows = (batch[name] for name in ("x", "pos", "seg", "txt", "txt_seg"))
        return captioner.apply({"params": params["captioner"]}, *rows, segments)

    def loss(params: dict, batch: dict, key) -> tuple[Array, dict]:
        logits, clips, texts, temperature = outputs(params, batch)
        target = jnp.pad(batch["txt"][:, 1:], ((0, 0), (0, 1)))
        follows = (batch["txt_seg"] > 0) & (batch["txt_seg"] == jnp.pad(batch["txt_seg"][:, 1:], ((0, 0), (0, 1))))
        soft = optax.smooth_labels(jax.nn.one_hot(target, logits.shape[-1]), config.loss.smooth)
        told = masked(optax.softmax_cross_entropy(logits, soft), follows)
        right = masked((logits.argmax(-1) == target).astype(jnp.float32), follows)
        there = (batch["grid"][..., 0] > 0).reshape(-1)
        contrast, matched = contrasted(clips, texts, temperature, there)
        numbers = {"caption": told, "word": right, "contrast": contrast, "matched": matched}
        numbers |= {"fill": (batch["seg"] > 0).mean(), "clips": there.sum().astype(jnp.float32)}
        return told + config.loss.contrast * contrast, numbers

    def batches(cursor, host: int, hosts: int):
        held_out()  # what is wrong with it is said now, not hours later
        return stream(config.data.path, config.data.images, config.seed, cursor, host, hosts)

    def stream(path: str, images: float, seed: int, cursor, host: int = 0, hosts: int = 1):
        how = dict(tokenizer=Asking(tokenizer, captioner.vocab), patch=captioner.patch, seed=seed)
        return pipeline.latents(source(path, images), config.data, **how, host=host, hosts=hosts, cursor=cursor)

    def source(path: str, images: float):
        if path in ("world", "world-held-out"):
            first = worlds.HELD_OUT if path == "world-held-out" else 0
            return footage.World(config.data.frames, images, first)
        return footage.Clips(path, config.data.frames, config.data.max_pixels)

    @cache
    def held_out() -> list[dict]:
        batches = stream(config.data.held_out, config.data.images, 0, None)
        return [batch for batch, _ in islice(batches, EVAL_BATCHES)]

    @joined
    @jax.jit
    def numbers_of(params: dict, batch: dict) -> dict:
        return loss(params, batch, None)[1]

    def model_of(params: dict) -> Model:
        settings = {name: config[name].to_dict() for name in ("captioner", "describe")}
        return Model(settings, params, tokenizer)

    def evaluate(params: dict, key) -> dict[str, float]:
        """Losses on held-out batches; of the world, told by one process, also how true its captions are."""
        every = [jax.device_get(numbers_of(params, batch)) for batch in held_out()]
        numbers = {
            name: float(np.mean([n[name] for n in every])) for name in ("caption", "word", "contrast", "matched")
        }
        if config.data.held_out == "world-held-out" and jax.process_count() == 1:
            frames = 1 if config.data.images == 1 else None
            scores = judge.judged(model_of(params), EVAL_CLIPS, worlds.HELD_OUT, frames)
            numbers |= {name: value for name, value in scores.items() if isinstance(value, float)}
        return numbers

    def pictures(params: dict, folder: Path, step: int) -> None:
        held = source(config.data.held_out, config.data.images)
        shown = [held[i]["z"] for i in range(6)]
        clips = [media.Video(np.round((z + 1) * 127.5).astype(np.uint8), 8.0) for z in shown]
        media.contact_sheet(
            clips, [told["text"] for told in describe(model_of(params), clips)], folder / f"{step:07d}.png"
        )

    def flops(batch: dict) -> float:
        """Three forward passes (the backward one costs two); multiply-add = 2."""
        c = config.captioner
        patches, words = int((batch["seg"] > 0).sum()), int((batch["txt_seg"] > 0).sum())
        square = sum(int((np.bincount(row)[1:].astype(np.int64) ** 2).sum()) for row in batch["seg"])
        layer, d = 8 * c.width**2 + 4 * c.width * c.mlp, c.width
        video = patches * (2 * size * d + c.depth * layer + c.tell_depth * 4 * d * d) + c.depth * 4 * d * square
        text = words * ((c.text_depth + c.tell_depth) * layer + c.tell_depth * 4 * d * d + 2 * d * c.vocab)
        return 3.0 * (video + text)

    return Task(init, loss, batches, evaluate, pictures, flops, lambda batch: int((batch["seg"] > 0).sum()))


def masked(x: Array, mask: Array) -> Float[Array, ""]:
    """Mean over the mask; 0 where it is empty."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(mask.sum(), 1)


def contrasted(clips: Array, texts: Array, temperature: Array, there: Array) -> tuple[Array, Array]:
    """Equation (2) over the clips that are there, and the share of them whose own caption is the nearest."""
    v, w = clips.reshape(len(there), -1), texts.reshape(len(there), -1)
    alike = jnp.where(there[:, None] & there, jnp.minimum(temperature, 100.0) * v @ w.T, -1e30)
    own = jnp.diagonal(alike)
    each = (jax.nn.logsumexp(alike, 1) + jax.nn.logsumexp(alike, 0)) / 2 - own
    return masked(each, there), masked((alike.argmax(1) == jnp.arange(len(there))).astype(jnp.float32), there)
