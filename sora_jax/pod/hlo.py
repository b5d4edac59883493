"""Reading a compiled program: what each device computes, moves and sends, from the optimised HLO's text.

The compiler's own totals count the body of a loop once, whatever its length. Here every instruction is taken as often
as it runs: trip counts are read from the loops' conditions. A fusion reads its operands and writes its results once;
what it slices out of a large operand, or writes into one in place, counts with the slice's size. What lies in a chip's
scratch memory is no traffic of HBM.

Collectives count the bytes that one device must send, for a result or operand of B bytes in a group of n:

    all-gather, reduce-scatter, all-to-all   B (n - 1) / n          all-reduce   2 B (n - 1) / n
    collective-permute                       B

with B the larger side: what is gathered, or what is to be reduced. Across slices, with k slices in a group, the share
that must leave a slice is B (k - 1) / k, spread over the n / k devices in each (all-reduce: twice that).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

SIZES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0}  # others end in their bits: f32, s8, u4
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
PASSES = {"high": 3, "highest": 6}  # bfloat16 products for one of float32 at these precisions
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all"}
FREE |= {"iota", "opt-barrier", "copy-done", "async-done", "async-update", "all-gather-done", "all-reduce-done"}
FREE |= {"collective-permute-done", "domain", "add-dependency"}

MEGASCALE = "_xla_megascale_transfer_type"  # of what hosts carry from slice to slice
SLICE = 100_000  # what a slice's number is multiplied by in the names of its devices there


class Instruction(NamedTuple):
    """One line of a computation; `types` are its results, (dtype, dimensions, in HBM)."""

    name: str
    opcode: str
    types: list[tuple[str, tuple[int, ...], bool]]
    operands: list[str]
    rest: str
    root: bool
    inside: str  # the text between the parentheses


class Compute(NamedTuple):
    """What runs `times` times: kind 'matmul', 'kernel' (Pallas) or 'memory'; FLOPs (none known of a kernel) and bytes
    of one run. work: the FLOPs that the matrix units do for them, more where float32 takes several bfloat16 passes."""

    name: str
    kind: str
    times: int
    flops: float
    work: float
    bytes: float


class Collective(NamedTuple):
    """A transfer that runs `times` times: opcode, dtype and size of the larger side, the first group, bytes sent."""

    name: str
    kind: str
    times: int
    dtype: str
    size: int
    group: tuple[int, ...]
    sent: float


def read(text: str, ids: Sequence[int]) -> tuple[list[Compute], list[Collective], list[str]]:
    """(compute, collectives, loops whose length is not known and count once) of one device's program.

    ids: of the mesh's devices, in its order, in which groups count them; only what crosses slices calls them by id.
    """
    devices, at = len(ids), {n: i for i, n in enumerate(ids)}
    program, entry = parse(text)
    compute, collectives, unknown = [], [], []

    def visit(name: str, times: int) -> None:
        table = {each.name: each for each in program[name]}
        for each in program[name]:
            kind = each.opcode.removesuffix("-start")
            if each.opcode == "while":
                length = trips(each, table, program)
                if length is None:
                    unknown.append(each.name)
                visit(called(each.rest, "body"), times * (1 if length is None else length))
            elif each.opcode == "conditional":
                for branch in branches(each.rest):
                    visit(branch, times)
            elif each.opcode in ("call", "call-start", "async-start"):  # a v7 TPU calls its sparse cores to gather
                visit(called(each.rest, "to_apply") or called(each.rest, "calls"), times)
            elif kind in COLLECTIVES:
                collectives.append(collective(each, kind, table, times, devices))
            elif each.opcode in ("send", "recv") and MEGASCALE in each.rest:
                if each.opcode == "send":  # what is received is what others send
                    collectives.append(among_slices(each, table, times, at))
            elif each.opcode not in FREE and not each.opcode.endswith("-done"):
                inner = program.get(called(each.rest, "calls") or "", []) if each.opcode == "fusion" else []
                if any(part.opcode.removesuffix("-start") in COLLECTIVES for part in inner):
                    fused = {part.name: part for part in inner}
                    for part in inner:
                        if (kind := part.opcode.removesuffix("-start")) in COLLECTIVES:
                            # a TPU's reduce-scatter is written as an all-reduce, fused with a slice of its result
                            scatters = kind == "all-reduce" and size(each.types) < size(part.types)
                            kind = "reduce-scatter" if scatters else kind
                            collectives.append(collective(part, kind, fused, times, devices))
                    continue
                compute.append(work(each, table, program, times))

    visit(entry, 1)
    return compute, collectives, unknown


# ------------------------------------------------------------------------------------------------ text


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """(computations by name, the name of the entry)."""
    program, entry, current = {}, "", None
    for line in text.splitlines():
        if line == "}" or line.startswith("}, execution"):  # a kernel's metadata also begins lines with braces
            current = None
        elif current is None and line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+)[ (]", line)):
            if head[2] != "HloModule":
                current = program.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
        elif current is not None and (head := re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)):
            current.append(_instruction(head[2], line[head.end() :], bool(head[1])))
    return program, entry


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    types, text = text[:end], text[end:].lstrip()
    open_at = text.index("(")
    close = _closing(text, open_at)
    inside = text[open_at + 1 : close]
    operands = re.findall(r"%([\w.\-]+)", inside)
    return Instruction(name, text[:open_at], shapes(types), operands, text[close + 1 :], root, inside)


def _closing(text: str, at: int) -> int:
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"an unclosed parenthesis in {text[:80]!r}")


def shapes(text: str) -> list[tuple[str, tuple[int, ...], bool]]:
    found = re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", text)
    return [(t, tuple(int(n) for n in dims.split(",") if n), "S(" not in layout) for t, dims, layout in found]


def size(types: Sequence[tuple[str, tuple[int, ...], bool]], hbm: bool = False) -> int:
    """Bytes of all of them; `hbm`: of those that lie there."""
    return sum(math.prod(dims) * _bits(t) // 8 for t, dims, there in types if there or not hbm)


def _bits(dtype: str) -> int:
    if dtype in SIZES:
        return 8 * SIZES[dtype]
    number = re.match(r"[a-z]+(\d+)", dtype)
    return int(number[1]) if number else 8


def called(rest: str, key: str) -> str | None:
    found = re.search(rf"\b{key}=%?([\w.\-]+)", rest)
    return found and found[1]


def branches(rest: str) -> list[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", rest)
    if found:
        return re.findall(r"%?([\w.\-]+)", found[1])
    return [called(rest, "true_computation"), called(rest, "false_computation")]


# ------------------------------------------------------------------------------------------------ loops


def trips(loop: Instruction, table: Mapping, program: Mapping) -> int | None:
    """How often a loop's body runs, where the condition compares a counter with a constant; else None."""
    if found := re.search(r'known_trip_count"?[^0-9]*(\d+)', loop.rest):
        return int(found[1])
    condition = {each.name: each for each in program[called(loop.rest, "condition")]}
    last = next(each for each in condition.values() if each.root)
    direction = called(last.rest, "direction")
    if last.opcode == "fusion":
        inner = program[called(last.rest, "calls")]
        direction = next((called(each.rest, "direction") for each in inner if each.opcode == "compare"), None)
    limit = next((n for name in last.operands if (n := _constant(condition, name)) is not None), None)
    counter = next((i for name in last.operands if (i := _element(condition, name)) is not None), None)
    if direction not in ("LT", "LE") or limit is None or counter is None:
        return None
    start = step = None
    begin = table.get(loop.operands[0])
    if begin is not None and begin.opcode == "tuple":
        start = _constant(table, begin.operands[counter])
    body = {each.name: each for each in program[called(loop.rest, "body")]}
    end = next(each for each in body.values() if each.root)
    if end.opcode == "tuple":
        step = _constant(body, _through(body, end.operands[counter]), added=True)
    return max(0, -(-(limit + (direction == "LE") - (start or 0)) // (step or 1)))


def _through(table: Mapping, name: str) -> str:
    while name in table and table[name].opcode in ("copy", "bitcast", "copy-done", "copy-start", "convert"):
        name = table[name].operands[0]
    return name


def _constant(table: Mapping, name: str, added: bool = False) -> int | None:
    each = table.get(_through(table, name))
    if each is None:
        return None
    if added:
        values = [n for x in each.operands if (n := _constant(table, x)) is not None] if each.opcode == "add" else []
        return values[0] if values else None
    return int(each.inside) if each.opcode == "constant" and re.fullmatch(r"-?\d+", each.inside) else None


def _element(table: Mapping, name: str) -> int | None:
    each = table.get(_through(table, name))
    found = each is not None and each.opcode == "get-tuple-element" and re.search(r"index=(\d+)", each.rest)
    return int(found[1]) if found else None


# ------------------------------------------------------------------------------------------------ work


def work(each: Instruction, table: Mapping, program: Mapping, times: int) -> Compute:
    """FLOPs and bytes of HBM of one instruction."""
    if each.opcode == "fusion":
        inner = program[called(each.rest, "calls")]
        flops, passed = products(each, table, program)
        return Compute(each.name, "matmul" if flops else "memory", times, flops, passed, traffic(each, table, inner))
    flops, passed = products(each, table, program)
    moved = size(each.types, hbm=True) + sum(size(table[x].types, hbm=True) for x in each.operands if x in table)
    if each.opcode in ("dynamic-slice", "slice", "gather"):
        moved = 2 * size(each.types, hbm=True)
    elif each.opcode == "dynamic-update-slice":
        moved = 2 * size(table[each.operands[1]].types, hbm=True)
    elif each.opcode == "copy-start":
        moved = sum(size([t], hbm=True) for t in each.types[:2])
    elif each.opcode == "custom-call" and "tpu_custom_call" not in each.rest:
        moved = 0  # buffers and promises to the compiler
    kernel = each.opcode == "custom-call" and "tpu_custom_call" in each.rest
    return Compute(each.name, "kernel" if kernel else "matmul" if flops else "memory", times, flops, passed, moved)


def traffic(fusion: Instruction, table: Mapping, inner: Sequence[Instruction]) -> int:
    """Bytes of HBM that a fusion reads and writes."""
    inside = {each.name: each for each in inner}
    total = 0
    for parameter in inner:
        if parameter.opcode != "parameter":
            continue
        outer = table.get(fusion.operands[int(parameter.inside)])
        there = (outer or parameter).types
        names = {parameter.name}
        for each in inner:  # seen through bitcasts
            if each.opcode == "bitcast" and each.operands[0] in names:
                names.add(each.name)
        users = [each for each in inner if names & set(each.operands) and each.name not in names]
        if users and all(each.opcode in ("dynamic-slice", "slice", "gather") for each in users):
            total += min(size(there, hbm=True), sum(size(each.types) for each in users))
        elif users and all(each.opcode == "dynamic-update-slice" and each.operands[0] in names for each in users):
            pass  # written in place
        else:
            total += size(there, hbm=True)
    root = next(each for each in inner if each.root)
    ends = [inside.get(_through(inside, name)) for name in root.operands] if root.opcode == "tuple" else [root]
    for end, kind in zip(ends, fusion.types, strict=False):
        update = end is not None and end.opcode == "dynamic-update-slice"
        total += size(inside[end.operands[1]].types) if update and kind[2] else size([kind], hbm=True)
    return total


def products(each: Instruction, table: Mapping, program: Mapping) -> tuple[float, float]:
    """(FLOPs, FLOPs times passes) of a dot or convolution, and of those in a fusion; 0 of all else."""
    if each.opcode == "fusion":
        inner = program[called(each.rest, "calls")]
        inside = {part.name: part for part in inner}
        found = [products(part, inside, program) for part in inner]
        return sum(flops for flops, _ in found), sum(passed for _, passed in found)
    flops = _product(each, table)
    precision = re.search(r"operand_precision=\{(\w+)", each.rest)
    return flops, flops * (PASSES.get(precision[1], 1) if precision else 1)


def _product(each: Instruction, table: Mapping) -> float:
    """FLOPs, multiply-add = 2; of a convolution only the taps that meet its input."""
    if each.opcode == "dot":
        left = table[each.operands[0]].types[0][1]
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.rest)[1]
        return 2.0 * math.prod(each.types[0][1]) * math.prod(left[int(i)] for i in contracted.split(",") if i)
    if each.opcode != "convolution":
        return 0.0
    left, right = (table[name].types[0][1] for name in each.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.rest).groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", each.rest) or [" "] * 2)[1]))
    out = each.types[0][1]
    total = 2.0 * out[labels[2].index("b")] * out[labels[2].index("f")] * right[labels[1].index("i")]

    def field(name: str, d: int, default: str) -> str:
        return window[name].split("x")[d] if name in window else default

    for d in range(sum(c.isdigit() for c in labels[0])):
        n_in, n_out, n_window = (
            s[x.index(str(d))] for s, x in zip((left, out, right), (labels[0], labels[2], labels[1]))
        )
        before = int(field("pad", d, "0_0").split("_")[0])
        stride, dilated, spread = (int(field(n, d, "1")) for n in ("stride", "lhs_dilate", "rhs_dilate"))
        at = np.arange(n_out)[:, None] * stride + np.arange(n_window) * spread - before
        total *= int(((at >= 0) & (at <= (n_in - 1) * dilated) & (at % dilated == 0)).sum())
    return total


# ------------------------------------------------------------------------------------------------ collectives


def collective(each: Instruction, kind: str, table: Mapping, times: int, devices: int) -> Collective:
    operands = [t for name in each.operands if name in table for t in table[name].types]
    results = each.types
    if each.opcode.endswith("-start") and kind != "all-reduce":  # (operands, results, ...)
        results = each.types[len(operands) : 2 * len(operands)] or each.types
    larger = results if kind == "all-gather" else operands
    members, bytes_ = groups(each.rest, devices)[0], size(larger)
    n = len(members)
    share = 1.0 if kind == "collective-permute" else (n - 1) / n
    sent = bytes_ * share * (2 if kind == "all-reduce" else 1) if n > 1 else 0.0
    dtype = max(larger, key=lambda t: math.prod(t[1]))[0] if larger else "?"
    return Collective(each.name, kind, times, dtype, bytes_, members, sent)


def among_slices(each: Instruction, table: Mapping, times: int, at: Mapping[int, int]) -> Collective:
    """A collective of devices of several slices, or a permutation: hosts carry it, and the program sends it to them.

    Its target is all slices and the devices of each that take part, "{1,2,3,4}x{0:511}"; or the groups of devices, by
    id, {{100000,300000},{200000,400000}}; or a permutation's pairs {{100016->200000}}, slice 1's device 16 to slice 2's
    device 0. at: where in the mesh the device of an id is.
    """
    kind = re.search(rf'{MEGASCALE}="(\w+)"', each.rest)[1].lower().replace("_", "-")
    target = re.search(r'_xla_megascale_target=("[^"]*"|\{\{.*?\}\})', each.rest)[1]
    if found := re.match(r'"\{([\d,]+)\}x\{(\d+)', target):
        members = [int(n) * SLICE + int(found[2]) for n in found[1].split(",")]
    else:
        members = max((re.findall(r"\d+", group) for group in target.split("},{")), key=len)
    group = tuple(at[int(n)] for n in members)
    types = table[each.operands[0]].types
    bytes_ = size(types)
    if kind == "one-to-one":
        return Collective(each.name, "collective-permute", times, types[0][0], bytes_, group, bytes_)
    bytes_ *= len(group) if kind == "all-gather" else 1
    sent = bytes_ * (len(group) - 1) / len(group) * (2 if kind == "all-reduce" else 1)
    return Collective(each.name, kind, times, types[0][0], bytes_, group, sent)


def groups(rest: str, devices: int) -> list[tuple[int, ...]]:
    """The groups of devices that a collective joins (of a permutation: its pairs' longest way, as (from, to))."""
    if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest):
        pairs = [tuple(map(int, p.split(","))) for p in re.findall(r"\{(\d+,\d+)\}", found[1])]
        return [p for p in pairs if p[0] != p[1]] or [(0,)]
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        return _of_mesh(found[1], found[2])
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dims, order = ([int(n) for n in (part or "").split(",") if n] for part in found.groups())
        ids = np.arange(math.prod(dims)).reshape(dims)
        return [tuple(g) for g in (ids.transpose(order) if order else ids).reshape(shape).tolist()]
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", rest):
        return [tuple(int(n) for n in g.split(",") if n) for g in re.findall(r"\{([\d,]*)\}", found[1])]
    return [tuple(range(devices))]


def _of_mesh(mesh: str, axes: str) -> list[tuple[int, ...]]:
    """Groups in the form mesh['a'=4,'b'=2] {'a'}; 'a':(2)4 is a part of an axis: 4 wide, 2 before it."""
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh)}
    shape, chosen = [], []
    parts = {
        name: (int(before or 1), int(n or 0)) for name, before, n in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    }
    for name, n in sizes.items():
        before, width = parts.get(name, (n, 1))
        width = width or n // before
        chosen += [len(shape) + 1] if name in parts else []
        shape += [before, width, n // (before * width)]
    ids = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), chosen, range(-len(chosen), 0))
    return [tuple(g) for g in ids.reshape(-1, math.prod(shape[i] for i in chosen)).tolist()]


def axes_of(group: Sequence[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which a group's members lie apart; devices count along the mesh's axes, the last fastest."""
    at = np.array(np.unravel_index(np.array(group), tuple(mesh.values())))
    return tuple(name for name, along in zip(mesh, at) if len(set(along.tolist())) > 1)
