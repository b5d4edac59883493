"""What the expander gives the training loop: (short, long) captions of the embedded world, packed, and one loss.

    loss = -log p(next token of the long caption | the short one)                     (models/expander.py, equation 1)

Pairs are drawn as training goes and come from no folder. A scene's own two captions are worded apart, and what loses a
word of the prompt is not let through (`expansion.lost`): so the long caption is worded anew until it keeps all of the
short one, that there is nothing but copying and describing to learn.

Keys of the config it reads: expander (fields of `Expander`), tokenizer, expand (kept with the model, see `expansion`:
prompt and tokens, the longest that is read and written, and top_p), data (see `data.pipeline.latents`, a short
caption's tokens being its patches; frames of the scenes, images: the share that has one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from sora_jax.data import pipeline, worlds
from sora_jax.errors import InputError
from sora_jax.evaluate.captions import parse
from sora_jax.expansion import long_of, lost
from sora_jax.model import Model, find
from sora_jax.models.expander import Expander
from sora_jax.models.text import Tokenizer
from sora_jax.pod.hosts import joined
from sora_jax.train.captioner_task import masked
from sora_jax.train.tasks import Task

WORDINGS = 16  # of a scene's long caption that are tried for a short one
EVAL_BATCHES = 4
EVAL_PROMPTS = 64  # expanded and parsed at every evaluation


def make(config) -> Task:
    """The task of `config.expander`, trained on the embedded world. Raises InputError for settings that do not fit."""
    expander = Expander(**config.expander)
    tokenizer = Tokenizer(find(config.tokenizer))
    if tokenizer.vocab > expander.vocab:
        raise InputError(
            f"{config.tokenizer} has {tokenizer.vocab} pieces, config.expander.vocab only {expander.vocab}"
        )
    marked = SimpleNamespace(encode=lambda text: [expander.vocab, *tokenizer.encode(text)])

    def init(key) -> dict:
        ints = jnp.zeros((1, 8), jnp.int32)
        return {"expander": expander.init(key, ints[..., None], ints, ints, ints)["params"]}

    def loss(params: dict, batch: dict, key) -> tuple[Array, dict]:
        rows = (batch[name] for name in ("x", "seg", "txt", "txt_seg"))
        logits = expander.apply({"params": params["expander"]}, *rows)
        target, seg = (jnp.pad(batch[name][:, 1:], ((0, 0), (0, 1))) for name in ("txt", "txt_seg"))
        follows = (seg > 0) & (batch["txt_seg"] == seg)
        nats = masked(optax.softmax_cross_entropy_with_integer_labels(logits, target), follows)
        right = masked((logits.argmax(-1) == target).astype(jnp.float32), follows)
        pairs = (batch["grid"][..., 0] > 0).sum().astype(jnp.float32)
        return nats, {"word": right, "fill": (batch["txt_seg"] > 0).mean(), "pairs": pairs}

    def batches(cursor, host: int, hosts: int):
        return stream(0, config.seed, cursor, host, hosts)

    def stream(first: int, seed: int, cursor, host: int = 0, hosts: int = 1):
        how = dict(tokenizer=marked, patch=(1, 1, 1), seed=seed, host=host, hosts=hosts, cursor=cursor)
        return pipeline.latents(Pairs(tokenizer, config.data.frames, config.data.images, first), config.data, **how)

    @cache
    def held_out() -> tuple[list[dict], list[worlds.Scene]]:
        batches = [batch for batch, _ in islice(stream(worlds.HELD_OUT, 0, None), EVAL_BATCHES)]
        seeds = range(worlds.HELD_OUT, worlds.HELD_OUT + EVAL_PROMPTS)
        return batches, [scene_of(seed, config.data.frames, config.data.images) for seed in seeds]

    @joined
    @jax.jit
    def numbers_of(params: dict, batch: dict) -> dict:
        nats, numbers = loss(params, batch, None)
        return {"loss": nats, "word": numbers["word"]}

    def model_of(params: dict) -> Model:
        return Model({name: config[name].to_dict() for name in ("expander", "expand")}, params, tokenizer)

    def evaluate(params: dict, key) -> dict[str, float]:
        """Loss and share of right next words on held-out pairs; and, by one process, of held-out scenes' own short
        captions: `kept`, those that lose nothing, `objects`, those whose long caption names the scene's objects and no
        others. All are expanded greedily."""
        batches, scenes = held_out()
        every = [jax.device_get(numbers_of(params, batch)) for batch in batches]
        numbers = {name: float(np.mean([n[name] for n in every])) for name in ("loss", "word")}
        if jax.process_count() > 1:
            return numbers
        shorts = [worlds.captions(scene)[0] for scene in scenes]
        longs = long_of(model_of(params), shorts, 0.0, [0] * len(shorts))
        numbers["kept"] = float(np.mean([not lost(short, long) for short, long in zip(shorts, longs)]))
        named = [sorted((told.color, told.shape) for told in parse(long)[0]) for long in longs]
        there = [sorted((thing.color, thing.shape) for thing in scene.things) for scene in scenes]
        numbers["objects"] = float(np.mean([a == b for a, b in zip(named, there)]))
        return numbers

    def pictures(params: dict, folder: Path, step: int) -> None:
        """Nothing to paint: what it makes of the held-out prompts, as text."""
        shorts = [worlds.captions(scene)[0] for scene in held_out()[1]]
        longs = long_of(model_of(params), shorts, 0.0, [0] * len(shorts))
        text = "".join(f"{short}\n    {long}\n" for short, long in zip(shorts, longs))
        (folder / f"{step:07d}.txt").write_text(text)

    def flops(batch: dict) -> float:
        """Three forward passes (the backward one costs two); multiply-add = 2; attention's scores are left out, a
        caption being far shorter than the model is wide."""
        c = config.expander
        read, words, d = int((batch["seg"] > 0).sum()), int((batch["txt_seg"] > 0).sum()), config.expander.width
        reader = read * (c.depth * (8 * d * d + 6 * d * c.mlp) + c.tell_depth * 4 * d * d)
        layers = (c.text_depth + c.tell_depth) * (8 * d * d + 4 * d * c.mlp) + c.tell_depth * 4 * d * d
        return 3.0 * (reader + words * (layers + 2 * d * c.vocab))

    return Task(init, loss, batches, evaluate, pictures, flops, lambda batch: int((batch["txt_seg"] > 0).sum()))


class Pairs(Sequence):
    """`pair`s of the world's scenes from seed `first` on, as `pipeline.latents` reads them: z [tokens 1 1 1] are the
    tokens of the short caption, caption_long is the long one."""

    def __init__(self, tokenizer: Tokenizer, frames: int, images: float, first: int = 0):
        self.tokenizer, self.frames, self.images, self.first = tokenizer, frames, images, first

    def __len__(self) -> int:
        return worlds.HELD_OUT

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        short, long = pair(scene_of(self.first + index, self.frames, self.images))
        z = np.asarray(self.tokenizer.encode(short), np.float32)  # whole numbers below 2^24 are exact
        return {"z": z[:, None, None, None], "caption_long": long}


def scene_of(seed: int, frames: int, images: float) -> worlds.Scene:
    """The scene of a seed; the share `images` of them has one frame, the others `frames`."""
    image = np.random.default_rng((seed, 2)).random() < images
    return worlds.sample(seed, frames=1 if image else frames)


def pair(scene: worlds.Scene) -> tuple[str, str]:
    """A short and a long caption of a scene of which the long one loses nothing: of the first of the scene's short
    captions for which one of WORDINGS long ones is so."""
    rng = np.random.default_rng((scene.seed, 3))
    while True:
        seeds = rng.integers(0, 2**62, WORDINGS).tolist()
        said = [worlds.captions(replace(scene, seed=seed)) for seed in seeds]
        long = next((long for _, long in said if not lost(said[0][0], long)), None)
        if long is not None:
            return said[0][0], long
