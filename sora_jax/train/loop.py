"""The one training loop, top to bottom: mesh, data, state, step, metrics, samples, checkpoint, preemption.

It knows a task by its functions (`tasks.Task`) and nothing of videos. Keys of the config it reads:

    task           which task ('vae', 'captioner', 'expander', 'dit')
    seed           of the weights and of every random number after
    init           a model folder whose weights a new run begins with ("": with random ones)
    steps          optimizer steps in all
    ema            decay of the averaged weights
    opt            see `optimizer.make`; and opt.accumulate, the number of micro-batches a batch is cut into
    save_every     steps between checkpoints, of which the newest `keep` stay
    log_every      steps between lines of metrics
    eval_every     steps between held-out evaluations
    picture_every  steps between contact sheets (each of the four also at the end; 0: only there)
    mesh           see `pod.mesh.make`; on many hosts every process runs the same command
    profile        the step whose trace, with the two after it, goes into tensorboard/ (0: none)

A workdir holds config.json, metrics.jsonl, tensorboard/, samples/ and checkpoints/. Whatever ends a run, the same
command goes on from its last complete checkpoint, and ends where a run that was never stopped would have ended, bit for
bit: all that decides a number is in the state and the cursor, and nothing that is logged, evaluated or painted touches
them.
"""

import contextlib
import fcntl
import json
import math
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.data.pipeline import redeal
from sora_jax.errors import InputError
from sora_jax.pod import mesh as pod
from sora_jax.pod.hosts import joined, together
from sora_jax.train import checkpoint, optimizer
from sora_jax.train.init import FOLDER, begun, flat, taken
from sora_jax.train.log import Log, replace, say, writing

MODEL_KEYS = ("task", *FOLDER, "opt.name")  # what a checkpoint's arrays depend on,
FREE_KEYS = ("dit.remat", "dit.keep", "dit.unroll")  # but not these, which trade memory, or compilation, for time
PROFILED = 3  # steps in a trace
EVAL_KEY = 0x5EED  # folded into the seed: evaluations draw the same numbers at every step


def train(config, workdir: str | Path) -> dict:
    """Train the config's task in a workdir, or go on with what is there. Returns (and prints) the summary of `run`."""
    import tensorflow as tf

    from sora_jax.train import tasks

    tf.config.set_visible_devices([], "GPU")  # it reads data and would else take the memory
    return run(tasks.make(config), config, workdir)


def join() -> None:
    """Become one of the processes of a pod, before JAX looks for its devices.

    Where they are and which one this is, JAX finds out on TPU VMs, GKE and SLURM by itself; elsewhere
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it. Raises InputError where neither does.
    """
    given = [os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    try:
        jax.distributed.initialize(None, *[int(number) if number else None for number in given])
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"this process could not join others ({error}): leave out --distributed on a single host, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from None


def run(task, config, workdir: str | Path) -> dict:
    """Train until `config.steps`, SIGTERM or Ctrl-C; prints one JSON line on stdout and returns it as a dict.

    The line has step, loss (of the last step; null if not finite), digest (`checkpoint.digest`) and skipped (steps
    whose loss or gradient was not finite, which changed nothing). Raises InputError for a bad config, a workdir of
    another model, and a full or unwritable disk.
    """
    started = time.perf_counter()
    workdir = checkpoint.located(workdir)
    compilation_cache()
    mesh = pod.make(config.mesh)
    update, abstract, fresh = prepare(task, config, mesh)
    update, fresh = joined(update), joined(fresh)
    with jax.set_mesh(mesh):  # what is loaded is spread over it
        expert = config.get("expert", "")
        still = taken(config.init, frozen(task, config, mesh), expert) if task.frozen else {}
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        lock = only_run(workdir)
        resuming = bool(checkpoint.steps(workdir / "checkpoints"))
        keep_config(config, workdir, resuming)
    with Stop() as stop, lock, checkpoint.Checkpoints(workdir / "checkpoints", config.keep) as checkpoints:
        if resuming:
            state, cursors = checkpoint.restore(workdir / "checkpoints", abstract)
            say(f"resuming {workdir} from step {int(state['step'])}")
        else:
            state, cursors = fresh(), None
            if config.init:
                state |= begun(config.init, state["params"], expert)
        step, done = int(state["step"]), None
        host, hosts = pod.readers(mesh)
        cursor = redeal(cursors, hosts)[host] if cursors else None
        batches = task.batches(cursor, host, hosts)
        eval_key = jax.random.fold_in(jax.random.key(config.seed), EVAL_KEY)
        shapes, tracing = set(), False

        def due(every: int) -> bool:
            return step == config.steps or (every > 0 and step % every == 0)

        with Log(workdir, step, config.steps, started) as log:
            while step < config.steps and not stop.now(step):
                began = time.perf_counter()
                batch, cursor = next(batches, (None, None))
                if batch is None:
                    raise InputError(f"the data ran out at step {step}: is the dataset empty, or less than a batch?")
                compiles = announce(batch, shapes, config.opt.accumulate)
                if config.profile and step == config.profile:
                    jax.profiler.start_trace(str(workdir / "tensorboard"))
                    tracing = True
                # Several processes on a CPU deadlock in gloo, jax 0.10 and 0.11, unless each step is waited for.
                lockstep = jax.process_count() > 1 and jax.default_backend() == "cpu"
                if lockstep:
                    together()  # see `pod.hosts`
                state, metrics = update(state, pod.place(mesh, batch, hosts), still)
                step += 1
                # One step may be under way while the next is prepared, no more: a signal is answered within two.
                jax.block_until_ready(metrics["loss"] if lockstep else done)
                done = metrics["loss"]

                if tracing and (step == min(config.profile + PROFILED, config.steps) or stop.asked):
                    jax.block_until_ready(done)
                    jax.profiler.stop_trace()
                    tracing = False
                seconds = 0.0 if compiles else time.perf_counter() - began
                log.step(metrics, hosts * task.units(batch), hosts * task.flops(batch), seconds)  # all do as this one
                if due(config.log_every) or stop.asked:
                    log.write(step, cursor.get("truncated"))
                if due(config.save_every) or stop.asked:
                    checkpoints.save(step, state, everyones(cursor, host))
                if due(config.eval_every) and not stop.asked:
                    with jax.set_mesh(mesh):
                        numbers = task.evaluate(still | state["ema"], eval_key)
                    log.numbers(step, {f"eval/{name}": float(value) for name, value in numbers.items()})
                if due(config.picture_every) and not stop.asked:
                    weights = multihost_utils.process_allgather(still | state["ema"], tiled=True)  # as NumPy arrays
                    if jax.process_index() == 0 and (ema := on_one(weights)):
                        with writing(workdir), tempfile.TemporaryDirectory() as folder:
                            (workdir / "samples").mkdir(exist_ok=True)
                            task.pictures(ema, Path(folder), step)
                            for picture in Path(folder).iterdir():  # pictures are drawn here, a bucket is not
                                (workdir / "samples" / picture.name).write_bytes(picture.read_bytes())
                    together()  # painting takes the first process minutes
            cursors, began = everyones(cursor, host), time.perf_counter()
            checkpoints.save(step, state, cursors)
            checkpoints.wait()
            if stop.asked:
                say(f"saved step {step} in {time.perf_counter() - began:.1f} s")

    loss = float(state["loss"])
    summary = {
        "step": step,
        "loss": loss if math.isfinite(loss) else None,
        "digest": checkpoint.digest(state, cursors),
        "skipped": int(state["skipped"]),
    }
    if jax.process_index() == 0:
        print(json.dumps(summary), flush=True)
    return summary


def prepare(task, config, mesh):
    """(update, abstract, fresh): the jitted step, the state's shapes and where they lie, its start.

    `update(state, batch, still) -> (state, metrics)` gives its state's buffers away; `still` is what is `frozen`. Every
    array is born where `pod.mesh` wants it, none is ever whole on one device that need not be. jit with shardings is
    what pjit was.
    """
    if config.opt.accumulate < 1:
        raise InputError(f"config.opt.accumulate is {config.opt.accumulate}: give 1 or more parts to a batch")
    tx, lr = optimizer.make(config.opt, config.steps)

    def first() -> dict:
        key_init, key_steps = jax.random.split(jax.random.key(config.seed))
        params = {part: tree for part, tree in task.init(key_init).items() if part not in task.frozen}
        return {
            "step": jnp.int32(0),
            "params": params,
            "ema": jax.tree.map(jnp.copy, params),
            "opt": tx.init(params),
            "key": jax.random.key_data(key_steps),  # as numbers, so that a checkpoint is plain arrays
            "skipped": jnp.int32(0),
            "loss": jnp.float32(jnp.nan),
        }

    def update(state: dict, batch: dict, still: dict):
        params, step = state["params"], state["step"]
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), step)
        loss_fn = lambda params, batch, key: task.loss(still | params, batch, key)
        loss, metrics, grads = accumulated(loss_fn, params, batch, key, config.opt.accumulate, mesh)
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

    abstract, everywhere = laid_out(jax.eval_shape(first), mesh), NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    fresh = jax.jit(first, out_shardings=shardings)
    update = jax.jit(pod.on(mesh, update), donate_argnums=0, out_shardings=(shardings, everywhere))
    return update, abstract, fresh


def frozen(task, config, mesh) -> dict:
    """What the task keeps frozen, as shapes with where they lie: by the rules of what is trained."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return laid_out({part: shapes[part] for part in task.frozen}, mesh)


def laid_out(shapes, mesh):
    """Shapes, each with where `pod.mesh` wants it."""
    spread = pod.shardings(mesh, shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, spread)


def announce(batch: dict, seen: set, k: int) -> bool:
    """Whether a batch's shape is new, so that its step has to be compiled, which is said.

    Raises InputError when the batch cannot be cut into k parts.
    """
    b = len(next(iter(batch.values())))
    shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in batch.items())
    if shapes in seen:
        return False
    seen.add(shapes)
    if b % k:
        raise InputError(f"a batch of {b} rows cannot be cut into config.opt.accumulate = {k} parts")
    say(f"compiling the step for {shapes}")
    return True


def accumulated(loss_fn, params, batch: dict, key, k: int, mesh):
    """(loss, metrics, gradients) of a batch: the mean over its k micro-batches, one after the other in 1/k the memory.

    Micro-batch i takes every k-th row, so that each is spread over all devices. With k = 1 the key is the step's own.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if k == 1:
        (loss, metrics), grads = grad_fn(params, batch, key)
        return loss, metrics, grads

    def micro(total, part):
        index, batch = part
        spread = {name: pod.batch_sharding(mesh, name, x.shape) for name, x in batch.items()}
        batch = jax.lax.with_sharding_constraint(batch, spread)
        (loss, metrics), grads = grad_fn(params, batch, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, grads), (loss, metrics)

    parts = jax.tree.map(lambda x: x.reshape(x.shape[0] // k, k, *x.shape[1:]).swapaxes(0, 1), batch)
    grads, (losses, metrics) = jax.lax.scan(micro, jax.tree.map(jnp.zeros_like, params), (jnp.arange(k), parts))
    # a metric that a micro-batch has nothing to say about is NaN there
    return losses.mean(), jax.tree.map(lambda x: jnp.nanmean(x, 0), metrics), jax.tree.map(lambda g: g / k, grads)


def on_one(weights: dict) -> dict | None:
    """The weights on one device of this process, for painting needs no mesh; None, and said, where it has no room."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    room = (stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0)) / 2  # the other half is for painting
    size = sum(w.nbytes for w in jax.tree.leaves(weights))
    if size <= room:
        return jax.device_put(weights, device)
    say(f"no samples: {size / 2**30:.1f} GiB of weights do not fit on one device beside the training")
    return None


def everyones(cursor, host: int) -> list:
    """The cursors of all readers, in order; every process takes part."""
    if jax.process_count() == 1:
        return [cursor]
    mine = np.frombuffer(json.dumps([host, cursor]).encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.int64(len(mine))).max())
    texts = multihost_utils.process_allgather(np.pad(mine, (0, longest - len(mine)), constant_values=ord(" ")))
    of = dict(json.loads(text.tobytes()) for text in texts)
    return [of[host] for host in sorted(of)]


def averaged(ema, params, decay: float, step):
    """Exponential moving average, its decay min(decay, (1 + step) / (10 + step)) so that early weights fade."""
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), ema, params)


class Stop:
    """SIGTERM or Ctrl-C asks for a save at the next step boundary; a second one ends the process as it always did.

    Of several processes one that is asked tells the others, through JAX's coordinator: all stop at the same step.
    """

    def __init__(self):
        self.asked = False
        self.many = jax.process_count() > 1  # then the coordinator listens for SIGTERM

    def __enter__(self):
        main = threading.current_thread() is threading.main_thread()  # only it may have handlers
        mine = (signal.SIGTERM, signal.SIGINT) if main and not self.many else ()
        self.before = {s: signal.signal(s, self.ask) for s in mine}
        return self

    def now(self, step: int) -> bool:
        """Whether to stop before this step; every process asks, and hears the same."""
        if self.many:
            self.asked = multihost_utils.reached_preemption_sync_point(step)
        return self.asked

    def ask(self, number, frame):
        self.asked = True
        os.write(2, f"\n{signal.Signals(number).name}: saving at the next step\n".encode())  # print may be under way
        self.__exit__()

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def only_run(workdir: Path):
    """The open file whose lock says that a run is at work here; a killed process loses it. InputError if taken.

    A bucket knows no locks: there nobody is kept out.
    """
    if "://" in os.fspath(workdir) or jax.process_index():
        return contextlib.nullcontext()
    lock = (workdir / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        sentence = f"another run is training in {workdir}; stop it, or give another --workdir"
        raise InputError(sentence) from None
    return lock


def keep_config(config, workdir: Path, resuming: bool) -> None:
    """Write config.json. A checkpoint of another model in the workdir is an InputError; other changes are told."""
    path, new = workdir / "config.json", json.loads(json.dumps(config.to_dict()))
    if resuming and path.exists():
        before, after = flat(json.loads(path.read_text())), flat(new)
        changed = [k for k in sorted(before | after) if before.get(k) != after.get(k)]
        for k in changed:
            still = k == "init" and (after.get("frozen") or after.get("lora.rank"))  # trained beside what it names
            other = k == "expert" and (before.get(k) or after.get(k))  # older runs do not say which
            if still or other or ((k == "opt.name" or k.split(".")[0] in MODEL_KEYS) and k not in FREE_KEYS):
                raise InputError(
                    f"{workdir} was trained with {k} = {before.get(k)!r}, not {after.get(k)!r}; "
                    "give another --workdir, or the config it began with"
                )
            say(f"resuming with {k} = {after.get(k)!r} (was {before.get(k)!r})")
    if jax.process_index() == 0:
        replace(path, json.dumps(new, indent=1) + "\n")


def compilation_cache() -> None:
    """Compiled steps are kept in the user's cache folder, so that a restart begins at once; JAX's own setting wins."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "sora_jax" / "jax"))
