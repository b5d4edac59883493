"""The one training loop, top to bottom: mesh, data, state, step, metrics, samples, checkpoint, preemption.

It knows a task by six functions (`tasks.Task`) and nothing of videos. Keys of the config it reads:

    task           which task ('vae', 'dit')         seed            of the weights and of every random number after
    steps          optimizer steps in all            opt             see `optimizer.make`; and opt.accumulate, the number
    ema            decay of the averaged weights                     of micro-batches a batch is cut into
    save_every     steps between checkpoints         keep            checkpoints that stay
    log_every      steps between lines of metrics    eval_every      steps between held-out evaluations
    picture_every  steps between contact sheets

A workdir holds config.json, metrics.jsonl, tensorboard/, samples/ and checkpoints/. Whatever ends a run, the same command
goes on from its last complete checkpoint, and ends where a run that was never stopped would have ended, bit for bit: all
that decides a number is in the state and the cursor, and nothing that is logged, evaluated or painted touches them.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tqdm import tqdm

from sora_jax.errors import InputError
from sora_jax.train import checkpoint, optimizer

MODEL_KEYS = ("task", "vae", "text", "dit", "opt.name")  # what a checkpoint's arrays depend on
EVAL_KEY = 0x5EED  # folded into the seed: evaluations draw the same numbers at every step


def train(config, workdir: str | Path) -> dict:
    """Train the config's task in a workdir, or go on with what is there. Returns (and prints) the summary of `run`."""
    from sora_jax.train import tasks

    return run(tasks.make(config), config, workdir)


def run(task, config, workdir: str | Path) -> dict:
    """Train until `config.steps`, SIGTERM or Ctrl-C; prints one JSON line on stdout and returns it as a dict.

    The line has step, loss (of the last step; null if not finite), digest (`checkpoint.digest`) and skipped (steps whose
    loss or gradient was not finite, which changed nothing). Raises InputError for a bad config, a workdir of another
    model, and a full or unwritable disk.
    """
    workdir = Path(workdir)
    update, abstract, fresh, rows = prepare(task, config)
    compilation_cache()
    resuming = bool(checkpoint.steps(workdir / "checkpoints"))
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        keep_config(config, workdir, resuming)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", config.keep)
    if resuming:
        state, cursor = checkpoint.restore(workdir / "checkpoints", abstract)
        say(f"resuming {workdir} from step {int(state['step'])}")
    else:
        state, cursor = fresh(), None
    step = int(state["step"])

    eval_key = jax.random.fold_in(jax.random.key(config.seed), EVAL_KEY)
    batches = task.batches(cursor)
    previous = state["loss"]
    log = Log(workdir, step, config.steps)
    with Stop() as stop, log:
        while step < config.steps and not stop.asked:
            batch, cursor = next(batches, (None, None))
            if batch is None:
                raise InputError(f"the data ran out at step {step}: is the dataset empty, or smaller than one batch?")
            check_rows(batch, rows, config.opt.accumulate)
            state, metrics = update(state, jax.device_put(batch, rows))
            step += 1
            # One step may be under way while the next is prepared, no more: a signal is answered within two steps.
            # (Several processes on a CPU deadlock in gloo with jax 0.10 and 0.11 unless each step is waited for.)
            alone = jax.process_count() == 1 or jax.default_backend() != "cpu"
            jax.block_until_ready(previous if alone else metrics)
            previous = metrics["loss"]

            log.step(metrics, task.units(batch), task.flops(batch))
            if step % config.log_every == 0 or step == config.steps:
                log.write(step)
            if step % config.eval_every == 0 or step == config.steps:
                log.numbers(step, {f"eval/{k}": float(v) for k, v in task.evaluate(state["ema"], eval_key).items()})
            if step % config.picture_every == 0 or step == config.steps:
                with writing(workdir):
                    (workdir / "samples").mkdir(exist_ok=True)
                    task.pictures(state["ema"], workdir / "samples", step)
            if step % config.save_every == 0:
                checkpoints.save(step, state, cursor)
        checkpoints.save(step, state, cursor)
        checkpoints.wait()

    loss = float(state["loss"])
    summary = {
        "step": step,
        "loss": loss if math.isfinite(loss) else None,
        "digest": checkpoint.digest(state, cursor),
        "skipped": int(state["skipped"]),
    }
    checkpoints.close()
    if jax.process_index() == 0:
        print(json.dumps(summary), flush=True)
    return summary


def prepare(task, config):
    """(update, abstract, fresh, rows): the jitted step, the state's shapes and layout, the first state, the batch's layout.

    `update(state, batch) -> (state, metrics)` gives its state's buffers away. The mesh is one `data` axis over all devices:
    rows of a batch are spread over it, everything else is on every device. jit with shardings is what pjit was.
    """
    # Auto axes: Linen's layers do not survive the Explicit ones that make_mesh gives by default
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    tx, lr = optimizer.make(config.opt, config.steps)

    def first() -> dict:
        key_init, key_steps = jax.random.split(jax.random.key(config.seed))
        params = task.init(key_init)
        return {
            "step": jnp.int32(0),
            "params": params,
            "ema": jax.tree.map(jnp.copy, params),
            "opt": tx.init(params),
            "key": jax.random.key_data(key_steps),  # as numbers, so that a checkpoint is plain arrays
            "skipped": jnp.int32(0),
            "loss": jnp.float32(jnp.nan),
        }

    def update(state: dict, batch: dict):
        params, step = state["params"], state["step"]
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), step)
        loss, metrics, grads = accumulated(task.loss, params, batch, key, config.opt.accumulate, rows)
        norm = optax.global_norm(grads)
        updates, opt = tx.update(grads, state["opt"], params)
        new = {"params": optax.apply_updates(params, updates), "opt": opt}
        new["ema"] = averaged(state["ema"], new["params"], config.ema, step)
        # A step that is not finite must leave no trace: one NaN in Adam's moments would stay for ever.
        fine = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, {name: state[name] for name in new})
        skipped = state["skipped"] + ~fine
        state = {**state, **new, "step": step + 1, "skipped": skipped, "loss": loss.astype(jnp.float32)}
        return state, {**metrics, "loss": loss, "grad_norm": norm, "lr": lr(step), "skipped": skipped}

    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), jax.eval_shape(first)
    )
    fresh = jax.jit(first, out_shardings=everywhere)
    update = jax.jit(update, donate_argnums=0, in_shardings=(everywhere, rows), out_shardings=everywhere)
    return update, abstract, fresh, rows


def accumulated(loss_fn, params, batch: dict, key, k: int, rows: NamedSharding):
    """(loss, metrics, gradients) of a batch, as the mean over its k micro-batches one after the other, in 1/k the memory.

    Micro-batch i takes every k-th row, so that each is spread over all devices. With k = 1 the key is the step's own.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if k == 1:
        (loss, metrics), grads = grad_fn(params, batch, key)
        return loss, metrics, grads

    def micro(total, part):
        index, batch = part
        batch = jax.lax.with_sharding_constraint(batch, rows)
        (loss, metrics), grads = grad_fn(params, batch, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, grads), (loss, metrics)

    parts = jax.tree.map(lambda x: x.reshape(x.shape[0] // k, k, *x.shape[1:]).swapaxes(0, 1), batch)
    grads, (losses, metrics) = jax.lax.scan(micro, jax.tree.map(jnp.zeros_like, params), (jnp.arange(k), parts))
    # a metric that a micro-batch has nothing to say about is NaN there
    return losses.mean(), jax.tree.map(lambda x: jnp.nanmean(x, 0), metrics), jax.tree.map(lambda g: g / k, grads)


def averaged(ema, params, decay: float, step):
    """Exponential moving average of the weights: decay min(decay, (1 + step) / (10 + step)), so that early weights fade."""
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), ema, params)


class Stop:
    """SIGTERM or Ctrl-C asks for a save at the next step boundary; a second one ends the process as it always did."""

    def __init__(self):
        self.asked = False

    def __enter__(self):
        main = threading.current_thread() is threading.main_thread()  # only it may have handlers
        self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGTERM, signal.SIGINT)} if main else {}
        return self

    def ask(self, number, frame):
        self.asked = True
        say(f"{signal.Signals(number).name}: saving at the next step")
        self.__exit__()

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Log:
    """Metrics of a run: kept on the device between lines, then into metrics.jsonl, TensorBoard and the progress bar."""

    def __init__(self, workdir: Path, step: int, steps: int):
        self.workdir, self.path = workdir, workdir / "metrics.jsonl"
        self.start, self.steps = step, steps
        self.waiting, self.units, self.flops = [], 0, 0.0

    def __enter__(self):
        with writing(self.workdir):
            forget(self.path, self.start)
        import tensorflow as tf  # here, for it takes seconds and only training needs it

        tf.config.set_visible_devices([], "GPU")
        self.tf, self.board = tf, tf.summary.create_file_writer(str(self.workdir / "tensorboard"))
        # what tf.summary.scalar writes, without the TensorBoard package that it needs only for this
        self.scalars = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"})
        slow = not sys.stderr.isatty()  # a log file wants a line now and then, a terminal a living bar
        self.bar = tqdm(total=self.steps, initial=self.start, unit="step", mininterval=15 if slow else 0.2)
        self.since = time.perf_counter()
        return self

    def __exit__(self, *error):
        self.bar.close()
        self.board.close()

    def step(self, metrics: dict, units: int, flops: float) -> None:
        """Note a step's metrics without waiting for them."""
        self.waiting.append(metrics)
        self.units, self.flops = self.units + units, self.flops + flops
        self.bar.update(1)

    def write(self, step: int) -> None:
        """One line for the steps since the last: means (of what is finite), totals a second, and the newest count of skips."""
        metrics = jax.device_get(self.waiting)
        seconds = time.perf_counter() - self.since
        values = {"loss": math.nan}  # first in the line
        for name in metrics[0]:
            finite = [float(m[name]) for m in metrics if np.isfinite(m[name])]
            values[name] = sum(finite) / len(finite) if finite else math.nan
        values["skipped"] = int(metrics[-1]["skipped"])
        values |= {"tokens_per_second": self.units / seconds, "flops_per_second": self.flops / seconds}
        values["seconds_per_step"] = seconds / len(metrics)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.4f}, {values['tokens_per_second']:.3g} tokens/s, "
            f"{values['flops_per_second'] / 1e9:.3g} GFLOP/s, {values['skipped']} skipped"
        )
        self.numbers(step, values)
        self.waiting, self.units, self.flops = [], 0, 0.0
        self.since = time.perf_counter()

    def numbers(self, step: int, values: dict) -> None:
        """Append a line, with null for what is not finite, and the same to TensorBoard."""
        if jax.process_index():
            return
        finite = {k: v for k, v in values.items() if math.isfinite(v)}
        with writing(self.workdir):
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **dict.fromkeys(values), **finite}) + "\n")
            with self.board.as_default():
                for name, value in finite.items():
                    self.tf.summary.write(name, self.tf.constant(value, "float32"), step, self.scalars)
            self.board.flush()


def forget(path: Path, step: int) -> None:
    """Drop the lines of metrics that come after `step`, and one cut short: they will be written again."""
    if not path.exists():
        return

    def stays(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, KeyError):
            return False

    replace(path, "".join(line for line in path.read_text().splitlines(True) if stays(line)))


def keep_config(config, workdir: Path, resuming: bool) -> None:
    """Write config.json. A workdir that holds a checkpoint of another model is an InputError; other changes are said aloud."""
    path, new = workdir / "config.json", json.loads(json.dumps(config.to_dict()))
    if resuming and path.exists():
        before, after = flat(json.loads(path.read_text())), flat(new)
        changed = [k for k in sorted(before | after) if before.get(k) != after.get(k)]
        for k in changed:
            if k == "opt.name" or k.split(".")[0] in MODEL_KEYS:
                raise InputError(
                    f"{workdir} was trained with {k} = {before.get(k)!r}, not {after.get(k)!r}; "
                    "give another --workdir, or the config it began with"
                )
            say(f"resuming with {k} = {after.get(k)!r} (was {before.get(k)!r})")
    replace(path, json.dumps(new, indent=1) + "\n")


def flat(tree: dict, prefix: str = "") -> dict:
    """{'opt': {'lr': 1}} -> {'opt.lr': 1}."""
    leaves = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def check_rows(batch: dict, rows: NamedSharding, k: int) -> None:
    """Raise InputError when the batch cannot be cut into k micro-batches spread over all devices."""
    b, devices = len(next(iter(batch.values()))), rows.mesh.size
    if b % (devices * k):
        raise InputError(
            f"a batch of {b} rows cannot be cut into opt.accumulate={k} parts over {devices} devices; "
            f"make it a multiple of {devices * k}"
        )


class writing:
    """Turns the operating system's refusal to write into one sentence about the workdir."""

    def __init__(self, workdir: Path):
        self.workdir = workdir

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write in {self.workdir} ({error.strerror or error}): make room or give another --workdir; "
                "what is there stays as it is"
            ) from error


def replace(path: Path, text: str) -> None:
    """Write a file so that it is whole or as before, whenever the process dies."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def compilation_cache() -> None:
    """Compiled steps are kept in the user's cache folder, so that a restart begins at once; JAX's own setting wins."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "sora_jax" / "jax"))


def say(sentence: str) -> None:
    """A line on stderr that leaves the progress bar whole; stdout belongs to the summary."""
    if jax.process_index() == 0:
        tqdm.write(sentence, file=sys.stderr)
