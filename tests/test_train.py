"""The laws of training, on a real task small enough for a process to train it in seconds.

Runs that are killed are processes of their own, forked from a server that has done the slow imports: they start in a
second, and kill -9 is kill -9.
"""

import functools
import json
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from sora_jax.errors import InputError
from sora_jax.pod import mesh as pod
from sora_jax.train import checkpoint, loop, optimizer

ROOT = Path(__file__).parent.parent
SAVE_EVERY = 4
STEPS = 30


def get_config(**changes) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "regression"
    config.seed = 0
    config.steps = STEPS
    config.ema = 0.9
    config.save_every = SAVE_EVERY
    config.keep = 2
    config.log_every = 2
    config.eval_every = 10
    config.picture_every = 10
    config.opt = ml_collections.ConfigDict()
    config.opt.name = "muon"
    config.opt.lr = 1e-2
    config.opt.adam_lr = 1e-2
    config.opt.weight_decay = 0.1
    config.opt.b1 = 0.9
    config.opt.b2 = 0.99
    config.opt.warmup = 3
    config.opt.schedule = "cosine"
    config.opt.clip = 1.0
    config.opt.accumulate = 1
    config.profile = 0
    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "context": 1, "ring": 1, "tensor": 1})
    config.dit = ml_collections.ConfigDict({"width": 32, "remat": False})
    config.data = ml_collections.ConfigDict({"pause": 0.0, "poison": (), "noise": 0.1})
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.gelu(nn.Dense(self.width, name="mlp_up")(x))


class MLP(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(self.width, name="x_in")(x))
        return nn.Dense(1, name="head")(Block(self.width, name="blocks")(x))


class Regression(NamedTuple):
    """Learn a fixed linear map of 8 numbers, with noise from the step's key, in batches of two shapes in turn.

    data.pause: seconds that a batch takes to make; data.poison: the indices of batches that are all NaN.
    """

    config: ml_collections.ConfigDict

    def init(self, key):
        return MLP(self.config.dit.width).init(key, jnp.zeros((1, 8)))["params"]

    def loss(self, params, batch, key):
        x = batch["x"] + self.config.data.noise * jax.random.normal(key, (8,))
        error = (MLP(self.config.dit.width).apply({"params": params}, x)[:, 0] - batch["y"]) ** 2
        return error.mean(), {"bias": params["head"]["bias"][0], "never": jnp.float32(jnp.nan)}

    def batches(self, cursor, host=0, hosts=1):
        index = cursor["step"] if cursor else 0
        while True:
            x = np.random.default_rng([3, index]).normal(size=(16 + 16 * (index % 2), 8)).astype(np.float32)
            y = x @ np.linspace(-1, 1, 8, dtype=np.float32)
            if index in self.config.data.poison:
                x = x * np.float32(np.nan)
            index += 1
            time.sleep(self.config.data.pause)
            mine = slice(len(x) * host // hosts, len(x) * (host + 1) // hosts)
            yield {"x": x[mine], "y": y[mine]}, {"step": index, "remainder": [index % 3, "row"]}

    def evaluate(self, params, key):
        return {"bias": float(params["head"]["bias"][0] + jax.random.uniform(key))}

    def pictures(self, params, folder, step):
        (folder / f"{step:07d}.txt").write_text(str(params["head"]["bias"]))

    def flops(self, batch):
        return 6.0 * len(batch["x"]) * (8 + self.config.dit.width + 1) * self.config.dit.width

    def units(self, batch):
        return len(batch["x"])


def train(workdir, **changes) -> dict:
    config = get_config(**changes)
    return loop.run(Regression(config), config, workdir)


def program(workdir: Path, changes: dict, devices: int, largest_file: int, pod: tuple | None) -> None:
    """A training run as a process: what it prints goes to workdir.out and workdir.err, as a shell would have it.

    pod: (port, processes, which) of a run of several.
    """
    which = f"{pod[2]}" if pod else ""
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(workdir.with_suffix(f".{name}{which}"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(file, number)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"  # JAX has not started yet here
    if largest_file:
        jax.config.update("jax_enable_compilation_cache", False)  # a cache would keep the halves of files
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        if pod:
            names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
            os.environ.update(zip(names, (f"localhost:{pod[0]}", f"{pod[1]}", f"{pod[2]}")))
            loop.join()
        train(workdir, **changes)
    except InputError as error:
        print(f"sora-jax: {error}", file=sys.stderr)  # as the command line does
        sys.exit(2)


@pytest.fixture(scope="module")
def start():
    """Start a run in a process; returns the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sora_jax.train.loop", "tests.test_train"])
    running = []

    def start(workdir: Path, devices: int = 8, largest_file: int = 0, pod: tuple | None = None, **changes):
        running.append(context.Process(target=program, args=(workdir, changes, devices, largest_file, pod)))
        running[-1].start()
        return running[-1]

    yield start
    for process in running:
        process.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(workdir, summary) of a run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, train(workdir)


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def alive(process) -> bool:
    return process.is_alive() if hasattr(process, "is_alive") else process.poll() is None


def wait_until(condition, process, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert alive(process) and time.monotonic() < end, "the run ended, or hung, before what was waited for"
        time.sleep(0.002)


# The law of resuming


def test_it_learns_and_keeps_a_record(whole, capsys):
    workdir, summary = whole
    assert summary["step"] == STEPS and summary["skipped"] == 0 and len(summary["digest"]) == 64
    record = [line for line in lines(workdir) if "loss" in line]
    assert [line["step"] for line in record] == list(range(2, STEPS + 1, 2))
    assert record[-1]["loss"] < 0.3 * record[0]["loss"]
    assert record[0]["never"] is None  # a metric that is NaN everywhere is null, not invalid JSON
    assert all(line["tokens_per_second"] > 0 and line["flops_per_second"] > 0 for line in record)
    assert all(0 <= line["goodput"] < 1 for line in record) and record[-1]["goodput"] > 0
    assert [line["step"] for line in lines(workdir) if "eval/bias" in line] == [10, 20, 30]
    assert sorted(path.name for path in (workdir / "samples").iterdir()) == [f"{s:07d}.txt" for s in (10, 20, 30)]
    assert checkpoint.steps(workdir / "checkpoints") == [28, 30]  # keep = 2
    assert list((workdir / "tensorboard").iterdir())


def test_a_finished_run_says_the_same_again(whole, capsys):
    workdir, summary = whole
    assert train(workdir) == summary
    assert json.loads(capsys.readouterr().out) == summary  # one line of JSON is all of stdout


def test_numbers_do_not_depend_on_what_is_saved_logged_or_painted(whole, tmp_path):
    changes = {"save_every": 0, "log_every": 7, "eval_every": 3, "picture_every": 0, "keep": 1, "profile": 5}
    assert train(tmp_path, **changes)["digest"] == whole[1]["digest"]
    assert list((tmp_path / "tensorboard" / "plugins" / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("moment", ["saving", "saved"])
def test_killed_and_resumed_is_never_killed(whole, start, tmp_path, moment):
    """kill -9 in the middle of writing a checkpoint, and just after one; then the run goes on to the same bits."""
    workdir = tmp_path / "run"
    process = start(workdir, data__pause=0.05)
    folder = workdir / "checkpoints"
    if moment == "saving":
        wait_until(lambda: list(folder.glob("8.*tmp*")), process)
    else:
        wait_until(lambda: (folder / "8").is_dir(), process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert max(checkpoint.steps(folder)) == (4 if moment == "saving" else 8)
    assert train(workdir) == whole[1]
    assert not list(folder.glob("*tmp*"))  # what the kill left is swept away
    steps = [line["step"] for line in lines(workdir) if "loss" in line]
    assert steps == list(range(2, STEPS + 1, 2))  # every line once


@pytest.mark.slow
def test_killed_at_random_moments(whole, start, tmp_path):
    """Killed eight times while it saves at every step: compiling, stepping, writing, deleting an old checkpoint."""
    workdir, rng = tmp_path / "run", np.random.default_rng(0)
    folder = workdir / "checkpoints"
    for target in sorted(rng.choice(STEPS - 6, 8, replace=False)):
        process = start(workdir, data__pause=0.05, save_every=1)
        wait_until(lambda: max(checkpoint.steps(folder), default=0) >= target, process)  # noqa: B023
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert train(workdir)["digest"] == whole[1]["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["vae", "dit"])
def test_the_real_thing_killed_and_resumed(config, tmp_path):
    """The smoke configs through the command line: 20 steps, killed twice, end in the same digest as undisturbed."""

    def command(name):
        line = [sys.executable, "-m", "sora_jax.cli", "train", "--config", f"configs/{config}.py:smoke"]
        return subprocess.Popen([*line, "--workdir", str(tmp_path / name)], cwd=ROOT, stdout=subprocess.PIPE)

    whole = command("whole").communicate()[0]
    assert json.loads(whole)["step"] == 20
    for name in ("5", "10*tmp*"):  # after the first checkpoint, and inside the second or just after
        process = command("killed")
        while not list((tmp_path / "killed" / "checkpoints").glob(name)) and process.poll() is None:
            time.sleep(0.002)
            if checkpoint.steps(tmp_path / "killed" / "checkpoints")[-1:] >= [10]:
                break
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert command("killed").communicate()[0] == whole


def test_sigterm_saves_says_where_it_stopped_and_exits_0(whole, start, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, data__pause=0.05, save_every=0)
    wait_until(lambda: (workdir / "metrics.jsonl").exists() and len(lines(workdir)) > 2, process)
    with pytest.raises(InputError, match="another run is training in"):
        train(workdir)
    process.terminate()
    process.join(300)
    assert process.exitcode == 0
    summary = json.loads(workdir.with_suffix(".out").read_text())
    assert 4 <= summary["step"] < STEPS
    state, cursor = checkpoint.restore(workdir / "checkpoints")
    assert checkpoint.steps(workdir / "checkpoints") == [summary["step"]]
    assert cursor[0]["step"] == summary["step"] and float(state["loss"]) == summary["loss"]
    assert train(workdir) == whole[1]


def test_one_device_is_eight(whole, start, tmp_path):
    """The same weights, to float rounding; and a checkpoint of one mesh goes on on another."""
    workdir = tmp_path / "run"
    process = start(workdir, devices=1, data__pause=0.05)
    wait_until(lambda: (workdir / "checkpoints" / "8").is_dir(), process)
    process.terminate()
    process.join(300)
    assert process.exitcode == 0 and train(workdir)["step"] == STEPS
    for name in ("params", "ema"):
        one, eight = (checkpoint.restore(w / "checkpoints", {name: None})[0] for w in (workdir, whole[0]))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), one, eight)


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
        state, numbers = update(state, pod.place(mesh, batch, 1))
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


# A user's mistakes, and the machine's


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"opt__name": "adam"}, "config.opt.name is 'adam'.*did you mean 'adamw'"),
        ({"opt__schedule": "cosin"}, "config.opt.schedule is 'cosin'.*did you mean 'cosine'"),
        ({"keep": 0}, "config.keep is 0"),
    ],
)
def test_a_bad_config_is_one_sentence(tmp_path, change, sentence):
    with pytest.raises(InputError, match=sentence):
        train(tmp_path, **change)


def test_another_model_in_the_workdir(whole, capsys):
    workdir, summary = whole
    with pytest.raises(InputError, match=r"was trained with dit.width = 32, not 64; give another --workdir"):
        train(workdir, dit__width=64)
    assert (
        train(workdir, opt__lr=0.5, dit__remat=True)["digest"] == summary["digest"]
    )  # not the model: allowed, and told
    told = capsys.readouterr().err
    assert "resuming with opt.lr = 0.5 (was 0.01)" in told and "resuming with dit.remat = True (was False)" in told
    train(workdir)


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write in .*give another --workdir"):
        train(tmp_path / "file" / "run")


def test_a_full_disk_loses_nothing(start, tmp_path):
    """Files are refused beyond a size by the kernel, as a full disk refuses them; that needs no root."""
    workdir, changes = tmp_path / "run", {"opt__schedule": "constant", "opt__name": "adamw", "dit__width": 256}
    train(workdir, steps=8, **changes)
    before = checkpoint.digest(*checkpoint.restore(workdir / "checkpoints"))
    process = start(workdir, devices=1, largest_file=50_000, steps=16, **changes)
    process.join(300)
    assert process.exitcode == 2
    *_, bar, told = workdir.with_suffix(".err").read_text().splitlines()
    assert "loss" in bar and "Traceback" not in workdir.with_suffix(".err").read_text()
    assert told.startswith("sora-jax: could not save a checkpoint in") and "File too large" in told
    assert told.endswith("then run the same command again") and "the checkpoint of step 8 is intact" in told
    assert checkpoint.digest(*checkpoint.restore(workdir / "checkpoints")) == before
    assert train(workdir, steps=16, **changes)["step"] == 16
