"""A training's workdir to a model folder."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from sora_jax.data import pipeline
from sora_jax.errors import InputError
from sora_jax.model import Model, find, load, shapes_of
from sora_jax.models.text import Tokenizer
from sora_jax.train import checkpoint
from sora_jax.weights import lora


def export(workdir: str | os.PathLike, out: str | os.PathLike, dtype: str = "float32") -> Model:
    """Writes the averaged weights of a training workdir's newest checkpoint as a model folder, and returns the Model.
    A LoRA is added to what it was trained on, which is looked for where the run's config says (`weights.lora.export`
    writes it alone).

    A VAE's workdir gives a folder with the VAE alone, its latents' mean and standard deviation measured on the clips it
    was trained on; or, where its encoder was frozen, the model it began with, with this VAE in the place of its own. A
    DiT's takes VAE and tokenizer from where its config says they are. Raises InputError when the workdir has no
    checkpoint or one that its config does not fit.
    """
    workdir = checkpoint.located(workdir)
    if not (workdir / "config.json").is_file():
        raise InputError(f"{workdir} is not a training workdir: it has no config.json")
    config = json.loads((workdir / "config.json").read_text())
    stands = config.get("frozen") or config.get("expert") or config.get("lora", {}).get("rank")
    beside = bool(stands)
    for key in ("vae_model", "tokenizer", *("init",) * beside):
        if (place := config.get(key)) and not find(place).exists():  # a pod's paths are not those of other machines
            raise InputError(f"config.{key} is {place}, which is not here: write in {workdir}/config.json where it is")
    if config["task"] == "vae":
        base = load(config["init"]) if stands else Model({}, {})  # latents stay, and all that was trained on them
        model = Model(base.config | {"vae": config["vae"]}, base.params, base.tokenizer)
        trained = {"vae": shapes_of(model)["vae"]}
    elif config["task"] in ("captioner", "expander"):
        names = ("captioner", "describe") if config["task"] == "captioner" else ("expander", "expand")
        model = Model({name: config[name] for name in names}, {})
        model.tokenizer = Tokenizer(find(config["tokenizer"]))
        trained = shapes_of(model)
    else:
        base = load(config["vae_model"])
        settings = {name: config[name] for name in ("text", "dit", "flow", "sample")}
        model = Model({"vae": base.config["vae"], **settings}, {"vae": base.params["vae"]})
        model.tokenizer = Tokenizer(find(config["tokenizer"]), model.text.rows, model.text.clean)
        trained = {name: tree for name, tree in shapes_of(model).items() if name != "vae"}
        begun = {"init": "", "frozen": (), "lora": {"rank": 0}, "expert": ""} | config  # what older runs do not say
        if begun["lora"]["rank"]:
            begun["frozen"] = ("text", "dit")
            trained["lora"] = lora.shapes(trained["dit"], begun["lora"]["rank"])
        frozen = {part: trained.pop(part) for part in begun["frozen"]}
        if frozen or begun["expert"]:
            whole = load(begun["init"], host=True)
            first = whole.params | ({"dit": whole.params["dit_low"]} if begun["expert"] == "low" else {})
            model.params |= {part: first[part] for part in frozen}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), trained)
    restored = checkpoint.restore(workdir / "checkpoints", {"ema": abstract})
    if restored is None:
        raise InputError(f"{workdir} has no checkpoint yet: train it for longer")
    model.params |= restored[0]["ema"]
    if "lora" in model.params:
        model.params["dit"] = lora.applied(model.params["dit"], model.params.pop("lora"))
    if config["task"] == "dit" and begun["expert"]:  # the other of the two is as it was, and they paint as they did
        model.config |= {"dit_low": model.config["dit"], "sample": whole.config["sample"]}
        mine, other = ("dit_low", "dit") if begun["expert"] == "low" else ("dit", "dit_low")
        model.params |= {mine: model.params["dit"], other: whole.params[other]}
    if config["task"] == "vae" and not stands:
        model.params["vae"] |= latent_statistics(model, config)
    model.save(out, dtype)
    return model


def latent_statistics(model: Model, config: dict, batches: int = 24) -> dict[str, Array]:
    """{"latent_mean", "latent_std"} [c] of the VAE's posterior means over batches of the clips it is trained on.

    Each channel has its own mean and all have one std, as in latent diffusion (arXiv:2112.10752, its scale factor):
    what is strong in the latents stays strong, and is painted first.
    """
    moments = jax.jit(lambda params, video: model.vae.apply({"params": params}, video, method="moments")[0])
    count, total, square = 0, 0.0, 0.0
    for _, (batch, _) in zip(
        range(batches), pipeline.clips(ConfigDict(config["data"]), seed=config["seed"], cursor=None)
    ):
        mean = np.asarray(
            moments(model.params["vae"], jnp.asarray(batch["video"], jnp.float32) / 127.5 - 1), np.float64
        )
        count += mean[..., 0].size
        total, square = total + mean.sum((0, 1, 2, 3)), square + (mean**2).sum((0, 1, 2, 3))
    center = total / count
    spread = np.full_like(center, np.sqrt(np.maximum(np.mean(square / count - center**2), 1e-12)))
    return {"latent_mean": jnp.asarray(center, jnp.float32), "latent_std": jnp.asarray(spread, jnp.float32)}
