"""The table of chips: slices that exist, what they cost, and that libtpu agrees."""

import importlib.util
import math
import os
import re
import subprocess
import sys

import pytest

from sora_jax.errors import InputError
from sora_jax.pod.chips import CHIPS, GIB, accelerator_type, hosts, shapes, show, topology, usd_per_hour

# What libtpu needs to compile on a machine that has no TPU.
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `tpu`)")


@pytest.mark.parametrize(
    "name, shape",
    [
        ("v4:4x4x4", (4, 4, 4)),
        ("v5e:16x16", (16, 16)),
        ("v5p:8x8x8", (8, 8, 8)),
        ("v5p:2x2x1", (2, 2, 1)),
        ("v5p:16x16x24", (16, 16, 24)),
        ("v6e:16x16", (16, 16)),
        ("tpu7x:4x4x8", (4, 4, 8)),
    ],
)
def test_a_topology_that_exists(name, shape):
    chip, parsed = topology(name)
    assert (f"{chip.name}:{show(parsed)}", parsed) == (name, shape)


@pytest.mark.parametrize(
    "name, way_out",
    [
        ("v7x:4x4x4", "did you mean tpu7x?"),
        ("h100:8", "the chips are v4, v5e, v5p, v6e, tpu7x"),
        ("v5p", "as v5p:4x4x8"),
        ("v6e:4xx4", "as v6e:8x8"),
        ("v6e:0x4", "as v6e:8x8"),
        ("v5p:16x16", "3 axes, not 2; the nearest is v5p:4x8x8"),
        ("v6e:4x4x4", "2 axes, not 3; the nearest is v6e:8x8"),
        ("v5p:8x8x4", "rising order; the nearest is v5p:4x8x8"),
        ("v5p:5x5x5", "multiple of 4; the nearest is v5p:4x4x8"),
        ("v6e:16x32", "the nearest is v6e:16x16"),
        ("v5p:16x20x28", "more than the 6,144"),
    ],
)
def test_a_topology_that_does_not_exist_is_one_sentence_with_the_nearest(name, way_out):
    with pytest.raises(InputError) as raised:
        topology(name)
    assert way_out in str(raised.value) and name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=list(CHIPS))
def test_every_slice_can_be_asked_for_and_is_whole_hosts(chip):
    every = shapes(chip)
    assert len(set(every)) == len(every) and max(map(math.prod, every)) == chip.most_chips
    for shape in every:
        assert topology(f"{chip.name}:{show(shape)}") == (chip, shape) and len(shape) == chip.torus
        assert math.prod(shape) in (1, hosts(chip, shape) * chip.chips_per_host)


def test_money_is_chips_times_price():
    chip, shape = topology("v6e:16x16")
    assert usd_per_hour(chip, shape, slices=4) == pytest.approx(4 * 256 * 2.70)
    assert usd_per_hour(chip, shape, slices=4, price=1.0) == 1024
    with pytest.raises(InputError, match="--price"):
        usd_per_hour(*topology("tpu7x:4x4x8"))
    assert usd_per_hour(*topology("tpu7x:4x4x8"), price=5.0) == 640


def test_cloud_tpu_counts_cores_on_v5p_and_chips_on_v6e():
    # cloud.google.com/tpu/docs/v5p: 8x8x8 is 1,024 cores; v6e: 16x16 is v6e-256.
    assert accelerator_type(*topology("v5p:8x8x8")) == "v5p-1024"
    assert accelerator_type(*topology("v6e:16x16")) == "v6e-256"
    assert accelerator_type(*topology("v5e:4x4")) == "v5litepod-16"
    with pytest.raises(InputError, match=r"launch/gke\.py"):
        accelerator_type(*topology("tpu7x:4x4x8"))


def test_the_command_prints_flags_for_libtpu_and_errors_in_one_line():
    def run(*arguments):
        command = [sys.executable, "-m", "sora_jax.pod.chips", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    flags = run("v6e").stdout.split()
    assert flags == [f"--{flag}" for flag in CHIPS["v6e"].flags]
    assert all(re.fullmatch(r"--xla_\w+=\w+", flag) for flag in flags)
    assert all(name in run().stdout for name in CHIPS)
    bad = run("v9")
    assert bad.returncode != 0 and bad.stderr.count("\n") == 1 and "v9" in bad.stderr


# Runs in its own process: libtpu reads its environment once, and the tests' JAX is for CPUs.
LIBTPU = """
import re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sora_jax.pod.chips import CHIPS, hosts, shapes, show, topology

def devices(chip, shape):
    options = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    return topologies.get_topology_desc(f"{chip.name}:{show(shape)}", platform="tpu", **options).devices

chip = CHIPS[sys.argv[1]]
every = shapes(chip)
for shape in every if len(every) < 20 else [*every[:8], every[-1]]:
    found = devices(chip, shape)
    assert len(found) == np.prod(shape) * chip.devices_per_chip, (shape, len(found))
    assert found[0].device_kind == chip.device_kind, found[0].device_kind
    assert max(d.process_index for d in found) + 1 == hosts(chip, shape), shape

found = devices(*topology(f"{chip.name}:" + ("2x2" if chip.torus == 2 else "2x2x1")))
rows = NamedSharding(Mesh(np.array(found), ("fsdp",)), PartitionSpec("fsdp"))
def loss(w, x):
    return (jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0].astype(jnp.float32) ** 2).mean()
layers = NamedSharding(rows.mesh, PartitionSpec(None, "fsdp"))
specs = [jax.ShapeDtypeStruct((4, 1024, 1024), jnp.bfloat16, sharding=layers),
         jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16, sharding=rows)]
lowered = jax.jit(jax.grad(loss), out_shardings=layers).lower(*specs)
lowered.compile(compiler_options=dict(flag.split("=") for flag in chip.flags))
try:
    lowered.compile(compiler_options={"xla_tpu_no_such_flag": "true"})
    raise SystemExit("a flag that does not exist was accepted: this test proves nothing")
except jax.errors.JaxRuntimeError:
    pass

huge = jax.ShapeDtypeStruct((len(found) * 400 * 1024, 1024, 1024), jnp.int8, sharding=rows)
try:
    jax.jit(lambda x: x + 1, out_shardings=rows).lower(huge).compile()
    raise SystemExit("400 GiB a device fit")
except jax.errors.JaxRuntimeError as error:
    print(re.search(r"available HBM \\(([0-9.]+)G\\)", str(error))[1])
"""


@libtpu
@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS.values(), ids=list(CHIPS))
def test_libtpu_agrees_on_slices_hosts_memory_and_flags(chip):
    command = [sys.executable, "-c", LIBTPU, chip.name]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert float(ran.stdout.split()[-1]) * GIB * chip.devices_per_chip == pytest.approx(chip.hbm_usable, rel=1e-4)
