"""LoRA (arXiv:2106.09685): a small change of a transformer, in files of others, in ours, and while it is trained.

    W' = W + weight * A B,    A [in r], B [r out]                                                        (1)

In memory a LoRA is what it adds, by the paths of what it adds to: `blocks/self/q/lora_a` and `lora_b`, stacked like the
kernels of their blocks, and beside them, as few-step LoRAs have them, whole differences under a parameter's own path
(`blocks/self/q/bias`). To paint, all that is added is added once, when the model is loaded; to train, equation (1) is
part of the loss, in which the weights stand still and A and B are learned: `models/` knows nothing of either.

Files, by the name of a module in one of the two layouts of `weights.wan`, after `diffusion_model.`, `transformer.`,
`base_model.model.` or nothing, or, as musubi-tuner writes it, with `_` for every dot after `lora_unet_`:

    .lora_A.weight, .lora_B.weight      PEFT's [r in], [out r]; lora_B.bias is added as it is multiplied
    .lora_down.weight, .lora_up.weight  the same; with .alpha, or PEFT's lora_alpha, B is multiplied by alpha / r
    .diff, .diff_b, .diff_m             differences of the weight, the bias, the modulation
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from safetensors import numpy as safetensors

from sora_jax.errors import InputError, local
from sora_jax.weights import files, wan
from sora_jax.weights.names import LAYOUTS, Place, places

Added = dict[str, np.ndarray]  # what a LoRA adds; see the file's head

# the matrices that are trained: all that are large
TRAINED = re.compile(r"blocks/((self|cross)/[qkvo]|mlp_up|mlp_down)/kernel")
PREFIX = re.compile(r"(?:base_model\.model\.)?(?:model\.)?(?:diffusion_model\.|(transformer_2)\.|transformer\.)?")
KEY = re.compile(r"(.+)\.(?:(lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.(weight|bias)|(alpha|diff|diff_b|diff_m))")
SIDE = {"lora_A": "a", "lora_down": "a", "lora_B": "b", "lora_up": "b"}
DIFFERENCES = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}


class Use(NamedTuple):
    """A LoRA's file, its weight, and of two transformers the one it is for: "high" or "low" noise, or "" for both."""

    file: str | os.PathLike
    weight: float = 1.0
    expert: str = ""


EXPERTS = {"": ("dit", "dit_low"), "high": ("dit",), "low": ("dit_low",)}


# ------------------------------------------------------------------------------------------------ in


def chosen(config: Mapping, uses: Sequence) -> dict[str, list[tuple[Added, float, str | os.PathLike]]]:
    """{"dit" or "dit_low": [(what is added, weight, file)]} for a model's config. A use is a file, or the fields of a
    Use; a file that says nothing of two transformers is for both, unless the use does.

    Raises InputError as `read`, and for a use or a file that this model has no transformer for.
    """
    parts, found = [part for part in ("dit", "dit_low") if part in config], {}
    uses = [uses] if isinstance(uses, str | os.PathLike) else uses
    for use in uses:
        use = Use(*use) if isinstance(use, tuple) else Use(use)
        if use.expert not in EXPERTS:
            raise InputError(f"{use.file} is for {use.expert!r}: say high or low, for noise, or nothing")
        there = read(use.file, config["dit"]) if parts else {}
        wanted = EXPERTS[use.expert] if "dit_low" in there or use.expert else parts
        here = [part for part in wanted if part in parts and (part in there or "dit_low" not in there)]
        if not here or ("dit_low" in there and "dit_low" not in parts):
            raise InputError(f"{use.file} is for a transformer that this model does not have")
        for part in here:
            found.setdefault(part, []).append((there.get(part) or there["dit"], use.weight, use.file))
    return found


def read(path: str | os.PathLike, fields: Mapping) -> dict[str, Added]:
    """What the LoRA in a file (or a folder with one) adds to a transformer of these fields, float32, under "dit"; under
    "dit_low" what it says of a second one (`transformer_2.`). alpha / r is already in B.

    Raises InputError: no such file, or a damaged one; names without a place, listed; a half of a pair without the
    other; shapes that do not fit.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in files.SUFFIXES)
        if len(found) != 1:
            raise InputError(f"{path} holds {len(found)} files of weights: name the LoRA's own")
        path = found[0]
    if not path.is_file():
        raise InputError(f"there is no LoRA {path}")
    tensors = files.tensors([path])
    slots, alphas = modules(fields), Alphas(path)
    parts: dict[str, dict[str, dict[str, np.ndarray]]] = {}  # part, module, what: tensor
    strangers = []
    for name, tensor in tensors.items():
        prefix = PREFIX.match(name)
        key = KEY.fullmatch(name[prefix.end() :])
        module = key and (key[1] if key[1] in slots else unflattened(key[1], slots))
        what = key and (key[4] or SIDE[key[2]] + key[3].removeprefix("weight"))
        if not module or what == "abias" or not slot_of(what, slots[module]):
            strangers.append(name)
            continue
        part = parts.setdefault("dit_low" if prefix[1] else "dit", {})
        part.setdefault(module, {})[what] = np.asarray(files.read(tensor), np.float32)
    if strangers or not parts:
        few = ", ".join(sorted(strangers)[:20]) or "nothing"
        raise InputError(f"{path} is no LoRA of this model's transformer: there is no place for {few}")
    return {part: stacked(path, named, slots, alphas, fields["depth"]) for part, named in parts.items()}


def modules(fields: Mapping) -> dict[str, dict[str, Place]]:
    """{module of either layout: {"weight" | "bias" | "modulation": Place}}; no name means two things."""
    slots: dict[str, dict[str, Place]] = {}
    for dialect in ("original", "diffusers"):
        for name, place in places(wan.names(fields), dialect, fields["depth"]).items():
            module, _, what = name.rpartition(".")
            slots.setdefault(module, {})["modulation" if what == "scale_shift_table" else what] = place
    return slots


def unflattened(name: str, slots: Mapping) -> str | None:
    """The module that musubi-tuner calls `lora_unet_blocks_0_ffn_2`; None if there is none."""
    known = {f"lora_unet_{module.replace('.', '_')}": module for module in slots}
    return known.get(name)


def slot_of(what: str, slot: Mapping[str, Place]) -> bool:
    """Whether a module has what a key of a LoRA speaks of; only kernels are matrices."""
    if what in DIFFERENCES:
        return DIFFERENCES[what] in slot
    return "weight" in slot and slot["weight"].ours.endswith("kernel") and (what != "bbias" or "bias" in slot)


class Alphas:
    """PEFT's settings of a LoRA: in the header of the file, as diffusers writes them, or in adapter_config.json."""

    def __init__(self, path: Path):
        try:
            beside = json.loads((path.parent / "adapter_config.json").read_text())
        except (OSError, ValueError):
            beside = {}
        told = files.about(path).get("lora_adapter_metadata") if path.suffix == ".safetensors" else None
        self.settings = {k.removeprefix("transformer."): v for k, v in json.loads(told).items()} if told else beside

    def scale(self, module: str, rank: int, alpha: float | None) -> float:
        """What multiplies A B: the tensor's alpha, that of a pattern the name ends in, or lora_alpha, over r."""
        if alpha is None:
            patterns = self.settings.get("alpha_pattern") or {}
            found = [value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)]
            alpha = found[0] if found else self.settings.get("lora_alpha") or rank
        return alpha / (rank**0.5 if self.settings.get("use_rslora") else rank)


def stacked(path: Path, named: Mapping, slots: Mapping, alphas: Alphas, depth: int) -> Added:
    """Modules' tensors in our layouts, blocks on top of each other: zeros for blocks without, and for missing ranks."""
    pieces: dict[str, dict[int | None, np.ndarray]] = {}
    for module, has in named.items():
        weight, bias = slots[module].get("weight"), slots[module].get("bias")
        try:
            if ("a" in has) != ("b" in has):
                raise ValueError("has only one of the two matrices")
            if "a" in has:
                rank = len(has["a"])
                scale = alphas.scale(module, rank, float(has["alpha"].item()) if "alpha" in has else None)
                # a matrix of ranks is laid out as the weight: (r, c, f, h, w) of patches is (f h w c, r)
                here = {"lora_a": weight.layout.ours(has["a"]), "lora_b": has["b"].reshape(-1, rank).T}
                here["lora_b"] = here["lora_b"] if scale == 1 else here["lora_b"] * np.float32(scale)
                root = weight.ours.removesuffix("kernel")
                for what, value in here.items():
                    pieces.setdefault(root + what, {})[weight.index] = value
                if "bbias" in has:
                    has = {**has, "diff_b": has.get("diff_b", 0) + has["bbias"] * np.float32(scale)}
            for what, of in DIFFERENCES.items():
                if what in has:
                    place = bias if of == "bias" else slots[module][of]
                    pieces.setdefault(place.ours, {})[place.index] = place.layout.ours(has[what])
        except Exception as error:  # whatever a tensor of another shape makes of a layout
            raise InputError(f"{path}: {module} is no LoRA of this transformer ({error})") from None
    added = {}
    for ours, of in pieces.items():
        if None in of:
            added[ours] = np.ascontiguousarray(of[None])
            continue
        try:
            shape = np.max([value.shape for value in of.values()], 0)  # of all blocks' ranks the largest
            added[ours] = np.zeros((depth, *shape), np.float32)
            for i, value in of.items():
                added[ours][(i, *map(slice, value.shape))] = value
        except ValueError:
            raise InputError(f"{path}: blocks of {ours} are of different shapes") from None
    return added


def merged(tensors: Mapping[str, np.ndarray], loras: Sequence[tuple[Added, float, str | os.PathLike]]) -> dict:
    """Parameters by their paths with all (LoRA, weight, its file) added, block by block in float32, and rounded once
    to the type they are stored in. Raises InputError, naming the file, for a shape that does not fit."""
    tensors, terms = dict(tensors), {}
    for added, weight, file in loras:
        for path, value in added.items():
            ours, what = ours_of(path), path.rpartition("/")[2]
            need = tensors[ours].shape
            if what == "lora_a":
                need = (*need[:-1], value.shape[-1])
            elif what == "lora_b":
                need = (*need[:-2], value.shape[-2], need[-1])
            if value.shape != need:
                raise InputError(f"{file} is for another transformer: {path} is {list(value.shape)}, not {list(need)}")
            if what != "lora_b":
                second = added[path[:-1] + "b"] if what == "lora_a" else None
                terms.setdefault(ours, []).append((value, second, np.float32(weight)))
    for ours, adding in terms.items():
        tensors[ours] = whole = np.array(tensors[ours])
        for i in range(len(whole)) if ours.startswith("blocks/") else (slice(None),):
            total = whole[i].astype(np.float32)
            for first, second, weight in adding:
                total += weight * (first[i] if second is None else first[i] @ second[i])
            whole[i] = total.astype(whole.dtype)
    return tensors


def ours_of(path: str) -> str:
    """The path of the parameter that something of a LoRA is added to."""
    return re.sub("lora_[ab]$", "kernel", path)


# ------------------------------------------------------------------------------------------------ trained


def begin(key: Array, params: Mapping, rank: int) -> dict:
    """A LoRA of a transformer's parameters that changes nothing yet: A uniform in +-1/sqrt(in), as PEFT's, and B zero.

    Raises InputError for a rank below 1, or above what a matrix of the transformer has.
    """
    from sora_jax.model import flat, unflat

    added = {}
    for i, (path, w) in enumerate(sorted(flat(params).items())):
        if TRAINED.fullmatch(path):
            *stack, n, out = w.shape
            if not 1 <= rank <= min(n, out):
                raise InputError(f"config.lora.rank is {rank}; it must be 1 to {min(n, out)} for {path}")
            a = jax.random.uniform(jax.random.fold_in(key, i), (*stack, n, rank), minval=-1, maxval=1) / np.sqrt(n)
            root = path.removesuffix("kernel")
            added |= {root + "lora_a": a, root + "lora_b": jnp.zeros((*stack, rank, out))}
    return unflat(added)


def shapes(params: Mapping, rank: int) -> dict:
    """The shapes of a LoRA of parameters of these shapes, as a tree."""
    return jax.eval_shape(lambda: begin(jax.random.key(0), params, rank))


def applied(params: dict, lora: Mapping, weight: float = 1.0) -> dict:
    """Equation (1) for all of a transformer's parameters, in JAX: of the types they have, computed in float32."""
    from sora_jax.model import flat, unflat

    leaves, added = flat(params), flat(lora)
    for path, value in added.items():
        if path.endswith("lora_b"):
            continue
        if path.endswith("lora_a"):
            value = jnp.matmul(value, added[path[:-1] + "b"], precision=jax.lax.Precision.HIGHEST)
        ours = ours_of(path)
        leaves[ours] = (leaves[ours] + weight * value).astype(leaves[ours].dtype)
    return unflat(leaves)


# ------------------------------------------------------------------------------------------------ out


def export(workdir: str | os.PathLike, out: str | os.PathLike) -> list[str]:
    """Writes the averaged LoRA of a training workdir's newest checkpoint in PEFT's keys; returns the tensors' names.

    Raises InputError when the workdir is not of a LoRA, has no checkpoint, or `out` is no .safetensors.
    """
    from sora_jax.model import dit_shapes, flat
    from sora_jax.train import checkpoint  # training's packages, which sampling does without

    workdir = checkpoint.located(workdir)
    if not (workdir / "config.json").is_file():
        raise InputError(f"{workdir} is not a training workdir: it has no config.json")
    if local(out).suffix != ".safetensors":
        raise InputError(f"{out} is no place for a LoRA: give a name that ends in .safetensors")
    config = json.loads((workdir / "config.json").read_text())
    rank = {"lora": {"rank": 0}, **config}["lora"]["rank"]
    if not rank:
        raise InputError(f"{workdir} has trained no LoRA: export it as a model, without --format lora")
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {"lora": shapes(dit_shapes(config["dit"], config["text"]["width"]), rank)}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    restored = checkpoint.restore(workdir / "checkpoints", {"ema": like})
    if restored is None:
        raise InputError(f"{workdir} has no checkpoint yet: train it for longer")
    added = {path: np.asarray(x) for path, x in flat(restored[0]["ema"]["lora"]).items()}
    expert = {"expert": "", **config}["expert"]
    if expert == "high":  # `transformer.` means both where there are two
        print(f"of the transformer of high noise: painting takes it by --lora {out}=1:high", file=sys.stderr)
    return write(out, added, config["dit"], low=expert == "low")


def write(
    path: str | os.PathLike, added: Added, fields: Mapping, dialect: str = "diffusers", low: bool = False
) -> list[str]:
    """A LoRA as a file in PEFT's keys after `transformer.`, which diffusers loads, or, with dialect "original", after
    `diffusion_model.`, as its authors name modules. alpha is r. low: of the second transformer, which diffusers names
    `transformer_2.`. Returns the names of its tensors.

    Raises InputError for what has no key in PEFT: a difference that is not of a bias beside matrices.
    """
    path, original = local(path), dialect == "original"
    prefix = "diffusion_model." if original else "transformer_2." if low else "transformer."
    tensors, left = {}, set(added)

    def put(name: str, ours: str, i: int | None, turn) -> None:
        tensors[name] = np.ascontiguousarray(turn(added[ours] if i is None else added[ours][i]))
        left.discard(ours)

    for name, (ours, i, layout) in places(wan.names(fields), dialect, fields["depth"]).items():
        (root, _, what), module = ours.rpartition("/"), prefix + name.rpartition(".")[0]
        pair = f"{root}/lora_a" in added
        if what == "kernel" and pair:
            put(f"{module}.lora_A.weight", f"{root}/lora_a", i, layout.theirs)
            # beside a convolution of patches, B is one of single positions
            ones = (1, 1, 1) if layout is LAYOUTS["patch"] else ()
            put(f"{module}.lora_B.weight", f"{root}/lora_b", i, lambda b, ones=ones: b.T.reshape(*b.T.shape, *ones))
        if ours in added and original:
            end = "_m" if what.endswith("modulation") else "_b" if what == "bias" else ""
            put(f"{module}.diff{end}", ours, i, layout.theirs)
        elif ours in added and what == "bias" and pair:
            put(f"{module}.lora_B.bias", ours, i, layout.theirs)
    if left:
        raise InputError(f"a LoRA in PEFT's keys has no place for {', '.join(sorted(left)[:20])}")
    safetensors.save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)
    return sorted(tensors)
