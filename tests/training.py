"""A real task small enough for a process to train it in seconds; what the tests of training share.

Runs that are killed are processes of their own, forked from a server that has done the slow imports: they start in a
second, and kill -9 is kill -9.
"""

import json
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from sora_jax.errors import InputError
from sora_jax.train import loop

ROOT = Path(__file__).parent.parent
SAVE_EVERY = 4
STEPS = 30


def get_config(**changes) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "regression"
    config.seed = 0
    config.init = ""
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
    frozen: tuple = ()

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
    context.set_forkserver_preload(["sora_jax.train.loop", "tests.training"])
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


def wait_until(condition, process, seconds: float = 300.0, pause: float = 0.002) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert alive(process) and time.monotonic() < end, "the run ended, or hung, before what was waited for"
        time.sleep(pause)
