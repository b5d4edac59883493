"""What a training step does: it is frozen, leaves out what is not finite, accumulates, averages; and the optimizers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sora_jax.errors import InputError
from sora_jax.pod import mesh as pod
from sora_jax.train import loop, optimizer
from tests.training import Regression, get_config, lines, train

# What a step does


@functools.cache
def prepared():
    config = get_config()
    return loop.prepare(Regression(config), config, pod.make(config.mesh))


def state_after(n: int, **changes) -> tuple[dict, list[dict]]:
    """State and metrics after n steps of the loop's own step function."""
    update, _, fresh = prepared()
    mesh = pod.make(get_config().mesh)
    state, metrics = fresh(), []
    for _, (batch, _) in zip(range(n), Regression(get_config(**changes)).batches(None)):
        state, numbers = update(state, pod.place(mesh, batch, 1), {})
        metrics.append(jax.device_get(numbers))
    return jax.device_get(state), metrics


def test_first_step_is_frozen():
    """Any change of these numbers changes every run in the world."""
    _, metrics = state_after(1)
    frozen = {"loss": 7.084370, "grad_norm": 8.529937}
    for name, value in frozen.items():
        assert metrics[0][name] == pytest.approx(value, rel=1e-4), (
            f"the first step's {name} is {metrics[0][name]:.6f} and was {value}: initialisation, the step's random "
            "key, the loss or the gradient has changed. If that was meant, write the new number here and say so in "
            "CHANGELOG.md; if not, find what changed before any run is resumed with it."
        )


def test_a_step_that_is_not_finite_leaves_no_trace():
    poisoned, metrics = state_after(2, data__poison=(1,))
    clean, _ = state_after(1)
    assert math.isnan(metrics[1]["loss"]) and poisoned["skipped"] == 1 and poisoned["step"] == 2
    for part in ("params", "ema", "opt"):
        jax.tree.map(np.testing.assert_array_equal, poisoned[part], clean[part])


def test_a_skipped_step_is_counted_and_training_goes_on(tmp_path, capsys):
    summary = train(tmp_path, data__poison=(3, 7), steps=8)
    assert summary["skipped"] == 2 and summary["loss"] is None  # of the last step; JSON has no NaN
    record = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["skipped"] for line in record] == [0, 1, 1, 2]
    assert all(math.isfinite(line["loss"]) for line in record)  # the mean of what was finite
    assert record[2]["loss"] != record[1]["loss"]


def test_accumulating_is_a_big_batch():
    """Loss and gradients of k micro-batches are those of one batch."""
    config = get_config(data__noise=0.0)
    task = Regression(config)
    mesh = pod.make(config.mesh, jax.devices()[:1])
    params, (batch, _) = task.init(jax.random.key(0)), next(task.batches(None))

    def parts(k):
        return jax.jit(lambda p, b: loop.accumulated(task.loss, p, b, jax.random.key(1), k, mesh))(params, batch)

    (loss, metrics, grads) = parts(1)
    for k in (2, 16):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts(k), (loss, metrics, grads))
    config.opt.accumulate = 3
    with pytest.raises(InputError, match=r"16 rows cannot be cut into config.opt.accumulate = 3 parts"):
        loop.announce(batch, set(), config.opt.accumulate)


def test_ema_is_its_formula():
    before, _ = state_after(1)
    after, _ = state_after(2)
    decay = min(0.9, (1 + 1) / (10 + 1))
    want = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, before["ema"], after["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after["ema"], want)
    late = loop.averaged({"w": jnp.zeros(3)}, {"w": jnp.ones(3)}, 0.9, jnp.int32(10_000))
    np.testing.assert_allclose(late["w"], 0.1, atol=1e-6)


# Optimizers


def test_muon_takes_hidden_matrices_layer_by_layer():
    shapes = {
        "blocks": {"self": {"q": {"kernel": (3, 8, 8), "bias": (3, 8)}}, "modulation": (3, 6, 8)},
        "conv": {"kernel": (3, 3, 3, 4, 8), "time_kernel": (3, 1, 1, 4, 8)},
        "dense": {"kernel": (8, 16)},
        "patch_in": {"kernel": (8, 8)},
        "time_projection": {"kernel": (8, 48)},
        "head": {"kernel": (8, 8)},
        "embed": (100, 8),
        "norm": {"scale": (8,)},
    }
    params = jax.tree.map(lambda s: jnp.zeros(s), shapes, is_leaf=lambda s: isinstance(s, tuple))
    axes = optimizer.matrices(params)
    muon = optax.contrib.MuonDimensionNumbers
    assert axes["blocks"]["self"]["q"] == {"kernel": muon((1,), (2,)), "bias": None}
    assert axes["conv"] == {"kernel": muon((0, 1, 2, 3), (4,)), "time_kernel": muon((0, 1, 2, 3), (4,))}
    assert axes["dense"]["kernel"] == muon((0,), (1,))
    rest = [axes["blocks"]["modulation"], axes["patch_in"], axes["time_projection"], axes["head"], axes["norm"]]
    assert not jax.tree.leaves([*rest, axes["embed"]])


def test_muon_of_a_stack_is_muon_of_each_layer_at_adams_size():
    config = get_config(opt__warmup=0, opt__schedule="constant", opt__lr=1.0, opt__weight_decay=0.0, opt__clip=1e9)
    tx, _ = optimizer.make(config.opt, 10)
    grads = jax.random.normal(jax.random.key(0), (3, 16, 32))

    def step(tree):
        return tx.update(tree, tx.init(tree), tree)[0]

    stack = step({"blocks": {"kernel": grads}})["blocks"]["kernel"]
    for i in range(3):
        alone = step({"dense": {"kernel": grads[i]}})["dense"]["kernel"]
        np.testing.assert_allclose(stack[i], alone, atol=1e-6)
    assert float(jnp.sqrt(jnp.mean(stack**2))) == pytest.approx(optimizer.ADAMW_RMS, rel=0.3)


def test_schedules_warm_up_and_come_down():
    for name, end in (("constant", 2.0), ("cosine", 0.0), ("linear", 0.0)):
        lr = optimizer.schedule(name, 2.0, 10, 110)
        assert [float(lr(s)) for s in (0, 5, 10)] == pytest.approx([0.0, 1.0, 2.0])
        assert float(lr(110)) == pytest.approx(end, abs=1e-6)
    assert float(optimizer.schedule("linear", 2.0, 10, 110)(90)) == pytest.approx(2.0)  # falls over the last fifth
