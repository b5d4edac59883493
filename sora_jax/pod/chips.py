"""The one table of TPU chips: what the planner computes with and the launchers ask for.

Every row is one kind of chip under the name JAX's topologies take ("v5p:8x8x8"). Sources, once for all rows:

  published   cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}: peak, HBM, DCN, slice shapes; kubernetes-engine/docs/
              concepts/tpus: node labels, machine types. ICI: jax-ml.github.io/scaling-book/tpus, one-way bytes/s a link
              (for tpu7x the published 1,200 GB/s a chip, both ways, over 6 links, times the 0.9 that the book's v5p
              figure is of v5p's published one).
  measured    usable HBM is what libtpu 0.0.50.1 itself says when a program does not fit (tests/test_chips.py, slow).
  price       on-demand list price for us-central1 (v4: us-central2), as in a public copy of Google's price list read on
              2026-11-21. tpu7x has no price that could be read: None, and the launchers ask for `--price`.

`python -m sora_jax.pod.chips` prints the table, `python -m sora_jax.pod.chips v5p` the flags for LIBTPU_INIT_ARGS.
"""

import itertools
import math
import sys
from typing import NamedTuple

from sora_jax.errors import InputError

GIB = 2**30


class Chip(NamedTuple):
    """One kind of TPU chip. All rates are per second, all sizes in bytes; "chip" is what is rented and what ICI links.

    device_kind        what `jax.Device.device_kind` says
    devices_per_chip   JAX devices on a chip: 1 where the cores are fused (v4 with `chip_config_name="megacore"`, v5p)
    flops              peak bf16 FLOP/s of a chip
    hbm                published HBM of a chip (v5p: 95 GiB are published, the compiler grants 95.73)
    hbm_usable         what the compiler lets a program have, over all devices of the chip
    hbm_bandwidth      bytes/s of a chip
    torus              dimensions of the ICI torus; a chip has 2 links in each. An axis closes to a ring where its length
                       is a multiple of 4 (3-D) or 16 (2-D); shorter ones are lines (scaling book)
    ici_link           bytes/s of one link, one way
    dcn                bytes/s of a chip's share of its host's network card, one way
    chips_per_host     chips of one virtual machine in a slice of several hosts
    most_chips         chips of the largest slice
    gke                `cloud.google.com/gke-tpu-accelerator`
    machine            machine type of a node of `chips_per_host` chips
    accelerator        prefix of the Cloud TPU accelerator type; None where queued resources do not serve the chip
    type_unit          what that type counts: cores (2 a chip) or chips (1), so v5p-1024 is 512 chips
    runtime            Cloud TPU runtime version; None as above
    price              list price, USD a chip and hour on demand; None where no public price could be read
    region             where that price holds
    flags              compiler options as "name=value": each is accepted by libtpu for this chip (slow test); what they
                       gain has not been measured, for want of a chip
    """

    name: str
    device_kind: str
    devices_per_chip: int
    flops: float
    hbm: float
    hbm_usable: float
    hbm_bandwidth: float
    torus: int
    ici_link: float
    dcn: float
    chips_per_host: int
    most_chips: int
    gke: str
    machine: str
    accelerator: str | None
    type_unit: int
    runtime: str | None
    price: float | None
    region: str
    flags: tuple[str, ...]


PRICES_READ = "2026-11-21"

_ACROSS_SLICES = (  # the gradients' all-reduce over DCN, spread over the backward pass rather than after it
    "xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "xla_tpu_data_parallel_opt_different_sized_ops=true",
)
_ASYNC = (  # FSDP's gathers and Ulysses' all-to-all run beside the matrix units
    "xla_tpu_enable_async_collective_fusion=true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "xla_tpu_overlap_compute_collective_tc=true",
    "xla_enable_async_all_gather=true",
    "xla_tpu_enable_async_all_to_all=true",
)
_GATHER_FUSED = ("xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",)
# VMEM that one fusion may have, in KiB: attention's kernels want more than the default. A v6e has 128 MiB.
_VMEM_96M = ("xla_tpu_scoped_vmem_limit_kib=98304",)

CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            device_kind="TPU v4",
            devices_per_chip=1,
            flops=275e12,
            hbm=32 * GIB,
            hbm_usable=30.75 * GIB,
            hbm_bandwidth=1.2e12,
            torus=3,
            ici_link=4.5e10,
            dcn=6.25e9,  # the scaling book's 2.5e10 bytes/s a host; not in the published table
            chips_per_host=4,
            most_chips=4096,
            gke="tpu-v4-podslice",
            machine="ct4p-hightpu-4t",
            accelerator="v4",
            type_unit=2,
            runtime="tpu-ubuntu2204-base",
            price=3.22,
            region="us-central2",
            flags=_ASYNC + _GATHER_FUSED + _ACROSS_SLICES,
        ),
        Chip(
            name="v5e",
            device_kind="TPU v5 lite",
            devices_per_chip=1,
            flops=197e12,
            hbm=16 * GIB,
            hbm_usable=15.75 * GIB,
            hbm_bandwidth=8.19e11,
            torus=2,
            ici_link=4.5e10,
            dcn=3.125e9,  # 6.4 Tbit/s a pod of 256
            chips_per_host=4,
            most_chips=256,
            gke="tpu-v5-lite-podslice",
            machine="ct5lp-hightpu-4t",
            accelerator="v5litepod",
            type_unit=1,
            runtime="v2-alpha-tpuv5-lite",
            price=1.20,
            region="us-central1",
            flags=_ASYNC + _GATHER_FUSED + _ACROSS_SLICES,
        ),
        Chip(
            name="v5p",
            device_kind="TPU v5",
            devices_per_chip=1,
            flops=459e12,
            hbm=95 * GIB,
            hbm_usable=95.73 * GIB,
            hbm_bandwidth=2.765e12,
            torus=3,
            ici_link=9e10,
            dcn=6.25e9,  # 50 Gbit/s
            chips_per_host=4,
            most_chips=6144,
            gke="tpu-v5p-slice",
            machine="ct5p-hightpu-4t",
            accelerator="v5p",
            type_unit=2,
            runtime="v2-alpha-tpuv5",
            price=4.20,
            region="us-central1",
            # No fused all-gather here: larger programs are rejected with it.
            flags=_ASYNC + _ACROSS_SLICES,
        ),
        Chip(
            name="v6e",
            device_kind="TPU v6 lite",
            devices_per_chip=1,
            flops=918e12,
            hbm=32 * GIB,
            hbm_usable=31.24 * GIB,
            hbm_bandwidth=1.638e12,
            torus=2,
            ici_link=9e10,
            dcn=12.5e9,  # 25.6 Tbit/s a pod of 256
            chips_per_host=4,
            most_chips=256,
            gke="tpu-v6e-slice",
            machine="ct6e-standard-4t",
            accelerator="v6e",
            type_unit=1,
            runtime="v2-alpha-tpuv6e",
            price=2.70,
            region="us-central1",
            flags=_ASYNC + _GATHER_FUSED + _ACROSS_SLICES + _VMEM_96M,
        ),
        Chip(
            name="tpu7x",
            device_kind="TPU7x",
            devices_per_chip=2,
            flops=2307e12,
            hbm=192 * GIB,
            hbm_usable=2 * 94.74 * GIB,
            hbm_bandwidth=7.38e12,
            torus=3,
            ici_link=9e10,
            dcn=12.5e9,  # 100 Gbit/s
            chips_per_host=4,
            most_chips=9216,
            gke="tpu7x",
            machine="tpu7x-standard-4t",
            accelerator=None,
            type_unit=2,
            runtime=None,
            price=None,
            region="us-central1",
            # The collectives are its SparseCores' by default; fusing them into the TensorCores' work would undo that.
            flags=("xla_tpu_enable_async_all_to_all=true", *_ACROSS_SLICES),
        ),
    )
}

_OTHER_NAMES = {"v7x": "tpu7x", "v7": "tpu7x", "tpu7": "tpu7x", "ironwood": "tpu7x", "trillium": "v6e", "v6": "v6e"}
_OTHER_NAMES |= {"v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p", "v4p": "v4"}


def shapes(chip: Chip) -> list[tuple[int, ...]]:
    """Every slice that can be had, smallest first: axes in rising order, as GKE takes them.

    2-D pods: the fixed list. 3-D pods: parts of one cube of 64 chips, then whole cubes, every axis a multiple of 4.
    """
    if chip.torus == 2:
        return [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    parts = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]  # 2x2x1 is written so
    if chip.name == "tpu7x":
        parts = [(1, 1, 1), *parts]
    cubes = chip.most_chips // 64
    whole = [
        (4 * a, 4 * b, 4 * c)
        for a, b in itertools.combinations_with_replacement(range(1, math.isqrt(cubes) + 1), 2)
        for c in range(b, cubes // (a * b) + 1)
    ]
    return parts + sorted(whole, key=lambda shape: (math.prod(shape), shape))


def show(shape: tuple[int, ...]) -> str:
    """(8, 8, 8) -> "8x8x8"."""
    return "x".join(map(str, shape))


def topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """ "v5p:8x8x8" -> the chip and the shape of the slice.

    Raises InputError for an unknown chip, and for a shape that no slice has, naming the nearest that exists.
    """
    kind, colon, text = name.strip().lower().partition(":")
    known = ", ".join(CHIPS)
    if kind not in CHIPS:
        meant = f"did you mean {_OTHER_NAMES[kind]}? " if kind in _OTHER_NAMES else ""
        raise InputError(f"no TPU chip is named {kind!r} in the topology {name!r}: {meant}the chips are {known}")
    chip = CHIPS[kind]
    example = f"{kind}:{'8x8' if chip.torus == 2 else '4x4x8'}"
    axes = text.split("x")
    if not colon or not all(axis.isascii() and axis.isdigit() and len(axis) < 9 and int(axis) for axis in axes):
        raise InputError(
            f"{name!r} is no topology: write the chip, a colon and the chips along each axis, as {example}"
        )
    shape = tuple(map(int, axes))
    if shape not in shapes(chip):
        near = f"{kind}:{show(nearest(chip, shape))}"
        if len(shape) != chip.torus:
            why = f"{kind} slices have {chip.torus} axes, not {len(shape)}"
        elif math.prod(shape) > chip.most_chips:
            why = (
                f"{math.prod(shape):,} chips are more than the {chip.most_chips:,} of the largest slice; take --slices"
            )
        elif tuple(sorted(shape)) in shapes(chip):
            why = "axes are written in rising order"
        elif chip.torus == 2:
            why = f"{kind} slices are {', '.join(map(show, shapes(chip)))}"
        else:
            why = "beyond 2x4x4 every axis is a multiple of 4"
        raise InputError(f"there is no slice {name!r}: {why}; the nearest is {near}")
    return chip, shape


def nearest(chip: Chip, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The slice nearest in chips, then in shape (where the axes are as many), then the most cubic: its rings are short."""

    def far(other: tuple[int, ...]) -> tuple[float, ...]:
        axes = zip(sorted(shape), sorted(other)) if len(shape) == len(other) else ()
        apart = sum(abs(math.log(a / b)) for a, b in axes)
        chips = abs(math.log(math.prod(other) / math.prod(shape)))
        return (
            round(chips, 9),
            round(apart, 9),
            max(other) / min(other),
        )  # rounded: logs of equal ratios differ at the end

    return min(shapes(chip), key=far)


def hosts(chip: Chip, shape: tuple[int, ...]) -> int:
    """Virtual machines, and so processes, of one slice."""
    return max(1, math.prod(shape) // chip.chips_per_host)


def accelerator_type(chip: Chip, shape: tuple[int, ...]) -> str:
    """The Cloud TPU name of a slice, "v5p-1024" for 8x8x8. Raises InputError where queued resources do not serve it."""
    if chip.accelerator is None:
        raise InputError(f"{chip.name} is not served by queued resources: launch it on GKE with launch/gke.py")
    return f"{chip.accelerator}-{math.prod(shape) * chip.type_unit}"


def usd_per_hour(chip: Chip, shape: tuple[int, ...], slices: int = 1, price: float | None = None) -> float:
    """What the slices cost an hour: chips x `price` (USD a chip and hour; the list price when None).

    Raises InputError where neither is known.
    """
    price = chip.price if price is None else price
    if price is None:
        raise InputError(
            f"no public price of {chip.name} is known here: give yours with --price, in USD a chip and hour"
        )
    return math.prod(shape) * slices * price


def main(arguments: list[str]) -> None:
    """Prints the table, or the LIBTPU_INIT_ARGS of the chip named."""
    if arguments:
        kind = arguments[0].partition(":")[0]
        chip, _ = topology(f"{kind}:{show(shapes(CHIPS[kind])[0])}" if kind in CHIPS else arguments[0])
        print(" ".join(f"--{flag}" for flag in chip.flags))
        return
    print("chip   peak TFLOP/s  HBM GiB usable  HBM TB/s  ICI GB/s a link  DCN GB/s  most chips   USD a chip and hour")
    for chip in CHIPS.values():
        price = f"{chip.price:.2f} ({chip.region}, read {PRICES_READ})" if chip.price else "not public"
        print(
            f"{chip.name:6} {chip.flops / 1e12:12.0f} {chip.hbm_usable / GIB:15.2f} {chip.hbm_bandwidth / 1e12:9.2f} "
            f"{chip.ici_link / 1e9:16.0f} {chip.dcn / 1e9:9.2f} {chip.most_chips:11,}   {price}"
        )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"chips: {error}")
