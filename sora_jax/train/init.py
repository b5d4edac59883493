"""The weights that a training begins with, or keeps still: those of the model folder that `config.init` names."""

import jax
import jax.numpy as jnp

from sora_jax.errors import InputError
from sora_jax.model import load
from sora_jax.models import dit, vae
from sora_jax.train.log import say

LATE = {*dit.LATE, *vae.LATE}
FOLDER = ("vae", "text", "dit", "captioner", "expander")  # the parts of a model folder that are trained


def begun(name: str, params: dict, expert: str = "") -> dict:
    """{"params", "ema"}: the weights of the model folder, of `params`' shapes and on their devices. As drawn stay a
    LoRA and what the folder's DiT or VAE was trained without, where that adds nothing at first (their LATE).
    expert: "high" or "low", where it holds two transformers, the one that is trained.

    Raises InputError where the folder is no model, or one of other shapes.
    """
    like = {part: tree for part, tree in params.items() if part in FOLDER}
    began = jax.tree.map(jnp.array, taken(name, like, expert))  # copies
    return {"params": params | began, "ema": jax.tree.map(jnp.copy, params | began)}


def taken(name: str, like: dict, expert: str = "") -> dict:
    """The model folder's weights of the shapes and types and on the devices of `like`; of two transformers those of the
    `expert`. Raises InputError as `begun`, and where no model is named."""
    if not name:
        raise InputError(f"{' and '.join(sorted(like))} would stay as drawn: give --config.init, the model they are of")
    params = load(name, host=True).params  # transformers go where they will lie, by no way over one device
    if expert and "dit_low" not in params:
        raise InputError(f"config.expert is {expert!r}, but config.init = {name} holds no two transformers")
    given = flat(params | ({"dit": params["dit_low"]} if expert == "low" else {}))
    late: set[str] = set()

    def take(path, x):
        path = jax.tree_util.keystr(path, simple=True, separator=".")
        if hasattr(given.get(path), "qvalue"):
            raise InputError(f"config.init = {name} is a model in 8 bits, to paint with: train the one it was made of")
        names = path.split(".")
        if path not in given and isinstance(x, jax.Array) and LATE & set(names[:2]):
            late.add(".".join(names[:2]))
            return x
        if path not in given or given[path].shape != x.shape:
            has = f"is {list(given[path].shape)} there" if path in given else "is not there"
            raise InputError(f"config.init = {name} is a model of another kind: {path} {has}, {list(x.shape)} here")
        return jax.device_put(given[path].astype(x.dtype), x.sharding)

    weights = jax.tree_util.tree_map_with_path(take, like)
    if late:
        say(f"{name} was trained without {', '.join(sorted(late))}: they begin at nothing")
    return weights


def flat(tree: dict, prefix: str = "") -> dict:
    """{'opt': {'lr': 1}} -> {'opt.lr': 1}."""
    leaves = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves
