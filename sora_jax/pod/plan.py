"""A step planned before it is paid for: compiled ahead of time for named TPU chips, on a machine that has none.

    sora-jax plan --config configs/dit.py:wan-14b --topology v5p:8x8x8 --mesh fsdp=64,context=8

What is compiled is what runs: `train.loop.prepare`'s update, the sampler's `denoise`, the VAE's streamed chunk. From
the compiler come the memory and the program; from the jaxpr the FLOPs (`pod.count`); from the program's text what each
device moves and sends (`pod.hlo`); from the table of chips what that takes at best (`pod.roofline`).
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import time
from collections.abc import Mapping
from functools import partial

import jax

from sora_jax.errors import InputError
from sora_jax.pod import chips, count, hlo, roofline, steps
from sora_jax.pod import mesh as pod
from sora_jax.pod.context import check_heads

LIMITS = (
    "A static roofline is no measurement: kernels reach less than the peak, and more or less runs beside each other.",
    "Not seen: reading data on the hosts, checkpoints, evaluations, stragglers, restarts.",
    "A row counts as one clip, the dearest it can hold; shorter clips attend to less.",
)
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}


def plan(
    config,
    topology: str,
    *,
    slices: int = 1,
    task: str = "train",
    tokens: float | None = None,
    size: tuple[int, int] = (1920, 1080),
) -> dict:
    """The plan of a config's step (mesh, rows and row length as the config says) on slices of TPU chips.

    task: "train", "sample" (one guided step of the sampler) or "vae-decode" (one streamed chunk of frames of `size`,
    width and height). tokens: what to train on, for days and chip-hours. The result is the JSON that --json prints.
    Raises InputError: libtpu is not installed, no such topology, a mesh, heads, rows or a row that do not divide.
    """
    chip, shape = chips.topology(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("planning compiles with libtpu, which is not here: pip install 'sora_jax[train,tpu]'")
    if tokens is not None and not 0 < tokens < math.inf:
        raise InputError(f"{tokens:g} tokens to train on: give more than 0")
    if slices < 1:
        raise InputError(f"{slices} slices: give --slices 1 or more")
    mesh = pod.make(config.mesh, devices(chip, shape, slices))
    check(config, mesh, task)
    make = {"train": steps.trained, "sample": steps.sampled, "vae-decode": partial(steps.decoded, size=size)}
    step = make[task](config, mesh)
    began = time.monotonic()
    traced = step.function.trace(*step.arguments)
    work = count.count(traced.jaxpr, mesh.size)
    facts = {
        "topology": topology,
        "slices": slices,
        "chips": math.prod(shape) * slices,
        "devices": mesh.size,
        "task": task,
        "mesh": dict(mesh.shape),
        "remat": {"remat": config.dit.remat, "keep": config.dit.keep} if "dit" in config else None,
        "step": step.facts,
        "bytes_least": least(config, dict(mesh.shape), *step.arguments[::2]) if task == "train" else None,
        "parameters": step.parameters,
        "flops": flops(work, step.model_flops),
    }
    lowered = traced.lower()
    print(f"traced in {time.monotonic() - began:.0f} s; compiling for {mesh.size} devices", file=sys.stderr)
    usable = chip.hbm_usable / chip.devices_per_chip
    # Memory comes out within 1 % of the default level's, in half the time; older versions do not know the option.
    options = {"optimization_level": "O1"} if jax.__version_info__ >= (0, 11) else None
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or "hbm" not in str(error).lower():
            raise  # other memories are a kernel's matter
        facts["memory"] = refused(str(error), step.held, usable)
        return {**facts, "fits": False, "seconds_to_compile": round(time.monotonic() - began, 1), "limits": LIMITS}
    facts["memory"] = memory(compiled.memory_analysis(), step.held, usable)
    facts["seconds_to_compile"] = round(time.monotonic() - began, 1)
    return estimate(facts, chip, shape, mesh, compiled.as_text(), work, tokens)


def estimate(facts: dict, chip, shape, mesh, text: str, work: Mapping[str, float], tokens: float | None) -> dict:
    """The facts of a compiled step and all that follows from its program's text."""
    compute, collectives, unknown = hlo.read(text, [device.id for device in mesh.devices.flat])
    kernels = (work["attention"] + work["attention backward"]) / mesh.size
    has_kernels = any(each.kind == "kernel" for each in compute)
    seconds = roofline.times(chip, shape, mesh, compute, collectives, kernels if has_kernels else 0.0)
    peak = facts["chips"] * chip.flops
    done = facts["flops"]["model"]
    per_step = facts["step"]["tokens"]
    bound = {name: done / peak / seconds[name] for name in ("serial", "overlapped")} if done else None
    products = sum(each.times * each.flops for each in compute) * mesh.size
    counted = work["matmul"] + work["convolution"] + (0.0 if has_kernels else kernels * mesh.size)
    facts |= {
        "fits": True,  # else the compiler had refused: it is the judge
        "collectives": roofline.traffic(mesh, collectives),
        "bytes_sent": {link: sum(roofline.split(mesh, c)[i] * c.times for c in collectives) for i, link in LINKS},
        "hbm_bytes": sum(each.times * each.bytes for each in compute),
        "products_in_program": products,
        "copies_of_work": products / counted if counted else None,
        "seconds": seconds,
        "mfu_bound": bound,
        "tokens_per_second": {name: per_step / seconds[name] for name in ("serial", "overlapped")},
        "loops_of_unknown_length": unknown,
        "limits": LIMITS,
    }
    if tokens is not None:
        facts["run"] = {name: run(tokens, facts, chip, name) for name in ("serial", "overlapped")}
    return facts


LINKS = ((0, "ici"), (1, "dcn"))


def run(tokens: float, facts: dict, chip, name: str) -> dict:
    """Days, chip-hours and list price (None where none is known) of training on so many tokens at a bound."""
    hours = tokens / facts["tokens_per_second"][name] / 3600
    spent = hours * facts["chips"]
    price = None if chip.price is None else spent * chip.price
    return {"tokens": tokens, "days": hours / 24, "chip_hours": spent, "usd": price}


def flops(work: Mapping[str, float], model: float | None) -> dict:
    """Model FLOPs, executed FLOPs and their ratio.

    Attention's backward pass has five products of scores' size where the formula has four: it recomputes the scores
    and would with all memory in the world. `recompute` leaves that out, `executed_over_model` does not.
    """
    executed = sum(work.values())
    again = work["attention backward"] / 5
    ratio = executed / model if model else None
    recompute = (executed - again) / model if model else None
    return {"model": model, "executed": executed, "by_kind": dict(work), "executed_over_model": ratio,
            "recompute": recompute}  # fmt: skip


def least(config, mesh: Mapping[str, int], state: Mapping, frozen: Mapping) -> dict[str, float]:
    """Bytes that one device must send within its slice in a training step, in bfloat16, if nothing were sent twice.

    weights: gathered for the forward and for the backward pass, their gradients scattered (FSDP); of what is frozen
    there is no gradient, and behind a text encoder that is, no backward pass. heads: q, k, v and
    the result traded for patches and back, in both passes (Ulysses); what remat repeats of it is not in here, nor
    tensor parallelism. keys: k and v around the ring in both passes, and their gradients.
    """
    cut = mesh["fsdp"] * mesh["ring"] * mesh["ulysses"]
    ring, ulysses, dit = mesh["ring"], mesh["ulysses"], config.dit
    rows = max(1.0, config.data.rows / (mesh["data"] * mesh["fsdp"]))
    passes = {"text": 1, "dit": 2}
    passed = 3 * steps.size_of(state["params"]) + sum(passes[part] * steps.size_of(frozen[part]) for part in frozen)
    part = 2 * rows * config.data.row / (ring * ulysses) * dit.width / mesh["tensor"] * dit.depth
    return {
        "weights": 2 * passed / mesh["tensor"] * (cut - 1) / cut,
        "heads": 8 * part * (ulysses - 1) / ulysses,
        "keys": 2 * part * (2 * (ring - 1) + ring) if ring > 1 else 0.0,
    }


# ------------------------------------------------------------------------------------------------ search


def search(config, topology: str, **options) -> list[dict]:
    """What fits: on the config's mesh and with context twice and half as wide, and for every way to keep what training
    would recompute, the longest row. The rows of a result are {mesh, keep, row, total, ...}.

    Each try is one compilation; what does not fit is refused within seconds to a minute.
    Raises InputError for a config without rows, a VAE's, and as `plan` does.
    """
    if "dit" not in config:
        raise InputError(
            "--search looks for the longest row of a DiT, such as configs/dit.py:wan-14b; a VAE has no rows"
        )
    chip, shape = chips.topology(topology)
    check(config, pod.make(config.mesh, devices(chip, shape, options.get("slices", 1))), options.get("task", "train"))
    ways = ("heads", "attention", "nothing") if options.get("task", "train") == "train" else (config.dit.keep,)
    found = []
    for mesh in meshes(config, topology, options.get("slices", 1)):
        row = config.data.row
        for keep in ways:
            if best := longest(config, topology, mesh, keep, row, options):
                found.append(best)
                row = best["row"]  # who keeps less takes as much
    return found


def longest(config, topology: str, mesh: Mapping[str, int], keep: str, row: int, options: Mapping) -> dict | None:
    """The longest row that fits, found from `row` by doubling what fits, or else by halving what does not."""
    best, shrinking = None, False
    while row >= 1024 and not (best and shrinking):
        facts = tried(config, topology, mesh, keep, row, options)
        if facts and facts["fits"]:
            best = {"mesh": mesh, "keep": keep, "row": row, "recompute": facts["flops"]["recompute"]}
            best |= {name: facts["memory"][name] for name in ("total", "usable")}
            best |= {name: facts[name] for name in ("mfu_bound", "tokens_per_second")}
        elif best:
            break
        else:
            shrinking = True
        row = row // 2 if shrinking else row * 2
    return best


def tried(config, topology: str, mesh: Mapping[str, int], keep: str, row: int, options: Mapping) -> dict | None:
    """One plan of a search; None where the mesh, the row or a kernel does not take it."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.mesh.update(mesh)
        config.data.row, config.dit.keep = row, keep
    spelled = ", ".join(f"{name}={n}" for name, n in mesh.items())
    try:
        facts = plan(config, topology, **options)
    except InputError as error:
        print(f"{spelled}, keep {keep}, row {row:,}: {error}", file=sys.stderr)
        return None
    print(f"{spelled}, keep {keep}, row {row:,}: {'fits' if facts['fits'] else 'does not fit'}", file=sys.stderr)
    return facts


def meshes(config, topology: str, slices: int) -> list[dict[str, int]]:
    """The config's mesh, and those with twice and half its context at fsdp's cost, where heads and rows divide."""
    chip, shape = chips.topology(topology)
    sizes = dict(pod.make(config.mesh, devices(chip, shape, slices)).shape)
    data, fsdp, tensor, ring = (sizes[name] for name in ("data", "fsdp", "tensor", "ring"))
    wide = ring * sizes["ulysses"]
    found = [{"data": data, "fsdp": fsdp, "context": wide, "ring": ring, "tensor": tensor}]
    for fsdp2, wide2 in ((fsdp // 2, wide * 2), (fsdp * 2, wide // 2)):
        ulysses = wide2 // ring
        if fsdp2 and ulysses and fsdp2 * wide2 == fsdp * wide and config.dit.heads % (ulysses * tensor) == 0:
            found.append({"data": data, "fsdp": fsdp2, "context": wide2, "ring": ring, "tensor": tensor})
    return [mesh for mesh in found if config.data.rows % (mesh["data"] * mesh["fsdp"]) == 0]


# ------------------------------------------------------------------------------------------------ devices and sizes


def devices(chip, shape: tuple[int, ...], slices: int) -> list:
    """The abstract devices of so many slices."""
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}  # its two cores are one device
    if slices > 1:
        options["num_slices"] = slices
    name = f"{chip.name}:{chips.show(shape)}"
    return topologies.get_topology_desc(name, platform="tpu", **options).devices


def check(config, mesh, task: str) -> None:
    """Raises InputError, with the nearest that works, for heads, a row or rows that do not divide over the mesh."""
    if task == "vae-decode":
        return
    if "dit" not in config:
        raise InputError(f"--task {task} plans a DiT's config, such as configs/dit.py:wan-14b")
    sizes = dict(mesh.shape)
    check_heads(config.dit.heads, sizes["tensor"], sizes["ulysses"])
    parts, row = sizes["ring"] * sizes["ulysses"], config.data.row
    if row % parts:
        near = max(1, round(row / parts)) * parts
        raise InputError(f"a row of {row:,} does not divide among mesh.context = {parts}: the nearest is {near:,}")
    holders, rows = sizes["data"] * sizes["fsdp"], config.data.rows
    whole = holders * max(1, config.opt.accumulate)
    if task == "train" and rows % whole:
        near = max(1, round(rows / whole)) * whole
        raise InputError(
            f"{rows} rows do not divide among mesh.data x mesh.fsdp = {holders} groups of devices"
            f"{f' x opt.accumulate = {config.opt.accumulate}' if config.opt.accumulate > 1 else ''}: "
            f"the nearest is --rows {near}"
        )


def memory(stats, held: Mapping[str, int], usable: float) -> dict:
    """Bytes on one device: what is held between steps, what a step adds, and what may be used.

    total: the compiler's own peak; where an older one does not tell, arguments + temporaries + results that are no
    argument's buffer + the program. Temporaries can be more than the peak has above the arguments.
    """
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    program = stats.generated_code_size_in_bytes
    total = stats.argument_size_in_bytes + stats.temp_size_in_bytes + results + program
    total = getattr(stats, "peak_memory_in_bytes", 0) or total
    return {
        "held": dict(held),
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "results": results,
        "program": program,
        "host": stats.host_temp_size_in_bytes,
        "total": total,
        "usable": usable,
    }


def refused(message: str, held: Mapping[str, int], usable: float) -> dict:
    """The sizes in the compiler's own words when a program does not fit."""

    def size(pattern: str) -> int | None:
        found = re.search(pattern + r"\s+([\d.]+)([KMGT]?)", message)
        return int(float(found[1]) * UNITS[found[2]]) if found else None

    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available", message)  # arguments are in it
    total = int(float(found[1]) * UNITS[found[2]]) if found else size("Used") or size(r"usage >=")
    return {"held": dict(held), "arguments": size("arguments"), "temporaries": size("program"), "total": total,
            "usable": usable, "message": message.split("\n")[0][:300]}  # fmt: skip
