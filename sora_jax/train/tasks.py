"""What each task gives the loop. A task is six functions and a data stream; the loop knows nothing else of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sora_jax.errors import InputError
from sora_jax.train.init import FOLDER


class Task(NamedTuple):
    """What `train.loop.run` needs.

    init(key) -> params, by part; loss(params, batch, key) -> (loss, metrics), pure; batches(cursor, host, hosts) ->
    iterator of (this host's part of a batch in numpy arrays, cursor after it); evaluate(params, key) -> numbers;
    pictures(params, folder, step) writes a contact sheet of fixed seeds; flops(batch) -> model FLOPs of a step;
    units(batch) -> its tokens or pixels; frozen: the parts of params that are those of `config.init` and stay so.
    """

    init: Callable
    loss: Callable
    batches: Callable
    evaluate: Callable
    pictures: Callable
    flops: Callable
    units: Callable
    frozen: tuple[str, ...] = ()


def make(config) -> Task:
    """The task named by `config.task`. Raises InputError for another name, or what no task computes in."""
    from sora_jax.train import captioner_task, dit_task, expander_task, vae_task

    makers = {"vae": vae_task.make, "dit": dit_task.make, "captioner": captioner_task.make}
    makers["expander"] = expander_task.make
    if config.task not in makers:
        raise InputError(f"config.task is {config.task!r}; choose one of {', '.join(makers)}")
    for part in FOLDER:
        if part in config and config[part].get("dtype", "float32") not in ("float32", "bfloat16"):
            raise InputError(f"config.{part}.dtype is {config[part].dtype!r}: choose float32 or bfloat16")
    return makers[config.task](config)
