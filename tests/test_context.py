"""Attention across devices, and the kernels on each: every way gives what the plain one gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sora_jax.errors import InputError
from sora_jax.models import kernels, layers
from sora_jax.models.dit import DiT
from sora_jax.pod import context
from sora_jax.pod.mesh import AXES, PATCHES, ROWS, make, on

HEADS, ROW, TEXT = 8, 96, 24


def mesh_of(**sizes):
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 5)


def packed(rows, length, key=0):
    """Ragged segments, unlike from row to row, with padding at the end."""
    cuts = np.sort(np.random.default_rng(key).choice(np.arange(2, length - 6), (rows, 4)), axis=1)
    seg = 1 + (np.arange(length)[None, :, None] >= cuts[:, None, :3]).sum(-1)
    return jnp.asarray(np.where(np.arange(length)[None] >= np.maximum(cuts[:, 3:], length - 7), 0, seg), jnp.int32)


def tensors(rows, s, j, heads=HEADS, width=16, dtype=jnp.float32):
    shapes = (rows, s, heads, width), (rows, j, heads, width), (rows, j, heads, width), (rows, s, heads, width)
    return [jax.random.normal(jax.random.key(i), shape).astype(dtype) for i, shape in enumerate(shapes)]


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(attend, q, k, v, weight, q_seg, kv_seg):
    """Results and gradients of q, k, v, of attention under a weighted sum."""

    def loss(q, k, v):
        y = attend(q, k, v, q_seg, kv_seg)
        return jnp.sum(y.astype(jnp.float32) * weight), y

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)


def equal(a, b, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), a, b)


def across(mesh, *args, attend=layers.attend):
    args = jax.device_put(args, NamedSharding(mesh, PartitionSpec()))
    return with_gradients(on(mesh, attend), *args)


MIXES = {
    "ulysses": dict(ulysses=8),
    "ring": dict(ring=4),
    "ring and ulysses": dict(ring=2, ulysses=4),
    "ulysses and tensor": dict(ulysses=2, tensor=4),
    "all but data": dict(fsdp=2, ring=2, ulysses=2),
    "rows": dict(data=2, fsdp=2, tensor=2),
}


@pytest.mark.parametrize("sizes", MIXES.values(), ids=MIXES)
def test_attention_across_devices_equals_attention_on_one(sizes):
    seg = packed(2, ROW)
    args = (*tensors(2, ROW, ROW), seg, seg)
    equal(across(mesh_of(**sizes), *args), with_gradients(layers.attend, *args))


@pytest.mark.parametrize("sizes", [dict(ring=2, ulysses=4), dict(fsdp=2, ulysses=2, tensor=2)], ids=str)
def test_text_is_read_alike_across_devices(sizes):
    ask, text = packed(2, ROW), packed(2, TEXT, 1)
    args = (*tensors(2, ROW, TEXT), ask, text)
    equal(across(mesh_of(**sizes), *args), with_gradients(layers.attend, *args))


def test_rows_and_patches_that_do_not_divide_are_copied():
    seg = packed(3, 50)  # 3 rows over 2, 50 patches over 4 x 1
    args = (*tensors(3, 50, 50), seg, seg)
    equal(across(mesh_of(data=2, ring=4), *args), with_gradients(layers.attend, *args))


def test_one_head_is_cut_by_its_queries_alone():
    seg = packed(4, 48)
    args = (*tensors(4, 48, 48, heads=1), seg, seg)
    equal(across(mesh_of(fsdp=2, ulysses=2, tensor=2), *args), with_gradients(layers.attend, *args))


def test_heads_that_do_not_divide_name_what_does():
    seg = packed(1, ROW)
    *qkv, _ = tensors(1, ROW, ROW, heads=12)
    with (
        pytest.raises(InputError, match=r"12 heads do not divide over mesh tensor x ulysses = 1 x 8: .* 1 x 6"),
        jax.sharding.use_abstract_mesh(mesh_of(ulysses=8).abstract_mesh),
    ):
        jax.eval_shape(layers.attend, *qkv, seg, seg)
    with pytest.raises(InputError, match=r"40 heads .* 16 x 1: .* is 20 x 1"):
        context.check_heads(40, 16, 1)
    context.check_heads(40, 5, 8)


def test_keys_travel_and_are_never_gathered():
    """A ring of Ulysses: no device receives a whole row, or all heads of it."""
    mesh, seg = mesh_of(ring=2, ulysses=4), packed(1, ROW)
    cut = PartitionSpec(None, ("ring", "ulysses"))
    args = jax.device_put((*tensors(1, ROW, ROW), seg, seg), NamedSharding(mesh, cut))
    text = with_gradients.lower(on(mesh, layers.attend), *args).compile().as_text()
    assert "collective-permute" in text and "all-to-all" in text
    gathered = [line for line in text.splitlines() if " all-gather(" in line]
    assert all("s32" in line.split(" all-gather(")[0] for line in gathered), gathered  # segments only


def test_what_is_kept_of_attention_is_not_computed_again():
    mesh, seg = mesh_of(ring=2, ulysses=2), packed(1, ROW)
    args = (*tensors(1, ROW, ROW), seg, seg)

    def collectives(*names):
        attend = on(mesh, layers.attend)
        if names:
            policy = jax.checkpoint_policies.save_only_these_names(*names)
            attend = jax.checkpoint(attend, policy=policy, prevent_cse=False)
        text = str(jax.make_jaxpr(functools.partial(with_gradients, attend))(*args))
        return text.count("all_to_all["), text.count("ppermute[")

    plain, none = collectives(), collectives("nothing of that name")
    out, both = collectives(context.SAVED_OUT), collectives(context.SAVED_TRIPS, context.SAVED_OUT)
    assert out[1] < none[1] and plain[0] < out[0]
    assert both == plain


def test_texts_keys_are_gathered_and_their_gradients_scattered():
    """What is common to all patches of a row is nowhere summed up whole."""
    mesh, (q_seg, kv_seg) = mesh_of(ring=2, ulysses=4), (packed(1, ROW), packed(1, TEXT))
    args = (*tensors(1, ROW, TEXT), q_seg, kv_seg)
    text = str(jax.make_jaxpr(functools.partial(with_gradients, on(mesh, layers.attend)))(*args))
    assert (text.count("all_gather["), text.count("reduce_scatter["), text.count("psum[")) == (2, 2, 0)


def test_the_platform_is_that_of_the_mesh():
    """A plan is traced on a machine without the chips that it is for."""
    chip = jax.sharding.AbstractDevice(device_kind="TPU v5", num_cores=2, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,) * 5, AXES, axis_types=(AxisType.Auto,) * 5, abstract_device=chip)
    with jax.sharding.use_abstract_mesh(mesh):
        assert layers.platform() == "tpu"
    assert layers.platform() == "cpu"


# ------------------------------------------------------------------------------------------------ kernels


def test_a_long_row_takes_memory_in_proportion(monkeypatch):
    monkeypatch.setitem(kernels.BLOCK, "cpu", 64)

    def bytes_of(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        seg = jax.ShapeDtypeStruct((1, length), jnp.int32)
        step = with_gradients.lower(layers.attend, x, x, x, x, seg, seg)
        return step.compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(2048) < 2.2 * bytes_of(1024)


def test_in_a_scan_of_layers_too(monkeypatch):
    """JAX computes what depends on a scan's constants alone before it begins: not so the masks of all blocks."""
    monkeypatch.setitem(kernels.BLOCK, "cpu", 64)
    dit = DiT(width=16, depth=2, heads=2, mlp=16, channels=4, patch=(1, 1, 1), keep="heads", dtype="float32")

    def memory(s):
        pos, ints = jnp.zeros((1, s, 3), jnp.int32), jnp.ones((1, s), jnp.int32)
        inputs = jnp.zeros((1, s, 4)), pos, ints, jnp.zeros((1, 1)), 0 * ints, jnp.zeros((1, 8, 4)), ints[:, :8]
        params = jax.eval_shape(dit.init, jax.random.key(0), *inputs)
        step = jax.jit(jax.grad(lambda params, inputs: dit.apply(params, *inputs).sum())).lower(params, inputs)
        return step.compile().memory_analysis().temp_size_in_bytes

    assert memory(2048) < 2.2 * memory(1024)


@pytest.mark.parametrize(("length", "block"), [(576, 192), (257, 129), (256, 256), (1728, 247), (65_536, 256)])
def test_blocks_fill_a_row_evenly(length, block):
    assert kernels.even(length, 256) == block
    assert -(-length // block) == -(-length // 256) and -length % block < -(-length // 256)


KERNELS = {
    "xla": lambda: kernels.xla(64),
    "tokamax": lambda: kernels.tokamax(True),
    "splash": lambda: kernels.splash(True),
}


@pytest.fixture(params=KERNELS)
def kernel(request):
    if (found := KERNELS[request.param]()) is None:
        pytest.skip("tokamax is not installed (the extra `tpu`, Python 3.12)")
    return found


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "TILE", 128)


def test_kernels_equal_the_plain_attention(kernel, small_tiles):
    """Lengths, head widths that fill no tile; segments that end inside one; tiles that are skipped."""
    seg = packed(2, 300)
    args = (*tensors(2, 300, 300, heads=2, width=24), seg, seg)
    equal(with_gradients(functools.partial(kernels.flash, kernel), *args), with_gradients(kernels.whole, *args), 3e-5)


def test_kernels_read_text(kernel, small_tiles):
    ask, text = packed(1, 200), packed(1, 60, 1)
    args = (*tensors(1, 200, 60, heads=2, width=24), ask, text)
    equal(with_gradients(functools.partial(kernels.flash, kernel), *args), with_gradients(kernels.whole, *args), 3e-5)


def test_kernels_give_the_natural_logarithm(kernel):
    """The trap of base 2: a ring that merges logarithms of another base is wrong, and looks right."""
    q, k, v, _ = (x.swapaxes(1, 2) for x in tensors(1, 128, 128, heads=1, width=128))
    seg = jnp.ones((1, 128), jnp.int32)
    _, lse = kernel.forward(q, k, v, seg, seg)
    equal(lse, jax.nn.logsumexp(jnp.einsum("bnqk,bnjk->bnqj", q, k), -1), 1e-4)


def test_kernels_in_a_ring(kernel, small_tiles):
    seg = packed(1, 512)
    args = (*tensors(1, 512, 512, heads=2, width=16), seg, seg)
    mesh = mesh_of(ring=2, ulysses=2)

    attend = functools.partial(context.spread, functools.partial(kernels.flash, kernel))
    equal(across(mesh, *args, attend=attend), with_gradients(kernels.whole, *args), 3e-5)


@pytest.mark.parametrize("width", [64, 128, 200, 384, 1024])
def test_tiles_fill_a_row_and_stay_small(width):
    for length in (1, 100, 1000, 32_640, 131_072):
        side = kernels.tile(length, width)
        whole = -(-length // side) * side
        assert side % kernels.LANES == 0 and kernels.tile(whole, width) == side
        assert side * max(width, kernels.LANES) <= kernels.TILE * kernels.LANES


def test_too_many_tiles_name_the_ring(monkeypatch):
    if (kernel := kernels.tokamax(True)) is None:
        pytest.skip("tokamax is not installed (the extra `tpu`, Python 3.12)")
    q, seg = jax.ShapeDtypeStruct((1, 1 << 20, 1, 128), jnp.bfloat16), jax.ShapeDtypeStruct((1, 1 << 20), jnp.int32)
    with pytest.raises(InputError, match=r"1048576 patches .* larger mesh\.ring"):
        jax.eval_shape(functools.partial(kernels.flash, kernel), q, q, q, seg, seg)


# ------------------------------------------------------------------------------------------------ named chips


def compiled_for(topology, monkeypatch, attend=layers.attend, row=131_072, heads=8, **sizes):
    """Attention, forward and backward, of bfloat16 rows (head width 128), compiled for chips that are not here."""
    for name, value in dict(
        TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1"
    ).items():
        monkeypatch.setenv(name, value)
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = make(dict(data=1, fsdp=1, context=1, ring=1, tensor=1) | sizes, devices)
    rows, cut = sizes.get("fsdp", 1), (ROWS, PATCHES)
    x = jax.ShapeDtypeStruct((rows, row, heads, 128), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*cut)))
    seg = jax.ShapeDtypeStruct((rows, row), jnp.int32, sharding=x.sharding)
    return with_gradients.lower(on(mesh, attend), x, x, x, x, seg, seg).compile()


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5p:2x2x4", "v6e:4x4"])
@pytest.mark.parametrize(
    "sizes", [dict(fsdp=2, context=8), dict(context=16, ring=2)], ids=["ulysses", "ring x ulysses"]
)
@pytest.mark.parametrize("kernel", ["tokamax", "splash"])
def test_long_rows_compile_for_chips(topology, sizes, kernel, monkeypatch, capsys):
    """131,072 patches: no device holds a float32 score matrix, a partial dq per tile, or the whole row's heads."""
    pytest.importorskip("libtpu", reason="libtpu is not installed (the extra `tpu`)")
    if (found := getattr(kernels, kernel)()) is None:
        pytest.skip("tokamax is not installed (the extra `tpu`, Python 3.12)")
    attend = functools.partial(context.spread, functools.partial(kernels.flash, found))
    memory = compiled_for(topology, monkeypatch, attend, **sizes).memory_analysis()
    part = 131_072 * 128 * 2 * 8 * sizes.get("fsdp", 1) / 16  # bytes of q on one device
    with capsys.disabled():
        print(
            f"\n{topology} {sizes} {kernel}: temporaries {memory.temp_size_in_bytes / 2**20:.0f} MiB a chip, "
            f"{memory.temp_size_in_bytes / part:.1f} times q"
        )
    assert memory.temp_size_in_bytes < 40 * part


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v6e:2x2"])
def test_the_longest_part_of_a_row_fits_the_schedule(topology, monkeypatch):
    pytest.importorskip("libtpu", reason="libtpu is not installed (the extra `tpu`)")
    if (found := kernels.tokamax()) is None:
        pytest.skip("tokamax is not installed (the extra `tpu`, Python 3.12)")
    attend = functools.partial(context.spread, functools.partial(kernels.flash, found))
    compiled_for(topology, monkeypatch, attend, row=4 * 176 * kernels.TILE, heads=2, context=4, ring=4)


@pytest.mark.slow
def test_a_plan_compiles_the_kernels_of_its_chips(monkeypatch):
    pytest.importorskip("libtpu", reason="libtpu is not installed (the extra `tpu`)")
    text = compiled_for("v5p:2x2x1", monkeypatch, row=1024, context=4).as_text()
    assert "tpu_custom_call" in text
