"""The planner counts what runs: FLOPs in the jaxpr, bytes and trips in the program, memory as the compiler says."""

import functools
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sora_jax import cli
from sora_jax.errors import InputError
from sora_jax.models import kernels
from sora_jax.models.dit import DiT, training_flops
from sora_jax.models.layers import attend
from sora_jax.pod import chips, count, hlo, plan, roofline, steps, table
from sora_jax.pod import mesh as pod
from sora_jax.train import configs

ONE = {"data": 1, "fsdp": 1, "context": 1, "ring": 1, "tensor": 1}
B, S, L, LEVELS = 2, 96, 24, 3
SIZES = {"width": 64, "heads": 4, "mlp": 160, "channels": 4, "patch": (1, 2, 2), "dtype": "float32"}


def counted(s: int = S, mesh=None, **changes):
    """FLOPs by kind of a training step of a small DiT; and the DiT's fields."""
    fields = {**SIZES, "depth": 2, "remat": False, **changes}
    dit, width = DiT(**fields), int(np.prod(fields["patch"])) * fields["channels"]
    x, ints = jnp.zeros((B, s, width)), jnp.zeros((B, s), jnp.int32)
    t, ctx, txt_seg = jnp.zeros((B, LEVELS)), jnp.zeros((B, L, 32)), jnp.zeros((B, L), jnp.int32)
    rest = (jnp.zeros((B, s, 3), jnp.int32), ints, t, ints, ctx, txt_seg)
    params = jax.eval_shape(dit.init, jax.random.key(0), x, *rest)
    loss = jax.grad(lambda params: jnp.square(dit.apply(params, x, *rest)).mean())
    return count.count(
        jax.jit(pod.on(mesh, loss) if mesh else loss).trace(params).jaxpr, mesh.size if mesh else 1
    ), fields


# FLOPs


def test_a_layer_costs_what_the_formula_says():
    (two, fields), (five, _) = counted(), counted(depth=5)
    layers = [training_flops({**fields, "depth": n}, B * S, B * S * S, B * L, B * S * L) for n in (2, 5)]
    modulation = 3 * 6 * 2 * (2 * B * S * LEVELS * SIZES["width"])  # forward, and back to the table
    assert sum(five.values()) - sum(two.values()) == layers[1] - layers[0] + modulation
    assert five["attention"] == 5 * 3 * 4 * B * S * (S + L) * SIZES["width"]


def test_what_remat_repeats_counts():
    block = kernels.BLOCK["cpu"]
    s, keys = 2 * block, kernels.even(L, block)  # attention has its own backward pass there, and works in whole blocks
    words = -(-L // keys) * keys
    plain, _ = counted(s)
    total = {keep: sum(counted(s, remat=True, keep=keep)[0].values()) for keep in ("nothing", "attention", "heads")}
    attention = 2 * 4 * B * s * (s + words) * SIZES["width"]
    assert total["nothing"] - total["attention"] == attention
    assert total["nothing"] > total["attention"] > total["heads"] > sum(plain.values())


def test_devices_share_the_work_of_a_shard_map():
    s = 8 * kernels.BLOCK["cpu"]  # each device's part is longer than a chunk too, and takes the same way
    mesh = pod.make({**ONE, "fsdp": 2, "context": 4})
    assert sum(counted(s, mesh)[0].values()) == sum(counted(s)[0].values())


def test_a_kernel_counts_its_body_times_its_grid():
    b, n, s, k = 1, 2, 2048, 128
    q, seg = jnp.zeros((b, n, s, k)), jnp.zeros((b, s), jnp.int32)
    splash = kernels.splash(interpret=True)
    forward = count.count(jax.jit(splash.forward).trace(q, q, q, seg, seg).jaxpr, 1)
    assert forward == {"attention": 4 * b * n * s * s * k}
    lse = jnp.zeros((b, n, s))
    backward = count.count(jax.jit(splash.backward).trace(q, q, q, seg, seg, q, lse, q).jaxpr, 1)
    assert backward["attention backward"] == 7 * 2 * b * n * s * s * k  # dq and dkv each compute the scores


def test_convolutions_and_the_dearest_branch_count():
    kernel = jnp.zeros((3, 3, 8, 16))

    def f(x, flag):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.lax.cond(flag, lambda y: y @ jnp.zeros((16, 4)), lambda y: y[..., :4], y)

    work = count.count(jax.jit(f).trace(jnp.zeros((2, 5, 5, 8)), True).jaxpr, 1)
    assert work == {"convolution": 2 * 2 * 25 * 16 * 9 * 8, "matmul": 2 * 2 * 25 * 16 * 4}


# Programs' texts


@functools.cache
def program() -> tuple[list, list, list]:
    """Five layers of weights cut over eight devices, gathered one at a time."""
    mesh = pod.make({**ONE, "fsdp": 4, "context": 2})
    whole, cut = NamedSharding(mesh, P(pod.ROWS)), NamedSharding(mesh, P(None, pod.WEIGHTS))

    def step(x, weights):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
            return jnp.tanh(jax.lax.with_sharding_constraint(x, whole) @ w), None

        return jax.lax.scan(layer, x, weights)[0]

    shapes = (jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=whole),)
    shapes += (jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=cut),)
    return hlo.read(jax.jit(step, out_shardings=whole).lower(*shapes).compile().as_text(), range(mesh.size))


def test_a_loop_counts_as_often_as_it_runs():
    compute, collectives, unknown = program()
    assert not unknown
    assert sum(each.times * each.flops for each in compute) == 5 * 2 * (16 / 4) * 64 * 64
    gathers = [each for each in collectives if each.kind == "all-gather"]
    assert sum(each.times * each.sent for each in gathers) == 5 * 64 * 64 * 4 * 7 / 8  # the lower bound of FSDP
    assert {hlo.axes_of(each.group, {"fsdp": 4, "ulysses": 2}) for each in gathers} == {("fsdp", "ulysses")}


def test_ulysses_sends_q_k_v_and_the_result_once():
    mesh = pod.make({**ONE, "fsdp": 2, "context": 4})
    b, s, n, k = 2, 64, 8, 16
    q = jax.ShapeDtypeStruct((b, s, n, k), jnp.float32, sharding=NamedSharding(mesh, P(pod.ROWS, pod.PATCHES)))
    seg = jax.ShapeDtypeStruct((b, s), jnp.int32, sharding=NamedSharding(mesh, P(pod.ROWS, pod.PATCHES)))
    text = jax.jit(pod.on(mesh, attend), out_shardings=q.sharding).lower(q, q, q, seg, seg).compile().as_text()
    found = [each for each in hlo.read(text, range(mesh.size))[1] if each.kind == "all-to-all"]
    assert sum(each.times * each.sent for each in found) == 4 * (b / 2 * s / 4 * n * k * 4) * 3 / 4
    assert {hlo.axes_of(each.group, dict(mesh.shape)) for each in found} == {("ulysses",)}


def test_the_least_that_a_step_must_send():
    config, mesh = sized({"fsdp": 2, "context": 4}, rows=4, row=432)
    weights = lambda n: {"w": jax.ShapeDtypeStruct((n,), jnp.float32)}
    least = plan.least(config, dict(mesh.shape), {"params": weights(1000)}, {})
    assert least["weights"] == 3 * 2 * 1000 * 7 / 8
    still = plan.least(config, dict(mesh.shape), {"params": weights(10)}, {"text": weights(100), "dit": weights(1000)})
    assert still["weights"] == 2 * (3 * 10 + 100 + 2 * 1000) * 7 / 8
    assert least["heads"] == 8 * (4 / 2 * 432 / 4 * 64 * 2) * 3 / 4 * config.dit.depth and least["keys"] == 0


@pytest.mark.parametrize(
    "written, groups",
    [
        ("replica_groups={{0,2},{1,3}}, x", [(0, 2), (1, 3)]),
        ("replica_groups=[2,2]<=[4], x", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [(0, 2), (1, 3)]),
        ("source_target_pairs={{0,0},{1,2},{2,1},{3,3}}", [(1, 2), (2, 1)]),
        ("no groups: all", [(0, 1, 2, 3)]),
    ],
)
def test_groups_are_read_however_they_are_written(written, groups):
    assert hlo.groups(written, 4) == groups


LINES = """HloModule m
%fused (p: f32[8,64], q: bf16[64,32]) -> bf16[8,32] {
  %p = f32[8,64]{1,0} parameter(0)
  %q = bf16[64,32]{1,0:T(8,128)S(1)} parameter(1)
  ROOT %c = bf16[8,32]{1,0} convolution(%p, %q), dim_labels=bf_io->bf, operand_precision={highest,highest}
}
ENTRY %main (a: f32[10,8,64], b: bf16[64,32]) -> bf16[8,32] {
  %a = f32[10,8,64]{2,1,0} parameter(0)
  %b = bf16[64,32]{1,0:T(8,128)S(1)} parameter(1)
  %i = s32[] constant(3)
  %s = f32[8,64]{1,0} dynamic-slice(%a, %i, %i, %i), dynamic_slice_sizes={1,8,64}
  %d = f32[2,4,9,9] convolution(%x, %y), window={size=2x4 stride=1x3 lhs_dilate=2x4}, dim_labels=0b1f_0o1i->01bf
  ROOT %f = bf16[8,32]{1,0} fusion(%s, %b), kind=kOutput, calls=%fused
}
"""


def test_bytes_passes_and_slices_of_a_text():
    text = "\n".join(line for line in LINES.splitlines() if "%d =" not in line)
    compute, _, _ = hlo.read(text, range(1))
    a_slice, product = compute
    assert a_slice.bytes == 2 * 8 * 64 * 4  # and not the ten of it
    assert product.flops == 2 * 8 * 64 * 32 and product.work == 6 * product.flops
    assert product.bytes == 8 * 64 * 4 + 8 * 32 * 2  # what lies in scratch memory is free


SCATTER = """HloModule m
%all-reduce-scatter (p: bf16[64,16]) -> bf16[16,16] {
  %p = bf16[64,16]{1,0} parameter(0)
  %r = bf16[64,16]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  %i = s32[] constant(0)
  ROOT %s = bf16[16,16]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={16,16}
}
ENTRY %main (a: bf16[64,16]) -> bf16[16,16] {
  %a = bf16[64,16]{1,0} parameter(0)
  ROOT %f = bf16[16,16]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_a_tpus_reduce_scatter_is_one():
    (found,) = hlo.read(SCATTER, range(4))[1]
    assert (found.kind, found.sent) == ("reduce-scatter", 64 * 16 * 2 * 3 / 4)


SPARSE = """HloModule m
%called (p: bf16[64,16]) -> bf16[64,16] {
  %p = bf16[64,16]{1,0} parameter(0)
  ROOT %r = bf16[64,16]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}, execution_thread="sparsecore"
ENTRY %main (a: bf16[64,16]) -> bf16[64,16] {
  %a = bf16[64,16]{1,0} parameter(0)
  %s = ((bf16[64,16]), bf16[64,16], u32[]) call-start(%a), async_execution_thread="sparsecore", to_apply=%called
  ROOT %d = bf16[64,16]{1,0} call-done(%s)
}
"""


def test_what_sparse_cores_send_counts():
    """On a v7 TPU they are called to gather weights, which without them would seem to come from nowhere."""
    (found,) = hlo.read(SPARSE, range(4))[1]
    assert (found.kind, found.sent) == ("all-reduce", 2 * 64 * 16 * 2 * 3 / 4)


SLICES = """HloModule m
ENTRY %main (a: bf16[64,16]) -> bf16[64,16] {
  %a = bf16[64,16]{1,0} parameter(0)
  %t = token[] after-all()
  %s = (bf16[64,16], u32[]{:S(2)}, token[]) send(%a, %t), channel_id=1, frontend_attributes={KIND,TO}
  %r = (bf16[64,16], u32[]{:S(2)}, token[]) recv(%t), channel_id=2, frontend_attributes={KIND,TO}
  %d = (bf16[64,16]{1,0}, token[]) recv-done(%r), channel_id=2, is_host_transfer=true
  ROOT %g = bf16[64,16]{1,0} get-tuple-element(%d), index=0
}
"""


# four slices of two devices, which the mesh takes the other way round
IDS = [100_001, 100_000, 200_001, 200_000, 300_001, 300_000, 400_001, 400_000]
ALL, PAIRS = '"{1,2,3,4}x{0:1}"', "{{100000,300000},{100001,300001},{200000,400000},{200001,400001}}"
FOURS = "{{100000,200000,300000,400000},{100001,200001,300001,400001}}"


@pytest.mark.parametrize(
    ("kind", "to", "sent", "group"),
    [
        ("ALL_REDUCE", ALL, 2 * 64 * 16 * 2 * 3 / 4, (1, 3, 5, 7)),
        ("ALL_GATHER", ALL, 64 * 16 * 2 * 3, (1, 3, 5, 7)),
        ("REDUCE_SCATTER", ALL, 64 * 16 * 2 * 3 / 4, (1, 3, 5, 7)),
        ("ALL_TO_ALL", FOURS, 64 * 16 * 2 * 3 / 4, (1, 3, 5, 7)),
        ("ALL_REDUCE", PAIRS, 2 * 64 * 16 * 2 / 2, (1, 5)),
        ("ALL_GATHER", PAIRS, 64 * 16 * 2, (1, 5)),
        ("ONE_TO_ONE", "{{200000->100001},{300001->100000},{400000->300001}}", 64 * 16 * 2, (3, 0)),
        ("ONE_TO_ONE", "{{100001->200000},{200000->100001}}", 64 * 16 * 2, (0, 3)),  # slices 3 and 4 send nothing
    ],
)
def test_what_slices_send_each_other_counts(kind, to, sent, group):
    """In whatever form a compiler names who takes part: all slices, groups of devices, or pairs."""
    text = SLICES.replace("TO", f"_xla_megascale_target={to}").replace("KIND", f'{hlo.MEGASCALE}="{kind}"')
    _, (found,), _ = hlo.read(text, IDS)
    kind = "collective-permute" if kind == "ONE_TO_ONE" else kind.lower().replace("_", "-")
    assert (found.kind, found.sent, found.group) == (kind, sent, group)
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(slice_index=i // 2) for i in range(8)]))
    assert roofline.split(mesh, found) == (0.0, sent)


def test_a_batch_of_products_written_as_a_convolution_counts_once():
    found = {"%x": (2, 9, 4, 5), "%y": (2, 9, 4, 5)}  # b=2, heads=4: 9 x 5 by 5 x 9
    table = {
        n[1:]: hlo.Instruction(n[1:], "parameter", [("f32", s, True)], [], "", False, "") for n, s in found.items()
    }
    line = next(line for line in LINES.splitlines() if "%d =" in line)
    each = hlo.parse("ENTRY %e (x: f32[1]) -> f32[1] {\n" + line + "\n}")[0]["e"][0]
    assert hlo.products(each, table, {})[0] == 2 * (2 * 4) * 9 * 9 * 5


# Roofline


class Device(NamedTuple):
    coords: tuple[int, ...]
    slice_index: int = 0
    id: int = 0


class Mesh(NamedTuple):
    devices: np.ndarray
    shape: dict

    @property
    def size(self) -> int:
        return self.devices.size


def transfer(kind: str, size: int, group: tuple[int, ...]) -> hlo.Collective:
    n = len(group)
    return hlo.Collective("c", kind, 1, "bf16", size, group, size * (n - 1) / n * (2 if kind == "all-reduce" else 1))


def test_rings_lines_and_the_bisection():
    chip, shape = chips.topology("v5p:4x4x8")
    at = np.empty(128, object)
    at[:] = [Device((x, y, z)) for x in range(4) for y in range(4) for z in range(8)]
    mesh = Mesh(at, {"fsdp": 16, "ulysses": 8})
    ring, pair = tuple(range(8)), (0, 1)
    size, link = 8 * 2**20, chip.ici_link
    gather = roofline.seconds(chip, shape, mesh, transfer("all-gather", size, ring))
    assert gather == pytest.approx((size * 7 / 8 / (2 * link), 0))
    swapped = roofline.seconds(chip, shape, mesh, transfer("all-to-all", size, ring))[0]
    assert swapped == pytest.approx(8 * size / (2 * link) / 4)  # the scaling book's: a quarter of a gather of all
    assert roofline.seconds(chip, shape, mesh, transfer("all-to-all", size, pair))[0] == pytest.approx(size / 2 / link)


def test_only_what_leaves_a_slice_goes_over_dcn():
    chip, shape = chips.topology("v5p:2x2x1")
    at = np.empty(8, object)
    at[:] = [Device((x, y, 0), slice_index=i) for i in range(2) for x in range(2) for y in range(2)]
    mesh = Mesh(at, {"data": 2, "fsdp": 4})
    size = 2**20
    assert roofline.split(mesh, transfer("all-reduce", size, (0, 4))) == (0, size)  # 2 (k - 1) / k
    assert roofline.split(mesh, transfer("all-gather", size, tuple(range(8)))) == (size * 3 / 4, size / 2 / 4)
    assert roofline.seconds(chip, shape, mesh, transfer("all-reduce", size, (0, 4)))[1] == pytest.approx(
        size / chip.dcn
    )


# Configs


def sized(mesh: dict, **settings):
    config = configs.read("configs/dit.py:smoke", [f"data.{name}={n}" for name, n in settings.items()])
    return config, pod.make({**ONE, **mesh})


@pytest.mark.parametrize(
    "mesh, settings, sentence",
    [
        ({"fsdp": 2, "context": 4}, {"rows": 2}, "2 heads do not divide over mesh tensor x ulysses = 1 x 4"),
        ({"fsdp": 4, "context": 2}, {"row": 433}, "a row of 433 does not divide among mesh.context = 2: .* is 432"),
        ({"fsdp": 8}, {"rows": 12}, "12 rows do not divide among .* = 8 groups of devices: the nearest is --rows 16"),
    ],
)
def test_what_does_not_divide_is_one_sentence(mesh, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        plan.check(*sized(mesh, **settings), "train")
    with pytest.raises(InputError, match="a VAE has no rows"):
        plan.search(configs.read("configs/vae.py:wan"), "v5p:2x2x1", task="vae-decode")


def test_a_search_refuses_what_a_plan_refuses():
    pytest.importorskip("libtpu")
    config = configs.read("configs/dit.py:wan-14b", ["data.rows=3"])
    with pytest.raises(InputError, match="3 rows do not divide"):
        plan.search(config, "v5p:2x2x1")


def test_a_step_of_the_sampler_is_given_what_the_transformer_is_told():
    config, mesh = sized({"fsdp": 8}, rows=8, row=432)
    with config.unlocked():
        config.dit.update(given=8, gated=False)
    step = steps.sampled(config, mesh)
    assert step.arguments[1]["given"].shape == (1, 432, 8 * math.prod(config.dit.patch))
    step.function.trace(*step.arguments)


def test_the_compilers_refusal_is_an_answer():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 105.50G of 95.74G hbm. Exceeded by 9.76G.\n"
        "Total hbm usage >= 105.77G:\n    reserved        270.00M\n    program          84.00G\n"
        "    arguments        21.50G"
    )
    memory = plan.refused(message, {"params": 1}, 95.73 * 2**30)
    assert memory["total"] == 105.5 * 2**30 and memory["temporaries"] == 84 * 2**30
    assert memory["arguments"] == 21.5 * 2**30
    message = "RESOURCE_EXHAUSTED: E1000: the total memory required for HLO temporaries (180.00G) exceeds available HBM"
    assert plan.refused(message, {"params": 1}, 95.73 * 2**30)["total"] == 180 * 2**30


def test_a_plan_is_told_drawn_and_written(tmp_path):
    config, mesh = sized({"fsdp": 4, "context": 2}, rows=8)
    step = steps.trained(config, mesh)
    work = count.count(step.function.trace(*step.arguments).jaxpr, 8)
    chip, shape = chips.topology("v5p:2x2x2")
    gib = 2**30
    facts = {"topology": "v5p:2x2x2", "slices": 1, "chips": 8, "task": "train", "mesh": dict(mesh.shape)}
    facts |= {"parameters": step.parameters, "step": step.facts, "flops": plan.flops(work, step.model_flops)}
    facts["memory"] = {"held": step.held, "temporaries": gib, "total": 2 * gib, "usable": 90 * gib}
    at = np.empty(8, object)
    at[:] = [Device((x, y, z)) for x in range(2) for y in range(2) for z in range(2)]
    text = LINES.replace(LINES[LINES.index("  %d =") : LINES.index("  ROOT %f")], "")
    facts = plan.estimate(facts, chip, shape, Mesh(at, dict(mesh.shape)), text, work, 1e12)
    assert facts["fits"] and facts["seconds"]["serial"] >= facts["seconds"]["overlapped"] > 0
    assert facts["run"]["serial"]["usd"] == pytest.approx(facts["run"]["serial"]["chip_hours"] * chip.price)
    told = table.text(json.loads(json.dumps(facts)))
    assert "FITS" in told and "chip-hours" in told and "no measurement" in told
    table.picture(facts, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 1000


# The command


def test_help_imports_no_jax():
    code = "import sys; from sora_jax import cli\ntry: cli.main(['plan', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_search_says_with_what_flags_its_rows_are_planned():
    mesh = {"data": 1, "fsdp": 2, "context": 4, "ring": 1, "tensor": 1}
    facts = {"mesh": mesh, "keep": "nothing", "total": 2**30, "usable": 2**31, "recompute": 1.3}
    facts |= {"mfu_bound": {"serial": 0.5}, "tokens_per_second": {"serial": 1e4}}
    told = table.found([{**facts, "row": 1024}, {**facts, "row": 65536, "recompute": 1.1}]).splitlines()
    assert "65,536" in told[0] and "1.00 of 2.00 GiB" in told[0] and "1,024" in told[2]
    args = cli.parsed(["plan", "--config", "c.py", "--topology", "v5p:2x2x2", *told[1].split()])
    assert (args.row, args.settings) == (65536, ["dit.keep=nothing"])
    assert args.mesh == ",".join(f"{name}={n}" for name, n in mesh.items())


def command(capsys, *words: str) -> str:
    assert cli.main(["plan", *words]) == 2
    return capsys.readouterr().err


def test_mistakes_are_one_sentence(capsys, monkeypatch):
    for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # the command sets them: put back afterwards
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    wan = ("--config", "configs/dit.py:wan-14b")
    assert "the nearest is v6e:16x16" in command(capsys, *wan, "--topology", "v6e:16x20")
    assert "no key mesh.fdsp; did you mean mesh.fsdp" in command(
        capsys, *wan, "--topology", "v6e:16x16", "--mesh", "fdsp=3"
    )
    if plan.importlib.util.find_spec("libtpu") is None:
        assert "pip install 'sora_jax[train,tpu]'" in command(capsys, *wan, "--topology", "v6e:16x16")
