"""Law 6: eight devices are one device, whatever the mesh; and every weight has its place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sora_jax.errors import InputError
from sora_jax.pod import mesh as pod
from sora_jax.train import configs, loop, tasks

ONE = {"data": 1, "fsdp": 1, "context": 1, "ring": 1, "tensor": 1}


def sizes(**changes) -> dict:
    return {**ONE, **changes}


# Sizes


def test_a_mesh_is_as_the_config_says():
    mesh = pod.make(sizes(fsdp=-1, context=4, ring=2))
    assert mesh.axis_names == pod.AXES and tuple(mesh.shape.values()) == (1, 2, 2, 2, 1)
    assert tuple(pod.make(sizes(data=2, fsdp=2, tensor=2)).shape.values()) == (2, 2, 1, 1, 2)
    assert tuple(pod.make(sizes(fsdp=-1), jax.devices()[:3]).shape.values()) == (1, 3, 1, 1, 1)


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"fsdp": 3}, "fsdp=3.* 3 devices or a multiple, but there are 8"),
        ({"fsdp": -1, "context": 3}, "context=3.*but there are 8"),
        ({"fsdp": -1, "data": -1}, "one of data, fsdp, context, tensor may be -1"),
        ({"fsdp": 0}, "sizes below 1"),
        ({"context": 8, "ring": 3}, "mesh.context = 8 does not divide into rings of mesh.ring = 3"),
    ],
)
def test_a_wrong_mesh_is_one_sentence(wrong, sentence):
    with pytest.raises(InputError, match=sentence):
        pod.make(sizes(**wrong))


# Rules


@pytest.mark.parametrize("config", ["configs/dit.py:smoke", "configs/vae.py:smoke"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_weight_is_claimed_and_matrices_are_cut(config, optimizer):
    config = configs.read(config, [f"opt.name={optimizer}"])
    mesh = pod.make(sizes(fsdp=4, tensor=2))
    _, abstract, _ = loop.prepare(tasks.make(config), config, mesh)
    whole = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]:
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.sharding.is_fully_replicated and leaf.size >= 2**14:
            whole[path] = leaf.shape
    assert not whole


def test_a_weight_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=r"claims the weight dit/new/matrix"):
        pod.shardings(pod.make(sizes(fsdp=-1)), {"dit": {"new": {"matrix": jnp.zeros((8, 8))}}})


def test_what_does_not_divide_stays_whole():
    cut = dict(zip(pod.AXES, (1, 4, 2, 1, 3)))
    assert pod.fitting((2, 12, 9), (pod.WEIGHTS, "tensor"), cut) == P(None, ("fsdp", "ulysses"), ("tensor",))
    assert pod.fitting((5, 7), (pod.ROWS, None), cut) == P(("data",), None)


# The law


@functools.cache
def task_and_batch():
    task = tasks.make(configs.read("configs/dit.py:smoke"))
    return task, next(task.batches(None, 0, 1))[0]


def gradients(mesh):
    """Loss, metrics and gradients of the smoke model's first step on a mesh; the batch is the same everywhere."""
    task, batch = task_and_batch()
    shardings = pod.shardings(mesh, jax.eval_shape(task.init, jax.random.key(0)))
    params = jax.jit(task.init, out_shardings=shardings)(jax.random.key(0))
    # the head starts at zero, and nothing behind it would have a gradient
    params["dit"]["head"]["kernel"] += 0.1 * jnp.sin(jnp.arange(params["dit"]["head"]["kernel"].size)).reshape(
        params["dit"]["head"]["kernel"].shape
    )
    step = jax.jit(pod.on(mesh, lambda p, b, k: jax.value_and_grad(task.loss, has_aux=True)(p, b, k)))
    return jax.device_get(step(params, pod.place(mesh, batch, 1), jax.random.key(1)))


MESHES = [
    sizes(fsdp=2, context=2, ring=2, tensor=2),
    *(
        pytest.param(mesh, marks=pytest.mark.slow)
        for mesh in (
            sizes(data=2, fsdp=2, tensor=2),
            sizes(fsdp=2, context=4, ring=2),
            sizes(fsdp=8),
            sizes(fsdp=4, context=2),
            sizes(context=8, ring=8),
            sizes(data=2, context=2, tensor=2),
        )
    ),
]


@functools.cache
def alone():
    return gradients(pod.make(ONE, jax.devices()[:1]))


@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: "-".join(f"{k}{v}" for k, v in m.items() if v > 1))
def test_eight_devices_are_one(mesh):
    (loss, _), grads = gradients(pod.make(mesh))
    (loss_alone, _), grads_alone = alone()
    assert loss == pytest.approx(loss_alone, rel=1e-5)
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(grads_alone))

    def close(a, b):
        """To 1e-5 of the weight's own largest gradient; of all weights' where that is nothing but rounding."""
        scale = max(float(np.abs(b).max()), 1e-3 * largest)
        np.testing.assert_allclose(a / scale, b / scale, atol=1e-5)

    jax.tree.map(close, grads, grads_alone)


# Rows


def test_a_batch_is_placed_as_it_is():
    mesh = pod.make(sizes(fsdp=4, context=2))
    batch = {
        "x": np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32),
        "grid": np.arange(8).reshape(4, 2),
    }
    placed = pod.place(mesh, batch, 1)
    for name in batch:
        np.testing.assert_array_equal(placed[name], batch[name])
    assert placed["x"].sharding.spec == P(("data", "fsdp"), ("ring", "ulysses"), None)
    assert pod.readers(mesh) == (0, 1)
