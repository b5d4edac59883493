"""Other people's checkpoints into a model folder, and back, tensor by tensor.

What goes in is looked up in a family's table of names before a byte is written: a name without a place, or a place
without a name, is an error that lists them. A folder's files are as large as they will be from the beginning, and every
tensor goes straight to where it belongs, block i of a stack into slice i, so that memory holds one tensor, not a model.
Values are stored in the type they came in: import(export(model)) is the model, bit for bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from sora_jax.errors import InputError, local
from sora_jax.model import FORMAT, flat
from sora_jax.weights import files, published, umt5, unigram, wan, wan_vae
from sora_jax.weights.files import Tensor, Writer
from sora_jax.weights.names import Place, places

FAMILIES: dict[str, ModuleType] = {"dit": wan, "text": umt5, "vae": wan_vae}  # by what they are in a model folder
# a second transformer, for low noise, by the name of its folder
LOW = ("low_noise_model", "transformer_2")
FOLDERS = {"dit": "transformer", "dit_low": "transformer_2", "text": "text_encoder", "vae": "vae"}  # diffusers' names
TOKENIZER = "spiece.model"
ROW = 4096  # patches by which a row of imported models grows: 81 frames of 480x832 are 7.998 of them
SHARD = 5 * 10**9  # bytes of a file that export writes, as diffusers does
LISTED = 20  # names in an error, at most


class Found(NamedTuple):
    """A checkpoint that a family knows: its tensors by the family's names, and where each goes in our tree."""

    part: str  # "dit", "dit_low", "text" or "vae"
    fields: dict
    tensors: dict[str, Tensor]
    places: dict[str, Place]
    ours: dict[str, tuple[int, ...]]  # shapes of our parameters
    constants: dict[str, np.ndarray]  # those of them that no tensor holds


def import_(sources: Sequence[str | os.PathLike], out: str | os.PathLike) -> dict:
    """Writes the checkpoints of files and folders as (parts of) the model folder `out`; says what was written.

    A folder that holds a model already gets the parts that were found, beside or in place of its own.
    Raises InputError: nothing to import, an unknown checkpoint, names unmatched or unfilled, shapes that do not fit.
    """
    sources, out = [Path(source) for source in sources], local(out)
    parts: dict[str, Found] = {}
    for source in sources:
        if (source / "model.json").is_file():
            raise InputError(f"{source} is a model folder of sora_jax already: use it as it is")
        if source.name in (TOKENIZER, unigram.NAME):
            continue
        for paths in files.checkpoints(source):
            found = identify(paths)
            if found.part in parts:
                before = next(iter(parts[found.part].tensors.values())).path
                raise InputError(f"{before} and {paths[0]} are both a {found.part}: give one of them")
            parts[found.part] = found
    tokenizer = tokenizer_of(sources)
    if not parts and tokenizer is None:
        raise InputError(f"there is no checkpoint in {', '.join(map(str, sources))}")
    if out.exists() and not (out / "model.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something that is not a model: choose another place for it")
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((out / "model.json").read_text()) if (out / "model.json").exists() else {"format": FORMAT}
    written: list[tuple[Path, Path]] = []
    try:
        for part, found in parts.items():
            written.append((out / f".{part}.safetensors.part", out / f"{part}.safetensors"))
            fill(found, written[-1][0])
            config[part] = found.fields
        if tokenizer is not None:
            written.append((out / ".tokenizer.part", out / "tokenizer.model"))
            written[-1][0].write_bytes(tokenizer)
        if "dit" in config and parts.keys() & {"dit", "dit_low"}:
            config |= painting(config)
        written.append((out / ".model.json.part", out / "model.json"))
        written[-1][0].write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        for part, path in written:
            part.replace(path)
    finally:
        for part, _ in written:
            part.unlink(missing_ok=True)
    counts = {part: sum(int(np.prod(shape)) for shape in found.ours.values()) for part, found in parts.items()}
    return {"path": str(out), "parameters": counts, "tokenizer": tokenizer is not None}


def tokenizer_of(sources: Sequence[Path]) -> bytes | None:
    """The first sentencepiece model of files and folders, or what a tokenizer.json is as one; None where neither is.

    Raises InputError for a tokenizer.json that is not of T5's kind.
    """
    for name, read in ((TOKENIZER, Path.read_bytes), (unigram.NAME, unigram.model)):
        for source in sources:
            found = [source] if source.is_file() else sorted(source.rglob(name))
            if found and found[0].name == name:
                return read(found[0])
    return None


def painting(config: Mapping) -> dict:
    """The groups `flow` and `sample` of a model with such a DiT, and with a second one for low noise, if it has one."""
    how = published.like(config["dit"], 1 + ("dit_low" in config))
    sample = {"row": ROW, "text_row": published.TEXT["rows"], "steps": how.steps}
    sample |= {"guidance": list(how.guidance) if how.switch else how.guidance[0], "solver": "unipc"}
    sample |= {"fps": how.fps, "frames": how.frames} | ({"switch": how.switch} if how.switch else {})
    return {"flow": {"predict": "velocity", "shift": how.shift, "timesteps": 1000}, "sample": sample}


def identify(paths: Sequence[Path]) -> Found:
    """Which part of a model a checkpoint is, by its names. Raises InputError as `import_`."""
    tensors = files.tensors(paths)
    for part, family in FAMILIES.items():
        for dialect, mark in family.MARKS.items():
            named = next((name for name in tensors if name == mark or name.endswith(f".{mark}")), None)
            if named is None:
                continue
            prefix = named.removesuffix(mark)  # such as "model.", of those who saved a module of another
            bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            low = part == "dit" and paths[0].parent.name in LOW
            return matched("dit_low" if low else part, family, dialect, bare, paths)
    few = listed(tensors)
    raise InputError(f"{paths[0]} is no model that is known here: leave it out; it holds {few or 'nothing'}")


def matched(part: str, family: ModuleType, dialect: str, tensors: dict[str, Tensor], paths: Sequence[Path]) -> Found:
    """The tensors with their places. Raises InputError, listing names that have no place, and places that none fills,
    and for a shape that is not what the model needs."""
    for second, first in family.ALIASES.items():
        tensor = tensors.pop(second, None)
        if tensor is not None:
            tensors.setdefault(first, tensor)
    try:
        beside = json.loads((paths[0].parent / "config.json").read_text())
    except (OSError, ValueError):
        beside = {}
    try:
        fields = family.fields({name: tensor.shape for name, tensor in tensors.items()}, beside)
        constants = family.constants(fields, beside) if family.CONSTANTS else {}
    except (KeyError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{paths[0]} lacks {error}, or has it in another shape") from None
    where = places(family.names(fields), dialect, fields.get("depth", 0))
    unknown, missing = sorted(tensors.keys() - where.keys()), sorted(where.keys() - tensors.keys())
    sides = [f"it has no place for {listed(unknown)}"] * bool(unknown) + [f"it lacks {listed(missing)}"] * bool(missing)
    if sides:
        raise InputError(
            f"{paths[0]} is not wholly a {part} of {family.__name__.rpartition('.')[2]}: {'; '.join(sides)}"
        )
    ours: dict[str, tuple[int, ...]] = {path: value.shape for path, value in constants.items()}
    for name, place in where.items():
        try:
            # a view of one value: a shape without a tensor
            shape = place.layout.ours(np.broadcast_to(np.zeros((), np.uint8), tensors[name].shape)).shape
        except Exception:
            raise InputError(f"{paths[0]}: {name} is {list(tensors[name].shape)}, which cannot be") from None
        full = shape if place.index is None else (fields["depth"], *shape)
        if ours.setdefault(place.ours, full) != full:
            raise InputError(f"{paths[0]}: {name} is {list(tensors[name].shape)}, unlike those of the blocks before")
    for path, leaf in flat(family.shapes(fields, ours)).items():
        if ours.pop(path) != tuple(leaf.shape):
            name = next(name for name, place in where.items() if place.ours == path)
            raise InputError(f"{paths[0]}: {name} is {list(tensors[name].shape)}; ours needs {list(leaf.shape)} in all")
        ours[path] = tuple(leaf.shape)
    return Found(part, fields, tensors, where, ours, constants)


def fill(found: Found, path: Path) -> None:
    """Writes the part's safetensors: each tensor read, laid out, and put where it belongs, in the order of the files.

    A stack whose blocks are of several types gets the widest.
    """
    types: dict[str, np.dtype] = {}
    for name, place in found.places.items():
        types[place.ours] = np.promote_types(
            found.tensors[name].dtype, types.get(place.ours, found.tensors[name].dtype)
        )
    types |= {ours: value.dtype for ours, value in found.constants.items()}
    with Writer(path, {ours: (types[ours], shape) for ours, shape in found.ours.items()}) as writer:
        for ours, value in found.constants.items():
            writer.write(ours, value)
        for name, tensor in sorted(found.tensors.items(), key=lambda item: (item[1].path, item[1].offset)):
            place = found.places[name]
            writer.write(place.ours, place.layout.ours(files.read(tensor)), place.index)


def listed(names: Iterable[str]) -> str:
    """Names in a sentence, not more than LISTED."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


# ------------------------------------------------------------------------------------------------ the way back


def export(model: str | os.PathLike, out: str | os.PathLike, dialect: str = "diffusers") -> dict:
    """Writes a model folder's parts as diffusers and transformers read them, each into its folder of `out`.

    Raises InputError when there is no model, `out` is not empty, or the model is not Wan's and has a noise shift for
    every size.
    """
    folder, out = Path(model), local(out)
    if not (folder / "model.json").is_file():
        raise InputError(f"{model} is not a model folder: it has no model.json")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty: choose another place")
    config = json.loads((folder / "model.json").read_text())
    if "flow" in config and "shift" not in config["flow"]:
        raise InputError(
            f"{model} has a noise shift that depends on the clip's size, which diffusers' Wan does not know"
        )
    written = {}
    for part, fields in config.items():
        family = FAMILIES.get("dit" if part == "dit_low" else part)
        if family is None:
            continue
        ours = files.safetensors(folder / f"{part}.safetensors")
        constants = {path: files.read(ours.pop(path)) for path in family.CONSTANTS if path in ours}
        where = places(family.names(fields), dialect, fields.get("depth", 0))
        stray = sorted(ours.keys() ^ {place.ours for place in where.values()})
        if stray:
            raise InputError(f"{folder} is no model of this family, and has no layout there: {listed(stray)}")
        home = out / FOLDERS[part]
        home.mkdir(parents=True)
        found = {name: tensor.shape for name, tensor in ours.items()}
        (home / "config.json").write_text(json.dumps(family.published(fields, found, **constants), indent=2) + "\n")
        stem = "model" if part == "text" else "diffusion_pytorch_model"
        written[part] = [str(path) for path in write_shards(home, stem, ours, where)]
    if "flow" in config:
        pipeline(folder, out, config)
    return {"path": str(out), "files": written}


def pipeline(folder: Path, out: Path, config: Mapping) -> None:
    """What makes a WanPipeline of the parts: model_index.json, the scheduler's config and the tokenizer."""
    umt5 = "text" not in config or config["text"]["bias_every_layer"]
    parts = {"dit": ["diffusers", "WanTransformer3DModel"], "dit_low": ["diffusers", "WanTransformer3DModel"]}
    parts |= {"vae": ["diffusers", "AutoencoderKLWan"]}
    parts |= {"text": ["transformers", "UMT5EncoderModel" if umt5 else "T5EncoderModel"]}
    beside = {"given": 0, **config["dit"]}["given"]  # I2V: a picture's latents and a mask beside the noise
    kind = "WanImageToVideoPipeline" if beside else "WanPipeline"
    index = {"_class_name": kind, "scheduler": ["diffusers", "UniPCMultistepScheduler"]}
    index |= {FOLDERS[part]: kind if part in config else [None, None] for part, kind in parts.items()}
    index |= {part: [None, None] for part in ("image_encoder", "image_processor") if beside}
    index["boundary_ratio"] = config["sample"]["switch"] if "dit_low" in config else None
    index["expand_timesteps"] = config["dit"]["channels"] == 48  # the 5B: a noise level a patch
    scheduler = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "solver_order": 2}
    scheduler |= {"use_flow_sigmas": True, "num_train_timesteps": 1000, "flow_shift": config["flow"]["shift"]}
    scheduler |= {"solver_type": "bh2", "predict_x0": True, "final_sigmas_type": "zero"}
    (out / "scheduler").mkdir()
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    if (folder / "tokenizer.model").exists():
        index["tokenizer"] = ["transformers", "T5TokenizerFast"]
        (out / "tokenizer").mkdir()
        (out / "tokenizer" / TOKENIZER).write_bytes((folder / "tokenizer.model").read_bytes())
        kind = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>", "pad_token": "<pad>"}
        (out / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(kind, indent=2) + "\n")
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_shards(home: Path, stem: str, ours: Mapping[str, Tensor], where: Mapping[str, Place]) -> list[Path]:
    """Our tensors under their names and in their layouts, in files of at most SHARD bytes, listed by an index if there
    are several."""
    shards: list[dict] = [{}]
    size, total = 0, 0
    for name, place in where.items():
        tensor = part_of(ours[place.ours], place.index)
        shape = place.layout.theirs(np.broadcast_to(np.zeros((), np.uint8), tensor.shape)).shape
        bytes_ = int(np.prod(shape)) * tensor.dtype.itemsize
        if size + bytes_ > SHARD and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = (tensor.dtype, shape)
        size, total = size + bytes_, total + bytes_
    paths = [home / f"{stem}.safetensors"]
    if len(shards) > 1:
        paths = [home / f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        weights = {name: path.name for path, entries in zip(paths, shards) for name in entries}
        index = {"metadata": {"total_size": total}, "weight_map": weights}
        (home / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for path, entries in zip(paths, shards):
        with Writer(path, entries, {"format": "pt"}) as writer:
            for name in entries:
                place = where[name]
                writer.write(name, place.layout.theirs(files.read(part_of(ours[place.ours], place.index))))
    return paths


def part_of(tensor: Tensor, index: int | None) -> Tensor:
    """A slice of a stack, as a tensor of its own."""
    if index is None:
        return tensor
    shape = tensor.shape[1:]
    return tensor._replace(offset=tensor.offset + index * int(np.prod(shape)) * tensor.dtype.itemsize, shape=shape)
