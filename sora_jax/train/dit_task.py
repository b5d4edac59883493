"""What the DiT gives the training loop: predict the noise's way out of packed, partly known rows.

Each step every clip of every row draws a noise level t (law and shift of `config.flow`) and a mask of what it knows of
itself (`canvas.training_mask`, shares of `config.masks`): known patches are clean (t = 0) and are not part of the loss.

    loss = mean over patches to paint of min(1, t / floor)^2 |velocity(prediction) - (eps - x0)|^2  (flow.py eqs. 2, 4)

Whatever is predicted (config.flow.predict), its error is measured as a velocity, so that losses of all kinds compare
and none of them decides how much each noise level counts. Below `config.flow.floor` it is the error of x0 over the
floor instead: a velocity's would grow with 1 / t there, and drown what text has to say in the last details.

A transformer that is given what is known beside the noise (config.dit.given) finds it behind each latent on disk, for
masks drawn when those were made (`data.dataset.latents`); it paints all of a clip at one noise level, and nothing of
config.masks is drawn for it. Of a model of two transformers one is trained at a time, config.expert = "high" or "low",
at the noise levels from config.sample.switch up or below; config.init names the model of both, export writes both.

Keys of the config it reads: text, dit (fields of `TextEncoder`, `DiT`; trained together, but for the parts named in
`frozen`), lora = dict(rank) (above 0, both stand still and a LoRA of the DiT is trained, `weights/lora.py`), flow =
dict(predict, law, shift_base or, for all sizes, shift, floor), masks, data (see `data.pipeline.latents`; path and
held_out are folders of latents, several with commas between, or "world" and "world-held-out", made on the spot),
vae_model (the folder whose VAE made the latents), tokenizer, sample (kept with the model) and prompts: (text, (w, h),
frames), painted at fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from sora_jax import media
from sora_jax.data import dataset, packing, pipeline, worlds
from sora_jax.data.fitting import fit
from sora_jax.diffusion import canvas, flow
from sora_jax.errors import InputError
from sora_jax.model import Model, find, load
from sora_jax.models.dit import KEEP, DiT, beside, training_flops
from sora_jax.models.text import TextEncoder, Tokenizer
from sora_jax.pod import mesh as pod
from sora_jax.pod.hosts import joined
from sora_jax.train.tasks import Task
from sora_jax.weights import lora

EVAL_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
EVAL_BATCHES = 4
WORLD_CLIPS = 64


def check(largest: dict[str, list[int] | None], patch: Sequence[int], data) -> None:
    """Raises InputError where a folder's largest clip is larger than a row: training would meet it hours later."""
    for folder, size in largest.items():
        patches = packing.kept(math.prod(packing.grid_of(size, patch)), data.drop) if size else 0
        if patches > data.row:
            raise InputError(
                f"{folder} holds a clip of {'x'.join(map(str, size))} latents (frames x height x width): its {patches} "
                f"patches do not fit into a row of {data.row}: raise config.data.row, or make latents with "
                "--max-pixels or --max-frames"
            )


def make(config) -> Task:
    """The task of `config.dit` and `config.text`, trained together on the latents of `config.data.path`."""
    text, dit = TextEncoder(**config.text), DiT(**config.dit)
    tokenizer = Tokenizer(find(config.tokenizer), text.rows, text.clean)
    if tokenizer.vocab > config.text.vocab:
        raise InputError(f"{config.tokenizer} has {tokenizer.vocab} pieces, config.text.vocab only {config.text.vocab}")
    if dit.width % dit.heads or dit.width // dit.heads % 2:
        raise InputError(
            f"config.dit.heads is {dit.heads}: {dit.width} channels must divide into heads of an even width"
        )
    if dit.keep not in KEEP:
        raise InputError(f"config.dit.keep is {dit.keep!r}: choose one of {', '.join(KEEP)}")
    low, high = span(config)
    eval_levels = [t for t in EVAL_LEVELS if low <= t < high] or [(low + high) / 2]
    channels = dit.channels + dit.given  # of a latent on disk
    frozen = still(config)
    if set(frozen) - {"text", "dit"} or (len(frozen) > 1 and not config.lora.rank):
        raise InputError(f"config.frozen is {frozen}: text may stand still, or dit, but something must be trained")
    shares = tuple(config.masks[name] for name in canvas.MASKS)

    def init(key) -> dict:
        keys = jax.random.split(key)
        ints = jnp.zeros((1, 8), jnp.int32)
        ctx = jnp.zeros((1, 8, config.text.width))
        x = jnp.zeros((1, 8, int(np.prod(dit.patch)) * channels))
        t = jnp.zeros((1, 1))
        params = {
            "text": text.init(keys[0], ints, ints)["params"],
            "dit": dit.init(keys[1], x, jnp.zeros((1, 8, 3), jnp.int32), ints, t, ints, ctx, ints)["params"],
        }
        if config.lora.rank:
            params["lora"] = lora.begin(jax.random.fold_in(key, 2), params["dit"], config.lora.rank)
        stored = {"text": text.dtype, "dit": dit.dtype}  # what stands still is kept as it is computed with
        return params | {part: jax.tree.map(lambda w, d=stored[part]: w.astype(d), params[part]) for part in frozen}

    def whole(params: dict) -> dict:
        """The text encoder and the DiT, the LoRA that is trained added to it."""
        if "lora" not in params:
            return params
        return {"text": params["text"], "dit": lora.applied(params["dit"], params["lora"])}

    def parts(x: Float[Array, "b s q"]) -> tuple[Array, Array | None]:
        """Patches as on disk -> the clean ones, and what is given of each of their latents, if anything is."""
        if not dit.given:
            return x, None
        each = rearrange(x, "b s (n c) -> b s n c", c=channels)
        return tuple(rearrange(y, "b s n c -> b s (n c)") for y in jnp.split(each, [dit.channels], -1))

    def errors(params: dict, batch: dict, key, t: Float[Array, "b g"], known: Array) -> Float[Array, "b s"]:
        """Squared error of every patch, each clip at noise t with its known patches clean."""
        params, seg = whole(params), batch["seg"]
        # the table of a row's noise levels: 0, then one per clip
        table = jnp.concatenate([jnp.zeros((len(t), 1)), t], 1)
        level = jnp.where(known, 0, seg)
        t_patch = jnp.take_along_axis(table, level, 1)[..., None]
        x, given = parts(batch["x"])
        eps = jax.random.normal(key, x.shape)
        x_t = flow.add_noise(x, eps, t_patch)
        ctx = text.apply({"params": params["text"]}, batch["txt"], batch["txt_seg"])
        heard = x_t if given is None else beside(x_t, given, int(np.prod(dit.patch)))
        out = dit.apply({"params": params["dit"]}, heard, batch["pos"], seg, table, level, ctx, batch["txt_seg"])
        error = flow.velocity(config.flow.predict, out, x_t, t_patch) - (eps - x)
        return jnp.square(jnp.minimum(1.0, t_patch / config.flow.floor) * error).mean(-1)

    def loss(params: dict, batch: dict, key) -> tuple[Array, dict]:
        key_t, key_mask, key_eps = jax.random.split(key, 3)
        grid, seg = batch["grid"], batch["seg"]
        tokens = jnp.prod(grid, -1)
        fixed = "shift" in config.flow
        shift = config.flow.shift if fixed else flow.shift_of(tokens, config.flow.shift_base)
        t = flow.draw_within(config.flow.law, key_t, tokens.shape, shift, low, high)
        known = jnp.zeros_like(seg, bool)  # what is given beside the noise is painted too, as it was learned
        if not dit.given:
            known = canvas.training_mask(key_mask, batch["pos"], seg, grid, shares)
        error = errors(params, batch, key_eps, t, known)
        paint = (seg > 0) & ~known
        total = masked_mean(error, paint)

        index = jnp.maximum(seg - 1, 0)
        t_patch = jnp.take_along_axis(t, index, 1)
        count = jnp.take_along_axis(tokens, index, 1)
        image = jnp.take_along_axis(grid[..., 0], index, 1) == 1
        numbers = {
            f"loss_t{q}": masked_mean(error, paint & (t_patch * 4 >= q) & (t_patch * 4 < q + 1)) for q in range(4)
        }
        numbers["loss_image"] = masked_mean(error, paint & image)
        numbers["loss_short_video"] = masked_mean(error, paint & ~image & (count <= 128))
        numbers["loss_long_video"] = masked_mean(error, paint & ~image & (count > 128))
        numbers["fill"] = (seg > 0).mean()
        return total, numbers

    def batches(cursor, host: int, hosts: int):
        # what is wrong is said now, not hours later
        if config.prompts and not (find(config.vae_model) / "model.json").is_file():
            raise InputError(
                f"config.vae_model is {config.vae_model!r}, which is no model folder: give the one that made the "
                "latents, for samples are painted with it, or no config.prompts"
            )
        held_out()
        return stream(config.data.path, config.seed, cursor, host, hosts)

    def stream(path: str, seed: int, cursor, host: int = 0, hosts: int = 1):
        if path in ("world", "world-held-out"):
            source = world(path)
        else:
            source = dataset.open_latents(*path.split(","))
            check(source.largest, dit.patch, config.data)
        if len(source) and (there := source[0]["z"].shape[-1]) != channels:
            also = f" and config.dit.given {dit.given}: `data latents --model` must name a model of both"
            raise InputError(
                f"the latents at {path} have {there} channels, config.dit.channels is {dit.channels}"
                + also * bool(dit.given)
            )
        how = dict(tokenizer=tokenizer, patch=dit.patch, seed=seed, host=host, hosts=hosts, cursor=cursor)
        return pipeline.latents(source, config.data, **how)

    @cache
    def world(path: str) -> list[dict]:
        """A few scenes of two sizes, encoded here and now: enough to see everything run, not to learn from."""
        shapes, records = (((48, 32), 5), ((32, 32), 1)), []
        for i in range(WORLD_CLIPS):
            size, frames = shapes[i % 2]
            seed = i + (worlds.HELD_OUT if path == "world-held-out" else 0)
            scene = worlds.sample(seed, size=size, frames=frames)
            short, long = worlds.captions(scene)
            with jax.set_mesh(pod.here()):
                z = dataset.encoded(decoder(), fit(media.Video(worlds.render(scene), scene.fps), decoder().grid), i)
            records.append({"z": z, "caption_short": short, "caption_long": long})
        return records

    @cache
    def held_out() -> list[dict]:
        return [batch for batch, _ in islice(stream(config.data.held_out, 0, None), EVAL_BATCHES)]

    @joined
    @jax.jit
    def error_at(params: dict, batch: dict, key, t: Array) -> Array:
        levels = jnp.full(batch["grid"].shape[:2], t)
        return masked_mean(errors(params, batch, key, levels, jnp.zeros_like(batch["seg"], bool)), batch["seg"] > 0)

    def evaluate(params: dict, key) -> dict[str, float]:
        """Held-out losses; `text_helps`: by what share they are lower than where clips are not told what they show."""

        def losses(batches: list[dict]) -> dict[str, float]:
            keys = [jax.random.fold_in(key, i) for i in range(len(batches))]
            found = {t: [error_at(params, b, k, jnp.float32(t)) for b, k in zip(batches, keys)] for t in eval_levels}
            return {f"loss_at_{t}": float(np.mean(jax.device_get(values))) for t, values in found.items()}

        numbers, silent = losses(held_out()), losses([untold(b, tokenizer.encode("")) for b in held_out()])
        loss = float(np.mean(list(numbers.values())))
        return {"loss": loss, **numbers, "text_helps": 1 - loss / float(np.mean(list(silent.values())))}

    @cache
    def decoder() -> Model:
        return load(config.vae_model)

    def pictures(params: dict, folder: Path, step: int) -> None:
        if not config.prompts:
            return
        vae = decoder()
        settings = {name: config[name].to_dict() for name in ("text", "dit", "flow", "sample")}
        model = Model({"vae": vae.config["vae"], **settings}, {"vae": vae.params["vae"], **whole(params)}, tokenizer)
        videos: list[media.Video] = [
            model.generate(prompt, size=tuple(size), frames=frames, seed=seed)
            for seed, (prompt, size, frames) in enumerate(config.prompts)
        ]
        media.contact_sheet(videos, [prompt for prompt, _, _ in config.prompts], folder / f"{step:07d}.png")

    def flops(batch: dict) -> float:
        patches = [np.bincount(row)[1:].astype(np.int64) for row in batch["seg"]]
        texts = [np.bincount(row, minlength=len(p) + 1)[1:] for row, p in zip(batch["txt_seg"], patches)]
        squares = sum(int((p**2).sum()) for p in patches)
        crossed = sum(int((p * n[: len(p)]).sum()) for p, n in zip(patches, texts))
        used, words = sum(int(p.sum()) for p in patches), sum(int(n.sum()) for n in texts)
        return training_flops(config.dit, used, squares, words, crossed)

    return Task(init, loss, batches, evaluate, pictures, flops, lambda batch: int((batch["seg"] > 0).sum()), frozen)


def span(config) -> tuple[float, float]:
    """The noise levels that are trained: all, or, of two transformers, those of `config.expert` around sample.switch.

    Raises InputError for another expert than high or low, or a model that has no two.
    """
    if not config.expert:
        return 0.0, 1.0
    if config.expert not in ("high", "low") or "switch" not in config.sample:
        raise InputError(
            f"config.expert is {config.expert!r}: high or low, for noise, of a model of two transformers, or nothing"
        )
    switch = config.sample.switch
    return (switch, 1.0) if config.expert == "high" else (0.0, switch)


def still(config) -> tuple[str, ...]:
    """The parts that are not trained: those of `config.frozen`, or all, where a LoRA is."""
    return ("text", "dit") if config.lora.rank else tuple(config.frozen)


def untold(batch: dict, empty: Sequence[int]) -> dict:
    """The same clips in the same places, told nothing: each has the tokens of the empty text, as many as any has."""
    at = np.arange(batch["txt"].shape[1])
    text = at // len(empty) + 1
    seg = np.where(text <= batch["txt_seg"].max(1, keepdims=True), text, 0)
    txt = np.where(seg > 0, np.asarray(empty)[at % len(empty)], 0)
    return batch | {"txt": txt.astype(batch["txt"].dtype), "txt_seg": seg.astype(batch["txt_seg"].dtype)}


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean over the mask; NaN where it is empty, which the log leaves out."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.sum(mask)
