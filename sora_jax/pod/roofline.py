"""How fast a compiled step could be at best: every part against the peak of what it uses. No measurement.

    matmul     max(FLOPs / peak, bytes / HBM bandwidth), fusion by fusion                                         (1)
    attention  max(FLOPs / peak, bytes / HBM bandwidth) of the kernels together                                   (2)
    HBM        bytes / HBM bandwidth of everything else that runs on a device                                     (3)
    ICI, DCN   bytes sent / bandwidth of the links between a group's chips                                        (4)

A group of chips that spans torus dimensions has 2 links a chip in each that closes to a ring, and 1 where it is a line.
An all-to-all sends each byte across the half of a dimension: with b bytes sent by each of n devices, e of them along
that dimension, b n e / (4 (n - 1)) pass each link of a line's middle, half as many in a ring (the bisection). (5)

`serial` adds the parts up, as if nothing ran beside anything else; `overlapped` is the largest of compute (1 to 3), ICI
and DCN, as if everything did. A real step lies above the second; compilers reach some point between the two, and
kernels below their peak can push it beyond the first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from sora_jax.pod.chips import Chip
from sora_jax.pod.hlo import Collective, Compute, axes_of

DIE_TO_DIE = 6  # a tpu7x chip's two halves are joined by six times one ICI link (cloud.google.com/tpu/docs/tpu7x)


def times(
    chip: Chip,
    shape: tuple[int, ...],
    mesh,
    compute: Sequence[Compute],
    collectives: Sequence[Collective],
    kernels: float,
) -> dict:
    """Seconds of a step by part, `serial` and `overlapped`; kernels: FLOPs of one device's kernels in a step."""
    peak, memory = chip.flops / chip.devices_per_chip, chip.hbm_bandwidth / chip.devices_per_chip
    part = dict.fromkeys(("matmul", "attention", "hbm", "ici", "dcn"), 0.0)
    moved = 0.0
    for each in compute:
        if each.kind == "kernel":
            moved += each.times * each.bytes
        else:
            name = "matmul" if each.kind == "matmul" else "hbm"
            part[name] += each.times * max(each.work / peak, each.bytes / memory)
    part["attention"] = max(kernels / peak, moved / memory)
    for each in collectives:
        ici, dcn = seconds(chip, shape, mesh, each)
        part["ici"] += each.times * ici
        part["dcn"] += each.times * dcn
    busy = part["matmul"] + part["attention"] + part["hbm"]
    return {**part, "serial": sum(part.values()), "overlapped": max(busy, part["ici"], part["dcn"])}


def traffic(mesh, collectives: Sequence[Collective]) -> list[dict]:
    """What one device sends in a step, by kind, mesh axes, dtype and link; the most first."""
    sizes, total = dict(mesh.shape), defaultdict(lambda: [0.0, 0])
    for each in collectives:
        ici, dcn = split(mesh, each)
        axes = "+".join(axes_of(each.group, sizes)) or "itself"
        for link, sent in (("ici", ici), ("dcn", dcn)):
            if sent:
                total[each.kind, axes, each.dtype, link][0] += sent * each.times
                total[each.kind, axes, each.dtype, link][1] += each.times
    rows = [
        {"kind": kind, "axes": axes, "dtype": dtype, "link": link, "bytes": sent, "times": runs}
        for (kind, axes, dtype, link), (sent, runs) in total.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def split(mesh, each: Collective) -> tuple[float, float]:
    """Bytes that one device sends over (ICI, DCN)."""
    devices = [mesh.devices.flat[i] for i in each.group]
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return each.sent, 0.0
    if each.kind == "collective-permute":
        return 0.0, each.sent
    local, twice = len(devices) // slices, 2 if each.kind == "all-reduce" else 1
    return twice * each.size * (local - 1) / local, twice * each.size * (slices - 1) / slices / local


def seconds(chip: Chip, shape: tuple[int, ...], mesh, each: Collective) -> tuple[float, float]:
    """Equation (4): time of one collective on (ICI, DCN)."""
    ici, dcn = split(mesh, each)
    devices = [mesh.devices.flat[i] for i in each.group]
    first = getattr(devices[0], "slice_index", 0)
    local = [device for device in devices if getattr(device, "slice_index", 0) == first]
    per_byte = _per_byte(chip, shape, local, each.kind) * chip.devices_per_chip
    return ici * per_byte, dcn * chip.devices_per_chip / chip.dcn


def _per_byte(chip: Chip, shape: tuple[int, ...], devices: Sequence, kind: str) -> float:
    """Seconds for each byte that a chip sends to the others of its group in a slice."""
    at = np.array([device.coords for device in devices])
    extents = {i: e for i, n in enumerate(shape) if (e := len(set(at[:, i].tolist()))) > 1}
    if not extents:
        return 1 / (DIE_TO_DIE * chip.ici_link)
    whole = 4 if chip.torus == 3 else 16  # see Chip.torus
    ways = {i: 2 if e == shape[i] and e % whole == 0 else 1 for i, e in extents.items()}
    if kind == "collective-permute":
        return 1 / chip.ici_link
    if kind.endswith("all-to-all"):  # equation (5)
        n = math.prod(extents.values())
        return max(n * e / (4 * (n - 1)) / ways[i] for i, e in extents.items()) / chip.ici_link
    return 1 / (sum(ways.values()) * chip.ici_link)
